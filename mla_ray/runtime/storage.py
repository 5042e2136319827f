"""Files in local folders and object stores: runs, blocks, features, checkpoints, packs.

`as_path` is the only place that turns a user's path or URL into a `upath.UPath`, which has the
interface of `pathlib.Path`. Writes are atomic: a reader sees the old file or the new one. All
functions retry while the storage is unavailable for a short time (`patiently`).

Secrets come only from the environment (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL …), never from a URL, because URLs are written to files.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.asyn import AsyncFileSystem
from upath import UPath

from mla_ray.runtime.atomic import replacing_file

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between two attempts if an error may be temporary."""

_LOCAL = ("", "file", "local")
_DRIVERS = {
    "s3": "pip install s3fs",
    "s3a": "pip install s3fs",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "az": "pip install adlfs",
    "abfs": "pip install adlfs",
}
# OSErrors about the content of the storage. They are not retried.
_FACTS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
# s3fs passes these on as they are, and they are not OSErrors: the endpoint refuses or times out,
# the connection or the response is cut off. By name, so that botocore need not be installed.
_AWAY = {
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.parsers.ResponseParserError",
    "aiohttp.client_exceptions.ClientError",
    "http.client.HTTPException",
}
_NO_KEYS = {
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.PartialCredentialsError",
}

log = logging.getLogger(__name__)

T = TypeVar("T")


def as_path(url: str | Path | UPath) -> UPath:
    """Return a user's path or URL as a `UPath`.

    A local path becomes absolute, with `~` and links resolved. Directory listings of an object
    store are not cached, so that files of other processes are visible.

    Raises:
        ValueError: The scheme of the URL is unknown, or its driver is not installed.

    """
    text = str(url)
    try:
        path = UPath(url)
        if is_local(path):
            return UPath(Path(path.path).expanduser().resolve())
        driver = fsspec.get_filesystem_class(path.protocol)
    except ImportError as error:
        scheme = text.partition(":")[0]
        remedy = _DRIVERS.get(scheme, str(error))
        raise ValueError(f"{text}: {scheme}:// needs a driver; {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{text}: {error}; give a local path or a URL such as s3://…") from error
    if issubclass(driver, AsyncFileSystem):  # the others do not cache listings
        return UPath(path, use_listings_cache=False)
    return path


def is_local(path: Path | UPath) -> bool:
    """Return whether `path` is on a disk of this machine or on one that is mounted here."""
    return getattr(path, "protocol", "") in _LOCAL


def patiently(
    do: Callable[[], T], pauses: Sequence[float] | None = None, what: str = "storage"
) -> T:
    """Call `do`, and retry it after each pause while it raises an error that may be temporary.

    It retries all OSErrors except those about the content (no such file, no permission …). For an
    object store it also retries a refused or cut connection, a timeout, status 429, and status 500
    or more. A library such as tenacity would not shorten this code: this module would still have to
    list the temporary errors and translate the last one.

    Args:
        do: The function to call. It may run several times, so it must be safe to repeat after a
            partial run.
        pauses: Seconds to wait before each retry; `PAUSES` by default. The error after the last
            pause is raised.
        what: What `do` does, for the log.

    Returns:
        The result of `do`.

    Raises:
        ConnectionError: An object store stayed unavailable, and its driver's error is not an
            OSError.
        PermissionError: There are no credentials.

    """
    pauses = PAUSES if pauses is None else pauses
    for number, pause in enumerate((*pauses, None), start=1):
        try:
            return do()
        except Exception as error:
            if pause is None or not _may_pass(error):
                as_pythons = _translated(error, what)
                if as_pythons is error:
                    raise
                raise as_pythons from error
            again = f"again in {pause:g} s ({number} of {len(pauses)})"
            log.warning("%s: %s: %s; %s", what, type(error).__name__, error, again)
            time.sleep(pause)
    raise AssertionError("unreachable")


def write_bytes(path: UPath, data: bytes) -> None:
    """Write a file atomically and create its parent folders."""
    patiently(partial(_write_bytes, path, data), what=f"writing {path}")


def write_json(path: UPath, document: Any) -> None:
    """Write `document` as indented JSON, atomically, and create its parent folders."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_bytes(path: UPath, pauses: Sequence[float] | None = None) -> bytes:
    """Return the content of a file, read in one request.

    If the file is replaced at the same time, the result is the old or the new content, never a
    mix. `pauses` is that of `patiently`.
    """
    return patiently(partial(_read_bytes, path), pauses, f"reading {path}")


def read_json(path: UPath) -> Any:
    """Return the JSON document in a file.

    Raises:
        ValueError: The file is not JSON. The message names the file.

    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:  # base class of JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path}: not JSON, or damaged: {error}") from error


def open_file(path: UPath) -> BinaryIO:
    """Open a file of any size for reading in pieces."""
    return cast("BinaryIO", patiently(partial(path.open, "rb"), what=f"opening {path}"))


def is_file(path: UPath) -> bool:
    """Return whether the file exists; False if permission to look is missing.

    `UPath.is_file` returns False if an object store is unavailable. This function retries.
    """
    if is_local(path):
        return path.is_file()
    return patiently(partial(_is_file, path), what=f"looking for {path}")


