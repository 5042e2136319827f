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
from PIL import Image
from ray.data import ActorPoolStrategy

from mla_ray.data.keys import key_of
from mla_ray.data.table_images import image_fault, read_image
from mla_ray.data.video import frames_of
from mla_ray.index.collection import CAPTIONS, IMAGES
from mla_ray.index.encoders import Encoders
from mla_ray.index.entry import Entry
from mla_ray.index.indexed import Indexed
from mla_ray.index.ingest import (
    BATCH,
    caption_entry,
    entries_in,
    image_entry,
    keys_of,
    require_packs,
    text_stream,
)
from mla_ray.index.ingest import sync as remove_what_left
from mla_ray.index.picture_store import PictureStore
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings
from mla_ray.index.sink import FIELDS, IndexSink, upsert_block
from mla_ray.index.stored import StoredHashes
from mla_ray.index.table_blocks import BlockRow, read_blocks, survey
from mla_ray.index.writing import open_collections
from mla_ray.model.directions import Floats
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
    reencode: bool = False,
) -> Indexed:
    """Make the images and captions of caption tables points of the collections at `url`.

    Only those are encoded and written whose hash (`Encoders.hash_of`) the index does not have.

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
        reencode: Encode and write everything.

    Returns:
        The numbers of points. An image with rows in several blocks counts once per block.

    Raises:
        KeyError: A language of the tables has no pack.
        InvalidTable: A table does not exist, cannot be read or lacks a column.
        ValueError: A pack belongs to another native or language, or a collection does not match.
        ConnectionError: The server stayed unavailable for longer than `storage.PAUSES`.

    """
    encoders = Encoders(native_name, packs, "cpu")
    encoders.check()
    known = encoders.languages
    in_tables, total = survey(tables, language, known)
    wanted = in_tables if languages is None else in_tables & set(languages)
    require_packs(wanted, packs)
    space, indexed = encoders.space, Indexed()
    stored = StoredHashes()
    if not reencode:
        texts = text_stream(tables, language, known)
        ours = (
            rows.filter(pc.is_in(rows["language"], pa.array(sorted(wanted), pa.string())))
            for rows in texts
        )
        stored = StoredHashes.at(url, space, entries_in(ours, source))
    if reencode or stored.lacking:
        encoders.load()  # so that what cannot be loaded is refused now
    blocks = read_blocks(tables, language, known, wanted)
    del encoders  # each actor loads its own
    encoded = _encode(native_name, packs, blocks, source, stored)
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
    native_name: str,
    packs: Mapping[str, str | Path],
    rows: ray.data.Dataset,
    source: str,
    stored: StoredHashes,
) -> ray.data.Dataset:
    cpus = int(ray.cluster_resources().get("CPU", 1))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return rows.map_batches(
        PointEncoder,
        fn_constructor_kwargs={
            "native": native_name,
            "packs": {language: str(folder) for language, folder in packs.items()},
            "source": source,
            "stored": ray.put(stored),  # its array is shared by the actors of a node
        },
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, gpus or cpus)),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        batch_size=BLOCK,
        batch_format="pyarrow",
    )


class _EncodedPoint(NamedTuple):
    """Point of a row's caption or of a distinct image, or the reason why there is none.

    A point without vector and reason is unchanged in the index.
    """

    collection: str
    entry: Entry
    hash: str | None = None
    vector: Floats | None = None  # [E]
    reason: str | None = None


class PointEncoder:
    """Ray Data actor that encodes what an index lacks of blocks, with a native and its packs.

    Both are loaded when the first point must be encoded. It keeps no other state between blocks,
    not even which images it saw. Ray may run a lost block again on the same actor, and the result
    must be complete.

    Args:
        native: Name for `Native.load`.
        packs: Folder of each language's pack.
        source: Name of the source.
        stored: Hashes that the index has, or the reference of such an object in Ray's store.

    """

    def __init__(
        self,
        native: str,
        packs: Mapping[str, str],
        source: str,
        stored: "StoredHashes | ray.ObjectRef",
    ) -> None:
        self.encoders = Encoders(native, packs)
        self.source = source
        is_here = isinstance(stored, StoredHashes)
        self.stored: StoredHashes = stored if is_here else ray.get(stored)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Encode a block of rows with `table_blocks.BLOCK_SCHEMA`.

        Returns:
            A table with the fields of an `Entry`, `collection`, `hash`, `vector` `[E]` float32 and
            `reason`. A point that is rejected has a reason and no vector. A point that is unchanged
            in the index has neither.

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
        for name in ("collection", "hash", "reason"):
            columns[name] = pa.array([getattr(point, name) for point in points], pa.string())
        of_E = pa.list_(pa.float32(), self.encoders.identity.dim)
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
        points: list[_EncodedPoint] = []
        new: list[_EncodedPoint] = []

        def decoded() -> Iterator[list[Image.Image]]:
            for image_id, row in first.items():
                try:
                    data = read_image(row.image, as_path(row.folder))
                    entry = image_entry(image_id, self.source)
                    point = _EncodedPoint(IMAGES, entry, self.encoders.hash_of(entry, key_of(data)))
                    if point.hash in self.stored:
                        points.append(point)
                        continue
                    frames = frames_of(data)
                except (ValueError, OSError) as error:
                    faults.setdefault(image_id, image_fault(image_id, row.image, error))
                else:
                    new.append(point)
                    yield frames

        vectors = [vector for part in self.encoders.encode_images(decoded()) for vector in part]
        points += map(_with_vector, new, vectors)
        return [point for point in points if point.entry.image_id not in faults], faults

    def _captions(self, rows: Sequence[BlockRow]) -> Iterator[_EncodedPoint]:
        by_language: dict[str, list[_EncodedPoint]] = {}
        for row in rows:
            entry = caption_entry(row.image_id, row.language, row.caption, self.source)
            point = _EncodedPoint(CAPTIONS, entry, self.encoders.hash_of(entry))
            if point.hash in self.stored:
                yield point
            else:
                by_language.setdefault(row.language, []).append(point)
        for language, points in sorted(by_language.items()):
            for start in range(0, len(points), BATCH):
                batch = points[start : start + BATCH]
                texts = [point.entry.caption for point in batch]
                vectors = self.encoders.encode_captions(language, texts)
                yield from map(_with_vector, batch, vectors)


def _with_vector(point: _EncodedPoint, vector: Floats) -> _EncodedPoint:
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if np.isfinite(length) and length > 0:
        return point._replace(vector=vector)
    return point._replace(reason=f"{point.entry.id!r}: its vector is zero or not finite")


def _refused(collection: str, reason: str) -> _EncodedPoint:
    return _EncodedPoint(collection, Entry("", "", "", "", ""), reason=reason)
