"""Promises of mla_ray.model.frozen_block."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder
from mla_ray.model.frozen_block import (
    SHORT,
    FrozenBlock,
    FrozenWeights,
    Mask,
    _attend_short,
    _attention,
)
from mla_ray.model.native import Native
from mla_ray.model.towers import ClipTower
from tests.support.natives import CONTEXT, BuildModel

WIDTH, HEADS, BATCH, LENGTH = 32, 4, 5, 7
KINDS: dict[str, dict[str, Any]] = {
    "GELU": {},
    "QuickGELU": {"act_layer": QuickGELU},
    "layer scale": {"ls_init_value": 0.3},
}
CAUSAL = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)


def build(**kind: Any) -> ResidualAttentionBlock:
    """A block whose biases are not zero, as they are at first."""
    torch.manual_seed(0)
    block = ResidualAttentionBlock(WIDTH, HEADS, **kind).eval().requires_grad_(False)
    for weight in block.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)
    return block


def output_and_gradient(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=generator).requires_grad_()
    output = run(x)
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad


def padding() -> tuple[Tensor, Tensor]:
    """A mask of padding that broadcasts, and the same as open_clip's blocks take it."""
    is_padding = torch.arange(LENGTH) >= torch.tensor([7, 1, 3, 6, 2])[:, None]
    added = torch.zeros(BATCH, LENGTH).masked_fill(is_padding, float("-inf"))
    return added[:, None, None], added[:, None].expand(-1, LENGTH, -1).repeat_interleave(HEADS, 0)


def masks() -> dict[str, tuple[Mask, Tensor | None]]:
    """Masks, and the same as open_clip's blocks take them."""
    short, full = padding()
    return {
        "causal": (Mask(is_causal=True), CAUSAL),
        "nothing": (Mask(), None),
        "padding": (Mask(added=short), full),
        "added": (Mask(added=CAUSAL), CAUSAL),
    }


@pytest.mark.parametrize("masked", ["causal", "nothing", "padding", "added"])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient_are_the_blocks(kind: str, masked: str) -> None:
    block = build(**KINDS[kind])
    mask, theirs = masks()[masked]
    assert FrozenBlock.computes(block)
    found = output_and_gradient(lambda x: FrozenBlock(block)(x, mask))
    expected = output_and_gradient(lambda x: block(x, attn_mask=theirs))
    for ours, other in zip(found, expected, strict=True):
        assert_close(ours, other, rtol=1e-5, atol=2e-6)
    assert all(weight.grad is None for weight in block.parameters())
    rows, position = torch.arange(BATCH), torch.tensor([6, 0, 2, 5, 1])
    found = output_and_gradient(lambda x: FrozenBlock(block)(x, mask, position)[:, 0])
    expected = output_and_gradient(lambda x: block(x, attn_mask=theirs)[rows, position])
    for ours, other in zip(found, expected, strict=True):
        assert_close(ours, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("masked", ["causal", "nothing", "padding", "added"])
@pytest.mark.parametrize("queries", [LENGTH, 1])
def test_attention_of_short_texts_is_that_of_torch(masked: str, queries: int) -> None:
    generator = torch.Generator().manual_seed(2)
    mask, _ = masks()[masked]
    if queries == 1:
        mask = mask.at(torch.tensor([6, 0, 2, 5, 1]), torch.zeros(BATCH, LENGTH, WIDTH))
    shape = BATCH, HEADS, LENGTH, WIDTH // HEADS
    query, key, value = torch.randn(3, *shape, generator=generator).requires_grad_()
    query = query[:, :, :queries]
    found = _attend_short(query, key, value, mask)
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.added, is_causal=mask.is_causal
    )
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "dtype", "threads", "trains", "is_short"),
    [
        (SHORT, torch.float32, 1, True, True),
        (SHORT, torch.float32, 2, False, True),
        (SHORT, torch.float32, 1, False, False),
        (SHORT + 1, torch.float32, 2, True, False),
        (SHORT, torch.bfloat16, 2, True, False),
    ],
)
def test_torchs_kernel_attends_where_it_is_fast(
    length: int,
    dtype: torch.dtype,
    threads: int,
    trains: bool,
    is_short: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told by the operator that only it calls."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    query, key, value = torch.randn(3, 2, HEADS, length, 8, dtype=dtype)
    with torch.set_grad_enabled(trains), profile(activities=[ProfilerActivity.CPU]) as seen:
        _attention(query, key, value, Mask(is_causal=True))
    called = {event.name for event in seen.events()}
    assert ("aten::scaled_dot_product_attention" not in called) == is_short


def test_a_block_of_another_kind_is_not_computed() -> None:
    cross = build(is_cross_attention=True)
    extended, longer, custom = build(), build(), open_clip.transformer.CustomResidualAttentionBlock
    extended.attn = nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True, batch_first=True)
    longer.mlp.add_module("more", nn.Identity())
    for block in (cross, extended, longer, custom(WIDTH, HEADS)):
        assert not FrozenBlock.computes(block)


