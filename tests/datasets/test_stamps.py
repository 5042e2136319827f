"""The caption table of Tux Paint's stamps, from a package laid out as Debian's."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from mla_ray.cli import app
from mla_ray.data.table_reader import read_captions
from mla_ray.datasets import stamps
from mla_ray.datasets.debian import Unavailable
from mla_ray.datasets.stamps import (
    MARGIN,
    PACKAGE,
    SIZE,
    fetch,
    table,
    write_table,
)
from mla_ray.runtime.progress import Progress

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is missing")
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="144pt">'
    '<rect width="100%" height="50%" fill="#00f"/></svg>'
)


def png(colour: str, size: tuple[int, int] = (40, 20), margin: int = 10) -> bytes:
    """A rectangle of one colour, with nothing around it."""
    picture = Image.new("RGBA", (size[0] + 2 * margin, size[1] + 2 * margin))
    picture.paste(colour, (margin, margin, margin + size[0], margin + size[1]))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def text(*lines: str) -> bytes:
    return "\n".join([*lines, ""]).encode()


FILES: Mapping[str, bytes] = {
    "animals/frog-1.png": png("red"),
    "animals/frog-1.txt": text(
        "A frog.", "cs.utf8=Žába.", "ja.utf8=カエル", "zh_CN.utf8=青蛙。", "pt_BR.utf8=Um  sapo."
    ),
    "animals/frog.png": png("green"),
    "animals/frog.txt": text("A frog.", "cs.utf8=Žába."),
    "animals/frog_desc.ogg": b"sound",
    "animals/frog_mirror.png": png("green"),
    "plants/hibiscus.svg": SVG.encode(),
    "plants/hibiscus.txt": text(
        "Hibiscus", "cs.utf8=Ibišek!", "de.utf8=Hibiscus", "en_GB.utf8=Hibiscus", "ja.utf8="
    ),
    "symbols/a.png": png("black"),
    "symbols/a.svg": SVG.encode(),
    "symbols/a.txt": text(
        "The letter a.", "hi.utf8=अक्षर a|", "ar.utf8=.حرف", "sr@latin.utf8=Slovo a"
    ),
    "symbols/b.png": png("white"),
    "symbols/b.txt": text("A flash.", "cs.utf8=Blesk."),
    "symbols/big.png": png("blue"),
    "symbols/big.txt": text("The letter A.", "cs.utf8=Písmeno A."),
    "symbols/without.txt": text("A gift.", "cs.utf8=Dárek."),
}


def build(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: {PACKAGE}\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: test\n"
    )
    for name, content in files.items():
        path = root / "usr" / "share" / "tuxpaint" / "stamps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    deb = folder / f"{PACKAGE}_1_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", root, deb], check=True, capture_output=True
    )
    return deb


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stamps"))


def captions(made: pa.Table) -> set[tuple[str, str, str]]:
    return {(row["image_id"], row["language"], row["caption"]) for row in made.to_pylist()}


def image(made: pa.Table, image_id: str) -> Image.Image:
    (content,) = {row["image"] for row in made.to_pylist() if row["image_id"] == image_id}
    return Image.open(BytesIO(content))


@needs_dpkg
def test_a_description_is_there_once_in_each_language_that_has_it(deb: Path) -> None:
    made = table(deb, ["en", "cs", "ja"])
    assert captions(made) == {
        ("animals/frog-1", "en", "A frog"),
        ("animals/frog-1", "cs", "Žába"),
        ("animals/frog-1", "ja", "カエル"),
        ("plants/hibiscus", "en", "Hibiscus"),
        ("plants/hibiscus", "cs", "Ibišek!"),
        ("symbols/a", "en", "The letter a"),
    }
    assert set(made["split"].to_pylist()) == {"test"}


@needs_dpkg
def test_languages_are_bcp_47_and_full_stops_go_in_every_script(deb: Path) -> None:
    assert captions(table(deb, ["zh", "pt-BR", "hi", "ar", "sr-Latn"])) == {
        ("animals/frog-1", "zh", "青蛙"),
        ("animals/frog-1", "pt-BR", "Um sapo"),
        ("symbols/a", "hi", "अक्षर a"),
        ("symbols/a", "ar", "حرف"),
        ("symbols/a", "sr-Latn", "Slovo a"),
    }


@needs_dpkg
def test_a_copy_of_the_english_is_no_translation(deb: Path) -> None:
    assert captions(table(deb, ["en-GB"])) == {("plants/hibiscus", "en-GB", "Hibiscus")}
    with pytest.raises(ValueError, match="described in 'de'; known: ar, cs, en, en-GB, hi, "):
        table(deb, ["en", "de"])


@needs_dpkg
def test_pictures_are_centred_on_white_in_their_proportions(deb: Path) -> None:
    made = table(deb, ["en"])
    inner = SIZE - 2 * MARGIN
    wide, tall = image(made, "animals/frog-1"), image(made, "plants/hibiscus")
    for picture in (wide, tall):
        assert (picture.size, picture.mode) == ((SIZE, SIZE), "RGB")
        assert picture.getpixel((0, 0)) == (255, 255, 255)
    top = (SIZE - inner // 2) // 2
    red = (255, 0, 0)
    assert wide.getpixel((MARGIN, top)) == wide.getpixel((SIZE // 2, SIZE // 2)) == red
    assert wide.getpixel((SIZE - MARGIN - 1, top + inner // 2 - 1)) == red
    assert wide.getpixel((SIZE // 2, top - 1)) == (255, 255, 255)
    assert tall.getpixel((MARGIN, MARGIN)) == (0, 0, 255)  # the empty lower half is cut off
    assert tall.getpixel((SIZE - MARGIN - 1, SIZE - MARGIN - 1)) == (0, 0, 255)
    assert image(made, "symbols/a").getpixel((SIZE // 2, SIZE // 2)) == (0, 0, 0)  # of both the PNG


@needs_dpkg
def test_the_table_is_one_that_commands_read(deb: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = tmp_path / "new" / "captions.parquet"
    made = write_table(deb, ["en", "cs"], path, seen.append)
    assert captions(read_captions(path).table) == captions(made)
    assert seen[-1].done == 3


@needs_dpkg
def test_the_command_prints_what_is_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "stamps").mkdir()
    build(tmp_path / "stamps")
    out = tmp_path / "stamps.parquet"
    command = ["data", "stamps", "--languages", "cs,ja", "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--data", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"captions": str(out), "rows": {"cs": 2, "ja": 1}}
    assert out.exists()


@needs_dpkg
def test_packages_without_stamps_and_broken_ones_are_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="holds no stamps; delete it"):
        table(build(tmp_path, {"readme": b""}), ["en"])
    deb = tmp_path / f"{PACKAGE}_2_all.deb"
    deb.write_bytes(b"half a download " * 100)
    with pytest.raises(Unavailable, match=r"_2_all.deb can not be read \(dpkg-deb: .*; delete it"):
        table(deb, ["en"])


@needs_dpkg
def test_huge_files_are_refused_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "root" / "usr" / "share" / "tuxpaint" / "stamps"
    folder.mkdir(parents=True)
    (folder / "link.txt").symlink_to("/etc/passwd")
    deb = build(tmp_path)
    assert all(name[0] != "link" for name in captions(table(deb, ["en"])))
    monkeypatch.setattr(stamps, "MAX_BYTES", 3)
    with pytest.raises(ValueError, match="bytes; refused"):
        table(deb, ["en"])


def test_a_package_in_the_folder_is_used_again(tmp_path: Path) -> None:
    deb = tmp_path / f"{PACKAGE}_2022.06.04-1_all.deb"
    deb.touch()
    assert fetch(tmp_path) == deb


def test_a_machine_without_debians_tools_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get is not on PATH"):
        fetch(tmp_path / "stamps")
    assert list((tmp_path / "stamps").iterdir()) == []
    with pytest.raises(Unavailable, match="dpkg-deb is not on PATH"):
        table(tmp_path / "some.deb", ["en"])
