"""Result of a sweep: its trials, the best trial, and the gain on the test split."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Value = int | float | str
Settings = dict[str, Any]
"""Settings of an acquisition, nested as in a configuration file."""
Status = Literal["done", "stopped", "diverged", "failed"]


class Trial(BaseModel):
    """One trial of a sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    number: int
    """Position in start order, from 0."""
    origin: str
    """`defaults`, `best for <language>` (from an earlier sweep), or `search`."""
    status: Status
    """`done`: trained to the end. `stopped`: stopped early by ASHA, because other trials had a
    better AR at the same percentage. `diverged`: the loss was NaN or infinite. `failed`: raised an
    error."""
    settings: dict[str, Value]
    """Values of the space's parameters, by name."""
    ar: float | None
    """Best AR on the validation rows, in percent. None if the trial reported no AR."""
    percent: int
    """Percentage of its steps that the trial trained."""
    seconds: float
    """Wall-clock time in seconds."""
    curve: list[tuple[int, float]] = []
    """Pairs of the percentage of steps and the best AR so far."""
    error: str | None = None
    """Last line of the error that the trial raised."""


class Interval(BaseModel):
    """A value and its 95 % bootstrap interval over test images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def format_setting(value: Value) -> str:
    """Format a value of a parameter, such as `3e-5`, `0.001` or `native`."""
    return f"{value:.4g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def signed(interval: Interval) -> str:
    """Format a difference with signs, such as `+1.6 [+0.9, +2.3]`."""
    return f"{interval.value:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


class Gain(BaseModel):
    """Test AR of the default and of the best settings, trained in the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    default: Interval
    swept: Interval
    difference: Interval
    """Difference on the same resampled images, so its interval is narrower than either side's."""
    images: int
    captions: int

    @property
    def significant(self) -> bool:
        """Whether the whole interval of the difference is above zero."""
        return self.difference.low > 0

    def __str__(self) -> str:
        change = signed(self.difference)
        both = f"test AR {self.default} with the defaults, {self.swept} with the best"
        return f"{both}: a gain of {change}" if self.significant else f"{both}: no gain ({change})"


class Outcome(BaseModel):
    """Result of a finished sweep of one language, stored as `sweep.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    language: str
    native: str
    space: str
    """Name of the preset or of the file."""
    validation: Literal["pairs", "captions"]
    """Validation rows: held-out translation pairs, or the captions' split `validation`."""
    seed: int
    trials: list[Trial]
    best: int = Field(ge=0)
    """Number of the best trial."""
    config: Settings
    """Settings that differ from the defaults, as in the result file."""
    gain: Gain | None = None
    """None if the captions have no split `test`."""
    seconds: float
    """Sum of the wall-clock times of all trials in seconds. Concurrent trials are each counted."""

    @property
    def best_trial(self) -> Trial:
        """The best trial."""
        return next(trial for trial in self.trials if trial.number == self.best)

    @property
    def line(self) -> str:
        """Summary of the sweep in one line."""
        best = self.best_trial
        first = next((trial for trial in self.trials if trial.origin == "defaults"), None)
        line = f"{self.language}: validation AR {best.ar:.1f} by trial {best.number}"
        if first and first.ar is not None:
            line += f" ({first.ar:.1f} by the defaults)"
        return f"{line}; {self.gain or 'gain not measured: there are no captions of split test'}"
