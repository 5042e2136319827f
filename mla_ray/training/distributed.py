"""Collectives over the workers of a training. A single process is a group of one.

Gradients are summed here instead of by DistributedDataParallel. Rows of the embedding are summed
sparsely, once per step. A weight that no worker used has no gradient on any worker.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return the rank of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over all workers, in place and in one call."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def all_gather_rows(rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Gather the rows of every worker, without gradients. Workers may have different numbers.

    The rows are padded here because gloo only gathers equal shapes. Accelerate's
    `pad_across_processes` and `gather` would leave the padding between the rows.

    Args:
        rows: Rows of this worker, `[n, ...]`.
        sizes: `n` of every worker.

    Returns:
        Rows of each worker, by rank.

    """
    if len(sizes) == 1:
        return [rows.detach()]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def gather_features(own_BE: Tensor, sizes: Sequence[int]) -> Tensor:
    """Gather the features of all workers to `[G, E]`, in rank order.

    Gradients flow only to this worker's own features.
    """
    parts = all_gather_rows(own_BE, sizes)
    parts[rank()] = own_BE
    return torch.cat(parts)


def all_reduce_sparse(rows: Tensor) -> Tensor:
    """Sum a coalesced sparse tensor over all workers. Only rows with values are transferred."""
    if world_size() == 1:
        return rows
    index, values = rows.indices()[0], rows.values()
    count = torch.tensor([len(index)], device=values.device)
    sizes = [int(size) for size in all_gather_rows(count, [1] * world_size())]
    all_index = torch.cat(all_gather_rows(index, sizes))
    all_values = torch.cat(all_gather_rows(values, sizes))
    return torch.sparse_coo_tensor(all_index[None], all_values, rows.shape).coalesce()


def broadcast_figure(figure: float, device: torch.device) -> float:
    """Return the figure of rank 0, on all workers."""
    tensor = torch.tensor([figure], dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return float(tensor)
