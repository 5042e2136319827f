"""Promises about entries that are listed and removed, each kept by every backend there is."""

import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mla_ray.index.collection import CaptionIndex
from mla_ray.index.edge_folder import occupied
from mla_ray.index.entry import Contents, Entry
from mla_ray.index.server import connect
from tests.index.places import INT8, SERVERS, SPACE, Place, Url, forget
from tests.index.test_collection import ENTRIES, QUERY, VECTORS, random_vectors


@pytest.fixture
def filled(place: Place) -> CaptionIndex:
    index = place.open()
    index.upsert(ENTRIES, VECTORS)
    return index


def pages_of(index: CaptionIndex, limit: int, **conditions: str) -> list[list[Entry]]:
    pages, cursor = [], None
    while True:
        page = index.page(limit, cursor, **conditions)  # type: ignore[arg-type]
        pages.append(page.entries)
        cursor = page.next_cursor
        if cursor is None:
            return pages


def test_pages_hold_every_entry_once_in_the_same_order_every_time(filled: CaptionIndex) -> None:
    pages = pages_of(filled, 70)
    assert [len(page) for page in pages] == [70] * 8 + [40]
    listed = [entry for page in pages for entry in page]
    assert sorted(listed, key=lambda entry: entry.id) == ENTRIES
    assert [entry for page in pages_of(filled, 999) for entry in page] == listed
    german = [entry for entry in listed if entry.language == "de" and entry.source == "a"]
    for limit in (7, len(german)):  # the last page is full, and there is none after it
        pages = pages_of(filled, limit, language="de", source="a")
        assert [entry for page in pages for entry in page] == german
        assert len(pages) == -(-len(german) // limit)
    assert set(filled.page(5, image_id="i007").entries) == {ENTRIES[14], ENTRIES[15]}
    assert filled.page(5, source="none") == ([], None)


def test_a_listing_goes_on_while_entries_come_and_go(filled: CaptionIndex) -> None:
    first = filled.page(100)
    rest = [entry for entry in ENTRIES if entry not in set(first.entries)]
    gone, new = rest[::2], [replace(entry, source="new") for entry in ENTRIES]
    filled.delete([*gone, *first.entries[:50]])
    filled.upsert(new, VECTORS)
    listed, cursor = list(first.entries), first.next_cursor
    while cursor:
        page = filled.page(100, cursor)
        listed += page.entries
        cursor = page.next_cursor
    old = [entry for entry in listed if entry.source != "new"]
    assert len(listed) == len(set(listed))
    assert set(old) == {*first.entries, *rest[1::2]}


def test_pages_are_bounded_and_cursors_are_checked(filled: CaptionIndex) -> None:
    for limit in (0, 1001):
        with pytest.raises(ValueError, match=f"limit is {limit}, must be 1 to 1000"):
            filled.page(limit)
    for cursor in ("", "x", "ä" * 22, "A" * 21, "A" * 23, "!" * 22):
        with pytest.raises(ValueError, match="is not one of a page"):
            filled.page(1, cursor)
    assert len(filled.page(1, "A" * 22).entries) == 1  # of the smallest id there may be


@pytest.mark.parametrize(
    "conditions",
    [
        {"id": "c014"},
        {"image_id": "i007"},
        {"source": "a"},
        {"language": "de"},
        {"source": "a", "language": "de", "image_id": "i000"},
        {"source": "none"},
        {"id": "c014", "source": "b"},  # it is of a
    ],
)
def test_what_meets_every_condition_is_removed_and_nothing_else(
    filled: CaptionIndex, conditions: dict[str, str]
) -> None:
    gone = {e for e in ENTRIES if all(getattr(e, n) == v for n, v in conditions.items())}
    assert filled.count(**conditions) == len(gone)  # type: ignore[arg-type]
    assert filled.delete_matching(**conditions) == len(gone)  # type: ignore[arg-type]
    assert set(filled.entries()) == set(ENTRIES) - gone
    found = {hit.entry for hit in filled.search(QUERY, 600)}
    assert found == set(ENTRIES) - gone
    assert filled.delete_matching(**conditions) == 0  # type: ignore[arg-type]


def test_nothing_is_removed_without_a_condition(filled: CaptionIndex) -> None:
    for nothing in ({}, {"source": None, "language": None}):
        with pytest.raises(ValueError, match="no condition is given"):
            filled.delete_matching(**nothing)  # type: ignore[arg-type]
    assert filled.count() == 600


def test_removed_entries_are_counted_and_can_be_written_again(filled: CaptionIndex) -> None:
    assert filled.delete(ENTRIES[:10]) == 10
    assert filled.delete(ENTRIES[:11]) == 1
    filled.upsert(ENTRIES[:10], VECTORS[:10])
    assert set(filled.entries()) == set(ENTRIES) - {ENTRIES[10]}


def test_contents_are_counted_by_language_and_source(place: Place) -> None:
    index = place.open(settings=INT8)
    assert index.contents() == Contents(0, {}, {}, SPACE, "int8", 3)
    image = Entry("i000", "i000", "", "", "c")
    index.upsert([*ENTRIES, image], np.concatenate([VECTORS, VECTORS[:1]]))
    contents = index.contents()
    assert contents.entries == 601
    assert contents.languages == {"de": 200, "fr": 200, "sw": 200}
    assert contents.sources == {"a": 300, "b": 300, "c": 1}


def test_what_was_removed_is_gone_from_the_folder_when_space_is_reclaimed(tmp_path: Path) -> None:
    entries = [replace(entry, caption=f"{entry.caption}.") for entry in ENTRIES]  # ends there
    with Url(f"edge:{tmp_path}").open() as index:
        index.upsert(entries, VECTORS)
        index.optimize()
        assert index.delete_matching(language="fr") == 200
        index.optimize()
        assert left_in(tmp_path, b"caption 1.")  # the engine keeps what is less than a thousand
        before = index.search(QUERY, 400)
        index.optimize(reclaim=True)
        assert index.search(QUERY, 400) == before
        assert not left_in(tmp_path, b"caption 1.")
        assert left_in(tmp_path, b"caption 2.")
        version = (tmp_path / "captions" / "current").read_text()
        index.optimize(reclaim=True)  # nothing was removed since
        assert (tmp_path / "captions" / "current").read_text() == version
    with Url(f"edge:{tmp_path}").open() as index:
        assert set(index.entries()) == {entry for entry in entries if entry.language != "fr"}


def test_the_text_of_a_caption_before_it_was_corrected_is_reclaimed(tmp_path: Path) -> None:
    with Url(f"edge:{tmp_path}").open() as index:
        index.upsert(ENTRIES, VECTORS)
        index.optimize(reclaim=True)
        assert left_in(tmp_path, b"caption 599")
        index.upsert([replace(ENTRIES[599], caption="corrected")], VECTORS[599:])
        index.optimize(reclaim=True)
        assert left_in(tmp_path, b"corrected")
        assert not left_in(tmp_path, b"caption 599")
        assert index.count() == 600


def left_in(folder: Path, text: bytes) -> bool:
    return any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_removal_by_another_process_is_reclaimed_too(tmp_path: Path) -> None:
    place = Url(f"edge:{tmp_path}")
    with place.open() as index:
        index.upsert(ENTRIES, VECTORS)
        index.delete(ENTRIES[:5])
    with place.open() as index:
        index.optimize(reclaim=True)
        assert index.count() == 595
    assert not (tmp_path / "captions" / "stale").exists()


@pytest.fixture(params=["edge", pytest.param("http", marks=pytest.mark.server)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Url]:
    """The engines that have a disk."""
    if request.param == "edge":
        yield Url(f"edge:{tmp_path}")
        return
    url = os.environ.get(SERVERS["http"])
    if not url:
        pytest.skip(f"{SERVERS['http']} is not set")
    client = connect(url)
    forget(client)
    yield Url(url)
    forget(client)


@pytest.mark.parametrize(
    ("total", "removed"), [(5_000, 500), pytest.param(100_000, 10_000, marks=pytest.mark.slow)]
)
def test_entries_are_removed_under_searches_and_their_space_is_freed(
    engine: Url, total: int, removed: int, tmp_path: Path
) -> None:
    entries = [
        Entry(f"c{i}", f"i{i}", "de", f"caption {i}.", "gone" if i < removed else "kept")
        for i in range(total)
    ]
    vectors = random_vectors(total)
    index = engine.open()
    index.upsert(entries, vectors)
    index.optimize()
    answered, stop = threading.Event(), threading.Event()

    def search(thread: int) -> int:
        """Search around vectors of removed entries; return the number of searches afterwards."""
        rng, after = np.random.default_rng(thread), 0
        while not stop.is_set():
            since = answered.is_set()
            hits = index.search(vectors[rng.integers(removed)], 20)
            if since:  # before, an engine may find an entry that it then no longer has
                after += 1
                assert len(hits) == 20
                assert {hit.entry.source for hit in hits} == {"kept"}
        return after

    with ThreadPoolExecutor(2) as pool:
        searches = [pool.submit(search, thread) for thread in range(2)]
        assert index.delete_matching(source="gone") == removed
        answered.set()
        assert engine.url.startswith("edge:") or deleted_vectors(engine.url) > 0
        index.optimize(reclaim=True)
        stop.set()
        assert all(done.result() for done in searches)
    assert index.contents().sources == {"kept": total - removed}
    if engine.url.startswith("edge:"):
        folder = tmp_path / "captions"
        index.close()
        anew = Url(f"edge:{tmp_path / 'anew'}").open()
        anew.upsert(entries[removed:], vectors[removed:])
        anew.optimize()
        anew.close()
        assert occupied(folder) <= 1.1 * occupied(tmp_path / "anew") + 2**20
    else:
        index.close()
        assert deleted_vectors(engine.url) == 0
        alias = f"captions-{SPACE.fingerprint[:12]}"
        config = connect(engine.url).get_collection(alias).config.optimizer_config
        assert (config.deleted_threshold, config.vacuum_min_vector_number) == (0.2, 1000)


def deleted_vectors(url: str) -> int:
    """Vectors that are removed and still in a segment of the server."""
    with urllib.request.urlopen(f"{url}/telemetry?details_level=10") as answer:  # noqa: S310
        collections = json.load(answer)["result"]["collections"]["collections"]
    return sum(
        segment["info"]["num_deleted_vectors"]
        for collection in collections
        if SPACE.fingerprint[:12] in collection["id"]
        for shard in collection["shards"]
        for segment in shard["local"]["segments"]
    )
