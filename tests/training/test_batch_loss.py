"""Promises of mla_ray.training.batch_loss."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.objectives import le_loss, nlt_loss
from mla_ray.training import batch_loss
from mla_ray.training.batch_loss import encode_in_two_passes, split_point, to_device
from mla_ray.training.optimizer import Optimizer
from tests.support.natives import BuildModel


def test_a_batch_is_parted_where_that_spares_most_padding() -> None:
    assert split_point(np.array([3] * 100 + [20] * 28)) == [100]
    assert split_point(np.array([3, 3, 4, 4, 4, 19, 20, 21])) == [5]
    for even in ([], [7], [9] * 50, [9, 9, 9, 10]):
        assert split_point(np.array(even)) == []
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = np.sort(generator.integers(2, 40, size=generator.integers(2, 30)))
        costs = [
            n * lengths[n - 1] + (len(lengths) - n) * lengths[-1] for n in range(1, len(lengths))
        ]
        whole = len(lengths) * lengths[-1]
        found = split_point(lengths)
        assert bool(found) == (min(costs) <= 0.85 * whole)
        if found:
            assert costs[found[0] - 1] == min(costs)


@pytest.mark.parametrize("at_row", [1, 3, 5])
def test_a_batch_in_two_passes_has_the_features_of_one(
    native: Native, monkeypatch: pytest.MonkeyPatch, at_row: int
) -> None:
    torch.manual_seed(0)
    generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    embedding = EmbeddingBlock(learned_rows(12, native.text, generator), native.text)
    encoder = LanguageEncoder(native.text, embedding, 3)
    for acquirer in encoder.acquirers:
        torch.nn.init.normal_(acquirer.up.weight, std=0.1)
    texts = [np.arange(1, length, dtype=np.int32) for length in (9, 3, 7, 4, 8, 5)]
    together = {}
    for name, cuts in (("one", []), ("two", [at_row])):
        monkeypatch.setattr(batch_loss, "split_point", lambda lengths, cuts=cuts: cuts)
        together[name] = encode_in_two_passes(encoder, texts, cpu)
    assert torch.allclose(together["one"], together["two"], atol=1e-6)
    monkeypatch.undo()
    alone = torch.cat([encode_in_two_passes(encoder, [text], cpu) for text in texts])
    assert torch.allclose(together["two"], alone, atol=1e-6), "in another order"


@pytest.mark.parametrize("stage", ["nlt", "le"])
def test_a_step_reads_nothing_from_the_device(
    build_model: BuildModel, tokenize: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value on the device meta cannot be read. On a GPU, reading one means to wait for it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    native = Native("on meta", build_model(), tokenize, device="meta")
    on_cpu = Native("on the CPU", build_model(), tokenize)  # the spread of its rows is read
    embedding = EmbeddingBlock(torch.randn(12, 32), on_cpu.text).to("meta")
    encoder = LanguageEncoder(native.text, embedding, 8).to("meta")
    dense = [weight for weight in encoder.parameters() if weight is not embedding.rows.weight]
    optimizer = Optimizer(dense, 0.2, embedding.rows.weight)
    texts = [np.arange(1, length, dtype=np.int32) for length in (9, 3, 7, 4, 8, 5)]
    for _ in range(2):
        text = encode_in_two_passes(encoder, texts, native.device)
        target = to_device(np.ones((6, 32), np.float32), native.device)
        if stage == "nlt":
            loss = nlt_loss(text, target)
        else:
            loss = le_loss(text, target, to_device(np.arange(6), native.device), 100.0)
        loss.backward()
        optimizer.all_reduce()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step(1e-3)
        optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


@pytest.mark.parametrize("stage", ["nlt", "le"])
def test_losses_are_those_of_the_librarys_own_blocks(
    native: Native, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def losses() -> list[float]:
        torch.manual_seed(0)
        rows = learned_rows(12, native.text, torch.Generator().manual_seed(0))
        encoder = LanguageEncoder(native.text, EmbeddingBlock(rows, native.text), 8)
        rest = [w for w in encoder.parameters() if w is not encoder.embedding.rows.weight]
        optimizer = Optimizer(rest, 0.2, encoder.embedding.rows.weight)
        texts = [np.arange(1, length, dtype=np.int32) for length in (9, 3, 7, 4, 8, 5)]
        target, found = torch.randn(6, 32), []
        for _ in range(10):
            text = encode_in_two_passes(encoder, texts, native.device)
            loss = (
                nlt_loss(text, target)
                if stage == "nlt"
                else le_loss(text, target, torch.arange(6), 100.0)
            )
            loss.backward()
            optimizer.all_reduce()
            optimizer.clip_grad_norm_(1.0)
            optimizer.step(1e-3)
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    ours = losses()
    assert ours[-1] < ours[0]
    monkeypatch.setattr(native.text, "_frozen_blocks", None)
    assert ours == pytest.approx(losses(), rel=1e-5, abs=1e-5)
