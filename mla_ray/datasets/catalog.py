"""Catalog of the public datasets: write their tables and check which of their files exist."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mla_ray.datasets.cc300k import CC300K
from mla_ray.datasets.coco import COCO
from mla_ray.datasets.crossmodal3600 import CROSSMODAL3600
from mla_ray.datasets.layout import DataSet, Size, SourceFile, count, find_file
from mla_ray.datasets.msrvtt import MSRVTT
from mla_ray.datasets.multi30k import MULTI30K, TASK1_ONLY
from mla_ray.datasets.table_writer import Tally, write_captions, write_pairs
from mla_ray.datasets.xtd import XTD
from mla_ray.runtime.progress import Progress, Report

CATALOG: Mapping[str, DataSet] = MappingProxyType(
    {
        data_set.name: data_set
        for data_set in (MULTI30K, TASK1_ONLY, COCO, XTD, CROSSMODAL3600, CC300K, MSRVTT)
    }
)


@dataclass(frozen=True)
class WrittenTables:
    """Tables written for a dataset, with row counts and warnings."""

    captions: Tally | None
    pairs: dict[str, Tally]
    """Translation tables by language."""
    warnings: list[str]
    """Differences between the caption table and the published counts."""

    @property
    def tallies(self) -> list[Tally]:
        """Tallies of all tables, the caption table first."""
        return [*([self.captions] if self.captions else []), *self.pairs.values()]

    @property
    def dropped(self) -> int:
        """Number of invalid rows that were skipped."""
        return sum(tally.refused for tally in self.tallies)

    @property
    def first_problem(self) -> str | None:
        """First problem of any table, or None."""
        return next((problem for tally in self.tallies for problem in tally.problems), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the document that `mla data make --json` prints."""
        return {
            "captions": self.captions.as_dict() if self.captions else None,
            "pairs": {language: tally.as_dict() for language, tally in self.pairs.items()},
            "dropped": self.dropped,
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class FileCheck:
    """Result of the check of one file or folder of a dataset.

    Args:
        file: The file or folder.
        state: "there", "missing", "broken" (unreadable) or "different" (the count is not the
            published one).
        count: Number of lines, records or files. None if the file is missing or broken, or if it is
            a file without a published count.
        note: Error message of a broken file.

    """

    file: SourceFile
    state: str
    count: int | None = None
    note: str = ""

    @property
    def needed(self) -> bool:
        """Whether the dataset cannot be built because this file is missing or broken."""
        return self.state in ("missing", "broken") and not self.file.optional

    def as_dict(self) -> dict[str, Any]:
        """Return the entry that `mla data check --json` prints for this file."""
        return {
            "path": self.file.path,
            "state": self.state,
            "count": self.count,
            "expected": self.file.count,
            "optional": self.file.optional,
            "home": self.file.home,
            "note": self.note,
        }

    @property
    def line(self) -> str:
        """Line that `mla data check` prints for this file."""
        line = f"  {self.state:<9} {self.file.path}"
        if self.count is not None:
            line += f"  {self.count:,}"
        if self.state == "different":
            line += f", but {self.file.count:,} are published"
        if self.state in ("missing", "broken"):
            optional = " (optional)" if self.file.optional else ""
            line += f"{optional}  {self.note or self.file.home}"
        return line


def data_set(name: str) -> DataSet:
    """Return the dataset with this name.

    Raises:
        ValueError: The catalog has no such dataset.

    """
    if name not in CATALOG:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(CATALOG)}")
    return CATALOG[name]


def make(
    name: str,
    root: Path,
    out: Path,
    report: Report,
    *,
    languages: Sequence[str] | None = None,
    pairs_only: bool = False,
    skip_invalid: bool = False,
) -> WrittenTables:
    """Write captions.parquet, and pairs-LANGUAGE.parquet for languages with translations.

    Args:
        name: Name in the catalog.
        root: Folder of the unpacked dataset.
        out: Folder for the tables. Each table is written atomically.
        report: Called with the number of written rows.
        languages: BCP-47 codes. The default is all languages of the dataset.
        pairs_only: Write no caption table. No image is needed then.
        skip_invalid: Skip invalid rows, such as a row without an image or a caption. By default,
            an invalid row is an error.

    Raises:
        ValueError: The dataset or a language is unknown, or a source file or row is invalid. Also
            raised if `pairs_only` is set and none of the languages has translations.
        FileNotFoundError: A source file is missing.

    """
    chosen = data_set(name)
    wanted = _known(chosen, languages)
    root = root.expanduser().resolve()
    translated = [language for language in wanted if language in chosen.pair_languages]
    if pairs_only and not translated:
        raise ValueError(f"{name} has no translations into {', '.join(wanted)}")
    captions, pairs = None, {}
    if not pairs_only:
        rows = chosen.captions(root, wanted)
        captions = write_captions(rows, out / "captions.parquet", report, skip_invalid=skip_invalid)
    if chosen.pairs:
        for language in translated:
            path = out / f"pairs-{language}.parquet"
            pairs[language] = write_pairs(
                chosen.pairs(root, language), path, report, skip_invalid=skip_invalid
            )
    return WrittenTables(captions, pairs, _differences(chosen, captions) if captions else [])


def check(
    name: str, root: Path, report: Report, languages: Sequence[str] | None = None
) -> list[FileCheck]:
    """Find and count the files that a dataset needs.

    Args:
        name: Name in the catalog.
        root: Folder of the unpacked dataset.
        report: Called after each file.
        languages: BCP-47 codes. The default is all languages of the dataset.

    Returns:
        One result per file that these languages need.

    Raises:
        ValueError: The dataset or a language is unknown.

    """
    chosen = data_set(name)
    wanted = set(_known(chosen, languages))
    files = [file for file in chosen.files if file.languages is None or wanted & {*file.languages}]
    checks = []
    for done, file in enumerate(files, start=1):
        checks.append(_checked(file, root.expanduser().resolve()))
        report(Progress(name, done, len(files), file.path))
    return checks


def _checked(file: SourceFile, root: Path) -> FileCheck:
    try:
        path = find_file(root, file.path)
    except FileNotFoundError:
        return FileCheck(file, "missing")
    if file.count is None and path.is_file():
        return FileCheck(file, "there")
    try:
        counted = count(path, file)
    except (ValueError, OSError) as error:
        return FileCheck(file, "broken", note=str(error))
    state = "there" if file.count in (None, counted) else "different"
    return FileCheck(file, state, counted)


def _known(chosen: DataSet, languages: Sequence[str] | None) -> list[str]:
    """Return the requested languages without repeats, or all languages of the dataset.

    Raises:
        ValueError: The dataset lacks one of them.

    """
    wanted = list(dict.fromkeys(languages or chosen.languages))
    if unknown := [language for language in wanted if language not in chosen.languages]:
        raise ValueError(
            f"{chosen.name} has no {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(chosen.languages)}"
        )
    return wanted


def _differences(chosen: DataSet, captions: Tally) -> list[str]:
    warnings = []
    for key in captions.rows:
        size = chosen.sizes.get(key, Size(None))
        language, split = key
        for what, published, written in (
            (chosen.items, size.images, captions.images[key]),
            ("captions", size.captions, captions.rows[key] + captions.repeats[key]),
        ):
            if published is not None and published != written:
                warnings.append(
                    f"{language} {split}: {written:,} {what}, but {published:,} are published"
                )
    return warnings
