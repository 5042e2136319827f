"""Frozen text towers, exposed as a list of blocks for language acquirers.

`ClipTower` runs the text towers that open_clip builds itself (CLIP, SigLIP, MobileCLIP).
`BertTower` runs the BERTs of transformers that open_clip wraps.

Shapes: B batch, L tokens, D text width, E joint embedding size.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import open_clip
import torch
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from mla_ray.model.frozen_block import FrozenBlock, FrozenWeights, Mask
from mla_ray.model.tokenizers import Ids, pad

Block = Callable[[Tensor], Tensor]
AfterBlock = Callable[[int, Tensor], Tensor]
"""Function (block number, x_BLD) -> x_BLD that runs after a frozen block, such as an acquirer."""

Description = dict[str, object]
"""Settings by name, as JSON values."""

BERTS = ("bert", "roberta", "xlm-roberta")
"""`model_type` values of the configurations that `BertTower` supports."""


def text_tower(
    model: Any, context_length: int | None = None, eos_id: int | None = None
) -> "TextTower":
    """Create the `TextTower` of an open_clip model.

    Args:
        model: `CLIP`, or `CustomTextCLIP` with a `TextTransformer` or `HFTextEncoder`.
        context_length: Maximum number of tokens, from the native's tokenizer. Only `HFTextEncoder`
            uses it, because open_clip's towers have their own. The default is open_clip's, 77.
        eos_id: Id of the end token, from the native's tokenizer. It is used for a tower that does
            not pool at the end token (SigLIP's), because such a tower does not know the id.

    Raises:
        TypeError: The tower is of another kind. The message names the kind.

    """
    text = getattr(model, "text", None)
    if isinstance(model, open_clip.CLIP):
        return ClipTower(model, model.text_pool_type, model.text_eos_id)
    if isinstance(text, TextTransformer):
        if text.cls_emb is not None:
            raise TypeError("a text tower with an appended class token (CoCa) is not supported")
        if text.pool_type in ("argmax", "eos") or eos_id is None:
            eos_id = text.eos_id
        return ClipTower(text, text.pool_type, eos_id, text.pad_id, text.use_pad_mask)
    if isinstance(text, HFTextEncoder):
        return BertTower(text, context_length or DEFAULT_CONTEXT_LENGTH)
    kind = type(model if text is None else text).__name__
    raise TypeError(f"text tower {kind} is not supported; those of CLIP and SigLIP, and BERTs, are")


class TextTower(ABC):
    """Frozen text tower, from token embeddings to the sentence feature."""

    token_embedding: nn.Embedding
    """The native's own token embeddings, of width D."""
    blocks: Sequence[nn.Module]
    """Transformer blocks, in order."""
    context_length: int
    """Maximum number of tokens of a text."""
    pad_id: int
    """The native's id of the padding token."""
    dim: int
    """Size E of the joint embedding."""
    fixed_length: bool
    """Whether every text must fill the context, because the tower reads or pools padding.

    If False, a batch may be cut at its longest text and gives the same features.
    """

    @property
    def width(self) -> int:
        """Width D of token embeddings and blocks."""
        return self.token_embedding.embedding_dim

    def batch_length(self, longest: int) -> int:
        """Return the padded length L of a batch whose longest text has `longest` tokens.

        It is the context length if `fixed_length` is True.
        """
        return self.context_length if self.fixed_length else longest

    def padded_length(self, longest: int) -> int:
        """Return `batch_length`, on a GPU rounded up to a multiple of 8 within the context.

        There attention is planned for each new shape, so few lengths are faster than short ones.
        """
        length = self.batch_length(longest)
        if self.token_embedding.weight.device.type != "cuda":
            return length
        return min(-(-length // 8) * 8, self.context_length)

    def pad(self, rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Pad the embedding rows of B texts to `ids_BL` and `length_B`, int64, for an encoder."""
        return pad(rows, self.padded_length(max(map(len, rows), default=0)))

    def trim(self, ids_BL: Tensor) -> Tensor:
        """Cut native token ids `[B, L]` after the longest text, unless this changes features."""
        return ids_BL[:, : self.batch_length(int(self.english_end(ids_BL).max()) + 1)]

    @abstractmethod
    def sentence_position(self, end_B: Tensor) -> Tensor:
        """Return the position `[B]` at which the sentence feature is read.

        A tower that pools over all tokens ignores the position.

        Args:
            end_B: Position `[B]` of each text's end token.

        """

    @abstractmethod
    def description(self) -> Description:
        """Return the settings that change features and that neither weights nor modules show.

        The end of a text is not included, because `english_end` and `sentence_position` show it.
        `mla_ray.model.fingerprint` hashes the result as JSON.
        """

    @abstractmethod
    def english_end(self, ids_BL: Tensor) -> Tensor:
        """Return the position `[B]` of the last token of native token ids.

        Args:
            ids_BL: Native token ids `[B, L]`, int64. The end is found by the library's own rule.

        """

    @abstractmethod
    def encode(
        self,
        x_BLD: Tensor,
        position_B: Tensor,
        padding_BL: Tensor | None = None,
        after_block: AfterBlock | None = None,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """Run token embeddings through the frozen blocks to sentence features `[B, E]`.

        Args:
            x_BLD: Token embeddings `[B, L, D]`, without positions.
            position_B: Positions `[B]` at which the sentence feature is read (`sentence_position`).
            padding_BL: True where a token is padding, bool. None means no padding. Only towers that
                mask padding use it.
            after_block: Called with the number and the output of each block, returns the new
                output. None leaves the tower unchanged. After the last block, a tower may pass
                only the position that is read, `[B, 1, D]`, so the function must treat each
                position alike.
            activation_checkpointing: Keep only the input of each block for a backward pass, which
                computes the rest again.

        """


class ClipTower(TextTower):
    """Text tower of open_clip: causal (CLIP) or bidirectional (SigLIP, MobileCLIP-S).

    Args:
        tower: `open_clip.CLIP` or a `TextTransformer`.
        pool: Token that the sentence feature is read from: "first", "last", "argmax" (the highest
            id) or "eos" (the first token with `eos_id`).
        eos_id: Id of the end token.
        pad_id: Id of the padding token.
        masks_padding: Whether attention masks padding.

    Raises:
        TypeError: Another kind of pooling.

    """

    def __init__(
        self, tower: Any, pool: str, eos_id: int, pad_id: int = 0, masks_padding: bool = False
    ) -> None:
        if pool not in ("first", "last", "argmax", "eos"):
            raise TypeError(f"pooling {pool!r} reads no single position; it is not supported")
        self.pool, self.eos_id = pool, eos_id
        self.pad_id, self.masks_padding = pad_id, masks_padding
        self._tower = tower
        self.token_embedding = tower.token_embedding
        self.blocks = tower.transformer.resblocks
        self.heads: int = tower.transformer.resblocks[0].attn.num_heads
        self.final_norm: nn.Module = tower.ln_final
        self.context_length = tower.context_length
        self._positions = FrozenWeights(tower, "positional_embedding")
        self._frozen_blocks = (
            [FrozenBlock(block) for block in self.blocks]
            if all(map(FrozenBlock.computes, self.blocks))
            else None
        )
        self._is_causal = self.causal_mask is not None and _is_causal(self.causal_mask)
        # Under a causal mask, no position attends to later positions.
        self.fixed_length = self.causal_mask is None or pool == "last"
        projection = self.projection
        if projection is None:
            self.dim = self.width
        elif isinstance(projection, nn.Linear):
            self.dim = projection.out_features
            self._projection = FrozenWeights(projection, "weight", "bias")
        else:
            self.dim = projection.shape[1]
            self._projection = FrozenWeights(tower, "text_projection")

    @property
    def projection(self) -> nn.Linear | Tensor | None:
        """Projection of the sentence feature to the joint embedding, or None."""
        return cast(nn.Linear | Tensor | None, self._tower.text_projection)

    @property
    def causal_mask(self) -> Tensor | None:
        """Mask `[L, L]` that is added to the scores of attention, or None."""
        # Not kept: a model that moves to a device replaces it.
        return cast(Tensor | None, self._tower.attn_mask)

    def description(self) -> Description:
        """Return pooling, context length, heads, mask and padding."""
        mask = self.causal_mask
        return {
            "reads": self.pool if self.pool in ("first", "last") else "the end",
            "context": self.context_length,
            "heads": self.heads,
            "mask": None if mask is None else _hash(mask),
            "masked padding": self.pad_id if self.masks_padding else None,
        }

    def sentence_position(self, end_B: Tensor) -> Tensor:
        """Return the first position, the last of the context, or `end_B`, depending on pooling."""
        match self.pool:
            case "first":
                return torch.zeros_like(end_B)
            case "last":
                return torch.full_like(end_B, self.context_length - 1)
        return end_B

    def english_end(self, ids_BL: Tensor) -> Tensor:
        """Return the position `[B]` of the highest id or of the first end token."""
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
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """Run token embeddings through the frozen blocks, the final norm and the projection.

        English of the full context length runs through open_clip's own blocks, so its features are
        the library's to the byte.
        """
        run = _recomputed if activation_checkpointing else _kept
        (positions_LD,) = self._positions.to(x_BLD.dtype)
        x_BLD = x_BLD + cast(Tensor, positions_LD)[: x_BLD.shape[1]].to(x_BLD.dtype)
        mask = self._mask(x_BLD, padding_BL)
        exact = after_block is None and (
            torch.compiler.is_compiling()  # an exported file is for any length
            or x_BLD.shape[1] == self.context_length
        )
        if exact or self._frozen_blocks is None:
            full = self._full_mask(mask, x_BLD.shape[1])
            for number, block in enumerate(self.blocks):
                x_BLD = run(partial(block, attn_mask=full), number, x_BLD, after_block)
            x_BD = x_BLD[torch.arange(x_BLD.shape[0], device=x_BLD.device), position_B]
        else:
            *inner, last = self._frozen_blocks
            for number, frozen in enumerate(inner):
                x_BLD = run(partial(frozen, mask=mask), number, x_BLD, after_block)
            read = partial(last, mask=mask, position_B=position_B)
            x_BD = run(read, len(inner), x_BLD, after_block)[:, 0]
        return self._project(cast(Tensor, self.final_norm(x_BD)))

    def _mask(self, x_BLD: Tensor, padding_BL: Tensor | None) -> Mask:
        if self._is_causal:
            return Mask(is_causal=True)
        if self.causal_mask is not None:
            return Mask(added=self.causal_mask[: x_BLD.shape[1], : x_BLD.shape[1]])
        if not self.masks_padding or padding_BL is None:
            return Mask()
        mask_BL = torch.zeros(padding_BL.shape, dtype=x_BLD.dtype, device=padding_BL.device)
        return Mask(added=mask_BL.masked_fill(padding_BL, float("-inf"))[:, None, None])

    def _full_mask(self, mask: Mask, length: int) -> Tensor | None:
        """Return a mask as open_clip's blocks take it: `[L, L]`, or `[B * heads, L, L]`."""
        if self.causal_mask is not None:
            return self.causal_mask[:length, :length]
        if mask.added is None:
            return None
        return mask.added[:, 0].expand(-1, length, -1).repeat_interleave(self.heads, 0)

    def _project(self, x_BD: Tensor) -> Tensor:
        if self.projection is None:
            return x_BD
        weight, *bias = self._projection.for_product(x_BD)
        if isinstance(self.projection, nn.Linear):
            return F.linear(x_BD, cast(Tensor, weight), *bias)
        return x_BD @ cast(Tensor, weight)


class BertTower(TextTower):
    """BERT, RoBERTa or XLM-RoBERTa of transformers, wrapped in open_clip's `HFTextEncoder`.

    transformers adds positions and token types to the token embeddings and normalizes the sum.
    Padding is masked in every block and is excluded from mean pooling.

    Args:
        encoder: `HFTextEncoder` of open_clip.
        context_length: Maximum number of tokens. The tower's number of positions limits it.

    Raises:
        TypeError: The model type or the pooling is not supported, or the model is a decoder.

    """

    fixed_length = False

    def __init__(self, encoder: Any, context_length: int) -> None:
        config = encoder.config
        if config.model_type not in BERTS or config.is_decoder:
            raise TypeError(
                f"text tower HFTextEncoder of {config.model_type!r} is not supported; "
                f"those of {', '.join(BERTS)} are"
            )
        if not isinstance(encoder.pooler, MeanPooler | ClsPooler | ClsLastHiddenStatePooler):
            raise TypeError(f"pooling {type(encoder.pooler).__name__} is not supported")
        self._encoder = encoder
        self.token_embedding = encoder.transformer.get_input_embeddings()
        self.blocks = encoder.transformer.encoder.layer
        self.pad_id = config.pad_token_id
        # RoBERTa, like fairseq, starts positions after the id of padding.
        self._before_first = None if config.model_type == "bert" else self.pad_id
        first = 0 if self._before_first is None else self._before_first + 1
        self.context_length = min(context_length, config.max_position_embeddings - first)
        self.dim = encoder.output_dim

    def description(self) -> Description:
        """Return the settings of the configuration that change features."""
        config = self._encoder.config
        # Releases of transformers differ in their settings. A missing one has its old default.
        return {
            "kind": config.model_type,
            "pooler": type(self._encoder.pooler).__name__,
            "context": self.context_length,
            "heads": config.num_attention_heads,
            "activation": config.hidden_act,
            "eps": float(f"{config.layer_norm_eps:.9g}"),
            "padding": self.pad_id,
            "positions": getattr(config, "position_embedding_type", None) or "absolute",
        }

    def sentence_position(self, end_B: Tensor) -> Tensor:
        """Return zeros `[B]`, because the pooler of the model ignores the position."""
        return torch.zeros_like(end_B)

    def english_end(self, ids_BL: Tensor) -> Tensor:
        """Return the position `[B]` of the last token that is not padding."""
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return (places_L * (ids_BL != self.pad_id)).argmax(dim=-1)

    def encode(
        self,
        x_BLD: Tensor,
        position_B: Tensor,
        padding_BL: Tensor | None = None,
        after_block: AfterBlock | None = None,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """Run token embeddings through the frozen blocks, the pooler and the projection."""
        run = _recomputed if activation_checkpointing else _kept
        transformer = self._encoder.transformer
        if padding_BL is None:
            padding_BL = torch.zeros(x_BLD.shape[:2], dtype=torch.bool, device=x_BLD.device)
        valid_BL = (~padding_BL).long()
        x_BLD = transformer.embeddings(
            inputs_embeds=x_BLD, position_ids=self._position_ids(valid_BL)
        )
        mask = create_bidirectional_mask(transformer.config, x_BLD, valid_BL)
        for number, block in enumerate(self.blocks):
            x_BLD = run(partial(block, attention_mask=mask), number, x_BLD, after_block)
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x_BLD,
            pooler_output=None if transformer.pooler is None else transformer.pooler(x_BLD),
        )
        return cast(Tensor, self._encoder.proj(self._encoder.pooler(output, valid_BL)))

    def _position_ids(self, valid_BL: Tensor) -> Tensor:
        if self._before_first is None:
            return torch.arange(valid_BL.shape[1], device=valid_BL.device)[None]
        return valid_BL.cumsum(dim=1) * valid_BL + self._before_first


def _kept(block: Block, number: int, x_BLD: Tensor, after_block: AfterBlock | None) -> Tensor:
    """Run a block, and what follows it."""
    x_BLD = block(x_BLD)
    return x_BLD if after_block is None else after_block(number, x_BLD)


def _recomputed(block: Block, number: int, x_BLD: Tensor, after_block: AfterBlock | None) -> Tensor:
    """Run a block, and what follows it; a backward pass runs them again."""
    # A frozen block has no dropout, so no state of random numbers has to be restored. On a GPU,
    # reading it would make Python wait.
    made: Tensor = checkpoint(
        _kept, block, number, x_BLD, after_block, use_reentrant=False, preserve_rng_state=False
    )
    return made


def _is_causal(mask_LL: Tensor) -> bool:
    """Return whether a mask is the usual one: -inf after the diagonal, zero elsewhere."""
    return torch.equal(mask_LL, torch.full_like(mask_LL, float("-inf")).triu(1))


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.float().contiguous().cpu().numpy().data).hexdigest()
