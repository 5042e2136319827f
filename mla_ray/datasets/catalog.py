"""The public data sets by name: their tables made, and what of them is there."""

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
    """The tables of a data set, and what became of its rows."""

    captions: Tally | None
    pairs: dict[str, Tally]
    """By language."""
    warnings: list[str]
    """Where the caption table differs from what is published."""

    @property
    def tallies(self) -> list[Tally]:
        return [*([self.captions] if self.captions else []), *self.pairs.values()]

    @property
    def dropped(self) -> int:
        """Invalid rows that were left out."""
        return sum(tally.refused for tally in self.tallies)

    @property
    def first_problem(self) -> str | None:
        return next((problem for tally in self.tallies for problem in tally.problems), None)

    def as_dict(self) -> dict[str, Any]:
        """What `mla data make --json` prints."""
        return {
            "captions": self.captions.as_dict() if self.captions else None,
            "pairs": {language: tally.as_dict() for language, tally in self.pairs.items()},
            "dropped": self.dropped,
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class FileCheck:
    """A file or folder of a data set, looked for.

    `state` is there, missing, broken (`note` says how) or different: of another count than
    published. `count` is None where it is not there or not worth counting.
    """

    file: SourceFile
    state: str
    count: int | None = None
    note: str = ""

    @property
    def needed(self) -> bool:
        """Whether the set can not be made for want of it."""
        return self.state in ("missing", "broken") and not self.file.optional

    def as_dict(self) -> dict[str, Any]:
        """What `mla data check --json` prints of one."""
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
        """The same for people."""
        line = f"  {self.state:<9} {self.file.path}"
        if self.count is not None:
            line += f"  {self.count:,}"
        if self.state == "different":
            line += f", but {self.file.count:,} are published"
        if self.state in ("missing", "broken"):
            optional = " (can do without)" if self.file.optional else ""
            line += f"{optional}  {self.note or self.file.home}"
        return line


def data_set(name: str) -> DataSet:
    """The data set of this name; a ValueError says which there are."""
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
    """Write captions.parquet, and pairs-LANGUAGE.parquet where the set has translations.

    Args:
        name: in the catalog.
        root: where the data set lies, unpacked.
        out: folder for the tables; each appears whole, or not at all.
        report: told how many rows are written.
        languages: all of the set if not given.
        pairs_only: no caption table, and so no image is needed.
        skip_invalid: leave out rows without an image or a caption, instead of refusing them.

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
    """Look for what a data set needs in these languages (all if not given), and count it."""
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
    """The languages asked for, each once."""
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
