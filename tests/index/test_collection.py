"""Promises of mla_ray.index.collection, each kept by every backend there is."""

import json
import os
import secrets
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import models

from mla_ray.index.backend import CollectionConfig, Point, VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry, ScoredEntry
from mla_ray.index.search import Search
from mla_ray.index.server import ServerBackend
from tests.index.places import INT8, OTHER, SERVERS, SPACE, Memory, Place, Vectors
from tests.support import forks

SERVERS_ONLY = pytest.mark.parametrize(
    "place",
    ["memory", *(pytest.param(s, marks=pytest.mark.server) for s in SERVERS)],
    indirect=True,
)


def captions(n: int) -> list[Entry]:
    """Ids c000, c001, …; every third in German; sources alternate."""
    return [
        Entry(f"c{i:03}", f"i{i // 2:03}", ("de", "fr", "sw")[i % 3], f"caption {i}", "ab"[i % 2])
        for i in range(n)
    ]


def random_vectors(n: int, seed: int = 0) -> Vectors:
    """[n, E] of very different lengths."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, SPACE.dim)) * rng.uniform(0.01, 100, size=(n, 1))).astype(
        np.float32
    )


def cosines(query: Vectors, vectors: Vectors) -> npt.NDArray[np.float64]:
    q, v = query.astype(np.float64), vectors.astype(np.float64)
    scores: npt.NDArray[np.float64] = v @ q / np.linalg.norm(v, axis=1) / np.linalg.norm(q)
    return scores


def ids(hits: list[ScoredEntry]) -> list[str]:
    return [hit.entry.id for hit in hits]


ALIKE = captions(5)
ENTRIES, VECTORS = captions(600), random_vectors(600)  # more than two batches
QUERY = random_vectors(1, seed=1)[0]
RANKING = [ENTRIES[i] for i in np.argsort(-cosines(QUERY, VECTORS))]


@pytest.fixture
def filled(place: Place) -> CaptionIndex:
    index = place.open()
    index.upsert(ENTRIES, VECTORS)
    return index


def test_search_ranks_as_exact_cosines_do(filled: CaptionIndex) -> None:
    hits = filled.search(QUERY, 50)
    assert [hit.entry for hit in hits] == RANKING[:50]
    expected = np.sort(cosines(QUERY, VECTORS))[::-1][:50]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=2e-6)


def test_the_length_of_a_vector_changes_nothing(place: Place) -> None:
    index = place.open()
    scales = np.array([[1e-30], [1.0], [1e30]], np.float32)
    index.upsert(captions(3), random_vectors(3) * scales)
    small, large = index.search(QUERY * np.float32(1e-30)), index.search(QUERY * np.float32(1e30))
    assert small == large
    expected = np.sort(cosines(QUERY, random_vectors(3)))[::-1]
    np.testing.assert_allclose([hit.score for hit in small], expected, atol=2e-6)


def test_a_language_and_a_source_narrow_search_and_count(filled: CaptionIndex) -> None:
    german = [entry for entry in RANKING if entry.language == "de"]
    assert [hit.entry for hit in filled.search(QUERY, 20, language="de")] == german[:20]
    from_a = [entry for entry in german if entry.source == "a"]
    assert [hit.entry for hit in filled.search(QUERY, 200, language="de", source="a")] == from_a
    assert filled.search(QUERY, language="tlh") == []
    assert (filled.count(), filled.count(language="de"), filled.count(language="tlh")) == (
        600,
        200,
        0,
    )


def test_searches_that_run_together_are_those_that_run_alone(filled: CaptionIndex) -> None:
    filled.upsert(captions(40), np.repeat(QUERY[None], 40, axis=0))  # ties of forty
    vectors = [QUERY, *random_vectors(3, seed=2)]
    searches = [
        Search(vector, k, language, source, offset, min_score)
        for vector in vectors
        for k, language, source, offset, min_score in (
            (5, None, None, 0, None),
            (3, "de", None, 10, None),
            (50, None, "a", 0, 0.2),
            (7, "tlh", None, 0, None),
        )
    ]
    alone = [
        filled.search(
            s.vector,
            s.k,
            language=s.language,
            source=s.source,
            offset=s.offset,
            min_score=s.min_score,
        )
        for s in searches
    ]
    assert filled.search_all(searches) == alone
    assert filled.search_all([]) == []
    with pytest.raises(ValueError, match="k is 0"):
        filled.search_all([*searches, Search(QUERY, 0)])


def test_searches_share_requests_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Memory().open()
    index.upsert(captions(3), random_vectors(3))
    assert isinstance(index._backend, ServerBackend)
    client, sizes = index._backend.client, []
    send = client.query_batch_points

    def counted(name: str, requests: list[Any]) -> Any:
        sizes.append(len(requests))
        return send(name, requests)

    monkeypatch.setattr(client, "query_batch_points", counted)
    index.search_all([Search(QUERY, 10)] * 30)
    assert sizes == [30]
    index.search_all([Search(QUERY, 10, offset=4000)] * 5)
    assert sizes == [30, 2, 2, 1]


def test_pages_join_to_the_whole_ranking(filled: CaptionIndex) -> None:
    pages = [filled.search(QUERY, 70, offset=offset) for offset in range(0, 700, 70)]
    assert [hit.entry for page in pages for hit in page] == RANKING


def test_equal_scores_are_ordered_by_id_across_pages(place: Place) -> None:
    index = place.open()
    entries = captions(60)
    vectors = np.repeat(random_vectors(1), 60, axis=0)
    vectors[7] = QUERY  # the only one that differs, and the best
    shuffled = np.random.default_rng(2).permutation(60)
    index.upsert([entries[i] for i in shuffled], vectors[shuffled])
    expected = ["c007"] + [entry.id for entry in entries if entry.id != "c007"]
    assert ids(index.search(QUERY, 4)) == expected[:4]
    assert [i for o in range(0, 60, 4) for i in ids(index.search(QUERY, 4, offset=o))] == expected


def test_languages_counts_captions_and_leaves_images_out(place: Place) -> None:
    index = place.open()
    images = [Entry(f"i{i}", f"i{i}", "", "", "noto") for i in range(4)]
    index.upsert(captions(10) + images, random_vectors(14))
    assert index.languages() == {"de": 4, "fr": 3, "sw": 3}
    assert index.count(language="") == 4
    assert {hit.entry for hit in index.search(QUERY, 14, language="")} == set(images)


def test_writing_twice_changes_nothing(filled: CaptionIndex) -> None:
    before = filled.search(QUERY, 100)
    assert filled.upsert(ENTRIES, VECTORS) == 600
    assert filled.count() == 600
    assert filled.search(QUERY, 100) == before


def test_an_id_is_one_entry_in_each_language(place: Place) -> None:
    index = place.open()
    german, swahili = (Entry("c1", "i1", tag, tag, "a") for tag in ("de", "sw"))
    again = Entry("c1", "i1", "de", "corrected", "a")
    index.upsert([german, swahili], random_vectors(2))
    index.upsert([again], QUERY[None])
    assert index.count() == 2
    assert {hit.entry for hit in index.search(QUERY)} == {again, swahili}
    assert index.search(QUERY, 1)[0] == ScoredEntry(again, 1.0)


def test_an_id_is_one_entry_in_each_source(place: Place) -> None:
    """Two tables that number their images alike: neither takes the other's places."""
    index = place.open()
    ours, theirs = (
        [replace(entry, caption=f"{entry.caption} of {source}", source=source) for entry in ALIKE]
        for source in ("ours", "theirs")
    )
    index.upsert(ours, random_vectors(5))
    index.upsert(theirs, random_vectors(5))
    for source, entries in (("ours", ours), ("theirs", theirs)):
        hits = index.search(QUERY, 10, source=source)
        assert {hit.entry for hit in hits} == set(entries)
    pairs = [entry for pair in zip(ours, theirs, strict=True) for entry in pair]
    pages = [index.search(QUERY, 3, offset=offset) for offset in range(0, 12, 3)]
    hits = [hit for page in pages for hit in page]
    by_score = np.argsort(-cosines(QUERY, random_vectors(5)))
    assert [hit.entry for hit in hits] == [
        pairs[2 * row + second] for row in by_score for second in range(2)
    ]  # the two of a pair tie, and are ordered by source


