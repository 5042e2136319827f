"""Execution of all runs on Ray, with as many concurrent runs as there are cores. Resumable.

Files:

    records.jsonl   one line per finished run; append-only, but an incomplete last line is dropped
    shared/         prepared tables
    scratch/        temporary files of active runs
    tests/, bert/   see `reproduce.ablation_data`

"""

import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mla_ray.model.native import Native
from mla_ray.reproduce.ablation_data import AblationData
from mla_ray.reproduce.ablations import FULL, Run
from mla_ray.reproduce.records import Records
from mla_ray.reproduce.runs import Record, RunInputs, english, measure
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import as_path
from mla_ray.training.acquisition import encode
from mla_ray.training.workers import Workers, gpus_per_worker

SCRATCH = "scratch"


def measure_all(
    runs: Sequence[Run],
    data: AblationData,
    folder: Path,
    report: Report,
    stop: threading.Event | None = None,
) -> Records:
    """Execute all runs that have no record. The caller must have started Ray.

    After a kill, the same call resumes and repeats only runs without a record.

    Args:
        runs: Runs to execute.
        data: Data sets of the runs.
        folder: Folder of the reproduction.
        report: Receives the progress after each run.
        stop: Stop request.

    Returns:
        All records in the folder.

    Raises:
        Stopped: `stop` was set. Active runs are lost. The records of finished runs are kept.
        ray.exceptions.RayTaskError: A run failed. The records of finished runs are kept.

    """
    import ray

    shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # left by killed runs
    records = Records.open(folder, data)
    if records.get(None) is None:
        records.add(None, english(data))
    missing = [run for run in runs if records.get(run) is None]
    if missing:
        _encode(missing, data, folder, report)
    gpus = gpus_per_worker(Workers(), ray.cluster_resources())
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_task)
    done = len(runs) - len(missing)
    report(Progress("runs", done, len(runs)))
    coming = iter(missing)
    under_way: dict[Any, Run] = {}
    try:
        while True:
            # Two more tasks than cores, so that no core waits for the next task.
            room = 2 + int(ray.cluster_resources().get("CPU", 1))
            for run in _next(coming, room - len(under_way)):
                under_way[task.remote(run, data, folder)] = run
            if not under_way:
                return records
            ended, _ = ray.wait(list(under_way), timeout=1.0)
            for ref in ended:
                run = under_way.pop(ref)
                records.add(run, ray.get(ref))
                done += 1
                report(Progress("runs", done, len(runs), run.key))
            if stop is not None and stop.is_set():
                raise Stopped(f"{folder}: stopped; run the same again to go on")
    finally:
        for ref in under_way:
            ray.cancel(ref, force=True)


def _next(coming: Iterator[Run], count: int) -> Iterator[Run]:
    for _ in range(count):
        if (run := next(coming, None)) is not None:
            yield run


def _task(run: Run, data: AblationData, folder: Path) -> Record:
    scratch = folder / SCRATCH / secrets.token_hex(8)
    try:
        return measure(run, data, scratch, folder / "shared")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _encode(runs: Sequence[Run], data: AblationData, folder: Path, report: Report) -> None:
    """Encode all texts and images before the first run, because encoding uses all cores."""
    native = Native.load(data.native)
    for language in dict.fromkeys(language for run in runs for language in run.languages):
        alone = Run(FULL, (language,), runs[0].seed)
        inputs = RunInputs.of(alone, [language], native, data, folder / "shared")
        encode(native, inputs.corpora, inputs.tables, as_path(data.store), report)
