"""HTML report of a sweep, with the charts embedded in the page."""

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
    """Definition of a chart: file name, drawing function and texts."""

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
        "AR of each trial in start order, and the best AR so far. Trials without an AR are drawn "
        "at the bottom edge.",
        "Validation AR of each trial in start order",
    ),
    Chart(
        "parallel.png",
        draw_parallel,
        "Settings and AR",
        "Each line is one trial, colored by its AR. The thick line is the best trial. A stopped "
        "trial is shown with the AR at which it stopped. Trials without an AR and parameters with "
        "only one value are left out.",
        "Parallel axes, one for each parameter and one for AR",
    ),
    Chart(
        "importance.png",
        draw_importance,
        "Importance",
        "PED-ANOVA measures how far the values of the best third of the trials differ from those "
        "of all trials. With few trials, the result is only an indication.",
        "Share of importance of each parameter",
    ),
    Chart(
        "curves.png",
        draw_curves,
        "Learning curves",
        "Best AR so far of each trial during training. Faint lines are trials that were not "
        "trained to the end.",
        "Validation AR of each trial over the percentage of its steps",
    ),
)


@dataclass(frozen=True)
class Picture:
    """A chart as the page shows it."""

    title: str
    note: str
    alt: str
    reason: str = ""
    """Reason why the chart cannot be drawn. The fields below are empty in that case."""
    light: str = ""
    dark: str = ""
    width: int = 0
    height: int = 0
    least: int = 0
    """Minimum width in rem. A narrower page scrolls the chart instead of shrinking it."""


def write(outcome: Outcome, folder: UPath) -> UPath:
    """Write `report.html` and its charts as PNG files to `folder`.

    The charts are `trials.png`, `parallel.png`, `importance.png` and `curves.png`. If the sweep has
    too little data for a chart, its file contains the reason as text. Existing files are replaced.

    Returns:
        The path of `report.html`.

    Raises:
        OSError: The folder cannot be written.

    """
    # Jinja's automatic choice depends on the last suffix, which is .jinja, so it would not escape.
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
    """Draw a chart in both themes, and write the light one as a PNG file."""
    title, note, alt, file = chart.title, chart.note, chart.alt, folder / chart.file
    light, dark = chart.draw(outcome, LIGHT), chart.draw(outcome, DARK)
    if isinstance(light, str):
        write_bytes(file, png(notice(light, LIGHT)))
        return Picture(title, note, alt, reason=light)
    assert not isinstance(dark, str)  # noqa: S101  (colors do not affect the result)
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
        least=round(width * 4.2) if width > WIDTH else 0,  # keeps text of wide charts legible
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
