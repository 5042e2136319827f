"""A store of two packs, German and Hindi, and the library that serves them."""

from pathlib import Path

import pytest

from mla_ray.model.native import Native
from mla_ray.packs.library import PackLibrary
from mla_ray.packs.store import PackStore
from tests.support.natives import MakePack


@pytest.fixture
def store(tmp_path: Path, make_pack: MakePack) -> Path:
    for language in ("de", "hi"):
        make_pack(language).save(tmp_path / "store" / language)
    return tmp_path / "store"


@pytest.fixture
def library(store: Path, native: Native) -> PackLibrary:
    library = PackLibrary(PackStore(str(store), native.fingerprint), native)
    library.refresh()
    return library
