"""Promises of progress where there is no terminal."""

import os
import subprocess
import sys

from tests.support import ROOT

# A phase of which little is heard, then a table whose words are longer than 80 columns together.
QUIET = """
import time
from rich.table import Table
from mla_ray.runtime import console
from mla_ray.runtime.progress import Progress
console.EVERY_S = 0.2
with console.bars() as report:
    time.sleep(0.9)
    report(Progress("reading", 1, 3))
    time.sleep(0.9)
    report(Progress("reading", 3, 3))
table = Table()
for number in range(6):
    table.add_column("Donaudampfschifffahrt" + str(number))
console.stdout.print(table)
"""


def test_without_a_terminal_there_are_lines_and_tables_keep_their_words() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-c", QUIET]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    lines = run.stderr.splitlines()
    assert lines[0] == "still working, last: starting"
    assert "reading 1/3 33%" in lines
    assert "still working, last: reading 1/3 33%" in lines
    assert lines[-1].startswith("reading 3/3 100%")
    assert "\x1b" not in run.stderr
    for number in range(6):
        assert f"Donaudampfschifffahrt{number}" in run.stdout
