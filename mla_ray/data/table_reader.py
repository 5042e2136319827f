"""A user's own tables, read and checked before anything expensive starts.

Parquet, CSV, TSV or JSONL, told apart by file ending, at a path or URL. Everything that is wrong is
collected over the whole file and refused at once, each with its place and its remedy; with
`skip_invalid` the bad rows are left out and handed back. `Stream` reads a table of any size piece
by piece; `read_pairs` and `read_captions` read a small one whole.
"""

import csv
import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.data.quoted_tsv import tsv_is_quoted
from mla_ray.data.video import frames_of
from mla_ray.model.language import UnknownLanguage, canonical
from mla_ray.model.text import fault_of, normalized
from mla_ray.runtime.storage import at

PAIR_COLUMNS = ("source", "target", "language")
CAPTION_COLUMNS = ("image_id", "image", "language", "caption", "split")
SHOWN_PROBLEMS = 10
KEPT_PROBLEMS = 1000
CHUNK = 16_384
"""Rows read at a time; of a table with images `IMAGE_CHUNK`."""
IMAGE_CHUNK = 512

_OR_SKIP = "drop the row or pass --skip-invalid"


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where: `row` is an editor's line number, or in Parquet counts from 1."""

    file: str
    row: int | None
    message: str

    def __str__(self) -> str:
        place = "" if self.row is None else f" {_unit(self.file)} {self.row}"
        return f"{self.file}{place}: {self.message}"


class InvalidTable(ValueError):
    """A table that is refused.

    Args:
        problems: what is wrong with it, or of very many the first.
        count: how many there are, if more than `problems` holds.

    """

    def __init__(self, problems: Sequence[Problem], count: int | None = None) -> None:
        super().__init__(problems, count)
        self.problems = list(problems)
        self.count = len(self.problems) if count is None else count

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if (more := self.count - len(lines)) > 0:
            lines.append(f"… and {more} more")
        if all(problem.row is not None for problem in self.problems):
            lines.append(f"Mend the rows, or pass --skip-invalid to leave out {self.count}.")
        else:
            lines.append("Mend the file; --skip-invalid does not help here.")
        return "\n".join(lines)


@dataclass(frozen=True)
class Read:
    """A checked table, and the problems of the rows that were left out of it."""

    table: pa.Table
    dropped: list[Problem]


def read_pairs(
    path: str | Path, *, language: str | None = None, skip_invalid: bool = False
) -> Read:
    """A translation table: columns source, target and language.

    With `language` only its rows are kept; a file without that column is all in that language.
    """
    sheet = _whole(Stream.pairs([path], language))
    _check_repeats(sheet, PAIR_COLUMNS)
    return sheet.finish(PAIR_COLUMNS, skip_invalid)


def read_captions(
    path: str | Path,
    *,
    language: str | None = None,
    split: str | None = None,
    skip_invalid: bool = False,
    check_images: bool = True,
) -> Read:
    """A caption table: columns image_id, image (its bytes), language, caption and split.

    Texts are checked in the whole file, images only in the rows of this language and split: each
    distinct image is decoded once. Without `split` that column may be missing and is then null.
    """
    sheet = _whole(Stream.captions([path], language, split))
    _check_repeats(sheet, ("image_id", "caption", "language", "split"))
    _load_images(sheet, check_images)
    return sheet.finish(CAPTION_COLUMNS, skip_invalid)


