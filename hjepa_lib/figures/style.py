"""One look for every figure: fonts, colour-blind safe colours with one meaning each, sizes.

No pyplot, so no global state changes.
"""

import base64
import functools
import io
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from hjepa_lib.files import WorkbookError

DPI = 100
MOST_PANELS = 24
MOST_POINTS = 3000
"""Limits that keep every PNG small, whatever a figure is given (PL14)."""
INK, MUTED, FAINT, PAPER = "#22282F", "#6B7480", "#D5DAE0", "#FFFFFF"
FLOOR, WALL = "#F4F5F7", "#4A525C"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
GOAL, SUBGOAL = "#C8102E", ORANGE
SEQUENTIAL = "viridis"
CANDIDATES = LinearSegmentedColormap.from_list("candidates", [BLUE, "#7FB3D3", "#C9D3DC"])
"""Good (blue, 0) to bad (pale, 1) candidate plans."""
TIME = LinearSegmentedColormap.from_list("time", ["#9CC7E3", BLUE, "#0B2E4F"])
"""Early (pale) to late (dark) along a path."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E9ED",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
}


class FigureError(WorkbookError):
    """What was handed in cannot be drawn as the figure asked for."""


class Picture(Figure):
    """A figure that shows itself in notebooks; ticks, which are made late, have the style too."""

    def draw(self, renderer) -> None:
        with rc_context(STYLE):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return png(self)


def styled(make: Callable[..., Any]) -> Callable[..., Any]:
    """Run a figure function inside the house style; matplotlib's settings are kept."""

    @functools.wraps(make)
    def wrapper(*args, **kwargs):
        with rc_context(STYLE):
            return make(*args, **kwargs)

    return wrapper


def panels(
    rows: int, columns: int, width: float, height: float, title: str = "", **kwargs
) -> tuple[Picture, list]:
    """A picture of `rows` x `columns` panels of width x height inches, and its axes in a list."""
    figure = Picture(figsize=(columns * width, rows * height), layout="constrained")
    headline(figure, title)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)


def grid_of(
    count: int, columns: int, size: float, extra: float = 0.0, **kwargs
) -> tuple[Picture, list]:
    """Panels `size` inches wide and `extra` higher in rows of `columns`; spare ones are removed."""
    columns = min(columns, count)
    figure, axes = panels(-(-count // columns), columns, size, size + extra, **kwargs)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def headline(figure: Figure, title: str) -> None:
    """The figure's title at its left edge, in as many lines as its width asks for."""
    if title:
        title = textwrap.fill(title, int(10 * figure.get_figwidth()))  # characters per inch
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")


MARKS: dict[str, dict[str, Any]] = {
    "start": {"facecolor": PAPER, "edgecolor": INK, "lw": 1.3, "zorder": 6, "s": 26},
    "goal": {"color": GOAL, "edgecolor": PAPER, "lw": 0.9, "zorder": 7, "s": 34},
    "dot": {"edgecolor": PAPER, "lw": 0.8, "zorder": 8, "s": 14},
}


def mark(axis: Axes, kind: str, place: np.ndarray, **look: Any) -> None:
    """A start (hollow ring), a goal (red disc) or where a path has arrived, at (x, y)."""
    axis.scatter(*place, **MARKS[kind] | {"label": f"_{kind}"} | look)


def decimal_ticks(axis: Axis) -> None:
    """Ticks of a log axis at 1, 2, 5 per decade, written as plain numbers (0.05, 2)."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def png(figure: Figure) -> bytes:
    """The figure as PNG at the house resolution."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def rgb(figure: Figure) -> np.ndarray:
    """The figure as drawn, (Hpx, Wpx, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    """The image as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    """An image file as the address of an <img>."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class Html(str):
    """A piece of HTML that notebooks show instead of its text."""

    def __repr__(self) -> str:
        return "Html()"

    def _repr_html_(self) -> str:
        return str(self)


COLOURS = {
    "study": "#9AA3AD", "random_vit": "#5F6B76", "random": "#9AA3AD", "oracle": INK,
    "stand still": MUTED, "stay": MUTED, "prior": GREEN, "vjepa2": GREEN,
    "enc_dec_jepa": PURPLE, "enc_dec": ORANGE, "generative": ORANGE, "l2": ORANGE,
    "level 2": ORANGE, "hier": ORANGE, "jepa": BLUE,
    "flat": BLUE, "l1": BLUE, "level 1": BLUE, "gcbc": SKY, "idm": GREEN, "hilp": PURPLE,
    "graph": INK, "mean reward": MUTED, "action blind": MUTED, "full": MUTED,
}  # fmt: skip
"""What a planner, level or model is drawn in: the first of these that its name contains."""


def colour(name: str) -> str:
    """The one colour of a planner, level or model; unknown ones are purple."""
    return next((shade for mark, shade in COLOURS.items() if mark in name.lower()), PURPLE)


def look(name: str, cost: str | None = None) -> dict[str, Any]:
    """How a planner is drawn everywhere: its colour; by the cost (of its name, where `cost` is not
    given) dashed and hollow if latent, dash-dotted and square if graph."""
    shade, cost = colour(name), cost or name
    own = {"ls": "-.", "marker": "s"} if "graph" in cost else {}
    own = {"ls": "--", "mfc": PAPER} if "latent" in cost else own
    return {"color": shade, "ls": "-", "mfc": shade} | own
