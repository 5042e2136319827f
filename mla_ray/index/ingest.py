"""Indexing of caption tables, for `mla index` and the demo.

`index_captions` indexes a table that fits in memory. `mla_ray.index.bulk` indexes tables of any
size and makes the same points with the functions of this module.
"""

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from mla_ray.data.feature_store import key_of
from mla_ray.data.table_reader import Stream
from mla_ray.data.video import frames_of
from mla_ray.evaluation.evaluation import Gallery, encode_query
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import (
    CAPTIONS,
    IMAGES,
    RULE,
    CaptionIndex,
    open_collections,
)
from mla_ray.index.entry import Entry
from mla_ray.index.picture_store import PictureStore
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings
from mla_ray.model.directions import Floats, faults, norms
from mla_ray.model.native import Native
from mla_ray.model.text import normalized
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Report, counting

PICTURES = "pictures"
"""Key of the removed pictures in the result of `sync`, beside the names of collections."""
BATCH = 256
"""Rows that are encoded at a time."""


def space_of(native: Native) -> VectorSpace:
    """Return the vector space of a native."""
    return VectorSpace(native.name, native.fingerprint, native.dim, native.fingerprint_v1)


def image_entry(image_id: str, source: str) -> Entry:
    """Return the entry of an image."""
    return Entry(image_id, image_id, "", "", source)


def caption_entry(image_id: str, language: str, caption: str, source: str) -> Entry:
    """Return the entry of a caption, with its text normalized.

    The id is computed from the image id and the text, so a caption that is written again replaces
    itself.
    """
    caption = normalized(caption)
    return Entry(f"{image_id}#{key_of(caption)}", image_id, language, caption, source)


def entries_of(captions: pa.Table, source: str) -> Iterator[Entry]:
    """Yield the image entry and the caption entry of each row of a caption table."""
    rows = captions.select(["image_id", "language", "caption"])
    for batch in rows.to_batches(max_chunksize=BATCH):
        for row in batch.to_pylist():
            yield image_entry(row["image_id"], source)
            yield caption_entry(row["image_id"], row["language"], row["caption"], source)


def keys_of(
    tables: Sequence[str | Path], source: str, language: str | None, languages: Collection[str]
) -> set[bytes]:
    """Return the keys of all images and captions in caption tables, for `sync`.

    A key takes about 120 bytes of memory. Images that cannot be read are included, because the
    table has them.

    Args:
        tables: Caption tables, as paths or URLs.
        source: Name of the source.
        language: Language of tables without a column `language`.
        languages: Languages that rows are read as, as for `data.table_reader.Stream`.

    Raises:
        InvalidTable: The tables have no valid row.

    """
    defaults = {"language": language} if language else {}
    stream = Stream(tables, ("image_id", "language", "caption"), defaults, {}, languages)
    keys = {entry.key for chunk in stream for entry in entries_of(chunk, source)}
    stream.check(len(keys), skip_invalid=True)
    return keys


def require_packs(languages: Collection[str], packs: Collection[str]) -> None:
    """Raise a KeyError if any language but English has no pack; the message names them."""
    lacking = sorted(set(languages) - {"en", *packs})
    if lacking:
        raise KeyError(f"no pack for {', '.join(lacking)}; pass its folder with --pack")


def index_captions(
    url: str,
    native: Native,
    packs: Mapping[str, LanguagePack],
    captions: pa.Table,
    source: str,
    report: Report = lambda progress: None,
    *,
    settings: IndexSettings = ENGINE_DEFAULTS,
    reject: Callable[[str], None] = lambda reason: None,
) -> dict[str, int]:
    """Encode a caption table's images and captions and write them to the collections at `url`.

    The native encodes English captions, and packs encode captions in other languages. An image or
    caption whose feature is zero or not finite is skipped. Safe to call twice with the same table.

    The collections are opened before anything is encoded. Opening raises the errors of
    `CaptionIndex.open`.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        native: The native.
        packs: Packs by language.
        captions: Table with the columns image_id, image (bytes), language and caption.
        source: Name of the source, stored with every point.
        report: Receives progress.
        settings: Settings of collections that are created.
        reject: Receives the reason for each skipped image or caption.

    Returns:
        The number of points written, by collection.

    Raises:
        KeyError: A language has no pack.

    """
    languages = sorted(set(captions["language"].to_pylist()))
    require_packs(languages, packs)
    total = len(set(captions["image_id"].to_pylist())) + captions.num_rows
    advance = counting(report, "indexing", total)
    written = {IMAGES: 0, CAPTIONS: 0}
    with open_collections(url, space_of(native), settings) as collections:
        images, texts = collections[IMAGES], collections[CAPTIONS]
        gallery = Gallery.of(native, captions, advance)
        entries = [image_entry(image_id, source) for image_id in gallery.ids]
        written[IMAGES] = _upsert(images, entries, gallery.features, reject)
        for language in languages:
            rows = captions.filter(pa.compute.equal(captions["language"], language))
            for batch in rows.select(["image_id", "caption"]).to_batches(max_chunksize=BATCH):
                pairs = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
                vectors = encode_query(native, packs, language, [text for _, text in pairs])
                entries = [
                    caption_entry(image_id, language, text, source) for image_id, text in pairs
                ]
                written[CAPTIONS] += _upsert(texts, entries, vectors, reject)
                advance(len(pairs))
        for index in collections.values():
            index.optimize()
    return written


