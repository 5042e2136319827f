"""A sweep as a page that holds its pictures."""

import base64
import math
from dataclasses import dataclass

import yaml
from jinja2 import Environment, PackageLoader
from upath import UPath

from mla_ray.runtime.storage import write_bytes
from mla_ray.tuning.charts import (
    Draw,
    draw_curves,
    draw_importance,
    draw_parallel,
    draw_trials,
)
from mla_ray.tuning.importance import values
from mla_ray.tuning.outcome import Outcome, format_setting
from mla_ray.tuning.theme import DARK, LIGHT, WIDTH, notice, png


@dataclass(frozen=True)
class Chart:
    """What the page shows of a sweep, and how it is drawn."""

    file: str
    draw: Draw
    title: str
    note: str
    alt: str


CHARTS = (
    Chart(
        "trials.png",
        draw_trials,
        "Trials over time",
        "AR of each trial, and the best until then. Trials without AR are at the foot.",
        "Validation AR of each trial in the order they were begun",
    ),
    Chart(
        "parallel.png",
        draw_parallel,
        "Settings and AR",
        "A line is a trial, its colour is its AR, and the thick one is the best. A stopped "
        "trial has the AR of where it stopped; one without AR is left out, and so is a "
        "parameter with one value.",
        "Parallel axes, one for each parameter and one for AR",
    ),
    Chart(
        "importance.png",
        draw_importance,
        "Importance",
        "How far the values of the best third of the trials differ from those of all, by "
        "PED-ANOVA. With few trials it is a hint, not a finding.",
        "Share of importance of each parameter",
    ),
    Chart(
        "curves.png",
        draw_curves,
        "Learning curves",
        "Best AR so far of each trial while it trained. Faint: not trained in full.",
        "Validation AR of each trial over the share of its steps",
    ),
)


@dataclass(frozen=True)
class Picture:
    """A chart as it is in the page."""

    title: str
    note: str
    alt: str
    reason: str = ""
    """Why it cannot be drawn; the rest is empty then."""
    light: str = ""
    dark: str = ""
    width: int = 0
    height: int = 0
    least: int = 0
    """Width in rem below which it is scrolled, not made smaller."""


def write(outcome: Outcome, folder: UPath) -> UPath:
    """`report.html` in `folder`, which is returned, and the pictures that it holds beside it.

    These are trials.png, parallel.png, importance.png and curves.png; one that this sweep is too
    small for says so in words. Each file is replaced whole.

    Raises:
        OSError: the folder cannot be written.

    """
    # All escaped: jinja2's own choice goes by the last suffix, which is .jinja.
    environment = Environment(
        loader=PackageLoader("mla_ray.tuning"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ar": _ar, "setting": format_setting, "lasting": _lasting}
    distinct = values(outcome.trials)
    page = environment.get_template("sweep.html.jinja").render(
        outcome=outcome,
        trials=sorted(outcome.trials, key=lambda trial: trial.number),
        names=list(distinct),
        same=[
            f"{name} = {format_setting(some[0])}"
            for name, some in distinct.items()
            if len(some) == 1 and len(outcome.trials) > 1
        ],
        errors=any(trial.error for trial in outcome.trials),
        config=_yaml(outcome),
        gain=outcome.gain
        and [
            ("the defaults", "%.1f", outcome.gain.default),
            ("the best settings", "%.1f", outcome.gain.swept),
            ("difference", "%+.1f", outcome.gain.difference),
        ],
        charts=[_picture(outcome, chart, folder) for chart in CHARTS],
        light=LIGHT,
        dark=DARK,
    )
    file = folder / "report.html"
    write_bytes(file, page.encode())
    return file


def _picture(outcome: Outcome, chart: Chart, folder: UPath) -> Picture:
    """Draw for both themes; the file beside the page is the light one."""
    title, note, alt, file = chart.title, chart.note, chart.alt, folder / chart.file
    light, dark = chart.draw(outcome, LIGHT), chart.draw(outcome, DARK)
    if isinstance(light, str):
        write_bytes(file, png(notice(light, LIGHT)))
        return Picture(title, note, alt, reason=light)
    assert not isinstance(dark, str)  # noqa: S101  (colours decide nothing)
    width, height = light.get_size_inches()
    picture = png(light)
    write_bytes(file, picture)
    return Picture(
        title,
        note,
        alt,
        light=_data_uri(picture),
        dark=_data_uri(png(dark)),
        width=round(width * 96),
        height=round(height * 96),
        least=round(width * 4.2) if width > WIDTH else 0,  # many axes keep their letters
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _yaml(outcome: Outcome) -> str:
    if not outcome.config:
        return ""
    return yaml.safe_dump(outcome.config, sort_keys=False, allow_unicode=True)


def _ar(ar: float | None) -> str:
    return "–" if ar is None or not math.isfinite(ar) else f"{ar:.1f}"


def _lasting(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
