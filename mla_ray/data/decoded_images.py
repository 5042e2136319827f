"""The English rows of a caption table as fine-tuning reads them, every image decoded once.

    <folder>/pixels-00000.safetensors   uint8 [n, 3, S, S], n at most `SHARD`
    <folder>/pixels-00000.json          which of them are broken, and why; written after it
    <folder>/rows.parquet               image (a number), caption, identity (of the caption's text)
    <folder>/index.json                 what was read; written last

A frozen image has a feature that can be kept; the image tower trains here, so pixels are kept in
its place. They are what the native's own preprocessing gives, to the byte, but for the
normalisation, which is left to each step. A table that was read stays as it was read; what was
decoded in another way (`video.DECODING`) before it was whole is not gone on from.

Shapes: N rows, B rows of a batch, S pixels of a side.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from upath import UPath

from mla_ray.data.feature_store import key_of
from mla_ray.data.parquet import read_parquet, write_parquet
from mla_ray.data.table_images import read_image
from mla_ray.data.table_reader import Stream
from mla_ray.data.video import DECODING, frames_of
from mla_ray.model.native import Native
from mla_ray.model.text import identity
from mla_ray.runtime.storage import download, is_file, is_local, read_json, write_bytes, write_json

LANGUAGE = "en"
SHARD = 1024
"""Images of a file: of 224 pixels, 154 MB."""
GROUP = 64
"""Encoded images in memory."""
SHOWN = 100

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decoded:
    """What was read of a table.

    Attributes:
        rows: that are left.
        images: distinct ones.
        dropped: rows left out; `problems` tells of the first.
        decoding: version of how the images were decoded.

    """

    rows: int
    images: int
    dropped: int = 0
    problems: list[str] = field(default_factory=list)
    decoding: int = 1


def decode(
    native: Native,
    table: str | Path,
    split: str,
    folder: UPath,
    *,
    skip_invalid: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Decoded:
    """Read, check and decode the English rows of a split; what is there already is left as it is.

    Rows stay in memory, images do not.

    Args:
        native: whose preprocessing is used.
        table: caption table, a path or URL.
        split: of its rows.
        folder: of the decoded table.
        skip_invalid: leave bad rows out instead of refusing the table.
        progress: called with the number of images just decoded.

    Raises:
        InvalidTable: rows are bad (unless `skip_invalid`), or there are none.

    """
    done = folder / "index.json"
    if is_file(done):
        return Decoded(**read_json(done))
    stream = Stream.captions([table], LANGUAGE, split)
    readable: list[tuple[int, str, int, int]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = _Shards(native, folder, pool, progress)
        for chunk in stream:
            columns = (chunk[name].to_pylist() for name in ("image", "caption", "file", "row"))
            for image, caption, file, row in zip(*columns, strict=True):
                try:
                    number = shards.number_of(image, stream.files[file].parent)
                except ValueError as error:  # there is no such file
                    stream.refuse(file, row, f"image {image!r} {error}")
                else:
                    readable.append((number, caption, file, row))
        shards.close()
    first: dict[tuple[int, str], tuple[int, int]] = {}
    for number, caption, file, row in readable:
        if fault := shards.faults.get(number):
            stream.refuse(file, row, f"image {fault}")
        elif (earlier := first.setdefault((number, caption), (file, row))) != (file, row):
            stream.refuse_repeat(file, row, earlier)
    stream.check(len(first), skip_invalid)
    numbers, captions = zip(*first, strict=True)
    rows = {
        "image": pa.array(numbers, pa.int64()),
        "caption": pa.array(captions, pa.string()),
        "identity": pa.array([identity(caption) for caption in captions], pa.string()),
    }
    write_parquet(folder / "rows.parquet", pa.table(rows))
    problems = [str(problem) for problem in stream.problems[:SHOWN]]
    decoded = Decoded(len(first), len(set(numbers)), stream.refused, problems, DECODING)
    write_json(done, asdict(decoded))
    return decoded


class _Pixels(Protocol):
    """Images of a shard, uint8 [n, 3, S, S], read when they are asked for."""

    def __getitem__(self, image: int) -> Tensor: ...


class DecodedTable:
    """A decoded table: its rows in memory, its pixels on this machine's disk.

    Attributes:
        image: number of each row's image [N].
        caption: of each row [N].
        identity: of each caption [N]; what is equal says the same.

    """

    def __init__(self, folder: UPath, native: Native) -> None:
        self._decoding = Decoded(**read_json(folder / "index.json")).decoding
        rows = read_parquet(folder / "rows.parquet")
        self.image: Ints = rows["image"].to_numpy()
        self.caption: list[str] = rows["caption"].to_pylist()
        self.identity = self.caption
        if "identity" in rows.column_names:  # version 0.1.0 told texts apart by every character
            self.identity = rows["identity"].to_pylist()
        self._mean, self._std = _normalisation(native)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if is_local(folder):
            self._folder = Path(folder.path)
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix="mla-pixels-")
            self._folder = Path(self._scratch.name)
            download(folder, self._folder)
        self._open: dict[int, _Pixels] = {}

    def __len__(self) -> int:
        return len(self.caption)

    def pixels(self, images: Ints) -> Tensor:
        """Images [B, 3, S, S] float32 as `native.preprocess` gives them, by their numbers [B]."""
        pixels = torch.stack([self._pixels(int(image)) for image in images])
        return (pixels.float().div(255) - self._mean) / self._std

    def _pixels(self, image: int) -> Tensor:
        shard, place = divmod(image, SHARD)
        if shard not in self._open:  # mapped, not read
            path = self._folder / f"{_name(shard, self._decoding)}.safetensors"
            file: Any = safe_open(path, "pt")  # its methods have no types
            self._open[shard] = file.get_slice("pixels")
        return self._open[shard][place]


def _name(shard: int, decoding: int) -> str:
    return f"pixels-{shard:05d}" if decoding == 1 else f"pixels-{decoding}-{shard:05d}"


def _normalisation(native: Native) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3, 1, 1] that preprocessing ends with."""
    config = native.model.visual.preprocess_cfg
    return torch.tensor(config["mean"])[:, None, None], torch.tensor(config["std"])[:, None, None]


