"""Typed settings of an acquisition and of a fine-tuning.

Unknown keys are an error before anything is loaded. A section that names only some keys, such as
`nlt: {steps: 6}`, keeps the section's defaults for the others.
"""

from collections.abc import Mapping
from operator import not_
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from mla_ray.runtime.settings_file import load_settings


class Stage(BaseModel):
    """Settings of one training stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    steps: int = Field(ge=0)
    """Number of steps; 0 skips the stage."""
    batch: int = Field(ge=2)
    """Rows of a step, over all workers."""
    lr: float = Field(gt=0)
    """Peak learning rate."""


class Evaluations(BaseModel):
    """Settings of the evaluations on held-out data.

    If `every` is not 0, a stage ends with the best weights so far.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 disables them."""
    size: int = Field(default=1000, ge=2)
    """Maximum number of rows per language."""
    patience: int = Field(default=0, ge=0)
    """Evaluations without improvement after which a stage ends; 0 disables early stopping."""


class HeldOut(Evaluations):
    """AR of held-out translations against English texts, or of held-out captions against images."""

    of: Literal["pairs", "captions"] = "pairs"
    """`pairs`: rows of the first translation table, which are removed from training.
    `captions`: rows of the caption table's split `validation`."""


class Training(BaseModel):
    """Settings that acquisition and fine-tuning share: the paper's optimizer and loss."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    temperature: PositiveFloat | Literal["native"] = 0.01
    """Temperature of the contrastive loss: logits are cosines divided by it. The paper fixes 0.01;
    `native` takes the native model's own temperature."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of a stage's steps with linear warm-up; cosine decay to zero follows."""
    weight_decay: float = Field(default=0.2, ge=0)
    """Decoupled weight decay of matrices; vectors and scalars have none."""
    clip: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU that supports it, otherwise fp32."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _complete_parts(cls, given: Any) -> Any:
        """Fill in the defaults of a section. They depend on the section: NLT's `lr` is not LE's."""
        if not isinstance(given, Mapping):
            return given
        return {key: cls._complete(key, value) for key, value in given.items()}

    @classmethod
    def _complete(cls, key: Any, value: Any) -> Any:
        field = cls.model_fields.get(key)
        if field is None or not isinstance(field.default, BaseModel):
            return value
        return {**field.default.model_dump(), **value} if isinstance(value, Mapping) else value


class AcquireConfig(Training):
    """Settings of an acquisition.

    The defaults suit a native model of emoji-clip's size on a laptop. As in the paper, LE has a
    tenth of NLT's steps and about a thirtieth of its learning rate.
    """

    nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)
    le: Stage = Stage(steps=20, batch=256, lr=3e-5)
    vocabulary: str = "learned"
    """`learned`, or the folder or hub name of a Hugging Face BERT, such as
    `bert-base-multilingual-cased`."""
    vocab_size: int = Field(default=24_000, ge=300)
    """Maximum number of tokens of a learned vocabulary."""
    sample: int = Field(default=100_000, ge=1)
    """Rows of each table for learning vocabulary and alignment. Memory grows with it."""
    rows: Literal["aligned", "random"] = "aligned"
    """Initial values of the rows of a learned vocabulary (`mla_ray.model.alignment`)."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden size of the acquirers. By default half the native's text width, as in the paper."""
    # Left out where it is off, so that runs and records from before it existed stay the same.
    activation_checkpointing: bool = Field(default=False, exclude_if=not_)
    """Keep only the input of each block for the backward pass, and compute the rest again. A step
    takes half as long again, and a tenth of the memory."""
    acquirers: bool = True
    """Whether the acquirers train. If not, they stay the identity, which serves as an ablation."""
    held_out: HeldOut = HeldOut()

    def text_only(self) -> "AcquireConfig":
        """Return a copy without LE, for a run without a caption table."""
        return self.model_copy(update={"le": self.le.model_copy(update={"steps": 0})})


class FinetuneConfig(Training, Stage):
    """Settings for fine-tuning a native model on English captions (`mla_ray.training.finetuning`).

    The defaults suit a native model of emoji-clip's size on a laptop.
    """

    steps: int = Field(default=100, ge=0)
    batch: int = Field(default=128, ge=2)
    lr: float = Field(default=3e-5, gt=0)
    held_out: Evaluations = Evaluations()
    """AR of captions against their images, on the caption table's split `validation`."""


def load_config(path: Path) -> AcquireConfig:
    """Load the settings of an acquisition from a YAML file.

    Keys that the file does not name keep their defaults. A file that is bundled with mla-ray, such
    as `configs/paper/nlt.yaml`, is found by this name from any folder.

    Raises:
        ValueError: The file is not YAML, or has an invalid key or value. The message has one line
            per fault: the key, what is wrong, and what would be right.

    """
    return load_settings(path, AcquireConfig)


def load_finetune_config(path: Path) -> FinetuneConfig:
    """Load the settings of a fine-tuning from a YAML file, as `load_config` does."""
    return load_settings(path, FinetuneConfig)
