"""The pipeline under `ray job submit`: three languages, stopped on the way, submitted again."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from tests.cluster.nodes import wait_for
from tests.support import ROOT

pytestmark = pytest.mark.cluster
MLA = Path(sys.executable).parent / "mla"
LANGUAGES = ("de", "hi", "cs")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobSubmissionClient]:
    """Of a Ray with a job server, on loopback, that waits for a job to save."""
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "120")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    running = ray.is_initialized()
    if running:  # the session's own, which has no job server
        ray.shutdown()
    context = ray.init(
        address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=True
    )
    yield JobSubmissionClient(f"http://{context.dashboard_url}")
    ray.shutdown()


@pytest.fixture
def plan(
    corpus: dict[str, list[str]], pngs: list[bytes], native_folder: Path, tmp_path: Path
) -> Path:
    """A plan of three tiny languages, with everything under `tmp_path`."""
    texts = {"de": corpus["de"], "hi": corpus["hi"], "cs": [t.swapcase() for t in corpus["de"]]}
    for language in LANGUAGES:
        columns = {"source": corpus["en"], "target": texts[language]}
        pq.write_table(
            pa.table(columns | {"language": [language] * 6}), tmp_path / f"pairs-{language}.parquet"
        )
    rows = [
        {"image_id": str(n % 6), "image": pngs[n % 6], "language": language, "caption": text}
        | {"split": split}
        for language in LANGUAGES
        for split in ("train", "test")
        for n, text in enumerate(texts[language])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
    settings = {
        "languages": list(LANGUAGES),
        "native": str(native_folder),
        "pairs": [str(tmp_path / "pairs-{language}.parquet")],
        "captions": str(tmp_path / "captions.parquet"),
        "run": str(tmp_path / "runs"),
        "data": str(tmp_path / "data"),
        "worker_cpus": 1,
        "train": {
            "nlt": {"steps": 4000, "batch": 4, "lr": 1e-3},
            "le": {"steps": 10, "batch": 4, "lr": 1e-4},
            "vocab_size": 400,
            "checkpoint_every": 1000,
        },
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_three_languages_by_ray_job_submit_stopped_on_the_way_and_submitted_again(
    client: JobSubmissionClient, plan: Path, native_folder: Path
) -> None:
    def submit(job: str) -> None:
        def submitted() -> bool:
            try:
                client.submit_job(
                    entrypoint=f"{MLA} job pipeline --config {plan}",
                    submission_id=job,
                    runtime_env={"working_dir": str(ROOT), "excludes": ["docs/", "tests/"]},
                )
            except RuntimeError as error:
                if "No available agent" not in str(error):  # yet, on a busy machine
                    raise
                return False
            return True

        wait_for(f"{job} is taken", submitted)

    def code(job: str) -> int | None:
        wait_for(f"{job} ends", lambda: client.get_job_status(job).is_terminal(), 900)
        return client.get_job_info(job).driver_exit_code

    runs = plan.parent / "runs"
    submit("first")
    metrics = runs / "de" / "metrics.jsonl"
    wait_for("a step", lambda: metrics.exists() and metrics.read_text().count("\n") > 2, 400)
    client.stop_job("first")
    code("first")  # Ray keeps no exit code of a job that it stopped
    assert client.get_job_status("first") == JobStatus.STOPPED
    log = client.get_job_logs("first")
    assert "job=first mla_ray.pipeline de: acquire" in log
    assert "ended by SIGTERM" in log
    saved = max(int(path.name) for path in (runs / "de" / "checkpoints").iterdir())
    assert saved < 4000
    assert saved % 1000, "it was saved when it was asked, not when it was due"

    submit("second")
    assert code("second") == 0, client.get_job_logs("second")
    assert client.get_job_status("second") == JobStatus.SUCCEEDED
    log = client.get_job_logs("second")
    assert "jobs.pipeline de nlt" in log, "progress"
    result: dict[str, Any] = json.loads(log.strip().splitlines()[-1])
    assert list(result) == list(LANGUAGES)
    native = Native.load(str(native_folder))
    for language in LANGUAGES:
        pack = LanguagePack.load(runs / "packs" / language, native)
        assert pack.language == language
        assert result[language]["evaluate"]["pack"]["captions"] == 6
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    nlt = [row["step"] for row in steps if row["stage"] == "nlt"]
    assert nlt == list(range(10, 4001, 10)), "each step once, the first ones by the first job"
