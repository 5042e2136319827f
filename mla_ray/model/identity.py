"""Identity of a native: its fingerprints and its size, which identify its vectors.

The fingerprint is computed from the loaded model, and importing torch and open_clip takes many
seconds. The identity of a native in a folder is therefore remembered, under a hash of the bytes of
its files and of the versions of the libraries that read them. A changed file, or another version of
a library, is another key, so what is remembered never becomes stale. Does not import torch.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mla_ray.model.recognition import recognised
from mla_ray.runtime.bundled import bundled
from mla_ray.runtime.storage import as_path, write_json

FINGERPRINT_RULE = 2
"""Number of the current rule of `mla_ray.model.fingerprint`."""
LIBRARIES = ("mla-ray", "torch", "open_clip_torch", "transformers", "tokenizers", "timm")
"""Libraries that decide what the files of a native mean."""
UNREAD = {".bin", ".pth", ".pt", ".h5", ".msgpack", ".onnx", ".md"}
"""Endings of files that are never read from the folder of a native, such as pickles."""


@dataclass(frozen=True)
class NativeIdentity:
    """Name, fingerprints and joint embedding size of a native."""

    name: str
    fingerprint: str
    fingerprint_v1: str
    dim: int

    def goes_by(self, fingerprint: str, what: object, remedy: str) -> bool:
        """Return whether a fingerprint in `what` is this native's, as `recognised` decides."""
        return recognised(fingerprint, self.fingerprint, self.fingerprint_v1, what, remedy)


def bundled_native(name: str) -> Path | None:
    """Return the folder of a bundled native, or None if no bundled native has this name."""
    folder = bundled(f"models/{name}") if "/" not in name else None
    return folder if folder and (folder / "open_clip_config.json").is_file() else None


def recall(name: str) -> NativeIdentity | None:
    """Return the identity of a native in a folder, if this machine has loaded the same files.

    Args:
        name: Name of the native as `Native.load` takes it.

    Returns:
        None if the native must be loaded to know its identity.

    """
    file = memory_of(name)
    if file is None:
        return None
    try:
        return NativeIdentity(**json.loads(file.read_bytes()) | {"name": name})
    except (OSError, ValueError, TypeError):  # nothing is remembered, or the file is damaged
        return None


def remember(name: str, file: Path | None, identity: NativeIdentity) -> None:
    """Remember the identity of a native. It costs time, but no result, if it cannot be written.

    Args:
        name: Name by which the native was loaded.
        file: Result of `memory_of(name)` before it was loaded. If the files have changed since,
            nothing is remembered, because the model may be of either files.
        identity: Identity of the loaded native.

    """
    if file and file == memory_of(name):
        with suppress(OSError):
            write_json(as_path(file), asdict(identity))


def memory_of(name: str) -> Path | None:
    """Return the file that remembers a native, or None for one that is not in a local folder."""
    folder = bundled_native(name) or Path(name)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256(json.dumps([FINGERPRINT_RULE, *map(_version, LIBRARIES)]).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in UNREAD:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mla-ray" / "natives" / f"{digest.hexdigest()}.json"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
