"""Caption tables of any size into index collections, on a cluster with Ray Data.

    read, as every table is read -> encode, actors that hold a native and its packs -> write

The points are those of `ingest.index_captions`: an id is made of what it names, so a run that was
killed is run again and neither loses nor doubles anything. Nothing is held but what is on
its way: the process that calls keeps a block of the stream, never a table.

To a server many tasks write at once. An `edge:` folder has one owner, so there the caller's process
writes what the cluster encodes.

Shapes: N points, E joint embedding size.
"""

import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.datasource import Datasink, WriteResult
from upath import UPath

from mla_ray.data.feature_store import BATCH, Features, encode_frames
from mla_ray.data.table_reader import Stream, find_image
from mla_ray.data.video import frames_of
from mla_ray.evaluation.evaluation import encode_query
from mla_ray.index.collection import CaptionIndex, Entry, Quantization, Space
from mla_ray.index.ingest import (
    CAPTIONS,
    IMAGES,
    caption_entry,
    image_entry,
    keys_of,
    require_packs,
    space_of,
)
from mla_ray.index.ingest import sync as remove_what_left
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import at, patiently

FIELDS = tuple(field.name for field in fields(Entry))
BLOCK = 1024  # rows that an actor takes at once; of an image's rows among them one is encoded
MAX_REASONS = 1000
READERS, WRITERS = 2, 4  # tasks at a time


@dataclass
class Indexed:
    """What was written, by collection, and what was not."""

    written: dict[str, int] = field(default_factory=lambda: {IMAGES: 0, CAPTIONS: 0})
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)  # of the first MAX_REASONS
    removed: dict[str, int] = field(default_factory=dict)  # by a sync, as `ingest.sync` counts

    def add(self, other: "Indexed") -> None:
        for name, count in other.written.items():
            self.written[name] += count
        self.rejected += other.rejected
        self.reasons = (self.reasons + other.reasons)[:MAX_REASONS]


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
    quantization: Quantization | None = None,
    sync: bool = False,
    pictures: PictureStore | None = None,
) -> Indexed:
    """Embed the images and captions of caption tables into the collections at `url`.

    The caller has started Ray.

    Args:
        url: of the index, as `CaptionIndex.open` takes it.
        native_name: as `Native.load` takes it, on every node.
        packs: a pack's folder by language, the same on every node.
        tables: caption tables, or folders of Parquet files, paths or URLs, in any format that
            `data.table_reader` reads. Where an image's file is, is said from the table's folder.
        source: kept with every point.
        report: called as blocks are written; for a server once, at the end.
        languages: rows of others are passed over; all if not given.
        language: of the tables that have no column `language`.
        quantization: of collections that are made now.
        sync: remove what `source` has in the index and the tables no longer have, as
            `ingest.sync`. What there is of an image that cannot be read stays.
        pictures: with `sync`, where small copies of images are kept; those of removed images go.

    Returns:
        How many points were written; an image with rows in several blocks counts in each. A row
        that is bad, or whose image is, is left out, alone, and counted with its reason.

    Raises:
        KeyError: a language of the tables has no pack. Found before anything is encoded, as are
            InvalidTable (a table that is not there, cannot be read, or lacks a column) and
            ValueError (a pack of another native or language, a collection that does not fit).
        ConnectionError: the server stayed away for longer than `storage.PAUSES`.

    """
    native = Native.load(native_name)
    for language, folder in packs.items():
        found = LanguagePack.load(folder, native).card.language
        if found != language:
            raise ValueError(f"{folder} is a pack for {found!r}, not for {language!r}")
    found_languages, total = survey(tables, language)
    wanted = found_languages if languages is None else found_languages & set(languages)
    require_packs(wanted, packs)
    space, done = space_of(native), Indexed()
    encoded = _encode(native_name, packs, _read(tables, language, wanted), source)
    del native  # the actors have their own
    if url.startswith(("http", "grpc")):
        with _opened(url, space, quantization):
            pass  # made once, before many tasks would
        sink = IndexSink(url, space)
        encoded.write_datasink(sink, concurrency=WRITERS, ray_remote_args={"num_cpus": 0})
        done = sink.done
        report(Progress("indexing", total, total))
    else:
        with _opened(url, space, quantization) as collections:
            rows = 0
            for block in encoded.iter_batches(batch_size=BLOCK, batch_format="pyarrow"):
                done.add(write(collections, block))
                rows += pc.sum(pc.equal(block["collection"], CAPTIONS)).as_py() or 0
                report(Progress("indexing", rows, total))
            for index in collections.values():
                index.optimize()
                index.flush()
    if sync:
        kept = keys_of(tables, source, language)
        done.removed = remove_what_left(url, space, source, kept, pictures)
    return done


