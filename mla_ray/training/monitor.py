"""Actor that relays metrics from the workers to the driver, and a stop request to the workers.

It has its own module, so its process does not import torch.
"""

from typing import Any


class Monitor:
    """Relay between the workers of a training and its driver.

    The training calls `add` and `should_stop`. The driver calls `take`.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stopping = False

    def add(self, row: dict[str, Any]) -> None:
        """Store a row of metrics."""
        self.rows.append(row)

    def take(self, stop: bool) -> list[dict[str, Any]]:
        """Return the rows since the last call.

        Args:
            stop: Ask the training to stop. The request cannot be withdrawn.

        """
        self.stopping = self.stopping or stop
        rows, self.rows = self.rows, []
        return rows

    def should_stop(self) -> bool:
        """Return whether the driver asked the training to stop."""
        return self.stopping