class Stream:
    """The rows of a table, in pieces that fit in memory, with nothing wrong in them.

    Iterate once: each piece has the table's columns and `file` and `row`, where its rows are from.
    What is wrong is in `problems` by then, and `check` refuses the table for it. Of very many the
    first are kept, since a table can be longer than memory; `refused` counts all. Rows that repeat
    others are not looked for, images are not opened.

    Args:
        files: one table in one or several files; a folder stands for the Parquet files in it.
        columns: those that are read; no cell may be empty.
        keep: values that rows must have, by column; a column in `defaults` may be missing.

    """

    def __init__(
        self,
        files: Sequence[str | Path],
        columns: Sequence[str],
        defaults: Mapping[str, str | None],
        keep: Mapping[str, str],
    ) -> None:
        self.files = [file for name in files for file in _files(_place(name))]
        self.columns, self.defaults, self.keep = columns, defaults, keep
        self.problems: list[Problem] = []
        self.refused = 0
        self.kept = KEPT_PROBLEMS
        self.rows = 0
        """Rows handed out so far."""
        self._found: dict[str, Counter[str]] = {column: Counter() for column in keep}

    @classmethod
    def pairs(cls, files: Sequence[str | Path], language: str | None = None) -> "Stream":
        """A translation table; with `language` only its rows."""
        keep = {"language": canonical(language)} if language else {}
        return cls(files, PAIR_COLUMNS, keep, keep)

    @classmethod
    def captions(
        cls,
        files: Sequence[str | Path],
        language: str | None = None,
        split: str | None = None,
        *,
        every_language: bool = False,
    ) -> "Stream":
        """A caption table; `image` is bytes or a path or URL, as the table has it.

        A file without a column `language` is all in `language`; of one with the column only those
        rows are kept, unless `every_language` is wanted.
        """
        default = {"language": canonical(language)} if language else {}
        keep = {} if every_language else default
        defaults: dict[str, str | None] = dict(default) if split else {**default, "split": None}
        return cls(files, CAPTION_COLUMNS, defaults, keep | ({"split": split} if split else {}))

    @classmethod
    def languages(cls, files: Sequence[str | Path], language: str | None = None) -> "Stream":
        """The column `language` alone, of any tables; a file without it is all in `language`."""
        return cls(files, ("language",), {"language": canonical(language)} if language else {}, {})

    def __iter__(self) -> Iterator[pa.Table]:
        for number, file in enumerate(self.files):
            for sheet in _load(file, self.columns, self.defaults):
                if "language" in self.columns:
                    _check_languages(sheet)
                for column, value in self.keep.items():
                    self._found[column].update(sheet.keep_only(column, value))
                self._add(sheet.problems())
                if rows := sheet.table.num_rows:
                    self.rows += rows
                    of_file = pa.array([number] * rows, pa.int32())
                    yield sheet.table.append_column("file", of_file)
        for column, value in self.keep.items():
            if (found := self._found[column]) and value not in found:
                counts = ", ".join(f"{key} ({count})" for key, count in sorted(found.items()))
                raise self.invalid(f"no row of {column} {value!r}; rows found: {counts}")

    def place(self, file: int, row: int) -> str:
        """Where a row is, in words."""
        return f"{self.files[file]} {_unit(self.files[file])} {row}"

    def refuse(self, file: int, row: int, message: str) -> None:
        """Add a problem that somebody else found."""
        self._add([Problem(str(self.files[file]), row, f"{message}; {_OR_SKIP}")])

    def _add(self, problems: Sequence[Problem]) -> None:
        self.refused += len(problems)
        self.problems += problems[: max(0, self.kept - len(self.problems))]

    def refuse_repeat(self, file: int, row: int, earlier: tuple[int, int]) -> None:
        """A row says what an earlier one (file, row) said."""
        place = "" if earlier[0] == file else f"{self.files[earlier[0]]} "
        self.refuse(file, row, f"repeats {place}{_unit(self.files[earlier[0]])} {earlier[1]}")

    def invalid(self, message: str) -> InvalidTable:
        """For a fault of the whole table, which the faults of its rows may explain."""
        files = ", ".join(str(file) for file in self.files)
        return InvalidTable([Problem(files, None, message), *self.problems], 1 + self.refused)

    def check(self, left: int, skip_invalid: bool) -> None:
        """Raise `InvalidTable` if anything was wrong, or with `skip_invalid` if no row is left."""
        self.problems.sort(key=lambda problem: (problem.file, problem.row or 0))
        if self.problems and not skip_invalid:
            raise InvalidTable(self.problems, self.refused)
        if not left:
            raise self.invalid("no row is left" if self.problems else "has no rows")


