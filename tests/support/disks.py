"""Small disks that a test may fill."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MB = 2**20


@contextmanager
def mounted_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount an ext4 of `size` bytes on `folder`/disk and yield that path, or skip."""
    at, image = folder / "disk", folder / "image"
    at.mkdir()
    image.touch()
    os.truncate(image, size)
    with _mounted(at, ["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image)]):
        yield at
    image.unlink()


@contextmanager
def mounted_memory(folder: Path, size: int) -> Iterator[Path]:
    """Mount a tmpfs of `size` bytes on `folder`/disk and yield that path, or skip.

    Holes in its files are filled by reading.
    """
    at = folder / "disk"
    at.mkdir()
    with _mounted(at, ["mount", "-t", "tmpfs", "-o", f"size={size}", "none"]):
        yield at


@contextmanager
def _mounted(at: Path, *commands: list[str]) -> Iterator[None]:
    path = "/usr/sbin:/sbin:" + os.environ["PATH"]
    for command in commands:
        if not shutil.which(command[0], path=path):
            pytest.skip(f"no {command[0]} here")
        full = [*command, str(at)] if command is commands[-1] else command
        if subprocess.run(full, capture_output=True, env={"PATH": path}).returncode:
            pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all but `leave` bytes of a disk. Return the file that takes them."""
    taken = disk / "taken"
    with taken.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return taken
