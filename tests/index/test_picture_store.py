"""Promises of mla_ray.index.picture_store: copies are small and hold pixels only."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mla_ray.data.images import open_image
from mla_ray.index.picture_store import SIDE, PictureStore


def test_a_kept_picture_is_small_and_holds_nothing_else(tmp_path: Path) -> None:
    image = Image.new("RGB", (1000, 500), "blue")
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    store = PictureStore(str(tmp_path))
    sent = BytesIO()
    image.save(sent, "JPEG", exif=exif.tobytes())
    store.put("a/b", open_image(sent.getvalue()))
    data = store.get("a/b")
    assert data is not None
    assert b"where I live" not in data
    kept = Image.open(BytesIO(data))
    assert kept.size == (SIDE, SIDE // 2)
    assert kept.convert("RGB").getpixel((9, 9)) == pytest.approx((0, 0, 255), abs=8)


def test_no_id_reaches_the_file_system(tmp_path: Path) -> None:
    store = PictureStore(str(tmp_path / "pictures"))
    (tmp_path / "secret").write_text("secret")
    for id_ in ("../secret", "/etc/passwd", "..", "\0", "a" * 5000):
        assert store.get(id_) is None
        store.put(id_, Image.new("RGB", (2, 2)))
        assert store.get(id_) is not None
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "secret"}
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_picture_put_again_is_replaced(tmp_path: Path) -> None:
    store = PictureStore(str(tmp_path))
    store.put("a", Image.new("RGB", (2, 2)))
    store.put("a", Image.new("RGB", (9, 9)))
    assert Image.open(BytesIO(store.get("a") or b"")).size == (9, 9)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
