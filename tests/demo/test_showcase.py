"""Promises of what `mla serve` shows when it is given no collection: the emoji, searchable."""

import json
from pathlib import Path

import numpy as np
import pytest

from mla_ray.data.feature_store import encode_images
from mla_ray.datasets.emoji import SIZE, TEST_STYLE, Emoji
from mla_ray.demo import demo, showcase
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.ingest import space_of
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from tests.support.emoji import only_a_few
from tests.support.natives import MakePack


@pytest.fixture
def emoji(monkeypatch: pytest.MonkeyPatch, native_folder: Path, tmp_path: Path) -> Emoji:
    only_a_few(monkeypatch)
    monkeypatch.setattr(demo, "NATIVE", str(native_folder))
    return Emoji(tmp_path / "data" / "emoji")


def test_every_emoji_is_found_by_its_name_and_has_a_picture(
    emoji: Emoji, native: Native, make_pack: MakePack, tmp_path: Path
) -> None:
    pack = make_pack("de")
    pack.save(tmp_path / "packs" / "de")
    shown = showcase.prepare(tmp_path, tmp_path / "data")
    keys = [concept.key for concept in emoji.concepts if not concept.skin_tone]
    assert len(keys) < len(emoji.concepts), "the variants are left out"
    ids = [f"{TEST_STYLE}/{key}" for key in keys]
    image = encode_images(native, [emoji.png(TEST_STYLE, key, SIZE) for key in keys])
    name = emoji.labels("de")[keys[0]].name
    text = pack.encode_text([name])[0].numpy()
    cosine = image @ text / np.linalg.norm(image, axis=1) / np.linalg.norm(text)
    with CaptionIndex.open(shown.index, space_of(native), IMAGES, create=False) as index:
        hits = index.search(text, len(keys))
    assert {hit.entry.image_id for hit in hits} == set(ids), "each drawing once"
    found = {hit.entry.image_id: hit.score for hit in hits}
    assert [found[one] for one in ids] == pytest.approx(list(cosine), abs=1e-5)
    named = {
        language: sum(key in emoji.labels(language) for key in keys) for language in ("en", "de")
    }
    with CaptionIndex.open(shown.index, space_of(native), CAPTIONS, create=False) as index:
        assert index.languages() == named
    pictures = PictureStore(shown.pictures)
    assert all((pictures.get(one, TEST_STYLE) or b"").startswith(b"RIFF") for one in ids)


def test_it_is_made_anew_only_if_packs_have_changed(
    emoji: Emoji, make_pack: MakePack, tmp_path: Path
) -> None:
    make_pack("de").save(tmp_path / "packs" / "de")
    showcase.prepare(tmp_path, tmp_path / "data")
    record = tmp_path / "showcase" / "made.json"
    made = record.stat().st_mtime_ns
    assert list(json.loads(record.read_text())) == ["de"]
    showcase.prepare(tmp_path, tmp_path / "data")
    assert record.stat().st_mtime_ns == made
    make_pack("hi").save(tmp_path / "packs" / "hi")
    showcase.prepare(tmp_path, tmp_path / "data")
    assert list(json.loads(record.read_text())) == ["de", "hi"]


def test_without_a_pack_the_demo_is_run_first(
    emoji: Emoji, make_pack: MakePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_demo(language: str, run: Path, data: Path) -> None:
        asked.append(language)
        make_pack(language, texts=["ein Hund"]).save(run / "packs" / language)

    asked: list[str] = []
    monkeypatch.setattr(demo, "run_demo", run_demo)
    shown = showcase.prepare(tmp_path, tmp_path / "data", "de")
    assert asked == ["de"]
    assert shown.packs == str(tmp_path / "packs")
    assert Path(shown.index.removeprefix("edge:")).is_dir()
