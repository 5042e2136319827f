"""A toy job, run as jobs are run: as a process of its own, under `python -m`."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import ray.train
from pydantic import BaseModel, ConfigDict, Field

from mla_ray.runtime.job import Exit, JobSettings, Usage, exit_code, load, logged
from mla_ray.runtime.progress import Progress, Stopped
from mla_ray.training.config import AcquireConfig, Stage
from tests.support import ROOT

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) job=(local-[0-9a-f]{8}) ([\w.]+) (.*)"
)


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str
    weight: float = 1.0


class Toy(JobSettings):
    """A toy job."""

    out: Path
    """Where the toy goes."""
    nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)
    train: AcquireConfig = AcquireConfig()
    pairs: list[str] = Field(["default.tsv"])
    """Tables."""
    sources: tuple[Source, ...] = ()
    labels: dict[str, int] = Field({"x": 1})
    model: dict[str, Any] = Field({})
    resume: bool = False
    """Go on with 100 % of it."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(
        "out: from-file\n"
        "nlt: {steps: 9, lr: 1e-5}\n"
        "train: {nlt: {steps: 3}, seed: 4}\n"
        "pairs: [a.tsv, b.tsv]\n"
        "sources: [{path: s3://b/c}]\n"
        "model: {text: {width: 1, heads: 2}}\n"
    )
    return path


def usage(*argv: str) -> str:
    with pytest.raises(Usage) as fault:
        load(Toy, argv)
    return str(fault.value)


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(file: Path) -> None:
    toy = load(Toy, ["--config", str(file), "--nlt.steps", "8", "--train.nlt.batch=16"])
    assert toy.out == Path("from-file")
    assert toy.nlt == Stage(steps=8, batch=256, lr=1e-5)
    assert toy.train == AcquireConfig(nlt=Stage(steps=3, batch=16, lr=1e-3), seed=4)
    assert toy.sources == (Source(path="s3://b/c"),)
    assert toy.labels == {"x": 1}


def test_part_of_a_nested_default_can_be_set_by_a_flag_alone() -> None:
    toy = load(Toy, ["--out", "x", "--nlt.steps", "5", "--train.le.lr", "1"])
    assert toy.nlt == Stage(steps=5, batch=256, lr=1e-3)
    assert toy.train == AcquireConfig(le=Stage(steps=20, batch=256, lr=1))


def test_the_file_may_be_absent_or_a_url(file: Path) -> None:
    assert load(Toy, ["--out", "x"]).pairs == ["default.tsv"]
    assert load(Toy, ["--config", file.as_uri()]).out == Path("from-file")


@pytest.mark.parametrize(
    ("argv", "pairs"),
    [
        (["--pairs", "a", "--pairs", "b"], ["a", "b"]),
        (["--pairs", "a,b"], ["a", "b"]),
        (["--pairs", '["a,b", "c"]'], ["a,b", "c"]),
        (["--pairs=s3://bucket/a b.tsv"], ["s3://bucket/a b.tsv"]),
        (["--pairs", "[]"], []),
    ],
)
def test_a_list_is_a_flag_again_and_again_or_commas_or_json(
    file: Path, argv: list[str], pairs: list[str]
) -> None:
    assert load(Toy, ["--config", str(file), *argv]).pairs == pairs


def test_a_dict_is_pairs_or_json_and_joins_the_file_s(file: Path) -> None:
    toy = load(Toy, ["--config", str(file), "--labels", "a=1", "--labels", "b=2"])
    assert toy.labels == {"a": 1, "b": 2}
    toy = load(Toy, ["--config", str(file), "--model", '{"text": {"width": 3}}'])
    assert toy.model == {"text": {"width": 3, "heads": 2}}