def _place(name: str | Path) -> UPath:
    """A URL as we open them all; a path as it was given, since messages name it."""
    return at(name) if "://" in str(name) else UPath(name)


def _files(path: UPath) -> list[UPath]:
    if path.is_dir() and (parts := sorted(path.glob("*.parquet"), key=_numbers_by_size)):
        return parts
    return [path]


def _numbers_by_size(path: UPath) -> list[tuple[int, str]]:
    """A sort key that has part_2 before part_10."""
    pieces = re.split("([0-9]+)", path.name)  # text and numbers in turns
    return [(int(piece), "") if place % 2 else (0, piece) for place, piece in enumerate(pieces)]


def _whole(stream: Stream) -> "_Sheet":
    """All rows of a stream that has one file, and all that is wrong with it."""
    stream.kept = sys.maxsize
    pieces = list(stream)
    sheet = _Sheet(stream.files[0], pa.concat_tables(pieces) if pieces else _nothing(stream))
    sheet.refused = {problem.row or 0: problem for problem in stream.problems}
    return sheet


def _nothing(stream: Stream) -> pa.Table:
    columns: dict[str, pa.Array] = {name: pa.array([], pa.string()) for name in stream.columns}
    return pa.table(columns | {"row": pa.array([], pa.int64())})


@dataclass
class _Sheet:
    """The rows of a file that nothing is wrong with so far; column "row" is their place in it."""

    file: UPath
    table: pa.Table
    refused: dict[int, Problem] = field(default_factory=dict)

    def refuse(self, faults: Mapping[int, str]) -> None:
        """Take these rows out, for these reasons: a row is refused once, for its first fault."""
        if faults:
            file = str(self.file)
            self.refused |= {row: Problem(file, row, why) for row, why in faults.items()}
            bad = pc.is_in(self.table["row"], pa.array(list(faults), pa.int64()))
            self.table = self.table.filter(pc.invert(bad))

    def set(self, column: str, values: pa.Array) -> None:
        position = self.table.column_names.index(column)
        self.table = self.table.set_column(position, column, values)

    def cells(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.table[column].to_pylist() for column in columns), strict=True)

    def keep_only(self, column: str, value: str) -> dict[str, int]:
        """Leave only rows that have the value; returns how many had which."""
        found = pc.value_counts(self.table[column]).to_pylist()
        self.table = self.table.filter(pc.equal(self.table[column], value))
        return {entry["values"]: entry["counts"] for entry in found}

    def invalid(self, message: str) -> InvalidTable:
        """For a fault of the whole file, which the faults of its rows may explain."""
        return InvalidTable([Problem(str(self.file), None, message), *self.problems()])

    def problems(self) -> list[Problem]:
        return [self.refused[row] for row in sorted(self.refused)]

    def finish(self, columns: Sequence[str], skip_invalid: bool) -> Read:
        problems = self.problems()
        if problems and not skip_invalid:
            raise InvalidTable(problems)
        if not self.table.num_rows:
            raise self.invalid("no row is left" if problems else "has no rows")
        return Read(self.table.select(columns), problems)


def _unit(file: UPath | str) -> str:
    return "row" if str(file).lower().endswith(".parquet") else "line"


# Reading: every format becomes one sheet


def _load(
    path: UPath, columns: Sequence[str], defaults: Mapping[str, str | None]
) -> Iterator[_Sheet]:
    """The file's rows with no cell empty, in pieces; a column with a default may be missing."""
    readers: dict[
        str, Callable[[UPath, Sequence[str], Mapping[str, str | None]], Iterator[_Sheet]]
    ] = {
        ".parquet": _read_parquet,
        ".csv": _read_delimited,
        ".tsv": _read_delimited,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
    }
    if path.suffix.lower() not in readers:
        raise _whole_file(path, f"unknown file ending; use one of {', '.join(readers)}")
    if not path.is_file():
        raise _whole_file(path, "no such file")
    if not path.stat().st_size:
        raise _whole_file(path, "the file is empty")
    for sheet in readers[path.suffix.lower()](path, columns, defaults):
        present = [column for column in columns if column in sheet.table.column_names]
        _check_cells(sheet, present)
        for column in columns:
            if column not in present:
                default = pa.array([defaults.get(column)] * sheet.table.num_rows, pa.string())
                sheet.table = sheet.table.append_column(column, default)
        sheet.table = sheet.table.select([*columns, "row"])
        yield sheet


