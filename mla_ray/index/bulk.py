"""Caption tables of any size into index collections, on a cluster with Ray Data.

    read Parquet -> encode, actors that hold a native and its packs -> write

The points are those of `ingest.index_captions`: an id is made of what it names, so a run that was
killed is run again and neither loses nor doubles anything. Nothing is held but what is on
its way: the process that calls keeps a block of the stream, never a table.

To a server many tasks write at once. An `edge:` folder has one owner, so there the caller's process
writes what the cluster encodes.

Shapes: N points, E joint embedding size.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import ray
import torch
from langcodes import standardize_tag, tag_is_valid
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext
from ray.data.datasource import Datasink, WriteResult

from mla_ray.data.feature_store import BATCH, Features, encode_frames
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
from mla_ray.runtime.storage import patiently

FIELDS = tuple(field.name for field in fields(Entry))
COLUMNS = ("image_id", "image", "language", "caption")
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
    quantization: Quantization | None = None,
    sync: bool = False,
    pictures: PictureStore | None = None,
) -> Indexed:
    """Embed the images and captions of Parquet tables into the collections at `url`.

    The caller has started Ray.

    Args:
        url: of the index, as `CaptionIndex.open` takes it.
        native_name: as `Native.load` takes it, on every node.
        packs: a pack's folder by language, the same on every node.
        tables: Parquet files or folders, paths or URLs, with the columns of a caption table. An
            image is its bytes, or an absolute path or URL.
        source: kept with every point.
        report: called as blocks are written; for a server once, at the end.
        quantization: of collections that are made now.
        sync: remove what `source` has in the index and the tables no longer have, as
            `ingest.sync`. What there is of an image that cannot be read stays.
        pictures: with `sync`, where small copies of images are kept; those of removed images go.

    Returns:
        How many points were written; an image with rows in several blocks counts in each. A bad
        image or a bad row is left out, alone, and counted with its reason.

    Raises:
        KeyError: a language of the tables has no pack. Found before anything is encoded, as are
            ValueError (a missing column, a pack of another native or language, a collection that
            does not fit) and FileNotFoundError.
        ConnectionError: the server stayed away for longer than `storage.PAUSES`.

    """
    native = Native.load(native_name)
    for language, folder in packs.items():
        found = LanguagePack.load(folder, native).card.language
        if found != language:
            raise ValueError(f"{folder} is a pack for {found!r}, not for {language!r}")
    languages, total = survey(tables)
    require_packs(languages, packs)
    space, done = space_of(native), Indexed()
    del native  # the actors have their own
    if url.startswith(("http", "grpc")):
        with _opened(url, space, quantization):
            pass  # made once, before many tasks would
        sink = IndexSink(url, space)
        _encode(native_name, packs, tables, source).write_datasink(
            sink, concurrency=WRITERS, ray_remote_args={"num_cpus": 0}
        )
        done = sink.done
        report(Progress("indexing", total, total))
    else:
        with _opened(url, space, quantization) as collections:
            encoded = _encode(native_name, packs, tables, source)
            rows = 0
            for block in encoded.iter_batches(batch_size=BLOCK, batch_format="pyarrow"):
                done.add(write(collections, block))
                rows += pc.sum(pc.equal(block["collection"], CAPTIONS)).as_py() or 0
                report(Progress("indexing", rows, total))
            for index in collections.values():
                index.optimize()
                index.flush()
    if sync:
        done.removed = remove_what_left(url, space, source, keys_of(tables, source), pictures)
    return done


def survey(tables: Sequence[str]) -> tuple[set[str], int]:
    """Languages in `tables`, as BCP-47 writes them, and rows; reads that one column."""
    languages: set[str] = set()
    rows = 0
    for table in tables:
        data = pyarrow.dataset.dataset(table, format="parquet", partitioning="hive")
        lacking = [name for name in COLUMNS if name not in data.schema.names]
        if lacking:
            raise ValueError(
                f"{table} has no column {', '.join(lacking)}; a caption table has "
                f"{', '.join(COLUMNS)}"
            )
        for batch in data.to_batches(columns=["language"]):
            languages.update(_tag(tag) for tag in pc.unique(batch["language"]).to_pylist())
            rows += batch.num_rows
    return languages - {""}, rows


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


def _encode(
    native_name: str, packs: Mapping[str, str | Path], tables: Sequence[str], source: str
) -> ray.data.Dataset:
    # Not "ray.data" itself: Ray sets that one anew before every execution.
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # of small tables
    cpus = int(ray.cluster_resources().get("CPU", 1))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    # Reading takes no core: a task that waits for one while actors hold them all waits for ever.
    rows = ray.data.read_parquet(
        list(tables), columns=list(COLUMNS), concurrency=READERS, ray_remote_args={"num_cpus": 0}
    )
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
        rows = block.to_pylist()
        made = [*self._images(rows), *self._captions(rows)]
        columns: dict[str, pa.Array] = {
            name: pa.array([getattr(point.entry, name) for point in made], pa.string())
            for name in FIELDS
        }
        for name in ("collection", "reason"):
            columns[name] = pa.array([getattr(point, name) for point in made], pa.string())
        of_E = pa.list_(pa.float32(), self.native.dim)
        columns["vector"] = pa.array([point.vector for point in made], of_E)
        return pa.table(columns)

    def _images(self, rows: list[dict[str, Any]]) -> Iterator[_Made]:
        contents = {row["image_id"]: row["image"] for row in rows if row["image_id"]}
        ids: list[str] = []
        bad: list[_Made] = []

        def decoded() -> Iterator[list[Image.Image]]:
            for image_id, content in contents.items():
                try:
                    frames = frames_of(_bytes_of(content))
                except (ValueError, OSError, ImportError) as error:  # the last: an unknown URL
                    entry = image_entry(image_id, self.source)
                    bad.append(_Made(IMAGES, entry, None, f"image {image_id!r}: {error}"))
                else:
                    ids.append(image_id)
                    yield frames

        done = 0
        for vectors in encode_frames(self.native, decoded()):
            for image_id, vector in zip(ids[done:], vectors, strict=True):
                yield _made(IMAGES, image_entry(image_id, self.source), vector)
            done = len(ids)
        yield from bad

    def _captions(self, rows: list[dict[str, Any]]) -> Iterator[_Made]:
        by_language: dict[str, list[Entry]] = {}
        for row in rows:
            image_id, text, language = row["image_id"], row["caption"], _tag(row["language"])
            entry = caption_entry(image_id or "", language, text or "", self.source)
            if image_id and language and (text or "").strip():
                by_language.setdefault(language, []).append(entry)
            else:
                shown = {name: row[name] for name in ("image_id", "language", "caption")}
                yield _Made(CAPTIONS, entry, None, f"row {shown}: a cell is empty or no language")
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


def _bytes_of(content: bytes | str | None) -> bytes:
    if not content:
        raise ValueError("is empty")
    if isinstance(content, bytes):
        return content
    with fsspec.open(content, "rb") as file:
        return file.read()  # type: ignore[no-any-return]


def _tag(tag: str | None) -> str:
    """As the standard writes it: `de-AT` of `DE-at`; "" if there is no such language."""
    return standardize_tag(tag) if tag and tag_is_valid(tag) else ""
