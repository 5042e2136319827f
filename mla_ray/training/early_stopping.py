"""The best weights of a training, and when to stop for want of a gain: Keras's EarlyStopping."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class EarlyStopping:
    """Follows the held-out AR of a training.

    Args:
        patience: evaluations without a gain after which a stage ends; 0: it never does.

    Attributes:
        latest: AR of the last evaluation; -1 before the first.
        best: the highest AR; -1 before the first evaluation.
        best_step: step of the whole training that it is of.
        best_weights: of that step, on the CPU; none before the first evaluation.
        wait: evaluations since then.

    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.latest = self.best = -1.0
        self.best_step = self.wait = 0
        self.best_weights: dict[str, Tensor] = {}

    def update(self, ar: float, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Take note of an evaluation; `weights` are kept if it is the best."""
        self.latest = ar
        if ar > self.best:
            self.best, self.best_step, self.wait = ar, step, 0
            self.best_weights = {n: w.detach().cpu().clone() for n, w in weights().items()}
        else:
            self.wait += 1

    @property
    def should_stop(self) -> bool:
        """Whether patience is at its end."""
        return 0 < self.patience <= self.wait

    @torch.no_grad()
    def restore_best_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the best weights into `weights`, if there are any."""
        for name, best in self.best_weights.items():
            weights[name].copy_(best)

    def state_dict(self) -> dict[str, Any]:
        """Figures to go on from; `best_weights` are kept beside them."""
        return {"ar": self.best, "step": self.best_step, "since": self.wait, "last": self.latest}

    def load_state_dict(self, state: Mapping[str, Any], best_weights: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        self.best, self.best_step, self.wait = state["ar"], state["step"], state["since"]
        self.latest = state.get("last", self.best)
        self.best_weights = {name: weight.cpu() for name, weight in best_weights.items()}
