"""Storage of the measurements: an append-only JSON Lines file with one record per run."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mla_ray.model.native import Native
from mla_ray.model.recognition import recognised
from mla_ray.reproduce.ablation_data import AblationData
from mla_ray.reproduce.ablations import Run
from mla_ray.reproduce.runs import BESIDE, REWORDED, Record

ENGLISH = "English"
"""Key of the record of the native itself."""

KEPT = "Delete the file to measure again."
"""Remedy for records whose fingerprint was computed with the earlier rule."""


@dataclass(frozen=True)
class Records:
    """Records of a folder. Records of other data, settings or natives are ignored.

    Attributes:
        path: Path of the file.
        native: Native of the runs.
        tables: Hash of the data of the runs.
        every: All records in the file by the key of their run, including ignored ones.

    """

    path: Path
    native: Native
    tables: str
    every: dict[str, Record]

    @classmethod
    def open(cls, folder: Path, data: AblationData) -> Self:
        """Read the records of a folder, if any, load the native, and hash the data.

        An incomplete last line is removed from the file.
        """
        path = folder / "records.jsonl"
        every: dict[str, Record] = {}
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):  # left by a kill during the write
                lines.pop()
                path.write_bytes(b"".join(lines))
            for line in lines:
                record: Record = json.loads(line)
                every[record["run"]] = record
        return cls(path, Native.load(data.native), data.digest(), every)

    def made_of(self, run: Run | None, fingerprint: str) -> str:
        """Return a hash of the data, settings and native of a run.

        Args:
            run: The run, or None for the record of the native itself.
            fingerprint: Fingerprint of the native.

        """
        config = run.variant.config(run.seed, len(run.languages)).model_dump() if run else None
        variant = run.variant.as_dict() if run else [REWORDED, BESIDE]
        what = json.dumps([[fingerprint, self.tables], variant, config], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def get(self, run: Run | None) -> Record | None:
        """Return the valid record of a run (None: of the native itself), or None."""
        record = self.every.get(run.key if run else ENGLISH)
        if record is None:
            return None
        today = self.made_of(run, self.native.fingerprint)
        before = self.made_of(run, self.native.fingerprint_v1)
        return record if recognised(record["of"], today, before, self.path, KEPT) else None

    def of(self, runs: Sequence[Run]) -> dict[str, Record]:
        """Return the records of the native and of the runs that have one, by the run's key."""
        of_native = {ENGLISH: self.get(None) or {}}
        return of_native | {run.key: record for run in runs if (record := self.get(run))}

    def add(self, run: Run | None, measured: Record) -> None:
        """Append the record of a run (None: of the native itself) to the file."""
        key = run.key if run else ENGLISH
        self.every[key] = {"run": key, "of": self.made_of(run, self.native.fingerprint), **measured}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(self.every[key]) + "\n")


def begin_with(file: Path, folder: Path) -> None:
    """Copy a file of records to a folder.

    Records of other data, settings or natives are ignored when they are read.

    Raises:
        FileExistsError: `folder` already contains records.

    """
    records = folder / "records.jsonl"
    if records.exists():
        raise FileExistsError(f"{records} exists already; leave --from out, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, records)
