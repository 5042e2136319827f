"""Table of the sweeps of several languages."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from rich.table import Table

from mla_ray.tuning.outcome import Outcome, signed


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return a table with one row per language.

    The columns are the trials by status, validation AR, test AR and gain with their intervals, and
    the time of all trials. The caption has the mean gain.
    """
    shown = Table(title="Sweeps (AR, %, with 95 % intervals)")
    shown.add_column("language")
    for column in ("trials", "validation", "test, defaults", "test, best", "gain", "trial time"):
        shown.add_column(column, justify="right")
    for outcome in outcomes:
        count = Counter(trial.status for trial in outcome.trials)
        ended = ", ".join(f"{n} {status}" for status, n in count.items())
        best = outcome.best_trial
        cells = [outcome.language, ended, f"{best.ar:.1f}"]
        if gain := outcome.gain:
            cells += [str(gain.default), str(gain.swept), signed(gain.difference)]
        else:
            cells += ["", "", ""]
        shown.add_row(*cells, str(timedelta(seconds=round(outcome.seconds))))
    if gains := [outcome.gain.difference.value for outcome in outcomes if outcome.gain]:
        mean = sum(gains) / len(gains)
        significant = sum(bool(outcome.gain and outcome.gain.significant) for outcome in outcomes)
        shown.caption = f"mean gain {mean:+.2f}; interval above 0 in {significant} of {len(gains)}"
    return shown