def test_entries_are_told_and_removed_by_what_they_are(place: Place) -> None:
    index = place.open()
    index.upsert(ENTRIES, VECTORS)
    assert set(index.entries()) == set(ENTRIES)
    german = {entry for entry in ENTRIES if entry.language == "de"}
    assert set(index.entries(language="de")) == german
    assert set(index.entries(language="de", source="a")) == {e for e in german if e.source == "a"}
    assert list(index.entries(source="none")) == []
    there, elsewhere = ENTRIES[:300], [replace(entry, source="c") for entry in ENTRIES[300:]]
    index.delete(there + elsewhere)
    assert set(index.entries()) == set(ENTRIES[300:])
    assert len(index.search(QUERY, 1000)) == index.count() == 300


def test_no_hit_is_below_the_score_asked_for(filled: CaptionIndex) -> None:
    scores = np.sort(cosines(QUERY, VECTORS))[::-1]
    least = float(scores[20] + scores[21]) / 2  # 21 entries are above
    assert [hit.entry for hit in filled.search(QUERY, 50, min_score=least)] == RANKING[:21]
    pages = [filled.search(QUERY, 9, offset=o, min_score=least) for o in range(0, 36, 9)]
    assert [len(page) for page in pages] == [9, 9, 3, 0]
    shown = filled.search(QUERY, 30)[20].score
    assert len(filled.search(QUERY, 50, min_score=shown)) == 21  # as it is shown, so it counts
    assert len(filled.search(QUERY, 1000, min_score=-1)) == 600
    assert filled.search(QUERY, min_score=1) == []
    for bad in (1.1, -1.1, np.nan):
        with pytest.raises(ValueError, match="min_score is"):
            filled.search(QUERY, min_score=bad)


