"""The tables of animated emoji, from an archive like those on npm; names are Unicode CLDR's."""

import hashlib
import os
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.data.table_reader import read_captions, read_pairs
from mla_ray.datasets import animated
from mla_ray.datasets.animated import tables
from mla_ray.datasets.emoji import Concept, Emoji
from mla_ray.datasets.npm import Package
from mla_ray.runtime.progress import Progress


def webp(seed: int, frames: int = 2) -> bytes:
    """One that moves, unlike the others; of one frame it does not."""
    images = [Image.new("RGB", (8, 8), (seed, number, 0)) for number in range(frames)]
    buffer = BytesIO()
    images[0].save(buffer, "WEBP", save_all=True, append_images=images[1:], lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def emoji() -> Emoji:
    return Emoji(Path(os.environ.get("MLA_DATA", "data")) / "emoji")


@pytest.fixture
def known(emoji: Emoji) -> tuple[Concept, Concept]:
    """A concept of each split."""
    return tuple(next(c for c in emoji.concepts if c.split == s) for s in ("train", "test"))  # type: ignore[return-value]


@pytest.fixture
def data(
    emoji: Emoji, known: tuple[Concept, Concept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A data folder with the real emoji and one package, of which two files are wanted."""
    train, test = known
    resting = next(c for c in emoji.concepts if c not in known)
    first, _, rest = train.key.partition("-")
    contents = {
        "-".join(filter(None, [first, "fe0f", rest])): webp(1),
        test.key: webp(2),
        resting.key: webp(3, frames=1),
        "1ffff": webp(4),
        "../../evil": webp(5),
    }
    folder = tmp_path / "data"
    (folder / "animated").mkdir(parents=True)
    (folder / "emoji").symlink_to(emoji.folder.resolve(), target_is_directory=True)
    package = Package("@someone/animations", "1.0.0", "")
    archive = folder / "animated" / package.file_name
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/assets/{name}.webp")
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    package = Package(package.name, package.version, sha256)
    monkeypatch.setattr(animated, "PACKAGES", {1: package})
    return folder


def test_the_split_is_that_of_the_drawings_and_the_names_are_translated(
    emoji: Emoji, known: tuple[Concept, Concept], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seen: list[Progress] = []
    paths = tables(data, ["en", "de", "sw"], out, [1], seen.append)
    assert set(paths) == {"captions", "de", "sw"}
    train, test = known
    read = read_captions(paths["captions"], check_images=False).table
    rows = {(r["image_id"], r["language"], r["caption"], r["split"]) for r in read.to_pylist()}
    expected = set()
    for language in ("en", "de", "sw"):
        labels = emoji.labels(language)
        texts = [(train, text) for text in labels[train.key].captions]
        for concept, text in [*texts, (test, labels[test.key].name)]:
            expected.add((f"fluent-animated/{concept.key}", language, text, concept.split))
    assert rows == expected
    contents = {row["image_id"]: row["image"] for row in read.to_pylist()}
    assert contents == {
        f"fluent-animated/{train.key}": webp(1),
        f"fluent-animated/{test.key}": webp(2),
    }
    assert seen[-1].done == 2
    assert read_pairs(paths["de"], language="de").table.num_rows > 3000


def test_names_in_an_archive_lead_nowhere_and_what_is_there_stays(
    known: tuple[Concept, Concept], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    paths = tables(data, ["en"], out)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"captions.parquet", *(f"animations/{c.key}.webp" for c in known)}
    kept = out / "animations" / f"{known[0].key}.webp"
    kept.write_bytes(b"mine")
    before = pq.read_table(paths["captions"])
    tables(data, ["en"], out)
    assert kept.read_bytes() == b"mine"
    assert pq.read_table(paths["captions"]).equals(before)


def test_what_can_not_be_made_is_said_before_a_download(data: Path, tmp_path: Path) -> None:
    (data / "animated").rename(tmp_path / "elsewhere")
    with pytest.raises(KeyError, match="no emoji names for 'tlh'"):
        tables(data, ["en", "tlh"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"no part 7; there are \[1\]"):
        tables(data, ["en"], tmp_path / "out", [7])
    assert not (tmp_path / "out").exists()


def test_an_archive_of_huge_files_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(animated, "MAX_BYTES", 3)
    with pytest.raises(ValueError, match="bytes; refused"):
        tables(data, ["en"], tmp_path / "out")
