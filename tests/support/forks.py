"""Processes that start at once: forks of one that has imported what takes seconds to import."""

import multiprocessing
from collections.abc import Callable
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pytest", "mla_ray.index.collection", "mla_ray.training.acquisition_learner"]
)
START_METHOD = _CONTEXT.get_start_method()
"""For those who start processes themselves: it is this module's, once it is imported."""


def exit_code(work: Callable[..., None], *args: Any) -> int | None:
    """Exit code of a process in which `work(*args)` ran, negative for a signal."""
    process = _CONTEXT.Process(target=work, args=args)
    process.start()
    process.join()
    return process.exitcode