def upload(folder: Path, target: UPath, last: str | None = None) -> None:
    """Copy all files of a local folder, including its subfolders, to `target`.

    Args:
        folder: The local folder.
        target: The destination. Its other files are kept.
        last: Name of the file that is copied last. An old one at `target` is removed first. A
            reader that waits for this file never sees a partial or mixed folder.

    Raises:
        FileNotFoundError: `folder` has no file `last`.

    """
    names = sorted(_name(file, folder) for file in folder.rglob("*") if file.is_file())
    if last is not None:
        if last not in names:
            raise FileNotFoundError(f"{folder / last}: missing; it is to be uploaded last")
        names.remove(last)
        names.append(last)
        remove(target / last)
    for name in names:
        file = target / name
        patiently(partial(_put, folder / name, file), what=f"writing {file}")


def download(source: UPath, folder: Path) -> None:
    """Copy all files of `source`, including its subfolders, to a local folder.

    Each file is written atomically.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: The name of a file leads out of `folder`.

    """
    for file, name in patiently(partial(_find, source), what=f"listing {source}"):
        target = folder / name
        if ".." in target.parts[len(folder.parts) :]:
            raise ValueError(f"{file}: its name leads out of {folder}; rename it")
        fetch(file, target)


def fetch(file: UPath, target: Path, pauses: Sequence[float] | None = None) -> None:
    """Copy `file` to the local file `target` atomically; `pauses` is that of `patiently`."""
    patiently(partial(_get, file, target), pauses, f"reading {file}")


def names_in(folder: UPath) -> list[str]:
    """Return the sorted names of the files and folders in `folder`; none if it does not exist.

    `UPath.iterdir` treats a missing folder differently on a disk and in an object store.
    """
    return patiently(partial(_names_in, folder), what=f"listing {folder}")


def remove(path: UPath) -> None:
    """Remove a file, or a folder with its content; do nothing if it does not exist.

    Raises:
        ValueError: `path` is the root of a disk or a bucket.

    """
    if path == path.parent:
        raise ValueError(f"{path}: a whole disk or bucket is not removed; name a folder in it")
    patiently(partial(_remove, path), what=f"removing {path}")


def _write_bytes(path: UPath, data: bytes) -> None:
    if is_local(path):
        with replacing_file(Path(path.path)) as scratch:
            scratch.write_bytes(data)
    else:
        _make_parent(path)
        path.fs.pipe_file(path.path, data)


def _read_bytes(path: UPath) -> bytes:
    return path.read_bytes() if is_local(path) else path.fs.cat_file(path.path)


def _is_file(path: UPath) -> bool:
    try:
        return bool(path.fs.info(path.path)["type"] == "file")
    except (FileNotFoundError, PermissionError):
        return False


def _put(file: Path, path: UPath) -> None:
    if is_local(path):
        with replacing_file(Path(path.path)) as scratch:
            shutil.copyfile(file, scratch)
    else:
        _make_parent(path)
        path.fs.put_file(str(file), path.path)


def _get(path: UPath, target: Path) -> None:
    with replacing_file(target) as scratch:
        if is_local(path):
            shutil.copyfile(path.path, scratch)
        else:
            path.fs.get_file(path.path, str(scratch))


def _make_parent(path: UPath) -> None:
    # An object store has no folders. There, makedirs could create a bucket with a misspelled name.
    if not isinstance(path.fs, AsyncFileSystem):
        path.fs.makedirs(path.parent.path, exist_ok=True)


def _find(source: UPath) -> list[tuple[UPath, str]]:
    """Return the files under `source` with their names relative to it."""
    if is_local(source):
        root = Path(source.path)
        if not root.is_dir():
            raise FileNotFoundError(f"{source}: no such folder")
        files = sorted(file for file in root.rglob("*") if file.is_file())
        return [(UPath(file), _name(file, root)) for file in files]
    prefix = source.path.rstrip("/") + "/"
    keys = [key for key in source.fs.find(source.path) if key.startswith(prefix)]
    if not keys:
        raise FileNotFoundError(f"{source}: no such folder")
    names = [key.removeprefix(prefix) for key in keys]
    return [(source / name, name) for name in names if name]


def _names_in(folder: UPath) -> list[str]:
    try:
        if is_local(folder):
            return sorted(path.name for path in folder.iterdir())
        prefix = folder.path.rstrip("/") + "/"
        paths = folder.fs.ls(folder.path, detail=False)
        # A path equal to the folder's own is a file, or the marker object of a folder in S3.
        return sorted(
            path.rstrip("/").removeprefix(prefix)
            for path in paths
            if path.startswith(prefix) and path != prefix
        )
    except FileNotFoundError:
        return []


def _remove(path: UPath) -> None:
    try:
        if not is_local(path):
            path.fs.rm(path.path, recursive=True)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path.path)
        else:
            Path(path.path).unlink()
    except FileNotFoundError:
        pass


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, _FACTS)
    if _kinds(error) & _AWAY:
        return True
    # botocore's ClientError, if s3fs did not translate it into an OSError
    response = getattr(error, "response", None)
    if "botocore.exceptions.ClientError" not in _kinds(error) or not isinstance(response, dict):
        return False
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return bool(status >= 500 or status == 429)


def _translated(error: Exception, what: str) -> Exception:
    """Return `error`, or a built-in exception in place of a driver's own."""
    if _kinds(error) & _NO_KEYS:
        return PermissionError(f"{what}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not isinstance(error, OSError) and _may_pass(error):
        return ConnectionError(f"{what}: {error}")
    return error


def _kinds(error: Exception) -> set[str]:
    return {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