@pytest.fixture
def old(place: Place, monkeypatch: pytest.MonkeyPatch) -> CaptionIndex:
    """A collection of 0.1.0: its record, and points whose ids are of native, id and language."""
    with monkeypatch.context() as patch:
        patch.setattr(CollectionConfig, "record", old_record)
        place.leave(place.open())
    index = place.open()
    namespace = uuid.UUID("f1bb0d4e-8d8a-5a5c-9d56-0c5c0a8e6d11")
    names = (json.dumps([SPACE.fingerprint, entry.id, entry.language]) for entry in ENTRIES)
    ids = [str(uuid.uuid5(namespace, name)) for name in names]
    index._backend.upsert(
        [
            Point(id_, vector.tolist(), asdict(entry))
            for id_, entry, vector in zip(ids, ENTRIES, VECTORS, strict=True)
        ]
    )
    return index


def old_record(config: CollectionConfig) -> dict[str, object]:
    return {"schema": 2, **asdict(config.space), "quantization": config.quantization}


def test_what_0_1_0_wrote_is_read_as_it_is(place: Place, old: CaptionIndex) -> None:
    place.leave(old)
    again = place.open(create=False)
    assert [hit.entry for hit in again.search(QUERY, 50)] == RANKING[:50]
    assert set(again.entries(source="a")) == {e for e in ENTRIES if e.source == "a"}
    assert again.sources("i007") == {"a": 1, "b": 1}


