"""Promises of mla_ray.index.picture_store: copies are small and hold pixels only."""

import hashlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from mla_ray.data.images import STRANGER, decode_image
from mla_ray.index.picture_store import SIDE, PictureStore


def test_a_kept_picture_is_small_and_holds_nothing_else(tmp_path: Path) -> None:
    image = Image.new("RGB", (1000, 500), "blue")
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    store = PictureStore(str(tmp_path))
    sent = BytesIO()
    image.save(sent, "JPEG", exif=exif.tobytes())
    store.put("a/b", "set", decode_image(sent.getvalue(), STRANGER))
    data = store.get("a/b", "set")
    assert data is not None
    assert b"where I live" not in data
    kept = Image.open(BytesIO(data))
    assert kept.size == (SIDE, SIDE // 2)
    assert kept.convert("RGB").getpixel((9, 9)) == pytest.approx((0, 0, 255), abs=8)


def test_a_kept_picture_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the first row is the right side
    stored = Image.new("RGB", (60, 30), "blue")
    stored.paste("red", (0, 0, 60, 10))
    sent = BytesIO()
    stored.save(sent, "PNG", exif=exif.tobytes())
    store = PictureStore(str(tmp_path))
    store.put("a", "set", decode_image(sent.getvalue(), STRANGER))
    kept = Image.open(BytesIO(store.get("a", "set") or b"")).convert("RGB")
    assert kept.size == (30, 60)
    assert kept.getpixel((27, 50)) == pytest.approx((255, 0, 0), abs=8)
    assert kept.getpixel((3, 3)) == pytest.approx((0, 0, 255), abs=8)


def test_no_id_reaches_the_file_system(tmp_path: Path) -> None:
    store = PictureStore(str(tmp_path / "pictures"))
    (tmp_path / "secret").write_text("secret")
    for id_ in ("../secret", "/etc/passwd", "..", "\0", "a" * 5000):
        for identity in ((id_, "set"), ("set", id_)):
            assert store.get(*identity) is None
            assert store.get_former(id_) is None
            store.put(*identity, Image.new("RGB", (2, 2)))
            assert store.get(*identity) is not None
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "secret"}
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_picture_put_again_is_replaced(tmp_path: Path) -> None:
    store = PictureStore(str(tmp_path))
    store.put("a", "set", Image.new("RGB", (2, 2)))
    store.put("a", "set", Image.new("RGB", (9, 9)))
    assert size_of(store.get("a", "set")) == (9, 9)
    assert files_in(tmp_path) == 1


def test_each_source_has_a_picture_of_its_own(tmp_path: Path) -> None:
    store = PictureStore(str(tmp_path))
    identities = [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"), ("a", "a")]
    for side, identity in enumerate(identities, 1):
        store.put(*identity, Image.new("RGB", (side, side)))
    for side, identity in enumerate(identities, 1):
        assert size_of(store.get(*identity)) == (side, side)
    assert store.remove("a", "b")
    assert not store.remove("a", "b")
    assert [store.get(*identity) is None for identity in identities] == [True, *[False] * 4]
    assert files_in(tmp_path) == 4


def test_a_picture_of_0_1_0_is_found_and_removed_by_its_id(tmp_path: Path) -> None:
    name = hashlib.sha256(b"set/1").hexdigest()
    (tmp_path / name[:2]).mkdir()
    (tmp_path / name[:2] / f"{name}.webp").write_bytes(b"RIFF")
    store = PictureStore(str(tmp_path))
    assert store.get_former("set/1") == b"RIFF"
    assert store.get("set/1", "set") is None
    store.put("set/1", "set", Image.new("RGB", (2, 2)))
    assert store.get_former("set/1") == b"RIFF"
    assert store.remove_former("set/1")
    assert not store.remove_former("set/1")
    assert store.get("set/1", "set") is not None


def size_of(webp: bytes | None) -> tuple[int, int]:
    return Image.open(BytesIO(webp or b"")).size


def files_in(folder: Path) -> int:
    return len([path for path in folder.rglob("*") if path.is_file()])
