"""Promises of data.table_images: images are had from anywhere, judged once, and told apart."""

import unicodedata
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from upath import UPath

from mla_ray.data.table_images import ImageReader, find_image, image_fault, read_image
from mla_ray.runtime import storage
from mla_ray.runtime.storage import as_path, write_bytes
from tests.support.s3 import relayed, s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


def png(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_in_the_cell_beside_the_table_or_at_a_url(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(b"red")
    folder = UPath(tmp_path)
    assert read_image(b"blue", folder) == b"blue"
    assert read_image("a b.png", folder) == b"red"
    assert read_image(str(tmp_path / "a b.png"), UPath("/elsewhere")) == b"red"
    assert read_image((tmp_path / "a b.png").as_uri(), UPath("/elsewhere")) == b"red"
    write_bytes(as_path("memory://test-table-images/a.png"), b"green")
    assert read_image("memory://test-table-images/a.png", folder) == b"green"
    assert read_image("a.png", as_path("memory://test-table-images")) == b"green"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for uri in ("none.png", ".", "x" * 200):
        with pytest.raises(ValueError, match=f"is missing: there is no {tmp_path}"):
            find_image(uri, UPath(tmp_path))


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_a_file_is_had_by_a_name_that_is_the_same_to_unicode(
    on_disk: str, in_table: str, tmp_path: Path
) -> None:
    """A Mac and its zips decompose names, other machines do not; folders have names too."""
    name = "Obst und Gemüse/Käse.jpg"
    file = tmp_path / unicodedata.normalize(on_disk, name)
    file.parent.mkdir()
    file.write_bytes(b"cheese")
    asked = unicodedata.normalize(in_table, name)
    for uri in (asked, str(tmp_path / asked), (tmp_path / asked).as_uri()):
        assert read_image(uri, UPath(tmp_path)) == b"cheese"
    url = f"memory://test-table-images-{on_disk}-{in_table}"
    write_bytes(as_path(f"{url}/{unicodedata.normalize(on_disk, name)}"), b"cheese")
    assert read_image(asked, as_path(url)) == b"cheese"


def test_the_name_as_it_is_goes_before_one_that_is_the_same_to_unicode(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "Käse.jpg")).write_bytes(form.encode())
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "Käse.jpg")
        assert read_image(name, UPath(tmp_path)) == form.encode()


def test_a_name_that_is_composed_in_part_is_had_too(tmp_path: Path) -> None:
    """As Windows writes Vietnamese: the vowel composed, its tone apart."""
    (tmp_path / "ti\u00ea\u0301ng.jpg").write_bytes(b"sound")
    for name in ("ti\u1ebfng.jpg", "tie\u0302\u0301ng.jpg"):
        assert read_image(name, UPath(tmp_path)) == b"sound"


def test_a_name_that_is_not_there_shows_its_code_points(tmp_path: Path) -> None:
    """Cyrillic `а` looks like Latin `a` and is another letter."""
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ValueError, match=r"is missing: .*; in code points: .*/c<U\+0430>t.jpg$"):
        find_image("c\u0430t.jpg", UPath(tmp_path))


def test_an_image_in_a_bucket_that_is_away_for_a_moment_is_waited_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "PAUSES", (0.5,) * 10)
    with relayed() as relay:
        write_bytes(as_path(f"{bucket}/images/a.png"), b"red")
        with relay.away(1.5):
            assert read_image("a.png", as_path(f"{bucket}/images")) == b"red"


def test_an_id_stands_for_one_image_wherever_its_rows_are(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    csv, parquet = UPath(tmp_path / "a.csv"), UPath(tmp_path / "b.parquet")
    reader = ImageReader()
    assert reader.read("1", "red.png", csv, 2) == png("red")
    assert reader.read("1", png("red"), parquet, 1) == png("red")
    with pytest.raises(ValueError, match=r"image_id '1' has another image in line 2; give each"):
        reader.read("1", png("blue"), csv, 3)
    with pytest.raises(ValueError, match=rf"another image in {tmp_path}/a.csv line 2; give each"):
        reader.read("1", png("blue"), parquet, 4)
    assert reader.read("2", png("blue"), parquet, 5) == png("blue")


def test_a_file_is_read_once_where_files_are_kept(tmp_path: Path) -> None:
    file, table = tmp_path / "a.png", UPath(tmp_path / "t.csv")
    for keep_files, again in ((True, png("red")), (False, png("blue"))):
        file.write_bytes(png("red"))
        reader = ImageReader(keep_files=keep_files)
        reader.read("1", "a.png", table, 2)
        file.write_bytes(png("blue"))
        if keep_files:
            assert reader.read("1", "a.png", table, 3) == again
        else:
            with pytest.raises(ValueError, match="has another image"):
                reader.read("1", "a.png", table, 3)


def test_a_broken_image_is_named_by_its_path_or_its_id(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    table = UPath(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"^image 'a.png' is none of PNG, JPEG"):
        ImageReader().read("1", "a.png", table, 2)
    with pytest.raises(ValueError, match=r"^image of '1' is none of PNG, JPEG"):
        ImageReader().read("1", b"no image", table, 2)
    assert ImageReader(decode=False).read("1", b"no image", table, 2) == b"no image"
    assert image_fault("1", None, "is lost") == "image of '1' is lost"
