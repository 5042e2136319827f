"""Promises of mla_ray.model.objectives, against formulas written by hand in float64."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mla_ray.model.objectives import le_loss, nlt_loss, positive_groups

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


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16])
def test_gradients_under_autocast_are_those_of_float32(features: torch.dtype) -> None:
    """A logit in bfloat16 is off by up to 0.25, which is 5 % and more of the median row."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(256, 128, generator=generator)
    text = image + 3 * torch.randn(256, 128, generator=generator)
    expected = gradients_of_info_nce(text, image, 100.0)
    english = torch.randn(256, 128, generator=generator)
    pair = [x.to(features).requires_grad_() for x in (text, image)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = le_loss(pair[0], pair[1], torch.arange(256), 100.0)
        transfer = nlt_loss(pair[0], english)
    assert loss.dtype == transfer.dtype == torch.float32
    loss.backward()
    for leaf, wanted in zip(pair, expected, strict=True):
        assert leaf.grad is not None
        error = (leaf.grad.double() - wanted).norm(dim=1) / wanted.norm(dim=1)
        # What bfloat16 features are off by themselves, 2**-9 each, comes to 1 % at most.
        assert float(error.median()) < (1e-4 if features == torch.float32 else 0.01)
    text_grad = torch.autograd.grad(transfer, pair[0])[0].double()
    wanted = 2 * (pair[0].detach().double() - english.double()) / english.numel()
    assert torch.allclose(text_grad, wanted, rtol=1e-5 if features == torch.float32 else 0.01)


def gradients_of_info_nce(text: Tensor, image: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """By text and by image in float64, from the derivative worked out by hand; all rows rivals."""
    lengths = [x.double().norm(dim=1, keepdim=True) for x in (text, image)]
    t, i = (x.double() / length for x, length in zip((text, image), lengths, strict=True))
    logits = scale * t @ i.T
    by_logit = (logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(len(t))) / (2 * len(t))
    by_unit = scale * by_logit @ i, scale * by_logit.T @ t
    return tuple(  # type: ignore[return-value]
        (g - (g * unit).sum(1, keepdim=True) * unit) / length
        for g, unit, length in zip(by_unit, (t, i), lengths, strict=True)
    )


def test_rows_that_share_an_image_or_a_caption_are_one_group() -> None:
    images = ["a", "b", "c", "c", "d"]
    captions = ["apple", "apple", "pear", "fruit", "plum"]
    assert positive_groups(images, captions).tolist() == [0, 0, 1, 1, 2]
