"""Store of frozen features: the native's output for images and English texts, computed once.

A store holds Parquet parts. Three things identify a feature: its content (a hash of the text or of
the image bytes), the native's fingerprint, and the version of the image decoding
(`video.DECODING`). Stored features therefore never become stale and are never computed again. The
name of a part holds the first bits of its keys, so a block of keys needs only a few parts, even if
the store is large. An image can also be a video (`video`).

`encode_texts` and `encode_images` are plain functions. `encode_features.fill` encodes on a cluster
with Ray Data.

Shapes: N rows, E joint embedding size.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from upath import UPath

from mla_ray.data.keys import hashes
from mla_ray.data.parquet import read_parquet, write_parquet
from mla_ray.data.video import DECODING, frames_of, pooled
from mla_ray.model.batches import by_tokens
from mla_ray.model.native import Native
from mla_ray.model.recognition import recognised
from mla_ray.runtime.progress import Advance
from mla_ray.runtime.storage import names_in, read_json, write_json

Kind = Literal["image", "text"]
Features = npt.NDArray[np.float32]
BATCH = 256
TOKENIZED = 16_384
"""Texts that are tokenized at once, and then sorted by length."""
CPU_IMAGES = 64
"""Images in a batch on a CPU, where the activations of more do not fit into its caches."""
CLAIM = "native.json"
"""File in a folder that is named by a version 1 fingerprint. It holds the current fingerprint of
the native that owns the folder.
"""


@torch.inference_mode()
def encode_texts(native: Native, texts: Sequence[str], progress: Advance | None = None) -> Features:
    """Encode English texts to features `[N, E]` float32, not normalized.

    Texts of similar length in tokens share a batch, and each batch is trimmed to its longest text.
    """
    features = np.empty((len(texts), native.dim), dtype=np.float32)
    for start in range(0, len(texts), TOKENIZED):
        ids_NL = native.tokenize(texts[start : start + TOKENIZED])
        length_N = native.text.english_end(ids_NL) + 1
        lengths = [native.text.batch_length(length) for length in length_N.tolist()]
        for rows in by_tokens(lengths, native.device.type):
            ids_BL = native.text.trim(ids_NL[rows])
            features[start + np.array(rows)] = native.encode_text(ids_BL).float().cpu().numpy()
            if progress:
                progress(len(rows))
    return features


def encode_images(
    native: Native, images: Sequence[bytes], progress: Advance | None = None
) -> Features:
    """Encode image files (PNG, JPEG, MP4, ...) to features `[N, E]` float32, not normalized.

    Raises:
        ValueError: An image cannot be decoded (`video.frames_of`).

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
    """Encode decoded pictures like `encode_images`, and yield their features in order.

    A batch can hold frames of several pictures. Memory is bounded by one batch and one picture.

    Args:
        native: Native that encodes the frames.
        pictures: Frames of each picture.

    Yields:
        Features `[n, E]` float32 of the next n pictures.

    """
    batch = CPU_IMAGES if native.device.type == "cpu" else BATCH
    pixels: list[torch.Tensor] = []
    counts: list[int] = []
    for frames in pictures:
        pixels += [native.preprocess(frame) for frame in frames]
        counts.append(len(frames))
        if len(pixels) >= batch:
            yield _pooled(native, pixels, counts)
            pixels, counts = [], []
    if counts:
        yield _pooled(native, pixels, counts)


@torch.inference_mode()
def _pooled(native: Native, pixels: list[torch.Tensor], counts: list[int]) -> Features:
    frames = native.encode_image(torch.stack(pixels)).float().cpu().numpy()
    return np.stack([pooled(part) for part in np.split(frames, np.cumsum(counts)[:-1])])


