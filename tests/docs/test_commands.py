"""The shell blocks of README and docs: each is run here, or listed with the reason why not.

They run as they are shown, except for the native (`emoji-clip`, which needs no hub), the port, and
the number and size of the trials of a sweep.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.support import ROOT
from tests.support.commands import Mla
from tests.support.server import serving

RUN = {
    ("README.md", "mla acquire --language cs"): "cs",
    ("docs/photos.md", "mla acquire --language cs"): "cs",
    ("docs/tuning.md", "mla sweep --language sw"): "sw",
}
"""Language that the tables of a block have beside English."""
NOT_RUN = {
    ("README.md", "make demo"): "the demo and the tests themselves",
    ("docs/index.md", "make demo"): "the demo itself",
    ("docs/gpu-box.md", "make .venv/.installed"): "needs a GPU",
    ("docs/jobs.md", "ray job submit"): "tests/cluster/test_submitted.py submits such a job",
    ("docs/kubernetes.md", "helm repo add"): "needs Kubernetes",
    ("docs/kubernetes.md", "kubectl apply -f kuberay/raycluster.yaml"): "needs Kubernetes",
    ("docs/kubernetes.md", "kubectl apply -f kuberay/rayservice.yaml"): "needs Kubernetes",
    ("docs/laptop.md", "make .venv/.installed"): "tests/pipeline/test_pipeline.py runs this plan",
    ("docs/laptop.md", "export RAY_AUTH_MODE"): "ray stop would end other Rays of this user",
    ("docs/ray-up.md", "mkdir -m 700"): "needs AWS",
    ("docs/ray-up.md", "SG=$(aws"): "needs AWS",
    ("docs/ray-up.md", "ray rsync-up"): "needs AWS",
    ("docs/serving.md", "curl http"): "tests/serving/test_collections.py corrects a caption",
    ("docs/serving.md", "curl --get"): "README has the same request",
    ("docs/serving.md", "make serve"): "the demo's own tests serve its folder",
    ("docs/serving.md", "export RAY_AUTH_MODE"): "tests/cluster/ deploys this file",
    ("docs/sharing.md", "export HF_TOKEN"): "needs a hub; tests/packs/test_hub.py has one",
    ("docs/sharing.md", "pip install"): "changes the environment",
    ("docs/sharing.md", "mla pack import-official"): "needs the paper's checkpoint",
    ("docs/video.md", "mla data animated"): "half an hour of training on 9,500 videos",
}
IMAGES, PAIRS = 150, 2000  # of each split; of each language
TRIALS = "--trials 2 --space small.yaml"
SPACE = """\
trials: 2
settings:
  nlt: {steps: 18, batch: 128, lr: 1.0e-3}
  le: {steps: 2, batch: 128, lr: 3.0e-5}
parameters:
  nlt.lr: {low: 3.0e-4, high: 1.0e-2, log: true}
  steps: {choices: [10, 20]}
"""
BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, list[str]]:
    """Shell blocks by page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(page.relative_to(ROOT)): BLOCK.findall(page.read_text()) for page in pages}


def commands(block: str) -> list[str]:
    """Commands of a block, continued lines joined, comments removed."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for raw in lines if (line := re.sub(r"\s+#.*$", "", raw).strip())]


def test_every_shell_block_is_run_or_has_a_reason() -> None:
    listed = [*RUN, *NOT_RUN]
    found = [(page, commands(block)) for page, of in blocks().items() for block in of]
    missing = [
        (page, block[0])
        for page, block in found
        if not any(page == of and block[0].startswith(start) for of, start in listed)
    ]
    assert not missing
    stale = [
        (of, start)
        for of, start in listed
        if not any(page == of and block[0].startswith(start) for page, block in found)
    ]
    assert not stale


def test_the_commands_that_are_shown_exist(mla: Mla) -> None:
    """Each `mla` command and flag that a shell block shows is one that `mla` has."""
    helps: dict[str, str] = {}
    for page, of in blocks().items():
        for line in (line for block in of for line in commands(block)):
            for words in re.findall(r"\bmla ((?:(?:data|pack|job) )?[a-z-]+)((?: [^|;&]*)?)", line):
                command, rest = words
                if command not in helps:
                    shown = mla(*command.split(), "--help")
                    assert shown.code == 0, (page, line)
                    helps[command] = shown.out
                if command.startswith("job "):
                    continue  # their flags go through a parser of their own
                for flag in re.findall(r"(?<=[\s\[])--[a-z][a-z-]*", rest):
                    assert re.search(rf"{flag}\b", helps[command]), (page, line, flag)


def project(mla: Mla, tmp_path: Path, language: str) -> Path:
    """Make a folder as a user has one: pictures, captions in two languages, translations."""
    data, tables = Path(os.environ.get("MLA_DATA", ROOT / "data")), tmp_path / "tables"
    made = mla("data", "emoji", "--languages", f"en,{language}", "--data", data, "--out", tables)
    assert made.code == 0, made.err
    folder = tmp_path / "project"
    (folder / "photos").mkdir(parents=True)
    table = pq.read_table(tables / "captions.parquet").to_pylist()
    splits = dict.fromkeys(row["split"] for row in table)
    ids = {
        image_id
        for split in splits
        for image_id in list(
            dict.fromkeys(row["image_id"] for row in table if row["split"] == split)
        )[:IMAGES]
    }
    rows = [row for row in table if row["image_id"] in ids]
    for row in rows:
        image = f"photos/{re.sub('[^a-z0-9]+', '-', row['image_id'])}.png"
        (folder / image).write_bytes(row["image"])
        row["image"] = image
    captions = pa.Table.from_pylist(rows)
    pa.csv.write_csv(captions, folder / "captions.csv")
    pq.write_table(captions, folder / "captions.parquet")
    pairs = pq.read_table(tables / f"pairs-{language}.parquet")[:PAIRS]
    pa.csv.write_csv(pairs, folder / "pairs.csv")
    pa.csv.write_csv(pairs, folder / "pairs.tsv", pa.csv.WriteOptions(delimiter="\t"))
    (folder / "small.yaml").write_text(SPACE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("page", "start"), sorted(RUN))
def test_a_shell_block_runs_as_it_is_shown(page: str, start: str, mla: Mla, tmp_path: Path) -> None:
    folder = project(mla, tmp_path, RUN[page, start])
    [block] = [c for c in map(commands, blocks()[page]) if c[0].startswith(start)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with ExitStack() as servers:
        url = "http://127.0.0.1:8000"
        for shown in block:
            command = shown.replace("ViT-B-32/openai", "emoji-clip").replace("--trials 24", TRIALS)
            if command.startswith("mla serve"):
                flags = shlex.split(command)[2:]
                url = servers.enter_context(serving(*flags, folder=folder)).url
                continue
            ran = subprocess.run(
                ["bash", "-c", command.replace("http://127.0.0.1:8000", url.rstrip("/"))],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=1800,
            )
            assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
            if command.startswith("curl"):
                assert json.loads(ran.stdout)["hits"], ran.stdout
