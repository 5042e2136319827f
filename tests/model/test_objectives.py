"""Promises of mla_ray.model.objectives, against formulas written by hand in float64."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mla_ray.model.objectives import le_loss, nlt_loss

DISTINCT = torch.arange(7)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator) * 3, torch.randn(7, 5, generator=generator)


def info_nce(text: Tensor, image: Tensor, group: Tensor, scale: float) -> float:
    """Term by term, with the rows of one group left out of each other's sums."""
    t, i = (x.double().numpy() for x in (text, image))
    t, i = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (t, i))
    count = len(t)

    def one_way(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        terms = []
        for n in range(count):
            rivals = [m for m in range(count) if m == n or group[m] != group[n]]
            sums = np.exp([scale * a[n] @ b[m] for m in rivals]).sum()
            terms.append(np.log(sums) - scale * a[n] @ b[n])
        return float(np.mean(terms))

    return (one_way(t, i) + one_way(i, t)) / 2


def test_nlt_is_the_mean_squared_error(pair: tuple[Tensor, Tensor]) -> None:
    text, english = pair
    expected = np.mean((text.double().numpy() - english.double().numpy()) ** 2)
    loss = nlt_loss(text, english)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_nlt_does_not_normalise(pair: tuple[Tensor, Tensor]) -> None:
    text, english = pair
    assert float(nlt_loss(10 * text, 10 * english)) == pytest.approx(
        100 * float(nlt_loss(text, english)), rel=1e-5
    )
    assert float(nlt_loss(2 * english, english)) == pytest.approx(float(english.square().mean()))


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("group", [[0, 1, 2, 3, 4, 5, 6], [4, 1, 1, 3, 4, 4, 0]])
def test_le_is_symmetric_info_nce_without_negatives_of_the_same_group(
    pair: tuple[Tensor, Tensor], group: list[int], scale: float
) -> None:
    expected = info_nce(*pair, torch.tensor(group), scale)
    loss = le_loss(*pair, torch.tensor(group), scale)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_groups_change_the_loss(pair: tuple[Tensor, Tensor]) -> None:
    grouped = le_loss(*pair, torch.tensor([4, 1, 1, 3, 4, 4, 0]), 10.0)
    assert float(grouped) < float(le_loss(*pair, DISTINCT, 10.0)) - 0.01


def test_le_is_the_same_both_ways_round(pair: tuple[Tensor, Tensor]) -> None:
    text, image = pair
    assert float(le_loss(text, image, DISTINCT, 20.0)) == pytest.approx(
        float(le_loss(image, text, DISTINCT, 20.0)), rel=1e-6
    )


def test_le_normalises(pair: tuple[Tensor, Tensor]) -> None:
    text, image = pair
    lengths = torch.linspace(0.1, 50, 7)[:, None]
    assert float(le_loss(text * lengths, image, DISTINCT, 20.0)) == pytest.approx(
        float(le_loss(text, image, DISTINCT, 20.0)), rel=1e-5
    )


def test_le_of_an_exact_match_tends_to_zero(pair: tuple[Tensor, Tensor]) -> None:
    _, image = pair
    losses = [float(le_loss(image, image, DISTINCT, scale)) for scale in (1.0, 10.0, 1000.0)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-6


def test_le_of_one_group_alone_is_zero_with_gradients(pair: tuple[Tensor, Tensor]) -> None:
    text, image = pair
    text.requires_grad_()
    loss = le_loss(text, image, torch.zeros(7, dtype=torch.int64), 100.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(text.grad, torch.zeros_like(text))


def test_losses_of_half_precision_are_taken_in_float32(pair: tuple[Tensor, Tensor]) -> None:
    text, image = (x.bfloat16() for x in pair)
    assert torch.equal(nlt_loss(text, image), nlt_loss(text.float(), image.float()))
    assert torch.equal(
        le_loss(text, image, DISTINCT, 100.0), le_loss(text.float(), image.float(), DISTINCT, 100.0)
    )
