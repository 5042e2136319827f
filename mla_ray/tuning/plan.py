"""What a sweep is of: languages, a space, how many trials, and where everything goes."""

from pathlib import Path

from pydantic import Field

from mla_ray.data.table_reader import Stream
from mla_ray.model.language import ENGLISH, Language
from mla_ray.pipeline.plan import BasePlan
from mla_ray.runtime.progress import Progress, Report

ALL = "all"


class SweepPlan(BasePlan):
    """What is to be swept, how long, and where everything goes."""

    languages: list[Language] = Field(min_length=1)
    """BCP-47 codes, or `all` of the tables or the data set."""
    space: str = "auto"
    """`quick`, `standard`, `low-resource`, a YAML file, or `auto`: by the number of pairs."""
    trials: int | None = Field(default=None, ge=1)
    """Of each language; the space says how many if not given."""
    budget: int | None = Field(default=None, ge=1)
    """Most trials of all languages together, shared out evenly."""
    concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; as many as the cluster has room for if not given."""
    seed: int = Field(default=0, ge=0)
    run: str = "runs/sweep"
    """A run folder for each language."""
    results: str = "tuning/results"
    """Best settings by language; what is there of related languages is tried first."""
    worker_cpus: float | None = Field(default=1.0, gt=0)
    """Of each worker of a trial."""


def languages_of(plan: SweepPlan, report: Report) -> list[str]:
    """The plan's languages, or all there are."""
    if plan.languages != [ALL]:
        return plan.languages
    if plan.dataset == "emoji":
        from mla_ray.datasets.emoji import Emoji

        return [code for code in Emoji(Path(plan.data) / "emoji").languages if code != ENGLISH]
    if any("{language}" in name for name in plan.pairs):
        raise ValueError("languages 'all' cannot be read off names with {language}; list them")
    codes: set[str] = set()
    for piece in Stream.pairs(plan.pairs):
        codes.update(piece["language"].unique().to_pylist())
        report(Progress("languages", len(codes), None))
    return sorted(codes)
