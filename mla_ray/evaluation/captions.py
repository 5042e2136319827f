"""A caption table on disk, of any size: its texts in memory, its images where they are."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from mla_ray.data.corpus import Corpus, named
from mla_ray.data.table_reader import InvalidTable, Problem, Stream, find_image
from mla_ray.data.video import frames_of
from mla_ray.evaluation.evaluation import Gallery
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress, Report, counting

log = logging.getLogger(__name__)

OFTEN = 256
"""Rows between two reports."""


@dataclass(frozen=True)
class CaptionTable:
    """Rows of a caption table that nothing is wrong with.

    Args:
        rows: columns image_id, language and caption, and `file` and `row`, where each is from.
        problems: what was wrong with the rows that were left out; of very many the first.
        dropped: how many there were.

    """

    rows: pa.Table
    problems: list[Problem]
    dropped: int
    _again: Callable[[], Stream]

    @classmethod
    def read(
        cls,
        path: str | Path,
        languages: Sequence[str],
        *,
        split: str | None = "test",
        skip_invalid: bool = False,
        report: Report = lambda progress: None,
    ) -> "CaptionTable":
        """The rows of some languages and a split; all that is wrong is refused at once.

        Each distinct image is decoded, and forgotten. Captions that are alike are kept, unlike in
        a table to learn from: two people may say the same of an image, and published counts have
        both.
        """
        one = languages[0] if len(languages) == 1 else None

        def again() -> Stream:
            return Stream.captions([path], one, split)

        stream, images, pieces, seen = again(), _Images(), [], 0
        for piece in _with_remedy(stream, path, languages, split):
            piece = piece.filter(pc.is_in(piece["language"], pa.array(languages, pa.string())))
            sound = []
            for image_id, cell, file, row in _cells(piece):
                fault = images.fault(image_id, cell.as_py(), stream.files[file].parent, row)
                if fault:
                    stream.refuse(file, row, fault)
                sound.append(fault is None)
                seen += 1
                if seen % OFTEN == 0:
                    report(Progress("checking", seen, None))
            kept = piece.filter(pa.array(sound, pa.bool_()))
            pieces.append(kept.select(["image_id", "language", "caption", "file", "row"]))
        stream.check(sum(map(len, pieces)), skip_invalid)
        rows = pa.concat_tables(pieces)
        images.tell_doubles(path, set(rows["image_id"].to_pylist()))
        there = set(pc.unique(rows["language"]).to_pylist())
        if lacking := [language for language in languages if language not in there]:
            found = ", ".join(sorted(there))
            raise stream.invalid(f"no row of language {', '.join(lacking)}; there is {found}")
        return cls(rows, stream.problems, stream.refused, again)

    def gallery(self, native: Native, report: Report = lambda progress: None) -> Gallery:
        """The images' features, in the table's order; a batch of images is in memory at a time."""
        first: dict[str, tuple[int, int]] = {}
        columns = (self.rows[name].to_pylist() for name in ("image_id", "file", "row"))
        for image_id, file, row in zip(*columns, strict=True):
            first.setdefault(image_id, (file, row))
        places = set(first.values())

        def images() -> Iterator[bytes]:
            stream = self._again()
            for piece in stream:
                for _, cell, file, row in _cells(piece):
                    if (file, row) in places:
                        yield _load(cell.as_py(), stream.files[file].parent)

        return Gallery.encode(native, list(first), images(), counting(report, "images", len(first)))


def _with_remedy(
    stream: Stream, path: str | Path, languages: Sequence[str], split: str | None
) -> Iterator[pa.Table]:
    """The pieces of a stream; if no row is of the split, the refusal names those there are."""
    try:
        yield from stream
    except InvalidTable as invalid:
        there: Counter[str] = Counter()
        for language in languages:
            there += Corpus(language, [], path).splits()
        if split is None or not there or split in there:
            raise
        message = (
            f"no row of split {split!r} in {', '.join(languages)}; rows found: {named(there)}; "
            "name one of these splits (--split), or add rows of this one"
        )
        raise InvalidTable([Problem(str(path), None, message)]) from invalid


class _Images:
    """What is known of a table's images so far: none is kept, each is decoded once."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str | bytes], str | None] = {}
        self._first: dict[str, tuple[bytes, int]] = {}

    def fault(self, image_id: str, image: str | bytes, folder: UPath, row: int) -> str | None:
        """What is wrong with a row's image, bytes or a path, or with its being of this id."""
        source = image if isinstance(image, str) else _digest(image)
        if (image_id, source) not in self._faults:
            self._faults[image_id, source] = self._look(image_id, image, folder, row)
        return self._faults[image_id, source]

    def tell_doubles(self, path: str | Path, used: set[str]) -> None:
        """Warn of images that are there under several ids: each is wrong for the other."""
        ids: dict[bytes, list[str]] = {}
        for image_id, (digest, _) in self._first.items():
            if image_id in used:
                ids.setdefault(digest, []).append(image_id)
        if doubles := [each for each in ids.values() if len(each) > 1]:
            log.warning(
                "%s: %d images have several ids, the first is %s; who finds one of them has not "
                "found the others, as published protocols count. Give each image one id",
                *(path, len(doubles), " and ".join(map(repr, doubles[0]))),
            )

    def _look(self, image_id: str, image: str | bytes, folder: UPath, row: int) -> str | None:
        try:
            data = _load(image, folder)
            frames_of(data)
        except (ValueError, OSError) as error:
            name = repr(image) if isinstance(image, str) else f"of {image_id!r}"
            return f"image {name} {error}"
        digest = _digest(data)
        known, earlier = self._first.setdefault(image_id, (digest, row))
        if known == digest:
            return None
        return f"image_id {image_id!r} has another image in row {earlier}; give each its own id"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _cells(piece: pa.Table) -> Iterator[tuple[str, pa.Scalar, int, int]]:
    """image_id, image, file and row of each row; an image is copied when `as_py` asks for it."""
    columns = (piece[name].to_pylist() for name in ("image_id", "file", "row"))
    for (image_id, file, row), cell in zip(zip(*columns, strict=True), piece["image"], strict=True):
        yield image_id, cell, file, row


def _load(image: str | bytes, folder: UPath) -> bytes:
    """An image's bytes, from a cell that has them or says where they are."""
    return image if isinstance(image, bytes) else find_image(image, folder).read_bytes()
