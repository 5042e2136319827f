"""Sizes of the tiny native of the tests, and what the fixtures that build on it return."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from mla_ray.packs.pack import LanguagePack

CONTEXT = 24
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
TEXT = {
    "context_length": CONTEXT,
    "width": 32,
    "heads": 2,
    "layers": 3,
    "pool_type": "eos",
    "eos_id": 2,
    "hf_tokenizer_name": "in this folder",
}


class BuildModel(Protocol):
    def __call__(self, kind: type[nn.Module] = ..., seed: int = ..., **text: Any) -> nn.Module:
        """An open_clip model with random weights; `text` overrides its text configuration."""
        ...


class MakePack(Protocol):
    def __call__(
        self,
        language: str,
        seed: int = ...,
        texts: list[str] | None = ...,
        share: LanguagePack | None = ...,
    ) -> LanguagePack:
        """A pack of `language` with random weights, acquirers that do something included.

        Its tokens are those of `texts`; or it shares the embedding of another pack.
        """
        ...


Train = Callable[..., None]
