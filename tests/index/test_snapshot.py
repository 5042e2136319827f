"""Promises of mla_ray.index.snapshot: what is restored is what was there, or nothing."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mla_ray.index import snapshot
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.existing import config_at
from mla_ray.index.snapshot import restore_snapshot, write_snapshot
from mla_ray.index.transfer import Transferred
from tests.index.test_transfer import NAMES, OTHER, N, are_same, points, server, silent, source

__all__ = ["server", "source"]  # fixtures


@pytest.fixture
def saved(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot of the index, with 256 points in each part."""
    monkeypatch.setattr(snapshot, "PART", 1)
    assert write_snapshot(source, NAMES, tmp_path / "saved", silent) == {
        NAMES[0]: 100,
        NAMES[1]: N,
    }
    return tmp_path / "saved"


def test_a_snapshot_restores_into_the_same(saved: Path, source: str, tmp_path: Path) -> None:
    target = f"edge:{tmp_path}/target"
    done = restore_snapshot(saved, target, None, silent)
    assert done == {NAMES[0]: Transferred(100, 100, 100), NAMES[1]: Transferred(N, N, N)}
    for name in NAMES:
        assert are_same(points(source, name), points(target, name))
        assert config_at(target, name) == config_at(source, name)
    assert restore_snapshot(saved, target, NAMES[:1], silent)[NAMES[0]].written == 0


def test_a_snapshot_of_a_folder_restores_into_a_server_and_the_reverse(
    saved: Path, source: str, server: str, tmp_path: Path
) -> None:
    restore_snapshot(saved, server, None, silent)
    write_snapshot(server, NAMES, tmp_path / "of-server", silent)
    restore_snapshot(tmp_path / "of-server", f"edge:{tmp_path}/back", None, silent)
    for name in NAMES:
        assert are_same(points(source, name), points(server, name))
        assert are_same(points(source, name), points(f"edge:{tmp_path}/back", name))


def test_a_part_is_parquet_that_others_can_read(saved: Path) -> None:
    parts = json.loads((saved / "manifest.json").read_text())["collections"][NAMES[1]]["parts"]
    assert [part["rows"] for part in parts] == [256, 256, 188]
    table = pq.read_table(saved / parts[0]["file"])
    assert table.column_names == ["id", "vector", "payload"]
    assert json.loads(table["payload"][0].as_py())["source"] == "s"


def test_a_damaged_part_is_named_and_nothing_is_written(saved: Path, tmp_path: Path) -> None:
    part = saved / f"{NAMES[1]}-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{part.name} is damaged: its SHA-256"):
        restore_snapshot(saved, f"edge:{tmp_path}/target", None, silent)
    part.unlink()
    with pytest.raises(ValueError, match=rf"{part.name} is missing"):
        restore_snapshot(saved, f"edge:{tmp_path}/target", None, silent)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format=2), "manifest.json has format 2"),
        (lambda manifest: manifest.pop("collections"), "manifest.json is damaged"),
        (lambda manifest: part_of(manifest).update(file="../../etc/passwd"), "lists the part"),
        (lambda manifest: part_of(manifest).update(rows=255), "says 255 points of 16"),
        (lambda manifest: manifest["collections"][NAMES[1]]["record"].update(dim=17), "of 17 dim"),
        (lambda manifest: manifest["collections"][NAMES[1]].update(record={}), "does not say"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, change: object, message: str
) -> None:
    file = saved / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)  # type: ignore[operator]
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        restore_snapshot(saved, f"edge:{tmp_path}/target", None, silent)
    assert not (tmp_path / "target").exists()


def part_of(
    manifest: dict[str, dict[str, dict[str, list[dict[str, object]]]]],
) -> dict[str, object]:
    return manifest["collections"][NAMES[1]]["parts"][0]


def test_a_snapshot_that_was_not_finished_is_none(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_snapshot(source, NAMES, tmp_path / "saved", silent)
    with pytest.raises(FileNotFoundError, match="no snapshot, or one that was not finished"):
        restore_snapshot(tmp_path / "saved", f"edge:{tmp_path}/target", None, silent)
    write_snapshot(source, NAMES, tmp_path / "saved", silent)  # into the same folder
    restore_snapshot(tmp_path / "saved", f"edge:{tmp_path}/target", None, silent)


def test_a_snapshot_is_never_overwritten(saved: Path, source: str) -> None:
    before = (saved / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="has a snapshot already"):
        write_snapshot(source, NAMES, saved, silent)
    assert (saved / "manifest.json").read_bytes() == before


def test_another_native_and_a_missing_collection_are_refused(saved: Path, tmp_path: Path) -> None:
    target = f"edge:{tmp_path}/target"
    with pytest.raises(LookupError, match="has no collection others"):
        restore_snapshot(saved, target, ["others"], silent)
    CaptionIndex.open(target, OTHER, NAMES[1]).close()
    with pytest.raises(ValueError, match="holds vectors of native 'ViT-B-32/openai'"):
        restore_snapshot(saved, target, None, silent)
    assert not points(target, space=OTHER)
