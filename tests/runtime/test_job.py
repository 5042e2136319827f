"""A toy job, run as jobs are run: as a process of its own, under `python -m`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from mla_ray.runtime.exit_codes import Exit
from tests.support import ROOT

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) job=(local-[0-9a-f]{8}) ([\w.]+) (.*)"
)

TOY = """
import errno, logging, os, sys, time, warnings
from pathlib import Path
from mla_ray.runtime.job import Job, run
from mla_ray.runtime.job_settings import JobSettings
from mla_ray.runtime.progress import Stopped
from mla_ray.training.config import Stage
from mla_ray.runtime.progress import Progress

class Settings(JobSettings):
    "A toy job."
    do: str = "well"
    '''What to do.'''
    nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)

def main(settings, job):
    logging.getLogger(__name__).info("two\\nlines")
    logging.getLogger("httpx").info("not heard")
    warnings.warn("a warning")
    job.report(Progress("training", 1, 2, "loss 0.5"))
    match settings.do:
        case "input":
            raise KeyError("no such column")
        case "several":
            faults = [KeyError("no such column"), OSError(errno.ENOSPC, "No space")]
            faults[0].add_note("language sw")
            raise ExceptionGroup("2 of 3 languages", faults)
        case "again":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "bug":
            raise TypeError("a bad type")
        case "stop":
            Path("ready").touch()
            assert job.stop.wait(60)
            Path("saved").touch()
            raise Stopped("saved at step 1")
        case "break":
            Path("ready").touch()
            assert job.stop.wait(60)
            raise ConnectionError("my own server ended, too")
        case "deaf":
            Path("ready").touch()
            time.sleep(60)
        case "join":
            import ray
            return {"address": ray.get_runtime_context().gcs_address, "id": job.id}
    return {"id": job.id, "steps": settings.nlt.steps, "path": Path("ä"), "nan": float("nan")}

if __name__ == "__main__":
    sys.exit(run(Settings, main, ray=os.environ.get("TOY_RAY") == "1"))
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def start(toy: Path, *argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "toy", *argv],
        cwd=toy,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[tuple[str, str, str]]]:
    """Its exit code, standard output, and level, logger and message of each line of its log."""
    out, err = process.communicate(timeout=120)
    # Ray's C++ core tells, past all logging, that its own log is off.
    own = [line for line in err.splitlines() if "logging.cc" not in line]
    lines = [LINE.fullmatch(line) for line in own]
    assert all(lines), err
    assert len({line[2] for line in lines if line}) <= 1
    return process.returncode, out, [(m[1], m[3], m[4]) for m in lines if m]


def eventually(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.1)
    raise TimeoutError


def until(path: Path) -> None:
    eventually(path.exists)


def test_the_result_is_json_and_every_log_line_has_the_job(toy: Path) -> None:
    code, out, lines = ended(start(toy, "--nlt.steps", "5"))
    assert code == Exit.DONE
    result = json.loads(out)
    assert re.fullmatch("local-[0-9a-f]{8}", result.pop("id"))
    assert result == {"steps": 5, "path": "ä", "nan": None}
    assert lines[0][:2] == ("INFO", "toy")
    assert json.loads(lines[0][2].removeprefix("settings "))["nlt"]["batch"] == 256
    assert ("INFO", "toy", "two") in lines
    assert ("INFO", "toy", "lines") in lines
    assert any("UserWarning: a warning" in message for _, _, message in lines)
    assert not any("not heard" in message for _, _, message in lines)
    assert lines[-2:] == [
        ("INFO", "toy", "training 1/2 50% loss 0.5"),
        ("INFO", "toy", "done"),
    ]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--do", "input"], Exit.INPUT, "no such column"),
        (["--nlt.stepz", "5"], Exit.USAGE, "unknown flag --nlt.stepz; did you mean --nlt.steps?"),
        (
            ["--do", "again"],
            Exit.AGAIN,
            "[Errno 28] No space left on device; running the job again goes on where it stopped",
        ),
        (["--do", "several"], Exit.INPUT, "[Errno 28] No space"),
        (["--do", "bug"], Exit.BUG, "TypeError: a bad type"),
    ],
)
def test_what_goes_wrong_is_told_by_exit_code(
    toy: Path, argv: list[str], code: Exit, said: str
) -> None:
    left, out, lines = ended(start(toy, *argv))
    assert (left, out) == (code, "")
    assert lines[-1] == ("ERROR", "toy", said)
    if "several" in argv:
        assert lines[-2][2] == "no such column, language sw"
    traceback = any("Traceback" in message for _, _, message in lines)
    assert traceback == (code is Exit.BUG)


