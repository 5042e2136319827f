"""Data in Debian packages: fetched by name with apt-get, without root, never installed."""

import io
import subprocess
import tarfile
from pathlib import Path

from mla_ray.datasets.downloads import download


class Unavailable(RuntimeError):
    """Neither this machine nor Debian offers the data."""


def fetch(name: str, folder: Path) -> Path:
    """The package in `folder`, downloaded by apt-get unless one is there."""
    if present := sorted(folder.glob(f"{name}_*.deb")):
        return present[-1]
    return download(folder, "*.deb", lambda scratch: _run(["apt-get", "download", name], scratch))


def read(deb: Path, *paths: str) -> list[bytes]:
    """These files of the package, each by its path from the root, as in `usr/share/x`."""
    files = _run(["dpkg-deb", "--fsys-tarfile", str(deb.resolve())])
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        return [_member(archive, f"./{path}") for path in paths]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise Unavailable(f"the package holds no {name}; delete it to fetch it anew")
    return file.read()


def _run(command: list[str], folder: Path | None = None) -> bytes:
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not on PATH: it needs Debian or Ubuntu") from None
    if run.returncode:
        reason = run.stderr.decode(errors="replace").strip()
        raise Unavailable(f"{' '.join(command)} failed: {reason}")
    return run.stdout
