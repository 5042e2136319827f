"""Promises of mla_ray.training.pretraining, on a dozen drawings of coloured shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mla_ray.datasets.emoji import Concept, Label
from mla_ray.model.native import Native
from mla_ray.training.pretraining import PretrainConfig, follow, pretrain

COLOURS = ("red", "green", "blue", "black")
SHAPES = ("disc", "square", "bar")
CONFIG = PretrainConfig(
    model={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {
            "context_length": 12,
            "hf_tokenizer_name": "in this folder",
            "width": 16,
            "heads": 2,
            "layers": 1,
            "pool_type": "eos",
            "eos_id": 2,
        },
    },
    steps=6,
    batch=8,
    warmup=2,
    vocab_size=300,
    checkpoint_every=2,
)


class Shapes:
    """What `pretrain` asks of `Emoji`."""

    concepts = tuple(
        Concept(f"{colour} {shape}", "test" if colour == "black" else "train")
        for colour in COLOURS
        for shape in SHAPES
    )

    def labels(self, language: str) -> dict[str, Label]:
        return {c.key: Label(c.key, tuple(c.key.split())) for c in self.concepts}

    def styles(self, key: str) -> tuple[str, ...]:
        return ("flat", "thin")

    def draw(self, style: str, key: str, size: int) -> Image.Image:
        colour, shape = key.split()
        image = Image.new("RGBA", (size, size))
        pen, margin = ImageDraw.Draw(image), size // (3 if style == "thin" else 5)
        box = (margin, margin, size - margin, size - margin)
        if shape == "disc":
            pen.ellipse(box, fill=colour)
        else:
            pen.rectangle(box if shape == "square" else (margin, 0, 2 * margin, size), fill=colour)
        return image

    def pixels(self, style: str, key: str, size: int) -> Any:
        canvas = Image.new("RGBA", (size, size), "white")
        canvas.alpha_composite(self.draw(style, key, size))
        return np.asarray(canvas.convert("RGB"))


def weights(run: Path) -> bytes:
    return (run / "native" / "open_clip_model.safetensors").read_bytes()


def make(run: Path, stop_at: int | None = None) -> list[float]:
    """The losses of the steps that were done."""
    losses = []

    def report(phase: str, done: int, total: int, figures: dict[str, float]) -> None:
        if phase == "training":
            losses.append(figures["loss"])
            if done == stop_at:
                raise KeyboardInterrupt

    pretrain(CONFIG, Shapes(), run, report)  # type: ignore[arg-type]
    return losses


def test_a_native_is_made_that_loads_and_a_killed_training_makes_the_same(tmp_path: Path) -> None:
    losses = make(tmp_path / "whole")
    assert len(losses) == CONFIG.steps
    assert losses[-1] < losses[0] - 1
    native = Native.load(str(tmp_path / "whole" / "native"))
    assert native.dim == 16
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", stop_at=5)  # a step after its checkpoint
    assert len(make(tmp_path / "parts")) == 2
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_running_average_keeps_its_share_and_takes_whole_numbers_as_they_are() -> None:
    average, model = (torch.nn.BatchNorm1d(2) for _ in range(2))
    torch.nn.init.constant_(average.weight, 1.0)
    torch.nn.init.constant_(model.weight, 3.0)
    model.num_batches_tracked.fill_(7)
    follow(average, model, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert int(average.num_batches_tracked) == 7
