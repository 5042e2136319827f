"""The paper's optimizer for dense weights and sparse embedding rows, over any number of workers.

It is Adam with decoupled weight decay (none on biases), 10 % linear warm-up then cosine decay, and
clipping of the gradient norm. Rows are updated lazily: the moments and the weight decay of a row
apply only in steps whose batch contains its token. With one worker, nothing here waits for a GPU.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mla_ray.training.config import Stage
from mla_ray.training.distributed import all_reduce, all_reduce_sparse, world_size

BETAS, EPS = (0.9, 0.98), 1e-6
FUSED = ("cpu", "cuda")
"""Kinds of device on which torch's AdamW updates all weights in one operation."""


def learning_rate(stage: Stage, warmup: float, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay to zero.

    Args:
        stage: Stage with its number of steps and its peak learning rate.
        warmup: Share of the steps with warm-up, from 0 to 1.
        step: Step of the stage, from 0.

    """
    rise = max(1, round(warmup * stage.steps))
    if step < rise:
        return stage.lr * (step + 1) / rise
    return stage.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, stage.steps - rise)))


class LazyAdamW:
    """AdamW for the embedding rows that a batch touches. All other rows do not change.

    torch's SparseAdam is not used because it adds eps before the bias correction. With eps 1e-6 and
    the small gradients of a mean squared error, it is a different optimizer.

    Args:
        rows: Weight of the embedding, which is updated in place.
        weight_decay: Decoupled weight decay of the rows.

    """

    def __init__(self, rows: Tensor, weight_decay: float) -> None:
        self.rows, self.weight_decay = rows, weight_decay
        self.step_count = 0
        self.first, self.second = torch.zeros_like(rows), torch.zeros_like(rows)

    @torch.no_grad()
    def step(self, index: Tensor, gradient: Tensor, lr: float) -> None:
        """Update `rows[index]` once.

        Args:
            index: Row numbers `[n]`, int64. A row that occurs twice has the same gradient twice.
            gradient: Gradient of each row, `[n, row width]`.
            lr: Learning rate.

        """
        self.step_count += 1
        first = self.first[index].lerp_(gradient, 1 - BETAS[0])
        second = self.second[index].lerp_(gradient.square(), 1 - BETAS[1])
        self.first[index], self.second[index] = first, second
        first = first / (1 - BETAS[0] ** self.step_count)
        second = second / (1 - BETAS[1] ** self.step_count)
        kept = self.rows[index] * (1 - lr * self.weight_decay)
        self.rows[index] = kept - lr * first / (second.sqrt() + EPS)


def sum_rows(gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gradients of each row, like `Tensor.coalesce`, without waiting for a GPU.

    `coalesce` makes a tensor as long as there are different rows, and their number is only known on
    the GPU. Here all shapes follow from the number of tokens n.

    Args:
        gradient: Sparse gradient `[V, W]` in which a row may occur several times.

    Returns:
        Row of each token `[n]`, int64, sorted. Place of the row's sum `[n]`, int64. Sums `[n, W]`,
        with zeros after the last.

    """
    row_n, token_n = gradient._indices()[0].sort(stable=True)
    is_new_n = torch.cat([row_n.new_zeros(1, dtype=torch.bool), row_n[1:] != row_n[:-1]])
    place_n = is_new_n.cumsum(0)
    values_nW = gradient._values()
    # In a fixed order on a GPU, unlike `index_add_`.
    sums_nW = torch.zeros_like(values_nW).index_put_(
        (place_n,), values_nW[token_n], accumulate=True
    )
    return row_n, place_n, sums_nW


class Optimizer:
    """AdamW for dense weights, together with lazy AdamW for embedding rows if there are any.

    A training step calls `all_reduce`, `clip_grad_norm_`, `step` and `zero_grad`.

    Args:
        dense: Dense weights. A weight without a gradient does not change in that step.
        weight_decay: Weight decay of matrices. Vectors and scalars have none.
        rows: Weight of an embedding with sparse gradients.

    """

    def __init__(
        self, dense: Iterable[nn.Parameter], weight_decay: float, rows: Tensor | None = None
    ) -> None:
        self.dense = list(dense)
        self.adamw = torch.optim.AdamW(
            [
                {"params": [w for w in self.dense if w.ndim > 1], "weight_decay": weight_decay},
                {"params": [w for w in self.dense if w.ndim < 2], "weight_decay": 0.0},
            ],
            betas=BETAS,
            eps=EPS,
            fused=all(weight.device.type in FUSED for weight in self.dense),
        )
        self.lazy = None if rows is None else LazyAdamW(rows, weight_decay)
        self._index = torch.empty(0, dtype=torch.int64)
        self._place: Tensor | slice = slice(None)
        self._touched: list[Tensor] = []  # rows of a step, with `grad` as torch's clipping needs

    @torch.no_grad()
    def all_reduce(self) -> None:
        """Sum gradients over all workers, once per step: dense ones in one call, rows sparsely.

        A weight that no worker used, such as another language's acquirers, has no gradient on any
        worker. The workers agree on these weights because a batch contains a single language.
        """
        all_reduce([weight.grad for weight in self.dense if weight.grad is not None])
        if self.lazy is None:
            return
        assert self.lazy.rows.grad is not None  # noqa: S101  (every batch has tokens)
        gradient = self.lazy.rows.grad
        if world_size() == 1 and gradient.device.type != "cpu":
            self._index, self._place, values = sum_rows(gradient)
        else:
            gradient = all_reduce_sparse(gradient.coalesce())
            self._index, values = gradient.indices()[0], gradient.values()
            self._place = slice(None)
        # Clipping would leave a sparse gradient uncoalesced, so it gets only the values.
        touched = values.detach()
        touched.grad = values
        self._touched = [touched]

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip gradients in place to a total norm of `max_norm`. Return the norm before."""
        return nn.utils.clip_grad_norm_([*self.dense, *self._touched], max_norm)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update all weights once, at this learning rate."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        for touched in self._touched:
            assert self.lazy is not None and touched.grad is not None  # noqa: PT018, S101
            self.lazy.step(self._index, touched.grad[self._place], lr)

    def zero_grad(self) -> None:
        """Clear all gradients."""
        self.adamw.zero_grad(set_to_none=True)
        if self.lazy is not None:
            self.lazy.rows.grad = None
        self._touched = []

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors by name, since a checkpoint contains no pickle."""
        dense = {
            f"{self._prefix}{index}.{field}": torch.as_tensor(value)
            for index, fields in self.adamw.state_dict()["state"].items()
            for field, value in fields.items()
        }
        if self.lazy is None:
            return dense
        return dense | {
            "rows.step": torch.tensor(self.lazy.step_count),
            "rows.first": self.lazy.first,
            "rows.second": self.lazy.second,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        fields_of: dict[int, dict[str, Tensor]] = {}
        weights = [w for group in self.adamw.param_groups for w in group["params"]]
        for name, value in state.items():
            if not name.startswith("rows."):
                index, _, field = name.removeprefix(self._prefix).partition(".")
                weight = weights[int(index)]
                if value.shape == weight.shape:
                    # With the strides of the weight, because a fused step does not compare them.
                    value = torch.empty_like(weight).copy_(value)
                fields_of.setdefault(int(index), {})[field] = value
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": fields_of, "param_groups": groups})
        if self.lazy is not None:
            self.lazy.step_count = int(state["rows.step"])
            self.lazy.first.copy_(state["rows.first"])
            self.lazy.second.copy_(state["rows.second"])

    @property
    def _prefix(self) -> str:
        return "" if self.lazy is None else "dense."
