"""The emoji data set as it is fetched from npm (once, into data/ or $MLA_DATA)."""

import os
from collections import Counter
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.datasets import emoji as module
from mla_ray.datasets import npm
from mla_ray.datasets.emoji import Emoji


@pytest.fixture(scope="session")
def emoji() -> Emoji:
    return Emoji(Path(os.environ.get("MLA_DATA", "data")) / "emoji")


def test_the_split_is_by_concept_and_as_large_as_published(emoji: Emoji) -> None:
    splits = Counter(concept.split for concept in emoji.concepts)
    assert splits == {"train": 3189, "test": 493}
    assert len({concept.key for concept in emoji.concepts}) == 3682


def test_the_split_is_the_same_every_time(emoji: Emoji) -> None:
    assert [concept.key for concept in emoji.concepts[:2]] == ["1f7e0", "1f9d1-1f3fe-200d-1f3a4"]


def test_no_concept_changed_sides_but_those_that_share_with_a_training_concept(
    emoji: Emoji,
) -> None:
    keys = [concept.key for concept in emoji.concepts]
    by_hash = sorted(keys, key=lambda k: sha256(f"mla-ray emoji split 0 {k}".encode()).digest())
    assert keys == by_hash, "the native was trained in this order"
    before = set(by_hash[:552])  # 15 %
    test = {concept.key for concept in emoji.concepts if concept.split == "test"}
    assert test < before
    sharing = {key for line in module.ALIKE.read_text().splitlines() for key in line.split()}
    assert before - test <= sharing


def test_concepts_that_share_a_drawing_are_on_one_side(emoji: Emoji) -> None:
    """By the drawings' source, of all styles; some that differ there give the same pixels."""
    split = {concept.key: concept.split for concept in emoji.concepts}
    group_of = {
        key: number
        for number, line in enumerate(module.ALIKE.read_text().splitlines())
        for key in line.split()
    }
    for drawings in emoji._drawings.values():
        sharing: dict[str, set[str]] = {}
        for key in split:
            if key in drawings:
                sharing.setdefault(drawings[key], set()).add(key)
        for keys in sharing.values():
            assert len({split[key] for key in keys}) == 1, keys
            assert len(keys) == 1 or len({group_of[key] for key in keys}) == 1, keys
    men, people = "1f6b6-1f3fd-200d-2642", "1f6b6-1f3fd"  # walking; other code, same pixels
    assert np.array_equal(*(emoji.pixels("openmoji", key, 64) for key in (men, people)))
    assert split[men] == split[people] == "train"


@pytest.mark.slow
def test_the_groups_kept_are_those_of_the_pixels(emoji: Emoji) -> None:
    groups = [line.split() for line in module.ALIKE.read_text().splitlines()]
    assert module.drawn_alike(emoji) == groups
    split = {concept.key: concept.split for concept in emoji.concepts}
    assert all(len({split[key] for key in group}) == 1 for group in groups)


def test_no_two_test_images_are_alike(emoji: Emoji) -> None:
    """Else a search that finds one would count as wrong for the other."""
    test = [concept.key for concept in emoji.concepts if concept.split == "test"]
    pngs = {emoji.png("twemoji", key, module.SIZE) for key in test}
    assert len(pngs) == len(test)


@pytest.mark.parametrize(
    ("groups", "left"),
    [
        ([], "abcd"),
        ([{"a", "b"}], "abcd"),  # together in the test
        ([{"a", "x"}], "bcd"),
        ([{"a", "b"}, {"b", "c"}, {"c", "x"}, {"x", "y"}], "d"),  # handed on
    ],
)
def test_who_shares_with_a_training_concept_trains(groups: list[set[str]], left: str) -> None:
    assert module._without_halves(set("abcd"), groups) == set(left)


def test_skin_tones_are_told_apart(emoji: Emoji) -> None:
    assert sum(concept.skin_tone for concept in emoji.concepts) == 2030


@pytest.mark.parametrize(
    ("language", "name"), [("en", "octopus"), ("de", "Oktopus"), ("sw", "pweza"), ("ja", "タコ")]
)
def test_cldr_names_the_octopus(emoji: Emoji, language: str, name: str) -> None:
    assert emoji.labels(language)["1f419"].name == name


def test_an_unknown_language_is_refused_with_the_known_ones(emoji: Emoji) -> None:
    with pytest.raises(KeyError, match=r"no emoji names for 'tlh'; known: .*de.*sw"):
        emoji.labels("tlh")


def test_a_drawing_is_a_png_on_white(emoji: Emoji) -> None:
    drawing = Image.open(BytesIO(emoji.png("noto", "1f419", 64)))
    assert (drawing.format, drawing.mode, drawing.size) == ("PNG", "RGB", (64, 64))
    assert drawing.getpixel((0, 0)) == (255, 255, 255)
    assert len(drawing.getcolors(4096) or []) > 8


