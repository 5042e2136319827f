"""Promises about hybrid searches, each kept by every backend there is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge

from mla_ray.index import edge as embedded
from mla_ray.index import server
from mla_ray.index.backend import CollectionConfig
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.lexical import QueryText
from mla_ray.index.search import Search
from mla_ray.index.transfer import copy_index
from tests.index.places import SPACE, Place, Url, Vectors

E = SPACE.dim
NAMES = ["a red umbrella", "ein roter Regenschirm", "the RX-7800", "the RX-7900", "京都タワー"]
TAGS = ["en", "de", "en", "en", "ja"]
ENTRIES = [
    Entry(f"c{row:02}", f"i{row:02}", language, name, "shop")
    for row, (name, language) in enumerate(zip(NAMES, TAGS, strict=True))
] + [Entry(f"d{row:02}", f"j{row:02}", "en", f"picture of {row}", "a") for row in range(40)]


def vectors() -> Vectors:
    made = np.random.default_rng(3).standard_normal((len(ENTRIES), E))
    return made.astype(np.float32)


VECTORS = vectors()
FAR = -VECTORS[2]
"""A query whose vector says that it is anything but the RX-7800."""
CODE = QueryText("rx7800", "de")


@pytest.fixture
def filled(place: Place) -> CaptionIndex:
    index = place.open()
    index.upsert(ENTRIES, VECTORS)
    return index


@pytest.fixture
def old(place: Place, monkeypatch: pytest.MonkeyPatch) -> CaptionIndex:
    """A collection that was made and filled without words."""
    record, of_server, of_folder = CollectionConfig.record, server.creation_of, embedded.creation_of

    def wordless_record(config: CollectionConfig) -> dict[str, object]:
        return {name: value for name, value in record(config).items() if name != "words"}

    def wordless_server(config: CollectionConfig) -> dict[str, Any]:
        return of_server(config) | {"sparse_vectors_config": None}

    def wordless_folder(config: CollectionConfig) -> edge.EdgeConfig:
        return edge.EdgeConfig(vectors=of_folder(config).vectors)

    with monkeypatch.context() as patch:
        patch.setattr(CollectionConfig, "record", wordless_record)
        patch.setattr(server, "creation_of", wordless_server)
        patch.setattr(embedded, "creation_of", wordless_folder)
        place.leave(place.open())
    index = place.open()
    index.upsert(ENTRIES, VECTORS)
    return index


def found(index: CaptionIndex, hybrid: QueryText | None = CODE, **options: Any) -> list[Entry]:
    return [hit.entry for hit in index.search(FAR, hybrid=hybrid, **options)]


def test_a_code_that_the_vector_does_not_know_is_found(filled: CaptionIndex) -> None:
    assert ENTRIES[2] not in found(filled, None, k=44)
    assert ENTRIES[2] in found(filled, k=2)
    assert found(filled, QueryText("京都", "ja"), k=2).count(ENTRIES[4]) == 1


def test_what_both_searches_find_comes_first(filled: CaptionIndex) -> None:
    hits = filled.search(VECTORS[0], hybrid=QueryText("umbrellas", "en"))
    assert hits[0].entry == ENTRIES[0]
    assert hits[0].score == 1.0  # 1 / 2 for each first place
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_words_that_no_caption_has_leave_the_vector_its_order(filled: CaptionIndex) -> None:
    for text in ("zzyzx", "…"):
        assert found(filled, QueryText(text, "en")) == found(filled, None)


def test_filters_hold_for_both_searches(filled: CaptionIndex) -> None:
    assert ENTRIES[2] not in found(filled, k=100, source="a")
    german = found(filled, QueryText("umbrella", "en"), k=100, language="de")
    assert german == [ENTRIES[1]]


def test_pages_of_a_hybrid_search_hold_every_hit_once(filled: CaptionIndex) -> None:
    whole = found(filled, QueryText("picture of the RX-7800", "en"), k=100)
    assert len(whole) == len(ENTRIES)
    pages = [
        found(filled, QueryText("picture of the RX-7800", "en"), k=7, offset=offset)
        for offset in range(0, 49, 7)
    ]
    assert [entry for page in pages for entry in page] == whole


def test_searches_of_both_kinds_run_together(filled: CaptionIndex) -> None:
    both = filled.search_all([Search(FAR, hybrid=CODE), Search(FAR)])
    assert [[hit.entry for hit in hits] for hits in both] == [found(filled), found(filled, None)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_score": 0.5}, "min_score is for cosines"),
        ({"k": 1, "offset": 200}, "offset \\+ k is 201"),
    ],
)
def test_what_a_hybrid_search_cannot_do_is_said(
    filled: CaptionIndex, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        found(filled, **options)
    assert len(found(filled, k=200)) == len(ENTRIES)


def test_words_follow_a_caption_that_changes_and_one_that_goes(filled: CaptionIndex) -> None:
    changed = replace(ENTRIES[2], caption="the ZX-81")
    filled.upsert([changed], VECTORS[2:3])
    assert changed in found(filled, QueryText("ZX81", "en"), k=2)
    assert found(filled, k=44) == found(filled, None, k=44)  # nothing has the old code
    filled.delete([changed])
    assert changed not in found(filled, QueryText("ZX81", "en"), k=100)


def test_words_stay_through_optimization_copies_and_rebuilds(
    place: Place, filled: CaptionIndex
) -> None:
    filled.delete(ENTRIES[10:20])
    filled.optimize(reclaim=True)  # the embedded engine copies all points
    assert ENTRIES[2] in found(filled, k=2)
    with filled.rebuild() as fresh:
        fresh.upsert(ENTRIES, VECTORS)
    place.leave(filled)
    assert ENTRIES[2] in found(place.open(), k=2)


def test_a_collection_without_words_says_so_and_gets_them(place: Place, old: CaptionIndex) -> None:
    assert len(found(old, None)) == 10  # it goes on working
    with pytest.raises(ValueError, match="mla index --optimize"):
        found(old)
    old.add_words()
    assert ENTRIES[2] in found(old, k=2)
    place.leave(old)
    again = place.open(create=False)
    assert ENTRIES[2] in found(again, k=2)
    new = Entry("new", "new", "en", "the ZX-81", "a")
    again.upsert([new], VECTORS[:1])
    assert new in found(again, QueryText("ZX81", "en"), k=2)
    again.add_words()  # changes nothing
    assert again.count() == len(ENTRIES) + 1


def test_words_are_added_again_after_a_kill(
    place: Place, old: CaptionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(config: CollectionConfig) -> dict[str, object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CollectionConfig, "record", killed)  # the words are there, but not recorded
        with pytest.raises(KeyboardInterrupt):
            old.add_words()
    place.leave(old)
    again = place.open()
    with pytest.raises(ValueError, match="without words"):
        found(again)
    again.add_words()
    assert ENTRIES[2] in found(again, k=2)


def test_a_copy_of_a_collection_without_words_has_them(
    place: Place, old: CaptionIndex, tmp_path: Any
) -> None:
    if not isinstance(place, Url):
        pytest.skip("a store in memory has no URL to copy from")
    place.leave(old)
    target = f"edge:{tmp_path / 'copy'}"
    copy_index(place.url, target, ["captions"], lambda *progress: None)
    with CaptionIndex.open(target, SPACE) as copy:
        assert ENTRIES[2] in found(copy, k=2)
