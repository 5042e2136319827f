"""Plot of the results page: differences, amount of data, hidden size, and languages in turn.

The module does not use pyplot, because pyplot keeps figures in global memory.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from mla_ray.reproduce import ablations as ab
from mla_ray.reproduce.ablations import Variant
from mla_ray.reproduce.figures import Results, figure

INK, SOFT = "#0072b2", "#8a9099"


def draw(results: Results) -> Picture:
    """Draw the four panels. A panel without runs contains the text "not run"."""
    picture = Picture(figsize=(10, 8), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots(2, 2)
    _differences(axes[0, 0], results)
    shares = [(v, 100 * v.share) for v in (*ab.SHARES, ab.FULL)]
    _curve(axes[0, 1], results, shares, "% of the data")
    hidden = [(v, float(v.settings["hidden"])) for v in ab.HIDDEN]
    _curve(axes[1, 0], results, hidden, "hidden size H")
    _turns(axes[1, 1], results)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="both", color="#e5e7ea", linewidth=0.7)
        axis.set_axisbelow(True)
    return picture


def _differences(axis: Axes, results: Results) -> None:
    names, differences = [], []
    for variant in (
        ab.NLT_ALONE, ab.LE_ALONE, ab.TOWER, ab.NO_ACQUIRERS, ab.AT_RANDOM, ab.M_BERT_LIKE,
        ab.TOGETHER,
    ):  # fmt: skip
        if difference := results.difference(variant, ab.FULL):
            names.append(variant.name)
            differences.append(difference)
    axis.set_title('AR, difference from "NLT, then LE"')
    if not differences:
        return _nothing(axis)
    places = np.arange(len(names))[::-1]
    means = np.array([each.mean for each in differences])
    errors = np.array([[f.mean - f.low, f.high - f.mean] for f in differences]).T
    # The differences range from below one point to fifty points.
    axis.set_xscale("symlog", linthresh=2, subs=(2, 5))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(0, color=SOFT, linewidth=1)
    axis.errorbar(means, places, xerr=errors, fmt="o", color=INK, capsize=3)
    axis.set_yticks(places, [_broken(name) for name in names])
    return None


def _broken(name: str) -> str:
    """Break a long name into two lines."""
    words, half = name.split(), len(name) / 2
    if len(name) < 24:
        return name
    first = ""
    while words and len(first) < half:
        first = f"{first} {words.pop(0)}".strip()
    return f"{first}\n{' '.join(words)}"


def _curve(
    axis: Axes, results: Results, points: Sequence[tuple[Variant, float]], label: str
) -> None:
    languages = results.complete([variant for variant, _ in points])
    axis.set_xlabel(label)
    axis.set_ylabel("AR")
    if not languages:
        return _nothing(axis)
    figures = [figure(results.over(variant, languages)) for variant, _ in points]
    x = [value for _, value in points]
    axis.plot(x, [f.mean for f in figures], "o-", color=INK)
    axis.fill_between(x, [f.low for f in figures], [f.high for f in figures], color=INK, alpha=0.15)
    axis.set_xscale("log")
    axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.minorticks_off()
    axis.set_title(f"{len(languages)} languages")
    return None


def _turns(axis: Axes, results: Results) -> None:
    axis.set_xlabel("languages added")
    axis.set_ylabel("AR")
    axis.set_title("English and the first language")
    first, drawn = results.languages[0], False
    for variant, line in ((ab.PACKS_IN_TURN, "-"), (ab.TOWER_IN_TURN, "--")):
        for language, colour, since in (("en", "#d55e00", 0), (first, INK, 1)):
            numbers = range(since, ab.IN_TURN + 1)
            each = [results.shares(variant, first, f"emoji after {n}", language) for n in numbers]
            means = [figure([shares]).mean for shares in each if shares is not None]
            if len(means) == len(numbers):
                how = "packs" if variant is ab.PACKS_IN_TURN else "whole tower"
                axis.plot(
                    numbers, means, line, marker="o", color=colour, label=f"{language}, {how}"
                )
                drawn = True
    if drawn:
        axis.legend(frameon=False)
        axis.set_ylim(bottom=0)
    else:
        _nothing(axis)


def _nothing(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", color=SOFT)
