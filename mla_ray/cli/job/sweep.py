"""Job that finds the best training settings for languages.

    ray job submit --working-dir . -- mla job sweep --languages sw --dataset emoji \
        --run /abs/runs/sweep --data /abs/data --results /abs/results

A stopped job continues when it is submitted again. No finished trial is repeated.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from mla_ray.runtime.job import Job, run
from mla_ray.runtime.job_settings import JobSettings
from mla_ray.tuning.plan import SweepPlan
from mla_ray.tuning.sweep import sweep


class SweepSettings(JobSettings, SweepPlan):
    """Find the best training settings for languages. The result has them and their gain."""

    model_config = JobSettings.model_config


def main(settings: SweepSettings, job: Job) -> object:
    """Run the sweep and return the outcome of each language without its trials."""
    plan = SweepPlan.model_validate(settings.model_dump())
    outcomes = sweep(plan, job.report, job.stop)
    return {o.language: o.model_dump(exclude={"trials"}) for o in outcomes}


def run_sweep(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a sweep and exit. Flags and a file give its plan."""
    sys.exit(run(SweepSettings, main, argv, ray=True, name="jobs.sweep", prog="mla job sweep"))
