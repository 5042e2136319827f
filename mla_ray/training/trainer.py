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

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.data.feature_store import FeatureStore, Kind
from mla_ray.data.table_reader import InvalidTable, Problem
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import at, names_in, read_json, remove, write_json
from mla_ray.training.board import Board
from mla_ray.training.config import AcquireConfig
from mla_ray.training.encode_features import Encoders, Filled, fill
from mla_ray.training.loop import DONE, Diverged, Job, Outside, Wish, train
from mla_ray.training.metrics import STAGES
from mla_ray.training.prepare import (
    Prepared,
    as_begun,
    contents,
    prepare,
    spec_of,
    tables_spec,
)

log = logging.getLogger(__name__)

__all__ = [
    "Corpus",
    "Diverged",
    "Progress",
    "Report",
    "Stopped",
    "Workers",
    "acquire",
    "begin",
    "encode",
]


@dataclass(frozen=True)
class Workers:
    """Ray Train workers. Batches and learning rates do not depend on how many there are.

    Attributes:
        count: workers, or the fewest that training goes on with.
        most: the training grows up to as many when the cluster has room (elastic), if given.
        cpus: of each; if not given as many as leave every worker its share, on the nodes there are.
        gpus: of each; one if not given and the cluster has enough of them now. A cluster whose
            GPU nodes have yet to appear has to be asked for them.
        resources: other Ray resources that a worker has to be placed on.

    """

    count: int = 1
    most: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Workers":
        """`2`, or `1:4` for at least one and at most four."""
        count, colon, most = text.partition(":")
        if not count.isdecimal() or (colon and not most.isdecimal()) or int(count) < 1:
            raise ValueError(
                f"workers are a number such as 2, or a range such as 1:4, not {text!r}"
            )
        if colon and int(most) < int(count):
            raise ValueError(f"workers {text!r}: the most is less than the fewest")
        return cls(int(count), int(most) if colon else None)

    def check_batch(self, name: str, batch: int) -> None:
        """Refuse a batch of which some worker would get no row, with a ValueError."""
        most = max(self.count, self.most or 0)
        if batch < most:
            raise ValueError(f"{name} is {batch}, too small for {most} workers")


def acquire(
    native_name: str,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: str | Path | UPath,
    *,
    store: str | Path | UPath,
    workers: Workers = Workers(),
    encoders: Encoders = Encoders(),  # noqa: B008
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
        elif fault := _fault(train, job, replace(here, labels=labels)):
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
    encoders: Encoders = Encoders(),  # noqa: B008
) -> Filled:
    """Fill the feature stores with what a prepared run needs."""
    needed = contents(run, corpora)
    stores, total = {}, Counter[Kind]()
    for each in needed:
        total[each.kind] += sum(rows for _, rows in each.blocks)
    for kind in total:
        stores[kind] = FeatureStore(store, native.fingerprint, kind, native.fingerprint_v1)
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


# --- on Ray Train ------------------------------------------------------------------------------

WATCHED_S = 0.5


class InFolder(Protocol):
    """What workers are given: of a run, which has a folder."""

    @property
    def run(self) -> str: ...


def fit(
    train: Callable[..., bool],
    job: InFolder,
    workers: Workers,
    report: Report,
    stop: threading.Event | None,
    labels: Mapping[str, str],
    callbacks: Sequence[Any] = (),
) -> None:
    """Run `train` on Ray Train workers, as `loop.train` is one; all that goes on is told.

    Args:
        train: given `job`, an `Outside`, and whether to stay on the CPU.
        job: what all workers are given.
        workers: how many train.
        report: told of progress, for bars.
        stop: once set, a checkpoint is saved.
        labels: of the metrics.
        callbacks: of Ray Train's.

    Raises:
        Diverged, MemoryError: as `train` says, on a worker.

    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = gpus_of(workers, ray.cluster_resources())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = workers.cpus or share(workers, nodes)
    board = ray.remote(num_cpus=0)(Board).remote()
    remove(at(job.run) / "train")  # what Ray noted of an earlier try; where to go on, we know
    # Not as `train_loop_config`: Train's controller reads that, and would import all of this
    # package and open_clip for it, which takes many seconds.
    trainer = TorchTrainer(
        partial(_work, train, job, board, dict(labels)),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.count, workers.most) if workers.most else workers.count,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": cpus, **workers.resources}
            | ({"GPU": gpus} if gpus else {}),
            elastic_resize_monitor_interval_s=10.0,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=job.run,
            failure_config=FailureConfig(max_failures=3),
            callbacks=list(callbacks),
        ),
    )
    with _Watching(board, report, stop):
        result = trainer.fit()
    if isinstance(result.return_value, Exception):
        raise result.return_value


def gpus_of(workers: Workers, resources: Mapping[str, float]) -> float:
    """Of each worker on a cluster of these resources."""
    if workers.gpus is not None:
        return workers.gpus
    return 1.0 if resources.get("GPU", 0) >= workers.count else 0.0


def share(workers: Workers, nodes: Sequence[Mapping[str, float]]) -> int:
    """The most cores that each worker can have on nodes of these resources: it must fit on one."""
    wanted = workers.resources.items()
    fit = [node for node in nodes if all(node.get(name, 0) >= n for name, n in wanted)]
    cores = [int(node.get("CPU", 0)) for node in fit]
    for each in range(max(cores, default=1), 1, -1):
        if sum(count // each for count in cores) >= workers.count:
            return each
    return 1


class _Watching:
    """Reports the workers' progress while `fit` blocks, and tells them to stop."""

    def __init__(self, board: Any, report: Report, stop: threading.Event | None) -> None:
        self.board, self.report, self.stop = board, report, stop
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        import ray

        while True:
            over = self.over.wait(WATCHED_S)
            stop = self.stop is not None and self.stop.is_set()
            try:
                rows = ray.get(self.board.take.remote(stop))
            except ray.exceptions.RayError as gone:
                log.warning("progress is no longer shown: %s", gone)
                return
            for row in rows:
                if "loss" in row:
                    note = f"loss {row['loss']:.4f}, {row['texts/s']:,.0f} texts/s"
                else:
                    note = f"held-out AR {row['AR']:.1f}, best {row['best_AR']:.1f}"
                self.report(Progress(row["stage"], row["step"], row["steps"], note))
            if over:
                return


