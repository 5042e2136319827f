"""Promises of training.config: parts keep their defaults, and faults name file, key and remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from mla_ray.training.config import AcquireConfig, FinetuneConfig, load_config, load_finetune_config


def written(folder: Path, content: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content)
    return path


def faults(folder: Path, content: str) -> list[str]:
    path = written(folder, content)
    with pytest.raises(ValueError, match=r"mine\.yaml: ") as caught:
        load_config(path)
    return [line.replace(f"{path}: ", "") for line in str(caught.value).splitlines()]


def test_a_part_given_in_part_keeps_the_other_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "nlt: {steps: 6, batch: 64}\nle: {batch: 32}\n"))
    assert (config.nlt.steps, config.nlt.batch, config.nlt.lr) == (6, 64, 1e-3)
    assert (config.le.steps, config.le.batch, config.le.lr) == (20, 32, 3e-5)  # not NLT's
    config = load_config(written(tmp_path, "held_out: {every: 5}\n"))
    assert (config.held_out.every, config.held_out.size, config.held_out.of) == (5, 1000, "pairs")
    tuned = load_finetune_config(written(tmp_path, "steps: 3\nheld_out: {size: 50}\n"))
    assert (tuned.steps, tuned.batch, tuned.held_out.size) == (3, 128, 50)
    assert AcquireConfig.model_validate({"le": {"steps": 0}}).le.lr == 3e-5
    assert AcquireConfig(nlt={"steps": 7}).nlt.batch == 256  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}", "nlt: {}\n"])
def test_what_names_nothing_is_the_defaults(tmp_path: Path, content: str) -> None:
    assert load_config(written(tmp_path, content)) == AcquireConfig()
    if "nlt" not in content:
        assert load_finetune_config(written(tmp_path, content)) == FinetuneConfig()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nlt: {stepz: 6}", ["nlt.stepz: unknown key; did you mean nlt.steps?"]),
        ("sed: 1", ["sed: unknown key; did you mean seed?"]),
        (
            "nlt: {steps: -1, batch: 1}",
            [
                "nlt.steps: Input should be greater than or equal to 0, found -1",
                "nlt.batch: Input should be greater than or equal to 2, found 1",
            ],
        ),
        (
            "temperature: warm",
            [
                "temperature: Input should be a valid number, unable to parse string as a number, "
                "found 'warm'",
                "temperature: Input should be 'native', found 'warm'",
            ],
        ),
        ("- 1", ["not a mapping of keys to values, as `seed: 1` is"]),
        ("7: 1", ["not a mapping of keys to values, as `seed: 1` is"]),
    ],
)
def test_faults_name_the_key_and_what_would_be_right(
    tmp_path: Path, content: str, said: list[str]
) -> None:
    assert faults(tmp_path, content) == said


def test_an_unknown_key_like_no_other_is_told_what_there_is(tmp_path: Path) -> None:
    (said,) = faults(tmp_path, "zzz: 1")
    assert said.startswith("zzz: unknown key; there are temperature, warmup, ")
    assert "nlt.steps, nlt.batch, nlt.lr, " in said


def test_what_is_no_part_is_refused_in_one_line(tmp_path: Path) -> None:
    (said,) = faults(tmp_path, "nlt: 6")
    assert said.startswith("nlt: ")
    assert said.endswith("found 6")
    assert faults(tmp_path, "nlt: {")[0].startswith("not YAML: ")


@pytest.mark.parametrize("command", ["acquire", "finetune"])
def test_settings_are_refused_before_torch_or_ray_are_imported(
    tmp_path: Path, command: str
) -> None:
    options = {"acquire": ["--language", "de", "--pairs", "p.csv"], "finetune": []}[command]
    argv = [command, *options, "--config", str(written(tmp_path, "learning_rate: 1\n"))]
    argv += ["--captions", "c.csv", "--out", "out"]
    code = (
        "import sys\n"
        "from mla_ray.cli import app\n"
        "try:\n"
        f"    app({argv!r}, standalone_mode=False)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mine.yaml: learning_rate: unknown key" in run.stdout
    assert run.stdout.endswith("[]\n")
