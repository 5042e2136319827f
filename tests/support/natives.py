"""Sizes of the tiny native of the tests, and what the fixtures that build on it return."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from open_clip.tokenizer import SimpleTokenizer
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


def save_clip_tokenizer(folder: Path) -> SimpleTokenizer:
    """CLIP's vocabulary as transformers keeps it, in `folder`; returns open_clip's tokenizer."""
    from transformers import CLIPTokenizer

    tokenizer = SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {renamed.get(token, token): row for token, row in tokenizer.encoder.items()}
    CLIPTokenizer(vocab, list(tokenizer.bpe_ranks)).save_pretrained(folder)
    return tokenizer
