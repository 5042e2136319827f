"""Find settings for languages:

    ray job submit --working-dir . -- mla job sweep --languages sw --dataset emoji \
        --run /abs/runs/sweep --data /abs/data --results /abs/results

Goes on where it was stopped; no finished trial is repeated.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from mla_ray.runtime.job import Job, run
from mla_ray.runtime.job_settings import JobSettings
from mla_ray.tuning.plan import SweepPlan
from mla_ray.tuning.sweep import sweep


class SweepSettings(JobSettings, SweepPlan):
    """A sweep; returns for each language its best settings and what they are worth."""

    model_config = JobSettings.model_config


def main(settings: SweepSettings, job: Job) -> object:
    plan = SweepPlan.model_validate(settings.model_dump())
    outcomes = sweep(plan, job.report, job.stop)
    return {o.language: o.model_dump(exclude={"trials"}) for o in outcomes}


def run_sweep(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the sweep that flags and file give, and exit."""
    sys.exit(run(SweepSettings, main, argv, ray=True, name="jobs.sweep", prog="mla job sweep"))