def _whole_file(path: UPath | str | Path, message: str) -> InvalidTable:
    return InvalidTable([Problem(str(path), None, message)])


def _require(
    path: UPath, found: Sequence[str], columns: Sequence[str], defaults: Mapping[str, str | None]
) -> None:
    problems = []
    for column in columns:
        if found.count(column) > 1:
            problems.append(
                Problem(str(path), None, f"there are {found.count(column)} columns {column!r}")
            )
        if column not in found and column not in defaults:
            names = {name.lower(): name for name in found}
            near = get_close_matches(column, names, n=1)
            hint = f"; is it {names[near[0]]!r}? Rename it to {column!r}" if near else ""
            listed = ", ".join(repr(name) for name in found) or "none"
            problems.append(Problem(str(path), None, f"no column {column!r}; found {listed}{hint}"))
    if problems:
        raise InvalidTable(problems)


def _read_parquet(
    path: UPath, columns: Sequence[str], defaults: Mapping[str, str | None]
) -> Iterator[_Sheet]:
    try:
        with path.open("rb") as raw, pq.ParquetFile(raw, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            _require(path, schema.names, columns, defaults)
            present = [name for name in columns if name in schema.names]
            targets = {name: _parquet_type(path, name, schema.field(name).type) for name in present}
            size, start = IMAGE_CHUNK if "image" in present else CHUNK, 1
            for batch in file.iter_batches(size, columns=present):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)  # finds text that is not UTF-8
                cells = {name: table[name].cast(target) for name, target in targets.items()}
                rows = pa.array(range(start, start + len(batch)), pa.int64())
                start += len(batch)
                yield _Sheet(path, pa.table({**cells, "row": rows}))
    except (pa.ArrowException, OSError) as error:
        raise _whole_file(path, f"not a sound Parquet file: {error}") from error


