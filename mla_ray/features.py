"""Frozen features: what a native says of an image or an English text, computed once.

A store holds Parquet parts keyed by content (a hash of the text, or of the image's bytes) and by
the native's fingerprint, so nothing in it can go stale and what is there is never computed again.
`encode_texts` and `encode_images` are the plain functions; `fill` runs them over a cluster with Ray
Data. May import: `native`; Ray only inside `fill`.

Shapes: N rows, E joint embedding size.
"""

import hashlib
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mla_ray.native import Native
from mla_ray.pictures import on_white

Kind = Literal["image", "text"]
Features = npt.NDArray[np.float32]
Progress = Callable[[int], None]
"""Called with the number of rows just done."""
BATCH = 256
BLOCK = 1024
"""Rows that an actor takes at once, and of a part of the store."""


def key_of(content: str | bytes) -> str:
    """The key of a text or of an image's bytes: 128 bits of BLAKE2b, in hex."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@torch.inference_mode()
def encode_texts(
    native: Native, texts: Sequence[str], progress: Progress | None = None
) -> Features:
    """English features [N, E] float32, not normalised; batches cut at their longest text."""
    features = np.empty((len(texts), native.dim), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(texts), BATCH):
        rows = order[start : start + BATCH]
        ids_BL = native.tokenize([texts[row] for row in rows])
        if not native.text.fixed_length:
            ids_BL = ids_BL[:, : int(native.text.english_end(ids_BL).max()) + 1]
        features[rows] = native.encode_text(ids_BL).float().cpu().numpy()
        if progress:
            progress(len(rows))
    return features


@torch.inference_mode()
def encode_images(
    native: Native, images: Sequence[bytes], progress: Progress | None = None
) -> Features:
    """Image features [N, E] float32, not normalised, of encoded images (PNG, JPEG, ...)."""
    features = np.empty((len(images), native.dim), dtype=np.float32)
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels = torch.stack(
            [native.preprocess(on_white(Image.open(BytesIO(data)))) for data in batch]
        )
        features[start : start + BATCH] = native.encode_image(pixels).float().cpu().numpy()
        if progress:
            progress(len(batch))
    return features


class FeatureStore:
    """Features of one kind by one native, in `root/<fingerprint>/<kind>/*.parquet`."""

    def __init__(self, root: Path, fingerprint: str, kind: Kind) -> None:
        self.kind = kind
        self.folder = root / fingerprint[:16] / kind

    def keys(self) -> set[str]:
        found: set[str] = set()
        for part in self._parts():
            found.update(pq.read_table(part, columns=["key"])["key"].to_pylist())
        return found

    def read(self, keys: Sequence[str]) -> Features:
        """Features [N, E] of `keys`, in their order; KeyError if one is missing."""
        tables = [pq.read_table(part) for part in self._parts()]
        if not tables:
            raise KeyError(f"{self.folder} holds no features")
        table = pa.concat_tables(tables)
        row_of = {key: row for row, key in enumerate(table["key"].to_pylist())}
        missing = [key for key in keys if key not in row_of]
        if missing:
            raise KeyError(f"{self.folder}: no features for {len(missing)} keys, e.g. {missing[0]}")
        column = table["feature"].combine_chunks()
        stored = column.values.to_numpy().reshape(len(column), -1)
        return stored[[row_of[key] for key in keys]]  # type: ignore[no-any-return]

    def write(self, keys: Sequence[str], features: Features) -> None:
        """Add one part; it is there as a whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"key": list(keys), "feature": _fixed_size_list(features)})
        part = self.folder / f"{uuid.uuid4().hex}.parquet"
        scratch = part.with_suffix(".tmp")
        pq.write_table(table, scratch)
        scratch.replace(part)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


def fill(
    store: FeatureStore, native_name: str, content: pa.Table, progress: Progress | None = None
) -> int:
    """Compute what the store lacks of `content` (columns `key`, `content`) with Ray Data.

    Returns how many were computed. Parts are written as they come, so that a killed run goes on
    where it stopped. The caller has started Ray.
    """
    import ray

    have = store.keys()
    missing = content.filter(pa.array([key not in have for key in content["key"].to_pylist()]))
    if not missing.num_rows:
        return 0
    # Not "ray.data" itself: Ray sets that one anew before every execution.
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = int(ray.cluster_resources().get("CPU", 1))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    # A batch is dear (a forward pass), so actors are few: one a GPU, else one a core.
    actors = max(1, min(gpus or cpus, -(-missing.num_rows // BATCH)))
    # Cut here: a repartition's tasks would wait for the cores that the actors hold, for ever.
    parts = [missing.slice(start, BLOCK) for start in range(0, missing.num_rows, BLOCK)]
    encoded = ray.data.from_arrow(parts).map_batches(
        _Encoder,
        fn_constructor_kwargs={"native": native_name, "kind": store.kind},
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        batch_size=None,  # a block
        batch_format="pyarrow",
    )
    for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
        column = batch["feature"].combine_chunks()
        features = column.values.to_numpy().reshape(len(column), -1)
        store.write(batch["key"].to_pylist(), features)
        if progress:
            progress(batch.num_rows)
    return int(missing.num_rows)


class _Encoder:
    """One Ray Data actor: a native, held."""

    def __init__(self, native: str, kind: Kind) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.native = Native.load(native, device)
        self.encode: Any = encode_images if kind == "image" else encode_texts

    def __call__(self, batch: pa.Table) -> pa.Table:
        features = self.encode(self.native, batch["content"].to_pylist())
        return pa.table({"key": batch["key"], "feature": _fixed_size_list(features)})


def _fixed_size_list(features: Features) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])


def distinct(contents: Iterator[str] | Iterator[bytes]) -> pa.Table:
    """The distinct texts or images as `fill` takes them, and nothing twice."""
    by_key = {key_of(content): content for content in contents}
    return pa.table({"key": list(by_key), "content": list(by_key.values())})
