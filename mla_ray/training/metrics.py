"""Metrics of a running training, logged by the process of rank 0.

Every row of figures goes to

    run/metrics.jsonl     one JSON object per line: stage, step, language and the figures
    run/tensorboard/      tags <stage>/<figure>
    Ray's metrics         mla_loss and others, at the Prometheus endpoint of the node; if Ray runs
    MLflow                if MLFLOW_TRACKING_URI is set
    `send`                callback to the process that started the training

A training that resumes from a checkpoint repeats some steps. Rows after the checkpoint are dropped,
so each step is logged once. Steps count from 1 in each stage. In TensorBoard and MLflow all stages
share one axis, so the count continues through them.

"""

import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from mla_ray.runtime.storage import (
    is_file,
    is_local,
    read_json,
    upload,
    write_bytes,
    write_json,
)

STAGES = ("nlt", "le")
PLACE = ("stage", "step", "language")
"""Keys of a line of metrics.jsonl that are not figures."""
PUT_EVERY = 10.0
"""Minimum seconds between two uploads of metrics.jsonl to a remote run folder."""
MLFLOW_EVERY = 2.0
"""Seconds between two batches of figures for MLflow."""
MLFLOW_GOODBYE = 10.0
"""Seconds that the end of a training waits for MLflow."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """Figures of one step.

    Attributes:
        stage: `nlt`, `le` or `finetune`.
        step: Step of the stage, from 1.
        steps: Number of steps of the stage.
        language: Language of the step's batch; empty if the figures are of all languages.
        figures: `loss`, `lr`, `gradient_norm`, `texts/s` and `eta_s`, or `AR` and `best_AR` of an
            evaluation.
        texts: Number of texts trained on since the last row with such a number.

    """

    stage: str
    step: int
    steps: int
    language: str
    figures: dict[str, float]
    texts: int = 0


class MetricsLogger:
    """Logger that writes every row of metrics to all destinations.

    Args:
        run: Run folder.
        labels: Labels of the training, such as `run` (its name), `native` and `job`.
        send: Called with each row as a dict of stage, step, steps, language and the figures.
        resume_at: Stage and step of the checkpoint from which the training resumes. With None it
            starts from the beginning, and all earlier rows are dropped.
        params: Settings for MLflow, nested to any depth.
        stages: Names of the stages, in order.

    Raises:
        ModuleNotFoundError: `MLFLOW_TRACKING_URI` is set, but MLflow is not installed.

    """

    def __init__(
        self,
        run: UPath,
        labels: Mapping[str, str],
        send: Callable[[dict[str, Any]], None] | None = None,
        *,
        resume_at: tuple[str, int] | None = None,
        params: Mapping[str, Any] | None = None,
        stages: Sequence[str] = STAGES,
    ) -> None:
        name = labels.get("run", run.name)
        mlflow = None
        if os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow = _MLflow(run / "mlflow.json", {**labels, "run": name}, params or {})
        resume_at = resume_at or (stages[0], 0)
        self._send = send
        self._global_step = _GlobalStep(stages)
        self._json_lines = _JsonLines(run / "metrics.jsonl", resume_at, stages)
        logged = [(self._global_step(r["stage"], r["step"]), r) for r in self._json_lines.kept]
        self._tensorboard = _TensorBoard(run / "tensorboard", self._global_step(*resume_at) + 1)
        self._ray = _RayMetrics(name) if _ray_runs() else None
        self._mlflow = mlflow
        if mlflow:  # send earlier rows again, in case the server was unreachable
            for number, row in logged:
                figures = {k: v for k, v in row.items() if k not in PLACE and v is not None}
                mlflow.add(row["stage"], number, figures)

    def log(self, row: Row) -> None:
        """Write a row to all destinations."""
        number = self._global_step(row.stage, row.step)
        self._json_lines.add(row)
        self._tensorboard.add(row, number)
        if self._ray:
            self._ray.add(row)
        if self._mlflow:
            self._mlflow.add(row.stage, number, row.figures)
        if self._send:
            place = {"stage": row.stage, "step": row.step, "steps": row.steps}
            self._send({**place, "language": row.language, **row.figures})

    def flush(self) -> None:
        """Write all rows to storage, before every checkpoint.

        A training that resumes from the checkpoint then finds all rows up to it.
        """
        self._json_lines.put()
        self._tensorboard.put()

    def close(self, finished: bool = True) -> None:
        """Flush and close all destinations.

        Args:
            finished: Whether the training completed. It sets the status of the MLflow run.

        """
        self._json_lines.close()
        self._tensorboard.close()
        if self._mlflow:
            self._mlflow.close(finished)


class _GlobalStep:
    """Step number over all stages. A stage counts with its logged steps, as it may stop early."""

    def __init__(self, stages: Sequence[str]) -> None:
        self.last = dict.fromkeys(stages, 0)

    def __call__(self, stage: str, step: int) -> int:
        self.last[stage] = max(self.last[stage], step)
        earlier = list(self.last)[: list(self.last).index(stage)]
        return sum(self.last[each] for each in earlier) + step


class _WarnOnce:
    """Warning that is logged only the first time."""

    def __init__(self, message: str) -> None:
        self.message, self.given = message, False

    def __call__(self, cause: object) -> None:
        if not self.given:
            log.warning(self.message, cause)
        self.given = True


def _away(path: UPath) -> _WarnOnce:
    """Return the warning for a failed upload of metrics, which does not end the training."""
    return _WarnOnce(f"{path} could not be written; the training continues: %s")


class _JsonLines:
    """Writer of metrics.jsonl. Object stores cannot append, so they get a whole local copy."""

    def __init__(self, path: UPath, resume_at: tuple[str, int], stages: Sequence[str]) -> None:
        # The last part is empty, or a line that was not written completely.
        lines = path.read_bytes().split(b"\n")[:-1] if is_file(path) else []
        rows = [json.loads(line) for line in lines]
        order = {stage: number for number, stage in enumerate(stages)}
        end = order[resume_at[0]], resume_at[1]
        self.kept = [row for row in rows if (order[row["stage"]], row["step"]) <= end]
        content = "".join(json.dumps(row) + "\n" for row in self.kept).encode()
        write_bytes(path, content)
        self.warn = _away(path)
        self.remote: UPath | None = None
        if is_local(path):
            self.local = Path(path.path)
        else:
            self.remote = path
            self.scratch = tempfile.TemporaryDirectory(prefix="mla-metrics-")
            self.local = Path(self.scratch.name) / path.name
            self.local.write_bytes(content)
        self.file = self.local.open("a", encoding="utf-8")
        self.put_at = time.monotonic()

    def add(self, row: Row) -> None:
        # A loss can be NaN, which JSON does not have.
        figures = {k: v if math.isfinite(v) else None for k, v in row.figures.items()}
        line = {"stage": row.stage, "step": row.step, "language": row.language, **figures}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if time.monotonic() - self.put_at >= PUT_EVERY:
            self.put()

    def put(self) -> None:
        if self.remote is None:
            return
        try:
            write_bytes(self.remote, self.local.read_bytes())
        except Exception as error:
            self.warn(error)
        self.put_at = time.monotonic()

    def close(self) -> None:
        self.put()
        self.file.close()
        if self.remote is not None:
            self.scratch.cleanup()


class _TensorBoard:
    """Writer of TensorBoard events. Existing events from step `start` on are hidden."""

    def __init__(self, folder: UPath, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.warn = _away(folder)
        self.remote: UPath | None = None
        if is_local(folder):
            self.local = Path(folder.path)
        else:
            self.remote = folder
            self.scratch = tempfile.TemporaryDirectory(prefix="mla-tensorboard-")
            self.local = Path(self.scratch.name)
        # `purge_step` applies to all tags, so the step must increase over all stages.
        self.writer = SummaryWriter(str(self.local), purge_step=start)

    def add(self, row: Row, number: int) -> None:
        for figure, value in row.figures.items():
            self.writer.add_scalar(f"{row.stage}/{figure}", value, number)

    def put(self) -> None:
        self.writer.flush()
        if self.remote is None:
            return
        try:
            upload(self.local, self.remote)
        except Exception as error:
            self.warn(error)

    def close(self) -> None:
        self.put()
        self.writer.close()
        if self.remote is not None:
            self.scratch.cleanup()


def _ray_runs() -> bool:
    """Return whether Ray runs in this process, without importing Ray, which takes a second."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


