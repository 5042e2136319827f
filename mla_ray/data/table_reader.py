"""A user's own tables, read and checked before anything expensive starts.

In the formats of `table_formats`, told apart by file ending, at a path or URL. Everything that is
wrong is collected over the whole file and refused at once, each with its place and its remedy; with
`skip_invalid` the bad rows are left out and handed back. `Stream` reads a table of any size piece
by piece, and is how every part of this package reads one; `read_pairs` and `read_captions` read a
small one whole.
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
    """A table in memory, and the problems of the rows that were left out of it."""

    table: pa.Table
    dropped: list[TableProblem]


def read_pairs(
    path: str | Path, *, language: str | None = None, skip_invalid: bool = False
) -> CheckedTable:
    """A translation table: columns source, target and language.

    With `language` only its rows are kept; a file without that column is all in that language.
    """
    return _read_whole(Stream.pairs([path], language), PAIR_COLUMNS, skip_invalid)


def read_captions(
    path: str | Path,
    *,
    language: str | None = None,
    languages: Collection[str] = (),
    split: str | None = None,
    skip_invalid: bool = False,
    check_images: bool = True,
) -> CheckedTable:
    """A caption table: columns image_id, image (its bytes), language, caption and split.

    Texts are checked in the whole file, images only in the rows of this language and split: each
    distinct image is decoded once. Without `split` that column may be missing and is then null.
    With `languages` the rows of all are kept, as in `Stream.captions`.
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
    """All rows of a stream; those that have the `same` columns as an earlier one are refused."""
    stream.kept = sys.maxsize
    first: dict[tuple[str | None, ...], tuple[int, int]] = {}
    chunks = [convert(stream.refuse_repeats(chunk, same, first)) for chunk in stream]
    stream.check(sum(map(len, chunks)), skip_invalid)
    return CheckedTable(pa.concat_tables(chunks).select(stream.columns.names), stream.problems)


class Stream:
    """The rows of a table, in chunks that fit in memory, with nothing wrong in them.

    Iterate once: each chunk has the table's columns and `file` and `row`, where its rows are from.
    What is wrong is in `problems` by then, and `check` refuses the table for it. Of very many the
    first are kept, since a table can be longer than memory; `refused` counts all. Rows that repeat
    others are not looked for, images are not opened.

    Args:
        files: one table in one or several files; a folder stands for the Parquet files in it.
        columns: those that are read; no cell may be empty.
        keep: values that rows must have, by column.
        languages: those that rows are read as, where their tag means one (`language.nearest`);
            what was read as another language than it says is logged.

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
        """Rows handed out so far."""
        self._languages = languages
        self._taken: Counter[tuple[str, str]] = Counter()
        self._values: dict[str, Counter[str]] = {column: Counter() for column in keep}

    @classmethod
    def pairs(cls, files: Sequence[str | Path], language: str | None = None) -> "Stream":
        """A translation table; with `language` only its rows."""
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
        """A caption table; `image` is bytes or a path or URL, as the table has it.

        A file without a column `language` is all in `language`; of one with the column only those
        rows are kept, unless `languages` are given: then all are, read as these.
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
        """The column `language` alone, read as `languages`; a file without it is in `language`."""
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
        """A file's rows with all columns, in which no cell is empty."""
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
        """Log which rows were read as another language than they say; once, of several readings."""
        for language in {language for _, language in self._taken}:
            tags = sorted(tag for tag, taken in self._taken if taken == language)
            rows = ", ".join(f"{tag} ({self._taken[tag, language]:,})" for tag in tags)
            files = ", ".join(map(str, self.files))
            _log_once(f"{files}: rows of {rows} are read as {language!r}")

    def place(self, file: int, row: int) -> str:
        """Where a row is, in words."""
        return place_of(self.files[file], row)

    def refuse(self, file: int, row: int, message: str) -> None:
        """Add a problem that somebody else has with a row."""
        self._add([TableProblem(str(self.files[file]), row, f"{message}; {OR_SKIP}")])

    def refuse_repeat(self, file: int, row: int, earlier: tuple[int, int]) -> None:
        """A row says what an earlier one (file, row) said."""
        place = place_of(self.files[earlier[0]], earlier[1], seen_from=self.files[file])
        self.refuse(file, row, f"repeats {place}")

    def refuse_repeats(
        self,
        chunk: pa.Table,
        columns: Sequence[str],
        first: dict[tuple[str | None, ...], tuple[int, int]],
    ) -> pa.Table:
        """The rows of a chunk that do not say what an earlier one said; the others are refused.

        Args:
            chunk: has `file` and `row`.
            columns: what a row says.
            first: file and row of all that was said before; grows.

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
        """The rows of a chunk of captions whose image is of use; the others are refused.

        Args:
            chunk: as the stream gives it.
            fault_of: image_id, image, file and row to what is wrong with the image.

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
        """For a fault of the whole table, which the faults of its rows may explain."""
        files = ", ".join(str(file) for file in self.files)
        return InvalidTable([TableProblem(files, None, message), *self.problems], 1 + self.refused)

    def check(self, left: int, skip_invalid: bool) -> None:
        """Raise `InvalidTable` if anything was wrong, or with `skip_invalid` if no row is left."""
        self.problems.sort(key=lambda problem: (problem.file, problem.row or 0))
        if self.problems and not skip_invalid:
            raise InvalidTable(self.problems, self.refused)
        if not left:
            raise self.invalid("no row is left" if self.problems else "has no rows")


def cells_with_image(chunk: pa.Table) -> Iterator[tuple[str, pa.Scalar, int, int]]:
    """image_id, image, file and row of each row; an image is copied when `as_py` asks for it."""
    columns = (chunk[name].to_pylist() for name in ("image_id", "file", "row"))
    for (image_id, file, row), cell in zip(zip(*columns, strict=True), chunk["image"], strict=True):
        yield image_id, cell, file, row


@lru_cache
def _log_once(message: str) -> None:
    log.warning(message)


def _path_of(name: str | Path) -> UPath:
    """A URL as we open them all; a path as it was given, since messages name it."""
    return as_path(name) if "://" in str(name) else UPath(name)
