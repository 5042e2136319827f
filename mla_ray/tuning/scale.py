"""Positions and tick labels of a parameter's values on an axis."""

import math
from collections.abc import Sequence

from matplotlib.ticker import LogLocator, MaxNLocator

from mla_ray.tuning.importance import logarithmic, numeric
from mla_ray.tuning.outcome import Value, format_setting


class Scale:
    """Axis from 0 to 1. Numbers are placed by size, and lists that contain a string by rank."""

    def __init__(self, some: Sequence[Value]) -> None:
        """Create an axis for sorted distinct values. A single value is placed in the middle."""
        self.values = list(some)
        self.numbers = numeric(some)
        self.log = self.numbers is not None and logarithmic(self.numbers[0], self.numbers[-1])

    def place(self, value: Value) -> float:
        """Return the position of a value, from 0 (smallest) to 1 (largest)."""
        if len(self.values) == 1:
            return 0.5
        if self.numbers is None or isinstance(value, str):
            return self.values.index(value) / (len(self.values) - 1)
        low, high, number = self.numbers[0], self.numbers[-1], float(value)
        if self.log:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return (number - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and labels of the ticks, far enough apart not to overlap."""
        some: Sequence[Value] = self.values
        if self.numbers is not None and len(some) > 6:
            low, high = self.numbers[0], self.numbers[-1]
            if self.log:
                subs = (1.0,) if high / low >= 1000 else (1.0, 2.0, 5.0)
                some = [float(v) for v in LogLocator(subs=subs).tick_values(low, high)]
            else:
                some = [
                    float(v)
                    for v in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
                ]
            some = [value for value in some if low <= float(value) <= high]
        kept: list[tuple[float, str]] = []
        for value in some:
            height = self.place(value)
            if not kept or height - kept[-1][0] >= 0.06:
                kept.append((height, format_setting(value)))
        return kept
