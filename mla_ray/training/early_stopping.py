"""Early stopping on held-out AR, with the best weights kept, as in Keras's EarlyStopping."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class EarlyStopping:
    """Tracker of the held-out AR of a training and of its best weights.

    Args:
        patience: Evaluations without improvement after which a stage ends; 0 disables this.

    Attributes:
        latest: AR of the last evaluation; -1 before the first.
        best: Highest AR; -1 before the first evaluation.
        best_step: Step of the highest AR, counted over all stages.
        best_weights: Weights of that step, on the CPU; empty before the first evaluation.
        wait: Evaluations without improvement so far.

    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.latest = self.best = -1.0
        self.best_step = self.wait = 0
        self.best_weights: dict[str, Tensor] = {}

    def update(self, ar: float, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Record an evaluation, and copy the weights if it is the best so far.

        Args:
            ar: Held-out AR in percent.
            step: Step of the evaluation, counted over all stages.
            weights: Function that returns the current weights by name.

        """
        self.latest = ar
        if ar > self.best:
            self.best, self.best_step, self.wait = ar, step, 0
            self.best_weights = {n: w.detach().cpu().clone() for n, w in weights().items()}
        else:
            self.wait += 1

    @property
    def should_stop(self) -> bool:
        """Whether `patience` evaluations brought no improvement."""
        return 0 < self.patience <= self.wait

    @torch.no_grad()
    def restore_best_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the best weights into `weights` in place, if there are any."""
        for name, best in self.best_weights.items():
            weights[name].copy_(best)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values. It does not contain `best_weights`."""
        return {"ar": self.best, "step": self.best_step, "since": self.wait, "last": self.latest}

    def load_state_dict(self, state: Mapping[str, Any], best_weights: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned, and the best weights."""
        self.best, self.best_step, self.wait = state["ar"], state["step"], state["since"]
        self.latest = state.get("last", self.best)
        self.best_weights = {name: weight.cpu() for name, weight in best_weights.items()}
