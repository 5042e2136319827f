"""Jobs of a plan: the steps of `mla_ray.pipeline` with a job's settings, log and exit codes."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from mla_ray.pipeline.pipeline import Pipeline
from mla_ray.pipeline.plan import Plan
from mla_ray.runtime.job import Job, run
from mla_ray.runtime.job_settings import JobSettings


class PlanSettings(JobSettings, Plan):
    """Settings of a plan. All jobs of a plan accept the same file."""

    model_config = JobSettings.model_config


def run_steps(*steps: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run steps of a plan for all its languages and exit. Flags and a file give the plan."""

    def main(settings: PlanSettings, job: Job) -> object:
        plan = Plan.model_validate(settings.model_dump())
        return Pipeline.load(plan, job.report, job.stop, {"job": job.id}).run(steps)

    name = steps[0] if len(steps) == 1 else "pipeline"
    sys.exit(run(PlanSettings, main, argv, ray=True, name=f"jobs.{name}", prog=f"mla job {name}"))
