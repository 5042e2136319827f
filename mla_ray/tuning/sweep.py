"""Sequential sweeps of several languages."""

import logging
import threading

from mla_ray.model.native import Native
from mla_ray.runtime.progress import Report, Stopped
from mla_ray.tuning.language_sweep import LanguageSweep
from mla_ray.tuning.outcome import Outcome
from mla_ray.tuning.plan import SweepPlan, languages_of

log = logging.getLogger(__name__)


def sweep(plan: SweepPlan, report: Report, stop: threading.Event) -> list[Outcome]:
    """Sweep languages one after another. The caller must have started Ray.

    The same call resumes an interrupted sweep and does not repeat finished languages. An error in
    one language does not stop the others.

    Raises:
        Stopped: The stop request was set.
        ValueError: The budget has less than one trial per language.
        ExceptionGroup: Some of several languages failed. Raised after the other languages are
            done. The error of a single language is raised as it is.

    """
    languages = languages_of(plan, report)
    if plan.budget is not None and plan.budget < len(languages):
        raise ValueError(
            f"a budget of {plan.budget} trials is less than one per language: {languages}"
        )
    native = Native.load(plan.native)
    trials = None if plan.budget is None else plan.budget // len(languages)
    outcomes: list[Outcome] = []
    failed: list[Exception] = []
    for language in languages:
        if stop.is_set():
            raise Stopped(f"{plan.run}: stopped; run the same again to go on")
        try:
            outcomes.append(
                LanguageSweep.open(plan, language, native, report, stop, trials).sweep()
            )
        except Stopped:
            raise
        except Exception as error:
            if len(languages) == 1:
                raise
            error.add_note(f"language {language}")
            log.error("%s: %s", language, error)
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(languages)} languages", failed)
    return outcomes
