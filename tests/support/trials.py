"""Trials of a sweep that was never run."""

import math
import random
from typing import Any

from mla_ray.tuning.outcome import Trial, Value

TEMPERATURES: list[Value] = [0.01, 0.05, "native"]


def trial(number: int, ar: float | None = 40.0, **more: Any) -> Trial:
    settings = more.pop("settings", {"nlt.lr": 1e-3 * (number + 1), "rows": "aligned"})
    fields = {
        "id": f"t{number}",
        "number": number,
        "origin": "search" if number else "defaults",
        "status": "done",
        "percent": 100,
        "seconds": 61.4,
        "curve": [] if ar is None else [(50, ar - 5), (100, ar)],
    }
    return Trial.model_validate(fields | {"settings": settings, "ar": ar} | more)


def searched(seed: int = 0, count: int = 20) -> list[Trial]:
    """AR hangs on the learning rate; the other parameters are noise."""
    draw = random.Random(seed)  # noqa: S311
    made = []
    for number in range(count):
        settings: dict[str, Value] = {
            "weight_decay": draw.uniform(0, 0.4),
            "nlt.lr": 10 ** draw.uniform(-5, -2),
            "rows": draw.choice(["aligned", "random"]),
            "temperature": draw.choice(TEMPERATURES),
            "warmup": 0.1,
        }
        ar = 60 - 10 * (math.log10(float(settings["nlt.lr"])) + 3) ** 2 + draw.gauss(0, 0.5)
        status = "stopped" if number % 3 == 2 else "done"
        made.append(trial(number, ar, settings=settings, status=status))
    return made
