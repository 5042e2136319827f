"""What settings are worth: two acquisitions side by side on test rows that chose neither."""

import numpy as np
import numpy.typing as npt

from mla_ray.evaluation.recall import Ranks
from mla_ray.tuning.outcome import Gain, Interval

DRAWS = 2000


def gain(default: Ranks, swept: Ranks, seed: int = 0) -> Gain:
    """Of the same captions and images, ranked by packs of the default and of the best settings."""
    before, after = default.resampled(DRAWS, seed), swept.resampled(DRAWS, seed)
    was, now = default.recall().ar, swept.recall().ar
    return Gain(
        default=_interval(was, before),
        swept=_interval(now, after),
        difference=_interval(now - was, after - before),
        images=len(default.i2t),
        captions=len(default.t2i),
    )


def _interval(value: float, drawn: npt.NDArray[np.float64]) -> Interval:
    """95 %, by percentiles."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value=round(value, 3), low=round(float(low), 3), high=round(float(high), 3))
