"""Checkpoints of a training: a damaged one costs only the steps since the one before.

    <folder>/0000001200/state.safetensors    tensors: weights and optimizer
    <folder>/0000001200/checkpoint.json      state, and size and SHA-256 of the other; written last

A folder without `checkpoint.json` is one whose writing was broken off, and counts for nothing. No
pickle: a checkpoint runs no code.
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
    """A checkpoint as it was saved.

    Attributes:
        number: as `Checkpoints.save` was given it.
        path: its folder.
        tensors: on the device asked for.
        state: what JSON makes of what was saved: tuples are lists, keys are strings.

    """

    number: int
    path: UPath
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors that are called `name/...`, by the rest of their names."""
        start = f"{name}/"
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}


class Checkpoints:
    """The checkpoints in `folder`, of which `keep` sound ones stay. One process saves."""

    def __init__(self, folder: UPath, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, must be at least 1")
        self.folder = folder
        self.keep = keep
        self._sound: set[int] = set()  # written or read whole by this process
        self._passed_over: set[int] = set()

    def save(self, number: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> UPath:
        """Write a checkpoint, then remove those that are not needed any more.

        Args:
            number: grows over a run: steps done so far. A checkpoint of the same number is
                replaced; a later one that `load` passed over is removed.
            tensors: from any device.
            state: what JSON can hold.

        Returns:
            The checkpoint's folder.

        """
        path = self._path(number)
        # Not in `folder`: that may be away or read-only now, and `upload` waits for it.
        with tempfile.TemporaryDirectory(prefix="mla-checkpoint-") as scratch:
            file = Path(scratch) / TENSORS
            # As JSON gives it back, and refused before anything is written if it is none.
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
        except OSError as error:  # the new one is safe, and that is what counts
            log.warning("%s: old checkpoints stay: %s", self.folder, error)
        return path

    def load(self, device: str = "cpu") -> Loaded | None:
        """The newest sound checkpoint; None if there is none at all.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
            OSError: the storage cannot be read. That says nothing about the checkpoints.

        """
        damaged = []
        for number in sorted(self._numbers(), reverse=True):
            try:
                loaded = self._load(number, device)
            except _Unfinished as error:
                log.warning("%s passed over: %s", self._path(number), error)
            except _Damaged as error:
                log.warning("%s passed over: %s", self._path(number), error)
                damaged.append(f"{number:0{DIGITS}d}: {error}")
            else:
                self._sound.add(number)
                return loaded
            self._passed_over.add(number)
        if damaged:
            raise ValueError(
                f"{self.folder}: no checkpoint is sound ({'; '.join(damaged)}); put one back from "
                "a backup, or delete this folder to start anew"
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
                raise _Damaged(f"{TENSORS} is no safetensors file: {error}") from error
            if device == "cpu":  # they are the file, mapped, and the file may be removed
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            return Loaded(number, path, tensors, state)

    def _prune(self, newest: int) -> None:
        kept = 1
        for number in sorted(self._numbers(), reverse=True):
            # A later one that this process never looked at is not its to remove.
            if number == newest or (number > newest and number not in self._passed_over):
                continue
            if number < newest and kept < self.keep and self._is_sound(number):
                kept += 1
            else:
                storage.remove(self._path(number) / CARD)  # first, so that it counts for nothing
                storage.remove(self._path(number))

    def _is_sound(self, number: int) -> bool:
        if number in self._sound:
            return True
        try:
            with _checked(self._path(number), number):
                self._sound.add(number)
                return True
        except (_Damaged, _Unfinished) as error:
            log.warning("%s is removed: %s", self._path(number), error)
            return False


class _Damaged(Exception):
    """What is wrong with a checkpoint."""


class _Unfinished(Exception):
    """It never was a checkpoint."""


@contextmanager
def _checked(path: UPath, number: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The tensors of a checkpoint as a local file, and its state, once they are found sound."""
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
            # A disk that cannot read a file back has damaged it; a network has not.
            if storage.is_local(path) and error.errno == errno.EIO:
                raise _Damaged(f"the disk cannot read it: {error}") from error
            raise
        if measured != (document["size"], document["sha256"]):
            raise _Damaged(f"{TENSORS} ({measured[0]} bytes) is not what {CARD} tells of")
        yield folder / TENSORS, document["state"]


def _card(path: UPath, number: int) -> dict[str, Any]:
    try:
        document = storage.read_json(path / CARD)
    except FileNotFoundError as error:
        raise _Unfinished(f"no {CARD}, its writing was broken off") from error
    except ValueError as error:
        raise _Damaged(str(error)) from error
    seal = document.pop("seal", None) if isinstance(document, dict) else None
    if seal is None or seal != _seal(document) or document.get("number") != number:
        raise _Damaged(f"{CARD} is not as it was written")
    sealed: dict[str, Any] = document
    return sealed


def _measure(file: Path) -> tuple[int, str]:
    return file.stat().st_size, _sha256(file)


def _seal(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document without its seal."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
