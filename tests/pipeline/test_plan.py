"""Promises of mla_ray.pipeline.plan: what a plan may say, and what it means."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mla_ray.cli.job.plan import PlanSettings
from mla_ray.pipeline.plan import Plan
from mla_ray.runtime.exit_codes import Usage
from mla_ray.runtime.job_settings import load


def plan(**settings: Any) -> Plan:
    return Plan.model_validate({"languages": ["de"], "pairs": ["pairs.tsv"]} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1}, "learning_rate\n  Extra inputs"),
        ({"train": {"nlt": {"step": 1}}}, "train.nlt.step\n  Extra inputs"),
        ({"languages": []}, "languages\n  List should have at least 1"),
        ({"dataset": "emoji"}, "give either `pairs` or `dataset`"),
        ({"pairs": []}, "give either `pairs` or `dataset`"),
        ({"pairs": [], "dataset": "emoji", "captions": "c.csv"}, "leave `captions` out"),
        ({"languages": ["de", "cs", "de"]}, "`languages` names one twice"),
        ({"languages": ["he", "iw"]}, "`languages` names one twice"),
        ({"languages": ["../../x"]}, "language '../../x' is unknown"),
        ({"dataset": "flickr"}, "dataset\n  Input should be 'emoji'"),
        ({"workers": "four"}, "workers are a number such as 2"),
        ({"workers": "0"}, "workers are a number such as 2"),
        ({"workers": "4:1"}, "the maximum is less than the minimum"),
        ({"workers": "1:"}, "workers are a number such as 2"),
        ({"worker_cpus": 0}, "worker_cpus\n  Input should be greater than 0"),
        ({"parallel": 0}, "parallel\n  Input should be greater than"),
        ({"encoders": 0}, "encoders\n  Input should be greater than"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_its_key(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        plan(**settings)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "name", ["{lang}", "{}", "{0}", "{language", "language}", "{language.code}", "{language[x]}"]
)
def test_a_name_with_other_braces_than_the_language_is_refused(name: str) -> None:
    for settings in ({"pairs": ["good.tsv", f"s3://b/{name}.tsv"]}, {"captions": f"{name}.csv"}):
        with pytest.raises(ValidationError, match=r"only \{language\} can stand in braces"):
            plan(**settings)


def test_the_language_stands_in_the_names_of_its_tables() -> None:
    made = plan(
        languages=["de", "pt-br"],
        pairs=["s3://b/{language}/pairs.parquet", "dictionary.tsv"],
        captions="captions-{language}.parquet",
    )
    corpus = made.corpus("pt-BR", lambda step: None)
    assert corpus.language == "pt-BR"
    assert list(corpus.pairs) == ["s3://b/pt-BR/pairs.parquet", "dictionary.tsv"]
    assert corpus.captions == "captions-pt-BR.parquet"


def test_a_job_takes_a_plan_from_a_file_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    document = {
        "languages": ["de"],
        "pairs": ["a-{language}.tsv"],
        "train": {"nlt": {"steps": 3, "batch": 4, "lr": 1e-3}},
    }
    file.write_text(yaml.safe_dump(document))
    flags = ["--config", str(file), "--train.nlt.steps", "5", "--languages", "cs"]
    settings = load(PlanSettings, flags)
    made = Plan.model_validate(settings.model_dump())
    assert made.languages == ["cs"]
    assert (made.train.nlt.steps, made.train.nlt.batch) == (5, 4)
    for extra, message in (
        (["--workers", "none"], "workers are a number such as 2"),
        (["--dataset", "emoji"], "give either `pairs` or `dataset`"),
        (["--train.nlt.stepps", "5"], "unknown flag --train.nlt.stepps; did you mean"),
    ):
        with pytest.raises(Usage, match=message):
            load(PlanSettings, [*flags, *extra])
