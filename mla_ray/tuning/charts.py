"""Charts of a sweep.

Each function draws one chart in the colors of a theme. If the sweep has too little data for the
chart, the function returns the reason as a string.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from mla_ray.tuning.importance import FEWEST, importance, measured, values
from mla_ray.tuning.outcome import Outcome, Status, Trial
from mla_ray.tuning.scale import Scale
from mla_ray.tuning.theme import WIDTH, Theme, add_legend, new_figure

AR = "validation AR, %"
MANY = 60
"""Number of trials above which charts use smaller markers and fainter lines."""
MARKERS: dict[Status, str] = {"done": "o", "stopped": "v", "diverged": "X", "failed": "x"}

Draw = Callable[[Outcome, Theme], "Figure | str"]
"""Function that returns the figure of a chart, or the reason why there is none."""


def draw_trials(outcome: Outcome, theme: Theme) -> Figure | str:
    """Draw the AR of each trial in start order, and the best AR so far."""
    trials = sorted(outcome.trials, key=lambda trial: trial.number)
    if not any(_finite(trial) for trial in trials):
        return "no trial reported an AR"
    figure, axes = new_figure(theme)
    last = trials[-1].number
    defaults = _defaults(outcome)
    if defaults and _finite(defaults):
        axes.axhline(_number(defaults), color=theme.ink, ls=(0, (5, 3)), lw=1.2, label="defaults")
    _step_best_so_far(axes, theme, measured(trials), last)
    size = 46 if len(trials) <= MANY else 20
    for status in MARKERS:
        _scatter_trials(axes, theme, status, [t for t in trials if t.status == status], size)
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
    axes.set_xlabel("trial, in start order")
    axes.set_ylabel(AR)
    add_legend(figure, axes, theme)
    return figure


def _step_best_so_far(axes: Axes, theme: Theme, trials: Sequence[Trial], last: int) -> None:
    """Draw a step line of the best AR so far, up to trial number `last`."""
    if len(trials) < 2:
        return
    steps = list(accumulate(map(_number, trials), max))
    places = [trial.number for trial in trials]
    axes.step(
        [*places, max(last, places[-1])],
        [*steps, steps[-1]],
        where="post",
        color=theme.soft,
        lw=1.6,
        label="best so far",
    )


def _scatter_trials(
    axes: Axes, theme: Theme, status: Status, trials: Sequence[Trial], size: int
) -> None:
    """Draw markers for the trials of one status.

    Trials without an AR are drawn at the bottom edge, so that their place in the order is visible.
    """
    marker = MARKERS[status]
    for at_foot in (False, True):
        group = [trial for trial in trials if _finite(trial) is not at_foot]
        if not group:
            continue
        axes.scatter(
            [trial.number for trial in group],
            [0.035 if at_foot else _number(trial) for trial in group],
            s=size,
            marker=marker,
            color=theme.status[status],
            # An edge in the background color separates neighbors. "x" consists of lines only.
            edgecolors=None if marker == "x" else theme.ground,
            linewidths=1.6 if marker == "x" else 0.8,
            transform=axes.get_xaxis_transform() if at_foot else axes.transData,
            zorder=3,
            label=f"{status}, no AR" if at_foot else status,
        )


def draw_parallel(outcome: Outcome, theme: Theme) -> Figure | str:
    """Draw parallel axes: one line per trial and one axis per parameter, colored by AR.

    Trials without an AR and parameters with only one value are left out.
    """
    trials = sorted(measured(outcome.trials), key=_number)  # the best is drawn last, on top
    if len(trials) < 2:
        return "parallel axes need at least 2 trials with an AR"
    scales = {name: Scale(some) for name, some in values(trials).items() if len(some) > 1}
    if not scales:
        return "no parameter has more than one value among the trials with an AR"
    ars = Scale(sorted({_number(trial) for trial in trials}))
    count = len(scales) + 1
    figure, axes = new_figure(theme, max(WIDTH, 1.2 * count + 0.6), 4.2)
    lines, heights = [], []
    for trial in trials:
        points = [
            scale.place(trial.settings[name]) if name in trial.settings else math.nan
            for name, scale in scales.items()
        ]
        heights.append(ars.place(_number(trial)))
        lines.append(list(enumerate([*points, heights[-1]])))
    widths = [2.6 if trial.number == outcome.best else 1.3 for trial in trials]
    many = 0.9 if len(trials) <= MANY else 0.55
    axes.add_collection(
        LineCollection(
            lines,
            colors=[theme.ramp(height) for height in heights],
            linewidths=widths,
            alpha=[1.0 if trial.number == outcome.best else many for trial in trials],
            capstyle="round",
        )
    )
    for place, (name, scale) in enumerate([*scales.items(), ("AR, %", ars)]):
        _draw_axis(axes, theme, place, name, scale, is_ar=scale is ars)
    axes.set_xlim(-0.3, count - 1 + 0.55)
    axes.set_ylim(-0.05, 1.05)
    axes.set_axis_off()
    return figure


def _draw_axis(
    axes: Axes, theme: Theme, place: int, name: str, scale: Scale, *, is_ar: bool
) -> None:
    """Draw one of the parallel axes with its ticks and name. The AR axis shows the colors."""
    if is_ar:
        strip = [[(place, n / 64), (place, min(1, (n + 1.5) / 64))] for n in range(64)]
        colours = [theme.ramp(n / 63) for n in range(64)]
        axes.add_collection(LineCollection(strip, colors=colours, linewidths=5, zorder=3))
    else:
        axes.plot([place, place], [0, 1], color=theme.soft, lw=1, zorder=3)
    halo = withStroke(linewidth=3, foreground=theme.ground)
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
        weight="bold" if is_ar else "normal",
    )


def draw_importance(outcome: Outcome, theme: Theme) -> Figure | str:
    """Draw one bar per parameter, the most important parameter on top."""
    counted = measured(outcome.trials)
    if len(counted) < FEWEST or all(len(some) == 1 for some in values(counted).values()):
        return f"importance needs at least {FEWEST} trials with an AR and different settings"
    shares = importance(outcome.trials)
    if not shares:
        return "importance needs different AR values, but all trials have the same AR"
    names = list(shares)
    figure, axes = new_figure(theme, WIDTH, 0.34 * len(names) + 1.0)
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
    axes.set_xticks([])  # each bar is labeled with its value
    axes.set_xlabel("share of importance, %")
    return figure


def draw_curves(outcome: Outcome, theme: Theme) -> Figure | str:
    """Draw the best AR so far of each trial over the percentage of its steps."""
    curves = {
        trial.number: points
        for trial in outcome.trials
        if (points := sorted(point for point in trial.curve if math.isfinite(point[1])))
    }
    if not curves:
        return "no trial was measured while it trained"
    figure, axes = new_figure(theme)
    defaults = _defaults(outcome)
    labelled = set()
    # The defaults and then the best trial are drawn last, on top of the others.
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
            lw=3 if best else 1.4 if first or len(curves) <= MANY else 0.8,
            ls=(0, (4, 2)) if first else "-",
            alpha=1.0 if best or first else 0.65 if trial.status == "done" else 0.35,
            # Marks where a trial ended early. A curve of one point needs a marker to be visible.
            marker=MARKERS[trial.status] if trial.status != "done" or len(points) == 1 else None,
            markevery=[-1],
            markersize=5,
            solid_capstyle="round",
            zorder=4 if best else 3 if first else 2,
            label=None if label in labelled else label,
        )
        labelled.add(label)
    axes.set_xlim(0, 101)
    axes.margins(y=0.08)
    axes.set_xlabel("trained, % of the trial's steps")
    axes.set_ylabel(AR)
    add_legend(figure, axes, theme)
    return figure


def _defaults(outcome: Outcome) -> Trial | None:
    return next((trial for trial in outcome.trials if trial.origin == "defaults"), None)


def _finite(trial: Trial) -> bool:
    return trial.ar is not None and math.isfinite(trial.ar)


def _number(trial: Trial) -> float:
    return math.nan if trial.ar is None else trial.ar


def _broken(name: str) -> str:
    """Break a long name into two lines at a dot or an underscore near its middle."""
    places = [n + 1 for n, letter in enumerate(name[:-1]) if letter in "._"]
    if len(name) <= 12 or not places:
        return name
    middle = min(places, key=lambda place: abs(place - len(name) / 2))
    return name[:middle] + "\n" + name[middle:]
