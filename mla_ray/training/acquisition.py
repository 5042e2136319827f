"""Language acquisition in the two stages of MLA, on Ray: prepare tables, encode features, train.

`acquire` works in a run folder. The folder is a path or a URL that all workers can reach:

    run.json                 native, data and settings; a resumed run must match them
    data/                    blocks of token ids, vocabulary, initial rows   (training.prepare);
                             in another folder if several runs share them
    checkpoints/             the last two checkpoints                        (training.checkpoints)
    packs/<stage>/<language> language packs; the stage is fresh, nlt or le
    metrics.jsonl, tensorboard/                                              (training.metrics)
    done.json                names of the final packs; written last

Each step can run as a job of its own. A step skips the work that is already done.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
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
    """Acquire languages and return the folder of each language's pack.

    The caller starts Ray first, unless `workers.count` is 0.

    Args:
        native_name: Name of the native model, as `Native.load` takes it. Every node must have it.
        corpora: One corpus per language. All languages share one embedding during training.
        config: Settings of both stages.
        run: Run folder. It is created if it does not exist.
        store: Root folder of the feature stores.
        workers: Training workers. With a count of 0, everything runs in this process without Ray.
        encoders: Actors that encode texts and images.
        resume: Continue the run in `run`. If False, an existing run is an error.
        skip_invalid: Drop invalid rows instead of rejecting their tables.
        prepared: Folder of prepared tables that several runs share, instead of the run's own.
            It is created if it does not exist. Two runs must not create it at the same time.
        hooks: Callbacks to the caller.

    Raises:
        Diverged: The loss is not finite.
        MemoryError: The training does not fit into the memory of its only worker.
        BlockingIOError: Another run is active in `run`.
        FileExistsError: `run` contains a run and `resume` is False.
        InvalidTable: A table has invalid rows and `skip_invalid` is False, or it has no valid row.
        ValueError: The run in `run` has other data or settings, a stage lacks a table, or a batch
            is smaller than the number of workers.
        Stopped: A stop request ended the training after it saved a checkpoint.

    """
    run, store = as_path(run), as_path(store)
    if not workers.count:
        encoders = Encoders(most=0)
    tables = run if prepared is None else as_path(prepared)
    native = Native.load(native_name)
    check_corpora(corpora, config, workers)
    with only_run_in(run):
        spec = begin(native, corpora, config, run, resume, tables)
        if not is_file(run / DONE):  # `train` writes it last
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
                if not names_in(run / "checkpoints"):  # checkpoints depend on this data
                    remove(tables / "data")  # the user can fix the table and run again
                    remove(run / RUN)
                raise bad_images(filled)
            run_training = train if workers.count else partial(train, native=native)
            job = job_of(run, store, prepared_tables, tables)
            fit(run_training, job, workers, hooks.named(run.name))
            if not is_file(run / DONE):
                raise Stopped(
                    f"{run}: stopped after saving a checkpoint; "
                    "run the same command again to continue"
                )
    packs: dict[str, str] = read_json(run / DONE)["packs"]
    return {language: run / pack for language, pack in packs.items()}


def check_corpora(corpora: Sequence[Corpus], config: AcquireConfig, workers: Workers) -> None:
    """Check that the stages have their tables and that the batches are large enough.

    Raises:
        ValueError: A stage lacks a table. Or a batch is smaller than the number of workers, or
            than the number of a language's translation tables.

    """
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
    """Check that a run can start in its folder, or continue there, and return its spec.

    Every table file is read once for its fingerprint. This function does not write `run.json`.
    `prepare` writes it after it has validated the tables, so a user can fix rejected tables and
    start the same run again.

    Args:
        native: Native model of the run.
        corpora: One corpus per language.
        config: Settings of both stages.
        run: Run folder.
        resume: Continue the run in `run`.
        tables: Folder of prepared tables that several runs share. The default is `run`.

    Raises:
        FileExistsError: `run` contains a run and `resume` is False.
        ValueError: The run in `run` or the prepared tables have other data or settings.

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
    """Return the job that the workers of a prepared run receive.

    Its spec lists the rows and files of each table, which pack cards record as their data.
    """
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
    """Compute the features that a prepared run needs and the stores lack."""
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

    filled = fill(stores, native, needed, advance, encoders)
    for kind, rows in (+total).items():
        report(Progress(f"{kind} features", rows, rows, f"{computed[kind]:,} computed"))
    return filled


def bad_images(filled: Filled) -> InvalidTable:
    """Return the error for tables with images that have no feature."""
    return InvalidTable(
        [
            TableProblem(f.file, f.row, f"image {f.reason}; drop the row or pass --skip-invalid")
            for f in filled.failures
        ]
    )
