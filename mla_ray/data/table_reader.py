"""Reading and checking of a user's tables before any expensive work starts.

A table is a path or a URL, in one of the formats of `table_formats`. Problems are collected over
the whole table and reported together, each with its place and its remedy. With `skip_invalid`, bad
rows are dropped and their problems are returned.

`Stream` reads a table of any size in chunks. All of this package reads tables through it.
`read_pairs` and `read_captions` read a small table into memory.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from upath import UPath

from mla_ray.data.problems import KEPT_PROBLEMS, OR_SKIP, InvalidTable, TableProblem, place_of
from mla_ray.data.table_checks import check_cells, check_languages
from mla_ray.data.table_chunk import Chunk
from mla_ray.data.table_columns import Columns
from mla_ray.data.table_files import files_of_table
from mla_ray.data.table_formats import read_chunks
from mla_ray.data.table_images import ImageReader
from mla_ray.model.language import canonical
from mla_ray.runtime.storage import as_path

log = logging.getLogger(__name__)

PAIR_COLUMNS = ("source", "target", "language")
CAPTION_COLUMNS = ("image_id", "image", "language", "caption", "split")


@dataclass(frozen=True)
class CheckedTable:
    """Table in memory, and the problems of the rows that were dropped from it."""

    table: pa.Table
    dropped: list[TableProblem]


def read_pairs(
    path: str | Path, *, language: str | None = None, skip_invalid: bool = False
) -> CheckedTable:
    """Read a translation table into memory: columns source, target and language.

    Args:
        path: Path or URL of the table.
        language: Language of the rows to keep. In a file without a `language` column, all rows are
            in this language. By default, rows of all languages are kept.
        skip_invalid: Drop bad rows instead of raising.

    Raises:
        InvalidTable: A row is bad and `skip_invalid` is False, a file cannot be read, or no row is
            left.

    """
    return _read_whole(Stream.pairs([path], language), PAIR_COLUMNS, skip_invalid)


def read_captions(
    path: str | Path,
    *,
    language: str | None = None,
    languages: Collection[str] = (),
    split: str | None = None,
    skip_invalid: bool = False,
    check_images: bool | Callable[[str, bytes], bool] = True,
) -> CheckedTable:
    """Read a caption table into memory: columns image_id, image (bytes), language, caption, split.

    Text is checked in the whole table. Images are checked only in the rows that are kept, and each
    distinct image is decoded once.

    Args:
        path: Path or URL of the table.
        language: Language of the rows to keep, as in `Stream.captions`.
        languages: Languages to read the rows as, as in `Stream.captions`. All rows are kept.
        split: Split of the rows to keep. By default all rows are kept, and the column can be
            missing. It is then null.
        skip_invalid: Drop bad rows instead of raising.
        check_images: Check that the images can be decoded. A function of image id and digest
            (`digest_of`) decides for each image, such as that it was decoded before.

    Raises:
        InvalidTable: A row is bad and `skip_invalid` is False, a file cannot be read, or no row is
            left.

    """
    stream = Stream.captions([path], language, split, languages=languages)
    reader = ImageReader(decode=check_images, keep_files=True)

    def with_images(chunk: pa.Table) -> pa.Table:
        images: list[bytes] = []

        def fault_of(image_id: str, image: bytes | str, file: int, row: int) -> str | None:
            try:
                images.append(reader.read(image_id, image, stream.files[file], row))
            except ValueError as error:
                return str(error)
            return None

        sound = stream.refuse_faulty(chunk, fault_of)
        position = sound.column_names.index("image")
        return sound.set_column(position, "image", pa.array(images, pa.large_binary()))

    same = ("image_id", "caption", "language", "split")
    checked = _read_whole(stream, same, skip_invalid, with_images)
    return CheckedTable(checked.table.select(CAPTION_COLUMNS), checked.dropped)


def _read_whole(
    stream: "Stream",
    same: Sequence[str],
    skip_invalid: bool,
    convert: Callable[[pa.Table], pa.Table] = lambda chunk: chunk,
) -> CheckedTable:
    """Read all rows of a stream, and refuse rows that repeat an earlier one in columns `same`."""
    stream.kept = sys.maxsize
    first: dict[tuple[str | None, ...], tuple[int, int]] = {}
    chunks = [convert(stream.refuse_repeats(chunk, same, first)) for chunk in stream]
    stream.check(sum(map(len, chunks)), skip_invalid)
    return CheckedTable(pa.concat_tables(chunks).select(stream.columns.names), stream.problems)


class Stream:
    """Valid rows of a table, in chunks that fit in memory.

    Iterate only once. Each chunk has the table's columns, and the columns `file` and `row` with the
    place of each row. After the iteration, `problems` holds the problems, and `check` raises them.
    Only the first `kept` problems are held, because a table can be larger than memory. `refused`
    counts all of them. A stream does not look for repeated rows and does not open images.

    Args:
        files: Files of one table. A folder stands for the files in it (`files_of_table`).
        columns: Columns to read. No cell can be empty.
        defaults: Default values of the columns that can be missing.
        keep: Values that rows must have, by column. Other rows are left out.
        languages: Languages to read the rows as, where their tag means one (`language.nearest`).
            A warning is logged for rows that are read as another language than their tag.

    """

    def __init__(
        self,
        files: Sequence[str | Path],
        columns: Sequence[str],
        defaults: Mapping[str, str | None],
        keep: Mapping[str, str],
        languages: Collection[str] = (),
    ) -> None:
        self.files = [file for name in files for file in files_of_table(_path_of(name))]
        self.columns, self.keep = Columns(columns, defaults), keep
        self.problems: list[TableProblem] = []
        self.refused = 0
        self.kept = KEPT_PROBLEMS
        self.rows = 0
        """Number of rows that were yielded so far."""
        self._languages = languages
        self._taken: Counter[tuple[str, str]] = Counter()
        self._values: dict[str, Counter[str]] = {column: Counter() for column in keep}

    @classmethod
    def pairs(cls, files: Sequence[str | Path], language: str | None = None) -> "Stream":
        """Create the stream of a translation table.

        Args:
            files: Files of one table.
            language: Language of the rows to keep. In a file without a `language` column, all rows
                are in this language. By default, rows of all languages are kept.

        """
        keep = {"language": canonical(language)} if language else {}
        return cls(files, PAIR_COLUMNS, keep, keep, list(keep.values()))

    @classmethod
    def captions(
        cls,
        files: Sequence[str | Path],
        language: str | None = None,
        split: str | None = None,
        *,
        languages: Collection[str] = (),
    ) -> "Stream":
        """Create the stream of a caption table. Its images are bytes, paths or URLs, as stored.

        Args:
            files: Files of one table.
            language: Language of the rows to keep. In a file without a `language` column, all rows
                are in this language.
            split: Split of the rows to keep. By default all rows are kept, and the column can be
                missing.
            languages: Languages to read the rows as. Rows of all languages are then kept.

        """
        default = {"language": canonical(language)} if language else {}
        keep = {} if languages else default
        defaults: dict[str, str | None] = dict(default) if split else {**default, "split": None}
        keep = {**keep, "split": split} if split else keep
        return cls(files, CAPTION_COLUMNS, defaults, keep, languages or list(default.values()))

    @classmethod
    def languages(
        cls, files: Sequence[str | Path], language: str | None, languages: Collection[str]
    ) -> "Stream":
        """Create a stream of the column `language` alone.

        Args:
            files: Files of one table.
            language: Language of all rows in a file without the column.
            languages: Languages to read the rows as.

        """
        default = {"language": canonical(language)} if language else {}
        return cls(files, ("language",), default, {}, languages)

    def __iter__(self) -> Iterator[pa.Table]:
        for number, file in enumerate(self.files):
            for chunk in self._checked_chunks(file):
                for column, value in self.keep.items():
                    self._values[column].update(chunk.keep_where(column, value))
                self._add(chunk.problems)
                if rows := chunk.table.num_rows:
                    self.rows += rows
                    of_file = pa.array([number] * rows, pa.int32())
                    yield chunk.table.append_column("file", of_file)
        self._say_taken()
        for column, value in self.keep.items():
            if (values := self._values[column]) and value not in values:
                counts = ", ".join(f"{key} ({count})" for key, count in sorted(values.items()))
                raise self.invalid(f"no row of {column} {value!r}; rows found: {counts}")

    def _checked_chunks(self, file: UPath) -> Iterator[Chunk]:
        """Yield the rows of a file with all columns and without empty cells."""
        for chunk in read_chunks(file, self.columns):
            present = self.columns.among(chunk.table.column_names)
            check_cells(chunk, present)
            for column in self.columns.names:
                if column not in present:
                    default = [self.columns.defaults.get(column)] * chunk.table.num_rows
                    chunk.table = chunk.table.append_column(column, pa.array(default, pa.string()))
            chunk.table = chunk.table.select([*self.columns.names, "row"])
            if "language" in self.columns.names:
                self._taken.update(check_languages(chunk, self._languages))
            yield chunk

    def _say_taken(self) -> None:
        """Log which rows were read as another language than their tag, once per process."""
        for language in {language for _, language in self._taken}:
            tags = sorted(tag for tag, taken in self._taken if taken == language)
            rows = ", ".join(f"{tag} ({self._taken[tag, language]:,})" for tag in tags)
            files = ", ".join(map(str, self.files))
            _log_once(f"{files}: rows of {rows} are read as {language!r}")

    def place(self, file: int, row: int) -> str:
        """Return the place of a row as text."""
        return place_of(self.files[file], row)

    def refuse(self, file: int, row: int, message: str) -> None:
        """Add a problem that the caller found in a row."""
        self._add([TableProblem(str(self.files[file]), row, f"{message}; {OR_SKIP}")])

    def refuse_repeat(self, file: int, row: int, earlier: tuple[int, int]) -> None:
        """Add the problem that a row repeats an earlier one, given as (file, row)."""
        place = place_of(self.files[earlier[0]], earlier[1], seen_from=self.files[file])
        self.refuse(file, row, f"repeats {place}")

    def refuse_repeats(
        self,
        chunk: pa.Table,
        columns: Sequence[str],
        first: dict[tuple[str | None, ...], tuple[int, int]],
    ) -> pa.Table:
        """Return the rows of a chunk that repeat no earlier row, and refuse the others.

        Args:
            chunk: Chunk with the columns `file` and `row`.
            columns: Columns that must not repeat together.
            first: File and row of the first row with each combination of values. New combinations
                are added.

        """
        new = []
        cells = (chunk[name].to_pylist() for name in ("file", "row", *columns))
        for file, row, *key in zip(*cells, strict=True):
            earlier = first.setdefault(tuple(key), (file, row))
            new.append(earlier == (file, row))
            if earlier != (file, row):
                self.refuse_repeat(file, row, earlier)
        return chunk.filter(pa.array(new, pa.bool_()))

    def refuse_faulty(
        self, chunk: pa.Table, fault_of: Callable[[str, bytes | str, int, int], str | None]
    ) -> pa.Table:
        """Return the rows of a caption chunk whose image is valid, and refuse the others.

        Args:
            chunk: Chunk of this stream.
            fault_of: Function of image_id, image, file and row. It returns what is wrong with the
                image, or None.

        """
        sound = []
        for image_id, cell, file, row in cells_with_image(chunk):
            fault = fault_of(image_id, cell.as_py(), file, row)
            if fault is not None:
                self.refuse(file, row, fault)
            sound.append(fault is None)
        return chunk.filter(pa.array(sound, pa.bool_()))

    def _add(self, problems: Sequence[TableProblem]) -> None:
        self.refused += len(problems)
        self.problems += problems[: max(0, self.kept - len(self.problems))]

    def invalid(self, message: str) -> InvalidTable:
        """Create the error for a problem of the whole table, with the problems of its rows."""
        files = ", ".join(str(file) for file in self.files)
        return InvalidTable([TableProblem(files, None, message), *self.problems], 1 + self.refused)

    def check(self, left: int, skip_invalid: bool) -> None:
        """Check the result of an iteration.

        Args:
            left: Number of valid rows.
            skip_invalid: Accept problems if a row is left.

        Raises:
            InvalidTable: There are problems and `skip_invalid` is False, or no row is left.

        """
        self.problems.sort(key=lambda problem: (problem.file, problem.row or 0))
        if self.problems and not skip_invalid:
            raise InvalidTable(self.problems, self.refused)
        if not left:
            raise self.invalid("no row is left" if self.problems else "has no rows")


def cells_with_image(chunk: pa.Table) -> Iterator[tuple[str, pa.Scalar, int, int]]:
    """Yield image_id, image, file and row of each row.

    The image is an Arrow scalar. Its `as_py` copies the bytes.
    """
    columns = (chunk[name].to_pylist() for name in ("image_id", "file", "row"))
    for (image_id, file, row), cell in zip(zip(*columns, strict=True), chunk["image"], strict=True):
        yield image_id, cell, file, row


@lru_cache
def _log_once(message: str) -> None:
    log.warning(message)


def _path_of(name: str | Path) -> UPath:
    """Return a path for a table. A local path stays as it was given, because messages name it."""
    return as_path(name) if "://" in str(name) else UPath(name)
