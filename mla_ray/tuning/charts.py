"""The pictures of a sweep.

Drawn without pyplot, whose figures are global and would stay in memory. Each function draws one in
the colours of a theme, or says why it cannot be drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image

from mla_ray.tuning.importance import FEWEST, importance, logarithmic, measured, numeric, values
from mla_ray.tuning.outcome import Outcome, Status, Trial, Value

DPI = 160
WIDTH = 6.6
"""Inches. With text of 10 points a phone that shows all of it still shows it legibly."""

AR = "validation AR, %"
MARKERS: dict[Status, str] = {"done": "o", "stopped": "v", "diverged": "X", "failed": "x"}


@dataclass(frozen=True)
class Theme:
    """Colours of Okabe and Ito, which colour-blind readers can tell apart, and viridis."""

    ground: str
    ink: str
    soft: str
    """Of axes and of what is not to be looked at first."""
    status: dict[Status, str]
    ramp: Colormap
    """From the worst AR, near the ground, to the best, far from it."""


def _ramp(*colours: str) -> Colormap:
    return LinearSegmentedColormap.from_list("ar", colours)


LIGHT = Theme(
    ground="#ffffff",
    ink="#1b1f24",
    soft="#8a9099",
    status={"done": "#0072b2", "stopped": "#e69f00", "diverged": "#d55e00", "failed": "#555b63"},
    ramp=_ramp("#c8e020", "#5ec962", "#21918c", "#3b528b", "#440154"),
)
DARK = Theme(
    ground="#16181d",
    ink="#e6e8eb",
    soft="#858c96",
    status={"done": "#56b4e9", "stopped": "#e69f00", "diverged": "#ff7f3f", "failed": "#b0b6be"},
    ramp=_ramp("#4a4f8f", "#2c728e", "#27ad81", "#aadc32", "#fde725"),
)


Draw = Callable[[Outcome, Theme], "Figure | str"]
"""The figure, or why there is none."""


def draw_trials(outcome: Outcome, theme: Theme) -> Figure | str:
    """AR of each trial in the order they were begun, and the best until then."""
    trials = sorted(outcome.trials, key=lambda trial: trial.number)
    if not any(_finite(trial) for trial in trials):
        return "no trial came to an AR"
    figure, axes = _figure(theme)
    last = trials[-1].number
    defaults = _defaults(outcome)
    if defaults and _finite(defaults):
        axes.axhline(_number(defaults), color=theme.ink, ls=(0, (5, 3)), lw=1.2, label="defaults")
    counted = measured(trials)
    if len(counted) > 1:
        steps = list(accumulate(map(_number, counted), max))
        places = [trial.number for trial in counted]
        axes.step(
            [*places, max(last, places[-1])],
            [*steps, steps[-1]],
            where="post",
            color=theme.soft,
            lw=1.6,
            label="best so far",
        )
    size = 46 if len(trials) <= 60 else 20
    for status, marker in MARKERS.items():
        some = [trial for trial in trials if trial.status == status]
        high = [trial for trial in some if _finite(trial)]
        for group, transform in (
            (high, axes.transData),
            # At the foot: they have no height, but their turn is worth seeing.
            ([t for t in some if not _finite(t)], axes.get_xaxis_transform()),
        ):
            if not group:
                continue
            foot = group is not high
            axes.scatter(
                [trial.number for trial in group],
                [0.035 if foot else _number(trial) for trial in group],
                s=size,
                marker=marker,
                color=theme.status[status],
                # A line of the ground's colour keeps neighbours apart; "x" is a line itself.
                edgecolors=None if marker == "x" else theme.ground,
                linewidths=1.6 if marker == "x" else 0.8,
                transform=transform,
                zorder=3,
                label=f"{status}, no AR" if foot else status,
            )
    best = next((t for t in trials if t.number == outcome.best and _finite(t)), None)
    if best and len(trials) > 1:
        axes.scatter(
            [best.number],
            [_number(best)],
            s=4 * size,
            facecolors="none",
            edgecolors=theme.ink,
            linewidths=1.4,
            zorder=4,
            label="best",
        )
    axes.margins(y=0.14)
    axes.set_xlim(trials[0].number - 0.7, last + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlabel("trial, in the order begun")
    axes.set_ylabel(AR)
    _legend(figure, axes, theme)
    return figure


def draw_parallel(outcome: Outcome, theme: Theme) -> Figure | str:
    """A line a trial over an axis a parameter, coloured by AR; trials without AR are left out."""
    trials = sorted(measured(outcome.trials), key=_number)  # the best is drawn last, on top
    if len(trials) < 2:
        return "parallel axes need at least 2 trials with an AR"
    scales = {name: Scale(some) for name, some in values(trials).items() if len(some) > 1}
    if not scales:
        return "no parameter has more than one value among the trials with an AR"
    ars = Scale(sorted({_number(trial) for trial in trials}))
    count = len(scales) + 1
    figure, axes = _figure(theme, max(WIDTH, 1.2 * count + 0.6), 4.2)
    lines, heights = [], []
    for trial in trials:
        points = [
            scale.place(trial.settings[name]) if name in trial.settings else math.nan
            for name, scale in scales.items()
        ]
        heights.append(ars.place(_number(trial)))
        lines.append(list(enumerate([*points, heights[-1]])))
    widths = [2.6 if trial.number == outcome.best else 1.3 for trial in trials]
    many = 0.9 if len(trials) <= 60 else 0.55
    axes.add_collection(
        LineCollection(
            lines,
            colors=[theme.ramp(height) for height in heights],
            linewidths=widths,
            alpha=[1.0 if trial.number == outcome.best else many for trial in trials],
            capstyle="round",
        )
    )
    halo = withStroke(linewidth=3, foreground=theme.ground)
    for place, (name, scale) in enumerate([*scales.items(), ("AR, %", ars)]):
        if scale is ars:
            strip = [[(place, n / 64), (place, min(1, (n + 1.5) / 64))] for n in range(64)]
            colours = [theme.ramp(n / 63) for n in range(64)]
            axes.add_collection(LineCollection(strip, colors=colours, linewidths=5, zorder=3))
        else:
            axes.plot([place, place], [0, 1], color=theme.soft, lw=1, zorder=3)
        for height, label in scale.ticks():
            axes.plot([place - 0.02, place + 0.02], [height] * 2, color=theme.soft, lw=1, zorder=3)
            tick = axes.text(
                place + 0.06, height, label, size=8.5, va="center", color=theme.ink, zorder=5
            )
            tick.set_path_effects([halo])
        axes.text(
            place,
            1.07,
            _broken(name) + ("\n(log)" if scale.log else ""),
            ha="center",
            va="bottom",
            color=theme.ink,
            size=10,
            weight="bold" if scale is ars else "normal",
        )
    axes.set_xlim(-0.3, count - 1 + 0.55)
    axes.set_ylim(-0.05, 1.05)
    axes.set_axis_off()
    return figure


def draw_importance(outcome: Outcome, theme: Theme) -> Figure | str:
    """A bar a parameter, the most important on top."""
    counted = measured(outcome.trials)
    if len(counted) < FEWEST or all(len(some) == 1 for some in values(counted).values()):
        return f"importance needs at least {FEWEST} trials with an AR and different settings"
    shares = importance(outcome.trials)
    if not shares:
        return "importance needs different AR, and all trials have the same"
    names = list(shares)
    figure, axes = _figure(theme, WIDTH, 0.34 * len(names) + 1.0)
    parts = [100 * shares[name] for name in names]
    axes.barh(names, parts, height=0.62, color=theme.status["done"])
    for row, part in enumerate(parts):
        axes.annotate(
            f"{part:.0f}",
            (part, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=theme.ink,
        )
    axes.invert_yaxis()
    axes.set_xlim(0, max(parts) * 1.08)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])  # each bar has its number
    axes.set_xlabel("share of importance, %")
    return figure


def draw_curves(outcome: Outcome, theme: Theme) -> Figure | str:
    """Best AR so far of each trial over the share of its steps."""
    curves = {
        trial.number: points
        for trial in outcome.trials
        if (points := sorted(point for point in trial.curve if math.isfinite(point[1])))
    }
    if not curves:
        return "no trial was measured while it trained"
    figure, axes = _figure(theme)
    defaults = _defaults(outcome)
    told = set()
    # The defaults, then the best, over all others.
    special = (defaults.number if defaults else -1, outcome.best)
    order = sorted(outcome.trials, key=lambda t: (t.number == special[1], t.number == special[0]))
    for trial in order:
        if trial.number not in curves:
            continue
        points = curves[trial.number]
        best, first = trial.number == special[1], trial.number == special[0]
        if best:
            label = "best: the defaults" if first else f"best: trial {trial.number}"
        else:
            label = "defaults" if first else trial.status
        axes.plot(
            [percent for percent, _ in points],
            [ar for _, ar in points],
            color=theme.ink if first and not best else theme.status[trial.status],
            lw=3 if best else 1.4 if first or len(curves) <= 60 else 0.8,
            ls=(0, (4, 2)) if first else "-",
            alpha=1.0 if best or first else 0.65 if trial.status == "done" else 0.35,
            # Where it ended, if early; one point alone would not be seen otherwise.
            marker=MARKERS[trial.status] if trial.status != "done" or len(points) == 1 else None,
            markevery=[-1],
            markersize=5,
            solid_capstyle="round",
            zorder=4 if best else 3 if first else 2,
            label=None if label in told else label,
        )
        told.add(label)
    axes.set_xlim(0, 101)
    axes.margins(y=0.08)
    axes.set_xlabel("trained, % of the trial's steps")
    axes.set_ylabel(AR)
    _legend(figure, axes, theme)
    return figure


class Scale:
    """Where values are on an axis from 0 to 1: numbers by size, what holds a string by rank."""

    def __init__(self, some: Sequence[Value]) -> None:
        """Of distinct values in their order, two or more, or one that is put in the middle."""
        self.values = list(some)
        self.numbers = numeric(some)
        self.log = self.numbers is not None and logarithmic(self.numbers[0], self.numbers[-1])

    def place(self, value: Value) -> float:
        """From 0, the smallest, to 1."""
        if len(self.values) == 1:
            return 0.5
        if self.numbers is None or isinstance(value, str):
            return self.values.index(value) / (len(self.values) - 1)
        low, high, at = self.numbers[0], self.numbers[-1], float(value)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and labels, none so close to another that they would touch."""
        some: Sequence[Value] = self.values
        if self.numbers is not None and len(some) > 6:
            low, high = self.numbers[0], self.numbers[-1]
            if self.log:
                subs = (1.0,) if high / low >= 1000 else (1.0, 2.0, 5.0)
                some = [float(v) for v in LogLocator(subs=subs).tick_values(low, high)]
            else:
                some = [
                    float(v)
                    for v in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
                ]
            some = [value for value in some if low <= float(value) <= high]
        kept: list[tuple[float, str]] = []
        for value in some:
            height = self.place(value)
            if not kept or height - kept[-1][0] >= 0.06:
                kept.append((height, setting(value)))
        return kept