def _work(
    train: Callable[..., bool], job: InFolder, board: Any, labels: Mapping[str, str]
) -> Exception | None:
    """What every Ray Train worker runs; returns what went wrong if it would again.

    What is raised here Ray tries again, from the last checkpoint.
    """
    import ray.train

    outside = Outside(
        saved=_report,
        wish=_Wishes(board).ask,
        send=lambda row: board.add.remote(row),
        labels=labels,
    )
    alone = ray.train.get_context().get_world_size() == 1
    return _fault(train, job, outside, alone)


def _fault(
    train: Callable[..., bool], job: InFolder, outside: Outside, alone: bool = True
) -> Exception | None:
    """Train in this process, on its GPU if Ray gave it one; returns what would go wrong again."""
    import ray

    try:
        train(job, outside, cpu=not ray.get_gpu_ids())
    except Diverged as fault:  # on all workers
        return fault
    except (MemoryError, RuntimeError) as fault:
        if not alone or not _too_large(fault):
            raise
        return MemoryError(f"does not fit into memory: {fault}")
    return None


def _too_large(fault: Exception) -> bool:
    import torch

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(fault, kinds) or "can't allocate memory" in str(fault)  # of the CPU's


def _report(figures: dict[str, Any], folder: UPath | None) -> None:
    """Tell Ray Train, and whoever schedules its runs, of a checkpoint; a barrier.

    The checkpoint is not handed over: Ray's own come back as the latest or not at all, where ours
    go back past a damaged one.
    """
    from ray import train

    train.report(figures | {"checkpoint_path": str(folder)})


LOOK_S = 0.5
LOOK_CALLS = 5


class _Wishes:
    """What Ray and the board want, the same on every worker.

    Asking takes messages between processes. A worker alone asks every `LOOK_S` seconds; several,
    which have to ask at the same step, every `LOOK_CALLS` calls.
    """

    def __init__(self, board: Any) -> None:
        import ray.train

        self.board = board
        self.asked: Any = None
        self.stopping = False
        self.seen: set[str] = set()
        self.leads = ray.train.get_context().get_world_rank() == 0
        self.alone = ray.train.get_context().get_world_size() == 1
        self.calls, self.looked = 0, time.monotonic()

    def ask(self) -> Wish:
        import ray.train
        from ray.train.collective import broadcast_from_rank_zero

        self.calls += 1
        if self.alone:
            if time.monotonic() - self.looked < LOOK_S:
                return Wish.GO
            self.looked = time.monotonic()
        elif self.calls % LOOK_CALLS:
            return Wish.GO
        if self.leads:
            self._look()
        stopping = self.stopping
        if not self.alone:
            stopping = broadcast_from_rank_zero(stopping)
        if stopping:
            return Wish.STOP
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        if nodes - self.seen:
            self.seen |= nodes
            return Wish.SAVE  # once: the node goes on until it is taken
        return Wish.GO

    def _look(self) -> None:
        """Ask the board without waiting for it."""
        import ray

        if self.asked is None:
            self.asked = self.board.wish.remote()
        elif ray.wait([self.asked], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # its driver is gone
                self.stopping = ray.get(self.asked)
            self.asked = None
