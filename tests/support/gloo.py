"""Several processes of one torch.distributed group on this machine."""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.support import forks


def together(world: int, work: Callable[..., None], *args: Any) -> None:
    """`work(rank, world, *args)` in `world` processes of one thread each, joined by gloo.

    A failure of any of them is raised here, and ends the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _joined,
            (world, f"{folder}/rendezvous", work, args),
            nprocs=world,
            start_method=forks.START_METHOD,
        )


def _joined(
    rank: int, world: int, rendezvous: str, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "lo"})
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    work(rank, world, *args)
    dist.barrier()
    # Not by the interpreter's end: gloo's threads may hold tensors beyond it, and letting one go
    # without an interpreter aborts the process (PyTorch 2.14, its pull request 179291).
    os._exit(0)
