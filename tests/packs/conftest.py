"""A store of two packs, and the library that serves them.

German has rows in float16, Hindi in float32, as packs of before.
"""

from pathlib import Path

import pytest

from mla_ray.model.native import Native
from mla_ray.packs.library import PackLibrary
from mla_ray.packs.store import PackStore
from tests.support.natives import MakePack


@pytest.fixture
def store(tmp_path: Path, make_pack: MakePack) -> Path:
    make_pack("de").with_half_rows().save(tmp_path / "store" / "de")
    make_pack("hi").save(tmp_path / "store" / "hi")
    return tmp_path / "store"


@pytest.fixture
def library(store: Path, native: Native) -> PackLibrary:
    library = PackLibrary(PackStore(str(store), native.fingerprint), native)
    library.refresh()
    return library