def test_other_values_of_flags() -> None:
    toy = load(Toy, ["--out", "x", "--resume", "--train.temperature", "native"])
    assert toy.resume
    assert toy.train.temperature == "native"
    assert load(Toy, ["--out", "x", "--train.hidden", "8"]).train.hidden == 8
    assert load(Toy, ["--out", "x", "--train.hidden", "null"]).train.hidden is None
    toy = load(Toy, ["--out", "x", "--sources", '{"path": "p"}', "--sources", '{"path": "q"}'])
    assert toy.sources == (Source(path="p"), Source(path="q"))


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESUME", "1")
    monkeypatch.setenv("OUT", "from-environment")
    assert not load(Toy, ["--out", "x"]).resume
    assert not Toy(out=Path("x")).resume
    assert usage() == "--out: missing; give the flag, or the key in the file of --config"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(Toy, ["--out", "x"]).resume = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nlt: {stepz: 3}", "FILE: nlt.stepz: unknown key; did you mean nlt.steps?"),
        ("quux: 3", "FILE: quux: unknown key"),
        ("OUT: x", "FILE: OUT: unknown key"),
        ("_cli_parse_args: true", "FILE: _cli_parse_args: unknown key"),
        (
            "nlt: {steps: many}",
            "FILE: nlt.steps: Input should be a valid integer, unable to parse string as an "
            "integer, found 'many'",
        ),
        ("- a", "--config FILE: not a mapping of keys to values"),
        ("1: a", "--config FILE: not a mapping of keys to values"),
        ("a: [", "--config FILE: while parsing a flow node"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert usage("--out", "x", "--config", str(path)).startswith(said.replace("FILE", str(path)))


def test_the_fault_is_laid_to_what_set_the_value(file: Path) -> None:
    assert usage("--config", str(file), "--nlt.steps", "x").startswith("--nlt.steps: Input")
    file.write_text("nlt: {steps: x}")
    said = usage("--config", str(file), "--nlt.lr", "x", "--out", "x").splitlines()
    assert [line.split(": Input")[0] for line in said] == [f"{file}: nlt.steps", "--nlt.lr"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--nlt.stepz", "3"], "unknown flag --nlt.stepz; did you mean --nlt.steps?"),
        (["--ou=3"], "unknown flag --ou; did you mean --out?"),
        (["--quux"], "unknown flag --quux"),
        (["quux"], "unexpected argument 'quux'"),
        (["--nlt", '{"stepz": 3}'], "--nlt.stepz: unknown key; did you mean --nlt.steps?"),
        (["--train.temperature", "warm"], "--train.temperature: Input should be a valid number"),
        (["--pairs", '["a"'], "Parsing error encountered for pairs: "),
        (["--config", "no.yaml"], "--config no.yaml: [Errno 2] No such file or directory: "),
        (["--config", "nope://no.yaml"], "--config nope://no.yaml: Protocol not known: nope"),
    ],
)
def test_a_bad_flag_is_refused_with_its_name(argv: list[str], said: str) -> None:
    assert usage("--out", "x", *argv).startswith(said)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (ValueError("x"), Exit.INPUT),
        (KeyError("x"), Exit.INPUT),
        (FileNotFoundError("x"), Exit.INPUT),
        (FileExistsError("x"), Exit.INPUT),
        (PermissionError(errno.EACCES, "x"), Exit.INPUT),
        (Usage("x"), Exit.USAGE),
        (ConnectionRefusedError("x"), Exit.AGAIN),
        (TimeoutError("x"), Exit.AGAIN),
        (OSError(errno.EROFS, "x"), Exit.AGAIN),
        (OSError(errno.ENOSPC, "x"), Exit.AGAIN),
        (OSError(errno.EIO, "x"), Exit.AGAIN),
        (ray.exceptions.RaySystemError("x"), Exit.AGAIN),
        (ray.exceptions.GetTimeoutError("x"), Exit.AGAIN),
        (ray.exceptions.RayTaskError("f", "x", ValueError("x")).as_instanceof_cause(), Exit.INPUT),
        (ray.exceptions.RayTaskError("f", "x", TypeError("x")).as_instanceof_cause(), Exit.BUG),
        (ray.exceptions.RayTaskError("f", "x", ray.exceptions.NodeDiedError("x")), Exit.AGAIN),
        (ray.train.WorkerGroupError("x", {0: RuntimeError("x")}), Exit.AGAIN),
        (ray.train.ControllerError(ValueError("x")), Exit.AGAIN),
        (ExceptionGroup("x", [ValueError("x"), TimeoutError("x")]), Exit.INPUT),
        (ExceptionGroup("x", [OSError(errno.EIO, "x"), TimeoutError("x")]), Exit.AGAIN),
        (ExceptionGroup("x", [TypeError("x"), TimeoutError("x")]), Exit.BUG),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (TypeError("x"), Exit.BUG),
        (RuntimeError("x"), Exit.BUG),
    ],
)
def test_an_exit_code_says_whether_running_again_helps(fault: BaseException, code: Exit) -> None:
    assert exit_code(fault) is code


def test_an_s3_that_is_away_is_a_fault_that_passes() -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    away = botocore.EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
    assert exit_code(away) is Exit.AGAIN
    slow = botocore.ReadTimeoutError(endpoint_url="http://127.0.0.1:1")
    assert exit_code(slow) is Exit.AGAIN


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_progress_is_logged_at_its_ends_and_every_so_often() -> None:
    log, handler, now = logging.Logger("toy"), Lines(), 0.0
    log.addHandler(handler)
    report = logged(10.0, log, lambda: now)
    for done in range(101):  # a second each
        now = float(done)
        report(Progress("training", done, 100, f"loss {done}"))
        if done == 100:
            report(Progress("training", done, 100))  # once more, of nothing new
    report(Progress("images", 3, 7))
    report(Progress("nothing", 0, 0))
    report(Progress("rows", 5, None))
    assert handler.lines == [
        "training 0/100 0% loss 0",
        *(
            f"training {done}/100 {done}% ETA 0:{(100 - done) // 60:02}:{(100 - done) % 60:02} "
            f"loss {done}"
            for done in range(10, 100, 10)
        ),
        "training 100/100 100% loss 100",
        "images 3/7 42%",
        "nothing 0/0 100%",
        "rows 5",
    ]


# The toy as a process

TOY = """
import errno, logging, os, sys, time, warnings
from pathlib import Path
from mla_ray.runtime.job import Job, JobSettings, run
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
    assert re.search(r"--nlt.batch int\s+\(default: 256\)", out)


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


def test_stopped_without_a_signal_is_to_be_run_again() -> None:
    assert exit_code(Stopped("enough for today")) is Exit.AGAIN


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


def test_the_native_s_settings_are_valid() -> None:
    from mla_ray.cli.job.pretrain_native import Settings

    config = str(ROOT / "jobs/configs/emoji-clip.yaml")
    settings = load(Settings, ["--config", config, "--out", "x", "--steps", "7"])
    assert (settings.steps, settings.batch, settings.lr) == (7, 512, 1e-3)
    assert settings.model["text_cfg"]["width"] == 192


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
