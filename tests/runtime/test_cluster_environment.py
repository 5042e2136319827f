"""Promises of the environment that Ray is started in, without starting it."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from mla_ray.runtime import cluster
from mla_ray.runtime.cluster import check_answers, free_port, set_environment, temporary_folder

PROXY = ("no_proxy", "NO_PROXY", "RAY_ADDRESS")


def proxies(patch: pytest.MonkeyPatch, **given: str) -> list[set[str]]:
    """What no_proxy and NO_PROXY name after `set_environment`."""
    for name in (*PROXY, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        patch.setenv(name, "")  # so that it is put back
        patch.delenv(name)
    for name, value in given.items():
        patch.setenv(name, value)
    set_environment()
    return [set(os.environ[name].split(",")) for name in PROXY[:2]]


def test_loopback_and_the_cluster_are_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loopback = {"localhost", "127.0.0.1", "::1"}
    assert proxies(monkeypatch) == [loopback, loopback]
    lower, upper = proxies(monkeypatch, no_proxy="intranet,127.0.0.1")
    assert (lower, upper) == ({"intranet"} | loopback, loopback)
    lower, upper = proxies(monkeypatch, RAY_ADDRESS="10.1.2.3:6379")
    assert "10.1.2.3" in lower & upper
    lower, _ = proxies(monkeypatch, RAY_ADDRESS="ray://head.example:10001")
    assert "head.example" in lower
    assert proxies(monkeypatch, no_proxy="*")[0] == {"*"}


def test_a_cluster_that_is_gone_is_named_with_the_way_to_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_WITHIN_S", 0.2)
    address = f"127.0.0.1:{free_port()}"
    for given in (address, f"ray://{address}"):
        with pytest.raises(ConnectionError, match=f"{given}.*unset RAY_ADDRESS"):
            check_answers(given)
    check_answers("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_answers(f"127.0.0.1:{server.getsockname()[1]}")


def test_sockets_have_room_however_long_tmpdir_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("long" * 20)
    long.mkdir()
    with tempfile.TemporaryDirectory(prefix="x" * 11, dir="/tmp") as longest:
        assert len(longest) == cluster.LONGEST_FOLDER
        for usual, kept in ((longest, True), (str(long), False)):
            monkeypatch.setattr("tempfile.tempdir", usual)
            with temporary_folder("mla-ray-") as folder:
                assert folder.is_relative_to(usual) is kept
                session = "session_2026-11-28_16-39-15_123456_1234567"  # as Ray names it
                deepest = folder / session / "sockets" / "plasma_store"
                with socket.socket(socket.AF_UNIX) as probe:
                    deepest.parent.mkdir(parents=True)
                    probe.bind(str(deepest))
            assert not folder.exists()
    monkeypatch.setattr(cluster, "SHORT_FOLDERS", ())
    with pytest.raises(OSError, match="set TMPDIR to a folder of at most"):
        temporary_folder("mla-ray-").__enter__()
