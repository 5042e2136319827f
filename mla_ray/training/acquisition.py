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

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.data.feature_store import FeatureStore, Kind
from mla_ray.data.problems import InvalidTable, TableProblem
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import as_path, is_file, names_in, read_json, remove, write_json
from mla_ray.training.acquisition_learner import PreparedRun, train
from mla_ray.training.config import AcquireConfig
from mla_ray.training.encode_features import Encoders, Filled, fill
from mla_ray.training.loop import DONE
from mla_ray.training.metrics import STAGES
from mla_ray.training.prepare import PREPARED, Prepared, contents, prepare
from mla_ray.training.run_spec import (
    RUN,
    RunSpec,
    check_goes_on,
    only_run_in,
    spec_of,
    tables_spec,
    with_todays_fingerprint,
)
from mla_ray.training.workers import Hooks, Workers, fit


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
    prepared: str | Path | UPath | None = None,
    hooks: Hooks = Hooks(),
) -> dict[str, UPath]:
    """Acquire languages; returns the folder of each one's pack. The caller has started Ray.

    Args:
        native_name: as `Native.load` takes it, on every node.
        corpora: one for each language; several share one embedding while they train.
        config: settings of both stages.
        run: the run folder, made here.
        store: root of the feature stores.
        workers: how many train. Without any, all of it is done in this process, and needs no Ray.
        encoders: how many encode.
        resume: go on with the run in `run`. Without it an existing run is refused.
        skip_invalid: leave bad rows out instead of refusing their tables.
        prepared: a folder of prepared tables that several runs share, in place of the run's own;
            made if it is not there. Not for two runs to make at once.
        hooks: how it speaks with the caller.

    Raises:
        Diverged: the loss is no longer a number.
        MemoryError: the one worker has too little.
        BlockingIOError: another run is at work in `run`.
        FileExistsError: `run` exists and `resume` is off.
        InvalidTable: a table has bad rows.
        ValueError: the run in `run` is of other data or settings, or a batch is smaller than the
            number of workers.
        Stopped: as asked.

    """
    run, store = as_path(run), as_path(store)
    if not workers.count:
        encoders = Encoders(most=0)
    tables = run if prepared is None else as_path(prepared)
    native = Native.load(native_name)
    check_corpora(corpora, config, workers)
    with only_run_in(run):
        spec = begin(native, corpora, config, run, resume, tables)
        if not is_file(run / DONE):  # written as the very last
            prepared_tables = prepare(
                native,
                corpora,
                config,
                tables,
                spec=spec,
                skip_invalid=skip_invalid,
                progress=lambda phase, rows: hooks.report(Progress(phase, rows, None)),
            )
            if tables != run:
                write_json(run / RUN, spec)
            filled = encode(native, corpora, tables, store, hooks.report, encoders)
            if filled.failed and not skip_invalid:
                if not names_in(run / "checkpoints"):  # else what was trained is of this data
                    remove(tables / "data")  # so that the mended table may be run the same way
                    remove(run / RUN)
                raise bad_images(filled)
            fit(train, job_of(run, store, prepared_tables, tables), workers, hooks.named(run.name))
            if not is_file(run / DONE):
                raise Stopped(f"{run}: stopped with a checkpoint; the same again goes on")
    packs: dict[str, str] = read_json(run / DONE)["packs"]
    return {language: run / pack for language, pack in packs.items()}


def check_corpora(corpora: Sequence[Corpus], config: AcquireConfig, workers: Workers) -> None:
    """ValueError if the stages need tables that are not given, or batches are too small."""
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


def begin(
    native: Native,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: UPath,
    resume: bool,
    tables: UPath | None = None,
) -> RunSpec:
    """See that there is no run yet, or one of the same native, data and settings.

    Returns what the run is made of, for which all tables were read once.

    `prepare` says what a run is made of (run.json) once its tables are read: whose tables were
    refused may mend them and run the same again. `tables`, if others made them, have to be what
    this run would have made.
    """
    tables = run if tables is None else tables
    spec = spec_of(native, corpora, config)
    if tables != run and is_file(tables / RUN):
        theirs = with_todays_fingerprint(read_json(tables / RUN), native, tables)
        if tables_spec(theirs) != tables_spec(spec):
            raise ValueError(f"{tables}: prepared from other data or settings than {run} has")
    begun = is_file(tables / "data" / PREPARED)
    check_goes_on(run, spec, native, resume, begun)
    return spec


def job_of(
    run: UPath, store: UPath, prepared: Prepared, tables: UPath | None = None
) -> PreparedRun:
    """What the workers of a prepared run are given; `tables` is what a pack's card says of data."""
    spec: RunSpec = read_json(run / RUN)
    data = {
        language: {
            name: {"rows": rows, "files": spec["sources"][language][name]}
            for name, rows in of_language.items()
        }
        for language, of_language in prepared.rows.items()
    }
    return PreparedRun(str(run), str(tables or run), str(store), {**spec, "tables": data})


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
            TableProblem(f.file, f.row, f"image {f.reason}; drop the row or pass --skip-invalid")
            for f in filled.failures
        ]
    )
