"""The generated reference equals the code: a changed flag or field shows in the diff."""

import importlib.util

import pytest

from tests.support import ROOT

REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generated: dict[str, str] = module.pages()
    return generated


@pytest.mark.parametrize("name", ["cli.md", "jobs.md", "openapi.json"])
def test_the_reference_is_up_to_date(name: str, pages: dict[str, str]) -> None:
    assert (REFERENCE / name).read_text() == pages[name], "run make docs"
