"""What a sweep found: its trials, the best of them, and what that is worth on the test split."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Value = int | float | str
Settings = dict[str, Any]
"""Of an acquisition, nested as a configuration file has them."""
Status = Literal["done", "stopped", "diverged", "failed"]


class Trial(BaseModel):
    """One setting that was tried."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    number: int
    """In the order they were begun, from 0."""
    origin: str
    """`defaults`, `best for <language>` of an earlier sweep, or `search`."""
    status: Status
    """`done`: trained in full. `stopped`: no better than others at the same point, by ASHA.
    `diverged`: its loss was no longer a number. `failed`: raised an error."""
    settings: dict[str, Value]
    """Values of the space's parameters, by name."""
    ar: float | None
    """The best AR on the validation rows, %; None if it never got to one."""
    percent: int
    """How much of its steps it trained."""
    seconds: float
    """Wall clock."""
    curve: list[tuple[int, float]] = []
    """Percent of its steps, best AR so far."""
    error: str | None = None
    """The last line of what was raised."""


class Interval(BaseModel):
    """A figure and its 95 % bootstrap interval over test images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def format_setting(value: Value) -> str:
    """`3e-5`, `0.001`, `native`."""
    return f"{value:.4g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def signed(interval: Interval) -> str:
    """A difference: `+1.6 [+0.9, +2.3]`."""
    return f"{interval.value:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


class Gain(BaseModel):
    """Test AR of the default and of the best settings, trained alike; the test was seen once."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    default: Interval
    swept: Interval
    difference: Interval
    """Of the same resampled images, so it is narrower than the two apart."""
    images: int
    captions: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves chance out."""
        return self.difference.low > 0

    def __str__(self) -> str:
        change = signed(self.difference)
        both = f"test AR {self.default} with the defaults, {self.swept} with the best"
        return f"{both}: a gain of {change}" if self.significant else f"{both}: no gain ({change})"


class Outcome(BaseModel):
    """A finished sweep of one language; kept as `sweep.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    language: str
    native: str
    space: str
    """Name of the preset, or the file."""
    validation: Literal["pairs", "captions"]
    """Which rows settings were chosen by: translations held out, or the split `validation`."""
    seed: int
    trials: list[Trial]
    best: int = Field(ge=0)
    """Number of the trial."""
    config: Settings
    """Settings of an acquisition that differ from the defaults; the result file."""
    gain: Gain | None = None
    """None if the captions have no split `test`."""
    seconds: float
    """Wall clock of all trials, added up; those side by side count twice."""

    @property
    def best_trial(self) -> Trial:
        return next(trial for trial in self.trials if trial.number == self.best)

    @property
    def line(self) -> str:
        """The sweep in one line."""
        best = self.best_trial
        first = next((trial for trial in self.trials if trial.origin == "defaults"), None)
        line = f"{self.language}: validation AR {best.ar:.1f} by trial {best.number}"
        if first and first.ar is not None:
            line += f" ({first.ar:.1f} by the defaults)"
        return f"{line}; {self.gain or 'gain not measured, for want of captions of split test'}"
