"""Promises of data.table_shards: files of one name are one row, images as they were."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import read_captions, read_pairs
from tests.support.user_tables import refusal


def shard(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def of_img2dataset(pngs: list[bytes], first: int = 0) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number, png in enumerate(pngs, start=first):
        key = f"{number:09}"
        about = {"url": "http://x/y.png", "caption": f"Hund {number}", "key": key, "width": 8}
        files[f"{key}.png"] = png
        files[f"{key}.json"] = json.dumps(about).encode()
        files[f"{key}.txt"] = f"Hund {number}".encode()
    return files


@pytest.mark.parametrize(("name", "mode"), [("0.tar", "w"), ("0.tar.gz", "w:gz")])
def test_a_shard_is_a_table(tmp_path: Path, pngs: list[bytes], name: str, mode: str) -> None:
    path = shard(tmp_path / name, of_img2dataset(pngs[:3]), mode)
    read = read_captions(path, language="de").table
    assert read["image_id"].to_pylist() == ["000000000", "000000001", "000000002"]
    assert read["caption"].to_pylist() == ["Hund 0", "Hund 1", "Hund 2"]
    assert read["image"].to_pylist() == pngs[:3]
    assert read["language"].to_pylist() == ["de"] * 3


def test_a_folder_of_shards_is_one_table_though_parquet_files_lie_beside(
    tmp_path: Path, pngs: list[bytes]
) -> None:
    for number in range(2):
        files = of_img2dataset(pngs[2 * number : 2 * number + 2], first=2 * number)
        shard(tmp_path / f"{number:05}.tar", files)
        pq.write_table(pa.table({"url": ["x"], "key": ["y"]}), tmp_path / f"{number:05}.parquet")
        (tmp_path / f"{number:05}_stats.json").write_text("{}")
    read = read_captions(tmp_path, language="de").table
    assert read["caption"].to_pylist() == [f"Hund {n}" for n in range(4)]
    assert read["image"].to_pylist() == pngs[:4]


def test_json_may_name_image_language_and_split(tmp_path: Path, pngs: list[bytes]) -> None:
    about = {"image_id": 7, "caption": "Hund", "language": "de", "split": "train"}
    files = {"./a/x.png": pngs[0], "./a/x.json": json.dumps(about).encode()}
    (row,) = read_captions(shard(tmp_path / "0.tar", files), split="train").table.to_pylist()
    assert row == {"image": pngs[0]} | about | {"image_id": "7"}


def test_rows_that_are_none_are_refused_by_their_number(tmp_path: Path, pngs: list[bytes]) -> None:
    files = of_img2dataset(pngs[:1]) | {
        "1.txt": b"Hund",  # the image could not be fetched
        "2.png": pngs[1],
        "3.png": pngs[2],
        "3.json": b"{",
        "4.png": pngs[3],
        "4.txt": b"\xff",
    }
    path = shard(tmp_path / "0.tar", files)
    problems = refusal(read_captions, path, language="de")
    for problem, start in zip(
        problems,
        [
            "row 2: 'image' is empty",
            "row 3: 'caption' is empty",
            "row 4: json cannot be read (",
            "row 5: txt cannot be read (",
        ],
        strict=True,
    ):
        assert problem.startswith(f"0.tar {start}")
        assert problem.endswith("drop the row or pass --skip-invalid")


def test_what_is_no_shard_is_refused(tmp_path: Path, pngs: list[bytes]) -> None:
    path = shard(tmp_path / "0.tar", of_img2dataset(pngs[:3]))
    with pytest.raises(InvalidTable, match="no column 'source'"):
        read_pairs(path)
    path.write_bytes(path.read_bytes()[:1700])
    with pytest.raises(InvalidTable, match=r"0\.tar: not a tar file, or truncated"):
        read_captions(path, language="de")
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InvalidTable, match=r"0\.tar: not a tar file, or truncated"):
        read_captions(path, language="de")