def _upsert(
    index: CaptionIndex, entries: list[Entry], features: Floats, reject: Callable[[str], None]
) -> int:
    bad = faults(norms(features))
    for row, fault in bad.items():
        reject(f"{entries[row].id!r}: its feature is {fault}")
    sound = [row for row in range(len(entries)) if row not in bad]
    return index.upsert([entries[row] for row in sound], features[sound])


def sync(
    url: str,
    space: VectorSpace,
    source: str,
    kept: Container[bytes],
    pictures: PictureStore | None = None,
) -> dict[str, int]:
    """Remove the entries of `source` whose keys are not in `kept` from the collections at `url`.

    Call it after indexing a table, to make the index equal to the table. It removes entries that
    are no longer in the table, including the old texts of corrected captions. Other sources are not
    changed.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        space: The native whose vectors the collections hold.
        source: Name of the source to compare.
        kept: Keys of the entries (`Entry.key`) that stay; `keys_of` returns those of tables. If it
            is empty, the whole source is removed.
        pictures: Store of small copies. Copies of removed images are removed, too.

    Returns:
        The number of removed entries by collection, and of removed `pictures`.

    Raises:
        LookupError: A collection does not exist. For other errors see `CaptionIndex.open`.

    """
    removed = {IMAGES: 0, CAPTIONS: 0, PICTURES: 0}
    for name in (IMAGES, CAPTIONS):
        with CaptionIndex.open(url, space, name, create=False) as index:
            index.check_writable()
            gone = {e.key: e for e in index.entries(source=source) if e.key not in kept}
            # Pictures first: if the run is interrupted, the next run still finds the entries.
            if pictures and name == IMAGES:
                for entry in gone.values():
                    sources = index.sources(entry.id)
                    removed[PICTURES] += forget_picture(pictures, entry.id, source, sources)
            index.delete(list(gone.values()))
            if gone:
                index.optimize()  # frees their disk space
            removed[name] = len(gone)
    return removed


def owner(sources: Mapping[str, int]) -> str | None:
    """Return the source of an image id that is given without one, or None if it is ambiguous.

    By the former rule an id belongs to one source, so a source with that rule comes first.
    Otherwise the id must have a single source.

    Args:
        sources: Result of `CaptionIndex.sources`.

    """
    former = [source for source, rule in sources.items() if rule != RULE]
    candidates = former or list(sources)
    return candidates[0] if len(candidates) == 1 else None


def forget_picture(
    pictures: PictureStore, image_id: str, source: str, sources: Mapping[str, int]
) -> bool:
    """Remove the picture of an image; return whether it existed.

    Args:
        pictures: Store of small copies.
        image_id: Id of the image.
        source: Source of the image.
        sources: Result of `CaptionIndex.sources` before the image is removed.

    """
    removed = pictures.remove(image_id, source)
    if owner(sources) == source:
        removed |= pictures.remove_former(image_id)
    return removed


def keep_pictures(captions: pa.Table, source: str, store: PictureStore, report: Report) -> None:
    """Store a small copy of each image of a caption table, for the search page.

    For a video the copy is of one frame.
    """
    images = dict(zip(captions["image_id"].to_pylist(), captions["image"].to_pylist(), strict=True))
    advance = counting(report, "pictures", len(images))
    for image_id, data in images.items():
        store.put(image_id, source, frames_of(data, 1)[0])
        advance(1)
