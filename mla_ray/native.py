"""The native encoder: a frozen English image-text model (paper: CLIP), behind one face.

Everything open_clip can build with its own text towers loads here; the text tower is shown as a
list of blocks, so that the language acquisition encoder can run the same frozen blocks and step in
after each. May import: open_clip, torch; nothing of mla_ray, never Ray.

Shapes: B batch, L tokens, D text width, E joint embedding size, S pixels of a side.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer
from PIL import Image
from torch import Tensor, nn

AfterBlock = Callable[[int, Tensor], Tensor]
"""(block number, x_BLD) -> x_BLD: what a language acquirer does after a frozen block."""


class TextTower:
    """A frozen open_clip text tower, from token embeddings to the sentence feature.

    Works for `CLIP`, whose tower is built in, and for `CustomTextCLIP` with a `TextTransformer`,
    causal (CLIP) or bidirectional (SigLIP). Anything else is refused with a `TypeError`.
    """

    def __init__(self, model: Any) -> None:
        if isinstance(model, open_clip.CLIP):
            tower, self.pool, self.eos_id = model, model.text_pool_type, model.text_eos_id
            self.pad_id, self.masks_padding = 0, False
        elif isinstance(getattr(model, "text", None), TextTransformer):
            tower = model.text
            self.pool, self.eos_id = tower.pool_type, tower.eos_id
            self.pad_id, self.masks_padding = tower.pad_id, tower.use_pad_mask
            if tower.cls_emb is not None:
                raise TypeError("a text tower with an appended class token (CoCa) is not supported")
        else:
            kind = type(getattr(model, "text", model)).__name__
            raise TypeError(f"text tower {kind} is not supported; open_clip's own towers are")
        self.token_embedding: nn.Embedding = tower.token_embedding
        self.positional_embedding: Tensor = tower.positional_embedding
        self.blocks: Sequence[nn.Module] = tower.transformer.resblocks
        self.heads: int = tower.transformer.resblocks[0].attn.num_heads
        self.causal_mask: Tensor | None = tower.attn_mask
        self.final_norm: nn.Module = tower.ln_final
        self.projection: nn.Linear | Tensor | None = tower.text_projection
        self.context_length: int = tower.context_length
        self.width: int = self.token_embedding.embedding_dim

    @property
    def fixed_length(self) -> bool:
        """Whether every text must fill the context: true of towers that are not causal.

        Under a causal mask no position sees what comes after it, so a batch may be cut at its
        longest text; where padding is seen or pooled, it belongs to the text.
        """
        return self.causal_mask is None or self.pool == "last"

    def sentence_position(self, end_B: Tensor) -> Tensor:
        """Where the sentence feature is read [B], for texts whose end token is at `end_B`."""
        match self.pool:
            case "first":
                return torch.zeros_like(end_B)
            case "last":
                return torch.full_like(end_B, self.context_length - 1)
            case "argmax" | "eos":
                return end_B
        raise TypeError(f"pooling {self.pool!r} reads no single position; it is not supported")

    def english_end(self, ids_BL: Tensor) -> Tensor:
        """Position of the end-of-text token of native token ids, by open_clip's own rule."""
        if self.pool == "argmax":
            return ids_BL.argmax(dim=-1)
        is_end_BL: Tensor = ids_BL == self.eos_id
        return is_end_BL.int().argmax(dim=-1)

    def encode(
        self,
        x_BLD: Tensor,
        position_B: Tensor,
        padding_BL: Tensor | None = None,
        after_block: AfterBlock | None = None,
    ) -> Tensor:
        """Token embeddings through the frozen blocks to sentence features [B, E].

        Args:
            x_BLD: token embeddings, without positions.
            position_B: where the sentence feature is read (`sentence_position`).
            padding_BL: true where a token is padding; only towers that mask padding look at it.
            after_block: called with the output of each block; none leaves the tower as it is.

        """
        length = x_BLD.shape[1]
        x_BLD = x_BLD + self.positional_embedding[:length].to(x_BLD.dtype)
        mask = self._mask(length, padding_BL, x_BLD.dtype)
        for number, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, attn_mask=mask)
            if after_block is not None:
                x_BLD = after_block(number, x_BLD)
        x_BD = x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), position_B]
        x_BD = cast(Tensor, self.final_norm(x_BD))
        if isinstance(self.projection, nn.Linear):
            return cast(Tensor, self.projection(x_BD))
        return x_BD if self.projection is None else x_BD @ self.projection

    def _mask(self, length: int, padding_BL: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if self.causal_mask is not None:
            return self.causal_mask[:length, :length]
        if not self.masks_padding or padding_BL is None:
            return None
        mask_BL = torch.zeros(padding_BL.shape, dtype=dtype, device=padding_BL.device)
        mask_BL = mask_BL.masked_fill(padding_BL, float("-inf"))
        return mask_BL[:, None].expand(-1, length, -1).repeat_interleave(self.heads, 0)


class Native:
    """A frozen English image-text model. Its fingerprint is a hash of weights and preprocessing."""

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Callable[..., Tensor], device: str = "cpu"
    ) -> None:
        self.name = name
        # Any: what open_clip hangs on a module is Tensor or Module to mypy.
        self.model = cast(Any, model.eval().requires_grad_(False))
        self.fingerprint = _fingerprint(self.model)
        self.model.to(device)
        self.text = TextTower(self.model)
        self._tokenizer = tokenizer
        self.preprocess: Callable[[Image.Image], Tensor] = image_transform_v2(
            PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False
        )

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Self:
        """A native by name.

        Args:
            name: `emoji-clip` (bundled), a local folder in open_clip's layout with safetensors
                weights, `hf-hub:owner/model`, or an open_clip name and tag, `ViT-B-32/openai`.
            device: a torch device.

        Raises:
            FileNotFoundError: there is no such folder, name or tag; says which there are.

        """
        folder = bundled(name) or Path(name)
        pretrained, quick_gelu = None, False
        if (folder / "open_clip_config.json").is_file():
            if not list(folder.glob("*.safetensors")):
                raise FileNotFoundError(
                    f"{folder}: no *.safetensors; pickled weights are not loaded from folders"
                )
            source = f"local-dir:{folder}"
        elif name.startswith("hf-hub:"):
            source = name
        else:
            source, _, pretrained = name.rpartition("/")
            if (source, pretrained) not in open_clip.list_pretrained():
                raise FileNotFoundError(
                    f"no native {name!r}: neither bundled, nor a folder with "
                    "open_clip_config.json, nor hf-hub:owner/model, nor an open_clip NAME/TAG "
                    "such as ViT-B-32/openai"
                )
            # OpenAI's weights need QuickGELU; open_clip only warns when the name lacks it.
            quick_gelu = open_clip.get_pretrained_cfg(source, pretrained).get("quick_gelu", False)
        model = open_clip.create_model(
            source, pretrained, force_quick_gelu=quick_gelu, require_pretrained=True
        )
        return cls(name, model, open_clip.get_tokenizer(source), device)

    @property
    def device(self) -> torch.device:
        return self.text.positional_embedding.device

    @property
    def dim(self) -> int:
        """E, the size of the joint embedding."""
        projection = self.text.projection
        if projection is None:
            return self.text.width
        if isinstance(projection, nn.Linear):
            return projection.out_features
        return projection.shape[1]

    @property
    def logit_scale(self) -> float:
        """What the native multiplies cosines by: 1 / temperature (100 for OpenAI's CLIP)."""
        return float(self.model.logit_scale.exp())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """English texts to native token ids [B, context length] int64."""
        return self._tokenizer(list(texts), context_length=self.text.context_length)

    def encode_text(self, ids_BL: Tensor) -> Tensor:
        """English features [B, E], not normalised: to the byte what open_clip's own gives.

        `ids_BL` may be cut at the longest text of the batch if the tower is causal.
        """
        tower = self.text
        ids_BL = ids_BL.to(self.device)
        return tower.encode(
            tower.token_embedding(ids_BL),
            tower.sentence_position(tower.english_end(ids_BL)),
            ids_BL == tower.pad_id,
        )

    def encode_image(self, pixels_B3SS: Tensor) -> Tensor:
        """Image features [B, E], not normalised, of images that went through `preprocess`."""
        return self.model.encode_image(pixels_B3SS.to(self.device))  # type: ignore[no-any-return]


def bundled(name: str) -> Path | None:
    """The folder of a native that comes with mla-ray, or None if there is none of that name."""
    package = Path(__file__).parent
    for root in (package / "models", package.parent / "models"):  # installed; a checkout
        if "/" not in name and (root / name / "open_clip_config.json").is_file():
            return root / name
    return None


def _fingerprint(model: Any) -> str:
    """SHA-256 over names, shapes and float32 values of all weights, and the preprocessing."""
    digest = hashlib.sha256()
    preprocessing: dict[str, Any] = model.visual.preprocess_cfg
    digest.update(json.dumps(preprocessing, sort_keys=True, default=list).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.float().contiguous().cpu().numpy().data)
    return digest.hexdigest()
