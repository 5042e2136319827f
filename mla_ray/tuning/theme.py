"""The look of a sweep's pictures: two themes, an empty figure in the colours of one, its PNG.

Drawn without pyplot, whose figures are global and would stay in memory.
"""

from dataclasses import dataclass
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from PIL import Image

from mla_ray.tuning.outcome import Status

DPI = 160
WIDTH = 6.6
"""Inches. With text of 10 points a phone that shows all of it still shows it legibly."""


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


def _colormap(*colours: str) -> Colormap:
    return LinearSegmentedColormap.from_list("ar", colours)


LIGHT = Theme(
    ground="#ffffff",
    ink="#1b1f24",
    soft="#8a9099",
    status={"done": "#0072b2", "stopped": "#e69f00", "diverged": "#d55e00", "failed": "#555b63"},
    ramp=_colormap("#c8e020", "#5ec962", "#21918c", "#3b528b", "#440154"),
)
DARK = Theme(
    ground="#16181d",
    ink="#e6e8eb",
    soft="#858c96",
    status={"done": "#56b4e9", "stopped": "#e69f00", "diverged": "#ff7f3f", "failed": "#b0b6be"},
    ramp=_colormap("#4a4f8f", "#2c728e", "#27ad81", "#aadc32", "#fde725"),
)


def new_figure(theme: Theme, width: float = WIDTH, height: float = 3.7) -> tuple[Figure, Axes]:
    """An empty figure of so many inches, and its axes."""
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


def add_legend(figure: Figure, axes: Axes, theme: Theme) -> None:
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


def notice(reason: str, theme: Theme) -> Figure:
    """A figure that says in words why there is no other."""
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
