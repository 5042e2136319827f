"""The paper's optimizer, for dense weights and for sparse embedding rows, over any workers.

Adam, decoupled weight decay (none on biases), 10 % linear warm-up then cosine, gradients clipped by
norm. Rows are updated lazily: Adam's moments of a row move only when a batch holds its token, and
so does its decay.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mla_ray.training.config import AcquireConfig, Stage

BETAS, EPS = (0.9, 0.98), 1e-6


def learning_rate(stage: Stage, warmup: float, step: int) -> float:
    """Linear up over the first `warmup` of the steps, then cosine down to zero."""
    rise = max(1, round(warmup * stage.steps))
    if step < rise:
        return stage.lr * (step + 1) / rise
    return stage.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, stage.steps - rise)))


def adamw(weights: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """The paper's Adam on dense weights; matrices alone decay."""
    each = list(weights)
    return torch.optim.AdamW(
        [
            {"params": [w for w in each if w.ndim > 1], "weight_decay": weight_decay},
            {"params": [w for w in each if w.ndim < 2], "weight_decay": 0.0},
        ],
        betas=BETAS,
        eps=EPS,
    )


def update(optimizer: torch.optim.AdamW, lr: float) -> None:
    """One step at this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def shorten(gradients: Sequence[Tensor], most: float) -> float:
    """Scale gradients in place to a norm of `most` over all of them; returns what it was."""
    norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))
    for gradient in gradients:
        gradient.mul_(min(1.0, most / (norm + 1e-6)))
    return norm


def sum_over_workers(gradients: Sequence[Tensor]) -> None:
    """Add up dense gradients of all workers, in place and in one call."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def moments(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """All that it goes on from, as tensors by name."""
    return {
        f"{index}.{field}": torch.as_tensor(value)
        for index, fields in optimizer.state_dict()["state"].items()
        for field, value in fields.items()
    }


def set_moments(optimizer: torch.optim.AdamW, state: Mapping[str, Tensor]) -> None:
    """Go on from what `moments` gave."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        index, _, field = name.partition(".")
        found.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": found, "param_groups": groups})


class LazyAdamW:
    """AdamW on the rows of an embedding that a batch touches; all other rows keep their bytes.

    torch's SparseAdam would do, but it adds eps before it corrects the bias, which at eps 1e-6 and
    the small gradients of a mean squared error is another optimizer.
    """

    def __init__(self, rows: nn.Parameter, weight_decay: float) -> None:
        self.rows, self.weight_decay = rows, weight_decay
        self.step_count = 0
        self.first, self.second = torch.zeros_like(rows), torch.zeros_like(rows)

    @torch.no_grad()
    def step(self, index: Tensor, gradient: Tensor, lr: float) -> None:
        """One update of `rows[index]`; `index` [n] int64 without repeats, `gradient` [n, W]."""
        self.step_count += 1
        first = self.first[index].lerp_(gradient, 1 - BETAS[0])
        second = self.second[index].lerp_(gradient.square(), 1 - BETAS[1])
        self.first[index], self.second[index] = first, second
        first = first / (1 - BETAS[0] ** self.step_count)
        second = second / (1 - BETAS[1] ** self.step_count)
        kept = self.rows[index] * (1 - lr * self.weight_decay)
        self.rows[index] = kept - lr * first / (second.sqrt() + EPS)


class Optimizer:
    """AdamW for dense weights, lazy AdamW for `rows`, stepped together."""

    def __init__(self, dense: dict[str, nn.Parameter], rows: nn.Parameter, config: AcquireConfig):
        self.dense, self.rows, self.clip = dense, rows, config.clip
        self.adamw = adamw(dense.values(), config.weight_decay)
        self.lazy = LazyAdamW(rows, config.weight_decay)

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One update from the gradients of all workers, which are cleared; returns their norm."""
        dense, rows = self._gather()
        norm = shorten([*dense, rows.values()], self.clip)
        update(self.adamw, lr)
        self.lazy.step(rows.indices()[0], rows.values(), lr)
        self.adamw.zero_grad(set_to_none=True)
        self.rows.grad = None
        return norm

    def _gather(self) -> tuple[list[Tensor], Tensor]:
        """Sum gradients over all workers, once a step; dense in one call, rows sparsely.

        A weight that no worker used (another language's acquirers) has no gradient anywhere: one
        language a batch makes the workers agree on that.
        """
        dense = [weight.grad for weight in self.dense.values() if weight.grad is not None]
        assert self.rows.grad is not None  # noqa: S101  (every batch has tokens)
        rows = self.rows.grad.coalesce()
        sum_over_workers(dense)
        if dist.is_initialized() and dist.get_world_size() > 1:
            rows = _sum_sparse(rows)
        return dense, rows

    def state(self) -> dict[str, Tensor]:
        """Everything to go on from, as tensors by name."""
        dense = {f"dense.{name}": value for name, value in moments(self.adamw).items()}
        return dense | {
            "rows.step": torch.tensor(self.lazy.step_count),
            "rows.first": self.lazy.first,
            "rows.second": self.lazy.second,
        }

    def load(self, state: dict[str, Tensor]) -> None:
        dense = {name: value for name, value in state.items() if name.startswith("dense.")}
        set_moments(self.adamw, {name.removeprefix("dense."): v for name, v in dense.items()})
        self.lazy.step_count = int(state["rows.step"])
        self.lazy.first.copy_(state["rows.first"])
        self.lazy.second.copy_(state["rows.second"])


def _sum_sparse(rows: Tensor) -> Tensor:
    """The sum over workers of a sparse gradient; only the rows that someone touched cross over."""
    world = dist.get_world_size()
    index, values = rows.indices()[0], rows.values()
    count = torch.tensor([len(index)], device=values.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    longest = int(max(counts))
    padded_index = index.new_zeros(longest)
    padded_index[: len(index)] = index
    padded_values = values.new_zeros(longest, values.shape[1])
    padded_values[: len(index)] = values
    all_index = [torch.empty_like(padded_index) for _ in range(world)]
    all_values = [torch.empty_like(padded_values) for _ in range(world)]
    dist.all_gather(all_index, padded_index)
    dist.all_gather(all_values, padded_values)
    index = torch.cat([part[: int(n)] for part, n in zip(all_index, counts, strict=True)])
    values = torch.cat([part[: int(n)] for part, n in zip(all_values, counts, strict=True)])
    return torch.sparse_coo_tensor(index[None], values, rows.shape).coalesce()
