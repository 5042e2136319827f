"""What a training tells its driver, and what the driver may ask of it.

The driver is whoever started the training: a process that waits for Ray Train, or a Tune trial. The
training knows it by these few functions alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from upath import UPath

Figures = dict[str, Any]
"""Figures by name, as JSON holds them."""
OnCheckpoint = Callable[[Figures, UPath | None], None]
"""Called with figures and, on rank 0, the checkpoint's folder."""


class Control(IntEnum):
    """What the driver asks of a training."""

    CONTINUE = 0
    SAVE = 1
    """A checkpoint now: a node is about to go."""
    STOP = 2
    """A checkpoint now, and an end."""


@dataclass(frozen=True)
class Driver:
    """How a training speaks with its driver; every worker has one.

    Attributes:
        on_checkpoint: called on every worker after each checkpoint with figures and, on rank 0, its
            folder.
        control: asked on every worker every `loop.LOG_EVERY` steps; they must all answer the same.
        on_metrics: given every row of metrics, on rank 0.
        labels: of the metrics.

    """

    on_checkpoint: OnCheckpoint = lambda figures, folder: None
    control: Callable[[], Control] = lambda: Control.CONTINUE
    on_metrics: Callable[[Figures], None] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
