"""Indexing of caption tables of any size on a cluster, with Ray Data.

    read (like any other table) -> encode (actors with a native and its packs) -> write

The points are the same as those of `ingest.index_captions`. A point's id is computed from its
content, so a run that was killed can be run again without lost or duplicate points. The tables are
streamed: the calling process holds a block at a time, never a table.

Several tasks write to a server at the same time. An `edge:` folder has one owner, so the calling
process writes to it.

Shapes: N points, E joint embedding size.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from PIL import Image
from ray.data import ActorPoolStrategy

from mla_ray.data.feature_store import BATCH, Features, encode_frames
from mla_ray.data.table_images import image_fault, read_image
from mla_ray.data.video import frames_of
from mla_ray.evaluation.evaluation import encode_query
from mla_ray.index.collection import CAPTIONS, IMAGES, open_collections
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import caption_entry, image_entry, keys_of, require_packs, space_of
from mla_ray.index.ingest import sync as remove_what_left
from mla_ray.index.picture_store import PictureStore
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings
from mla_ray.index.sink import FIELDS, Indexed, IndexSink, upsert_block
from mla_ray.index.table_blocks import BlockRow, read_blocks, survey
from mla_ray.model.language import ENGLISH
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Progress, Report, counting
from mla_ray.runtime.storage import as_path

BLOCK = 1024
"""Rows per call of an actor. It encodes each image once per block, even if several rows have it."""
WRITERS = 4
"""Number of concurrent write tasks."""


def index_table(
    url: str,
    native_name: str,
    packs: Mapping[str, str | Path],
    tables: Sequence[str],
    source: str,
    report: Report = lambda progress: None,
    *,
    languages: Collection[str] | None = None,
    language: str | None = None,
    settings: IndexSettings = ENGINE_DEFAULTS,
    sync: bool = False,
    pictures: PictureStore | None = None,
) -> Indexed:
    """Encode the images and captions of caption tables and write them to the collections at `url`.

    Ray must have been started. A row that is invalid, or whose image is, is skipped and counted
    with its reason. KeyError, InvalidTable and ValueError are raised before anything is encoded.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        native_name: Name for `Native.load`, valid on every node.
        packs: Folder of each language's pack, the same on every node.
        tables: Caption tables or folders of Parquet files, as paths or URLs, in any format that
            `data.table_reader` reads. Paths of image files are relative to the table's folder.
        source: Name of the source, stored with every point.
        report: Receives progress after each block; for a server only at the end.
        languages: Index only rows in these languages; all rows by default.
        language: Language of tables without a column `language`.
        settings: Settings of collections that are created.
        sync: Remove entries of `source` that are no longer in the tables, as `ingest.sync` does.
            Entries of images that cannot be read stay.
        pictures: With `sync`, the store of small copies. Copies of removed images are removed.

    Returns:
        The number of points written. An image with rows in several blocks counts once per block.

    Raises:
        KeyError: A language of the tables has no pack.
        InvalidTable: A table does not exist, cannot be read or lacks a column.
        ValueError: A pack belongs to another native or language, or a collection does not match.
        ConnectionError: The server stayed unavailable for longer than `storage.PAUSES`.

    """
    native = Native.load(native_name)
    for tag, folder in packs.items():
        of_pack = LanguagePack.load(folder, native).card.language
        if of_pack != tag:
            raise ValueError(f"{folder} is a pack for {of_pack!r}, not for {tag!r}")
    known = [ENGLISH, *packs]
    in_tables, total = survey(tables, language, known)
    wanted = in_tables if languages is None else in_tables & set(languages)
    require_packs(wanted, packs)
    space, indexed = space_of(native), Indexed()
    encoded = _encode(native_name, packs, read_blocks(tables, language, known, wanted), source)
    del native  # each actor loads its own
    if url.startswith(("http", "grpc")):
        with open_collections(url, space, settings):
            pass  # create them once, before several tasks try to
        sink = IndexSink(url, space)
        encoded.write_datasink(sink, concurrency=WRITERS, ray_remote_args={"num_cpus": 0})
        indexed = sink.indexed
        report(Progress("indexing", total, total))
    else:
        with open_collections(url, space, settings) as collections:
            advance = counting(report, "indexing", total)
            for block in encoded.iter_batches(batch_size=BLOCK, batch_format="pyarrow"):
                indexed.add(upsert_block(collections, block))
                advance(pc.sum(pc.equal(block["collection"], CAPTIONS)).as_py() or 0)
            for index in collections.values():
                index.optimize()
                index.flush()
    if sync:
        kept = keys_of(tables, source, language, known)
        indexed.removed = remove_what_left(url, space, source, kept, pictures)
    return indexed


def _encode(
    native_name: str, packs: Mapping[str, str | Path], rows: ray.data.Dataset, source: str
) -> ray.data.Dataset:
    cpus = int(ray.cluster_resources().get("CPU", 1))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return rows.map_batches(
        PointEncoder,
        fn_constructor_kwargs={
            "native": native_name,
            "packs": {language: str(folder) for language, folder in packs.items()},
            "source": source,
        },
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, gpus or cpus)),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        batch_size=BLOCK,
        batch_format="pyarrow",
    )


class _EncodedPoint(NamedTuple):
    """Point of a row's caption or of a distinct image, or the reason why there is none."""

    collection: str
    entry: Entry
    vector: Features | None  # [E]
    reason: str | None


