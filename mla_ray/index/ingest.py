"""Caption tables into index collections: what `mla index` and the demo do.

`index_captions` takes a table that fits in memory; `mla_ray.index.bulk` takes any, and makes the
same points with the parts here.
"""

from collections.abc import Collection, Mapping

import pyarrow as pa

from mla_ray.data.feature_store import key_of
from mla_ray.data.video import frames_of
from mla_ray.evaluation.evaluation import Gallery, encode_query
from mla_ray.index.collection import CaptionIndex, Entry, Quantization, Space
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Progress, Report

IMAGES, CAPTIONS = "images", "captions"
BATCH = 256


def space_of(native: Native) -> Space:
    return Space(native.name, native.fingerprint, native.dim, native.fingerprint_v1)


def image_entry(image_id: str, source: str) -> Entry:
    return Entry(image_id, image_id, "", "", source)


def caption_entry(image_id: str, language: str, caption: str, source: str) -> Entry:
    """Its id is of image and text, so that a caption written again replaces itself."""
    return Entry(f"{image_id}#{key_of(caption)}", image_id, language, caption, source)


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
) -> dict[str, int]:
    """Embed a caption table's images and captions into the collections at `url`.

    Captions of English go the native way, those of other languages through their pack; a language
    without one is a KeyError. Indexing twice changes nothing. Returns points written a collection.
    """
    languages = sorted(set(captions["language"].to_pylist()))
    require_packs(languages, packs)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(Progress("indexing", done, total))

    total = len(set(captions["image_id"].to_pylist())) + captions.num_rows
    gallery = Gallery.of(native, captions, advance)
    written = {}
    with CaptionIndex.open(url, space_of(native), IMAGES, quantization=quantization) as index:
        entries = [image_entry(image_id, source) for image_id in gallery.ids]
        written[IMAGES] = index.upsert(entries, gallery.features)
        index.optimize()
    with CaptionIndex.open(url, space_of(native), CAPTIONS, quantization=quantization) as index:
        written[CAPTIONS] = 0
        for language in languages:
            rows = captions.filter(pa.compute.equal(captions["language"], language))
            for batch in rows.select(["image_id", "caption"]).to_batches(max_chunksize=BATCH):
                image_ids, texts = (batch[name].to_pylist() for name in ("image_id", "caption"))
                vectors = encode_query(native, packs, language, texts)
                entries = [
                    caption_entry(image_id, language, text, source)
                    for image_id, text in zip(image_ids, texts, strict=True)
                ]
                written[CAPTIONS] += index.upsert(entries, vectors)
                advance(len(texts))
        index.optimize()
    return written


def keep_pictures(captions: pa.Table, store: PictureStore, report: Report) -> None:
    """Keep a small copy of each image of a caption table, of a video a frame, for the page."""
    images = dict(zip(captions["image_id"].to_pylist(), captions["image"].to_pylist(), strict=True))
    for done, (image_id, data) in enumerate(images.items(), 1):
        store.put(image_id, frames_of(data, 1)[0])
        report(Progress("pictures", done, len(images)))
