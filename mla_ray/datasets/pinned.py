"""Files of packages whose version is pinned: downloaded once, checked by hash every time."""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def fetch(path: Path, sha256: str, what: str, command: Callable[[str], Sequence[str]]) -> Path:
    """The file at `path`, downloaded unless it is there; checked either way.

    Args:
        path: bears the name that the command gives it.
        sha256: of the file.
        what: is fetched, for an error.
        command: given a folder, what downloads the file into it.

    Raises:
        RuntimeError: the command failed.
        ValueError: the file is another one.

    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that the move is atomic and an interrupted download leaves nothing.
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            run = subprocess.run(command(scratch), capture_output=True, text=True, check=False)
            if run.returncode:
                raise RuntimeError(f"{what} failed: {run.stderr.strip() or run.stdout.strip()}")
            (Path(scratch) / path.name).replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path}: SHA-256 is {found}, expected {sha256}; delete it to fetch it anew"
        )
    return path
