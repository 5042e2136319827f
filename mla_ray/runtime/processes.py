"""Work in several processes of this machine, for calls that hold the GIL."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, computed by a process per core.

    A single item, or all on a single core, are computed in this process. A process takes a second
    to start, so an item should be worth more. Processes are started afresh. A forked one would
    inherit locks that threads of torch or Ray hold.

    Args:
        function: Function of a module. Processes import the module.
        items: Arguments, which are pickled, as are results.

    """
    count = min(len(items), len(os.sched_getaffinity(0)))
    if count < 2:
        yield from map(function, items)
        return
    # Ctrl-C reaches every process of a terminal. Only this one should report it.
    with ProcessPoolExecutor(
        count,
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        yield from pool.map(function, items)  # cancels what has not begun if it is left early
