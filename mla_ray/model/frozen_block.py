"""open_clip's frozen text block, computed so that only its input gets a gradient.

`nn.MultiheadAttention` transposes its input, and its linear layers then multiply in small pieces.
An explicit mask keeps attention from its causal kernel. Autocast holds its casts of weights that
train only, and casts frozen ones in every step. The last block computes positions that nothing
reads. `FrozenBlock` does none of this. On a CPU, where torch's kernels of attention are slow for
short texts, it uses products of whole batches instead.

Shapes: B batch, L tokens, D text width, H heads, K width of a head.
"""

from typing import Any, NamedTuple, cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

SHORT = 32
"""Most tokens for which `_attend_short` is faster on a CPU than torch's kernel."""


class Mask(NamedTuple):
    """Mask of attention: the causal one, or values that are added to scores, or none.

    Attributes:
        is_causal: Whether a token attends only to itself and to earlier tokens.
        added: Values `[L, L]`, or `[B, 1, 1, L]`. None if `is_causal` is True.

    """

    is_causal: bool = False
    added: Tensor | None = None

    def at(self, position_B: Tensor, x_BLD: Tensor) -> "Mask":
        """Return the mask of the queries at one position `[B]` of each text, for input `x_BLD`."""
        if self.is_causal:
            later_BL = torch.arange(x_BLD.shape[1], device=x_BLD.device) > position_B[:, None]
            added_BL = torch.zeros(later_BL.shape, dtype=x_BLD.dtype, device=x_BLD.device)
            added_BL = added_BL.masked_fill(later_BL, float("-inf"))
        elif self.added is not None and self.added.ndim == 2:
            added_BL = self.added[position_B]
        else:
            return self
        return Mask(added=added_BL[:, None, None])


