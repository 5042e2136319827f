"""Files that programs download into a folder: each there whole or not at all, and not twice."""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def download(folder: Path, pattern: str, fetch: Callable[[Path], object]) -> Path:
    """A file that `fetch` leaves in the folder which it is called with, moved to `folder`.

    Args:
        folder: made if it is not there.
        pattern: of the file's name, as `Path.glob` has it.
        fetch: may leave others, too; they are removed.

    """
    folder.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the move is atomic and an interrupted download leaves nothing.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fetch(Path(scratch))
        (file,) = Path(scratch).glob(pattern)
        return file.replace(folder / file.name)


def download_pinned(
    path: Path, sha256: str, what: str, command: Callable[[str], Sequence[str]]
) -> Path:
    """The file at `path`, of a package of a pinned version, downloaded unless it is there.

    Args:
        path: bears the name that the command gives it.
        sha256: of the file; checked every time.
        what: is fetched, for an error.
        command: given a folder, what downloads the file into it.

    Raises:
        RuntimeError: the command failed.
        ValueError: the file is another one.

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