def test_no_test_concept_and_no_held_out_style_is_in_the_training_rows(
    emoji: Emoji, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [c for c in emoji.concepts if c.split == "test"][:5]
    chosen += [c for c in emoji.concepts if c.split == "train"][:5]
    monkeypatch.setitem(emoji.__dict__, "concepts", tuple(chosen))
    rows = module.captions(emoji, ["en", "de"]).to_pylist()
    styles = {row["split"]: set() for row in rows}
    for row in rows:
        styles[row["split"]].add(row["image_id"].partition("/")[0])
    assert styles == {"train": {"noto", "openmoji", "fluent"}, "test": {"twemoji"}}
    keys = {s: {r["image_id"].partition("/")[2] for r in rows if r["split"] == s} for s in styles}
    assert keys["train"].isdisjoint(keys["test"])
    assert {row["language"] for row in rows} == {"en", "de"}


def test_pairs_are_of_training_concepts_only(emoji: Emoji) -> None:
    pairs = module.pairs(emoji, "de").to_pylist()
    named = emoji.labels("en")
    held_out = {named[c.key].name for c in emoji.concepts if c.split == "test"}
    assert {row["source"] for row in pairs}.isdisjoint(held_out)
    assert {"source": "octopus", "target": "Oktopus", "language": "de"} in pairs or (
        "octopus" in held_out
    )


@pytest.mark.parametrize(
    ("language", "left_out"),
    [("de", []), ("sw", ["kitufe"] * 3)],  # keyword of 10, * and #, and name of the radio button
)
def test_no_text_trained_on_is_the_name_of_a_test_concept(
    emoji: Emoji, language: str, left_out: list[str]
) -> None:
    def same(text: str) -> str:
        return text.casefold().strip(" .,:;!?()“”\"'")

    named = {tag: emoji.labels(tag) for tag in ("en", language)}
    held_out = {
        tag: {
            same(names[c.key].name) for c in emoji.concepts if c.split == "test" and c.key in names
        }
        for tag, names in named.items()
    }
    for row in module.pairs(emoji, language).to_pylist():
        assert same(row["source"]) not in held_out["en"]
        assert same(row["target"]) not in held_out[language]
    missing: list[str] = []
    for tag, names in named.items():
        texts = emoji.texts(tag)
        for concept in emoji.concepts:
            label = names.get(concept.key)
            if label is None:
                assert concept.key not in texts
            elif concept.split == "test":
                assert texts[concept.key] == [label.name]
            else:
                assert held_out[tag].isdisjoint(map(same, texts[concept.key]))
                missing += [text for text in label.captions if text not in texts[concept.key]]
    assert missing == left_out


def test_a_package_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    package = npm.Package("some-package", "1.0.0", "0" * 64)
    (tmp_path / package.file_name).write_bytes(b"not what was published")
    with pytest.raises(ValueError, match="SHA-256"):
        npm.fetch(package, tmp_path)


def test_drawings_that_are_missing_from_those_kept_are_drawn(
    emoji: Emoji, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji, "folder", tmp_path)
    every = emoji.concepts[:3]
    monkeypatch.setitem(vars(emoji), "concepts", every[:1])
    few = emoji.drawn()
    monkeypatch.setitem(vars(emoji), "concepts", every)
    more = emoji.drawn()
    assert few.items() < more.items()
    assert {image_id.partition("/")[2] for image_id in more} == {c.key for c in every}
    assert emoji.drawn() == more


def test_other_processes_draw_the_same(
    emoji: Emoji, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji, "folder", tmp_path)
    monkeypatch.setitem(vars(emoji), "concepts", emoji.concepts[:4])
    monkeypatch.setattr(module, "DRAWN_TOGETHER", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    done: list[int] = []
    drawn = emoji.drawn(done.append)
    assert done == [3, 1]
    assert {image_id.partition("/")[2] for image_id in drawn} == {c.key for c in emoji.concepts}
    assert drawn == {
        image_id: emoji.png(*image_id.split("/"), module.SIZE)  # type: ignore[call-arg]
        for image_id in drawn
    }
    assert emoji.drawn(done.append) == drawn
    assert done == [3, 1, 4], "nothing was left to draw"


def test_drawings_of_another_version_are_drawn_again(
    emoji: Emoji, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji, "folder", tmp_path)
    monkeypatch.setitem(vars(emoji), "concepts", emoji.concepts[:1])
    drawn = emoji.drawn()
    path = next(tmp_path.glob("drawings-*.parquet"))
    kept = pq.read_table(path)
    assert kept.schema.metadata[b"packages"]
    other = kept.set_column(1, "image", pa.array([b"another drawing"] * len(kept), pa.binary()))
    pq.write_table(other, path)
    assert set(emoji.drawn().values()) == {b"another drawing"}
    pq.write_table(other.replace_schema_metadata({b"packages": b"those of last year"}), path)
    assert emoji.drawn() == drawn
