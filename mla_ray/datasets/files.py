"""A user's own tables, read and checked before anything expensive starts.

Parquet, CSV, TSV or JSONL, told apart by file ending. Everything that is wrong is collected over
the whole file and refused at once, each with its place and its remedy; with `skip_invalid` the bad
rows are left out and handed back. May import: nothing of ours.
"""

import csv
import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from langcodes import standardize_tag, tag_is_valid
from PIL import Image, UnidentifiedImageError

PAIR_COLUMNS = ("source", "target", "language")
CAPTION_COLUMNS = ("image_id", "image", "language", "caption", "split")
# Named, because Pillow would start Ghostscript for a PostScript file.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SHOWN_PROBLEMS = 10

_OR_SKIP = "drop the row or pass --skip-invalid"
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where: `row` is an editor's line number, or in Parquet counts from 1."""

    file: Path
    row: int | None
    message: str

    def __str__(self) -> str:
        place = "" if self.row is None else f" {_unit(self.file)} {self.row}"
        return f"{self.file}{place}: {self.message}"


class InvalidTable(ValueError):
    """A table that is refused, with all its problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            lines.append(f"… and {more} more")
        if all(problem.row is not None for problem in self.problems):
            lines.append(
                f"Mend the rows, or pass --skip-invalid to leave out {len(self.problems)}."
            )
        else:
            lines.append("Mend the file; --skip-invalid does not help here.")
        return "\n".join(lines)


@dataclass(frozen=True)
class Read:
    """A checked table, and the problems of the rows that were left out of it."""

    table: pa.Table
    dropped: list[Problem]


def read_pairs(path: Path, *, language: str | None = None, skip_invalid: bool = False) -> Read:
    """A translation table: columns source, target and language.

    With `language` only its rows are kept; a file without that column is all in that language.
    """
    wanted = _standard(path, language)
    sheet = _load(path, PAIR_COLUMNS, {"language": wanted} if wanted else {})
    _check_languages(sheet)
    _check_repeats(sheet, PAIR_COLUMNS)
    if wanted:
        sheet.keep_only("language", wanted)
    return sheet.finish(PAIR_COLUMNS, skip_invalid)


def read_captions(
    path: Path,
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
    wanted = _standard(path, language)
    defaults = {"language": wanted} if wanted else {}
    sheet = _load(path, CAPTION_COLUMNS, defaults if split else {**defaults, "split": None})
    _check_languages(sheet)
    _check_repeats(sheet, ("image_id", "caption", "language", "split"))
    if wanted:
        sheet.keep_only("language", wanted)
    if split:
        sheet.keep_only("split", split)
    _load_images(sheet, check_images)
    return sheet.finish(CAPTION_COLUMNS, skip_invalid)


def decode_image(data: bytes) -> Image.Image:
    """The decoded image; a ValueError that says why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down") from None
    except UnidentifiedImageError:
        raise ValueError(f"is none of {', '.join(IMAGE_FORMATS)}") from None
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise ValueError(f"is broken: {error}") from error
    return image


@dataclass
class _Sheet:
    """The rows of a file that nothing is wrong with so far; column "row" is their place in it."""

    file: Path
    table: pa.Table
    refused: dict[int, Problem] = field(default_factory=dict)

    def refuse(self, faults: Mapping[int, str]) -> None:
        """Take these rows out, for these reasons: a row is refused once, for its first fault."""
        if faults:
            self.refused |= {row: Problem(self.file, row, why) for row, why in faults.items()}
            bad = pc.is_in(self.table["row"], pa.array(list(faults), pa.int64()))
            self.table = self.table.filter(pc.invert(bad))

    def set(self, column: str, values: pa.Array) -> None:
        position = self.table.column_names.index(column)
        self.table = self.table.set_column(position, column, values)

    def cells(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.table[column].to_pylist() for column in columns), strict=True)

    def keep_only(self, column: str, value: str) -> None:
        found = {
            entry["values"]: entry["counts"]
            for entry in pc.value_counts(self.table[column]).to_pylist()
        }
        if found and value not in found:
            counts = ", ".join(f"{key} ({count})" for key, count in sorted(found.items()))
            raise self.invalid(f"no row of {column} {value!r}; rows found: {counts}")
        self.table = self.table.filter(pc.equal(self.table[column], value))

    def invalid(self, message: str) -> InvalidTable:
        """For a fault of the whole file, which the faults of its rows may explain."""
        return InvalidTable([Problem(self.file, None, message), *self.problems()])

    def problems(self) -> list[Problem]:
        return [self.refused[row] for row in sorted(self.refused)]

    def finish(self, columns: Sequence[str], skip_invalid: bool) -> Read:
        problems = self.problems()
        if problems and not skip_invalid:
            raise InvalidTable(problems)
        if not self.table.num_rows:
            raise self.invalid("no row is left" if problems else "has no rows")
        return Read(self.table.select(columns), problems)


