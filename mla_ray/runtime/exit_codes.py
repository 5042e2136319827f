"""Exit codes of jobs, and the mapping from exceptions to exit codes.

Imports neither Ray nor botocore. Their exceptions are recognized by name.
"""

import errno
import socket
from enum import IntEnum
from typing import Protocol, cast

from mla_ray.runtime.progress import Stopped


class Exit(IntEnum):
    """Exit code of a job."""

    DONE = 0
    INPUT = 1
    """The input is invalid. Running the job again fails again."""
    USAGE = 2
    """A flag or the settings file is invalid. The job did not start."""
    BUG = 70
    """EX_SOFTWARE: an error in the program. The traceback is logged."""
    AGAIN = 75
    """EX_TEMPFAIL: storage, network or nodes were unavailable. The job resumes if run again."""
    INTERRUPTED = 130
    """SIGINT ended the job. The job resumes if run again."""
    TERMINATED = 143
    """SIGTERM ended the job, for example by `ray job stop`. The job resumes if run again."""


class Usage(ValueError):
    """Invalid flags or an invalid settings file. The message has one line per fault."""


PASSING_ERRNOS = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE),  # storage
    *(errno.EBUSY, errno.EAGAIN, errno.ENOLCK),
    *(errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    socket.EAI_AGAIN,
}
PASSING = {  # by name, so that no library has to be imported for its exceptions
    "ray.exceptions.RayError",
    "ray.train.TrainingFailedError",  # after its own retries
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
}


class _RayTaskError(Protocol):
    cause: BaseException


def exit_code(fault: BaseException) -> Exit:
    """Return the exit code of a job that ends with this exception.

    Exceptions that Ray wraps get the code of their cause.
    """
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(fault).__mro__}
    if "ray.exceptions.RayTaskError" in names:  # Ray also derives it from the task's exception
        return exit_code(cast(_RayTaskError, fault).cause)
    if "ray.exceptions.UserCodeException" in names:  # Ray Data wraps a function's exception in it
        return exit_code(fault.__cause__) if fault.__cause__ else Exit.BUG
    if isinstance(fault, BaseExceptionGroup):  # a retry helps only if it helps every member
        codes = {exit_code(one) for one in fault.exceptions}
        return codes.pop() if len(codes) == 1 else Exit.BUG if Exit.BUG in codes else Exit.INPUT
    if isinstance(fault, Usage):
        return Exit.USAGE
    if isinstance(fault, (ConnectionError, TimeoutError, Stopped)) or names & PASSING:
        return Exit.AGAIN
    if isinstance(fault, OSError):
        return Exit.AGAIN if fault.errno in PASSING_ERRNOS else Exit.INPUT
    if isinstance(fault, (ValueError, LookupError, MemoryError)):
        return Exit.INPUT
    return Exit.INTERRUPTED if isinstance(fault, KeyboardInterrupt) else Exit.BUG
