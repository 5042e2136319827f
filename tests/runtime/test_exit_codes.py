"""What an exception that ends a job says about running it again."""

import errno

import pytest
import ray.exceptions
import ray.train

from mla_ray.runtime.exit_codes import Exit, Usage, exit_code
from mla_ray.runtime.progress import Stopped


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


def test_stopped_without_a_signal_is_to_be_run_again() -> None:
    assert exit_code(Stopped("enough for today")) is Exit.AGAIN
