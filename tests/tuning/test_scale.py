"""Promises of mla_ray.tuning.scale."""

from itertools import pairwise

import pytest

from mla_ray.tuning.scale import Scale


def test_an_axis_is_logarithmic_from_a_factor_of_thirty() -> None:
    assert Scale([0.001, 0.03]).log
    assert not Scale([0.001, 0.029]).log
    assert not Scale([0.0, 1.0]).log
    assert not Scale([-1.0, 100.0]).log
    assert Scale([0.01, 1.0]).place(0.1) == pytest.approx(0.5)
    assert Scale([0.0, 1.0]).place(0.1) == pytest.approx(0.1)


def test_labels_of_an_axis_do_not_touch() -> None:
    for some in ([n / 7 for n in range(60)], [1e-6 * 2**n for n in range(20)], list(range(400))):
        ticks = Scale(some).ticks()
        assert len(ticks) >= 3
        assert all(b[0] - a[0] >= 0.06 for a, b in pairwise(ticks))
        assert all(0 <= height <= 1 for height, _ in ticks)
    names = [f"choice {n}" for n in range(40)]
    assert 3 <= len(Scale(names).ticks()) < 20
