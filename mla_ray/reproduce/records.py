"""What was measured, run by run: a file of JSON lines that is only ever added to."""

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

KEPT = "Delete the file to measure anew."
"""What to do about records with a fingerprint of the rule of before."""


@dataclass(frozen=True)
class Records:
    """The records of a folder, by run. Those of other data, settings or natives are not seen.

    Attributes:
        path: of the file.
        native: which the runs are on.
        tables: a hash of the data that they are of.
        every: all there are in the file, by run.

    """

    path: Path
    native: Native
    tables: str
    every: dict[str, Record]

    @classmethod
    def open(cls, folder: Path, data: AblationData) -> Self:
        """Those in a folder, which may have none; the native is loaded and the data is hashed."""
        path = folder / "records.jsonl"
        every: dict[str, Record] = {}
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):  # a kill while it was written
                lines.pop()
                path.write_bytes(b"".join(lines))
            for line in lines:
                record: Record = json.loads(line)
                every[record["run"]] = record
        return cls(path, Native.load(data.native), data.digest(), every)

    def made_of(self, run: Run | None, fingerprint: str) -> str:
        """Of what a run's figures are, on the native of this fingerprint."""
        config = run.variant.config(run.seed, len(run.languages)).model_dump() if run else None
        variant = run.variant.as_dict() if run else [REWORDED, BESIDE]
        what = json.dumps([[fingerprint, self.tables], variant, config], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def get(self, run: Run | None) -> Record | None:
        record = self.every.get(run.key if run else ENGLISH)
        if record is None:
            return None
        today = self.made_of(run, self.native.fingerprint)
        before = self.made_of(run, self.native.fingerprint_v1)
        return record if recognised(record["of"], today, before, self.path, KEPT) else None

    def of(self, runs: Sequence[Run]) -> dict[str, Record]:
        """The records of the native and of those runs that have one, by run."""
        of_native = {ENGLISH: self.get(None) or {}}
        return of_native | {run.key: record for run in runs if (record := self.get(run))}

    def add(self, run: Run | None, measured: Record) -> None:
        key = run.key if run else ENGLISH
        self.every[key] = {"run": key, "of": self.made_of(run, self.native.fingerprint), **measured}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(self.every[key]) + "\n")


def begin_with(file: Path, folder: Path) -> None:
    """Take over somebody's records; those of other data, settings or natives will not count.

    Raises:
        FileExistsError: `folder` has records of its own.

    """
    records = folder / "records.jsonl"
    if records.exists():
        raise FileExistsError(f"{records} is there already; leave --from out, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, records)
