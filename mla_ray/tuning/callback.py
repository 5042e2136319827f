"""A callback of Ray Tune's: the ends of trials, for progress and for room on the disk.

Tune keeps its callbacks in a pickle and takes them from there when it goes on, so what a
`SweepCallback` reports to is looked up where it runs.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import as_path, remove, write_bytes
from mla_ray.tuning.trial import ENDED, METRIC

if TYPE_CHECKING:

    class Callback:
        """Of Ray Tune, which has no types."""
else:
    from ray.tune import Callback

log = logging.getLogger(__name__)


@dataclass
class _Listener:
    """Who hears of the trials of a sweep."""

    phase: str
    trials: int
    report: Report


_listeners: dict[str, _Listener] = {}
"""By the sweep's folder."""


@contextmanager
def trials_reported(root: str, phase: str, trials: int, report: Report) -> Iterator[None]:
    """Progress of the sweep in `root` goes to `report`; a line for each failure to the log."""
    _listeners[root] = _Listener(phase, trials, report)
    report(Progress(phase, 0, trials))
    tune = logging.getLogger("ray.tune")
    level = tune.level
    tune.setLevel(logging.CRITICAL)  # it has a traceback of its own machinery for each failure
    try:
        yield
    finally:
        tune.setLevel(level)
        del _listeners[root]


class SweepCallback(Callback):
    """Of the sweep in `root`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        log.warning("trial %s failed; the report says why", trial.trial_id)
        self._ended(trials, trial)

    def _ended(self, trials: list[Any], trial: Any) -> None:
        run = as_path(self.root) / "trials" / trial.trial_id
        write_bytes(run / ENDED, b"")
        remove(run / "checkpoints")  # the best settings are trained anew, on all rows
        remove(run / "packs")
        if listener := _listeners.get(self.root):
            ended = [t for t in trials if t is trial or t.is_finished()]
            ars = [t.last_result.get(METRIC) for t in trials if t.last_result]
            best = max((ar for ar in ars if ar is not None), default=None)
            note = "" if best is None else f"best AR {best:.1f}"
            listener.report(Progress(listener.phase, len(ended), listener.trials, note))