def test_what_0_1_0_wrote_is_replaced_by_the_same_entry_of_the_same_source(
    old: CaptionIndex,
) -> None:
    mended = [replace(entry, caption=f"{entry.caption}, mended") for entry in ENTRIES[:300]]
    alike = [replace(entry, source="other") for entry in ENTRIES[:300]]
    for _ in range(2):
        old.upsert(mended, VECTORS[:300])
        old.upsert(alike, VECTORS[:300])
        assert set(old.entries()) == {*mended, *alike, *ENTRIES[300:]}
        assert old.count() == 900
    assert old.sources("i000") == {"a": 2, "b": 2, "other": 2}
    assert old.sources("i299") == {"a": 1, "b": 1}
    old.delete(ENTRIES[200:400])  # of either rule
    assert set(old.entries()) == {*mended[:200], *alike, *ENTRIES[400:]}


def test_a_rebuild_leaves_nothing_of_before(place: Place, old: CaptionIndex) -> None:
    with old.rebuild() as fresh:
        fresh.upsert(ENTRIES, VECTORS)
    assert old.sources("i007") == {"a": 2, "b": 2}
    place.leave(old)
    again = place.open()
    assert again._backend.config.schema == 3
    again.upsert(ENTRIES, VECTORS)
    assert again.count() == 600


def test_a_collection_made_now_is_not_asked_for_points_of_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = place.open()

    def unwanted(*arguments: object) -> None:
        raise AssertionError("asked")

    for method in ("count", "delete", "scroll"):
        monkeypatch.setattr(index._backend, method, unwanted)
    index.upsert(ENTRIES, VECTORS)


def test_text_of_any_script_comes_back_as_it_went_in(place: Place) -> None:
    index = place.open()
    entry = Entry('a/"b"\n../ü', "🖼", "zh-Hant-TW", "一隻貓 😺 قطة \x00", "quelle")
    index.upsert([entry], QUERY[None])
    assert index.search(QUERY, language="zh-Hant-TW") == [ScoredEntry(entry, 1.0)]


def test_an_empty_collection_answers(place: Place) -> None:
    index = place.open()
    assert index.upsert([], np.empty((0, SPACE.dim), np.float32)) == 0
    assert (index.search(QUERY), index.count(), index.languages()) == ([], 0, {})


def test_opening_again_finds_what_was_written(place: Place) -> None:
    index = place.open()
    index.upsert(ENTRIES, VECTORS)
    index.flush()
    place.leave(index)
    again = place.open(create=False)
    assert ids(again.search(QUERY, 600)) == [entry.id for entry in RANKING]


def test_collections_of_one_place_are_apart(place: Place) -> None:
    first, second = place.open(), place.open(collection="images")
    first.upsert(captions(3), random_vectors(3))
    assert (first.count(), second.count()) == (3, 0)


@pytest.mark.parametrize("place", ["edge"], indirect=True)
def test_a_folder_refuses_another_native_by_both_names_and_fingerprints(place: Place) -> None:
    place.leave(place.open())
    with pytest.raises(ValueError, match="collection of its own name") as refusal:
        place.open(OTHER)
    for name in (SPACE.native, SPACE.fingerprint, OTHER.native, OTHER.fingerprint):
        assert name in str(refusal.value)
    place.open(OTHER, "captions-vit").upsert(captions(1), random_vectors(1))  # the remedy
    place.open()  # and the first is as it was


@SERVERS_ONLY
def test_natives_have_collections_of_one_name_side_by_side(place: Place) -> None:
    ours, theirs = place.open(), place.open(OTHER)
    ours.upsert(captions(5), random_vectors(5))
    theirs.upsert(captions(2), random_vectors(2))
    with theirs.rebuild() as fresh:
        fresh.upsert(captions(3), random_vectors(3))
    place.leave(ours)
    assert place.open(create=False).count() == 5
    assert place.open(OTHER, create=False).count() == 3


@SERVERS_ONLY
def test_a_native_without_a_collection_is_told_whose_there_is(place: Place) -> None:
    place.open()
    with pytest.raises(LookupError, match="does not exist") as missing:
        place.open(OTHER, create=False)
    for name in (SPACE.native, SPACE.fingerprint, OTHER.native, OTHER.fingerprint):
        assert name in str(missing.value)


