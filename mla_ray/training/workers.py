"""Ray Train workers: their number and resources, and their communication with the driver.

`fit` runs a training on workers and reports its progress. The driver can stop it. Ray replaces a
lost worker, and the training resumes from its last checkpoint.
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
"""Seconds between two polls of the metrics by the driver."""


@dataclass(frozen=True)
class Workers:
    """Number and resources of Ray Train workers.

    Batches and learning rates do not depend on the number of workers.

    Attributes:
        count: Number of workers, or their minimum if `most` is set. With 0 the training runs in
            this process without Ray.
        most: Maximum number of workers for elastic training, which grows when the cluster has
            free resources. None disables it.
        cpus: CPU cores per worker. By default as many as each worker can have on the present nodes.
        gpus: GPUs per worker. By default 1 if the cluster has enough GPUs now, otherwise 0. Set it
            if the GPU nodes of an autoscaling cluster do not run yet.
        resources: Other Ray resources that each worker requires.

    """

    count: int = 1
    most: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Workers":
        """Parse a number of workers or a range.

        Args:
            text: `2`, `1:4` for at least one and at most four, or `0` for this process alone.

        Raises:
            ValueError: The text is neither, or the maximum is less than the minimum.

        """
        count, colon, most = text.partition(":")
        if not count.isdecimal() or (colon and not (most.isdecimal() and int(count))):
            raise ValueError(
                f"workers are a number such as 2, or a range such as 1:4, not {text!r}"
            )
        if colon and int(most) < int(count):
            raise ValueError(f"workers {text!r}: the maximum is less than the minimum")
        return cls(int(count), int(most) if colon else None)

    def check_batch(self, name: str, batch: int) -> None:
        """Check that a batch has at least one row for each worker.

        Args:
            name: Name of the setting, for the message.
            batch: Rows of a step, over all workers.

        Raises:
            ValueError: The batch is smaller than the maximum number of workers.

        """
        most = max(self.count, self.most or 0)
        if batch < most:
            raise ValueError(f"{name} is {batch}, too small for {most} workers")


@dataclass(frozen=True)
class Hooks:
    """Callbacks from a run to the process that started it.

    Attributes:
        report: Called with progress, for example to show progress bars.
        stop: Event that requests a stop. The run then saves a checkpoint and raises `Stopped`.
        labels: Labels of the metrics, in addition to the run's name.
        callbacks: Ray Train callbacks, which receive every checkpoint report of its workers.
        on_checkpoint: Called after each checkpoint if the training runs in this process.

    """

    report: Report = lambda progress: None
    stop: threading.Event | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    callbacks: Sequence[Any] = ()
    on_checkpoint: OnCheckpoint = lambda figures, folder: None

    def named(self, run: str) -> "Hooks":
        """Return a copy with the run's name as label `run`, unless there is one already."""
        return replace(self, labels={"run": run, **self.labels})


class InFolder(Protocol):
    """Job of the workers, with the folder of its run."""

    @property
    def run(self) -> str:
        """Run folder."""
        ...


Train = Callable[..., bool]
"""Called with an `InFolder`, a `Driver` and `cpu=`, whether to stay on the CPU. Returns False if
a stop request ended the training early."""


def fit(train: Train, job: InFolder, workers: Workers, hooks: Hooks) -> None:
    """Run `train` on Ray Train workers, or in this process if `workers.count` is 0.

    Args:
        train: Function that every worker runs.
        job: Job that all workers receive.
        workers: Number and resources of the workers.
        hooks: Callbacks to the caller.

    Raises:
        Diverged: The loss is not finite.
        MemoryError: The training does not fit into the memory of its only worker.

    """
    in_main = threading.current_thread() is threading.main_thread()
    if isinstance(hooks.stop, StopEvent) and in_main and not hooks.stop.is_set():
        hooks.stop.listen()  # from here on, a stop has something to save
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
    remove(as_path(job.run) / "train")  # Ray's state of an earlier try; our checkpoints replace it
    # The job is not a `train_loop_config`, because Ray Train's controller reads that. It would
    # import this package and open_clip for it, which takes many seconds.
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
    """Return the GPUs of each worker on a cluster with these resources."""
    if workers.gpus is not None:
        return workers.gpus
    return 1.0 if resources.get("GPU", 0) >= max(1, workers.count) else 0.0


