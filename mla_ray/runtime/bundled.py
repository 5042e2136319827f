"""Files that come with mla-ray: the native `emoji-clip`, configurations, plans, search spaces.

In a checkout they are at the top level, where they are easy to read and change. An installed wheel
has copies with the same names in its folder `bundled`.
"""

from pathlib import Path, PurePosixPath

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "bundled"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
FOLDERS = ("configs", "jobs/configs", "kuberay", "models", "serve", "tuning")
FILES = ("ray_cluster.yaml", "serve/monitoring/dashboard.json")


def bundled(name: str) -> Path | None:
    """Return the bundled file or folder of a name such as `configs/paper/nlt.yaml`, or None."""
    path = PurePosixPath(name)
    ours = name in FILES or any(path.is_relative_to(folder) for folder in FOLDERS)
    if not ours or ".." in path.parts or not (ROOT / path).exists():
        return None
    return ROOT / path


def or_bundled(path: Path) -> Path:
    """Return `path` if it exists, else the bundled file of that name, else `path`."""
    return path if path.exists() else bundled(path.as_posix()) or path


def configurations() -> list[str]:
    """Return the names of the bundled YAML files and of the Grafana dashboard, sorted."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.yaml")]
    paths += [ROOT / name for name in FILES]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)