class FrozenWeights:
    """Weights that do not change, each cast once per dtype and then held.

    If one requires gradients, all are returned uncast, because a held cast would cut the graph.

    Args:
        owner: Module with the weights. They are read at each use, since a module that moves to a
            device may replace them.
        names: Attributes of the weights. The value of an attribute may be None.

    """

    def __init__(self, owner: Any, *names: str) -> None:
        self._owner, self._names = owner, names
        self._held: dict[torch.dtype, list[Tensor | None]] = {}

    def to(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Return the weights in a dtype."""
        weights: list[Tensor | None] = [getattr(self._owner, name) for name in self._names]
        present = [weight for weight in weights if weight is not None]
        if any(weight.requires_grad for weight in present):
            return weights
        if all(weight.dtype == dtype for weight in present):
            return weights
        held = self._held.get(dtype)
        if held is None or _devices(held) != _devices(weights):
            # A tensor that is made in inference mode cannot take part in a later backward.
            with torch.inference_mode(False), torch.no_grad():
                held = [None if weight is None else weight.to(dtype) for weight in weights]
            self._held[dtype] = held
        return held

    def for_product(self, x: Tensor) -> list[Tensor | None]:
        """Return the weights in the dtype of matrix products with `x`.

        Under autocast it is autocast's dtype, otherwise each weight's own.
        """
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return self.to(torch.get_autocast_dtype(device))
        return [getattr(self._owner, name) for name in self._names]


class FrozenBlock:
    """A `ResidualAttentionBlock` of open_clip whose weights do not change.

    It returns what the block returns, except for rounding. Norms, activation and layer scales are
    the block's own modules.

    Args:
        block: The block. `FrozenBlock.computes` says whether it is of the known kind.

    """

    def __init__(self, block: Any) -> None:
        self._block, self._heads = block, block.attn.num_heads
        self._qkv = FrozenWeights(block.attn, "in_proj_weight", "in_proj_bias")
        self._out = FrozenWeights(block.attn.out_proj, "weight", "bias")
        self._up = FrozenWeights(block.mlp.c_fc, "weight", "bias")
        self._down = FrozenWeights(block.mlp.c_proj, "weight", "bias")

    @staticmethod
    def computes(block: nn.Module) -> bool:
        """Return whether a block consists of exactly the operations that `FrozenBlock` knows."""
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            return False
        # Any: for mypy, an attribute of a module is a Tensor or a Module.
        attention, mlp = cast(Any, block.attn), cast(Any, block.mlp)
        return (
            type(attention) is nn.MultiheadAttention
            and attention.in_proj_weight is not None
            and attention.in_proj_bias is not None
            and attention.bias_k is None
            and not attention.add_zero_attn
            and not attention.dropout
            and list(dict(mlp.named_children())) == ["c_fc", "gelu", "c_proj"]
            and type(mlp.c_fc) is type(mlp.c_proj) is nn.Linear
        )

    def __call__(self, x_BLD: Tensor, mask: Mask, position_B: Tensor | None = None) -> Tensor:
        """Return the block's output `[B, L, D]` for its input `x_BLD`.

        Args:
            x_BLD: Input.
            mask: Mask of the attention.
            position_B: If given, the output is computed only at this position of each text:
                `[B, 1, D]`.

        """
        block = self._block
        attended = self._attend(block.ln_1(x_BLD), mask, position_B)
        x_BLD = x_BLD if position_B is None else _at(x_BLD, position_B)
        x_BLD = x_BLD + block.ls_1(_linear(attended, self._out))
        hidden = block.mlp.gelu(_linear(block.ln_2(x_BLD), self._up))
        return cast(Tensor, x_BLD + block.ls_2(_linear(hidden, self._down)))

    def _attend(self, x_BLD: Tensor, mask: Mask, position_B: Tensor | None) -> Tensor:
        weight, bias = cast(list[Tensor], self._qkv.for_product(x_BLD))
        if position_B is None:
            query, key, value = self._split(F.linear(x_BLD, weight, bias), 3)
        else:
            width = x_BLD.shape[2]
            asked_B1D = F.linear(_at(x_BLD, position_B), weight[:width], bias[:width])
            (query,) = self._split(asked_B1D, 1)
            key, value = self._split(F.linear(x_BLD, weight[width:], bias[width:]), 2)
            mask = mask.at(position_B, x_BLD)
        return _attention(query, key, value, mask).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split `[B, L, parts * D]` into `parts` tensors `[B, H, L, K]`."""
        batch, length, _ = x.shape
        heads = x.reshape(batch, length, parts, self._heads, -1).permute(2, 0, 3, 1, 4)
        return heads.unbind()


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Return what `[B, H, L, K]` queries read from M keys and values, `[B, H, L, K]`."""
    if not torch.compiler.is_compiling() and key.device.type == "cpu":  # not into exported files
        several = torch.is_grad_enabled() or torch.get_num_threads() > 1
        if several and key.shape[2] <= SHORT and key.dtype is torch.float32:
            return _attend_short(query, key, value, mask)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.added, is_causal=mask.is_causal
    )


def _attend_short(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Return what `_attention` returns, by one product for all scores and one for all values.

    It keeps the scores for the backward pass, which is little memory if texts are short.
    """
    batch, heads, length, width = query.shape
    of_heads = batch * heads, -1, width
    query, key, value = (each.reshape(of_heads) for each in (query, key, value))
    if mask.is_causal:
        added = query.new_full((length, length), float("-inf")).triu(1)
    elif mask.added is None:
        added = query.new_zeros(1)
    else:
        added = mask.added.expand(batch, heads, -1, -1).flatten(0, 1).to(query.dtype)
    scores = torch.baddbmm(added, query, key.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), value).view(batch, heads, length, width)


def _at(x_BLD: Tensor, position_B: Tensor) -> Tensor:
    """Return `[B, 1, D]` of `x_BLD` at one position of each text."""
    return x_BLD[torch.arange(x_BLD.shape[0], device=x_BLD.device), position_B][:, None]


def _devices(weights: list[Tensor | None]) -> list[torch.device]:
    return [weight.device for weight in weights if weight is not None]


def _linear(x: Tensor, weights: FrozenWeights) -> Tensor:
    weight, bias = weights.for_product(x)
    return F.linear(x, cast(Tensor, weight), bias)
