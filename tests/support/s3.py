"""An S3 for tests: moto's server in a process of its own, and a relay that can cut it off.

with s3_bucket() as url:               # "s3://test-…", reachable for s3fs, pyarrow, other processes
    with relayed() as relay:           # from here on through the relay
        with relay.away(1.5): ...      # connections are cut and refused for so long
"""

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self
from urllib.parse import urlsplit

import fsspec

_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests end, however they end
"""
# What s3fs and pyarrow need, and nothing of the user's own.
_OURS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def s3_bucket() -> Iterator[str]:
    """The URL of an empty bucket on a server of its own.

    What reaches it is in `os.environ`, so processes started now reach it too; a Ray that already
    runs must be told: `runtime_env={"env_vars": s3_environment()}`.
    """
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
            with _environment(_OURS | {"AWS_ENDPOINT_URL": endpoint}):
                bucket = f"test-{secrets.token_hex(4)}"
                fsspec.filesystem("s3").mkdir(bucket)
                yield f"s3://{bucket}"
        finally:
            server.kill()


def s3_environment() -> dict[str, str]:
    """What s3fs and pyarrow need, as it is within `s3_bucket` and `relayed`."""
    return _aws()


@contextmanager
def relayed() -> Iterator["Relay"]:
    """The S3 of the environment through a relay."""
    with (
        Relay(os.environ["AWS_ENDPOINT_URL"]) as relay,
        _environment(_aws() | {"AWS_ENDPOINT_URL": relay.url}),
    ):
        yield relay


class Relay:
    """Passes TCP connections on to a server, and can be away: real sockets, cut and refused."""

    def __init__(self, target: str) -> None:
        split = urlsplit(target)
        assert split.hostname
        assert split.port
        self._target = (split.hostname, split.port)
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._port = 0
        self.accepted = 0
        self.come()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def away(self, seconds: float | None = None) -> Iterator[None]:
        """Away for so long, or for the body of the `with`; in any case back when it ends."""
        self.go()
        timer = threading.Timer(seconds, self.come) if seconds is not None else None
        if timer:
            timer.start()
        try:
            yield
        finally:
            if timer:
                timer.cancel()
                timer.join()
            self.come()

    def go(self) -> None:
        """Refuse connections, and cut those there are."""
        with self._lock:
            listener, self._listener = self._listener, None
            cut, self._open = self._open, set()
        if listener:
            _shut(listener)
        for end in cut:
            _shut(end)

    def come(self) -> None:
        """Be there again, on the same port."""
        with self._lock:
            if self._listener:
                return
            self._listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
            self._port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
            except OSError:  # closed, by `go`
                return
            with self._lock:
                here = self._listener is listener
                if here:
                    self._open |= {near, far}
                    self.accepted += 1
            if not here:
                _shut(near)
                _shut(far)
                return
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with self._lock:
            self._open -= {one, other}
        _shut(one)
        _shut(other)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept or recv
    end.close()


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """These, and nothing else that begins with AWS_.

    Clients of s3fs read it once, so they are forgotten at both ends.
    """
    before = _aws()
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _aws() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _set(wanted: dict[str, str]) -> None:
    for name in _aws():
        del os.environ[name]
    os.environ.update(wanted)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