def _unit(file: Path) -> str:
    return "row" if file.suffix.lower() == ".parquet" else "line"


# Reading: every format becomes one sheet


def _load(path: Path, columns: Sequence[str], defaults: Mapping[str, str | None]) -> _Sheet:
    """The file's rows with no cell empty; a column with a default may be missing."""
    readers: dict[str, Callable[[Path, Sequence[str], Mapping[str, str | None]], _Sheet]] = {
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
    sheet = readers[path.suffix.lower()](path, columns, defaults)
    present = [column for column in columns if column in sheet.table.column_names]
    _check_cells(sheet, present)
    for column in columns:
        if column not in present:
            default = pa.array([defaults.get(column)] * sheet.table.num_rows, pa.string())
            sheet.table = sheet.table.append_column(column, default)
    return sheet


def _whole_file(path: Path, message: str) -> InvalidTable:
    return InvalidTable([Problem(path, None, message)])


def _require(
    path: Path, found: Sequence[str], columns: Sequence[str], defaults: Mapping[str, str | None]
) -> None:
    problems = []
    for column in columns:
        if found.count(column) > 1:
            problems.append(
                Problem(path, None, f"there are {found.count(column)} columns {column!r}")
            )
        if column not in found and column not in defaults:
            names = {name.lower(): name for name in found}
            near = get_close_matches(column, names, n=1)
            hint = f"; is it {names[near[0]]!r}? Rename it to {column!r}" if near else ""
            listed = ", ".join(repr(name) for name in found) or "none"
            problems.append(Problem(path, None, f"no column {column!r}; found {listed}{hint}"))
    if problems:
        raise InvalidTable(problems)


def _read_parquet(path: Path, columns: Sequence[str], defaults: Mapping[str, str | None]) -> _Sheet:
    try:
        file = pq.ParquetFile(path)
        _require(path, file.schema_arrow.names, columns, defaults)
        table = file.read(columns=[name for name in columns if name in file.schema_arrow.names])
        table.validate(full=True)  # finds text that is not UTF-8
    except (pa.ArrowException, OSError) as error:
        raise _whole_file(path, f"not a sound Parquet file: {error}") from error
    for position, column in enumerate(table.column_names):
        kind = table.schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if column == "image" and _is_binary(kind):
            target = pa.large_binary()
        elif _is_text(kind) or (column == "image_id" and pa.types.is_integer(kind)):
            target = pa.string()
        else:
            needed = "bytes or a path" if column == "image" else "text"
            raise _whole_file(path, f"column {column!r} holds {kind}; {needed} is needed")
        table = table.set_column(position, column, table[column].cast(target))
    rows = pa.array(range(1, table.num_rows + 1), pa.int64())
    return _Sheet(path, table.append_column("row", rows))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any((types.is_string(kind), types.is_large_string(kind), types.is_null(kind)))


def _is_binary(kind: pa.DataType) -> bool:
    return any((pa.types.is_binary(kind), pa.types.is_large_binary(kind)))


class _Csv(csv.excel):
    strict = True


class _Tsv(csv.excel_tab):
    quoting = csv.QUOTE_NONE  # a quote in a TSV cell is a quote
    strict = True


def _read_delimited(
    path: Path, columns: Sequence[str], defaults: Mapping[str, str | None]
) -> _Sheet:
    dialect = _Csv if path.suffix.lower() == ".csv" else _Tsv
    reader = csv.reader(io.StringIO(_text(path), newline=""), dialect)
    rows: list[int] = []
    faults: dict[int, str] = {}
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        _require(path, header, columns, defaults)
        cells: dict[int, list[str | None]] = {
            header.index(column): [] for column in columns if column in header
        }
        line = reader.line_num + 1
        for record in reader:
            if len(record) == len(header):
                rows.append(line)
                for position, values in cells.items():
                    values.append(record[position])
            elif record:  # else it is a blank line
                faults[line] = (
                    f"{len(record)} fields where the header has {len(header)}; "
                    f"mend the separators, {_OR_SKIP}"
                )
            line = reader.line_num + 1
    except csv.Error as error:
        raise _whole_file(
            path, f"line {line} can not be read ({error}); double the quotes inside a quoted cell"
        ) from error
    return _sheet(path, {header[at]: values for at, values in cells.items()}, rows, faults)


def _read_jsonl(path: Path, columns: Sequence[str], defaults: Mapping[str, str | None]) -> _Sheet:
    cells: dict[str, list[object]] = {column: [] for column in columns}
    rows: list[int] = []
    faults: dict[int, str] = {}
    found: dict[str, None] = {}
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            faults[line] = f"not JSON ({error}); {_OR_SKIP}"
            continue
        if not isinstance(record, dict):
            faults[line] = f"a {type(record).__name__} where an object is needed; {_OR_SKIP}"
            continue
        found |= dict.fromkeys(record)
        if isinstance(number := record.get("image_id"), int):
            record["image_id"] = str(number)
        if fault := _json_fault(record, columns):
            faults[line] = fault
        else:
            rows.append(line)
            for column, values in cells.items():
                values.append(record.get(column))
    if found or not faults:
        _require(path, list(found), columns, defaults)
    present = {column: values for column, values in cells.items() if column in found}
    return _sheet(path, present, rows, faults)


def _json_fault(record: Mapping[str, object], columns: Iterable[str]) -> str | None:
    for column in columns:
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            return f"{column!r} is of type {type(value).__name__}, not text; {_OR_SKIP}"
        if value and _HALF_CHARACTER.search(value):
            return f"{column!r} holds half a character (a lone surrogate); {_OR_SKIP}"
    return None


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _whole_file(
            path,
            f"line {line}, byte {error.start} of the file, is not UTF-8; save the file as UTF-8, "
            "for example with `iconv -f LATIN1 -t UTF-8`",
        ) from error


def _sheet(
    path: Path, cells: Mapping[str, Sequence[object]], rows: Sequence[int], faults: dict[int, str]
) -> _Sheet:
    table = pa.table(
        {
            **{column: pa.array(values, pa.string()) for column, values in cells.items()},
            "row": pa.array(rows, pa.int64()),
        }
    )
    sheet = _Sheet(path, table)
    sheet.refuse(faults)
    return sheet


# Checking: each step takes the rows it refuses out of the sheet


def _check_cells(sheet: _Sheet, columns: Sequence[str]) -> None:
    """Text stripped and in NFC, no cell empty."""
    for column in columns:
        cells = sheet.table[column]
        if pa.types.is_string(cells.type):
            cells = pc.utf8_trim_whitespace(cells)
            # A path is what the file system says, not what Unicode prefers.
            sheet.set(column, cells if column == "image" else pc.utf8_normalize(cells, form="NFC"))
    for column in columns:
        empty = pc.equal(pc.fill_null(pc.binary_length(sheet.table[column]), 0), 0)
        rows = sheet.table["row"].filter(empty).to_pylist()
        sheet.refuse(dict.fromkeys(rows, f"{column!r} is empty; {_OR_SKIP}"))


def _check_languages(sheet: _Sheet) -> None:
    """Only BCP-47 tags, written as the standard does: 'DE-at' becomes 'de-AT'."""
    tags = pc.unique(sheet.table["language"]).to_pylist()
    faults = {tag: fault for tag in tags if (fault := _tag_fault(tag))}
    sheet.refuse({row: faults[tag] for row, tag in sheet.cells("row", "language") if tag in faults})
    standard = {tag: standardize_tag(tag) for tag in tags if tag not in faults}
    tidy = [standard[tag] for tag in sheet.table["language"].to_pylist()]
    sheet.set("language", pa.array(tidy, pa.string()))


def _tag_fault(tag: str) -> str | None:
    dashed = tag.replace("_", "-")
    if not tag_is_valid(dashed):
        return f"language {tag!r} is unknown; write a BCP-47 tag such as 'de' or 'pt-BR'"
    if tag != dashed:
        return f"language {tag!r} is not BCP-47; write {standardize_tag(dashed)!r}"
    return None


def _standard(path: Path, language: str | None) -> str | None:
    """The language that the caller asks for, as tables have it after `_check_languages`."""
    if language is None:
        return None
    if fault := _tag_fault(language):
        raise _whole_file(path, fault)
    return standardize_tag(language)


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
                read[cell] = _find(cell, sheet.file.parent).read_bytes()
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


def _find(uri: str, folder: Path) -> Path:
    if "://" not in uri:
        path = folder / uri
    elif uri.startswith("file://"):
        path = Path(url2pathname(urlsplit(uri).path))
    else:
        raise ValueError("is not a local file; download it and give its path")
    if not path.is_file():
        raise ValueError(f"is missing: there is no {path}")
    return path


def _image_fault(data: bytes) -> str | None:
    try:
        decode_image(data)
    except ValueError as error:
        return str(error)
    return None
