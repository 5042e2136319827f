"""Norms and unit vectors of features, which are compared by cosine.

A zero or non-finite row has no direction. The functions report such rows instead of raising.

Shapes: N rows, E joint embedding size.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def norms(features_NE: Floats) -> npt.NDArray[np.float64]:
    """Compute the L2 norm of each row `[N]` float64.

    The sum is in float64 because the square of a large float32 overflows.
    """
    with np.errstate(invalid="ignore"):  # inf and NaN are reported by `faults`
        norms_N: npt.NDArray[np.float64] = np.sqrt(
            np.einsum("ne,ne->n", features_NE, features_NE, dtype=np.float64)
        )
    return norms_N


def faults(norms_N: npt.NDArray[np.float64]) -> dict[int, str]:
    """Return the rows that have no direction, each with "zero" or "not finite"."""
    bad = np.flatnonzero(~np.isfinite(norms_N) | (norms_N == 0))
    return {int(row): "zero" if norms_N[row] == 0 else "not finite" for row in bad}


def units(features_NE: Floats) -> tuple[Floats, dict[int, str]]:
    """Normalize rows to unit length.

    Returns:
        Unit vectors `[N, E]` float32, and the `faults` by row. Rows with a fault are zero.

    """
    norms_N = norms(features_NE)
    faults_by_row = faults(norms_N)
    units_NE = np.zeros(features_NE.shape, dtype=np.float32)
    sound = np.setdiff1d(np.arange(len(features_NE)), list(faults_by_row))
    units_NE[sound] = features_NE[sound] / norms_N[sound, None]
    return units_NE, faults_by_row
