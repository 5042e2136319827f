"""Promises of runtime.storage: whole files at any URL, and patience with storage that is away."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.exceptions
import pyarrow.fs
import pytest
from upath import UPath

from mla_ray.runtime import storage
from mla_ray.runtime.storage import (
    as_path,
    download,
    is_file,
    is_local,
    names_in,
    open_file,
    patiently,
    read_bytes,
    read_json,
    remove,
    upload,
    write_bytes,
    write_json,
)
from tests.support.logs import logged
from tests.support.s3 import relayed, s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """A place of its own, on a disk and in an object store."""
    if request.param == "local":
        return as_path(tmp_path / "folder")
    bucket: str = request.getfixturevalue("bucket")
    return as_path(f"{bucket}/{tmp_path.name}")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the module says in its log."""
    with logged(storage.log.name) as said:
        yield said


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's own client tries once, so that it is our patience that is tried."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "PAUSES", (0.5,) * 10)


def tree(root: UPath) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


# --- paths ---------------------------------------------------------------------------------------


def test_a_local_path_becomes_absolute_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    real = tmp_path.resolve() / "run"
    for written in ("run", "~/run", "x/../run", Path("run"), UPath("run"), real, f"file://{real}"):
        assert str(as_path(written)) == str(real)
        assert is_local(as_path(written))
        assert isinstance(as_path(written), Path)
    assert as_path(as_path("run")) == as_path("run")
    assert is_local(Path("run"))


def test_a_url_stays_as_it_is(bucket: str) -> None:
    path = as_path(f"{bucket}/run")
    assert str(path) == f"{bucket}/run"
    assert not is_local(path)
    assert as_path(path) == as_path(UPath(f"{bucket}/run")) == path
    assert (path / "blocks" / "b0.parquet").parent.parent == path


def test_a_url_nobody_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gs://b/x: .*pip install gcsfs"):
        as_path("gs://b/x")
    with pytest.raises(ValueError, match=r"nope://b/x: .*a local path or a URL such as s3://"):
        as_path("nope://b/x")
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from mla_ray.runtime.storage import as_path\n"
        "assert not any(name.startswith('botocore') for name in sys.modules)\n"
        "as_path('s3://b/x')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: s3://b/x: s3:// needs a driver; pip install s3fs" in run.stderr


# --- files ---------------------------------------------------------------------------------------


def test_a_file_is_told_from_a_folder_and_from_nothing_and_read_piece_by_piece(
    folder: UPath,
) -> None:
    file = folder / "deep" / "lines.txt"
    write_bytes(file, b"one\ntwo\n")
    assert is_file(file)
    assert not is_file(folder / "deep")
    assert not is_file(folder / "deep" / "none.txt")
    with open_file(file) as opened:
        assert list(opened) == [b"one\n", b"two\n"]
    with pytest.raises(FileNotFoundError):
        open_file(folder / "deep" / "none.txt")


def test_a_file_that_may_not_be_read_is_not_waited_for(warnings: list[str]) -> None:
    calls = []

    def read() -> bytes:
        calls.append(1)
        raise PermissionError(errno.EACCES, "Permission denied", "file")

    with pytest.raises(PermissionError):
        patiently(read, (0, 0, 0))
    assert (len(calls), warnings) == (1, [])


def test_what_is_written_is_read_and_replaced(folder: UPath) -> None:
    file = folder / "deep" / "er" / "file.bin"
    with pytest.raises(FileNotFoundError):
        read_json(file)
    write_bytes(file, b"one")
    assert file.read_bytes() == b"one"
    write_bytes(file, b"2")
    assert tree(folder) == {"deep/er/file.bin": b"2"}  # and no scratch file
    document = {"language": "hi", "text": "अंगूर", "loss": 0.1, "none": None}
    write_json(folder / "d.json", document)
    assert read_json(folder / "d.json") == document
    assert "अंगूर" in (folder / "d.json").read_text(encoding="utf-8")


def test_json_that_is_damaged_is_named(folder: UPath) -> None:
    for damaged in (b'{"a": 1', b"", b"\xff\xfe\xfa"):
        write_bytes(folder / "d.json", damaged)
        with pytest.raises(ValueError, match=r"d\.json: not JSON, or damaged"):
            read_json(folder / "d.json")