@pytest.fixture(params=["causal", "a hole in the mask", "masked padding", "unknown blocks"])
def tower(request: pytest.FixtureRequest, build_model: BuildModel, tokenize: Any) -> ClipTower:
    more = {"no_causal_mask": True} if request.param == "masked padding" else {}
    model: Any = build_model(open_clip.CustomTextCLIP, **more)
    model.text.use_pad_mask = request.param == "masked padding"
    if request.param == "a hole in the mask":
        model.text.attn_mask[3, 1] = float("-inf")
    if request.param == "unknown blocks":
        for block in model.text.transformer.resblocks:
            block.mlp.add_module("more", nn.Tanh())
    tower = Native(request.param, model, tokenize).text
    assert isinstance(tower, ClipTower)
    return tower


def test_a_tower_with_acquirers_computes_what_the_library_computes(tower: ClipTower) -> None:
    generator = torch.Generator().manual_seed(0)
    length = tower.batch_length(9)
    ids = torch.randint(3, 40, (4, length), generator=generator)
    end = torch.tensor([2, 8, 4, 5])
    ids[torch.arange(length) > end[:, None]] = tower.pad_id
    given = tower.token_embedding(ids), tower.sentence_position(end), ids == tower.pad_id
    found = tower.encode(*given, lambda number, x: x)
    assert_close(found, tower.encode(*given), rtol=1e-5, atol=1e-5)


def test_under_autocast_no_frozen_matrix_is_cast_after_the_first_step(native: Native) -> None:
    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            found = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16:
                sources.append(args[0].data_ptr())
            return found

    tower, sources = native.text, list[int]()
    embedding = EmbeddingBlock(tower.token_embedding.weight, tower)
    encoder = LanguageEncoder(tower, embedding, 8)
    ids, lengths = torch.arange(3, 9)[None], torch.tensor([6])
    frozen = {w.data_ptr(): name for name, w in native.model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():  # held casts made here must serve a training, too
            encoder(ids, lengths)
        with Casts():
            encoder(ids, lengths).float().square().sum().backward()
    assert sources, "what trains is cast"
    assert not {frozen[source] for source in sources if source in frozen}
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_weights_that_train_are_not_held() -> None:
    layer = nn.Linear(3, 3)
    weights = FrozenWeights(layer, "weight", "bias")
    assert weights.to(torch.bfloat16) == [layer.weight, layer.bias]
    layer.requires_grad_(False)
    held = weights.to(torch.bfloat16)
    assert [each.dtype for each in held] == [torch.bfloat16] * 2
    assert all(one is other for one, other in zip(weights.to(torch.bfloat16), held, strict=True))
    layer.weight.requires_grad_()
    assert weights.to(torch.bfloat16) == [layer.weight, layer.bias], "one trains"


def test_a_tower_moves_with_its_model(build_model: BuildModel, tokenize: Any) -> None:
    """The device meta stands in for a GPU: it refuses operands from the CPU as well."""
    model = build_model(open_clip.CustomTextCLIP)
    text = Native("moved", model, tokenize, device="meta").text
    assert isinstance(text, ClipTower)
    assert text.causal_mask is not None
    assert text.causal_mask.device.type == "meta"
    x = torch.zeros(2, CONTEXT, 32, device="meta")
    position = torch.zeros(2, dtype=torch.int64, device="meta")
    for after_block in (None, lambda number, x: x):
        assert text.encode(x, position, None, after_block).device.type == "meta"
