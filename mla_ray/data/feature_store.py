"""Frozen features: what a native says of an image or an English text, computed once.

A store holds Parquet parts keyed by content (a hash of the text, or of the image's bytes), by the
native's fingerprint and by how images are decoded (`video.DECODING`), so no feature in it can go
stale and what is there is never computed again. A part is named after the bits that its keys begin
with, so that who needs a block of keys reads a few parts, however large the store. An image may be
a video: what it is then, `video` says. `encode_texts` and `encode_images` are the plain functions;
`fill` runs them over a cluster with Ray Data.

Shapes: N rows, E joint embedding size.
"""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from upath import UPath

from mla_ray.data.parquet import read_parquet, write_parquet
from mla_ray.data.video import DECODING, frames_of, pooled
from mla_ray.model.batches import by_length
from mla_ray.model.native import Native
from mla_ray.model.recognition import recognised
from mla_ray.runtime.progress import Advance
from mla_ray.runtime.storage import names_in, read_json, write_json

Kind = Literal["image", "text"]
Features = npt.NDArray[np.float32]
BATCH = 256
CLAIM = "native.json"
"""In a folder that is named by the rule of before: whose it is by the rule of today."""


def key_of(content: str | bytes) -> str:
    """The key of a text or of an image's bytes: 128 bits of BLAKE2b, in hex."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hashes(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The first 64 bits of keys [N]; all that tells one block of keys from another."""
    joined = bytes.fromhex("".join(key[:16] for key in keys))
    return np.frombuffer(joined, ">u8").astype(np.uint64)


@torch.inference_mode()
def encode_texts(native: Native, texts: Sequence[str], progress: Advance | None = None) -> Features:
    """English features [N, E] float32, not normalised; batches cut at their longest text."""
    features = np.empty((len(texts), native.dim), dtype=np.float32)
    for rows in by_length([len(text) for text in texts], BATCH):
        ids_BL = native.text.trim(native.tokenize([texts[row] for row in rows]))
        features[rows] = native.encode_text(ids_BL).float().cpu().numpy()
        if progress:
            progress(len(rows))
    return features


def encode_images(
    native: Native, images: Sequence[bytes], progress: Advance | None = None
) -> Features:
    """Image features [N, E] float32, not normalised, of encoded images (PNG, JPEG, MP4, ...).

    A ValueError says why one cannot be decoded (`video.frames_of`).
    """
    features = np.empty((len(images), native.dim), dtype=np.float32)
    done = 0
    for part in encode_frames(native, map(frames_of, images)):
        features[done : done + len(part)] = part
        done += len(part)
        if progress:
            progress(len(part))
    return features


def encode_frames(native: Native, pictures: Iterable[Sequence[Image.Image]]) -> Iterator[Features]:
    """Features [N, E] of pictures as `encode_images` gives them, some at a time and in their order.

    A picture is its frames. They fill the tower's batches whichever picture they are of, so that
    memory is bounded by a batch and one picture.
    """
    pixels: list[torch.Tensor] = []
    counts: list[int] = []
    for frames in pictures:
        pixels += [native.preprocess(frame) for frame in frames]
        counts.append(len(frames))
        if len(pixels) >= BATCH:
            yield _pooled(native, pixels, counts)
            pixels, counts = [], []
    if counts:
        yield _pooled(native, pixels, counts)


@torch.inference_mode()
def _pooled(native: Native, pixels: list[torch.Tensor], counts: list[int]) -> Features:
    frames = native.encode_image(torch.stack(pixels)).float().cpu().numpy()
    return np.stack([pooled(part) for part in np.split(frames, np.cumsum(counts)[:-1])])


