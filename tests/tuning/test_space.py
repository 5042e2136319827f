"""Promises of mla_ray.tuning.space and mla_ray.tuning.families."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mla_ray.training.config import AcquireConfig, HeldOut, Stage, load_config
from mla_ray.tuning import families
from mla_ray.tuning.families import family, related
from mla_ray.tuning.search import distributions
from mla_ray.tuning.space import PRESETS, Choices, Range, Space, differing, load_space

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def space(**parameters: Any) -> Space:
    return Space.model_validate({"trials": 4, "parameters": parameters})


def test_the_presets_are_those_the_manual_names() -> None:
    assert NAMES == ["low-resource", "quick", "standard"]
    assert all(load_space(name)[0] == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_a_point_of_every_preset(name: str) -> None:
    _, of = load_space(name)
    defaults = AcquireConfig(hidden=96)
    config = of.config(of.point(defaults), captions=True)
    # Else "the best trial is that of the defaults" would be a gain by chance.
    assert config.model_copy(update={"hidden": 96}) == defaults


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nlt.rate": {"choices": [1]}}, "no setting 'nlt.rate'"),
        ({"nlt.lr.x": {"choices": [1]}}, "no setting 'nlt.lr.x'"),
        ({"nlt.lr": {"low": -1.0, "high": 1.0}}, "nlt.lr -1.0: Input should be greater than 0"),
        ({"batch": {"choices": [64, 1]}}, "batch 1: Input should be greater than or equal to 2"),
        ({"le_share": {"low": 0.0, "high": 1.5}}, "a share is between 0 and 1"),
        ({"nlt.lr": {"low": 0.1, "high": 0.01}}, "low has to be below high"),
        ({"warmup": {"low": 0.0, "high": 0.1, "log": True}}, "log needs a low above 0"),
        ({"vocab_size": {"low": 1000, "high": 9000}}, "vocab_size: give choices"),
        ({"temperature": {"choices": ["warm"]}}, "temperature 'warm'"),
        ({"hidden": {"choices": []}}, "at least 1 item"),
        ({"hidden": {"low": 1, "hihg": 2}}, "hihg"),
        ({}, "at least 1 item"),
    ],
)
def test_a_space_that_no_acquisition_takes_is_refused_before_anything_runs(
    parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        space(**parameters)


def test_steps_are_shared_out_between_the_stages() -> None:
    of = space(steps={"choices": [100, 200]}, le_share={"low": 0.0, "high": 1.0})
    config = of.config({"steps": 200, "le_share": 0.25}, captions=True)
    assert (config.nlt.steps, config.le.steps) == (150, 50)
    text = of.config({"steps": 200, "le_share": 0.25}, captions=False)
    assert (text.nlt.steps, text.le.steps) == (200, 0)


def test_what_is_not_a_parameter_is_as_the_space_says_or_the_default() -> None:
    of = Space.model_validate(
        {
            "trials": 1,
            "settings": {"warmup": 0.3, "nlt": {"steps": 90, "batch": 64, "lr": 0.5}},
            "parameters": {"batch": {"choices": [32]}},
        }
    )
    config = of.config({"batch": 32}, captions=True)
    assert config.nlt == Stage(steps=90, batch=32, lr=0.5)
    assert config.le == AcquireConfig().le.model_copy(update={"batch": 32})
    assert config.warmup == 0.3


def test_a_trial_looks_at_its_validation_rows_evenly_and_saves_at_each_look() -> None:
    of = space(steps={"choices": [101]})
    config = of.trial({"steps": 101}, captions=True, held_out=HeldOut(of="captions", size=9))
    assert config.held_out == HeldOut(every=21, of="captions", size=9)
    assert config.checkpoint_every == 21
    assert of.evaluations == -(-101 // 21)


def test_the_nearest_point() -> None:
    whole, real = Range(low=1, high=9), Range(low=0.1, high=0.9)
    assert [whole.nearest(n) for n in (0, 4.6, 99)] == [1, 5, 9]
    assert [real.nearest(n) for n in (0, 0.46, 99)] == [0.1, 0.46, 0.9]
    choices = Choices(choices=["native", 0.01, 0.1])
    assert [choices.nearest(n) for n in ("native", 0.02, 5, "x")] == ["native", 0.01, 0.1, "native"]


def test_distributions_are_those_of_the_space() -> None:
    found = distributions(
        space(
            **{
                "nlt.lr": {"low": 1e-4, "high": 1e-2, "log": True},
                "hidden": {"low": 8, "high": 64},
                "batch": {"choices": [8, 16]},
            }
        )
    )
    assert (found["nlt.lr"].low, found["nlt.lr"].high, found["nlt.lr"].log) == (1e-4, 1e-2, True)
    assert type(found["hidden"]).__name__ == "IntDistribution"
    assert found["batch"].choices == (8, 16)


def test_a_result_is_a_configuration_with_nothing_but_what_differs(tmp_path: Path) -> None:
    config = AcquireConfig(warmup=0.2, nlt=Stage(steps=200, batch=256, lr=0.002))
    found = differing(config)
    assert found == {"warmup": 0.2, "nlt": {"steps": 200, "batch": 256, "lr": 0.002}}
    file = tmp_path / "de.yaml"
    file.write_text(yaml.safe_dump(found))
    assert load_config(file) == config
    assert differing(AcquireConfig()) == {}


def test_an_unknown_space_is_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="low-resource, quick, standard"):
        load_space("fast")
    (tmp_path / "mine.yaml").write_text("trials: 3\nparameters: {warmup: {choices: [0.1]}}\nx: 1")
    with pytest.raises(ValueError, match=r"mine\.yaml.*\n.*x\n.*Extra inputs"):
        load_space(str(tmp_path / "mine.yaml"))


# --- related languages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "others", "expected"),
    [
        ("cs", ["ru", "de", "ja", "sk"], ["ru", "sk", "de"]),
        ("uk", ["fr", "hi", "fi", "pl"], ["pl", "fr", "hi"]),
        ("pt-BR", ["pt", "es", "de"], ["pt", "es", "de"]),
        ("zh-Hant", ["zh", "ja", "my"], ["zh", "my"]),
        ("fi", ["et", "hu", "sv"], ["et", "hu"]),
        ("ja", ["zh", "ko"], []),
        ("tlh", ["de"], []),
        ("de", ["de"], []),
    ],
)
def test_related_languages_come_by_closeness(
    language: str, others: list[str], expected: list[str]
) -> None:
    assert related(language, others) == expected


def test_families_have_each_code_once_and_no_other_type() -> None:
    text = yaml.safe_load((Path(families.__file__).parent / "families.yaml").read_text())
    codes = [c for branches in text.values() for codes in branches.values() for c in codes]
    assert all(isinstance(code, str) for code in codes)  # `no` is a boolean to YAML
    assert len(codes) == len(set(codes))
    assert family("no") == ("indo-european", "germanic")
