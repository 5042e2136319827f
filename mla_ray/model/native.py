"""The native encoder: a frozen English image-text model, such as the paper's CLIP.

A native can be any open_clip model with a supported text tower (`mla_ray.model.towers`), or a
folder of transformers' CLIP or SigLIP.

Shapes: B batch, L tokens, E joint embedding size, S image side in pixels.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from huggingface_hub import constants
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from mla_ray.model.english import blank_ids, text_only, unknown_id
from mla_ray.model.fingerprint import fingerprint, weights_and_preprocessing
from mla_ray.model.identity import NativeIdentity, bundled_native
from mla_ray.model.open_clip_config import ModelConfig
from mla_ray.model.text import as_texts
from mla_ray.model.tokenizers import Shares
from mla_ray.model.towers import BERTS, text_tower
from mla_ray.model.transformers_folder import DUAL_ENCODERS, load_folder, model_type
from mla_ray.runtime.atomic import recover_folder

OPEN_CLIP_WEIGHTS = {"open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"}
"""File names that open_clip tries before any pickle."""


class Native:
    """Frozen English image-text model.

    `Native.load` loads one by name. The constructor wraps a model in memory: it switches the model
    to eval mode, disables its gradients and moves it to `device`.

    Args:
        name: Name for messages and records. `Native.load` sets the name that it was called with.
        model: An open_clip model.
        tokenizer: Tokenizer of open_clip.
        device: A torch device.

    Attributes:
        name: Name of the native.
        model: The open_clip model.
        text: The text tower.
        preprocess: Callable from a PIL image to pixels `[3, S, S]`, float32.
        fingerprint: Hash in hex of everything that changes a text or image feature.
        fingerprint_v1: Hash in hex by rule 1 of mla-ray 0.1.0: weights and preprocessing only.

    Raises:
        TypeError: The text tower is not supported.

    """

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Callable[..., Tensor], device: str = "cpu"
    ) -> None:
        self.name = name
        # Any: for mypy, an attribute of a module is a Tensor or a Module.
        self.model = cast(Any, model.eval().requires_grad_(False))
        self.fingerprint_v1 = weights_and_preprocessing(self.model)
        hugging_face = getattr(tokenizer, "tokenizer", None)
        self.text = text_tower(
            self.model,
            getattr(tokenizer, "context_length", None),
            getattr(hugging_face, "eos_token_id", None),
        )
        self._tokenizer = text_only(tokenizer)
        self._unknown, self._blank = unknown_id(tokenizer), blank_ids(tokenizer)
        self.fingerprint = fingerprint(
            self.fingerprint_v1, self.model, self.text, tokenizer, self.tokenize
        )
        self.model.to(device)
        if isinstance(self.model.visual, ModifiedResNet):  # convolutions take a third less time so
            self.model.visual.to(memory_format=torch.channels_last)
        self.preprocess: Callable[[Image.Image], Tensor] = image_transform_v2(
            PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False
        )

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Self:
        """Load a native by name.

        Args:
            name: One of the following:

                - `emoji-clip`, which is bundled
                - a local folder with safetensors weights, in open_clip's layout or in that of
                  transformers' CLIP or SigLIP
                - `hf-hub:owner/model`
                - an open_clip name and tag, such as `ViT-B-32/openai`
            device: A torch device.

        Raises:
            FileNotFoundError: The folder, name, tag or weights do not exist or cannot be fetched,
                or open_clip would load a pickle from the folder.
            ValueError: A configuration is invalid, or the folder contains another kind of
                transformers model.
            TypeError: The text tower is not supported.

        """
        folder = bundled_native(name) or Path(name)
        recover_folder(folder)
        if (folder / "open_clip_config.json").is_file():
            _check_weights(folder)
            source = f"local-dir:{folder}"
            model = open_clip.create_model(
                source, require_pretrained=True, **_own_text_config(folder)
            )
            return cls(name, model, open_clip.get_tokenizer(source), device)
        kind = model_type(folder)
        if kind in DUAL_ENCODERS:
            return cls(name, *load_folder(folder), device)
        if kind:
            raise ValueError(
                f"{folder}/config.json: model_type {kind!r} is not supported; "
                f"{', '.join(DUAL_ENCODERS)} are"
            )
        source, pretrained, quick_gelu = name, None, False
        if not name.startswith("hf-hub:"):
            source, _, pretrained = name.rpartition("/")
            if (source, pretrained) not in open_clip.list_pretrained():
                raise FileNotFoundError(
                    f"no native {name!r}: neither bundled, nor a folder with "
                    "open_clip_config.json or a config.json of transformers' CLIP, nor "
                    "hf-hub:owner/model, nor an open_clip NAME/TAG such as ViT-B-32/openai"
                )
            # OpenAI's weights need QuickGELU; open_clip only warns when the name lacks it.
            quick_gelu = open_clip.get_pretrained_cfg(source, pretrained).get("quick_gelu", False)
        try:
            with _nothing_logged():
                model = open_clip.create_model(
                    source, pretrained, force_quick_gelu=quick_gelu, require_pretrained=True
                )
        except RuntimeError as error:  # open_clip raises it for any failure
            offline = " (HF_HUB_OFFLINE is set: only the cache was searched)"
            where = offline if constants.HF_HUB_OFFLINE else ""
            raise FileNotFoundError(
                f"native {name!r} cannot be fetched{where}: {error}; without a hub, pass its folder"
            ) from error
        return cls(name, model, open_clip.get_tokenizer(source), device)

    def on(self, device: str) -> "Native":
        """Return the native on a device: this one if it is there, otherwise one loaded anew."""
        if self.device.type == torch.device(device).type:
            return self
        return Native.load(self.name, device)

    @property
    def identity(self) -> NativeIdentity:
        """What identifies the vectors of this native."""
        return NativeIdentity(self.name, self.fingerprint, self.fingerprint_v1, self.dim)

    def goes_by(self, fingerprint: str, what: object, remedy: str) -> bool:
        """Return whether a fingerprint in `what` is this native's, as `recognised` decides."""
        return self.identity.goes_by(fingerprint, what, remedy)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.text.token_embedding.weight.device

    @property
    def dim(self) -> int:
        """Size E of the joint embedding."""
        return self.text.dim

    @property
    def logit_scale(self) -> float:
        """Factor that multiplies cosines, 1 / temperature. It is 100 for OpenAI's CLIP."""
        return float(self.model.logit_scale.exp())

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize English texts to native token ids `[B, context length]`, int64.

        A control token's name in a text is tokenized as plain text. A single string is one text,
        `[1, …]`. An empty list gives `[0, …]`.

        Raises:
            TypeError: The argument is bytes, or an item is not a `str`.
            ValueError: A text contains a lone surrogate. The message names the text and the
                position.

        """
        given, length = as_texts(texts), self.text.context_length
        if not given:  # transformers' tokenizers reject an empty batch
            return torch.zeros(0, length, dtype=torch.int64)
        return self._tokenizer(given, context_length=length)

    def unknown_tokens(self, texts: str | Sequence[str]) -> Shares:
        """Compute the share of unknown tokens of each text `[B]`, float64, from 0 to 1.

        An unknown token is the tokenizer's token for text outside its vocabulary. A byte-level
        tokenizer has none. Tokens beyond the context and tokens that are a single space do not
        count. The share is 1 for a text without any other token.
        """
        return self.unknown_of(self.tokenize(texts))

    def unknown_of(self, ids_BL: Tensor) -> Shares:
        """Compute `unknown_tokens` from native token ids `[B, L]`, int64, on the CPU."""
        said_B, unknown_B = self._counts(ids_BL)
        return np.where(said_B > 0, unknown_B / np.maximum(said_B, 1), 1.0)

    def count(self, text: str) -> int:
        """Count the tokens of a text. An unknown token counts twice.

        Tokens beyond the context and tokens that are a single space do not count.
        """
        return sum(int(count_B[0]) for count_B in self._counts(self.tokenize(text)))

    def _counts(self, ids_BL: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the number of meaningful tokens `[B]` and of unknown tokens `[B]` of each text."""
        length_B = self.text.english_end(ids_BL) + 1
        is_read_BL = torch.arange(ids_BL.shape[1]) < length_B[:, None]

        def count(*tokens: int) -> npt.NDArray[np.int64]:
            is_one_BL = torch.isin(ids_BL, torch.tensor(tokens, dtype=ids_BL.dtype)) & is_read_BL
            return is_one_BL.sum(dim=1).numpy()

        said_B = length_B.numpy() - self._frame - count(*self._blank)
        return said_B, count() if self._unknown is None else count(self._unknown)

    @cached_property
    def _frame(self) -> int:
        """Number of tokens of an empty text."""
        return int(self.text.english_end(self.tokenize([""]))) + 1

    def encode_text(self, texts: Tensor | str | Sequence[str]) -> Tensor:
        """Encode English texts to features `[B, E]`, not L2-normalized.

        Token ids of the full context length give features that are bit-identical to open_clip's
        own.

        Args:
            texts: Native token ids `[B, L]`, int64, of full length or cut by the tower's `trim`.
                Alternatively, texts as `tokenize` takes them. They are encoded in one batch. For
                any number of texts, use `feature_store.encode_texts`.

        Raises:
            TypeError: `texts` is bytes, or an item is not a `str`.
            ValueError: A text contains a lone surrogate.

        """
        tower = self.text
        ids_BL = (texts if isinstance(texts, Tensor) else self.tokenize(texts)).to(self.device)
        if not len(ids_BL):
            return torch.zeros(0, self.dim, device=self.device)
        return tower.encode(
            tower.token_embedding(ids_BL),
            tower.sentence_position(tower.english_end(ids_BL)),
            ids_BL == tower.pad_id,
        )

    def encode_image(self, pixels_B3SS: Tensor) -> Tensor:
        """Encode images to features `[B, E]`, not L2-normalized.

        Args:
            pixels_B3SS: Pixels `[B, 3, S, S]`, float32, as `preprocess` returns them.

        """
        return cast(Tensor, self.model.encode_image(pixels_B3SS.to(self.device)))