class FeatureStore:
    """Features of one kind by one native, in `root/<fingerprint>/<kind>/b<bits>-*.parquet`.

    An image that cannot be decoded is kept too, as a row without a feature and with the reason,
    until somebody writes a feature of it.

    Args:
        root: of all stores.
        fingerprint: the native's.
        kind: of what the features are.
        fingerprint_v1: the native's by the rule of before. What is in its folder is read, too,
            unless another native has claimed it: to that rule two natives may be one.

    """

    def __init__(self, root: UPath, fingerprint: str, kind: Kind, fingerprint_v1: str = "") -> None:
        self.kind = kind
        self.folder = root / fingerprint[:16] / _leaf(kind)
        self._fingerprint = fingerprint
        self._before = root / fingerprint_v1[:16] if fingerprint_v1 else None
        self._listed: list[tuple[UPath, str]] | None = None

    def read(self, keys: Sequence[str]) -> Features:
        """Features [N, E] of `keys`, in their order; nan where there is a reason instead.

        Keys of one block are in few parts, and only parts that may hold one are read. A key that
        was never encoded is a KeyError.
        """
        wanted = list(dict.fromkeys(keys))
        try:
            features = self._lookup(wanted)
        except KeyError:  # perhaps written since we looked
            self.refresh()
            features = self._lookup(wanted)
        place = {key: row for row, key in enumerate(wanted)}
        return features[[place[key] for key in keys]]

    def _lookup(self, keys: list[str]) -> Features:
        place = pa.array(keys, pa.string())
        features: Features | None = None
        seen, has = np.zeros((2, len(keys)), dtype=bool)
        ordered = np.sort(hashes(keys))
        for part, bits in self._parts():
            first = int(bits.ljust(64, "0"), 2)
            last = int(bits.ljust(64, "1"), 2)
            begin, end = np.searchsorted(ordered, np.array([first, last], np.uint64))
            if begin == end and (begin == len(ordered) or int(ordered[begin]) != last):
                continue
            table = read_parquet(part, ["key", "feature"])
            rows = pa.compute.index_in(table["key"], place).combine_chunks()
            mine = rows.is_valid()
            if not pa.compute.any(mine).as_py():
                continue
            column = table["feature"].filter(mine).combine_chunks()
            index = rows.drop_null().to_numpy()
            if features is None:
                features = np.full((len(keys), column.type.list_size), np.nan, dtype=np.float32)
            # A feature goes before a reason, and else the first part, for all readers alike.
            new = column.is_valid().to_numpy(zero_copy_only=False) & ~has[index]
            values = column.fill_null([float("nan")] * column.type.list_size).flatten()
            features[index[new]] = values.to_numpy().reshape(len(column), -1)[new]
            has[index[new]] = True
            seen[index] = True
            if has.all():
                return features
        if features is None:
            raise KeyError(f"{self.folder} holds no features of these keys")
        if seen.all():
            return features
        missing = np.flatnonzero(~seen)
        raise KeyError(
            f"{self.folder}: no features for {len(missing)} keys, e.g. {keys[missing[0]]}"
        )

    def keys(self, prefix: str = "") -> dict[str, str | None]:
        """What is there, and why it has no feature; a superset of the keys with these bits.

        As of the last `refresh`, if there was one.
        """
        reasons: dict[str, str | None] = {}
        for part, bits in self._parts():
            if not (bits.startswith(prefix) or prefix.startswith(bits)):
                continue
            table = read_parquet(part, ["key", "reason"])
            for key, reason in zip(
                table["key"].to_pylist(), table["reason"].to_pylist(), strict=True
            ):
                if reason is None:  # goes before a reason, whichever is in the first part
                    reasons[key] = None
                else:
                    reasons.setdefault(key, reason)
        return reasons

    def refresh(self) -> None:
        """Forget which parts there are: others write, too."""
        self._listed = None

    def write(
        self, keys: Sequence[str], features: Features, reasons: Sequence[str | None], prefix: str
    ) -> None:
        """Add one part, as a whole or not at all. A row with a reason has no feature."""
        column = _fixed_size_list(features, np.array([reason is not None for reason in reasons]))
        table = pa.table(
            {"key": list(keys), "feature": column, "reason": pa.array(reasons, pa.string())}
        )
        write_parquet(self.folder / f"b{prefix}-{uuid.uuid4().hex}.parquet", table)
        self.refresh()

    def claim(self) -> None:
        """Have no other native read what the rule of before takes for this one's; for writers."""
        if self._before and not (self._before / CLAIM).exists() and self._parts_before():
            write_json(self._before / CLAIM, {"fingerprint": self._fingerprint})

    def _parts(self) -> list[tuple[UPath, str]]:
        """Every part with the bits that its keys begin with; those of before come last."""
        if self._listed is None:
            self._listed = _parts_in(self.folder) + self._parts_before()
        return self._listed

    def _parts_before(self) -> list[tuple[UPath, str]]:
        """Those in the folder by the rule of before, if they are this native's; that is told."""
        if self._before is None:
            return []
        parts, claim = _parts_in(self._before / _leaf(self.kind)), self._before / CLAIM
        if parts and claim.exists() and read_json(claim)["fingerprint"] != self._fingerprint:
            return []
        if parts:
            name = self._before.name
            remedy = "Delete it if settings or tokenizer of the native were mended since."
            recognised(name, self._fingerprint, name, self._before, remedy)
        return parts


def _parts_in(folder: UPath) -> list[tuple[UPath, str]]:
    parts = [name for name in names_in(folder) if name.endswith(".parquet")]
    return [(folder / name, name[1:].partition("-")[0]) for name in parts]


def _leaf(kind: Kind) -> str:
    """The folder of a kind; images decoded in another way are others."""
    return kind if kind == "text" or DECODING == 1 else f"{kind}-{DECODING}"


def _fixed_size_list(features: Features, null: npt.NDArray[np.bool_]) -> pa.Array:
    values = pa.array(features.ravel())
    return pa.FixedSizeListArray.from_arrays(values, features.shape[1], mask=pa.array(null))
