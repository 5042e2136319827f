"""Ray Tune callback that reports finished trials and deletes their checkpoints.

Ray Tune pickles its callbacks and loads them from the pickle when a sweep resumes. `SweepCallback`
therefore holds only the sweep's folder and looks up its listener when a trial ends.
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
        """Stand-in for Ray Tune's `Callback`, which has no type annotations."""
else:
    from ray.tune import Callback

log = logging.getLogger(__name__)


@dataclass
class _Listener:
    """Receiver of the progress of one sweep."""

    phase: str
    trials: int
    report: Report


_listeners: dict[str, _Listener] = {}
"""Listeners by the folder of their sweep."""


@contextmanager
def trials_reported(root: str, phase: str, trials: int, report: Report) -> Iterator[None]:
    """Report the progress of the sweep in `root` while the context is active.

    Each failed trial writes one line to the log. The logger of Ray Tune itself is limited to
    critical messages in the meantime.

    Args:
        root: Folder of the sweep.
        phase: Name of the phase in the progress.
        trials: Number of trials of the sweep.
        report: Receives the progress after each trial.

    """
    _listeners[root] = _Listener(phase, trials, report)
    report(Progress(phase, 0, trials))
    tune = logging.getLogger("ray.tune")
    level = tune.level
    tune.setLevel(logging.CRITICAL)  # it logs a traceback of Ray Tune's internals per failure
    try:
        yield
    finally:
        tune.setLevel(level)
        del _listeners[root]


class SweepCallback(Callback):
    """Ray Tune callback for the sweep in `root`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report a finished trial and delete its checkpoints and packs."""
        self._ended(trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log a failed trial, report it, and delete its checkpoints and packs."""
        log.warning("trial %s failed; the sweep's report.html will show the error", trial.trial_id)
        self._ended(trials, trial)

    def _ended(self, trials: list[Any], trial: Any) -> None:
        run = as_path(self.root) / "trials" / trial.trial_id
        write_bytes(run / ENDED, b"")
        # The best settings are trained again on all rows, so no checkpoint of a trial is needed.
        remove(run / "checkpoints")
        remove(run / "packs")
        if listener := _listeners.get(self.root):
            ended = [t for t in trials if t is trial or t.is_finished()]
            ars = [t.last_result.get(METRIC) for t in trials if t.last_result]
            best = max((ar for ar in ars if ar is not None), default=None)
            note = "" if best is None else f"best AR {best:.1f}"
            listener.report(Progress(listener.phase, len(ended), listener.trials, note))