def _parquet_type(path: UPath, column: str, kind: pa.DataType) -> pa.DataType:
    """What a column is read as; the table is refused if it holds something else."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if column == "image" and _is_binary(kind):
        return pa.large_binary()
    if _is_text(kind) or (column == "image_id" and pa.types.is_integer(kind)):
        return pa.string()
    needed = "bytes or a path" if column == "image" else "text"
    raise _whole_file(path, f"column {column!r} holds {kind}; {needed} is needed")


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any((types.is_string(kind), types.is_large_string(kind), types.is_null(kind)))


def _is_binary(kind: pa.DataType) -> bool:
    return any((pa.types.is_binary(kind), pa.types.is_large_binary(kind)))


class _Csv(csv.excel):
    skipinitialspace = True  # `"dog", "Hund"`: the second cell is quoted as well
    strict = True


class _Tsv(csv.excel_tab):
    quoting = csv.QUOTE_NONE  # a quote in a TSV cell is a quote
    strict = True


class _QuotedTsv(csv.excel_tab):
    """As pandas and Excel write TSV (`tsv_is_quoted`)."""

    strict = True


def _read_delimited(
    path: UPath, columns: Sequence[str], defaults: Mapping[str, str | None]
) -> Iterator[_Sheet]:
    dialect: type[csv.Dialect] = _Csv
    if path.suffix.lower() == ".tsv":
        with _lines(path, newline="") as lines:
            dialect = _QuotedTsv if tsv_is_quoted(lines) else _Tsv
    with _lines(path, newline="") as lines:
        reader = csv.reader(lines, dialect)
        line = 1
        try:
            header = [name.strip() for name in next(reader, [])]
            _require(path, header, columns, defaults)
            places = {column: header.index(column) for column in columns if column in header}
            draft = _Draft(path)
            line = reader.line_num + 1
            for record in reader:
                if len(record) == len(header):
                    draft.add(line, {column: record[at] for column, at in places.items()})
                elif record:  # else it is a blank line
                    draft.faults[line] = (
                        f"{len(record)} fields where the header has {len(header)}; "
                        f"mend the separators, {_OR_SKIP}"
                    )
                line = reader.line_num + 1
                if draft.full:
                    yield draft.sheet(places)
                    draft = _Draft(path)
            yield draft.sheet(places)
        except csv.Error as error:
            raise _whole_file(
                path,
                f"line {line} can not be read ({error}); double the quotes inside a quoted cell",
            ) from error


def _read_jsonl(
    path: UPath, columns: Sequence[str], defaults: Mapping[str, str | None]
) -> Iterator[_Sheet]:
    found: dict[str, None] = {}
    draft, checked = _Draft(path), False
    with _lines(path, newline="\n") as lines:
        for line, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                draft.faults[line] = f"not JSON ({error}); {_OR_SKIP}"
                continue
            if not isinstance(record, dict):
                kind = type(record).__name__
                draft.faults[line] = f"a {kind} where an object is needed; {_OR_SKIP}"
                continue
            found |= dict.fromkeys(record)
            if isinstance(number := record.get("image_id"), int) and not isinstance(number, bool):
                record["image_id"] = str(number)
            if fault := _json_fault(record, columns):
                draft.faults[line] = fault
            else:
                draft.add(line, record)
            if draft.full:
                if not checked:
                    _require(path, list(found), columns, defaults)
                    checked = True
                yield draft.sheet([column for column in columns if column in found])
                draft = _Draft(path)
    if not checked and (found or not draft.faults):
        _require(path, list(found), columns, defaults)
    yield draft.sheet([column for column in columns if column in found])


def _json_fault(record: Mapping[str, object], columns: Iterable[str]) -> str | None:
    for column in columns:
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            return f"{column!r} is of type {type(value).__name__}, not text; {_OR_SKIP}"
        if value and (fault := fault_of(value)):
            return f"{column!r} {fault}; {_OR_SKIP}"
    return None


@contextmanager
def _lines(path: UPath, newline: str) -> Iterator[Iterable[str]]:
    """The lines of a text file, without its byte order mark."""
    try:
        with path.open("rb") as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        line, place = _first_bad_byte(path)
        raise _whole_file(
            path,
            f"line {line}, byte {place} of the file, is not UTF-8; save the file as UTF-8, "
            "for example with `iconv -f LATIN1 -t UTF-8`",
        ) from error


def _first_bad_byte(path: UPath) -> tuple[int, int]:
    """Line and offset of the first byte that is not UTF-8; there is one."""
    offset = number = 0
    with path.open("rb") as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, offset + error.start
            offset += len(line)
    return number, offset


@dataclass
class _Draft:
    """Rows of a text file that become a sheet."""

    file: UPath
    rows: list[int] = field(default_factory=list)
    records: list[Mapping[str, object]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)

    def add(self, row: int, record: Mapping[str, object]) -> None:
        self.rows.append(row)
        self.records.append(record)

    @property
    def full(self) -> bool:
        return len(self.rows) + len(self.faults) >= CHUNK

    def sheet(self, columns: Iterable[str]) -> _Sheet:
        cells = {
            column: pa.array([record.get(column) for record in self.records], pa.string())
            for column in columns
        }
        sheet = _Sheet(self.file, pa.table({**cells, "row": pa.array(self.rows, pa.int64())}))
        sheet.refuse(self.faults)
        return sheet


# Checking: each step takes the rows it refuses out of the sheet


def _check_cells(sheet: _Sheet, columns: Sequence[str]) -> None:
    """Text as `normalized` has it, no cell empty."""
    for column in columns:
        faults = {
            row: f"{column!r} {fault}; {_OR_SKIP}"
            for row, cell in sheet.cells("row", column)
            if isinstance(cell, str) and (fault := fault_of(cell))
        }
        sheet.refuse(faults)
    for column in columns:
        cells = sheet.table[column]
        if pa.types.is_string(cells.type):
            # A path is what the file system says, not what Unicode prefers.
            tidy = str.strip if column == "image" else normalized
            texts = [None if text is None else tidy(text) for text in cells.to_pylist()]
            sheet.set(column, pa.array(texts, pa.string()))
    for column in columns:
        empty = pc.equal(pc.fill_null(pc.binary_length(sheet.table[column]), 0), 0)
        rows = sheet.table["row"].filter(empty).to_pylist()
        sheet.refuse(dict.fromkeys(rows, f"{column!r} is empty; {_OR_SKIP}"))


def _check_languages(sheet: _Sheet) -> None:
    """Only BCP-47 tags, written as the standard does: 'DE-at' becomes 'de-AT'."""
    standard: dict[str, str] = {}
    faults: dict[str, str] = {}
    for tag in pc.unique(sheet.table["language"]).to_pylist():
        try:
            standard[tag] = canonical(tag)
        except UnknownLanguage as error:
            faults[tag] = f"{error}; {_OR_SKIP}"
    sheet.refuse({row: faults[tag] for row, tag in sheet.cells("row", "language") if tag in faults})
    tidy = [standard[tag] for tag in sheet.table["language"].to_pylist()]
    sheet.set("language", pa.array(tidy, pa.string()))


def _check_repeats(sheet: _Sheet, columns: Sequence[str]) -> None:
    first: dict[tuple[Any, ...], int] = {}
    faults = {}
    for row, *key in sheet.cells("row", *columns):
        if (earlier := first.setdefault(tuple(key), row)) != row:
            faults[row] = f"repeats {_unit(sheet.file)} {earlier}; {_OR_SKIP}"
    sheet.refuse(faults)


def _load_images(sheet: _Sheet, check: bool) -> None:
    """Bytes in place of paths; refuses what can not be had, and two images under one id."""
    read: dict[str, bytes] = {}  # an image has several captions, in several languages
    fault_of: dict[bytes, str | None] = {}  # by digest: each distinct image is decoded once
    first: dict[str, tuple[bytes, int]] = {}
    images: list[bytes] = []
    faults: dict[int, str] = {}
    for row, image_id, cell in sheet.cells("row", "image_id", "image"):
        name = repr(cell) if isinstance(cell, str) else f"of {image_id!r}"
        try:
            if isinstance(cell, str) and cell not in read:
                read[cell] = find_image(cell, sheet.file.parent).read_bytes()
        except (ValueError, OSError) as error:
            faults[row] = f"image {name} {error}; {_OR_SKIP}"
            continue
        data = read[cell] if isinstance(cell, str) else cell
        digest = hashlib.sha256(data).digest()
        if check and digest not in fault_of:
            fault_of[digest] = _image_fault(data)
        if fault := fault_of.get(digest):
            faults[row] = f"image {name} {fault}; {_OR_SKIP}"
            continue
        same_id, earlier = first.setdefault(image_id, (digest, row))
        if same_id != digest:
            faults[row] = (
                f"image_id {image_id!r} has another image in {_unit(sheet.file)} {earlier}; "
                "give each image an id of its own"
            )
        else:
            images.append(data)
    sheet.refuse(faults)
    sheet.set("image", pa.array(images, pa.large_binary()))


def find_image(uri: str, folder: UPath) -> UPath:
    """The file that a caption table in `folder` means; a ValueError says why there is none."""
    if uri.startswith("file://"):
        path = at(url2pathname(urlsplit(uri).path))
    elif "://" in uri:
        path = at(uri)
    else:
        path = folder / uri
    if not path.is_file():
        raise ValueError(f"is missing: there is no {path}")
    return path


def _image_fault(data: bytes) -> str | None:
    try:
        frames_of(data)
    except ValueError as error:
        return str(error)
    return None
