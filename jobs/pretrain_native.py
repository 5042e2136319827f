"""Make a native on emoji: `python -m jobs.pretrain_native --out models/emoji-clip`.

Goes on where it was killed. About an hour on two idle cores.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
import yaml

from mla_ray.console import bars
from mla_ray.datasets.emoji import Emoji
from mla_ray.pretraining import PretrainConfig, pretrain
from mla_ray.training import Progress


def main(
    out: Annotated[Path, typer.Option(help="Folder for the native, in open_clip's layout.")],
    config: Annotated[Path, typer.Option()] = Path("jobs/configs/emoji-clip.yaml"),
    run: Annotated[Path, typer.Option(help="Checkpoint and metrics.")] = Path("runs/pretrain"),
    data: Annotated[Path, typer.Option()] = Path("data"),
) -> None:
    """Train, then copy the native into `out`; prints its held-out recall as JSON."""
    settings = PretrainConfig.model_validate(yaml.safe_load(config.read_text()))
    with bars() as report:

        def show(phase: str, done: int, total: int, figures: dict[str, float]) -> None:
            note = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            report(Progress(phase, done, total, note))

        recall = pretrain(settings, Emoji(data / "emoji"), run, show)
    shutil.copytree(run / "native", out, dirs_exist_ok=True)
    typer.echo(json.dumps(recall))


if __name__ == "__main__":
    typer.run(main)