@contextmanager
def _nothing_logged() -> Iterator[None]:
    """Suppress open_clip's messages to the root logger. Its exception says the same."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logging.root.addFilter(nothing)
    try:
        yield
    finally:
        logging.root.removeFilter(nothing)


def _check_weights(folder: Path) -> None:
    """Raise FileNotFoundError if open_clip would load a pickle from the folder."""
    safe = {path.name for path in folder.glob("*.safetensors")}
    pickled = [path.name for end in ("bin", "pth") for path in folder.glob(f"*.{end}")]
    if not safe:
        raise FileNotFoundError(
            f"{folder}: no *.safetensors; pickled weights are not loaded from folders"
        )
    if pickled and not safe & OPEN_CLIP_WEIGHTS:
        raise FileNotFoundError(
            f"{folder}: {', '.join(sorted(pickled))} would be loaded before {sorted(safe)[0]}; "
            "remove the pickle, or name the weights open_clip_model.safetensors"
        )


def _own_text_config(folder: Path) -> ModelConfig:
    """Return arguments that make open_clip read a BERT's configuration from the folder.

    Without them open_clip asks a hub for it.
    """
    if model_type(folder) not in BERTS:
        return {}
    path = folder / "open_clip_config.json"
    try:
        text: ModelConfig = json.loads(path.read_text())["model_cfg"]["text_cfg"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not a configuration of open_clip: {error!r}") from error
    if "hf_model_name" not in text:
        return {}
    return {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}
