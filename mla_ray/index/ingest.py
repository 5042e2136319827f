"""Caption tables into index collections: what `mla index` and the demo do.

`index_captions` takes a table that fits in memory; `mla_ray.index.bulk` takes any, and makes the
same points with the parts here.
"""

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from mla_ray.data.feature_store import key_of
from mla_ray.data.table_reader import Stream
from mla_ray.data.video import frames_of
from mla_ray.evaluation.evaluation import Gallery, encode_query
from mla_ray.index.backend import Quantization, VectorSpace
from mla_ray.index.collection import (
    CAPTIONS,
    IMAGES,
    RULE,
    CaptionIndex,
    Entry,
    open_collections,
)
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.directions import Floats, faults, norms
from mla_ray.model.native import Native
from mla_ray.model.text import normalized
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Report, counting

PICTURES = "pictures"
"""What `sync` counts beside collections."""
BATCH = 256


def space_of(native: Native) -> VectorSpace:
    return VectorSpace(native.name, native.fingerprint, native.dim, native.fingerprint_v1)


def image_entry(image_id: str, source: str) -> Entry:
    return Entry(image_id, image_id, "", "", source)


def caption_entry(image_id: str, language: str, caption: str, source: str) -> Entry:
    """Its id is of image and text, so that a caption written again replaces itself."""
    caption = normalized(caption)
    return Entry(f"{image_id}#{key_of(caption)}", image_id, language, caption, source)


def entries_of(captions: pa.Table, source: str) -> Iterator[Entry]:
    """Of each row of a caption table its image and its caption."""
    rows = captions.select(["image_id", "language", "caption"])
    for batch in rows.to_batches(max_chunksize=BATCH):
        for row in batch.to_pylist():
            yield image_entry(row["image_id"], source)
            yield caption_entry(row["image_id"], row["language"], row["caption"], source)


def keys_of(
    tables: Sequence[str | Path], source: str, language: str | None, languages: Collection[str]
) -> set[bytes]:
    """Keys of all images and captions in caption tables, for `sync`: about 120 bytes each.

    Also of images that cannot be read: they are in the table. `language` is that of tables without
    such a column. Raises InvalidTable if there are none at all.
    """
    defaults = {"language": language} if language else {}
    stream = Stream(tables, ("image_id", "language", "caption"), defaults, {}, languages)
    keys = {entry.key for chunk in stream for entry in entries_of(chunk, source)}
    stream.check(len(keys), skip_invalid=True)
    return keys


def require_packs(languages: Collection[str], packs: Collection[str]) -> None:
    """Raise a KeyError that names the languages that are neither English nor have a pack."""
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
    quantization: Quantization | None = None,
    reject: Callable[[str], None] = lambda reason: None,
) -> dict[str, int]:
    """Embed a caption table's images and captions into the collections at `url`.

    Captions of English go the native way, those of other languages through their pack; a language
    without one is a KeyError. The collections are opened before anything is encoded, and errors of
    `CaptionIndex.open` come then. Indexing twice changes nothing. An image or caption whose feature
    is zero or not finite is left out, alone, and `reject` is told why. Returns points written a
    collection.
    """
    languages = sorted(set(captions["language"].to_pylist()))
    require_packs(languages, packs)
    total = len(set(captions["image_id"].to_pylist())) + captions.num_rows
    advance = counting(report, "indexing", total)
    written = {IMAGES: 0, CAPTIONS: 0}
    with open_collections(url, space_of(native), quantization) as collections:
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
    """Remove from the collections at `url` all that `source` has there and `kept` has not.

    After a table was indexed this makes the index equal to it: what left the table is gone, so is
    the text of a caption before it was mended. Other sources stay as they are.

    Args:
        url: of the index, as `CaptionIndex.open` takes it.
        space: whose vectors it holds.
        source: the one to compare.
        kept: keys of entries (`Entry.key`) that stay, of tables by `keys_of`. If there are none,
            the whole source is removed.
        pictures: where small copies are kept; those of removed images go, too.

    Returns:
        How many were removed: by collection, and `pictures`.

    Raises:
        LookupError: there is no such collection; for the others see `CaptionIndex.open`.

    """
    removed = {IMAGES: 0, CAPTIONS: 0, PICTURES: 0}
    for name in (IMAGES, CAPTIONS):
        with CaptionIndex.open(url, space, name, create=False) as index:
            index.check_writable()
            gone = {e.key: e for e in index.entries(source=source) if e.key not in kept}
            if pictures and name == IMAGES:  # first: a run that is broken off is run again
                for entry in gone.values():
                    removed[PICTURES] += _forget(pictures, index, entry)
            index.delete(list(gone.values()))
            if gone:
                index.optimize()  # gives back their space
            removed[name] = len(gone)
    return removed


def owner(sources: Mapping[str, int]) -> str | None:
    """The source that an image id without one means, of `CaptionIndex.sources`; None if any.

    It is the one of the rule before, under which an id belonged to one source, or the only one.
    """
    former = [source for source, rule in sources.items() if rule != RULE]
    candidates = former or list(sources)
    return candidates[0] if len(candidates) == 1 else None


def _forget(pictures: PictureStore, images: CaptionIndex, image: Entry) -> bool:
    """Remove the picture of an image that is still in its collection; whether there was one."""
    removed = pictures.remove(image.id, image.source)
    if owner(images.sources(image.id)) == image.source:
        removed |= pictures.remove_former(image.id)
    return removed


def keep_pictures(captions: pa.Table, source: str, store: PictureStore, report: Report) -> None:
    """Keep a small copy of each image of a caption table, of a video a frame, for the page."""
    images = dict(zip(captions["image_id"].to_pylist(), captions["image"].to_pylist(), strict=True))
    advance = counting(report, "pictures", len(images))
    for image_id, data in images.items():
        store.put(image_id, source, frames_of(data, 1)[0])
        advance(1)
