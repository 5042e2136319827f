"""Ray Train workers: how many, on what part of a cluster, and how a driver speaks with them.

`fit` runs a training on workers and shows its progress; the driver may stop it. A worker that is
lost is replaced, and the training goes on from its last checkpoint.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from upath import UPath

from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.stop_signals import StopEvent
from mla_ray.runtime.storage import as_path, remove
from mla_ray.training.driver import Control, Driver, Figures, OnCheckpoint
from mla_ray.training.loop import Diverged
from mla_ray.training.monitor import Monitor

log = logging.getLogger(__name__)

SHOW_EVERY_S = 0.5
"""Seconds between two looks of the driver at the metrics."""


@dataclass(frozen=True)
class Workers:
    """Ray Train workers. Batches and learning rates do not depend on how many there are.

    Attributes:
        count: workers, or the fewest that training goes on with; none: it trains in this process,
            and needs no Ray.
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
        """`2`, `1:4` for at least one and at most four, or `0` for this process alone."""
        count, colon, most = text.partition(":")
        if not count.isdecimal() or (colon and not (most.isdecimal() and int(count))):
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


@dataclass(frozen=True)
class Hooks:
    """How a run speaks with whoever started it.

    Attributes:
        report: called with progress, for bars.
        stop: once set, a checkpoint is saved and `Stopped` raised.
        labels: of the metrics, beside the run's name.
        callbacks: of Ray Train's, to hear of every checkpoint of its workers.
        on_checkpoint: called after each checkpoint of a training in this process.

    """

    report: Report = lambda progress: None
    stop: threading.Event | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    callbacks: Sequence[Any] = ()
    on_checkpoint: OnCheckpoint = lambda figures, folder: None

    def named(self, run: str) -> "Hooks":
        """The same for a run of this name, which becomes a label if there is none."""
        return replace(self, labels={"run": run, **self.labels})


class InFolder(Protocol):
    """What workers are given: of a run, which has a folder."""

    @property
    def run(self) -> str: ...


Train = Callable[..., bool]
"""Given an `InFolder`, a `Driver`, and `cpu=`, whether to stay on the CPU."""


def fit(train: Train, job: InFolder, workers: Workers, hooks: Hooks) -> None:
    """Run `train` on Ray Train workers, or in this process if there are to be none.

    Args:
        train: what every worker runs.
        job: what all workers are given.
        workers: how many train.
        hooks: how the run speaks with the caller.

    Raises:
        Diverged, MemoryError: as `train` says, on a worker.

    """
    in_main = threading.current_thread() is threading.main_thread()
    if isinstance(hooks.stop, StopEvent) and in_main and not hooks.stop.is_set():
        hooks.stop.listen()  # from now on there is something to save
    if not workers.count:
        if fault := run_in_process(train, job, _driver_here(hooks)):
            raise fault
        return
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = gpus_per_worker(workers, ray.cluster_resources())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = workers.cpus or cpus_per_worker(workers, nodes)
    monitor = ray.remote(num_cpus=0)(Monitor).remote()
    remove(as_path(job.run) / "train")  # what Ray noted of an earlier try; where to go on, we know
    # Not as `train_loop_config`: Train's controller reads that, and would import all of this
    # package and open_clip for it, which takes many seconds.
    trainer = TorchTrainer(
        partial(_work, train, job, monitor, dict(hooks.labels)),
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
            callbacks=list(hooks.callbacks),
        ),
    )
    with _ProgressThread(monitor, hooks.report, hooks.stop):
        result = trainer.fit() if hooks.stop is None or not in_main else _fit_beside(trainer)
    if isinstance(result.return_value, Exception):
        raise result.return_value


def gpus_per_worker(workers: Workers, resources: Mapping[str, float]) -> float:
    """Of each worker on a cluster of these resources."""
    if workers.gpus is not None:
        return workers.gpus
    return 1.0 if resources.get("GPU", 0) >= max(1, workers.count) else 0.0


