"""Indexing of caption tables, for `mla index` and the demo.

`index_captions` indexes a table that fits in memory. `mla_ray.index.bulk` indexes tables of any
size and makes the same points with the functions of this module.
"""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mla_ray.data.keys import key_of
from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import Stream
from mla_ray.data.video import frames_of
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.encoders import Encoders
from mla_ray.index.entry import RULE, Entry
from mla_ray.index.indexed import Indexed
from mla_ray.index.picture_store import PictureStore
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings
from mla_ray.index.stored import StoredHashes
from mla_ray.index.writing import open_collections
from mla_ray.model.directions import Floats, faults, norms
from mla_ray.model.text import normalized
from mla_ray.runtime.progress import Advance, Report, counting
from mla_ray.runtime.storage import patiently

if TYPE_CHECKING:  # they import torch, which takes seconds
    from mla_ray.model.native import Native
    from mla_ray.packs.pack import LanguagePack

Mask = npt.NDArray[np.bool_]
PICTURES = "pictures"
"""Key of the removed pictures in the result of `sync`, beside the names of collections."""
BATCH = 256
"""Rows that are encoded at a time."""


def space_of(native: "Native") -> VectorSpace:
    """Return the vector space of a native."""
    return Encoders(native, {}).space


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


def entries_in(chunks: Iterable[pa.Table], source: str) -> Iterator[Entry]:
    """Yield the entries of all chunks of a `text_stream`, as `entries_of` does."""
    return chain.from_iterable(entries_of(chunk, source) for chunk in chunks)


def text_stream(
    tables: Sequence[str | Path], language: str | None, languages: Collection[str]
) -> Stream:
    """Return the rows of caption tables of any size without their images.

    Args:
        tables: Caption tables, as paths or URLs.
        language: Language of tables without a column `language`.
        languages: Languages that rows are read as, as for `data.table_reader.Stream`.

    """
    defaults = {"language": language} if language else {}
    return Stream(tables, ("image_id", "language", "caption"), defaults, {}, languages)


def keys_of(
    tables: Sequence[str | Path], source: str, language: str | None, languages: Collection[str]
) -> set[bytes]:
    """Return the keys of all images and captions in caption tables, for `sync`.

    A key takes about 120 bytes of memory. Images that cannot be read are included, because the
    table has them. The arguments are those of `text_stream`, and the name of the source.

    Raises:
        InvalidTable: The tables have no valid row.

    """
    stream = text_stream(tables, language, languages)
    keys = {entry.key for entry in entries_in(stream, source)}
    stream.check(len(keys), skip_invalid=True)
    return keys


def require_packs(languages: Collection[str], packs: Collection[str]) -> None:
    """Raise a KeyError if any language but English has no pack; the message names them."""
    lacking = sorted(set(languages) - {"en", *packs})
    if lacking:
        raise KeyError(f"no pack for {', '.join(lacking)}; pass its folder with --pack")


def index_captions(
    url: str,
    native: "Native | str",
    packs: "Mapping[str, LanguagePack | str | Path]",
    captions: pa.Table,
    source: str,
    report: Report = lambda progress: None,
    *,
    settings: IndexSettings = ENGINE_DEFAULTS,
) -> Indexed:
    """Index a caption table that fits in memory with a native and packs; see `index_rows`."""
    encoders = Encoders(native, packs)
    return index_rows(url, encoders, captions, source, report, settings=settings)


def index_rows(
    url: str,
    encoders: Encoders,
    captions: pa.Table,
    source: str,
    report: Report = lambda progress: None,
    *,
    settings: IndexSettings = ENGINE_DEFAULTS,
    stored: StoredHashes | None = None,
    pictures: PictureStore | None = None,
) -> Indexed:
    """Make a caption table's images and captions points of the collections at `url`.

    Only those are encoded and written whose hash (`Encoders.hash_of`) the index does not have. The
    native encodes English captions, and packs encode captions in other languages. An image or
    caption whose feature is zero or not finite is rejected. Run it again after it was interrupted.

    The collections are opened before anything is encoded. Opening raises the errors of
    `CaptionIndex.open`.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        encoders: The native and the packs.
        captions: Table with the columns image_id, image (bytes), language and caption.
        source: Name of the source, stored with every point.
        report: Receives progress.
        settings: Settings of collections that are created.
        stored: Hashes that the index has of the table. By default it is asked. An empty set has
            everything encoded.
        pictures: Store for small copies of the images. Those of unchanged images are kept.

    Raises:
        KeyError: A language has no pack.
        ValueError: A pack belongs to another native or language.

    """
    languages = sorted(set(captions["language"].to_pylist()))
    require_packs(languages, encoders.languages)
    encoders.check()
    images = _distinct_images(captions)
    advance = counting(report, "indexing", images.num_rows + captions.num_rows)
    with open_collections(url, encoders.space, settings) as collections:
        if stored is None:
            stored = StoredHashes.of(collections, entries_of(captions, source))
        writer = _Writer(encoders, source, stored, collections, advance)
        if pictures:  # before the points: if the run is interrupted, the next one makes them again
            lacking = writer.image_is_new(images) | _without_picture(images, source, pictures)
            keep_pictures(images.filter(pa.array(lacking)), source, pictures, report)
        writer.images(images)
        for language in languages:
            writer.captions(language, captions.filter(pc.equal(captions["language"], language)))
        for index in collections.values():
            index.optimize()
    return writer.indexed


