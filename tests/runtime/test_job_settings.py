"""Settings from flags, a file and defaults, of a toy job."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mla_ray.runtime.exit_codes import Usage
from mla_ray.runtime.job_settings import JobSettings, load
from mla_ray.training.config import AcquireConfig, Stage
from tests.support import ROOT


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str
    weight: float = 1.0


class Toy(JobSettings):
    """A toy job."""

    out: Path
    """Where the toy goes."""
    nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)
    train: AcquireConfig = AcquireConfig()
    pairs: list[str] = Field(["default.tsv"])
    """Tables."""
    sources: tuple[Source, ...] = ()
    labels: dict[str, int] = Field({"x": 1})
    model: dict[str, Any] = Field({})
    resume: bool = False
    """Go on with 100 % of it."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(
        "out: from-file\n"
        "nlt: {steps: 9, lr: 1e-5}\n"
        "train: {nlt: {steps: 3}, seed: 4}\n"
        "pairs: [a.tsv, b.tsv]\n"
        "sources: [{path: s3://b/c}]\n"
        "model: {text: {width: 1, heads: 2}}\n"
    )
    return path


def usage(*argv: str) -> str:
    with pytest.raises(Usage) as fault:
        load(Toy, argv)
    return str(fault.value)


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(file: Path) -> None:
    toy = load(Toy, ["--config", str(file), "--nlt.steps", "8", "--train.nlt.batch=16"])
    assert toy.out == Path("from-file")
    assert toy.nlt == Stage(steps=8, batch=256, lr=1e-5)
    assert toy.train == AcquireConfig(nlt=Stage(steps=3, batch=16, lr=1e-3), seed=4)
    assert toy.sources == (Source(path="s3://b/c"),)
    assert toy.labels == {"x": 1}


def test_part_of_a_nested_default_can_be_set_by_a_flag_alone() -> None:
    toy = load(Toy, ["--out", "x", "--nlt.steps", "5", "--train.le.lr", "1"])
    assert toy.nlt == Stage(steps=5, batch=256, lr=1e-3)
    assert toy.train == AcquireConfig(le=Stage(steps=20, batch=256, lr=1))


def test_the_file_may_be_absent_or_a_url(file: Path) -> None:
    assert load(Toy, ["--out", "x"]).pairs == ["default.tsv"]
    assert load(Toy, ["--config", file.as_uri()]).out == Path("from-file")


@pytest.mark.parametrize(
    ("argv", "pairs"),
    [
        (["--pairs", "a", "--pairs", "b"], ["a", "b"]),
        (["--pairs", "a,b"], ["a", "b"]),
        (["--pairs", '["a,b", "c"]'], ["a,b", "c"]),
        (["--pairs=s3://bucket/a b.tsv"], ["s3://bucket/a b.tsv"]),
        (["--pairs", "[]"], []),
    ],
)
def test_a_list_is_a_flag_again_and_again_or_commas_or_json(
    file: Path, argv: list[str], pairs: list[str]
) -> None:
    assert load(Toy, ["--config", str(file), *argv]).pairs == pairs


def test_a_dict_is_pairs_or_json_and_joins_the_file_s(file: Path) -> None:
    toy = load(Toy, ["--config", str(file), "--labels", "a=1", "--labels", "b=2"])
    assert toy.labels == {"a": 1, "b": 2}
    toy = load(Toy, ["--config", str(file), "--model", '{"text": {"width": 3}}'])
    assert toy.model == {"text": {"width": 3, "heads": 2}}


def test_other_values_of_flags() -> None:
    toy = load(Toy, ["--out", "x", "--resume", "--train.temperature", "native"])
    assert toy.resume
    assert toy.train.temperature == "native"
    assert load(Toy, ["--out", "x", "--train.hidden", "8"]).train.hidden == 8
    assert load(Toy, ["--out", "x", "--train.hidden", "null"]).train.hidden is None
    toy = load(Toy, ["--out", "x", "--sources", '{"path": "p"}', "--sources", '{"path": "q"}'])
    assert toy.sources == (Source(path="p"), Source(path="q"))


def test_flags_have_hyphens_and_may_have_underscores() -> None:
    for flag in ("--train.vocab-size", "--train.vocab_size"):
        assert load(Toy, ["--out", "a_b", flag, "700"]).train.vocab_size == 700
        assert load(Toy, ["--out=a_b", f"{flag}=700"]).out == Path("a_b")


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESUME", "1")
    monkeypatch.setenv("OUT", "from-environment")
    assert not load(Toy, ["--out", "x"]).resume
    assert not Toy(out=Path("x")).resume
    assert usage() == "--out: missing; give the flag, or the key in the file of --config"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(Toy, ["--out", "x"]).resume = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nlt: {stepz: 3}", "FILE: nlt.stepz: unknown key; did you mean nlt.steps?"),
        ("quux: 3", "FILE: quux: unknown key"),
        ("OUT: x", "FILE: OUT: unknown key"),
        ("_cli_parse_args: true", "FILE: _cli_parse_args: unknown key"),
        (
            "nlt: {steps: many}",
            "FILE: nlt.steps: Input should be a valid integer, unable to parse string as an "
            "integer, found 'many'",
        ),
        ("- a", "--config FILE: not a mapping of keys to values"),
        ("1: a", "--config FILE: not a mapping of keys to values"),
        ("a: [", "--config FILE: while parsing a flow node"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert usage("--out", "x", "--config", str(path)).startswith(said.replace("FILE", str(path)))


def test_the_fault_is_laid_to_what_set_the_value(file: Path) -> None:
    assert usage("--config", str(file), "--nlt.steps", "x").startswith("--nlt.steps: Input")
    file.write_text("nlt: {steps: x}")
    said = usage("--config", str(file), "--nlt.lr", "x", "--out", "x").splitlines()
    assert [line.split(": Input")[0] for line in said] == [f"{file}: nlt.steps", "--nlt.lr"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--nlt.stepz", "3"], "unknown flag --nlt.stepz; did you mean --nlt.steps?"),
        (
            ["--train.vocab_sise=3"],
            "unknown flag --train.vocab-sise; did you mean --train.vocab-size?",
        ),
        (["--train.vocab-size", "0"], "--train.vocab-size: Input should be greater than or equal"),
        (["--ou=3"], "unknown flag --ou; did you mean --out?"),
        (["--quux"], "unknown flag --quux"),
        (["quux"], "unexpected argument 'quux'"),
        (["--nlt", '{"stepz": 3}'], "--nlt.stepz: unknown key; did you mean --nlt.steps?"),
        (["--train.temperature", "warm"], "--train.temperature: Input should be a valid number"),
        (["--pairs", '["a"'], "Parsing error encountered for pairs: "),
        (["--config", "no.yaml"], "--config no.yaml: [Errno 2] No such file or directory: "),
        (
            ["--config", "nope://no.yaml"],
            "--config nope://no.yaml: Unsupported filesystem: 'nope'; give a",
        ),
    ],
)
def test_a_bad_flag_is_refused_with_its_name(argv: list[str], said: str) -> None:
    assert usage("--out", "x", *argv).startswith(said)


def test_the_native_s_settings_are_valid() -> None:
    from mla_ray.cli.job.pretrain_native import PretrainSettings

    config = str(ROOT / "jobs/configs/emoji-clip.yaml")
    settings = load(PretrainSettings, ["--config", config, "--out", "x", "--steps", "7"])
    assert (settings.steps, settings.batch, settings.lr) == (7, 512, 1e-3)
    assert settings.model["text_cfg"]["width"] == 192