def survey(tables: Sequence[str], language: str | None = None) -> tuple[set[str], int]:
    """Languages in `tables`, as BCP-47 writes them, and rows.

    Reads that one column, and of every file as much of the others as tells that they are there.
    """
    languages: set[str] = set()
    rows = 0
    for file in map(str, _files(tables)):
        next(iter(Stream.captions([file], language, every_language=True)), None)
        stream = Stream.languages([file], language)
        for piece in stream:
            languages.update(pc.unique(piece["language"]).to_pylist())
        rows += stream.rows + stream.refused
    return languages, rows


def write(collections: Mapping[str, CaptionIndex], block: pa.Table) -> Indexed:
    """Upsert a block of `_Encoder`'s, trying again for a while where no server answers."""
    done = Indexed()
    good = block.filter(pc.is_null(block["reason"]))
    for collection, index in collections.items():
        rows = good.filter(pc.equal(good["collection"], collection))
        columns = (rows[name].to_pylist() for name in FIELDS)
        entries = [Entry(*row) for row in zip(*columns, strict=True)]
        flat = rows["vector"].combine_chunks().flatten().to_numpy()
        vectors_NE = flat.reshape(len(entries), index.space.dim)
        done.written[collection] = patiently(
            partial(index.upsert, entries, vectors_NE), what=f"writing {collection}"
        )
    reasons = block["reason"].drop_null().to_pylist()
    done.rejected, done.reasons = len(reasons), reasons[:MAX_REASONS]
    return done


class IndexSink(Datasink):  # type: ignore[misc]  # Ray is untyped
    """Writes encoded blocks to a server from many tasks, each with its own client.

    The package ray-qdrant has a sink that could: it takes ids, payload and a named vector. But a
    zero vector or one bad row fails its task, and ids, lengths and errors would then have two
    homes; through `CaptionIndex.upsert` a point is the same whoever writes it. The collections
    exist already.
    """

    def __init__(self, url: str, space: Space) -> None:
        self.url = url
        self.space = space
        self.done = Indexed()

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> Indexed:
        done = Indexed()
        with ExitStack() as stack:
            opened = patiently(
                lambda: stack.enter_context(_opened(self.url, self.space)),
                what="opening the index",
            )
            for block in blocks:
                done.add(write(opened, block))
        return done

    def on_write_complete(self, write_result: WriteResult) -> None:
        for done in write_result.write_returns:
            self.done.add(done)


@contextmanager
def _opened(
    url: str, space: Space, quantization: Quantization | None = None
) -> Iterator[dict[str, CaptionIndex]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                CaptionIndex.open(url, space, name, quantization=quantization)
            )
            for name in (IMAGES, CAPTIONS)
        }


BLOCK_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "content": pa.large_binary(),  # of an image whose bytes are in the table
        "uri": pa.string(),  # of one that is elsewhere
        "folder": pa.string(),  # of the table
        "language": pa.string(),
        "caption": pa.string(),
        "place": pa.string(),  # file and row
        "fault": pa.string(),  # of a row that is no use; the columns above are null then
    }
)


def _read(tables: Sequence[str], language: str | None, wanted: Collection[str]) -> ray.data.Dataset:
    """The rows of tables as `BLOCK_SCHEMA` has them; a task reads a file."""
    # Not "ray.data" itself: Ray sets that one anew before every execution.
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # of small tables
    files = [pa.table({"file": [str(file)]}) for file in _files(tables)]
    # Reading takes no core: a task that waits for one while actors hold them all waits for ever.
    return ray.data.from_arrow(files).map_batches(
        _rows_of,
        fn_kwargs={"language": language, "wanted": sorted(wanted)},
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=READERS),
        num_cpus=0,
    )


def _files(tables: Sequence[str]) -> list[UPath]:
    return Stream.captions(tables).files


def _rows_of(files: pa.Table, language: str | None, wanted: Sequence[str]) -> Iterator[pa.Table]:
    for file in files["file"].to_pylist():
        stream = Stream.captions([file], language, every_language=True)
        folder = str(stream.files[0].parent)
        for piece in stream:
            rows = piece.filter(pc.is_in(piece["language"], pa.array(wanted, pa.string())))
            inside = pa.types.is_large_binary(rows["image"].type)
            nothing = pa.nulls(len(rows))
            yield pa.table(
                {
                    "image_id": rows["image_id"],
                    "content": rows["image"] if inside else nothing,
                    "uri": nothing if inside else rows["image"],
                    "folder": pa.array([folder] * len(rows)),
                    "language": rows["language"],
                    "caption": rows["caption"],
                    "place": pa.array([stream.place(0, row) for row in rows["row"].to_pylist()]),
                    "fault": nothing,
                }
            ).cast(BLOCK_SCHEMA)
        faults = [str(problem) for problem in stream.problems]
        faults += [f"{file}: a row like these"] * (stream.refused - len(faults))
        yield pa.Table.from_pylist([{"fault": fault} for fault in faults], BLOCK_SCHEMA)