@SERVERS_ONLY
def test_an_alias_without_fingerprint_goes_on_for_its_native_alone(place: Place) -> None:
    """As mla-ray 0.1.0 made them: `captions`, one a server."""
    first = place.open()
    first.upsert(captions(5), random_vectors(5))
    client = vars(first._backend)["client"]
    of_today, plain = f"captions-{SPACE.fingerprint[:12]}", "captions"
    rename = models.RenameAlias(old_alias_name=of_today, new_alias_name=plain)
    client.update_collection_aliases([models.RenameAliasOperation(rename_alias=rename)])
    place.leave(first)
    again = place.open(create=False)
    assert again.count() == 5
    with again.rebuild() as fresh:
        fresh.upsert(captions(6), random_vectors(6))
    assert place.open(OTHER).count() == 0
    assert place.open(create=False).count() == 6
    client = vars(again._backend)["client"]  # that of `first` is closed
    aliases = {alias.alias_name for alias in client.get_aliases().aliases}
    assert plain in aliases  # programs that have not been upgraded find it
    assert of_today not in aliases


def test_a_collection_of_the_rule_of_before_goes_on_and_that_is_told_once(
    place: Place, recognitions: list[str]
) -> None:
    """Under the names and the ids that it has: writing again what is there changes nothing."""
    collection = f"captions-{secrets.token_hex(4)}"  # a message is told once a process
    old = place.open(SPACE, collection)
    old.upsert(captions(5), random_vectors(5))
    place.leave(old)
    today = VectorSpace(SPACE.native, OTHER.fingerprint, SPACE.dim, SPACE.fingerprint)
    for _ in range(2):
        index = place.open(today, collection, create=False)
        hits = index.search(random_vectors(5)[3], 1)
        assert [hit.entry for hit in hits] == captions(5)[3:4]
        index.upsert(captions(6), random_vectors(6))
        assert index.count() == 6
        with index.rebuild() as fresh:
            fresh.upsert(captions(6), random_vectors(6))
        index.upsert(captions(6), random_vectors(6))
        assert index.count() == 6
        place.leave(index)
    (said,) = recognitions
    assert collection in said
    assert "another collection name" in said
    place.leave(place.open(SPACE, collection, create=False))  # whoever has not moved on, too
    another = VectorSpace(SPACE.native, OTHER.fingerprint, SPACE.dim, "0" * 16)
    with pytest.raises((ValueError, LookupError), match=rf"of native '{SPACE.native}'"):
        place.open(another, collection, create=False)


def test_a_new_collection_has_the_fingerprint_of_today(place: Place) -> None:
    today = VectorSpace(SPACE.native, OTHER.fingerprint, SPACE.dim, SPACE.fingerprint)
    place.leave(place.open(today))
    with pytest.raises((ValueError, LookupError), match=rf"fingerprint {OTHER.fingerprint}"):
        place.open(SPACE, create=False)


def test_a_missing_collection_is_not_made_unasked(place: Place) -> None:
    for _ in range(2):  # asking leaves nothing behind that would be found
        with pytest.raises(LookupError, match=r"does not exist.*create=True"):
            place.open(create=False)


def test_rebuild_swaps_at_its_end_and_old_entries_vanish(place: Place) -> None:
    index = place.open()
    index.upsert(captions(5), random_vectors(5))
    new = [Entry("new", "i1", "en", "a cat", "c")]
    for _ in range(2):  # the second starts from a rebuilt collection
        with index.rebuild() as fresh:
            before = index.count()
            fresh.upsert(new, QUERY[None])
            assert (fresh.count(), index.count()) == (1, before)
        assert index.search(QUERY) == [ScoredEntry(new[0], 1.0)]
        assert index.languages() == {"en": 1}
    place.leave(index)
    assert place.open().search(QUERY) == [ScoredEntry(new[0], 1.0)]


