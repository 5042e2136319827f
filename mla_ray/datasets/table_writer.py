"""Writers that check the rows of a public dataset and stream them into tables for `table_reader`.

A row that repeats an earlier one is skipped and counted, because readers of these tables reject
repeats. Other problems, such as a missing image or an empty caption, are collected and reported in
one error. With `skip_invalid`, these rows are skipped instead. Memory holds one batch of rows. For
a translation table it also holds a digest of each row of one language.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mla_ray.data.problems import KEPT_PROBLEMS, SHOWN_PROBLEMS
from mla_ray.data.table_reader import CAPTION_COLUMNS, PAIR_COLUMNS
from mla_ray.model.text import fault_of, normalized
from mla_ray.runtime.atomic import replacing_file
from mla_ray.runtime.progress import Progress, Report

BATCH = 16_384
"""Rows per write."""


class Caption(NamedTuple):
    """A row of a caption table, with its place in the source file for messages."""

    image_id: str
    image: Path
    language: str
    text: str
    split: str
    place: str


class Pair(NamedTuple):
    """A row of a translation table, with its place in the source file for messages."""

    source: str
    target: str
    language: str
    place: str


class Incomplete(ValueError):
    """Raised when a dataset has invalid rows.

    Args:
        problems: Messages for the first invalid rows.
        count: Number of all invalid rows.

    """

    def __init__(self, problems: list[str], count: int) -> None:
        super().__init__(problems, count)
        self.problems, self.count = problems, count

    def __str__(self) -> str:
        shown = self.problems[:SHOWN_PROBLEMS]
        if (more := self.count - len(shown)) > 0:
            shown = [*shown, f"… and {more:,} more"]
        return "\n".join([*shown, f"Pass --skip-invalid to leave out {self.count:,}."])


@dataclass
class Tally:
    """Counts of the written and skipped rows of a table."""

    path: Path
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Written rows by language and split. The split of a translation table is ""."""
    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Distinct images of the written rows, by language and split."""
    repeats: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Skipped repeats of an earlier caption of the same image, or of an earlier pair."""
    problems: list[str] = field(default_factory=list)
    """Messages for the first invalid rows."""
    refused: int = 0
    """Number of all invalid rows."""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry that `mla data make --json` prints for this table."""
        return {
            "path": str(self.path),
            "rows": [
                {
                    "language": language,
                    **({"split": split, "images": self.images[language, split]} if split else {}),
                    "rows": rows,
                    "repeats": self.repeats[language, split],
                }
                for (language, split), rows in self.rows.items()
            ],
        }

    @property
    def lines(self) -> list[str]:
        """Lines that `mla data make` prints for this table."""
        return [
            f"{self.path}: {language} {split:<10} {rows:>9,} rows"
            + (f" of {self.images[language, split]:,} images" if split else "")
            + (
                f", {repeats:,} repeats left out"
                if (repeats := self.repeats[language, split])
                else ""
            )
            for (language, split), rows in self.rows.items()
        ]

    def refuse(self, problem: str) -> None:
        """Count an invalid row, and keep its message if it is one of the first."""
        self.refused += 1
        if self.refused <= KEPT_PROBLEMS:
            self.problems.append(problem)


def write_captions(
    rows: Iterable[Caption], path: Path, report: Report, *, skip_invalid: bool = False
) -> Tally:
    """Write a caption table atomically.

    The column `image` holds paths. They are absolute if the paths of the rows are.

    Args:
        rows: The rows. Captions of one image in one language and split must be consecutive.
        path: File of the table.
        report: Called with the number of written rows.
        skip_invalid: Skip invalid rows instead of raising an error.

    Raises:
        Incomplete: Rows are invalid and `skip_invalid` is not set. No table is written.
        ValueError: No row is left.

    """
    tally = Tally(path)
    _write(path, CAPTION_COLUMNS, _captions(rows, tally), tally, report, skip_invalid)
    return tally


def write_pairs(
    rows: Iterable[Pair], path: Path, report: Report, *, skip_invalid: bool = False
) -> Tally:
    """Write a translation table atomically.

    Args:
        rows: The rows. Rows of one language must be consecutive.
        path: File of the table.
        report: Called with the number of written rows.
        skip_invalid: Skip invalid rows instead of raising an error.

    Raises:
        Incomplete: Rows are invalid and `skip_invalid` is not set. No table is written.
        ValueError: No row is left.

    """
    tally = Tally(path)
    _write(path, PAIR_COLUMNS, _pairs(rows, tally), tally, report, skip_invalid)
    return tally


def _captions(rows: Iterable[Caption], tally: Tally) -> Iterator[tuple[str, ...]]:
    image, exists = None, False
    group: tuple[str, str, str] | None = None
    seen: set[str] = set()
    for row in rows:
        key = (row.language, row.split)
        if image != row.image:
            image, exists = row.image, row.image.is_file()
        if group != (row.image_id, *key):
            group = (row.image_id, *key)
            seen.clear()
        if not exists:
            tally.refuse(f"{row.place}: there is no {row.image}")
        elif fault := _fault(text := normalized(row.text)):
            tally.refuse(f"{row.place}: the caption {fault}")
        elif text in seen and row.split != "test":  # published test counts include repeats
            tally.repeats[key] += 1
        else:
            tally.images[key] += not seen
            seen.add(text)
            tally.rows[key] += 1
            yield row.image_id, str(row.image), row.language, text, row.split


def _pairs(rows: Iterable[Pair], tally: Tally) -> Iterator[tuple[str, ...]]:
    language = None
    seen: set[bytes] = set()
    for row in rows:
        if language != row.language:
            language = row.language
            seen.clear()
        source, target = normalized(row.source), normalized(row.target)
        if fault := _fault(source):
            tally.refuse(f"{row.place}: the English text {fault}")
        elif fault := _fault(target):
            tally.refuse(f"{row.place}: the translation {fault}")
        elif (digest := _digest(source, target)) in seen:
            tally.repeats[row.language, ""] += 1
        else:
            seen.add(digest)
            tally.rows[row.language, ""] += 1
            yield source, target, row.language


def _digest(source: str, target: str) -> bytes:
    return hashlib.blake2b(f"{source}\0{target}".encode(), digest_size=16).digest()


def _fault(text: str) -> str | None:
    return fault_of(text) if text else "is empty"


def _write(
    path: Path,
    columns: tuple[str, ...],
    rows: Iterator[tuple[str, ...]],
    tally: Tally,
    report: Report,
    skip_invalid: bool,
) -> None:
    schema = pa.schema([(column, pa.string()) for column in columns])
    written = 0
    with replacing_file(path) as scratch:
        with pq.ParquetWriter(scratch, schema) as writer:
            for batch in _batches(rows):
                cells = [pa.array(cells, pa.string()) for cells in zip(*batch, strict=True)]
                writer.write_table(pa.table(cells, schema=schema))
                written += len(batch)
                report(Progress(path.stem, written, None))
        report(Progress(path.stem, written, written))
        if tally.refused and not skip_invalid:
            raise Incomplete(tally.problems, tally.refused)
        if not written:
            why = f"; the first problem: {tally.problems[0]}" if tally.problems else ""
            raise ValueError(f"{path.name}: no row is left{why}")


def _batches(rows: Iterator[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    batch: list[tuple[str, ...]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