def cpus_per_worker(workers: Workers, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return the most CPU cores that each worker can have on nodes with these resources.

    A worker must fit on a single node.
    """
    wanted = workers.resources.items()
    fit = [node for node in nodes if all(node.get(name, 0) >= n for name, n in wanted)]
    cores = [int(node.get("CPU", 0)) for node in fit]
    for each in range(max(cores, default=1), 1, -1):
        if sum(count // each for count in cores) >= workers.count:
            return each
    return 1


def _progress(row: Figures) -> Progress:
    """Convert a row of metrics to progress."""
    if "loss" in row:
        note = f"loss {row['loss']:.4f}, {row['texts/s']:,.0f} texts/s"
    else:
        note = f"held-out AR {row['AR']:.1f}, best {row['best_AR']:.1f}"
    return Progress(row["stage"], row["step"], row["steps"], note)


def _driver_here(hooks: Hooks) -> Driver:
    """Return the driver of a training in this process."""

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
    """Run `trainer.fit` in a thread and return its result.

    In the main thread, Ray Train handles SIGINT itself and ends the workers without a checkpoint.
    """
    result: Future[Any] = Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as fault:  # `result.result()` raises it in the caller's thread
            result.set_exception(fault)

    threading.Thread(target=fit, daemon=True).start()
    return result.result()


class _ProgressThread:
    """Thread that reports the workers' progress while `fit` blocks, and relays a stop request."""

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
    """Run a training on a Ray Train worker.

    Returns an error that a retry would repeat. If this function raises an error, Ray retries from
    the last checkpoint.
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
    """Train in this process, on its GPU if it has one.

    Args:
        train: Function to run.
        job: Job of the run.
        driver: Callbacks to the process that started the training.
        alone: Whether this is the only worker. Only then a lack of memory is returned, not raised.

    Returns:
        Error that a retry would repeat, or None.

    """
    try:
        train(job, driver, cpu=not _has_gpu())
    except Diverged as fault:  # all workers return it
        return fault
    except (MemoryError, RuntimeError) as fault:
        if not alone or not _too_large(fault):
            raise
        return MemoryError(f"does not fit into memory: {fault}")
    return None


def _has_gpu() -> bool:
    """Return whether this process has a GPU. In a process of Ray, only Ray's assignment counts."""
    import torch

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return bool(ray.get_gpu_ids())
    return torch.cuda.is_available()


def _too_large(fault: Exception) -> bool:
    import torch

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(fault, kinds) or "can't allocate memory" in str(fault)  # torch on the CPU


def _report_checkpoint(figures: Figures, folder: UPath | None) -> None:
    """Report a checkpoint to Ray Train and to the scheduler of its runs. The call is a barrier.

    The checkpoint itself is not passed to Ray. Ray restores its latest checkpoint or none, while
    `Checkpoints.load` skips a damaged one and loads the one before.
    """
    from ray import train

    train.report(figures | {"checkpoint_path": str(folder)})


ASK_EVERY_S = 0.5
"""Seconds between two polls of a single worker."""
ASK_EVERY_CALLS = 5
"""Calls of `_Controls.ask` between two polls of several workers."""


class _Controls:
    """Requests of Ray and the driver, the same on every worker.

    Polling needs messages between processes, so it is limited. A single worker polls every
    `ASK_EVERY_S` seconds. Several workers must poll at the same step, so they poll every
    `ASK_EVERY_CALLS` calls.
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
            return Control.SAVE  # only once per node, which runs until it is taken away
        return Control.CONTINUE

    def _ask_monitor(self) -> None:
        """Poll the driver's monitor without waiting for it."""
        import ray

        if self.answer is None:
            self.answer = self.monitor.should_stop.remote()
        elif ray.wait([self.answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # the driver is gone
                self.stopping = ray.get(self.answer)
            self.answer = None
