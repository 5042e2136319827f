"""Settings of an acquisition and of a fine-tuning, typed.

Unknown keys are refused before anything is loaded.
"""

from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from mla_ray.runtime.bundled import or_bundled


class Stage(BaseModel):
    """One training stage. `batch` is of all workers together; zero steps skip the stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    steps: int = Field(ge=0)
    batch: int = Field(ge=2)
    lr: float = Field(gt=0)


class Evaluations(BaseModel):
    """Figures on data that training does not see, and what follows from them.

    With `every` the best weights so far are what a stage ends with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    every: int = Field(default=0, ge=0)
    """Steps; 0 never."""
    size: int = Field(default=1000, ge=2)
    """Most rows of a language."""
    patience: int = Field(default=0, ge=0)
    """Evaluations without a gain after which a stage ends; 0: it never does."""


class HeldOut(Evaluations):
    """AR of translations against their English texts, or of captions against their images."""

    of: Literal["pairs", "captions"] = "pairs"
    """`pairs`: taken from the first translation table, and away from training.
    `captions`: the rows of the caption table's split `validation`."""


class Training(BaseModel):
    """What an acquisition and a fine-tuning have in common: the paper's optimizer and loss."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    temperature: PositiveFloat | Literal["native"] = 0.01
    """Of texts and images: logits are cosines over it. The paper fixes 0.01; `native` takes the
    native's own."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of a stage's steps with a linear warm-up; cosine decay to zero follows."""
    weight_decay: float = Field(default=0.2, ge=0)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where a GPU has it, else fp32."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps."""
    seed: int = Field(default=0, ge=0, lt=2**32)


class AcquireConfig(Training):
    """Set for a native of emoji-clip's size on a laptop.

    LE has the paper's share of NLT's steps, a tenth, and of its learning rate, a thirtieth.
    """

    nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)
    le: Stage = Stage(steps=20, batch=256, lr=3e-5)
    vocabulary: str = "learned"
    """`learned`, or a Hugging Face BERT by folder or hub name, `bert-base-multilingual-cased`."""
    vocab_size: int = Field(default=24_000, ge=300)
    """Of a learned vocabulary."""
    sample: int = Field(default=100_000, ge=1)
    """Rows of each table that vocabulary and alignment are learned from: memory grows with it."""
    rows: Literal["aligned", "random"] = "aligned"
    """Where the rows of a learned vocabulary start (`mla_ray.model.alignment`)."""
    hidden: int | None = Field(default=None, ge=1)
    """H of the acquirers; half the native's text width if not given, as in the paper."""
    acquirers: bool = True
    """Whether acquirers train; else they stay the identity that they start as: an ablation."""
    held_out: HeldOut = HeldOut()

    def text_only(self) -> "AcquireConfig":
        """NLT alone: what is left without a caption table."""
        return self.model_copy(update={"le": self.le.model_copy(update={"steps": 0})})


class FinetuneConfig(Training, Stage):
    """Of the native's own training on English captions (`mla_ray.training.finetuning`).

    Set for a native of emoji-clip's size on a laptop.
    """

    steps: int = Field(default=100, ge=0)
    batch: int = Field(default=128, ge=2)
    lr: float = Field(default=3e-5, gt=0)
    held_out: Evaluations = Evaluations()
    """AR of captions against their images, in the caption table's split `validation`."""


Config = TypeVar("Config", bound=BaseModel)


def load_config(path: Path) -> AcquireConfig:
    """Settings of an acquisition from a YAML file; those it does not name keep their defaults.

    A file that comes with mla-ray is found by its name, `configs/paper/nlt.yaml`, from any folder.
    """
    return _load(path, AcquireConfig)


def load_finetune_config(path: Path) -> FinetuneConfig:
    """Settings of a fine-tuning, in the same way."""
    return _load(path, FinetuneConfig)


def _load(path: Path, kind: type[Config]) -> Config:
    try:
        return kind.model_validate(yaml.safe_load(or_bundled(path).read_text()) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
