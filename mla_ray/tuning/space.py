"""Search spaces: the settings of an acquisition that a sweep varies, and their values.

A parameter is a key of `AcquireConfig` (`nlt.lr`, `weight_decay`), or one of

    steps      steps of both stages together
    le_share   share of `steps` for LE
    batch      batch size of both stages

The presets in `tuning/presets/` are examples.
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
    """Range of numbers from `low` to `high`, on a log scale if `log`; integers if both ends are."""

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
        """Smallest and largest value."""
        return [self.low, self.high]

    def nearest(self, value: Value) -> Value:
        """Return the value in the range nearest to `value`, or `low` for a string."""
        if isinstance(value, str):
            return self.low
        near = min(max(value, self.low), self.high)
        return round(near) if isinstance(self.low, int) and isinstance(self.high, int) else near


class Choices(BaseModel):
    """List of possible values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choices: list[Value] = Field(min_length=1)

    @property
    def ends(self) -> list[Value]:
        """All choices."""
        return self.choices

    def nearest(self, value: Value) -> Value:
        """Return the choice nearest to `value`, or the first one if nothing is comparable."""
        if value in self.choices or isinstance(value, str):
            return value if value in self.choices else self.choices[0]
        numbers = [choice for choice in self.choices if not isinstance(choice, str)]
        return min(numbers, key=lambda n: abs(n - value)) if numbers else self.choices[0]


class Space(BaseModel):
    """Search space of a sweep: parameters, number of trials, and early stopping."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    about: str = ""
    """Description of the purpose of the space."""
    trials: int = Field(ge=1)
    """Default number of trials for a language."""
    evaluations: int = Field(default=5, ge=2, le=50)
    """Number of evaluations of a trial's validation AR, evenly spaced over its steps."""
    grace: int = Field(default=20, ge=1, le=100)
    """Percentage of its steps before a trial may be stopped."""
    reduction: float = Field(default=3, gt=1)
    """ASHA's reduction factor: one trial in `reduction` continues after `grace` percent, and again
    after each further multiple of that percentage by `reduction`."""
    settings: Settings = {}
    """Fixed settings of all trials, as in the configuration of an acquisition."""
    parameters: dict[str, Range | Choices] = Field(min_length=1)
    """Values of each parameter, by name."""

    @model_validator(mode="after")
    def _is_of_an_acquisition(self) -> "Space":
        AcquireConfig.model_validate(self.settings)
        for name, domain in self.parameters.items():
            if name in OF_TABLES and isinstance(domain, Range):
                raise ValueError(
                    f"{name}: give choices, not a range; each value needs its own prepared tables"
                )
            for value in domain.ends:
                try:
                    self.config({name: value}, captions=True)
                except (ValidationError, ValueError) as fault:
                    why = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else fault
                    raise ValueError(f"{name} {value!r}: {why}") from fault
        return self

    def config(self, point: Mapping[str, Value], *, captions: bool) -> AcquireConfig:
        """Return the settings of a point.

        Args:
            point: Values by parameter name.
            captions: Whether the corpus has captions. Without captions, LE has no steps and NLT
                has all of them.

        Raises:
            ValueError: The name or value of a parameter is invalid.

        """
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
        """Return the point of this space nearest to `config`, in which `hidden` must be set."""
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
        """Return the settings of a point with evaluations on validation rows.

        The evaluations and checkpoints are at the same steps.
        """
        config = self.config(point, captions=captions)
        every = max(1, -(-(config.nlt.steps + config.le.steps) // self.evaluations))
        held_out = held_out.model_copy(update={"every": every})
        return config.model_copy(update={"held_out": held_out, "checkpoint_every": every})


def load_space(name: str) -> tuple[str, Space]:
    """Load a preset or a YAML file.

    Args:
        name: Name of a preset, or path of a file.

    Returns:
        The name of the space (for a file, without folder and suffix) and the space.

    Raises:
        FileNotFoundError: There is no such preset or file.
        ValueError: The file is not valid YAML or not a valid space.

    """
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
    """Return the settings that differ from the defaults, nested as in a configuration file."""

    def changed(ours: Settings, default: Settings) -> Settings:
        differing_settings: Settings = {}
        for name, value in ours.items():
            if isinstance(value, dict):
                if inner := changed(value, default[name]):
                    # Stages are kept whole, because a stage in a file replaces the default stage.
                    differing_settings[name] = value if name in ("nlt", "le") else inner
            elif value != default[name]:
                differing_settings[name] = value
        return differing_settings

    return changed(config.model_dump(), AcquireConfig().model_dump())


def budget(settings: Mapping[str, Any]) -> tuple[int, float]:
    """Return the number of steps of both stages together, and the share of LE from 0 to 1."""
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
