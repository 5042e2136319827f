"""Settings of an acquisition and of a fine-tuning, typed.

Unknown keys are refused before anything is loaded. A part that is given in part, such as
`nlt: {steps: 6}`, keeps the other defaults of that part.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from mla_ray.runtime.bundled import or_bundled
from mla_ray.runtime.setting_faults import depth, dotted, fault_of


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

    @model_validator(mode="before")
    @classmethod
    def _complete_parts(cls, given: Any) -> Any:
        """Defaults are those of the part: LE's learning rate is another than NLT's."""
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


Config = TypeVar("Config", bound=Training)


def load_config(path: Path) -> AcquireConfig:
    """Settings of an acquisition from a YAML file; those it does not name keep their defaults.

    A file that comes with mla-ray is found by its name, `configs/paper/nlt.yaml`, from any folder.

    Raises:
        ValueError: not YAML, or not of these settings; a line each names the key, what is wrong
            with it and what would be right.

    """
    return _load(path, AcquireConfig)


def load_finetune_config(path: Path) -> FinetuneConfig:
    """Settings of a fine-tuning, in the same way."""
    return _load(path, FinetuneConfig)


def _load(path: Path, kind: type[Config]) -> Config:
    try:
        given = yaml.safe_load(or_bundled(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"{path}: not a mapping of keys to values, as `seed: 1` is")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        known = list(_keys(kind))
        faults = [
            # Beyond what was given are pydantic's names for the members of a union.
            f"{path}: {dotted(each['loc'][: depth(given, each['loc'])])}: {fault_of(each, known)}"
            for each in error.errors()
        ]
        raise ValueError("\n".join(dict.fromkeys(faults))) from error


def _keys(kind: type[BaseModel]) -> Iterator[str]:
    """All keys of settings, nested ones with dots."""
    for name, field in kind.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from (f"{name}.{key}" for key in _keys(type(field.default)))
        else:
            yield name
