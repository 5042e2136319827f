"""Promises of benchmarks/report.py: the generated tables of RESULTS.md are those of the figures."""

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.server_memory import role

RECORD: report.Record = {
    "command": "python benchmarks/together.py",
    "seconds": 7,
    "date": "2026-01-02",
    "commit": "abc",
    "machine": report.machine(),
    "figures": {"edge, one by one": {"ms": 27.24, "cpu": 23.2}},
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A RESULTS.md with the markers of one benchmark, and no figures yet."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "KEPT", tmp_path / "results")
    text = "# Results\n\nby hand\n\n<!-- together: written by `make bench` -->\nold\n"
    report.RESULTS.write_text(text + "<!-- end of together -->\n\nalso by hand\n")
    return report.RESULTS


def test_every_generated_table_is_that_of_the_figures_that_are_kept() -> None:
    text = report.RESULTS.read_text()
    blocks = {name: report.render(name, record) for name, record in report.records().items()}
    assert report.with_blocks(text, blocks) == text
    pattern = r"<!-- (\w+): written by `make bench` -->\n(.*?)<!-- end of \1 -->"
    marked = re.findall(pattern, text, re.DOTALL)
    assert sorted(name for name, _ in marked) == sorted(report.BENCHMARKS)
    assert [name for name, block in marked if block.strip() and name not in blocks] == []


def test_a_table_is_written_between_its_markers_and_nothing_else_changes(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "run", lambda name: RECORD)
    monkeypatch.setattr(sys, "argv", ["report.py", "together"])
    for _ in range(2):
        report.main()
    assert json.loads((report.KEPT / "together.json").read_text()) == RECORD
    before, _, rest = results.read_text().partition("<!-- together: written by `make bench` -->\n")
    block, _, after = rest.partition("<!-- end of together -->")
    assert (before, after) == ("# Results\n\nby hand\n\n", "\n\nalso by hand\n")
    assert "`python benchmarks/together.py`, 7 s, 2026-01-02, commit abc." in block
    assert block.endswith("| edge, one by one | 27.2 | 23.2 |\n\n")


def test_the_machine_is_told(results: Path) -> None:
    told = report.sentence(RECORD)
    assert f"{RECORD['machine']['cores']} cores" in told
    assert "AVX-512" in told
    assert f"torch {RECORD['machine']['libraries']['torch']}" in told


def test_a_marker_that_is_missing_and_a_name_that_is_unknown_are_named(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="<!-- step: written by"):
        report.with_blocks(results.read_text(), {"step": "| |\n"})
    monkeypatch.setattr(sys, "argv", ["report.py", "nothing"])
    with pytest.raises(SystemExit):
        report.main()
    assert "no benchmark nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["ray::ServeReplica:mla-ray:TextEncoder"], "TextEncoder"),
        (["ray::ServeReplica:mla-ray:Index.search"], "Index"),
        (["/ray/core/src/ray/raylet/raylet", "--x"], "Ray: raylet"),
        (["python", "-u", "/ray/dashboard/agent.py"], "Ray: agents"),
        (["sleep", "1"], "other"),
    ],
)
def test_processes_of_a_server_are_told_by_their_roles(command: list[str], expected: str) -> None:
    assert role(command) == expected
