"""Figures of the grid models: coloured grids, curves of both models, the four reward panels.

The 11 colours are told apart by lightness as well as hue, in print and by colour-blind readers;
background is pale, padding is hatched white. Plain arrays and rows of metrics.jsonl in, one figure
out (see `figures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked, styled
from hjepa_lib.grids.world import COLOURS, PAD

PALETTE = (
    "#ECEEF1", "#0072B2", "#E69F00", "#009E73", "#C8102E", "#56B4E9", "#F0E442", "#CC79A7",
    "#7B4B2A", "#8A8F98", "#1B1F24",
)  # fmt: skip
"""Colours 0 to 10; 0 is the background."""
MODELS = {"jepa": style.BLUE, "generative": style.ORANGE, "random": style.MUTED}
_MAP = ListedColormap(PALETTE)
_NORM = BoundaryNorm(np.arange(-0.5, COLOURS), COLOURS)


def draw_grid(axis: Axes, grid: np.ndarray, title: str = "") -> None:
    """A canvas (S, S) of colours -1..10 on `axis`, one square per cell, padding hatched."""
    grid = checked(grid, "a grid", None, None)
    if grid.min() < PAD or grid.max() >= COLOURS or (grid != grid.round()).any():
        raise FigureError(f"a grid holds whole colours from {PAD} to {COLOURS - 1}")
    height, width = grid.shape
    hatch = {"facecolor": style.PAPER, "edgecolor": style.FAINT, "hatch": "////", "linewidth": 0}
    axis.add_patch(Rectangle((-0.5, -0.5), width, height, zorder=0, **hatch))
    axis.imshow(np.ma.masked_less(grid, 0), cmap=_MAP, norm=_NORM, interpolation="nearest")
    for place in np.arange(-0.5, max(height, width)):
        axis.axhline(place, color=style.PAPER, linewidth=0.4)
        axis.axvline(place, color=style.PAPER, linewidth=0.4)
    axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=8)


@styled
def grid_strip(
    grids: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 6, title: str = ""
) -> Figure:
    """Canvases in rows of `columns`, each with its title; at most 24 are drawn."""
    grids = list(grids)[: style.MOST_PANELS]
    if not grids:
        raise FigureError("no grid to draw")
    figure, axes = style.grid_of(len(grids), columns, 1.45, 0.35)
    titles = [*titles, *[""] * len(grids)]
    for axis, grid, name in zip(axes, grids, titles, strict=False):
        draw_grid(axis, grid, name)
    style.headline(figure, title)
    return figure


@styled
def predictions(
    rows: Sequence[Sequence[np.ndarray]], names: Sequence[str], titles: Sequence[str] = ()
) -> Figure:
    """One row of canvases per transition, such as state, true next, predicted next."""
    if not rows or any(len(row) != len(names) for row in rows):
        raise FigureError(f"every row needs {len(names)} grids: {', '.join(names)}")
    rows = list(rows)[: style.MOST_PANELS // len(names)]
    figure, axes = style.panels(len(rows), len(names), 1.6, 1.75)
    for k, row in enumerate(rows):
        for i, grid in enumerate(row):
            draw_grid(axes[k * len(names) + i], grid, names[i] if k == 0 else "")
        label = titles[k] if k < len(titles) else ""
        axes[k * len(names)].set_ylabel(label, fontsize=7.5, rotation=0, ha="right", va="center")
    style.headline(figure, "Next grids, true and predicted")
    return figure


@styled
def curves(
    records: Sequence[Sequence[Mapping[str, Any]]],
    keys: Sequence[str],
    limits: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
    columns: int = 3,
) -> Figure:
    """One panel per key, one line per seed: training thin, validation with dots.

    `records` has the rows of metrics.jsonl of every seed; a key such as `jepa_cosine_sim` is looked
    for under `train/` and `val/`. `limits` draws named horizontal lines in the panel of a key.
    """
    columns = min(columns, len(keys))
    figure, axes = style.panels(-(-len(keys) // columns), columns, 2.7, 1.9, sharex=True)
    for spare in axes[len(keys) :]:
        spare.remove()
    for i, (axis, key) in enumerate(zip(axes, keys, strict=False)):
        drawn = 0
        for rows in records:
            for part, look in (("train", {"alpha": 0.25, "lw": 0.8}), ("val", {"marker": "o"})):
                pairs = [(row["step"], row[f"{part}/{key}"]) for row in rows
                         if row.get(f"{part}/{key}") is not None]  # fmt: skip
                drawn += len(pairs)
                colour = style.BLUE if part == "train" else style.ORANGE
                if pairs:
                    axis.plot(*zip(*pairs, strict=True), color=colour, ms=2.5, **look)
        if not drawn:
            raise FigureError(f"no record has train/{key} or val/{key}")
        for name, value in (limits or {}).get(key, {}).items():
            axis.axhline(value, color=style.GOAL, linewidth=0.8, linestyle=":")
            axis.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), fontsize=7,
                          color=style.GOAL, va="bottom")  # fmt: skip
        axis.set_title(key.replace("_", " "))
        axis.grid(axis="y")
        if i + columns >= len(keys):
            axis.set_xlabel("update")
        axis.tick_params(labelbottom=i + columns >= len(keys))
    lines = [("training", style.BLUE), ("validation", style.ORANGE)]
    handles = [axes[0].plot([], [], color=colour)[0] for _, colour in lines]
    figure.legend(handles, [name for name, _ in lines], loc="outside upper right", ncols=2)
    style.headline(figure, title)
    return figure


@styled
def reward_panels(
    true: np.ndarray,
    predicted: np.ndarray,
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, float]],
    title: str = "Goal-conditioned reward",
) -> Figure:
    """GRID-9's four panels: scatter with y = x, residuals, learning curve, R2 of every predictor.

    `true` and `predicted` are (n,); `records` the rows of metrics.jsonl of this head; `scores` maps
    a predictor's name to its measures. Where R2 is not estimable, bars of the MSE are drawn.
    """
    true = checked(true, "true", None)
    predicted = checked(predicted, "predicted", *true.shape)
    figure, (scatter, residual, curve, bars) = style.panels(2, 2, 3.4, 2.5)
    some = style.subset(len(true))
    ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())])
    scatter.plot(ends, ends, color=style.MUTED, linewidth=0.9)
    scatter.scatter(true[some], predicted[some], s=8, color=style.BLUE, alpha=0.35, lw=0)
    scatter.set(xlabel="true reward", ylabel="predicted reward", title="predicted against true")
    residual.hist(predicted - true, bins=40, color=style.BLUE)
    residual.axvline(0, color=style.MUTED, linewidth=0.9)
    residual.set(xlabel="predicted - true", ylabel="transitions", title="residuals")
    for key, colour, marker in (("loss", style.BLUE, None), ("validation_loss", style.ORANGE, "o")):
        pairs = [(row["step"], row[key]) for row in records if row.get(key) is not None]
        if pairs:
            label = "validation" if marker else "training"
            curve.plot(*zip(*pairs, strict=True), color=colour, marker=marker, ms=3, label=label)
    curve.set(xlabel="update", ylabel="MSE", ylim=(0, None), title="learning curve")
    curve.legend()
    measured = [one.get("r2") for one in scores.values()]
    known = all(value is not None and np.isfinite(value) for value in measured)
    values = measured if known else [one["mse"] for one in scores.values()]
    places = np.arange(len(scores))[::-1]
    colours = [next((c for k, c in MODELS.items() if name.startswith(k)), style.PURPLE)
               for name in scores]  # fmt: skip
    bars.barh(places, values, color=colours, height=0.65)
    bars.set_yticks(places, labels=[name.replace("_", ", ") for name in scores])
    bars.axvline(0, color=style.MUTED, linewidth=0.9)
    bars.xaxis.set_major_locator(MaxNLocator(5))
    bars.set_title("R2 on held-out episodes" if known else "MSE (R2 not estimable)")
    for axis in (scatter, residual, curve):
        axis.grid(axis="y")
    style.headline(figure, title)
    return figure