def cpus_per_worker(workers: Workers, nodes: Sequence[Mapping[str, float]]) -> int:
    """The most cores that each worker can have on nodes of these resources: it must fit on one."""
    wanted = workers.resources.items()
    fit = [node for node in nodes if all(node.get(name, 0) >= n for name, n in wanted)]
    cores = [int(node.get("CPU", 0)) for node in fit]
    for each in range(max(cores, default=1), 1, -1):
        if sum(count // each for count in cores) >= workers.count:
            return each
    return 1


def _progress(row: Figures) -> Progress:
    """A row of metrics, as bars show it."""
    if "loss" in row:
        note = f"loss {row['loss']:.4f}, {row['texts/s']:,.0f} texts/s"
    else:
        note = f"held-out AR {row['AR']:.1f}, best {row['best_AR']:.1f}"
    return Progress(row["stage"], row["step"], row["steps"], note)


def _driver_here(hooks: Hooks) -> Driver:
    """The driver of a training in this process."""

    def control() -> Control:
        stopping = hooks.stop is not None and hooks.stop.is_set()
        return Control.STOP if stopping else Control.CONTINUE

    return Driver(
        on_checkpoint=hooks.on_checkpoint,
        control=control,
        on_metrics=lambda row: hooks.report(_progress(row)),
        labels=hooks.labels,
    )


def _fit_beside(trainer: Any) -> Any:
    """What `trainer.fit` returns; run in a thread, for in the main one it takes SIGINT for itself.

    Ray Train would then end the workers with nothing saved.
    """
    result: Future[Any] = Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as fault:  # to be raised where it is waited for
            result.set_exception(fault)

    threading.Thread(target=fit, daemon=True).start()
    return result.result()


class _ProgressThread:
    """Reports the workers' progress while `fit` blocks, and tells them to stop."""

    def __init__(self, monitor: Any, report: Report, stop: threading.Event | None) -> None:
        self.monitor, self.report, self.stop = monitor, report, stop
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
            over = self.over.wait(SHOW_EVERY_S)
            stop = self.stop is not None and self.stop.is_set()
            try:
                rows = ray.get(self.monitor.take.remote(stop))
            except ray.exceptions.RayError as gone:
                log.warning("progress is no longer shown: %s", gone)
                return
            for row in rows:
                self.report(_progress(row))
            if over:
                return


def _work(train: Train, job: InFolder, monitor: Any, labels: Mapping[str, str]) -> Exception | None:
    """What every Ray Train worker runs; returns what went wrong if it would again.

    What is raised here Ray tries again, from the last checkpoint.
    """
    import ray.train

    driver = Driver(
        on_checkpoint=_report_checkpoint,
        control=_Controls(monitor).ask,
        on_metrics=lambda row: monitor.add.remote(row),
        labels=labels,
    )
    alone = ray.train.get_context().get_world_size() == 1
    return run_in_process(train, job, driver, alone)


def run_in_process(
    train: Train, job: InFolder, driver: Driver, alone: bool = True
) -> Exception | None:
    """Train in this process, on its GPU if it has one; returns what would go wrong again."""
    try:
        train(job, driver, cpu=not _has_gpu())
    except Diverged as fault:  # on all workers
        return fault
    except (MemoryError, RuntimeError) as fault:
        if not alone or not _too_large(fault):
            raise
        return MemoryError(f"does not fit into memory: {fault}")
    return None


def _has_gpu() -> bool:
    """Whether this process has a GPU: one that Ray gave it, if it is Ray's."""
    import torch

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return bool(ray.get_gpu_ids())
    return torch.cuda.is_available()


def _too_large(fault: Exception) -> bool:
    import torch

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(fault, kinds) or "can't allocate memory" in str(fault)  # of the CPU's


def _report_checkpoint(figures: Figures, folder: UPath | None) -> None:
    """Tell Ray Train, and whoever schedules its runs, of a checkpoint; a barrier.

    The checkpoint is not handed over: Ray's own come back as the latest or not at all, where ours
    go back past a damaged one.
    """
    from ray import train

    train.report(figures | {"checkpoint_path": str(folder)})


ASK_EVERY_S = 0.5
ASK_EVERY_CALLS = 5


class _Controls:
    """What Ray and the driver ask, the same on every worker.

    Asking takes messages between processes. A worker alone asks every `ASK_EVERY_S` seconds;
    several, which have to ask at the same step, every `ASK_EVERY_CALLS` calls.
    """

    def __init__(self, monitor: Any) -> None:
        import ray.train

        self.monitor = monitor
        self.answer: Any = None
        self.stopping = False
        self.seen: set[str] = set()
        self.leads = ray.train.get_context().get_world_rank() == 0
        self.alone = ray.train.get_context().get_world_size() == 1
        self.calls, self.asked_at = 0, time.monotonic()

    def ask(self) -> Control:
        import ray.train
        from ray.train.collective import broadcast_from_rank_zero

        self.calls += 1
        if self.alone:
            if time.monotonic() - self.asked_at < ASK_EVERY_S:
                return Control.CONTINUE
            self.asked_at = time.monotonic()
        elif self.calls % ASK_EVERY_CALLS:
            return Control.CONTINUE
        if self.leads:
            self._ask_monitor()
        stopping = self.stopping
        if not self.alone:
            stopping = broadcast_from_rank_zero(stopping)
        if stopping:
            return Control.STOP
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        if nodes - self.seen:
            self.seen |= nodes
            return Control.SAVE  # once: the node goes on until it is taken
        return Control.CONTINUE

    def _ask_monitor(self) -> None:
        """Ask the driver's monitor without waiting for it."""
        import ray

        if self.answer is None:
            self.answer = self.monitor.should_stop.remote()
        elif ray.wait([self.answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # its driver is gone
                self.stopping = ray.get(self.answer)
            self.answer = None
