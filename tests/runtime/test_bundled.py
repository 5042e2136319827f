"""Promises of runtime.bundled: what comes with mla-ray is found by name, and nothing else."""

from pathlib import Path

import pytest

from mla_ray.runtime.bundled import bundled, configurations, or_bundled
from mla_ray.training.config import load_config
from tests.support import ROOT
from tests.support.commands import Mla


def test_a_bundled_file_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundled("configs/paper/nlt.yaml") == ROOT / "configs/paper/nlt.yaml"
    assert load_config(Path("configs/paper/nlt.yaml")).vocabulary == "bert-base-multilingual-cased"


def test_a_file_that_is_here_goes_before_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("configs/paper/nlt.yaml")
    mine.parent.mkdir(parents=True)
    mine.write_text("seed: 7")
    assert or_bundled(mine) == mine
    assert load_config(mine).seed == 7


@pytest.mark.parametrize(
    "name",
    ["README.md", "configs/../README.md", "/etc/passwd", "../etc", "", ".", "configs/none.yaml"],
)
def test_nothing_else_is_found(name: str) -> None:
    assert bundled(name) is None
    assert or_bundled(Path(name)) == Path(name)


def test_the_command_lists_and_prints_them(mla: Mla) -> None:
    listed = mla("config", "--json")
    assert listed.json == configurations()
    for name in ("serve/config.yaml", "jobs/configs/emoji.yaml", "ray_cluster.yaml"):
        assert name in configurations()
        assert mla("config", name).out == (ROOT / name).read_text()
    assert "tuning/presets/quick.yaml" in mla("config").out.splitlines()
    refused = mla("config", "models/emoji-clip/tokenizer.json")
    assert refused.code == 1
    assert "`mla config` lists them" in refused.err


def test_a_job_takes_a_bundled_plan(mla: Mla) -> None:
    refused = mla("job", "prepare", "--config", "jobs/configs/emoji.yaml", "--parallel", "0")
    assert refused.code == 2
    assert "--parallel" in refused.err
    refused = mla("job", "prepare", "--config", "jobs/configs/none.yaml")
    assert refused.code == 2
    assert "jobs/configs/none.yaml" in refused.err


def test_a_job_tells_its_settings(mla: Mla) -> None:
    told = mla("job", "pipeline", "--help")
    assert told.code == 0
    assert told.out.startswith("usage: mla job pipeline")
    assert "--train.nlt.steps" in told.out
