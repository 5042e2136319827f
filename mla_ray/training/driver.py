"""Interface between a training and its driver.

The driver is what started the training: a process that waits for Ray Train, or a Tune trial. The
training uses only these callbacks of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from upath import UPath

Figures = dict[str, Any]
"""Figures by name, as JSON values."""
OnCheckpoint = Callable[[Figures, UPath | None], None]
"""Called with figures and the checkpoint's folder, which is None on ranks other than 0."""


class Control(IntEnum):
    """Request of the driver to a training."""

    CONTINUE = 0
    SAVE = 1
    """Save a checkpoint now, because a node is about to be taken away."""
    STOP = 2
    """Save a checkpoint now and stop."""


@dataclass(frozen=True)
class Driver:
    """Callbacks from a training worker to the driver. Every worker has one.

    Attributes:
        on_checkpoint: Called on every worker after each checkpoint, with figures and the
            checkpoint's folder. The folder is None on ranks other than 0.
        control: Called on every worker every `loop.LOG_EVERY` steps. It must return the same value
            on all workers.
        on_metrics: Called on rank 0 with every row of metrics.
        labels: Labels of the metrics.

    """

    on_checkpoint: OnCheckpoint = lambda figures, folder: None
    control: Callable[[], Control] = lambda: Control.CONTINUE
    on_metrics: Callable[[Figures], None] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
