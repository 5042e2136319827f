"""Promises of mla_ray.index.edge: a folder stays about as large as what is in it."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import qdrant_edge

from mla_ray.index import edge
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from tests.support import forks

MB = 1e6
SPACE = VectorSpace("emoji-clip", "0123456789abcdef", 512)
ENTRIES = [Entry(f"c{i:03}", f"i{i}", "de", f"caption {i}", "a") for i in range(256)]


def vectors(seed: int, n: int = 256) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, SPACE.dim)).astype(np.float32)


def on_disk(folder: Path) -> int:
    """Bytes; 256 points, which are 0.5 MB of vectors, are 1.5 MB, half of it the log."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def version_of(folder: Path) -> Path:
    return folder / "captions" / (folder / "captions" / "current").read_text()


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    """So a table that is indexed every night adds nothing to the disk."""
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
        index.upsert(ENTRIES, vectors(0))
        log = version_of(tmp_path) / "wal"
        once = on_disk(log)
        for scale in (1, 3, 1e-3):  # a length is no part of what is stored
            assert index.upsert(ENTRIES, vectors(0) * np.float32(scale)) == 256
        assert on_disk(log) == once
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
        index.upsert(ENTRIES, vectors(0))
        assert on_disk(log) <= once + 4096  # the file that says what of it is flushed
        nudged = vectors(0)
        nudged[0, 0] += 0.01  # the score changes in its fourth decimal
        index.upsert(ENTRIES, nudged)
        assert index.search(nudged[0], 1)[0].score == 1.0
        mended = replace(ENTRIES[5], caption="mended")
        index.upsert([mended], nudged[5:6])  # the same vector, another payload
        assert mended in set(index.entries())


def test_of_an_entry_twice_in_one_call_the_last_stays(tmp_path: Path) -> None:
    """Also if the last is what is there already."""
    first, second = vectors(1, 2)
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
        index.upsert(ENTRIES[:1], second[None])
        index.upsert([ENTRIES[0], ENTRIES[0]], np.stack([first, second]))
        assert index.count() == 1
        assert index.search(second, 1)[0].score == 1.0


def test_a_folder_written_again_and_again_stays_within_its_bound(tmp_path: Path) -> None:
    """Of docs/indexing.md: twice as much as written once, and 32 MB; also while it is written."""
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
        for seed in range(45):  # 33 MB of log
            index.upsert(ENTRIES, vectors(seed))
            assert on_disk(tmp_path) < 2 * 1.5 * MB + 32 * MB
        index.optimize()
        assert on_disk(tmp_path) < 2 * 1.5 * MB + 16 * MB
        assert index.search(vectors(44)[7], 1)[0].entry == ENTRIES[7]


def test_what_left_the_table_gives_back_its_space(tmp_path: Path) -> None:
    sizes = []
    for night in range(4):
        entries = [
            Entry(f"c{i}", f"i{i}", "de", "a caption", "a")
            for i in range(400 * night, 400 * night + 1200)
        ]
        with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
            index.upsert(entries, vectors(night, 1200))
            index.delete(list(set(index.entries()) - set(entries)))
            index.optimize()
            assert index.count() == 1200
            sizes.append(on_disk(version_of(tmp_path) / "segments"))
    assert max(sizes) < 2 * sizes[0] + 2 * MB  # 1,200 were removed


def folder_of_0_1_0(folder: Path) -> None:
    """256 points, and a log of 22 MB, as of 30 nights."""
    CaptionIndex.open(f"edge:{folder}", SPACE).close()
    with CaptionIndex.open(f"edge:{folder}/scratch", SPACE) as scratch:
        scratch.upsert(ENTRIES, vectors(0))
        shard = scratch._backend.shard  # type: ignore[attr-defined]
        points, _ = shard.scroll(
            qdrant_edge.ScrollRequest(limit=256, with_payload=True, with_vector=["joint"])
        )
    version = version_of(folder)
    subprocess.run(["rm", "-r", str(version)], check=True)
    params = qdrant_edge.EdgeVectorParams(size=SPACE.dim, distance=qdrant_edge.Distance.Cosine)
    old = qdrant_edge.EdgeShard.create(
        str(version), qdrant_edge.EdgeConfig(vectors={"joint": params})
    )
    rows = [qdrant_edge.Point(point.id, point.vector, point.payload) for point in points]
    for _ in range(30):
        old.update(qdrant_edge.UpdateOperation.upsert_points(rows))
    old.close()


def test_the_long_log_of_a_folder_of_0_1_0_goes_when_it_is_optimized(tmp_path: Path) -> None:
    folder_of_0_1_0(tmp_path)
    assert on_disk(tmp_path / "captions") > 20 * MB
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
        before = index.search(vectors(1)[0], 256)
        index.optimize()
        assert on_disk(tmp_path / "captions") < 4 * MB
        assert index.search(vectors(1)[0], 256) == before
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
        assert index.search(vectors(1)[0], 256) == before


def optimize_until(name: str, folder: str) -> None:
    """Ends where `edge` calls that function."""
    setattr(edge, name, lambda *_: os._exit(9))
    CaptionIndex.open(f"edge:{folder}", SPACE).optimize()


@pytest.mark.slow
def test_a_kill_while_a_log_is_shortened_loses_nothing(tmp_path: Path) -> None:
    folder_of_0_1_0(tmp_path)
    for name in ("check_kept", "_write"):  # the next version is full; it is to be named
        assert forks.exit_code(optimize_until, name, str(tmp_path)) == 9
        with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
            assert set(index.entries()) == set(ENTRIES)
        folders = [path for path in (tmp_path / "captions").iterdir() if path.is_dir()]
        assert folders == [version_of(tmp_path)]  # what the kill left is gone
