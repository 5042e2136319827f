"""The actor between a training's workers and its driver: rows of metrics one way, a stop the other.

In a module of its own, so that its process need not import torch.
"""

from typing import Any


class Monitor:
    """The training adds rows, the driver takes them; the driver stops, the training asks."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stopping = False

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def take(self, stop: bool) -> list[dict[str, Any]]:
        """The rows since the last call; `stop` once is stop for good."""
        self.stopping = self.stopping or stop
        rows, self.rows = self.rows, []
        return rows

    def should_stop(self) -> bool:
        """Whether the training is to stop."""
        return self.stopping
