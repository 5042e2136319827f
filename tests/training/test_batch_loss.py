"""Promises of mla_ray.training.batch_loss."""

import numpy as np
import pytest
import torch

from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.training import batch_loss
from mla_ray.training.batch_loss import encode_in_two_passes, split_point


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
