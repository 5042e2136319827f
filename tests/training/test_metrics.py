"""What a training tells outside is told once, in order, and never costs the training."""

import json
import logging
import math
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from upath import UPath

from mla_ray.runtime.storage import as_path
from mla_ray.training import metrics
from mla_ray.training.metrics import MetricsLogger, Row
from tests.support.logs import logged

LABELS = {"run": "german", "native": "tiny-clip"}


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """A run folder, here and behind a URL."""
    return as_path(
        str(tmp_path / "run") if request.param == "local" else f"memory://{uuid4().hex}/run"
    )


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    with logged(metrics.log.name, logging.NOTSET) as messages:
        yield messages


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of MLflow in a folder: without a server, mlflow-skinny has no other store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient()


def row(stage: str, step: int, loss: float = 0.5, **more: float) -> Row:
    return Row(stage, step, {"nlt": 40, "le": 20}[stage], "de", {"loss": loss, **more}, texts=8)


def told(run: UPath) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def places(run: UPath) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in told(run)]


def next_second() -> None:
    """TensorBoard reads event files in the order of the second they were begun in."""
    time.sleep(1 - time.time() % 1 + 0.01)


def board(run: UPath, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each tag, as TensorBoard shows them."""
    folder.mkdir()
    for file in (run / "tensorboard").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, round(event.value, 3)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def history(client: Any, run: UPath, figure: str) -> list[tuple[int, float]]:
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, figure))


# --- files -------------------------------------------------------------------------------------


def test_a_row_is_a_line_and_its_figures_are_scalars(run: UPath, tmp_path: Path) -> None:
    logger = MetricsLogger(run, LABELS)
    logger.log(row("nlt", 10, 0.25, lr=1e-3))
    logger.log(Row("nlt", 10, 40, "", {"AR": 31.5}))
    logger.close()
    assert told(run) == [
        {"stage": "nlt", "step": 10, "language": "de", "loss": 0.25, "lr": 1e-3},
        {"stage": "nlt", "step": 10, "language": "", "AR": 31.5},
    ]
    assert board(run, tmp_path / "board") == {
        "nlt/loss": [(10, 0.25)],
        "nlt/lr": [(10, 0.001)],
        "nlt/AR": [(10, 31.5)],
    }


def test_a_local_row_is_there_at_once(tmp_path: Path) -> None:
    run = as_path(str(tmp_path / "run"))
    logger = MetricsLogger(run, LABELS)
    logger.log(row("nlt", 10))
    assert places(run) == [("nlt", 10)]
    logger.close()


def test_a_remote_row_is_there_after_a_flush_or_some_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = as_path(f"memory://{uuid4().hex}/run")
    logger = MetricsLogger(run, LABELS)
    logger.log(row("nlt", 10))
    assert places(run) == []
    logger.flush()
    assert places(run) == [("nlt", 10)]
    assert board(run, tmp_path / "board")["nlt/loss"] == [(10, 0.5)]
    monkeypatch.setattr(metrics, "PUT_EVERY", 0.0)
    logger.log(row("nlt", 20))
    assert places(run) == [("nlt", 10), ("nlt", 20)]
    logger.close()


def test_a_resumed_training_tells_each_step_once(run: UPath, tmp_path: Path) -> None:
    first = MetricsLogger(run, LABELS)
    for stage, step in [("nlt", 10), ("nlt", 20), ("nlt", 30), ("nlt", 40), ("le", 10), ("le", 20)]:
        first.log(row(stage, step, 1.0))
    first.close()
    next_second()
    second = MetricsLogger(run, LABELS, resume_at=("le", 10))
    assert places(run)[-1] == ("le", 10)
    second.log(row("le", 20, 2.0))
    second.close()
    assert places(run) == [("nlt", s) for s in (10, 20, 30, 40)] + [("le", 10), ("le", 20)]
    assert [r["loss"] for r in told(run)] == [1, 1, 1, 1, 1, 2]
    assert board(run, tmp_path / "late") == {
        "nlt/loss": [(10, 1), (20, 1), (30, 1), (40, 1)],
        "le/loss": [(50, 1), (60, 2)],
    }

    next_second()
    third = MetricsLogger(run, LABELS, resume_at=("nlt", 20))
    third.log(row("nlt", 30, 3.0))
    third.close()
    assert places(run) == [("nlt", 10), ("nlt", 20), ("nlt", 30)]
    assert board(run, tmp_path / "early")["nlt/loss"] == [(10, 1), (20, 1), (30, 3)]


def test_a_training_that_died_before_its_first_checkpoint_begins_anew(
    run: UPath, tmp_path: Path
) -> None:
    for loss in (1.0, 2.0):
        logger = MetricsLogger(run, LABELS)
        logger.log(row("nlt", 10, loss))
        logger.close()
        next_second()
    assert [r["loss"] for r in told(run)] == [2.0]
    assert board(run, tmp_path / "board")["nlt/loss"] == [(10, 2)]


def test_a_line_torn_by_a_kill_is_dropped(run: UPath) -> None:
    logger = MetricsLogger(run, LABELS)
    logger.log(row("nlt", 10))
    logger.close()
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole + b'{"stage": "nlt", "st')
    logger = MetricsLogger(run, LABELS, resume_at=("nlt", 20))
    logger.log(row("nlt", 30))
    logger.close()
    assert places(run) == [("nlt", 10), ("nlt", 30)]


def test_a_loss_that_is_no_number_is_still_json(run: UPath) -> None:
    logger = MetricsLogger(run, LABELS)
    logger.log(row("nlt", 10, math.nan))
    logger.close()
    assert told(run)[0]["loss"] is None


def test_storage_that_is_away_costs_a_warning_and_no_rows(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    def away(*_: object) -> None:
        raise ConnectionError("no route")

    run = as_path(f"memory://{uuid4().hex}/run")
    logger = MetricsLogger(run, LABELS)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "write_bytes", away)
        for step in (10, 20):
            logger.log(row("nlt", step))
            logger.flush()
    assert len(warnings) == 1
    assert "no route" in warnings[0]
    logger.close()
    assert places(run) == [("nlt", 10), ("nlt", 20)]


def test_whoever_started_it_is_sent_every_row(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []
    logger = MetricsLogger(as_path(str(tmp_path)), LABELS, sent.append)
    logger.log(row("le", 10, 0.25))
    logger.close()
    assert sent == [{"stage": "le", "step": 10, "steps": 20, "language": "de", "loss": 0.25}]


# --- MLflow ------------------------------------------------------------------------------------


def test_mlflow_holds_one_run_however_often_it_is_resumed(run: UPath, mlflow_store: Any) -> None:
    params = {"native": "tiny-clip", "nlt": {"steps": 40, "lr": 1e-3}}
    first = MetricsLogger(run, LABELS, params=params)
    for step in (10, 20, 30, 40):
        first.log(row("nlt", step, 1.0))
    first.log(Row("nlt", 40, 40, "", {"AR": 31.5}))
    first.log(row("le", 10, 1.0))
    first.close(finished=False)
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    assert mlflow_store.get_run(run_id).info.status == "KILLED"
    second = MetricsLogger(run, LABELS, resume_at=("nlt", 40), params=params)
    second.log(row("le", 10, 1.0))
    second.log(row("le", 20, 2.0))
    second.close()

    experiment = mlflow_store.get_experiment_by_name("mla-ray")
    (only,) = mlflow_store.search_runs([experiment.experiment_id])
    assert only.info.run_id == run_id
    assert (only.info.status, only.info.run_name) == ("FINISHED", "german")
    assert only.data.params == {"native": "tiny-clip", "nlt.steps": "40", "nlt.lr": "0.001"}
    assert only.data.tags["native"] == "tiny-clip"
    assert history(mlflow_store, run, "nlt/loss") == [(10, 1), (20, 1), (30, 1), (40, 1)]
    assert history(mlflow_store, run, "nlt/AR") == [(40, 31.5)]
    assert history(mlflow_store, run, "le/loss") == [(50, 1), (60, 2)]


def test_the_experiment_is_named_in_the_environment(
    tmp_path: Path, mlflow_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hackathon")
    MetricsLogger(as_path(str(tmp_path / "run")), LABELS).close()
    experiment = mlflow_store.get_experiment_by_name("hackathon")
    assert len(mlflow_store.search_runs([experiment.experiment_id])) == 1


def test_a_run_that_was_deleted_from_mlflow_for_good_is_begun_anew(
    tmp_path: Path, mlflow_store: Any
) -> None:
    run = as_path(str(tmp_path / "run"))
    run.mkdir()
    (run / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32}))
    logger = MetricsLogger(run, LABELS)
    logger.log(row("nlt", 10))
    logger.close()
    assert history(mlflow_store, run, "nlt/loss") == [(10, 0.5)]


def test_a_server_that_refuses_costs_one_warning_and_is_told_later(
    tmp_path: Path, mlflow_store: Any, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    run = as_path(str(tmp_path / "run"))
    monkeypatch.setattr(metrics, "MLFLOW_EVERY", 0.01)
    with socket.socket() as free, monkeypatch.context() as patch:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        logger = MetricsLogger(run, LABELS)
        logger.log(row("nlt", 10))
        time.sleep(0.5)
        logger.log(row("nlt", 20))
        logger.close()
    assert len(warnings) == 1
    assert "MLflow" in warnings[0]
    assert places(run) == [("nlt", 10), ("nlt", 20)]

    MetricsLogger(run, LABELS, resume_at=("nlt", 20)).close()
    assert history(mlflow_store, run, "nlt/loss") == [(10, 0.5), (20, 0.5)]


def test_a_server_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, mlflow_store: Any, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(metrics, "MLFLOW_EVERY", 0.01)
    monkeypatch.setattr(metrics, "MLFLOW_GOODBYE", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = as_path(str(tmp_path / "run"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        logger = MetricsLogger(run, LABELS)
        connection, _ = silent.accept()
        began = time.monotonic()
        logger.log(row("nlt", 10))
        logger.flush()
        logger.close()
        assert time.monotonic() - began < 2
        connection.close()
    logger._mlflow.thread.join(5)  # type: ignore[union-attr]
    assert len(warnings) == 1
    assert places(run) == [("nlt", 10)]


def test_without_mlflow_the_error_says_what_to_install(
    tmp_path: Path, mlflow_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install mlflow-skinny"):
        MetricsLogger(as_path(str(tmp_path)), LABELS)


# --- Ray ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_endpoint_of_the_node_shows_what_a_worker_told(
    ray_cluster: None, tmp_path: Path
) -> None:
    # Under a name of its own: this process tells Ray of other tests, and for the same
    # tags Ray shows the processes of a node as one.
    import ray

    @ray.remote(num_cpus=0)
    class Trainer:
        def train(self, run: str, rows: list[Row]) -> None:
            self.logger = MetricsLogger(as_path(run), {**LABELS, "run": "endpoint"})
            for row in rows:
                self.logger.log(row)

    rows = [row("nlt", 10, 0.75), row("nlt", 20, 0.25, eta_s=7.0)]
    rows.append(Row("nlt", 20, 40, "", {"AR": 31.5}))
    trainer = Trainer.remote()
    ray.get(trainer.train.remote(str(tmp_path / "run"), rows))
    try:
        german = {"stage": "nlt", "language": "de", "run": "endpoint"}
        assert shown("ray_mla_loss", german) == 0.25
        assert shown("ray_mla_step", german) == 20
        assert shown("ray_mla_eta_seconds", german) == 7
        assert shown("ray_mla_texts_total", german) == 16
        assert shown("ray_mla_ar", german | {"language": ""}) == 31.5
    finally:
        ray.kill(trainer)


def shown(name: str, tags: dict[str, str]) -> float:
    """Ray reports every ten seconds."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and tags.items() <= sample.labels.items():
                    return float(sample.value)
        time.sleep(0.5)
    raise TimeoutError(f"{url} does not show {name} with {tags}")
