"""Promises of the package as a whole: what is in it, and what importing it costs.

Who may import whom is checked by import-linter (pyproject.toml), which `make check` runs.
"""

import ast
import json
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mla_ray
from tests.support import ROOT

MLA = str(Path(sys.executable).parent / "mla")
HEAVY = {"torch", "ray", "transformers", "open_clip", "qdrant_client"}
ROOMS = sorted(f"mla_ray.{m.name}" for m in pkgutil.iter_modules(mla_ray.__path__) if m.ispkg)


def imported(code: str, *argv: str, tmp_path: Path) -> set[str]:
    """Top-level modules in memory after `code` has run in a new process, in an empty folder."""
    show = "import atexit, json, sys\natexit.register(lambda: open('found', 'w').write("
    show += "json.dumps(list(sys.modules))))\n"
    ended = subprocess.run(
        [sys.executable, "-c", show + code, *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in json.loads((tmp_path / "found").read_text())}


def test_the_ground_floor_is_small() -> None:
    names = {m.name for m in pkgutil.iter_modules(mla_ray.__path__)} - {"__main__"}
    assert len(names) <= 14, names


def test_importing_the_library_or_a_room_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "\n".join(f"import {room}" for room in ["mla_ray", *ROOMS])
    assert not imported(code, tmp_path=tmp_path) & HEAVY


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["job", "--help"], ["acquire", "--help"], ["config"]]
)
def test_a_command_that_only_tells_loads_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    assert not imported("from mla_ray.cli import main; main()", *argv, tmp_path=tmp_path) & HEAVY


def test_settings_and_client_load_nothing_heavy(tmp_path: Path) -> None:
    code = "from mla_ray import AcquireConfig, AsyncClient, Client"
    assert not imported(code, tmp_path=tmp_path) & HEAVY


def test_tasks_that_only_read_or_write_load_no_model_code(tmp_path: Path) -> None:
    """Each process of Ray's that imports open_clip spends ten seconds on it."""
    code = "import mla_ray.index.table_blocks, mla_ray.index.sink, mla_ray.training.monitor"
    assert not imported(code, tmp_path=tmp_path) & {"torch", "open_clip", "transformers"}


def test_replicas_that_encode_nothing_load_no_model_code(tmp_path: Path) -> None:
    """Each process of Ray Serve's that imports torch and open_clip holds 400 MB for it."""
    code = "import mla_ray.serving.deployments, mla_ray.serving.local, mla_ray.packs.store"
    assert not imported(code, tmp_path=tmp_path) & {"torch", "open_clip", "transformers"}


def test_public_names_are_there_and_are_listed() -> None:
    for name in mla_ray.__all__:
        assert getattr(mla_ray, name).__name__ == name
        assert name in dir(mla_ray)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = mla_ray.Nothing


def test_every_room_says_what_it_is_for() -> None:
    for room in ROOMS:
        documented = __import__(room, fromlist=["__doc__"]).__doc__
        assert documented, room
        assert documented.strip(), room


@pytest.mark.parametrize(
    "argv", [["-m", "mla_ray"], ["-c", "from mla_ray.cli import main; main()"]]
)
def test_the_version_is_told(argv: list[str]) -> None:
    told = subprocess.run([sys.executable, *argv, "--version"], capture_output=True, text=True)
    assert told.stdout.strip() == f"mla-ray {version('mla-ray')}"


LONGEST_MODULE, LONGEST_BODY = 450, 60  # as CONTRIBUTING.md has them


def test_modules_and_the_bodies_of_functions_are_short() -> None:
    """Of a body its docstring does not count."""
    too_long = []
    folders = ("mla_ray", "jobs", "serve", "tuning", "benchmarks")
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        source = file.read_text()
        if (lines := len(source.splitlines())) > LONGEST_MODULE:
            too_long.append(f"{file}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > LONGEST_BODY:
                    too_long.append(f"{file}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long


def test_contributing_names_files_that_there_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = {file.partition(":")[0] for file in re.findall(r"(?<![\w/])[a-z_]+/[a-z_]+\.py", text)}
    assert len(files) > 40
    places = {file: ROOT if file.startswith("tests/") else ROOT / "mla_ray" for file in files}
    assert not [file for file, place in sorted(places.items()) if not (place / file).exists()]


def test_docs_name_files_that_there_are() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        f for page in pages for f in re.findall(r"(?:mla_ray|tests)/[\w/]+\.py", page.read_text())
    }
    assert len(named) > 10
    assert not [file for file in sorted(named) if not (ROOT / file).exists()]


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    nodes = [
        node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
    ]
    return {
        name
        for n in nodes
        for name in (n.module, *(f"{n.module}.{a.name}" for a in n.names))
        if name
    }


def test_the_walks_of_contributing_follow_imports() -> None:
    """A file that is drawn below another is imported by it."""
    walks = re.findall(r"```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)[
        1:
    ]
    sizes = []
    for walk in walks:
        above: list[str] = []
        lines = re.findall(r"^.*?[a-z_]+/[a-z_]+\.py", walk, re.MULTILINE)
        sizes.append(len(lines))
        for line in lines:
            file = re.sub(r"[^a-z_/.]", "", line)
            depth = line.index(file) // 2
            above = [*above[:depth], file]
            if depth:
                module = "mla_ray." + file.removesuffix(".py").replace("/", ".")
                assert module in imports_of(ROOT / "mla_ray" / above[depth - 1]), (
                    above[depth - 1],
                    file,
                )
    assert sizes == [22, 17, 7]