def test_a_reader_never_sees_half_a_file(folder: UPath) -> None:
    versions = [bytes([65 + n]) * (200_000 + n) for n in range(8)]
    write_bytes(folder / "file", versions[0])
    done = threading.Event()

    def write() -> None:
        mine = as_path(folder)
        for version in versions[1:] * 3:
            write_bytes(mine / "file", version)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        data = read_bytes(folder / "file")
        assert data in versions
        seen.add(data[:1])
    writer.join()
    assert len(seen) > 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(as_path(tmp_path) / "file", b"old")

    def fail(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(as_path(tmp_path) / "file", b"new one")
    assert tree(as_path(tmp_path)) == {"file": b"old"}


def test_what_another_process_wrote_or_removed_is_seen_at_once(folder: UPath) -> None:
    write_bytes(folder / "a", b"")
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert not (folder / "b").exists()
    code = "import sys; from mla_ray.runtime.storage import as_path, remove, write_bytes\n"
    code += "f = as_path(sys.argv[1])\n"
    code += "write_bytes(f / 'b', b'new'); remove(f / 'a')"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert (folder / "b").stat().st_size == 3
    assert not (folder / "a").exists()


def test_a_misspelt_bucket_is_not_made(bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        write_bytes(as_path("s3://misspelt/run/file"), b"")
    assert not as_path("s3://misspelt").exists()


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_goes_up_and_comes_down(folder: UPath, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    files = {"card.json": b"{}", "deep/er/weights": bytes(range(256)) * 999, "empty": b""}
    for name, data in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
    write_bytes(folder / "pack-2" / "other", b"not to be touched")
    upload(here, folder / "pack", last="card.json")
    assert tree(folder / "pack") == files
    download(folder / "pack", back)
    assert tree(as_path(back)) == files
    remove(folder / "pack" / "empty")
    remove(folder / "pack" / "empty")
    assert set(tree(folder / "pack")) == {"card.json", "deep/er/weights"}
    remove(folder / "pack")
    remove(folder / "pack")
    assert set(tree(folder)) == {"pack-2/other"}
    with pytest.raises(FileNotFoundError):
        download(folder / "pack", back)


def test_a_file_is_last_up_and_while_others_change_it_is_away(
    folder: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("a", "card.json", "z"):
        (here / name).write_bytes(b"1")
    upload(here, folder, last="card.json")
    put, seen = storage._put, []

    def watch(file: Path, path: UPath) -> None:
        seen.append((path.name, (folder / "card.json").exists()))
        put(file, path)

    monkeypatch.setattr(storage, "_put", watch)
    upload(here, folder, last="card.json")
    names = [name for name, _ in seen]
    assert names[-1] == "card.json"
    assert {"a", "z"} <= set(names)
    assert not any(there for _, there in seen)
    with pytest.raises(FileNotFoundError, match="uploaded last"):
        upload(here, folder, last="none.json")


def test_a_folder_is_listed_and_a_missing_one_is_empty(folder: UPath) -> None:
    assert names_in(folder) == []
    for name in ("b", "a/deep", "c/deep/er"):
        write_bytes(folder / name, b"")
    assert names_in(folder) == ["a", "b", "c"]
    if not is_local(folder):
        folder.fs.pipe_file(f"{folder.path}/", b"")  # as S3's console makes a folder
        assert names_in(folder) == ["a", "b", "c"]


def test_a_name_that_leads_out_of_the_folder_is_refused(bucket: str, tmp_path: Path) -> None:
    source = as_path(f"{bucket}/{tmp_path.name}")
    source.fs.pipe_file(f"{source.path}/a/../../../evil", b"")
    with pytest.raises(ValueError, match="leads out"):
        download(source, tmp_path / "a" / "b")
    assert not (tmp_path / "evil").exists()


def test_a_whole_bucket_is_not_removed(bucket: str) -> None:
    for whole in (bucket, "/"):
        with pytest.raises(ValueError, match="whole disk or bucket"):
            remove(as_path(whole))


# --- patience ------------------------------------------------------------------------------------


def failing(*errors: Exception) -> Callable[[], str]:
    pending = list(errors)

    def do() -> str:
        if pending:
            raise pending.pop(0)
        return "done"

    return do


def test_what_may_pass_is_waited_for_and_told_of(warnings: list[str]) -> None:
    refused = botocore.exceptions.EndpointConnectionError(endpoint_url="http://here")
    slow = botocore.exceptions.ClientError(
        {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"
    )
    errors = [OSError(errno.EROFS, "read-only"), TimeoutError("late"), refused, slow]
    assert patiently(failing(*errors), (0, 0, 0, 0), "writing run/x") == "done"
    assert len(warnings) == 4
    assert all(line.startswith("writing run/x: ") for line in warnings)
    assert "read-only" in warnings[0]
    assert "http://here" in warnings[2]
    assert "4 of 4" in warnings[3]


def test_what_stays_away_is_given_up(warnings: list[str]) -> None:
    errors = [ConnectionError("first"), ConnectionError("second"), ConnectionError("last")]
    with pytest.raises(ConnectionError, match="last"):
        patiently(failing(*errors), (0, 0))
    assert len(warnings) == 2


def test_what_no_waiting_cures_is_raised_at_once(warnings: list[str]) -> None:
    denied = botocore.exceptions.ClientError(
        {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "Put"
    )
    errors = (
        FileNotFoundError(),
        FileExistsError(),
        IsADirectoryError(),
        NotADirectoryError(),
        ValueError(),
        denied,
    )
    for error in errors:
        with pytest.raises(type(error)):
            patiently(failing(error), (60,))
    assert not warnings


def test_at_the_end_the_error_is_one_that_python_knows() -> None:
    with pytest.raises(OSError, match="full"):
        patiently(failing(OSError("once"), OSError(errno.ENOSPC, "full")), (0,))
    cut = botocore.exceptions.ConnectionClosedError(endpoint_url="http://here")
    with pytest.raises(ConnectionError, match=r"reading x: .*http://here") as raised:
        patiently(failing(cut, cut), (0,), "reading x")
    assert raised.value.__cause__ is cut
    with pytest.raises(PermissionError, match="set AWS_ACCESS_KEY_ID"):
        patiently(failing(botocore.exceptions.NoCredentialsError()), (60,))


@pytest.mark.usefixtures("quick")
def test_an_endpoint_that_is_away_for_a_moment_is_waited_for(
    bucket: str, tmp_path: Path, warnings: list[str]
) -> None:
    (tmp_path / "card.json").write_text("{}")
    with relayed() as relay:
        run = as_path(f"{bucket}/{tmp_path.name}")
        write_bytes(run / "a", b"before")  # leaves a connection open, to be cut
        with relay.away(0.5):
            write_bytes(run / "b", b"after")
        assert any(line.startswith(f"writing {run}/b: ") for line in warnings)
        warnings.clear()
        with relay.away(0.5):
            upload(tmp_path, run / "pack", last="card.json")
        assert warnings
        warnings.clear()
        with relay.away(0.5):
            assert read_json(run / "pack" / "card.json") == {}
        assert warnings
        warnings.clear()
        with relay.away(0.5):
            assert is_file(run / "a")  # "no" would be what nobody knows
        assert warnings
        warnings.clear()
        with relay.away(0.5), open_file(run / "a") as opened:
            assert opened.read() == b"before"
        assert warnings
    assert tree(run) == {"a": b"before", "b": b"after", "pack/card.json": b"{}"}


@pytest.mark.usefixtures("quick")
def test_an_endpoint_that_stays_away_is_given_up_with_its_name(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES", (0.1,))
    with relayed() as relay:
        file = as_path(f"{bucket}/file")
        with relay.away(), pytest.raises(ConnectionError, match=f"writing {file}: .*{relay.url}"):
            write_bytes(file, b"")
        with relay.away(), pytest.raises(ConnectionError, match="listing"):
            names_in(file.parent / "folder")


def test_a_disk_that_is_read_only_for_a_moment_is_waited_for(
    mounted: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES", (0.5,) * 10)
    file = as_path(mounted / "run" / "d.json")
    write_json(file, {"step": 1})
    remount("ro", mounted)
    timer = threading.Timer(1.0, remount, ("rw", mounted))
    timer.start()
    write_json(file, {"step": 2})
    timer.join()
    assert read_json(file) == {"step": 2}
    assert len(tree(as_path(mounted))) == 1
    assert any("Read-only" in line and str(file) in line for line in warnings)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(mode: str, folder: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", folder], check=True)


# --- what else reads there -----------------------------------------------------------------------


def test_pyarrow_reaches_the_same_files(bucket: str, tmp_path: Path) -> None:
    """Ray Train keeps its own state through it."""
    run = as_path(f"{bucket}/{tmp_path.name}")
    files, path = pyarrow.fs.FileSystem.from_uri(str(run))
    with files.open_output_stream(f"{path}/d.json") as stream:
        stream.write(json.dumps({"by": "pyarrow"}).encode())
    assert read_json(run / "d.json") == {"by": "pyarrow"}
