"""An image-text model whose two towers train: what `pretraining` and `finetuning` have in common.

Knows torch.distributed, but not Ray.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from mla_ray.training.optimizer import (
    adamw,
    moments,
    set_moments,
    shorten,
    sum_over_workers,
    update,
)

MODEL, KEPT, OPTIMIZER = "model", "kept", "optimizer"


class Towers:
    """A model, its optimizer, and a second set of its weights: those that are kept in the end.

    `kept` is what its user makes of it with `follow`: a running average, or the best so far.

    Args:
        model: all of it trains that a loss reaches.
        weight_decay: of matrices; vectors and numbers have none.
        clip: largest norm of the gradient.

    """

    def __init__(self, model: nn.Module, weight_decay: float, clip: float) -> None:
        self.model, self.clip = model.requires_grad_(True), clip
        self.kept = deepcopy(model).requires_grad_(False)
        self.adamw = adamw(model.parameters(), weight_decay)

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One update from the gradients of all workers, which are cleared; returns their norm."""
        weights = self.model.parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        sum_over_workers(gradients)
        norm = shorten(gradients, self.clip)
        update(self.adamw, lr)
        self.adamw.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def follow(self, momentum: float = 0.0) -> None:
        """Move `kept` towards the model: it keeps this share of itself."""
        pairs = zip(self.kept.state_dict().values(), self.model.state_dict().values(), strict=True)
        for kept, new in pairs:
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - momentum)
            else:
                kept.copy_(new)

    def tensors(self) -> dict[str, Tensor]:
        """Everything to go on from, by name."""
        parts = {
            MODEL: self.model.state_dict(),
            KEPT: self.kept.state_dict(),
            OPTIMIZER: moments(self.adamw),
        }
        return {f"{part}/{name}": t for part, of in parts.items() for name, t in of.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        parts: dict[str, dict[str, Tensor]] = {MODEL: {}, KEPT: {}, OPTIMIZER: {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts[MODEL])
        self.kept.load_state_dict(parts[KEPT])
        if parts[OPTIMIZER]:
            set_moments(self.adamw, parts[OPTIMIZER])
