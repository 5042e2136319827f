"""Run the benchmarks that take minutes, and write their tables into benchmarks/RESULTS.md.

    python -m benchmarks.report [NAME ...] [--render]         (`make bench` runs all: 15 minutes)

Each benchmark is a program of this folder with `--json FILE` and a function `table`, which makes
the rows of a table from the figures in that file. The figures are kept in
`benchmarks/results/NAME.json` with the machine, date and commit. RESULTS.md has a pair of markers
for each benchmark, and what is between them is written anew. `--render` only writes the tables of
the figures that are there.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

Record = dict[str, Any]
"""Content of `results/NAME.json`: the figures of a run and what they were measured on."""

HERE = Path(__file__).parent
RESULTS, KEPT = HERE / "RESULTS.md", HERE / "results"
BENCHMARKS = {
    "step": ["--batch", "32", "--rounds", "1"],
    "start": ["--rounds", "3"],
    "server_memory": [],
    "together": [],
    "retrieval": [],
}
"""Options of the benchmarks by name, which take about 15 minutes together on two cores."""
LIBRARIES = ("torch", "ray", "open_clip_torch", "qdrant-edge-py")


def machine() -> dict[str, Any]:
    """Describe this machine: processor, cores, memory, card, system, load and libraries."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = {key.strip(): value.strip() for key, _, value in (n.partition(":") for n in lines)}
    flags = set(about.get("flags", "").split())
    card = subprocess.run(
        ["sh", "-c", "nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {
        "processor": about.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "AVX-512": "avx512f" in flags,
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16"}),
        "memory, GB": round(psutil.virtual_memory().total / 1e9),
        "card": card or None,
        "load": round(os.getloadavg()[0], 1),
        "libraries": {"Python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }


def run(name: str) -> Record:
    """Run a benchmark in its own process, and return its record.

    Raises:
        SystemExit: The benchmark failed.

    """
    on, command = machine(), ["python", f"benchmarks/{name}.py", *BENCHMARKS[name]]
    revision = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(revision, cwd=HERE, capture_output=True, text=True).stdout.strip()
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryDirectory(prefix="mla-bench-") as scratch:
        figures, began = Path(scratch) / "figures.json", time.perf_counter()
        started = [sys.executable, *command[1:], "--json", str(figures)]
        ended = subprocess.run(started, cwd=HERE.parent, env=environment)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}")
        return {
            "command": " ".join(command),
            "seconds": round(time.perf_counter() - began),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit,
            "machine": on,
            "figures": json.loads(figures.read_text()),
        }


def sentence(record: Record) -> str:
    """Return what was run, when, and on which machine, for the reader of a table."""
    on = record["machine"]
    has = [name if on[name] else f"no {name}" for name in ("AVX-512", "bf16")]
    about = [on["processor"], f"{on['cores']} cores", *has, f"{on['memory, GB']} GB"]
    about += [on["card"] or "no GPU", f"load {on['load']} before the run"]
    libraries = ", ".join(f"{name} {number}" for name, number in on["libraries"].items())
    return (
        f"`{record['command']}`, {record['seconds']} s, {record['date']}, commit "
        f"{record['commit']}. {', '.join(about)}; {libraries}."
    )


def render(name: str, record: Record) -> str:
    """Return the text of a benchmark: what was run, and the table of its figures."""
    module = importlib.import_module(f"benchmarks.{name}")
    head, *rows = module.table(record["figures"])
    lines = [head, ["---"] * len(head), *rows]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{sentence(record)}\n\n{drawn}\n"


def with_blocks(text: str, blocks: dict[str, str]) -> str:
    """Return `text` with these blocks between their markers.

    Raises:
        ValueError: A marker is missing.

    """
    for name, block in blocks.items():
        first, last = f"<!-- {name}: written by `make bench` -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(first)}\n.*?{re.escape(last)}", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise ValueError(f"{RESULTS}: no lines {first!r} and {last!r}; add them")
        written = f"{first}\n\n{block}\n{last}"  # an empty line ends a table
        text = text[: found.start()] + written + text[found.end() :]
    return text


def records() -> dict[str, Record]:
    """Return the records that are kept, by benchmark."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))}


def main() -> None:
    """Parse the options, run the benchmarks, keep their figures and write RESULTS.md."""
    parser = argparse.ArgumentParser("report.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the tables")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {[*BENCHMARKS]}")
    KEPT.mkdir(exist_ok=True)
    for name in [] if args.render else args.names or BENCHMARKS:
        record = json.dumps(run(name), indent=2) + "\n"
        (KEPT / f"{name}.json").write_text(record)
    blocks = {name: render(name, record) for name, record in records().items()}
    RESULTS.write_text(with_blocks(RESULTS.read_text(), blocks))


if __name__ == "__main__":
    main()
