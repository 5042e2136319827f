"""Promises of a training that is interrupted at the command line."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

MLA = Path(sys.executable).parent / "mla"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_ctrl_c_saves_says_where_and_leaves_nothing_else(
    workers: str, native_folder: Path, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    lines = [f"{en}\t{de}\tde" for en, de in zip(corpus["en"], corpus["de"], strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["source\ttarget\tlanguage", *lines]))
    nlt, le = ({"steps": steps, "batch": 4, "lr": 1e-3} for steps in (10**6, 0))
    config = {"nlt": nlt, "le": le, "vocab_size": 400}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [MLA, "acquire", "--language", "de", "--pairs", "pairs.tsv", "--out", "de"]
    command += ["--config", "config.yaml", "--native", native_folder]
    command += ["--workers", workers]
    with tempfile.TemporaryDirectory(prefix="mla-", dir="/tmp") as scratch:
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"TMPDIR": scratch},
        )  # fmt: skip
        with process:
            assert process.stderr
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("nlt "):
                    process.send_signal(signal.SIGINT)
                    break
            said += process.stderr.readlines()
        assert process.returncode == 130
        assert not [path for path in Path(scratch).iterdir() if path.name.startswith("mla-ray")]
    (run,) = (tmp_path / "runs").iterdir()
    assert list((run / "checkpoints").iterdir())
    remedy = f"saved in runs/{run.name}; run the same command again to continue"
    assert remedy in said[-1]
    ours = ("reading", "tokenising", "text features", "nlt ", "still working", "mla: ")
    assert [line for line in said if not line.startswith(ours)] == []
