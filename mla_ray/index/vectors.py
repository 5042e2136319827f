"""Checks of vectors before they are searched by or written.

Shapes: N entries, E joint embedding size.
"""

import numpy as np
import numpy.typing as npt

from mla_ray.index.backend import VectorSpace
from mla_ray.model.directions import faults, norms


def unit(vector: npt.NDArray[np.float32], space: VectorSpace) -> list[float]:
    """Return a vector `[E]` at unit length.

    Raises:
        ValueError: It has another shape, is zero or is not finite.

    """
    if vector.ndim != 1:
        raise ValueError(f"query has shape {list(vector.shape)}, must be [{space.dim}]")
    scaled: list[float] = (vector / lengths_of(vector[None], space)).astype(np.float32).tolist()
    return scaled


def lengths_of(vectors: npt.NDArray[np.float32], space: VectorSpace) -> npt.NDArray[np.float64]:
    """Return the lengths `[N]` float64 of vectors `[N, E]`.

    The embedded engine would accept zero vectors and values that are not finite.

    Raises:
        ValueError: The vectors have another shape, or one is zero or not finite.

    """
    if vectors.ndim != 2 or vectors.shape[1] != space.dim:
        raise ValueError(
            f"vectors have shape {list(vectors.shape)}, native {space.native!r} makes "
            f"[N, {space.dim}]; encode with that native"
        )
    lengths = norms(vectors)
    if bad := faults(lengths):
        row, fault = next(iter(bad.items()))
        raise ValueError(
            f"vector {row} is {fault} ({len(bad)} of {len(vectors)} are bad) and has no "
            "direction; drop these rows, or check the encoder"
        )
    return lengths