def _figure(theme: Theme, width: float = WIDTH, height: float = 3.7) -> tuple[Figure, Axes]:
    figure = Figure(
        (width, height),
        dpi=DPI,
        facecolor=theme.ground,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=theme.ground)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.soft)
    axes.tick_params(color=theme.soft, labelcolor=theme.ink, labelsize=10)
    axes.xaxis.label.set(color=theme.ink, size=10)
    axes.yaxis.label.set(color=theme.ink, size=10)
    axes.grid(axis="y", color=theme.soft, alpha=0.22, lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure, axes: Axes, theme: Theme) -> None:
    """Over the axes, where it hides no trial."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=5,
        frameon=False,
        fontsize=9.5,
        labelcolor=theme.ink,
        handletextpad=0.5,
        columnspacing=1.2,
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def said(reason: str, theme: Theme) -> Figure:
    figure = Figure((WIDTH, 1.1), dpi=DPI, facecolor=theme.ground)
    FigureCanvasAgg(figure)
    words = f"Not drawn: {reason}."
    figure.text(0.5, 0.5, words, ha="center", va="center", size=10, color=theme.ink, wrap=True)
    return figure


def png(figure: Figure) -> bytes:
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)  # a "$" in a name is no formula
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    # 256 colours are far fewer bytes, and the page holds each picture twice. They are chosen so
    # that a rare one, as of the only trial that diverged, is not merged with another.
    picture = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    small = BytesIO()
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def setting(value: Value) -> str:
    return f"{value:.4g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _defaults(outcome: Outcome) -> Trial | None:
    return next((trial for trial in outcome.trials if trial.origin == "defaults"), None)


def _finite(trial: Trial) -> bool:
    return trial.ar is not None and math.isfinite(trial.ar)


def _number(trial: Trial) -> float:
    return math.nan if trial.ar is None else trial.ar


def _broken(name: str) -> str:
    """A long name in two lines, at a dot or an underscore near its middle."""
    places = [n + 1 for n, letter in enumerate(name[:-1]) if letter in "._"]
    if len(name) <= 12 or not places:
        return name
    middle = min(places, key=lambda place: abs(place - len(name) / 2))
    return name[:middle] + "\n" + name[middle:]
