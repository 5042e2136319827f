"""Job that trains an English native on emoji.

    mla job pretrain_native --config jobs/configs/emoji-clip.yaml --out models/emoji-clip

If the job was killed, it continues from its last checkpoint. It takes about an hour on two idle
cores.
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
    """Train an English native on emoji and copy it to `out`. The result is its held-out recall."""

    model_config = JobSettings.model_config

    out: Path
    """Folder for the native, in open_clip's layout."""
    run: Path = Path("runs/pretrain")
    """Run folder with the checkpoint and the metrics."""
    data: Path = Path("data")
    """Folder of the data sets."""


def main(settings: PretrainSettings, job: Job) -> object:
    """Train the native, copy it to `settings.out` and return its held-out recall.

    Raises:
        Stopped: The job received a stop request.

    """

    def show(phase: str, done: int, total: int, figures: dict[str, float]) -> None:
        note = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        job.report(Progress(phase, done, total, note))
        if job.stop.is_set():
            raise Stopped(f"{phase} {done}/{total}; the last checkpoint is in {settings.run}")

    recall = pretrain(settings, Emoji(settings.data / "emoji"), settings.run, show)
    shutil.copytree(settings.run / "native", settings.out, dirs_exist_ok=True)
    return recall


def run_pretraining(argv: Sequence[str] | None = None) -> NoReturn:
    """Train the native and exit. Flags and a file give its settings."""
    sys.exit(
        run(
            PretrainSettings,
            main,
            argv,
            name="jobs.pretrain_native",
            prog="mla job pretrain_native",
        )
    )