class _Shards:
    """Distinct images on their way to disk, in the order in which a table first has them.

    That order is the table's, so a shard that is there holds what would be written again.
    """

    def __init__(
        self,
        native: Native,
        folder: UPath,
        pool: ThreadPoolExecutor,
        progress: Callable[[int], None],
    ) -> None:
        self.native, self.folder, self.pool, self.progress = native, folder, pool, progress
        self.faults: dict[int, str] = {}
        self._mean, self._std = _normalisation(native)
        self._by_key: dict[str, int] = {}
        self._by_place: dict[tuple[str, str], int] = {}
        self._waiting: list[bytes] = []
        self._pixels: list[Tensor] = []
        self._reasons: dict[str, str] = {}
        self._shard = self._taken = 0
        self._there = self._is_there()

    def number_of(self, image: bytes | str, folder: UPath) -> int:
        """The number of an image, its bytes or where they are; ValueError if there is no file."""
        if isinstance(image, bytes):
            return self._number(image)
        place = (str(folder), image)
        if place not in self._by_place:  # an image has several captions
            self._by_place[place] = self._number(read_image(image, folder))
        return self._by_place[place]

    def close(self) -> None:
        if self._taken:
            self._write()

    def _number(self, data: bytes) -> int:
        key = key_of(data)
        if key in self._by_key:
            return self._by_key[key]
        number = self._by_key[key] = len(self._by_key)
        self._taken += 1
        self._waiting.append(data)
        if len(self._waiting) == GROUP or self._taken == SHARD:
            self._decode()
        if self._taken == SHARD:
            self._write()
        return number

    def _decode(self) -> None:
        if not self._there:
            for result in self.pool.map(self._decoded, self._waiting):
                if isinstance(result, str):
                    self._reasons[str(len(self._pixels))] = result
                    side = self.native.model.visual.preprocess_cfg["size"]
                    result = torch.zeros(3, *_square(side), dtype=torch.uint8)
                self._pixels.append(result)
        self.progress(len(self._waiting))
        self._waiting = []

    def _decoded(self, data: bytes) -> Tensor | str:
        try:
            frames = frames_of(data)
        except ValueError as error:
            return str(error)
        if len(frames) > 1:
            return "is a video; a native is fine-tuned on still pictures"
        pixels = self.native.preprocess(frames[0]) * self._std + self._mean
        return (pixels * 255).round().to(torch.uint8)

    def _is_there(self) -> bool:
        return is_file(self.folder / f"{_name(self._shard, DECODING)}.json")

    def _write(self) -> None:
        self._decode()
        name = _name(self._shard, DECODING)
        record = self.folder / f"{name}.json"
        if not self._there:
            data = save({"pixels": torch.stack(self._pixels)})
            write_bytes(self.folder / f"{name}.safetensors", data)
            write_json(record, self._reasons)
        reasons: dict[str, str] = read_json(record)
        start = self._shard * SHARD
        self.faults |= {start + int(place): reason for place, reason in reasons.items()}
        self._shard, self._taken = self._shard + 1, 0
        self._pixels, self._reasons = [], {}
        self._there = self._is_there()


def _square(side: int | Sequence[int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else (side[0], side[1])
