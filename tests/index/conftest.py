"""A place to open collections in, of every kind there is, and a folder of pictures."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mla_ray.index.server import connect
from tests.index.places import SERVERS, Memory, Place, Url, forget


@pytest.fixture(
    params=["memory", "edge", *(pytest.param(s, marks=pytest.mark.server) for s in SERVERS)]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    match request.param:
        case "memory":
            yield Memory()
        case "edge":
            yield Url(f"edge:{tmp_path}")
        case scheme:
            url = os.environ.get(SERVERS[scheme])
            if not url:
                pytest.skip(f"{SERVERS[scheme]} is not set")
            client = connect(url)
            forget(client)
            yield Url(url)
            forget(client)


@pytest.fixture
def images(tmp_path: Path, pngs: list[bytes]) -> Path:
    """Pictures `p0.png` to `p11.png`."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, png in enumerate(pngs):
        (folder / f"p{number}.png").write_bytes(png)
    return folder