GAUGES = {
    "loss": ("mla_loss", "Loss of the last batch."),
    "AR": ("mla_ar", "Average recall on held-out data, in percent."),
    "texts/s": ("mla_texts_per_second", "Training texts per second, over all workers."),
    "eta_s": ("mla_eta_seconds", "Estimated seconds to the end of the stage."),
}


class _RayMetrics:
    """Gauges and a counter. Ray exports them per process as `ray_mla_…`, some seconds later."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        keys, run_tag = ("stage", "language", "run"), {"run": run}

        def gauge(name: str, description: str) -> Any:
            return Gauge(name, description, keys).set_default_tags(run_tag)

        self.gauges = {figure: gauge(*about) for figure, about in GAUGES.items()}
        self.step = gauge("mla_step", "Step of the stage.")
        self.texts = Counter("mla_texts_total", "Training texts.", keys).set_default_tags(run_tag)

    def add(self, row: Row) -> None:
        tags = {"stage": row.stage, "language": row.language}
        for figure in self.gauges.keys() & row.figures.keys():
            self.gauges[figure].set(row.figures[figure], tags)
        self.step.set(row.step, tags)
        if row.texts:
            self.texts.inc(row.texts, tags)


class _MLflow:
    """Writer of one MLflow run per training. `record` keeps the run's id for later resumes.

    A thread talks to the server, because the server may be slow or unreachable. The training waits
    for it only at the end, for at most `MLFLOW_GOODBYE` seconds. What the server missed is sent
    later.
    """

    def __init__(self, record: UPath, labels: Mapping[str, str], params: Mapping[str, Any]) -> None:
        try:
            import mlflow  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"MLFLOW_TRACKING_URI is set, but there is no module {error.name!r}: "
                "pip install mlflow-skinny, or unset it",
                name=error.name,
            ) from error
        self.record, self.labels = record, dict(labels)
        self.params = {key: str(value)[:6000] for key, value in _flat(params)}  # MLflow's limit
        self.pending: deque[tuple[str, float, int, int]] = deque()
        self.run_id: str | None = None
        self.had: dict[str, int] = {}
        self.finished = False
        self.warn = _WarnOnce("figures cannot be sent to MLflow; the training continues: %s")
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self.thread.start()

    def add(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for figure, value in figures.items():
            self.pending.append((f"{stage}/{figure}", value, now, number))

    def close(self, finished: bool) -> None:
        self.finished = finished
        self.ending.set()
        self.thread.join(MLFLOW_GOODBYE)
        if self.thread.is_alive():
            self.warn(f"no answer in {MLFLOW_GOODBYE:.0f} seconds")

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self.ending.wait(MLFLOW_EVERY)
            try:
                self._send_pending(ended)
            except Exception as error:  # from the server, the network or the record file
                self.warn(error)

    def _send_pending(self, ended: bool) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient()
        if self.run_id is None:
            self.run_id = self._open(client)
        while self.pending:
            count = min(len(self.pending), 1000)  # MLflow's limit
            batch = [self.pending[index] for index in range(count)]
            new = [Metric(*each) for each in batch if each[3] > self.had.get(each[0], 0)]
            client.log_batch(self.run_id, metrics=new)
            for _ in range(count):  # only after the server has them
                self.pending.popleft()
        if ended:
            client.set_terminated(self.run_id, "FINISHED" if self.finished else "KILLED")

    def _open(self, client: Any) -> str:
        """Open or create the run, note which steps the server already has, and return its id."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        run = None
        if is_file(self.record):
            known = read_json(self.record)["run_id"]
            try:
                run = client.get_run(known)
                client.update_run(known, "RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if run is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mla-ray")
            experiment = client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else client.create_experiment(name)
            run = client.create_run(place, tags=self.labels, run_name=self.labels["run"])
            write_json(self.record, {"experiment": name, "run_id": run.info.run_id})
        run_id: str = run.info.run_id
        params = [Param(k, v) for k, v in self.params.items() if k not in run.data.params]
        for start in range(0, len(params), 100):  # MLflow's limit
            client.log_batch(run_id, params=params[start : start + 100])
        for figure in run.data.metrics:
            history = client.get_metric_history(run_id, figure)
            self.had[figure] = max(metric.step for metric in history)
        return run_id


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested settings: `{"nlt": {"steps": 1}}` becomes `nlt.steps`: 1."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
