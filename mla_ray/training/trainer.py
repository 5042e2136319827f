"""Languages acquired in the two stages of MLA, on Ray: prepare, encode, train.

`acquire` works in a run folder, a path or any URL that all workers reach:

    run.json                 what the run is made of; a run goes on only if it has not changed
    data/                    blocks of token ids, vocabulary, initial rows   (training.prepare);
                             elsewhere if several runs share them
    checkpoints/             the last two                                    (training.checkpoints)
    packs/<stage>/<language> fresh, nlt, le
    metrics.jsonl, tensorboard/                                              (training.metrics)
    done.json                which packs are the result; written last

Every step may be run alone, by a job of its own; what is done already is not done again.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.data.feature_store import FeatureStore, Kind
from mla_ray.data.problems import InvalidTable, Problem
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import at, names_in, read_json, remove, write_json
from mla_ray.training.config import AcquireConfig
from mla_ray.training.encode_features import Encoders, Filled, fill
from mla_ray.training.loop import DONE, Job, Outside, train
from mla_ray.training.metrics import STAGES
from mla_ray.training.prepare import (
    Prepared,
    as_begun,
    contents,
    prepare,
    spec_of,
    tables_spec,
)
from mla_ray.training.workers import Workers, fit, run_in_process


def acquire(
    native_name: str,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: str | Path | UPath,
    *,
    store: str | Path | UPath,
    workers: Workers = Workers(),
    encoders: Encoders = Encoders(),
    resume: bool = False,
    skip_invalid: bool = False,
    report: Report = lambda progress: None,
    stop: threading.Event | None = None,
    labels: Mapping[str, str] | None = None,
    prepared: str | Path | UPath | None = None,
    callbacks: Sequence[Any] = (),
    here: Outside | None = None,
) -> dict[str, UPath]:
    """Acquire languages; returns the folder of each one's pack. The caller has started Ray.

    Args:
        native_name: as `Native.load` takes it, on every node.
        corpora: one for each language; several share one embedding while they train.
        config: settings of both stages.
        run: the run folder, made here.
        store: root of the feature stores.
        workers: how many train.
        encoders: how many encode.
        resume: go on with the run in `run`. Without it an existing run is refused.
        skip_invalid: leave bad rows out instead of refusing their tables.
        report: told of progress, for bars.
        stop: once set, a checkpoint is saved and `Stopped` raised.
        labels: of the metrics, beside the run's name.
        prepared: a folder of prepared tables that several runs share, in place of the run's own;
            made if it is not there. Not for two runs to make at once.
        callbacks: of Ray Train's, to hear of every checkpoint.
        here: train in this process, which Ray placed, and tell of it so; by Ray Train if not given.

    Raises:
        Diverged: the loss is no longer a number.
        MemoryError: the one worker has too little.
        FileExistsError: `run` exists and `resume` is off.
        InvalidTable: a table has bad rows.
        ValueError: the run in `run` is of other data or settings, or a batch is smaller than the
            number of workers.
        Stopped: as asked.

    """
    run, store = at(run), at(store)
    tables = run if prepared is None else at(prepared)
    native = Native.load(native_name)
    for name in STAGES:
        workers.check_batch(f"{name}.batch", getattr(config, name).batch)
    for corpus in corpora:
        if config.nlt.steps and len(corpus.pairs) > config.nlt.batch:
            raise ValueError(
                f"nlt.batch is {config.nlt.batch}, too small for the {len(corpus.pairs)} "
                f"translation tables of {corpus.language}, which share every batch"
            )
    if config.nlt.steps and not all(corpus.pairs for corpus in corpora):
        raise ValueError("every language needs a translation table; without one set nlt.steps to 0")
    if not all(corpus.pairs or corpus.start for corpus in corpora):
        raise ValueError("every language needs a translation table, or a pack to start from")
    if config.le.steps and not any(corpus.captions for corpus in corpora):
        raise ValueError("no language has captions for le.steps; set it to 0, or give a table")
    begin(native, corpora, config, run, resume, tables)
    if not (run / DONE).exists():  # written as the very last
        made = _prepare(native, corpora, config, tables, skip_invalid, report)
        if tables != run:
            write_json(run / "run.json", spec_of(native, corpora, config))
        filled = encode(native, corpora, tables, store, report, encoders)
        if filled.failed and not skip_invalid:
            if not names_in(run / "checkpoints"):  # else what was trained is of this data
                remove(tables / "data")  # so that the mended table may be run the same way
                remove(run / "run.json")
            raise bad_images(filled)
        labels = {"run": run.name, **(labels or {})}
        job = job_of(run, store, made, tables)
        if here is None:
            fit(train, job, workers, report, stop, labels, callbacks)
        elif fault := run_in_process(train, job, replace(here, labels=labels)):
            raise fault
        if not (run / DONE).exists():
            raise Stopped(f"{run}: stopped with a checkpoint; pass --resume to go on")
    packs: dict[str, str] = read_json(run / DONE)["packs"]
    return {language: run / pack for language, pack in packs.items()}


def begin(
    native: Native,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: UPath,
    resume: bool,
    tables: UPath | None = None,
) -> None:
    """See that there is no run yet, or one of the same native, data and settings.

    `prepare` says what a run is made of (run.json) once its tables are read: whose tables were
    refused may mend them and run the same again. `tables`, if others made them, have to be what
    this run would have made.
    """
    tables = run if tables is None else tables
    if tables != run and (tables / "run.json").exists():
        theirs = as_begun(read_json(tables / "run.json"), native, tables)
        ours = spec_of(native, corpora, config)
        if tables_spec(theirs) != tables_spec(ours):
            raise ValueError(f"{tables}: prepared from other data or settings than {run} has")
    path = run / "run.json"
    if not path.exists():
        return
    if not resume:
        raise FileExistsError(
            f"{run} holds a run already; pass --resume to go on with it, or delete it"
        )
    if not (tables / "data" / "prepared.json").exists():  # nothing was made yet
        return
    before, spec = as_begun(read_json(path), native, run), spec_of(native, corpora, config)
    changed = [key for key in spec if before.get(key) != spec[key]]
    if changed:
        raise ValueError(
            f"{run}: cannot resume, {' and '.join(changed)} differ from the run begun there; "
            "choose another run folder, or delete it"
        )


def _prepare(
    native: Native,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: UPath,
    skip_invalid: bool,
    report: Report,
) -> Prepared:
    def advance(phase: str, rows: int) -> None:
        report(Progress(phase, rows, None))

    return prepare(native, corpora, config, run, skip_invalid=skip_invalid, progress=advance)


def job_of(run: UPath, store: UPath, prepared: Prepared, tables: UPath | None = None) -> Job:
    """What the workers of a prepared run are given; `tables` is what a pack's card says of data."""
    spec = read_json(run / "run.json")
    data = {
        language: {
            name: {"rows": rows, "files": spec["sources"][language][name]}
            for name, rows in of_language.items()
        }
        for language, of_language in prepared.rows.items()
    }
    return Job(str(run), str(tables or run), str(store), spec | {"tables": data})


def encode(
    native: Native,
    corpora: Sequence[Corpus],
    run: UPath,
    store: UPath,
    report: Report,
    encoders: Encoders = Encoders(),
) -> Filled:
    """Fill the feature stores with what a prepared run needs."""
    needed = contents(run, corpora)
    total = Counter[Kind]()
    for each in needed:
        total[each.kind] += sum(rows for _, rows in each.blocks)
    stores = {
        kind: FeatureStore(store, native.fingerprint, kind, native.fingerprint_v1) for kind in total
    }
    done, computed = Counter[Kind](), Counter[Kind]()

    def advance(kind: Kind, rows: int, new: int) -> None:
        done[kind] += rows
        computed[kind] += new
        report(Progress(f"{kind} features", done[kind], total[kind]))

    filled = fill(stores, native.name, needed, advance, encoders)
    for kind, rows in (+total).items():
        report(Progress(f"{kind} features", rows, rows, f"{computed[kind]:,} computed"))
    return filled


def bad_images(filled: Filled) -> InvalidTable:
    """The refusal of tables whose images could not be read."""
    return InvalidTable(
        [
            Problem(f.file, f.row, f"image {f.reason}; drop the row or pass --skip-invalid")
            for f in filled.failures
        ]
    )