class FeatureStore:
    """Features of one kind from one native, in `root/<fingerprint>/<kind>/b<bits>-*.parquet`.

    An image that cannot be decoded has a row with the reason and without a feature. A feature that
    is written later replaces the reason.

    Args:
        root: Folder of all stores.
        fingerprint: Fingerprint of the native.
        kind: Kind of content, image or text.
        fingerprint_v1: Fingerprint of the native by the rule of mla-ray 0.1.0. The store also reads
            features from that fingerprint's folder, unless another native has claimed the folder.
            Two different natives can have the same version 1 fingerprint.

    """

    def __init__(self, root: UPath, fingerprint: str, kind: Kind, fingerprint_v1: str = "") -> None:
        self.kind = kind
        self.folder = root / fingerprint[:16] / _leaf(kind)
        self._fingerprint = fingerprint
        self._before = root / fingerprint_v1[:16] if fingerprint_v1 else None
        self._listed: list[tuple[UPath, str]] | None = None

    def read(self, keys: Sequence[str]) -> Features:
        """Return the features `[N, E]` float32 of `keys`, in the order of `keys`.

        Rows of images that cannot be decoded are NaN. Only parts that can hold one of the keys are
        read, and these are few if the keys are of one block.

        Raises:
            KeyError: A key was never encoded.

        """
        wanted = list(dict.fromkeys(keys))
        try:
            features = self._lookup(wanted)
        except KeyError:  # another process may have written it since
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
            # A feature wins over a reason. Between two features, the one of the first part wins, so
            # that all readers get the same.
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
        """Return the stored keys, and for each the reason why it has no feature, or None.

        The parts are listed on first use. Parts that others wrote later appear after `refresh`.

        Args:
            prefix: First bits of the wanted keys. The result can also contain other keys.

        """
        reasons: dict[str, str | None] = {}
        for part, bits in self._parts():
            if not (bits.startswith(prefix) or prefix.startswith(bits)):
                continue
            table = read_parquet(part, ["key", "reason"])
            for key, reason in zip(
                table["key"].to_pylist(), table["reason"].to_pylist(), strict=True
            ):
                if reason is None:  # a feature wins over a reason, whichever part comes first
                    reasons[key] = None
                else:
                    reasons.setdefault(key, reason)
        return reasons

    def refresh(self) -> None:
        """Drop the cached list of parts, because other processes also write parts."""
        self._listed = None

    def write(
        self, keys: Sequence[str], features: Features, reasons: Sequence[str | None], prefix: str
    ) -> None:
        """Write one part atomically.

        Args:
            keys: Keys of the rows.
            features: Features `[N, E]` float32. Rows with a reason are ignored.
            reasons: Reason why a row has no feature, or None.
            prefix: First bits that all keys share.

        """
        column = _fixed_size_list(features, np.array([reason is not None for reason in reasons]))
        table = pa.table(
            {"key": list(keys), "feature": column, "reason": pa.array(reasons, pa.string())}
        )
        write_parquet(self.folder / f"b{prefix}-{uuid.uuid4().hex}.parquet", table)
        self.refresh()

    def claim(self) -> None:
        """Claim the folder of the version 1 fingerprint, so that no other native reads from it.

        Only writers call this. It has no effect if the folder has no parts or is already claimed.
        """
        if self._before and not (self._before / CLAIM).exists() and self._parts_before():
            write_json(self._before / CLAIM, {"fingerprint": self._fingerprint})

    def _parts(self) -> list[tuple[UPath, str]]:
        """Return every part and the first bits of its keys. Parts of version 1 come last."""
        if self._listed is None:
            self._listed = _parts_in(self.folder) + self._parts_before()
        return self._listed

    def _parts_before(self) -> list[tuple[UPath, str]]:
        """Return the parts in the folder of the version 1 fingerprint, and log a warning.

        The result is empty if another native has claimed the folder.
        """
        if self._before is None:
            return []
        parts, claim = _parts_in(self._before / _leaf(self.kind)), self._before / CLAIM
        if parts and claim.exists() and read_json(claim)["fingerprint"] != self._fingerprint:
            return []
        if parts:
            name = self._before.name
            remedy = "Delete it if the native's settings or tokenizer were changed since."
            recognised(name, self._fingerprint, name, self._before, remedy)
        return parts


def _parts_in(folder: UPath) -> list[tuple[UPath, str]]:
    parts = [name for name in names_in(folder) if name.endswith(".parquet")]
    return [(folder / name, name[1:].partition("-")[0]) for name in parts]


def _leaf(kind: Kind) -> str:
    """Return the folder name of a kind. For images it contains the decoding version."""
    return kind if kind == "text" or DECODING == 1 else f"{kind}-{DECODING}"


def _fixed_size_list(features: Features, null: npt.NDArray[np.bool_]) -> pa.Array:
    values = pa.array(features.ravel())
    return pa.FixedSizeListArray.from_arrays(values, features.shape[1], mask=pa.array(null))
