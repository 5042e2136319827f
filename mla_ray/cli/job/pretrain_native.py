"""Make a native on emoji:

    mla job pretrain_native --config jobs/configs/emoji-clip.yaml --out models/emoji-clip

Goes on where it was killed, from its last checkpoint. About an hour on two idle cores.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mla_ray.datasets.emoji import Emoji
from mla_ray.runtime.job import Job, run
from mla_ray.runtime.job_settings import JobSettings
from mla_ray.runtime.progress import Progress, Stopped
from mla_ray.training.pretraining import PretrainConfig, pretrain


class PretrainSettings(JobSettings, PretrainConfig):
    """Train an English native on emoji, then copy it into `out`; returns its held-out recall."""

    model_config = JobSettings.model_config

    out: Path
    """Folder for the native, in open_clip's layout."""
    run: Path = Path("runs/pretrain")
    """Checkpoint and metrics."""
    data: Path = Path("data")
    """Where data sets are kept."""


def main(settings: PretrainSettings, job: Job) -> object:
    def show(phase: str, done: int, total: int, figures: dict[str, float]) -> None:
        note = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        job.report(Progress(phase, done, total, note))
        if job.stop.is_set():
            raise Stopped(f"{phase} {done}/{total}; the last checkpoint is in {settings.run}")

    recall = pretrain(settings, Emoji(settings.data / "emoji"), settings.run, show)
    shutil.copytree(settings.run / "native", settings.out, dirs_exist_ok=True)
    return recall


def run_pretraining(argv: Sequence[str] | None = None) -> NoReturn:
    """Make the native that flags and file describe, and exit."""
    sys.exit(
        run(
            PretrainSettings,
            main,
            argv,
            name="jobs.pretrain_native",
            prog="mla job pretrain_native",
        )
    )
