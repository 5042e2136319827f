"""Atomic downloads by external programs: a file appears complete or not at all."""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def download(folder: Path, pattern: str, fetch: Callable[[Path], object]) -> Path:
    """Download one file into `folder` and return its path.

    Args:
        folder: Created if it is missing.
        pattern: `Path.glob` pattern that matches exactly one downloaded file.
        fetch: Called with a temporary folder. It downloads the file there. Other files that it
            leaves are removed.

    """
    folder.mkdir(parents=True, exist_ok=True)
    # On the same file system as `folder`, so that the move is atomic.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fetch(Path(scratch))
        (file,) = Path(scratch).glob(pattern)
        return file.replace(folder / file.name)


def download_pinned(
    path: Path, sha256: str, what: str, command: Callable[[str], Sequence[str]]
) -> Path:
    """Return `path`, and download the file with a command if it is missing.

    Args:
        path: Path of the file. Its name is the one that the command gives it.
        sha256: Hex digest of the file. It is checked on every call.
        what: Name of the download in error messages.
        command: Returns the command that downloads the file into a given folder.

    Raises:
        RuntimeError: The command failed.
        ValueError: The file has another digest.

    """

    def fetch(folder: Path) -> None:
        run = subprocess.run(command(str(folder)), capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{what} failed: {run.stderr.strip() or run.stdout.strip()}")

    if not path.exists():
        download(path.parent, path.name, fetch)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path}: SHA-256 is {digest}, expected {sha256}; delete it to fetch it anew"
        )
    return path
