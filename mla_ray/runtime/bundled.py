"""Files that come with mla-ray: the native `emoji-clip`, configurations, plans, search spaces.

They lie at the top of a checkout, where people read and change them. An installed wheel has copies,
under the same names, in its folder `bundled`.
"""

from pathlib import Path, PurePosixPath

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "bundled"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
FOLDERS = ("configs", "jobs/configs", "kuberay", "models", "serve", "tuning")
FILES = ("ray_cluster.yaml",)


def bundled(name: str) -> Path | None:
    """The bundled file or folder of this name, `configs/paper/nlt.yaml`; None if there is none."""
    path = PurePosixPath(name)
    ours = name in FILES or any(path.is_relative_to(folder) for folder in FOLDERS)
    if not ours or ".." in path.parts or not (ROOT / path).exists():
        return None
    return ROOT / path


def or_bundled(path: Path) -> Path:
    """The path, or if nothing is there the bundled file of that name, if there is one."""
    return path if path.exists() else bundled(path.as_posix()) or path


def configurations() -> list[str]:
    """Names of the bundled YAML files."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.yaml")]
    paths += [ROOT / name for name in FILES]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)
