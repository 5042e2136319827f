"""Encoding of frozen features: Ray Data computes what the feature stores lack, over a cluster."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from upath import UPath

from mla_ray.data.feature_store import (
    BATCH,
    TOKENIZED,
    Features,
    FeatureStore,
    Kind,
    encode_frames,
    encode_texts,
)
from mla_ray.data.keys import key_of
from mla_ray.data.parquet import read_parquet
from mla_ray.data.video import frames_of
from mla_ray.model.native import Native
from mla_ray.runtime.storage import as_path, open_file, read_bytes

LITTLE = 50_000 * 10_000_000
"""Rows times parameters of the native that a process on two cores encodes as soon as two actors do,
which start in 11 seconds. Its operators would not use many cores as well as many actors do."""
MAX_FAILURES = 1_000
"""Maximum number of failed images that are listed. All are counted."""


@dataclass(frozen=True)
class Encoders:
    """Number and resources of the actors that encode texts and images."""

    most: int | None = None
    """Maximum number of actors. By default as many as the GPUs of the cluster allow, or its cores
    if the actors have no GPU. With 0 this process encodes. By default it does so, too, if the work
    is little and it has all cores of the only node."""
    cpus: float = 1.0
    """CPU cores per actor."""
    gpus: float | None = None
    """GPUs per actor, possibly a fraction. By default 1 if the cluster has a GPU now, else 0."""


@dataclass(frozen=True)
class Contents:
    """Contents of a table to encode, in blocks (`mla_ray.data.blocks`)."""

    folder: UPath
    """Folder of the blocks."""
    kind: Kind
    """Kind of their features."""
    blocks: Sequence[tuple[str, int]]
    """Prefix and number of rows of each block."""
    files: Sequence[str] = ()
    """Files of the table, to which the rows refer by index."""


@dataclass
class Filled:
    """Result of `fill`."""

    computed: int = 0
    """Number of keys written to the stores, with a feature or with the reason for a failure."""
    failed: int = 0
    """Number of rows whose image has no feature."""
    failures: list["Failure"] = field(default_factory=list)
    """The first `MAX_FAILURES` of these rows."""


@dataclass(frozen=True)
class Failure:
    """Image without a feature: the file and row where it first occurs, and the reason."""

    file: str
    row: int
    reason: str


Block = Mapping[str, Any]
"""Location of a block: `path`, `prefix`, `kind`, and `table`, the index of its contents."""
Outcome = Mapping[str, Any]
"""Result of a block, in the schema `OUTCOME`."""
OnEncoded = Callable[[Kind, int, int], None]
"""Called with the kind, the rows just done, and the keys written for them."""


def fill(
    stores: Mapping[Kind, FeatureStore],
    native: Native,
    contents: Sequence[Contents],
    progress: OnEncoded = lambda kind, rows, computed: None,
    encoders: Encoders = Encoders(),
) -> Filled:
    """Compute the features of these contents that the stores lack, here or with Ray Data.

    The caller starts Ray first, unless `encoders.most` is 0. The same actors encode texts and
    images, because an actor takes many seconds to start: it imports torch and loads the native.
    For a few rows on one machine, this process is done before that. An actor receives the
    location of a block, reads it, encodes what the store lacks, and writes a part. Only counts and
    failures return to the driver. A killed run loses only the blocks in progress.

    A bad image costs one row. Each later call tries it again and counts it again.

    Args:
        stores: Feature store by kind.
        native: Native model. Every node must have it by its name.
        contents: Contents to encode.
        progress: Called after each block.
        encoders: Number and resources of the actors.

    """
    blocks, lacking = [], 0
    for store in stores.values():
        store.refresh()
        store.claim()
    for number, each in enumerate(contents):
        for prefix, rows in each.blocks:
            path = each.folder / f"b{prefix}.parquet"
            if _is_there(path, prefix, stores[each.kind]):
                progress(each.kind, rows, 0)
            else:
                place = {"path": str(path), "prefix": prefix}
                blocks.append(place | {"kind": each.kind, "table": number})
                lacking += rows
    if not blocks:
        return Filled()
    encoded = _encode_here if _is_sooner_here(lacking, native, encoders) else _encode_by_actors
    filled = Filled()
    for outcome in encoded(native, stores, blocks, encoders):
        filled.computed += outcome["computed"]
        filled.failed += outcome["failed"]
        room = MAX_FAILURES - len(filled.failures)
        table = contents[outcome["table"]]
        filled.failures += [
            Failure(table.files[failure["file"]], failure["row"], failure["reason"])
            for failure in outcome["failures"][:room]
        ]
        progress(table.kind, outcome["rows"], outcome["computed"])
    for store in stores.values():
        store.refresh()
    return filled


def _is_sooner_here(rows: int, native: Native, encoders: Encoders) -> bool:
    """Return whether this process is to encode rows, as `Encoders.most` says."""
    work = rows * sum(weight.numel() for weight in native.model.parameters())
    if encoders.most is not None or encoders.gpus or work > LITTLE:
        return encoders.most == 0
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = nodes[0].get("CPU", 0) if len(nodes) == 1 and not nodes[0].get("GPU") else None
    return cores is not None and torch.get_num_threads() >= cores


def _encode_here(
    native: Native,
    stores: Mapping[Kind, FeatureStore],
    blocks: Sequence[Block],
    encoders: Encoders,
) -> Iterator[Outcome]:
    """Encode blocks in this process, one after another."""
    encoder = BlockEncoder(native, stores)
    for block in blocks:
        yield encoder.encode(block)


def _encode_by_actors(
    native: Native,
    stores: Mapping[Kind, FeatureStore],
    blocks: Sequence[Block],
    encoders: Encoders,
) -> Iterator[Outcome]:
    """Encode blocks with Ray Data."""
    import ray

    # Not the logger "ray.data": Ray configures that one again before every execution.
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = encoders.gpus
    if gpus is None:
        gpus = 1.0 if resources.get("GPU", 0) else 0.0
    have = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1) / encoders.cpus
    most = min(encoders.most or max(1, int(have)), len(blocks))
    # Each of our blocks is one block of Ray Data from the start. The tasks of a repartition would
    # wait forever for the cores that the actors hold. All actors start at once, because each takes
    # many seconds; what the cluster has no room for waits and holds up nothing.
    encoded = ray.data.from_arrow([pa.Table.from_pylist([block]) for block in blocks]).map_batches(
        BlockEncoder,
        fn_constructor_kwargs={"native": native.name, "stores": stores},
        compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=most, max_size=most),
        num_cpus=encoders.cpus,
        num_gpus=gpus,
        batch_size=None,  # one block
        batch_format="pyarrow",
    )
    for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def _is_there(path: UPath, prefix: str, store: FeatureStore) -> bool:
    """Return whether the store has a feature of every row. A reason for a failure is none."""
    have = store.keys(prefix)
    if not have:
        return False
    keys = read_parquet(path, ["key"])["key"].to_pylist()
    return all(have.get(key, "") is None for key in keys)


Reasons = Mapping[str, str | None]
"""By key: the reason why it has no feature, or None if it has one."""

OUTCOME = pa.schema(
    {
        "table": pa.int64(),
        "rows": pa.int64(),
        "computed": pa.int64(),
        "failed": pa.int64(),
        "failures": pa.list_(
            pa.struct({"file": pa.int32(), "row": pa.int64(), "reason": pa.string()})
        ),
    }
)


class BlockEncoder:
    """Encoder of blocks, as a Ray Data actor or in this process.

    Args:
        native: Native model, or its name, as `Native.load` takes it.
        stores: Feature store by kind.

    """

    def __init__(self, native: Native | str, stores: Mapping[Kind, FeatureStore]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.native = Native.load(native, device) if isinstance(native, str) else native.on(device)
        self.stores = stores

    def __call__(self, blocks: pa.Table) -> pa.Table:
        """Encode blocks, one per row, and return their outcomes."""
        return pa.Table.from_pylist([self.encode(row) for row in blocks.to_pylist()], OUTCOME)

    def encode(self, block: Block) -> Outcome:
        """Encode what the store lacks of a block, and write it as one part of the store."""
        rows, failures = 0, []
        kind = block["kind"]
        store, encode = self.stores[kind], self._images if kind == "image" else self._texts
        store.refresh()
        have = store.keys(block["prefix"])
        before, tried = dict(have), set[str]()
        keys: list[str] = []
        features: list[Features] = []
        reasons: list[str | None] = []
        with (
            open_file(as_path(block["path"])) as raw,
            pq.ParquetFile(raw, buffer_size=1 << 20) as file,
        ):
            for batch in file.iter_batches(BATCH if kind == "image" else TOKENIZED):
                rows += batch.num_rows
                lacking = [
                    key not in tried and have.get(key, "") is not None
                    for key in batch["key"].to_pylist()
                ]
                missing = batch.filter(pa.array(lacking))
                if missing.num_rows:
                    asked = missing["key"].to_pylist()
                    made, why = encode(missing, before)
                    # Do not write a key again if its retry had the same result.
                    new = [
                        place
                        for place, key in enumerate(asked)
                        if before.get(key, "") != why[place]
                    ]
                    keys += [asked[place] for place in new]
                    features.append(made[new])
                    reasons += [why[place] for place in new]
                    have |= dict(zip(asked, why, strict=True))
                    tried.update(asked)
                failures += [
                    {"file": row["file"], "row": row["row"], "reason": have[row["key"]]}
                    for row in batch.select(["key", "file", "row"]).to_pylist()
                    if have[row["key"]]
                ]
        if keys:
            store.write(keys, np.concatenate(features), reasons, block["prefix"])
        return {
            "table": block["table"],
            "rows": rows,
            "computed": len(keys),
            "failed": len(failures),
            "failures": failures[:MAX_FAILURES],
        }

    def _texts(self, batch: pa.RecordBatch, before: Reasons) -> tuple[Features, list[str | None]]:
        texts = batch["content"].cast(pa.string()).to_pylist()
        return encode_texts(self.native, texts), [None] * len(texts)

    def _images(self, batch: pa.RecordBatch, before: Reasons) -> tuple[Features, list[str | None]]:
        """Encode images. They are decoded one by one, so a bad one does not affect the others.

        If the file of an image that failed before is missing or changed, the earlier reason stays.
        """
        features = np.zeros((len(batch), self.native.dim), np.float32)
        reasons: list[str | None] = [None] * len(batch)
        places: list[int] = []

        def decoded() -> Iterator[list[Image.Image]]:
            for place, row in enumerate(batch.select(["key", "content", "uri"]).to_pylist()):
                try:
                    frames = frames_of(_content(row))
                except ValueError as error:
                    reasons[place] = str(error)
                except (LookupError, OSError):
                    if not (reason := before.get(row["key"])):
                        raise
                    reasons[place] = reason
                else:
                    places.append(place)
                    yield frames

        if parts := list(encode_frames(self.native, decoded())):
            features[places] = np.concatenate(parts)
            for place in np.flatnonzero(~np.isfinite(features).all(1)).tolist():
                reasons[place] = "has a feature that is not finite"
        return features, reasons


def _content(row: dict[str, Any]) -> bytes:
    """Return the bytes of an image, from the row or from its path or URL."""
    if row["content"] is not None:
        content: bytes = row["content"]
        return content
    data = read_bytes(as_path(row["uri"]))
    if key_of(data) != row["key"]:  # a key stands for these bytes only
        raise LookupError(
            f"{row['uri']} is not the image that the run was prepared with; "
            "put it back, or choose another run folder"
        )
    return data