def test_a_failed_rebuild_changes_nothing(filled: CaptionIndex) -> None:
    def fail() -> None:
        with filled.rebuild() as fresh:
            fresh.upsert(captions(1), QUERY[None])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (filled.count(), ids(filled.search(QUERY, 3))) == (600, [e.id for e in RANKING[:3]])


def test_of_two_rebuilds_the_first_to_end_wins(place: Place) -> None:
    index = place.open()

    def nest() -> None:
        with index.rebuild(), index.rebuild() as inner:
            inner.upsert(captions(3), random_vectors(3))

    with pytest.raises(RuntimeError, match="another rebuild"):
        nest()
    assert index.count() == 3
    place.leave(index)
    assert place.open().count() == 3


def test_searches_go_on_through_rebuilds(filled: CaptionIndex) -> None:
    stop, counts, errors = threading.Event(), [0, 0], []

    def search(who: int) -> None:
        while not stop.is_set():
            try:
                assert len(filled.search(QUERY, 5)) == 5
            except Exception as error:
                errors.append(error)
                return
            counts[who] += 1

    threads = [threading.Thread(target=search, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            with filled.rebuild() as fresh:
                fresh.upsert(ENTRIES[:50], VECTORS[:50])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert min(counts) > 0


@pytest.mark.parametrize(
    ("k", "offset", "found"),
    [(0, 0, "k is 0"), (1001, 0, "k is 1001"), (1, -1, "offset is -1"), (1, 10_001, "10001")],
)
def test_a_page_out_of_bounds_is_refused(place: Place, k: int, offset: int, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        place.open().search(QUERY, k, offset=offset)


def test_the_largest_page_is_served(filled: CaptionIndex) -> None:
    assert len(filled.search(QUERY, 1000)) == 600
    assert filled.search(QUERY, 1, offset=10_000) == []


def spoilt(value: float) -> Vectors:
    vectors = random_vectors(3)
    vectors[1] = 0 if value == 0 else vectors[1]
    vectors[1, 3] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "found"),
    [
        (spoilt(np.nan), "vector 1 is not finite"),
        (spoilt(np.inf), "vector 1 is not finite"),
        (spoilt(0.0), "vector 1 is zero"),
        (random_vectors(3)[:, :-1], r"shape \[3, 15\].*\[N, 16\]"),
        (random_vectors(3)[:, None], r"shape \[3, 1, 16\]"),
        (random_vectors(2), "3 entries but 2 vectors"),
    ],
)
def test_bad_vectors_are_refused_and_none_of_them_written(
    place: Place, vectors: Vectors, found: str
) -> None:
    index = place.open()
    with pytest.raises(ValueError, match=found):
        index.upsert(captions(3), vectors)
    assert index.count() == 0


@pytest.mark.parametrize(
    "query", [spoilt(np.nan)[1], spoilt(0.0)[1], QUERY[:-1], random_vectors(1)]
)
def test_bad_queries_are_refused(filled: CaptionIndex, query: Vectors) -> None:
    with pytest.raises(ValueError, match=r"not finite|zero|shape"):
        filled.search(query)


def test_optimize_keeps_what_is_found(filled: CaptionIndex) -> None:
    filled.optimize()
    assert ids(filled.search(QUERY, 50)) == [entry.id for entry in RANKING[:50]]


def test_a_collection_keeps_the_quantization_it_was_made_with(place: Place) -> None:
    index = place.open(settings=INT8)
    index.upsert(ENTRIES, VECTORS)
    with index.rebuild() as fresh:
        fresh.upsert(ENTRIES, VECTORS)
    assert ids(index.search(QUERY, 10)) == [entry.id for entry in RANKING[:10]]
    place.leave(index)
    place.leave(place.open())  # without saying so
    place.leave(place.open(settings=INT8))
    place.leave(place.open(collection="plain"))
    with pytest.raises(ValueError, match="made with quantization none, not int8"):
        place.open(collection="plain", settings=INT8)


def test_what_can_be_reached_answers_a_ping(filled: CaptionIndex) -> None:
    filled.ping()


# What only one backend promises


def test_a_closed_folder_does_not_answer_a_ping(tmp_path: Path) -> None:
    index = CaptionIndex.open(f"edge:{tmp_path}", SPACE)
    index.close()
    with pytest.raises(RuntimeError):
        index.ping()


def test_quantized_vectors_are_searched_and_the_found_ranked_by_the_whole_ones(
    tmp_path: Path,
) -> None:
    wide = VectorSpace("wide", "00112233445566", 512)
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(32, 512))  # in all 512 directions alike nobody is near to anybody
    vectors = (rng.normal(size=(6_000, 32)) @ basis).astype(np.float32)
    queries = (rng.normal(size=(20, 32)) @ basis).astype(np.float32)
    recalls = []
    with CaptionIndex.open(f"edge:{tmp_path}", wide, settings=INT8) as index:
        index.upsert(captions(len(vectors)), vectors)
        index.optimize()
        assert list(tmp_path.rglob("quantized.*"))
        for query in queries:
            scores = cosines(query, vectors)
            best = {f"c{i:03}" for i in np.argsort(-scores)[:10]}
            hits = index.search(query, 10)
            recalls.append(len(best & set(ids(hits))) / 10)
            least = hits[4].score
            assert index.search(query, 10, min_score=least) == hits[:5]
            exact = [scores[int(hit.entry.id[1:])] for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact, atol=2e-6)
    assert np.mean(recalls) >= 0.95


