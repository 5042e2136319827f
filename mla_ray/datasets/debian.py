"""Data from Debian packages: download with apt-get and read files without installing.

No root permission is needed.
"""

import io
import subprocess
import tarfile
from pathlib import Path

from mla_ray.datasets.downloads import download


class Unavailable(RuntimeError):
    """Raised when data cannot be obtained, neither on this machine nor from Debian."""


def fetch(name: str, folder: Path) -> Path:
    """Return the path of a package in `folder`, and download it with apt-get if it is missing.

    Any version that is present is used, the last by name.

    Raises:
        Unavailable: apt-get failed or is not installed.

    """
    if present := sorted(folder.glob(f"{name}_*.deb")):
        return present[-1]
    return download(folder, "*.deb", lambda scratch: _run(["apt-get", "download", name], scratch))


def read(deb: Path, *paths: str) -> list[bytes]:
    """Return the contents of some files of a package.

    Args:
        deb: The package.
        paths: Paths in the package without a leading slash, such as `usr/share/x`.

    Raises:
        Unavailable: The package lacks a file, or dpkg-deb failed or is not installed.

    """
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
        raise Unavailable(f"{command[0]} is not on PATH: use Debian or Ubuntu") from None
    if run.returncode:
        reason = run.stderr.decode(errors="replace").strip()
        raise Unavailable(f"{' '.join(command)} failed: {reason}")
    return run.stdout
