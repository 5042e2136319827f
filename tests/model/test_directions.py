"""Promises of model.directions."""

import numpy as np
import pytest

from mla_ray.model.directions import faults, norms, units

NAN, INF = float("nan"), float("inf")
ROWS = np.array(
    [[3, 4], [0, 0], [NAN, 1], [INF, 1], [-INF, INF], [3e38, -3e38], [1e-40, 0], [0, -2]],
    dtype=np.float32,
)


def test_a_row_without_direction_says_so_and_costs_no_other() -> None:
    found, bad = units(ROWS)
    assert bad == {1: "zero", 2: "not finite", 3: "not finite", 4: "not finite"}
    assert found.dtype == np.float32
    half = 0.5**0.5
    expected = [[0.6, 0.8], [0, 0], [0, 0], [0, 0], [0, 0], [half, -half], [1, 0], [0, -1]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_lengths_are_those_of_float64(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-35, 36, (50, 1))
    rows = (generator.normal(size=(50, 8)) * scale).astype(np.float32)
    expected = np.sqrt((rows.astype(np.float64) ** 2).sum(1))
    np.testing.assert_allclose(norms(rows), expected, rtol=1e-12)
    assert not faults(norms(rows))
    np.testing.assert_allclose(np.linalg.norm(units(rows)[0], axis=1), 1, rtol=1e-6)


def test_no_rows_are_no_rows() -> None:
    found, bad = units(np.empty((0, 3), np.float32))
    assert found.shape == (0, 3)
    assert not bad