def test_many_threads_search_a_folder_while_one_writes(tmp_path: Path) -> None:
    queries = random_vectors(200, seed=3)
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:
        index.upsert(ENTRIES, VECTORS)
        expected = [index.search(query, 20) for query in queries]
        with ThreadPoolExecutor(8) as pool:
            again = pool.submit(lambda: [index.upsert(ENTRIES, VECTORS) for _ in range(20)])
            found = list(pool.map(lambda query: index.search(query, 20), queries))
            assert again.result() == [600] * 20
        assert found == expected


def test_a_folder_of_another_schema_is_refused(tmp_path: Path) -> None:
    CaptionIndex.open(f"edge:{tmp_path}", SPACE).close()
    record = tmp_path / "captions" / "space.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"schema": 1}))
    with pytest.raises(ValueError, match="has schema 1, this version reads 2 and 3"):
        CaptionIndex.open(f"edge:{tmp_path}", SPACE)


def be_refused(url: str) -> None:
    with pytest.raises(RuntimeError, match="one owner"):
        CaptionIndex.open(url, SPACE)


def test_a_folder_has_one_owner_here_and_in_other_processes(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    with CaptionIndex.open(url, SPACE) as owner:
        be_refused(url)
        with owner.rebuild() as fresh:
            fresh.upsert(captions(2), random_vectors(2))
        assert forks.exit_code(be_refused, url) == 0
        assert owner.count() == 2
    with CaptionIndex.open(url, SPACE) as next_owner:
        assert next_owner.count() == 2


def own_until_killed(url: str) -> None:
    index = CaptionIndex.open(url, SPACE)
    index.upsert(captions(1), random_vectors(1))
    index.rebuild().__enter__()
    os._exit(9)


def test_a_killed_owner_loses_nothing_and_frees_its_folder(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    assert forks.exit_code(own_until_killed, url) == 9
    with CaptionIndex.open(url, SPACE, create=False) as index:
        assert index.count() == 1
        with index.rebuild() as fresh:
            fresh.upsert(captions(2), random_vectors(2))
    versions = [path for path in (tmp_path / "captions").iterdir() if path.is_dir()]
    assert len(versions) == 1  # the one left half full by the kill is gone, too


def test_a_pointer_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    CaptionIndex.open(url, SPACE).close()
    (tmp_path / "captions" / "current").write_text("../elsewhere")
    with pytest.raises(ValueError, match="no version in that folder"):
        CaptionIndex.open(url, SPACE)


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    CaptionIndex.open(url, SPACE).close()
    with pytest.raises(ValueError, match="holds vectors of native"):
        CaptionIndex.open(url, OTHER)
    CaptionIndex.open(url, SPACE).close()


def test_a_rebuild_leaves_one_version_behind_its_alias() -> None:
    store = Memory()
    index = store.open()
    for _ in range(2):
        with index.rebuild():
            pass
    assert [c.name for c in store.client.get_collections().collections] == [
        f"captions-{SPACE.fingerprint[:12]}-v3"
    ]


def test_a_collection_of_other_software_is_left_alone() -> None:
    store = Memory()
    params = models.VectorParams(size=SPACE.dim, distance=models.Distance.COSINE)
    store.client.create_collection("theirs", vectors_config=params)
    alias = models.CreateAlias(collection_name="theirs", alias_name="captions")
    store.client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    store.open().upsert(captions(1), random_vectors(1))
    assert store.client.count("theirs").count == 0


def test_a_collection_without_a_record_is_refused() -> None:
    store = Memory()
    params = {"joint": models.VectorParams(size=SPACE.dim, distance=models.Distance.COSINE)}
    store.client.create_collection("theirs", vectors_config=params)
    alias = f"captions-{SPACE.fingerprint[:12]}"
    point = models.CreateAlias(collection_name="theirs", alias_name=alias)
    store.client.update_collection_aliases([models.CreateAliasOperation(create_alias=point)])
    with pytest.raises(ValueError, match="does not say whose vectors"):
        store.open()


# Names and addresses


def test_memory_starts_empty_each_time() -> None:
    with CaptionIndex.open(":memory:", SPACE) as index:
        index.upsert(captions(1), random_vectors(1))
        assert index.count() == 1
    with CaptionIndex.open(":memory:", SPACE) as index:
        assert index.count() == 0


@pytest.mark.parametrize("name", ["", "Captions", "-a", "a.b", "../a", "a/b", "a\n", "ü", "a" * 64])
def test_a_malformed_collection_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="collection name"):
        CaptionIndex.open(f"edge:{tmp_path}", SPACE, name)
    assert list(tmp_path.iterdir()) == []


def test_names_up_to_63_characters_are_taken(place: Place) -> None:
    assert place.open(collection="9" + "a_-" * 20 + "zz").count() == 0


@pytest.mark.parametrize("url", ["", "edge:", "captions", "ftp://host", "grpc:", "http://", "/srv"])
def test_an_address_of_no_backend_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        CaptionIndex.open(url, SPACE)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="QDRANT_API_KEY") as refusal:
        CaptionIndex.open("https://me:hunter2@example.org", SPACE)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Failed to obtain server version", "ignore:Api key is used")