def _encode(
    native_name: str, packs: Mapping[str, str | Path], rows: ray.data.Dataset, source: str
) -> ray.data.Dataset:
    cpus = int(ray.cluster_resources().get("CPU", 1))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return rows.map_batches(
        _Encoder,
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


class _Made(NamedTuple):
    """Of each row one, of each distinct image one: a point, or the reason why there is none."""

    collection: str
    entry: Entry
    vector: Features | None  # [E]
    reason: str | None


class _Encoder:
    """One Ray Data actor: a native and packs, held.

    It keeps nothing from block to block, not even which images it saw: a block that is lost is
    encoded again, perhaps here, and must come out whole.
    """

    def __init__(self, native: str, packs: Mapping[str, str], source: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.native = Native.load(native, device)
        self.packs = {tag: LanguagePack.load(folder, self.native) for tag, folder in packs.items()}
        self.source = source

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = [row for row in block.to_pylist() if row["fault"] is None]
        made = [_refused(CAPTIONS, fault) for fault in block["fault"].drop_null().to_pylist()]
        images, faults = self._images(rows)
        made += images
        good = [row for row in rows if row["image_id"] not in faults]
        bad = [row for row in rows if row["image_id"] in faults]
        made += [_refused(CAPTIONS, f"{row['place']}: {faults[row['image_id']]}") for row in bad]
        made += self._captions(good)
        columns: dict[str, pa.Array] = {
            name: pa.array([getattr(point.entry, name) for point in made], pa.string())
            for name in FIELDS
        }
        for name in ("collection", "reason"):
            columns[name] = pa.array([getattr(point, name) for point in made], pa.string())
        of_E = pa.list_(pa.float32(), self.native.dim)
        columns["vector"] = pa.array([point.vector for point in made], of_E)
        return pa.table(columns)

    def _images(self, rows: list[dict[str, Any]]) -> tuple[list[_Made], dict[str, str]]:
        """Points of the distinct images of some rows, and what is wrong with the others, by id."""
        cells: dict[str, dict[str, Any]] = {}
        faults: dict[str, str] = {}
        for row in rows:
            first = cells.setdefault(row["image_id"], row)
            if (row["content"], row["uri"]) != (first["content"], first["uri"]):
                faults[row["image_id"]] = (
                    f"image_id {row['image_id']!r} has another image in {first['place']}; give "
                    "each image an id of its own"
                )
        ids: list[str] = []

        def decoded() -> Iterator[list[Image.Image]]:
            for image_id, row in cells.items():
                try:
                    frames = frames_of(_bytes_of(row))
                except (ValueError, OSError) as error:
                    name = repr(row["uri"]) if row["uri"] else f"of {image_id!r}"
                    faults.setdefault(image_id, f"image {name} {error}")
                else:
                    ids.append(image_id)
                    yield frames

        made: list[_Made] = []
        for vectors in encode_frames(self.native, decoded()):
            for image_id, vector in zip(ids[len(made) :], vectors, strict=False):
                made.append(_made(IMAGES, image_entry(image_id, self.source), vector))
        return [point for point in made if point.entry.image_id not in faults], faults

    def _captions(self, rows: list[dict[str, Any]]) -> Iterator[_Made]:
        by_language: dict[str, list[Entry]] = {}
        for row in rows:
            entry = caption_entry(row["image_id"], row["language"], row["caption"], self.source)
            by_language.setdefault(row["language"], []).append(entry)
        for language, entries in sorted(by_language.items()):
            for start in range(0, len(entries), BATCH):
                batch = entries[start : start + BATCH]
                texts = [entry.caption for entry in batch]
                features = encode_query(self.native, self.packs, language, texts)
                for entry, vector in zip(batch, features, strict=True):
                    yield _made(CAPTIONS, entry, vector)


def _made(collection: str, entry: Entry, vector: Features) -> _Made:
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if np.isfinite(length) and length > 0:
        return _Made(collection, entry, vector, None)
    return _Made(collection, entry, None, f"{entry.id!r}: its vector is zero or not finite")


def _refused(collection: str, reason: str) -> _Made:
    return _Made(collection, Entry("", "", "", "", ""), None, reason)


def _bytes_of(row: Mapping[str, Any]) -> bytes:
    if row["content"] is not None:
        return row["content"]  # type: ignore[no-any-return]
    return find_image(row["uri"], at(row["folder"])).read_bytes()
