"""Files at any URL: runs, blocks, features, checkpoints, packs, in a folder or an object store.

`as_path` is the one place where a user's path or URL becomes a `upath.UPath`, which reads like
pathlib's whatever is behind it. What is written here is written whole: a reader sees the old file
or the new one. Storage that is away for a moment is waited for (`patiently`).

Secrets come from the environment alone (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL …), never from a URL that would end up in a file.
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
"""Seconds between attempts at something that may pass."""

_LOCAL = ("", "file", "local")
_DRIVERS = {
    "s3": "pip install mla-ray[s3]",
    "s3a": "pip install mla-ray[s3]",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "az": "pip install adlfs",
    "abfs": "pip install adlfs",
}
# OSErrors that say what is there, not that the storage is away.
_FACTS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
# s3fs lets these through untranslated, and they are no OSErrors. By name, so that a machine without
# s3fs needs no botocore: endpoint refuses or times out; connection cut; answer cut.
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
    """The path or URL of a user as a path.

    A local one becomes absolute, with `~` and links resolved. Directory listings of an object store
    are not kept: what another process wrote is seen.

    Raises:
        ValueError: the kind of URL is unknown, or its driver is not installed.

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
    if issubclass(driver, AsyncFileSystem):  # the others keep no listings
        return UPath(path, use_listings_cache=False)
    return path


def is_local(path: Path | UPath) -> bool:
    """Whether `path` is a file of this machine (or of a disk that is mounted on it)."""
    return getattr(path, "protocol", "") in _LOCAL


def patiently(
    do: Callable[[], T], pauses: Sequence[float] | None = None, what: str = "storage"
) -> T:
    """What `do` returns, tried again after each pause while it raises an error that may pass.

    That is any OSError but those which state a fact (no such file, no permission …), and from an
    object store also a refused or cut connection, a timeout, or a server that is out of order.
    The loop is no library's (tenacity's, say): which errors pass, and as what the last one is
    raised, would be ours all the same, and is all there is to it.

    Args:
        do: may run several times, so it must not mind having run half.
        pauses: seconds, `PAUSES` if not given; after the last one the error is final.
        what: is done, for the log.

    Raises:
        ConnectionError: an object store stayed away and its driver's error was no OSError.
        PermissionError: there are no credentials.

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
    """Write a file and its parents; a reader sees nothing, the old file, or all of `data`."""
    patiently(partial(_write_bytes, path, data), what=f"writing {path}")


def write_json(path: UPath, document: Any) -> None:
    """Write `document` as JSON for people, as `write_bytes` writes."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_bytes(path: UPath, pauses: Sequence[float] | None = None) -> bytes:
    """All of a file, in one request: one that is replaced meanwhile is the old or the new one.

    `pauses` as in `patiently`.
    """
    return patiently(partial(_read_bytes, path), pauses, f"reading {path}")


def read_json(path: UPath) -> Any:
    """The document in a file; ValueError naming the file if it is not JSON."""
    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:  # JSON's and Unicode's errors are
        raise ValueError(f"{path}: not JSON, or damaged: {error}") from error


def open_file(path: UPath) -> BinaryIO:
    """A file of any size, opened for reading piece by piece."""
    return cast("BinaryIO", patiently(partial(path.open, "rb"), what=f"opening {path}"))


def is_file(path: UPath) -> bool:
    """Whether there is such a file.

    UPath's own says no of an object store that is away; here that is waited for. What may not be
    seen is not there.
    """
    if is_local(path):
        return path.is_file()
    return patiently(partial(_is_file, path), what=f"looking for {path}")


def upload(folder: Path, target: UPath, last: str | None = None) -> None:
    """Copy the files of a local folder, and of folders in it, to `target`.

    Args:
        folder: local.
        target: its other files stay.
        last: a file of `folder` that is copied when all others are there; an old one at `target`
            is removed before. Readers that look for it never see half a folder, or a mixed one.

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
    """Copy the files of `source`, and of folders in it, to a local folder; each appears whole."""
    for file, name in patiently(partial(_find, source), what=f"listing {source}"):
        target = folder / name
        if ".." in target.parts[len(folder.parts) :]:
            raise ValueError(f"{file}: its name leads out of {folder}; rename it")
        fetch(file, target)


def fetch(file: UPath, target: Path, pauses: Sequence[float] | None = None) -> None:
    """Copy a file to one of this machine, which appears whole; `pauses` as in `patiently`."""
    patiently(partial(_get, file, target), pauses, f"reading {file}")


def names_in(folder: UPath) -> list[str]:
    """Names of the files and folders in `folder`, sorted; none if it is missing.

    `iterdir` says that in one way on a disk and in another in an object store.
    """
    return patiently(partial(_names_in, folder), what=f"listing {folder}")


def remove(path: UPath) -> None:
    """Remove a file, or a folder with all that is in it; what is missing is removed already."""
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
    # An object store has no folders; a mkdir there may make a bucket of a misspelt name.
    if not isinstance(path.fs, AsyncFileSystem):
        path.fs.makedirs(path.parent.path, exist_ok=True)


def _find(source: UPath) -> list[tuple[UPath, str]]:
    """Files under `source`, and their names from there."""
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
        # One that is called as the folder itself is a file, or S3's mark for a folder.
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
    # botocore's ClientError, where s3fs did not make an OSError of it.
    response = getattr(error, "response", None)
    if "botocore.exceptions.ClientError" not in _kinds(error) or not isinstance(response, dict):
        return False
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return bool(status >= 500 or status == 429)


def _translated(error: Exception, what: str) -> Exception:
    """`error`, or one that Python knows for a driver's own."""
    if _kinds(error) & _NO_KEYS:
        return PermissionError(f"{what}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not isinstance(error, OSError) and _may_pass(error):
        return ConnectionError(f"{what}: {error}")
    return error


def _kinds(error: Exception) -> set[str]:
    return {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
