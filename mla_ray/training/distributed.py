"""The workers of a training as torch.distributed knows them; a process alone is a group of one.

Gradients are summed here and not by DistributedDataParallel: rows of the embedding are summed
sparsely, once a step, and a weight that no worker used has no gradient anywhere.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """The number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Add up tensors over all workers, in place and in one call."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def all_gather_rows(rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The rows of every worker, which may be of different number; no gradient flows.

    By hand, since gloo gathers equal shapes only, and Accelerate's `pad_across_processes` and
    `gather` leave the padding among the rows.

    Args:
        rows: of this worker, [n, ...].
        sizes: n of every worker.

    """
    if len(sizes) == 1:
        return [rows.detach()]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def gather_features(own_BE: Tensor, sizes: Sequence[int]) -> Tensor:
    """Features of all workers [G, E], rank after rank; gradients flow to this worker's own only."""
    parts = all_gather_rows(own_BE, sizes)
    parts[rank()] = own_BE
    return torch.cat(parts)


def all_reduce_sparse(rows: Tensor) -> Tensor:
    """The sum over workers of a coalesced sparse tensor; only rows that someone has cross over."""
    if world_size() == 1:
        return rows
    index, values = rows.indices()[0], rows.values()
    count = torch.tensor([len(index)], device=values.device)
    sizes = [int(size) for size in all_gather_rows(count, [1] * world_size())]
    all_index = torch.cat(all_gather_rows(index, sizes))
    all_values = torch.cat(all_gather_rows(values, sizes))
    return torch.sparse_coo_tensor(all_index[None], all_values, rows.shape).coalesce()


def broadcast_figure(figure: float, device: torch.device) -> float:
    """The figure of rank 0, on all workers."""
    tensor = torch.tensor([figure], dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return float(tensor)
