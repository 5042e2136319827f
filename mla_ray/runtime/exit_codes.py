"""Exit codes of jobs, and which of them an exception ends a job with.

Needs no Ray and no botocore: their exceptions are known by name.
"""

import errno
import socket
from enum import IntEnum
from typing import Protocol, cast

from mla_ray.runtime.progress import Stopped


class Exit(IntEnum):
    """What a job's exit code says."""

    DONE = 0
    INPUT = 1
    """The input is bad: running the job again changes nothing."""
    USAGE = 2
    """A flag or the file of settings is bad; nothing was begun."""
    BUG = 70
    """EX_SOFTWARE: a fault of the program, with its traceback."""
    AGAIN = 75
    """EX_TEMPFAIL: storage, network or nodes were away; the same job goes on where it stopped."""
    INTERRUPTED = 130
    """Ended by SIGINT; the same job goes on where it stopped."""
    TERMINATED = 143
    """Ended by SIGTERM, as by `ray job stop`; the same job goes on where it stopped."""


class Usage(ValueError):
    """Bad flags or a bad file of settings; a line for each fault."""


PASSING_ERRNOS = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE),  # storage
    *(errno.EBUSY, errno.EAGAIN, errno.ENOLCK),
    *(errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    socket.EAI_AGAIN,
}
PASSING = {  # by name: an exception of a library that was not imported need not be looked for
    "ray.exceptions.RayError",
    "ray.train.TrainingFailedError",  # after its own retries
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
}


class _RayTaskError(Protocol):
    cause: BaseException


def exit_code(fault: BaseException) -> Exit:
    """What an exception that ends a job says about running it again."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(fault).__mro__}
    if "ray.exceptions.RayTaskError" in names:  # also of the kind that was raised in the task
        return exit_code(cast(_RayTaskError, fault).cause)
    if "ray.exceptions.UserCodeException" in names:  # Ray Data's, around a function's exception
        return exit_code(fault.__cause__) if fault.__cause__ else Exit.BUG
    if isinstance(fault, BaseExceptionGroup):  # running again helps if it helps all
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