class PointEncoder:
    """Ray Data actor that encodes blocks with a native and its packs.

    It keeps no state between blocks, not even which images it saw. Ray may run a lost block again
    on the same actor, and the result must be complete.
    """

    def __init__(self, native: str, packs: Mapping[str, str], source: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.native = Native.load(native, device)
        self.packs = {tag: LanguagePack.load(folder, self.native) for tag, folder in packs.items()}
        self.source = source

    def __call__(self, block: pa.Table) -> pa.Table:
        """Encode a block of rows with `table_blocks.BLOCK_SCHEMA`.

        Returns:
            A table with the fields of an `Entry`, `collection`, `vector` `[E]` float32 and
            `reason`. A point that is rejected has a reason and no vector.

        """
        rows = BlockRow.all_of(block)
        points = [_refused(CAPTIONS, fault) for fault in block["fault"].drop_null().to_pylist()]
        images, faults = self._images(rows)
        points += images
        bad = [row for row in rows if row.image_id in faults]
        points += [_refused(CAPTIONS, f"{row.place}: {faults[row.image_id]}") for row in bad]
        points += self._captions([row for row in rows if row.image_id not in faults])
        columns: dict[str, pa.Array] = {
            name: pa.array([getattr(point.entry, name) for point in points], pa.string())
            for name in FIELDS
        }
        for name in ("collection", "reason"):
            columns[name] = pa.array([getattr(point, name) for point in points], pa.string())
        of_E = pa.list_(pa.float32(), self.native.dim)
        columns["vector"] = pa.array([point.vector for point in points], of_E)
        return pa.table(columns)

    def _images(self, rows: Sequence[BlockRow]) -> tuple[list[_EncodedPoint], dict[str, str]]:
        """Return the points of the distinct valid images, and the faults of the others by id."""
        first: dict[str, BlockRow] = {}
        faults: dict[str, str] = {}
        for row in rows:
            earlier = first.setdefault(row.image_id, row)
            if row.image != earlier.image:
                faults[row.image_id] = (
                    f"image_id {row.image_id!r} has another image in {earlier.place}; give "
                    "each image an id of its own"
                )
        ids: list[str] = []

        def decoded() -> Iterator[list[Image.Image]]:
            for image_id, row in first.items():
                try:
                    frames = frames_of(read_image(row.image, as_path(row.folder)))
                except (ValueError, OSError) as error:
                    faults.setdefault(image_id, image_fault(image_id, row.image, error))
                else:
                    ids.append(image_id)
                    yield frames

        points: list[_EncodedPoint] = []
        for vectors in encode_frames(self.native, decoded()):
            for image_id, vector in zip(ids[len(points) :], vectors, strict=False):
                points.append(_encoded(IMAGES, image_entry(image_id, self.source), vector))
        return [point for point in points if point.entry.image_id not in faults], faults

    def _captions(self, rows: Sequence[BlockRow]) -> Iterator[_EncodedPoint]:
        by_language: dict[str, list[Entry]] = {}
        for row in rows:
            entry = caption_entry(row.image_id, row.language, row.caption, self.source)
            by_language.setdefault(row.language, []).append(entry)
        for language, entries in sorted(by_language.items()):
            for start in range(0, len(entries), BATCH):
                batch = entries[start : start + BATCH]
                texts = [entry.caption for entry in batch]
                features = encode_query(self.native, self.packs, language, texts)
                for entry, vector in zip(batch, features, strict=True):
                    yield _encoded(CAPTIONS, entry, vector)


def _encoded(collection: str, entry: Entry, vector: Features) -> _EncodedPoint:
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if np.isfinite(length) and length > 0:
        return _EncodedPoint(collection, entry, vector, None)
    return _EncodedPoint(collection, entry, None, f"{entry.id!r}: its vector is zero or not finite")


def _refused(collection: str, reason: str) -> _EncodedPoint:
    return _EncodedPoint(collection, Entry("", "", "", "", ""), None, reason)
