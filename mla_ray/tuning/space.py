"""Search spaces as data: which settings of an acquisition a sweep varies, and how.

A parameter is a key of `AcquireConfig` (`nlt.lr`, `weight_decay`), or one of

    steps      of both stages together
    le_share   the part of `steps` that LE has
    batch      of both stages

The presets beside this file show the form.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mla_ray.runtime.bundled import ROOT
from mla_ray.training.config import AcquireConfig, HeldOut
from mla_ray.training.run_spec import OF_TABLES
from mla_ray.tuning.outcome import Settings, Value

PRESETS = ROOT / "tuning" / "presets"
OF_BOTH = ("steps", "le_share", "batch")


class Range(BaseModel):
    """Numbers from `low` to `high`; whole ones if both are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("low has to be below high")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self

    @property
    def ends(self) -> list[Value]:
        return [self.low, self.high]

    def nearest(self, value: Value) -> Value:
        if isinstance(value, str):
            return self.low
        near = min(max(value, self.low), self.high)
        return round(near) if isinstance(self.low, int) and isinstance(self.high, int) else near


class Choices(BaseModel):
    """One of a few values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choices: list[Value] = Field(min_length=1)

    @property
    def ends(self) -> list[Value]:
        return self.choices

    def nearest(self, value: Value) -> Value:
        if value in self.choices or isinstance(value, str):
            return value if value in self.choices else self.choices[0]
        numbers = [choice for choice in self.choices if not isinstance(choice, str)]
        return min(numbers, key=lambda n: abs(n - value)) if numbers else self.choices[0]


class Space(BaseModel):
    """What a sweep tries, and how long."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    about: str = ""
    """For whom it is."""
    trials: int = Field(ge=1)
    """Of a language, if the command does not say."""
    evaluations: int = Field(default=5, ge=2, le=50)
    """Looks at a trial's validation AR, evenly over its steps."""
    grace: int = Field(default=20, ge=1, le=100)
    """Percent of its steps before a trial may be stopped."""
    reduction: float = Field(default=3, gt=1)
    """One trial in so many goes on past `grace`, and past each of its multiples by this factor."""
    settings: Settings = {}
    """Of all trials, as in the configuration of an acquisition."""
    parameters: dict[str, Range | Choices] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_of_an_acquisition(self) -> "Space":
        AcquireConfig.model_validate(self.settings)
        for name, domain in self.parameters.items():
            if name in OF_TABLES and isinstance(domain, Range):
                raise ValueError(f"{name}: give choices; tables are made for each beforehand")
            for value in domain.ends:
                try:
                    self.config({name: value}, captions=True)
                except (ValidationError, ValueError) as fault:
                    why = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else fault
                    raise ValueError(f"{name} {value!r}: {why}") from fault
        return self

    def config(self, point: Mapping[str, Value], *, captions: bool) -> AcquireConfig:
        """The settings of a point. Without captions there is no LE, and NLT has all steps."""
        settings = AcquireConfig.model_validate(self.settings).model_dump()
        for name, value in point.items():
            if name == "batch":
                settings["nlt"]["batch"] = settings["le"]["batch"] = value
            elif name not in OF_BOTH:
                _set(settings, name, value)
        steps, share = budget(settings)
        steps = int(point.get("steps", steps))
        share = float(point.get("le_share", share)) if captions else 0.0
        if not 0 <= share <= 1:
            raise ValueError("a share is between 0 and 1")
        settings["le"]["steps"] = round(steps * share)
        settings["nlt"]["steps"] = steps - settings["le"]["steps"]
        return AcquireConfig.model_validate(settings)

    def point(self, config: AcquireConfig) -> dict[str, Value]:
        """The point of this space that is nearest to some settings, whose `hidden` is given."""
        settings = config.model_dump()
        steps, share = budget(settings)
        known = {"steps": steps, "le_share": share, "batch": settings["nlt"]["batch"]}
        return {
            name: domain.nearest(known[name] if name in known else _get(settings, name))
            for name, domain in self.parameters.items()
        }

    def trial(
        self, point: Mapping[str, Value], *, captions: bool, held_out: HeldOut
    ) -> AcquireConfig:
        """The settings of a point with looks at validation rows, a checkpoint at each."""
        config = self.config(point, captions=captions)
        every = max(1, -(-(config.nlt.steps + config.le.steps) // self.evaluations))
        held_out = held_out.model_copy(update={"every": every})
        return config.model_copy(update={"held_out": held_out, "checkpoint_every": every})


def load_space(name: str) -> tuple[str, Space]:
    """A preset by name, or a YAML file; its name, and what is in it."""
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
            raise FileNotFoundError(f"no space {name!r}: give a file, or one of {known}")
    try:
        return path.stem, Space.model_validate(yaml.safe_load(path.read_text()) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error


def differing(config: AcquireConfig) -> Settings:
    """Settings that are not the defaults, nested as a configuration file has them."""

    def changed(ours: Settings, default: Settings) -> Settings:
        differing_settings: Settings = {}
        for name, value in ours.items():
            if isinstance(value, dict):
                if inner := changed(value, default[name]):
                    # Whole stages: those of a file replace the default ones.
                    differing_settings[name] = value if name in ("nlt", "le") else inner
            elif value != default[name]:
                differing_settings[name] = value
        return differing_settings

    return changed(config.model_dump(), AcquireConfig().model_dump())


def budget(settings: Mapping[str, Any]) -> tuple[int, float]:
    """Steps of both stages, and the part of them that LE has."""
    steps = settings["nlt"]["steps"] + settings["le"]["steps"]
    return steps, settings["le"]["steps"] / steps if steps else 0.0


def _set(settings: Settings, name: str, value: Value) -> None:
    *outer, last = name.split(".")
    for key in outer:
        if not isinstance(settings.get(key), dict):
            raise ValueError(f"an acquisition has no setting {name!r}")
        settings = settings[key]
    if last not in settings:
        raise ValueError(f"an acquisition has no setting {name!r}")
    settings[last] = value


def _get(settings: Mapping[str, Any], name: str) -> Value:
    setting: Any = settings
    for key in name.split("."):
        setting = setting[key]
    value: Value = setting
    return value
