"""Checkpoints of a training. If the newest one is damaged, the one before it is loaded.

    <folder>/0000001200/state.safetensors    tensors: weights and optimizer state
    <folder>/0000001200/checkpoint.json      state, size and SHA-256 of the tensors; written last

A folder without `checkpoint.json` is incomplete, and is skipped. Checkpoints contain no pickle, so
loading one runs no code.
"""

import errno
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from upath import UPath

from mla_ray.runtime import storage

TENSORS = "state.safetensors"
CARD = "checkpoint.json"
DIGITS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """Checkpoint as it was saved.

    Attributes:
        number: Number that `Checkpoints.save` received.
        path: Folder of the checkpoint.
        tensors: Tensors by name, on the requested device.
        state: State after a round trip through JSON: tuples become lists, keys become strings.

    """

    number: int
    path: UPath
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `name/`, without that prefix."""
        start = f"{name}/"
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}


class Checkpoints:
    """Checkpoints in a folder. Only one process may save them.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of valid checkpoints to keep.

    Raises:
        ValueError: `keep` is less than 1.

    """

    def __init__(self, folder: UPath, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, must be at least 1")
        self.folder = folder
        self.keep = keep
        self._sound: set[int] = set()  # written or validated by this process
        self._passed_over: set[int] = set()

    def save(self, number: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> UPath:
        """Write a checkpoint, then delete old ones.

        Args:
            number: Steps done so far. It must grow over a run. A checkpoint with the same number is
                replaced. A later one that `load` skipped is deleted.
            tensors: Tensors by name, on any device.
            state: State that JSON can hold.

        Returns:
            The checkpoint's folder.

        """
        path = self._path(number)
        # Not in `folder`, which may be unavailable at the moment. `upload` retries.
        with tempfile.TemporaryDirectory(prefix="mla-checkpoint-") as scratch:
            file = Path(scratch) / TENSORS
            # The seal covers what JSON reads back. A state that JSON cannot hold fails here,
            # before anything is written.
            document = json.loads(json.dumps({"number": number, "state": dict(state)}))
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, file)
            document |= {"size": file.stat().st_size, "sha256": _sha256(file)}
            card = json.dumps(document | {"seal": _seal(document)}, indent=2)
            file.with_name(CARD).write_text(card + "\n")
            storage.upload(Path(scratch), path, last=CARD)
        self._sound.add(number)
        self._passed_over.discard(number)
        try:
            self._prune(number)
        except OSError as error:  # the new checkpoint is complete, so the training continues
            log.warning("%s: old checkpoints could not be deleted: %s", self.folder, error)
        return path

    def load(self, device: str = "cpu") -> Loaded | None:
        """Load the newest valid checkpoint. Return None if no checkpoint was ever completed.

        Args:
            device: Device of the tensors.

        Raises:
            ValueError: All completed checkpoints are damaged.
            OSError: The storage cannot be read. The checkpoints may still be valid.

        """
        damaged = []
        for number in sorted(self._numbers(), reverse=True):
            try:
                loaded = self._load(number, device)
            except _Unfinished as error:
                log.warning("%s skipped: %s", self._path(number), error)
            except _Damaged as error:
                log.warning("%s skipped: %s", self._path(number), error)
                damaged.append(f"{number:0{DIGITS}d}: {error}")
            else:
                self._sound.add(number)
                return loaded
            self._passed_over.add(number)
        if damaged:
            raise ValueError(
                f"{self.folder}: no checkpoint is valid ({'; '.join(damaged)}); restore one from "
                "a backup, or delete this folder to start again"
            )
        return None

    def _path(self, number: int) -> UPath:
        return self.folder / f"{number:0{DIGITS}d}"

    def _numbers(self) -> list[int]:
        names = storage.names_in(self.folder)
        return [int(name) for name in names if len(name) >= DIGITS and name.isdecimal()]

    def _load(self, number: int, device: str) -> Loaded:
        path = self._path(number)
        with _checked(path, number) as (file, state):
            try:
                tensors = load_file(file, device=device)
            except SafetensorError as error:
                raise _Damaged(f"{TENSORS} is not a safetensors file: {error}") from error
            if device == "cpu":  # the tensors map the file, which may be deleted
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            return Loaded(number, path, tensors, state)

    def _prune(self, newest: int) -> None:
        kept = 1
        for number in sorted(self._numbers(), reverse=True):
            # Delete a later checkpoint only if `load` skipped it.
            if number == newest or (number > newest and number not in self._passed_over):
                continue
            if number < newest and kept < self.keep and self._is_sound(number):
                kept += 1
            else:
                storage.remove(self._path(number) / CARD)  # first: without it the rest is skipped
                storage.remove(self._path(number))

    def _is_sound(self, number: int) -> bool:
        if number in self._sound:
            return True
        try:
            with _checked(self._path(number), number):
                self._sound.add(number)
                return True
        except (_Damaged, _Unfinished) as error:
            log.warning("%s is deleted: %s", self._path(number), error)
            return False


class _Damaged(Exception):
    """Damage of a completed checkpoint."""


class _Unfinished(Exception):
    """Folder of a checkpoint that was never completed."""


@contextmanager
def _checked(path: UPath, number: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Validate a checkpoint; yield its tensors as a local file, and its state."""
    with tempfile.TemporaryDirectory(prefix="mla-checkpoint-") as scratch:
        try:
            document = _card(path, number)
            folder = Path(path.path if storage.is_local(path) else scratch)
            if not storage.is_local(path):
                storage.download(path, folder)
            measured = storage.patiently(
                partial(_measure, folder / TENSORS), what=f"reading {path}"
            )
        except FileNotFoundError as error:
            raise _Damaged(f"{TENSORS} is missing") from error
        except OSError as error:
            # EIO of a local disk means that the file is damaged. A network error may pass.
            if storage.is_local(path) and error.errno == errno.EIO:
                raise _Damaged(f"the disk cannot read it: {error}") from error
            raise
        if measured != (document["size"], document["sha256"]):
            raise _Damaged(f"{TENSORS} ({measured[0]} bytes) does not match {CARD}")
        yield folder / TENSORS, document["state"]


def _card(path: UPath, number: int) -> dict[str, Any]:
    try:
        document = storage.read_json(path / CARD)
    except FileNotFoundError as error:
        raise _Unfinished(f"no {CARD}; writing the checkpoint was interrupted") from error
    except ValueError as error:
        raise _Damaged(str(error)) from error
    seal = document.pop("seal", None) if isinstance(document, dict) else None
    if seal is None or seal != _seal(document) or document.get("number") != number:
        raise _Damaged(f"{CARD} was changed or moved after it was written")
    sealed: dict[str, Any] = document
    return sealed


def _measure(file: Path) -> tuple[int, str]:
    return file.stat().st_size, _sha256(file)


def _seal(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document without its seal, in hex."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