def test_help_shows_every_key_with_docstring_and_default(toy: Path) -> None:
    code, out, lines = ended(start(toy, "--help"))
    assert (code, lines) == (0, [])
    assert "usage: python -m toy " in out
    assert re.search(r"--do str\s+What to do. \(default: well\)", out)
    assert re.search(r"--nlt.batch int\s+Rows of a step, over all workers. \(default: 256\)", out)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, Exit.TERMINATED), (signal.SIGINT, Exit.INTERRUPTED)],
)
def test_a_job_that_is_ended_saves_first(toy: Path, number: signal.Signals, code: Exit) -> None:
    process = start(toy, "--do", "stop")
    until(toy / "ready")
    process.send_signal(number)
    left, out, lines = ended(process)
    assert (left, out) == (code, "")
    assert (toy / "saved").exists()
    assert lines[-1] == ("WARNING", "toy", f"ended by {number.name}: saved at step 1")


def test_what_breaks_because_the_job_is_ended_is_no_fault(toy: Path) -> None:
    process = start(toy, "--do", "break")
    until(toy / "ready")
    process.terminate()
    assert ended(process)[0] == Exit.TERMINATED


def test_a_second_signal_ends_a_job_that_does_not_listen(toy: Path) -> None:
    process = start(toy, "--do", "deaf")
    until(toy / "ready")
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert ended(process)[0] == -signal.SIGTERM


@pytest.mark.slow
def test_the_job_that_makes_the_native_tells_of_its_keys() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "jobs.pretrain_native", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    for key in ("config", "out", "run", "data", "model", "steps", "checkpoint_every"):
        assert f"  --{key} " in made.stdout


@pytest.mark.slow
def test_a_job_with_ray_ends_as_one_without(toy: Path) -> None:
    """Ray's own handler of SIGTERM would exit with 15."""
    process = start(toy, "--do", "stop", TOY_RAY="1")
    until(toy / "ready")
    process.terminate()
    left, out, lines = ended(process)
    assert (left, out) == (Exit.TERMINATED, "")
    assert lines[-1] == ("WARNING", "toy", "ended by SIGTERM: saved at step 1")


@pytest.mark.slow
def test_a_submitted_job_has_its_submission_id_and_its_cluster(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    context = ray.init(
        address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=True
    )
    try:
        client = JobSubmissionClient(f"http://{context.dashboard_url}")

        def submitted(job: str, do: str) -> bool:
            try:
                client.submit_job(
                    entrypoint=f"{sys.executable} -m toy --do {do}",
                    submission_id=job,
                    runtime_env={
                        "working_dir": str(toy),
                        "env_vars": {"TOY_RAY": "1", "PYTHONPATH": str(ROOT)},
                    },
                )
            except RuntimeError as error:
                if "No available agent" not in str(error):  # yet, on a busy machine
                    raise
                return False
            return True

        def submit(job: str, do: str) -> None:
            eventually(lambda: submitted(job, do))

        def end(job: str) -> None:
            eventually(lambda: client.get_job_status(job).is_terminal())

        submit("toy-1", "join")
        submit("toy-2", "again")
        end("toy-1")
        end("toy-2")
        log = client.get_job_logs("toy-1")
        result = json.loads(log.splitlines()[-1])
        assert result == {"id": "toy-1", "address": context["gcs_address"]}, log
        assert " INFO job=toy-1 toy done\n" in log
        assert client.get_job_info("toy-1").driver_exit_code == Exit.DONE
        assert client.get_job_info("toy-2").driver_exit_code == Exit.AGAIN

        submit("toy-3", "stop")
        eventually(lambda: "training 1/2" in client.get_job_logs("toy-3"))
        client.stop_job("toy-3")
        end("toy-3")
        assert client.get_job_status("toy-3") == JobStatus.STOPPED
        assert "ended by SIGTERM: saved at step 1" in client.get_job_logs("toy-3")
    finally:
        ray.shutdown()
