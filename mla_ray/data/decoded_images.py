"""English rows of a caption table for fine-tuning, with every image decoded once.

Fine-tuning trains the image tower. It therefore needs pixels and cannot use frozen features. The
stored pixels are the exact output of the native's preprocessing, except that they are not yet
normalized. Each training step normalizes its own batch.

Layout of a decoded table:

    <folder>/pixels-2-00000.safetensors uint8 [n, 3, S, S], n at most `SHARD`
    <folder>/pixels-2-00000.json        broken images and the reasons; written after the pixels
    <folder>/rows.parquet               image (a number), caption, identity (of the caption's text)
    <folder>/index.json                 summary (`Decoded`); written last

The 2 is `video.DECODING`. File names of version 1 have no such number. A complete table is never
decoded again, even if `DECODING` changes. An incomplete table of another version starts again.

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

from mla_ray.data.keys import key_of
from mla_ray.data.parquet import read_parquet, write_parquet
from mla_ray.data.table_images import read_image
from mla_ray.data.table_reader import Stream
from mla_ray.data.video import DECODING, frames_of
from mla_ray.model.native import Native
from mla_ray.model.text import identity
from mla_ray.runtime.storage import download, is_file, is_local, read_json, write_bytes, write_json

LANGUAGE = "en"
SHARD = 1024
"""Maximum number of images in a file. A file of 1,024 images of 224 x 224 pixels has 154 MB."""
GROUP = 64
"""Number of encoded images that are held in memory and then decoded together."""
SHOWN = 100
"""Maximum number of problems in `index.json`."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decoded:
    """Summary of a decoded table.

    Attributes:
        rows: Number of valid rows.
        images: Number of distinct images in these rows.
        dropped: Number of rows that were dropped.
        problems: Messages about the first dropped rows.
        decoding: Version of the image decoding (`video.DECODING`).

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
    """Read, check and decode the English rows of a split.

    A complete table in `folder` is returned unchanged. Complete files of an incomplete table are
    reused. All rows are held in memory, but the images are not.

    Args:
        native: Native whose preprocessing is used.
        table: Caption table, a path or URL.
        split: Split of the rows to decode.
        folder: Folder of the decoded table.
        skip_invalid: Skip bad rows instead of raising.
        progress: Callback that receives the number of newly decoded images.

    Raises:
        InvalidTable: A row is bad and `skip_invalid` is False, or there is no valid row.

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
    """Images of a file, `[n, 3, S, S]` uint8, that are read on access."""

    def __getitem__(self, image: int) -> Tensor: ...


class DecodedTable:
    """Decoded table with its rows in memory and its pixels on local disk.

    The pixels of a remote table are downloaded to a temporary folder.

    Attributes:
        image: Image number of each row, `[N]` int64.
        caption: Caption of each row.
        identity: Identity of each caption. Captions with the same identity count as equal.

    """

    def __init__(self, folder: UPath, native: Native) -> None:
        self._decoding = Decoded(**read_json(folder / "index.json")).decoding
        rows = read_parquet(folder / "rows.parquet")
        self.image: Ints = rows["image"].to_numpy()
        self.caption: list[str] = rows["caption"].to_pylist()
        self.identity = self.caption
        if "identity" in rows.column_names:  # tables of version 0.1.0 compare whole captions
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
        """Return images `[B, 3, S, S]` float32, equal to the output of `native.preprocess`.

        Args:
            images: Image numbers, `[B]` int64.

        """
        pixels = torch.stack([self._pixels(int(image)) for image in images])
        return (pixels.float().div(255) - self._mean) / self._std

    def _pixels(self, image: int) -> Tensor:
        shard, place = divmod(image, SHARD)
        if shard not in self._open:  # memory-mapped, so pixels are read on access
            path = self._folder / f"{_name(shard, self._decoding)}.safetensors"
            file: Any = safe_open(path, "pt")  # safetensors does not annotate its methods
            self._open[shard] = file.get_slice("pixels")
        return self._open[shard][place]


def _name(shard: int, decoding: int) -> str:
    return f"pixels-{shard:05d}" if decoding == 1 else f"pixels-{decoding}-{shard:05d}"


def _normalisation(native: Native) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of the preprocessing, each `[3, 1, 1]` float32."""
    config = native.model.visual.preprocess_cfg
    return torch.tensor(config["mean"])[:, None, None], torch.tensor(config["std"])[:, None, None]


class _Shards:
    """Writer of distinct images to files, in the order of their first rows in the table.

    This order is the same in every run. An existing file therefore holds the same images and is
    not written again.
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
        """Return the number of an image and add the image if it is new.

        Args:
            image: Bytes, or a path or URL.
            folder: Folder of the table. Relative paths start here.

        Raises:
            ValueError: There is no such file.

        """
        if isinstance(image, bytes):
            return self._number(image)
        place = (str(folder), image)
        if place not in self._by_place:  # an image can have several captions
            self._by_place[place] = self._number(read_image(image, folder))
        return self._by_place[place]

    def close(self) -> None:
        """Write the last images."""
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
