"""Find settings for languages:

    ray job submit --working-dir . -- python -m jobs.sweep --languages sw --dataset emoji \
        --run /abs/runs/sweep --data /abs/data --results /abs/results

Goes on where it was stopped; no finished trial is repeated.
"""

import sys
from typing import Any

from jobs.job import Job, JobSettings, run
from tuning.sweep import SweepPlan, sweep


class Settings(JobSettings, SweepPlan):  # type: ignore[misc]  # two models with a configuration each
    """A sweep; returns for each language its best settings and what they are worth."""


def main(settings: Settings, job: Job) -> dict[str, Any]:
    plan = SweepPlan.model_validate(settings.model_dump())
    outcomes = sweep(plan, job.report, job.stop)
    return {o.language: o.model_dump(exclude={"trials"}) for o in outcomes}


if __name__ == "__main__":
    sys.exit(run(Settings, main, ray=True))
