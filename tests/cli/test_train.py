"""Promises of run folders: one for each `--out`, that its own command finds again."""

from pathlib import Path

import pytest

from mla_ray.cli.train import run_folder


def test_every_out_has_a_run_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outs = ["a/pack", "b/pack", "pack", "s3://bucket/a/pack", "s3://bucket/b/pack"]
    folders = {out: run_folder(out, None, None) for out in outs}
    assert len(set(folders.values())) == len(outs)
    assert all(folder.startswith("runs/pack-") for folder in folders.values())
    assert run_folder("./a/../a/pack/", None, None) == folders["a/pack"]
    assert run_folder(str(tmp_path / "a" / "pack"), None, True) == folders["a/pack"]
    assert run_folder("a/pack", "mine", None) == "mine"


def test_a_run_of_0_1_0_goes_on_where_it_is_if_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    former = Path("runs/sw")
    former.mkdir(parents=True)
    (former / "run.json").write_text("{}")
    assert run_folder("packs/sw", None, True) == "runs/sw"
    ours = run_folder("packs/sw", None, None)
    assert ours != "runs/sw"
    Path(ours).mkdir()
    assert run_folder("packs/sw", None, True) == ours
