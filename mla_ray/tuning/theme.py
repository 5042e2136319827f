"""Style of the charts of a sweep: light and dark theme, empty figures, and PNG output.

The module does not use pyplot, because pyplot keeps all figures in global memory.
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
"""Width of a figure in inches. Text of 10 points stays legible when a phone shows all of it."""


@dataclass(frozen=True)
class Theme:
    """Colors of a theme.

    The status colors are those of Okabe and Ito, which color-blind readers can distinguish. The
    color scale of AR is viridis.
    """

    ground: str
    ink: str
    soft: str
    """Color of axes and of secondary elements."""
    status: dict[Status, str]
    ramp: Colormap
    """Color scale of AR. The worst AR is close to the background color and the best far from it."""


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
    """Return an empty figure and its axes. Sizes are in inches."""
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
    """Add a legend above the axes, where it does not cover a trial."""
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
    """Return a figure with the reason why a chart cannot be drawn."""
    figure = Figure((WIDTH, 1.1), dpi=DPI, facecolor=theme.ground)
    FigureCanvasAgg(figure)
    words = f"Not drawn: {reason}."
    figure.text(0.5, 0.5, words, ha="center", va="center", size=10, color=theme.ink, wrap=True)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as PNG with a palette of 256 colors."""
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)  # a "$" in a name does not start a formula
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    # A palette makes the file much smaller, and the page contains each chart twice. MAXCOVERAGE
    # keeps rare colors, such as that of the only diverged trial.
    picture = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    small = BytesIO()
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()
