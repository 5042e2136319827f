"""Readers of all table formats, selected by file ending.

Every reader yields chunks with the unchanged text of the rows and their places in the file. A row
that cannot be read is refused in its chunk. A file that cannot be read is refused as a whole. Text
formats can be compressed: `.csv.gz`, `.jsonl.zst`.
"""

import csv
import re
from _csv import Reader  # the type of `csv.reader`
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType

from upath import UPath

from mla_ray.data.problems import OR_SKIP, InvalidTable
from mla_ray.data.quoted_tsv import tsv_is_quoted
from mla_ray.data.table_arrow import read_arrow, read_parquet
from mla_ray.data.table_chunk import Chunk
from mla_ray.data.table_columns import Columns
from mla_ray.data.table_endings import COMPRESSIONS, format_of
from mla_ray.data.table_json import read_json, read_jsonl
from mla_ray.data.table_shards import read_shard
from mla_ray.data.table_text import RowBuffer, text_lines
from mla_ray.data.table_tmx import read_tmx
from mla_ray.runtime.storage import is_file, patiently


def read_chunks(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Return an iterator over the rows of a file in chunks, with the wanted columns that it has.

    Raises:
        InvalidTable: The file is missing, empty, of unknown format or damaged, or lacks a column.

    """
    ending, packed = format_of(path.name)
    if ending not in FORMATS or (packed and ending in UNPACKED):
        if patiently(path.is_dir, what=f"looking for {path}"):
            message = "a folder without Parquet files, shards or a table saved by `datasets`"
            raise InvalidTable.of_file(path, message)
        known = f"{', '.join(FORMATS)}; text also as {', '.join(COMPRESSIONS)}"
        remedy = _remedy(path, ending)
        raise InvalidTable.of_file(path, f"unknown file ending; use one of {known}{remedy}")
    if not is_file(path):
        raise InvalidTable.of_file(path, "no such file")
    if not patiently(path.stat, what=f"reading {path}").st_size:
        raise InvalidTable.of_file(path, "the file is empty")
    return FORMATS[ending](path, columns)


def _remedy(path: UPath, ending: str) -> str:
    """Return a hint about how to convert a file to a table, or an empty string."""
    name = str(path).removeprefix("hf-hub:")
    if not ending and name.count("/") == 1 and name[0] not in "./~":
        return (
            '. For a data set of the Hugging Face Hub, `python -c "import datasets; '
            f"datasets.load_dataset('{name}', split='train').to_parquet('train.parquet')\"` "
            "writes one"
        )
    if ending in (".xlsx", ".xls", ".ods"):
        return f". `libreoffice --headless --convert-to csv {path.name}` writes one"
    if ending == ".txt" or re.fullmatch(r"\.[a-z]{2}([-_][a-z]+)?", ending):
        return (
            ". For two files with matching lines, as Moses uses them, "
            "`(printf 'source\\ttarget\\n'; paste FILE.en FILE.de) > pairs.tsv` writes one"
        )
    return ""


# --- CSV and TSV --------------------------------------------------------------------------------


class _Csv(csv.excel):
    skipinitialspace = True  # `"dog", "Hund"`: the second cell is quoted as well
    strict = True


class _Tsv(csv.excel_tab):
    quoting = csv.QUOTE_NONE  # quotes in a cell are text
    strict = True


class _QuotedTsv(csv.excel_tab):
    """TSV dialect of pandas and Excel (`tsv_is_quoted`)."""

    strict = True


SEPARATORS = ",;\t|"
"""Separators of CSV files. Excel writes semicolons in locales with decimal commas."""
_EXCELS_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""First line of a CSV file that names the separator for Excel."""


def _read_delimited(path: UPath, columns: Columns) -> Iterator[Chunk]:
    dialect: type[csv.Dialect] = _Csv
    is_tsv = format_of(path.name)[0] == ".tsv"
    if is_tsv:
        with text_lines(path, newline="") as lines:
            dialect = _QuotedTsv if tsv_is_quoted(lines) else _Tsv
    with text_lines(path, newline="") as lines:
        first, before, separator = next(lines, ""), 0, "\t"
        if not is_tsv:
            if excels := _EXCELS_LINE.fullmatch(first):
                first, before, separator = next(lines, ""), 1, excels[1]
            else:
                separator = _separator(first, columns)
        reader = csv.reader(chain([first], lines), dialect, delimiter=separator)
        yield from _rows(path, columns, reader, before)


def _separator(header: str, columns: Columns) -> str:
    """Return the separator that splits a header into most of the wanted columns, by default `,`."""

    def count(separator: str) -> int:
        try:
            names = next(csv.reader([header], _Csv, delimiter=separator), [])
        except csv.Error:  # the header has more than one line
            return 0
        return len(columns.among(name.strip() for name in names))

    return max(SEPARATORS, key=count)


def _rows(path: UPath, columns: Columns, reader: Reader, before: int) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks.

    Args:
        path: Path of the file.
        columns: Columns to read.
        reader: CSV reader that starts at the header.
        before: Number of lines before the header.

    """
    line = before + 1
    try:
        header = [name.strip() for name in next(reader, [])]
        columns.require(path, header)
        places = {column: header.index(column) for column in columns.among(header)}
        buffer = RowBuffer(path)
        line = before + reader.line_num + 1
        for record in reader:
            if len(record) == len(header):
                buffer.add(line, {column: record[n] for column, n in places.items()})
            elif record:  # else it is a blank line
                buffer.faults[line] = (
                    f"{len(record)} fields where the header has {len(header)}; "
                    f"fix the separators, {OR_SKIP}"
                )
            line = before + reader.line_num + 1
            if buffer.is_full:
                yield buffer.chunk(places)
                buffer = RowBuffer(path)
        yield buffer.chunk(places)
    except csv.Error as error:
        raise InvalidTable.of_file(
            path,
            f"line {line} can not be read ({error}); double the quotes inside a quoted cell",
        ) from error


FORMATS: Mapping[str, Callable[[UPath, Columns], Iterator[Chunk]]] = MappingProxyType(
    {
        ".parquet": read_parquet,
        ".csv": _read_delimited,
        ".tsv": _read_delimited,
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".json": read_json,
        ".arrow": read_arrow,
        ".tmx": read_tmx,
        ".tar": read_shard,
    }
)
"""Readers by file ending in lowercase. Endings of files can be in uppercase."""
UNPACKED = (".parquet", ".arrow")
"""Formats with their own compression. They are not read from a compressed file."""