@pytest.mark.parametrize("scheme", ["http", "grpc", "grpcs"])
def test_a_silent_server_is_reported_without_the_key(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    with pytest.raises(
        ConnectionError, match=rf"no Qdrant server answers at {scheme}://127.0.0.1:1"
    ) as e:
        CaptionIndex.open(f"{scheme}://127.0.0.1:1", SPACE)
    assert "hunter2" not in str(e.value)


@pytest.mark.filterwarnings("ignore:Failed to obtain server version", "ignore:Api key is used")
@pytest.mark.parametrize(
    ("status", "error", "says"),
    [(503, ConnectionError, "503"), (403, RuntimeError, "refuses")],
)
def test_a_server_that_is_busy_is_told_from_one_that_refuses(
    monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception], says: str
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(error, match=f"(?s){says}") as e:
            CaptionIndex.open(f"http://127.0.0.1:{server.server_port}", SPACE)
        server.shutdown()
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(("fingerprint", "dim"), [("", 16), ("xyz" * 8, 16), ("0" * 16, 0)])
def test_a_space_without_fingerprint_or_dimensions_is_refused(fingerprint: str, dim: int) -> None:
    with pytest.raises(ValueError, match=r"'emoji-clip'.*(fingerprint|dim)"):
        VectorSpace("emoji-clip", fingerprint, dim)
