"""Caption tables on disk for evaluation. Texts are held in memory, images are read on demand."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from mla_ray.data.corpus import Corpus, named
from mla_ray.data.problems import InvalidTable, TableProblem
from mla_ray.data.table_images import ImageReader, digest_of, read_image
from mla_ray.data.table_reader import Stream, cells_with_image
from mla_ray.evaluation.evaluation import Gallery
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress, Report, counting

log = logging.getLogger(__name__)

OFTEN = 256
"""Rows between two progress reports."""


@dataclass(frozen=True)
class CaptionTable:
    """Valid rows of a caption table.

    Args:
        rows: Columns image_id, language and caption. The columns `file` and `row` tell where each
            row is from.
        problems: The first problems of the skipped rows.
        dropped: Number of skipped rows.

    """

    rows: pa.Table
    problems: list[TableProblem]
    dropped: int
    _reopened: Callable[[], Stream]

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
        """Read and check the rows of some languages and a split.

        Each distinct image is decoded once for the check and is not kept. Repeated captions are
        kept, unlike in training tables: two people may describe an image with the same words, and
        published counts include both.

        Args:
            path: The table, a path or URL. A file without a column `language` is accepted if
                `languages` has one language.
            languages: BCP-47 codes.
            split: Name of the split. None reads all rows.
            skip_invalid: Skip invalid rows instead of raising an error.
            report: Called with the number of checked rows.

        Raises:
            InvalidTable: Rows are invalid and `skip_invalid` is not set, or a language or the split
                has no row. The error lists all problems.

        """
        one = languages[0] if len(languages) == 1 else None

        def opened() -> Stream:
            return Stream.captions([path], one, split, languages=() if one else languages)

        stream, images, chunks, seen = opened(), _CheckedImages(), [], 0

        def fault_of(image_id: str, image: bytes | str, file: int, row: int) -> str | None:
            nonlocal seen
            seen += 1
            if seen % OFTEN == 0:
                report(Progress("checking", seen, None))
            return images.fault_of(image_id, image, stream.files[file], row)

        for chunk in _with_remedy(stream, path, languages, split):
            wanted = pc.is_in(chunk["language"], pa.array(languages, pa.string()))
            sound = stream.refuse_faulty(chunk.filter(wanted), fault_of)
            chunks.append(sound.select(["image_id", "language", "caption", "file", "row"]))
        stream.check(sum(map(len, chunks)), skip_invalid)
        rows = pa.concat_tables(chunks)
        images.warn_of_doubles(path, set(rows["image_id"].to_pylist()))
        present = set(pc.unique(rows["language"]).to_pylist())
        if lacking := [language for language in languages if language not in present]:
            others = ", ".join(sorted(present))
            raise stream.invalid(f"no row of language {', '.join(lacking)}; there is {others}")
        return cls(rows, stream.problems, stream.refused, opened)

    def gallery(self, native: Native, report: Report = lambda progress: None) -> Gallery:
        """Encode the distinct images in table order, with one batch of images in memory."""
        first: dict[str, tuple[int, int]] = {}
        columns = (self.rows[name].to_pylist() for name in ("image_id", "file", "row"))
        for image_id, file, row in zip(*columns, strict=True):
            first.setdefault(image_id, (file, row))
        places = set(first.values())

        def images() -> Iterator[bytes]:
            stream = self._reopened()
            for chunk in stream:
                for _, cell, file, row in cells_with_image(chunk):
                    if (file, row) in places:
                        yield read_image(cell.as_py(), stream.files[file].parent)

        return Gallery.encode(native, list(first), images(), counting(report, "images", len(first)))


def _with_remedy(
    stream: Stream, path: str | Path, languages: Sequence[str], split: str | None
) -> Iterator[pa.Table]:
    """Yield the chunks of a stream. If the split has no row, the error names the existing splits.

    Raises:
        InvalidTable: The stream is invalid, or no row has the split.

    """
    try:
        yield from stream
    except InvalidTable as invalid:
        splits: Counter[str] = Counter()
        for language in languages:
            splits += Corpus(language, [], path).splits()
        if split is None or not splits or split in splits:
            raise
        message = (
            f"no row of split {split!r} in {', '.join(languages)}; rows found: {named(splits)}; "
            "name one of these splits (--split), or add rows of this one"
        )
        raise InvalidTable([TableProblem(str(path), None, message)]) from invalid


class _CheckedImages:
    """Results of the image checks of a table. Each image is decoded once and none is kept."""

    def __init__(self) -> None:
        self._reader = ImageReader()
        self._faults: dict[tuple[str, str | bytes], str | None] = {}

    def fault_of(self, image_id: str, image: str | bytes, file: UPath, row: int) -> str | None:
        """Return the problem of a row's image, or None if it is valid.

        Args:
            image_id: The row's id. It must not belong to another image.
            image: Bytes, or a path or URL.
            file: File of the row.
            row: Row in the file.

        """
        source = image if isinstance(image, str) else digest_of(image)
        if (image_id, source) not in self._faults:
            fault = None
            try:
                self._reader.read(image_id, image, file, row)
            except ValueError as error:
                fault = str(error)
            self._faults[image_id, source] = fault
        return self._faults[image_id, source]

    def warn_of_doubles(self, path: str | Path, used: set[str]) -> None:
        """Warn about images with several ids. Each id counts as wrong for captions of the others.

        Args:
            path: The table, for the message.
            used: Ids in the valid rows.

        """
        ids: dict[bytes, list[str]] = {}
        for image_id, digest in self._reader.digests.items():
            if image_id in used:
                ids.setdefault(digest, []).append(image_id)
        if doubles := [each for each in ids.values() if len(each) > 1]:
            log.warning(
                "%s: %d images have several ids, the first is %s; protocols count each id as an "
                "image of its own, so a caption matches only one of them. Give each image one id",
                *(path, len(doubles), " and ".join(map(repr, doubles[0]))),
            )
