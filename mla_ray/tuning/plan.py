"""Plan of a sweep: languages, search space, number of trials, and output folders."""

from pathlib import Path

from pydantic import Field

from mla_ray.data.table_reader import Stream
from mla_ray.model.language import ENGLISH, Language
from mla_ray.pipeline.plan import BasePlan
from mla_ray.runtime.progress import Progress, Report

ALL = "all"


class SweepPlan(BasePlan):
    """Plan of a sweep over one or more languages."""

    languages: list[Language] = Field(min_length=1)
    """BCP-47 codes, or `all` for every language of the tables or of the data set."""
    space: str = "auto"
    """`quick`, `standard`, `low-resource`, a YAML file, or `auto`, which depends on the number of
    pairs."""
    trials: int | None = Field(default=None, ge=1)
    """Number of trials for each language. The default is that of the space."""
    budget: int | None = Field(default=None, ge=1)
    """Maximum number of trials for all languages together, divided evenly."""
    concurrent: int | None = Field(default=None, ge=1)
    """Number of concurrent trials. The default is as many as fit on the cluster."""
    seed: int = Field(default=0, ge=0)
    """Seed of the search and of the bootstrap samples."""
    run: str = "runs/sweep"
    """Folder for the run folders, one per language."""
    results: str = "tuning/results"
    """Folder of the best settings by language. A sweep first tries those of related languages."""
    worker_cpus: float | None = Field(default=1.0, gt=0)
    """CPUs for each worker of a trial."""


def languages_of(plan: SweepPlan, report: Report) -> list[str]:
    """Return the languages of the plan, or every language of its data for `all`.

    Raises:
        ValueError: `all` is combined with `{language}` in a table name.

    """
    if plan.languages != [ALL]:
        return plan.languages
    if plan.dataset == "emoji":
        from mla_ray.datasets.emoji import Emoji

        return [code for code in Emoji(Path(plan.data) / "emoji").languages if code != ENGLISH]
    if any("{language}" in name for name in plan.pairs):
        raise ValueError("languages 'all' does not work with {language} in table names; list them")
    codes: set[str] = set()
    for piece in Stream.pairs(plan.pairs):
        codes.update(piece["language"].unique().to_pylist())
        report(Progress("languages", len(codes), None))
    return sorted(codes)