def stored_of_table(
    url: str,
    encoders: Encoders,
    table: str | Path,
    source: str,
    language: str | None,
    reencode: bool = False,
) -> StoredHashes:
    """Return the hashes that the index at `url` has of a caption table; none with `reencode`.

    A table that cannot be read has none, because reading it whole tells what is wrong with it.

    Raises:
        RuntimeError: Another process owns the folder of the index. For other errors see
            `CaptionIndex.open`.

    """
    if reencode:
        return StoredHashes()
    encoders.check()
    texts = text_stream([table], language, encoders.languages)
    try:
        return StoredHashes.at(url, encoders.space, entries_in(texts, source))
    except InvalidTable:
        return StoredHashes()


def images_to_check(
    encoders: Encoders, source: str, stored: StoredHashes
) -> Callable[[str, bytes], bool]:
    """Return the `check_images` of `read_captions` that spares unchanged images the decoding."""

    def is_new(image_id: str, digest: bytes) -> bool:
        return encoders.hash_of(image_entry(image_id, source), digest.hex()) not in stored

    return is_new


def _distinct_images(captions: pa.Table) -> pa.Table:
    """Return the first row of each image id, columns image_id and image."""
    first: dict[str, int] = {}
    for row, image_id in enumerate(captions["image_id"].to_pylist()):
        first.setdefault(image_id, row)
    return captions.select(["image_id", "image"]).take(list(first.values()))


class _Writer:
    """Encodes and writes the rows of a table that the index does not have, a batch at a time."""

    def __init__(
        self,
        encoders: Encoders,
        source: str,
        stored: StoredHashes,
        collections: Mapping[str, CaptionIndex],
        advance: Advance,
    ) -> None:
        self.indexed = Indexed()
        self._encoders = encoders
        self._source = source
        self._stored = stored
        self._collections = collections
        self._advance = advance

    def image_is_new(self, images: pa.Table) -> Mask:
        """Return `[N]` bool: the images that the index does not have with these bytes."""
        pairs = zip(images["image_id"].to_pylist(), images["image"], strict=True)
        hashes = (self._image(image_id, cell.as_py())[1] for image_id, cell in pairs)
        return np.array([hash_ not in self._stored for hash_ in hashes], np.bool_)

    def images(self, images: pa.Table) -> None:
        """Index the images of a table with the columns image_id and image."""
        for batch in images.to_batches(max_chunksize=BATCH):
            pairs = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            hashed = [self._image(image_id, data) for image_id, data in pairs]

            def encode(rows: list[int], pairs: list[tuple[str, bytes]] = pairs) -> Floats:
                frames = (frames_of(pairs[row][1]) for row in rows)
                return np.concatenate(list(self._encoders.encode_images(frames)))

            self._write(IMAGES, hashed, encode)

    def captions(self, language: str, rows: pa.Table) -> None:
        """Index captions in one language, of a table with the columns image_id and caption."""
        for batch in rows.select(["image_id", "caption"]).to_batches(max_chunksize=BATCH):
            pairs = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            entries = [caption_entry(id_, language, text, self._source) for id_, text in pairs]
            hashed = [(entry, self._encoders.hash_of(entry)) for entry in entries]

            def encode(rows: list[int], entries: list[Entry] = entries) -> Floats:
                texts = [entries[row].caption for row in rows]
                return self._encoders.encode_captions(language, texts)

            self._write(CAPTIONS, hashed, encode)

    def _image(self, image_id: str, data: bytes) -> tuple[Entry, str | None]:
        entry = image_entry(image_id, self._source)
        return entry, self._encoders.hash_of(entry, key_of(data))

    def _write(
        self,
        collection: str,
        hashed: list[tuple[Entry, str | None]],
        encode: Callable[[list[int]], Floats],
    ) -> None:
        """Write the entries that the index does not have.

        Args:
            collection: Name of the collection.
            hashed: Each entry and its hash.
            encode: Returns the features `[N, E]` of N rows of `hashed`.

        """
        new = [row for row, (_, hash_) in enumerate(hashed) if hash_ not in self._stored]
        written = 0
        if new:
            features = encode(new)
            bad = faults(norms(features))
            for place, fault in bad.items():
                self.indexed.reject(f"{hashed[new[place]][0].id!r}: its feature is {fault}")
            sound = [place for place in range(len(new)) if place not in bad]
            entries = [hashed[new[place]][0] for place in sound]
            hashes = [hashed[new[place]][1] for place in sound]
            index = self._collections[collection]
            upsert = partial(index.upsert, entries, features[sound], hashes)
            written = patiently(upsert, what=f"writing {collection}")
        self.indexed.count(collection, encoded=written, unchanged=len(hashed) - len(new))
        self._advance(len(hashed))


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


def _without_picture(images: pa.Table, source: str, store: PictureStore) -> Mask:
    """Return `[N]` bool: the images of which the store has no copy."""
    ids = images["image_id"].to_pylist()
    return np.array([not store.has(image_id, source) for image_id in ids], np.bool_)
