"""Figures of the grid models: coloured grids, curves of both models, the four reward panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives, style
from hjepa_lib.figures.style import FigureError, checked, styled
from hjepa_lib.grids.world import COLOURS, PAD

PALETTE = (
    "#ECEEF1", "#0072B2", "#E69F00", "#009E73", "#C8102E", "#56B4E9", "#F0E442", "#CC79A7",
    "#7B4B2A", "#8A8F98", "#1B1F24",
)  # fmt: skip
"""Colours 0 (the background) to 10, told apart by lightness as well as hue."""
_MAP, _NORM = ListedColormap(PALETTE), BoundaryNorm(np.arange(-0.5, COLOURS), COLOURS)


def draw_grid(axis: Axes, grid: np.ndarray, title: str = "") -> None:
    """A canvas (S, S) of colours -1..10 on `axis`, one square per cell, padding hatched."""
    grid = checked(grid, "a grid", None, None)
    if grid.min() < PAD or grid.max() >= COLOURS or (grid != grid.round()).any():
        raise FigureError(f"a grid holds whole colours from {PAD} to {COLOURS - 1}")
    axis.patch.set(hatch="////", edgecolor=style.FAINT)
    look = {"cmap": _MAP, "norm": _NORM, "edgecolor": style.PAPER, "linewidth": 0.4}
    axis.pcolormesh(np.ma.masked_less(grid, 0), **look)
    axis.set(xticks=[], yticks=[], ylim=(len(grid), 0))
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
    for axis, grid, name in zip(axes, grids, [*titles, *[""] * len(grids)], strict=False):
        draw_grid(axis, grid, name)
    style.headline(figure, title)
    return figure


def predictions(
    rows: Sequence[Sequence[np.ndarray]], names: Sequence[str], titles: Sequence[str]
) -> Figure:
    """One row of canvases per transition, such as state, true next, predicted next."""
    labels = [f"{title}: {name}" for title in titles for name in names]
    grids = [grid for row in rows for grid in row]
    return grid_strip(grids, labels, len(names), "Next grids, true and predicted")


@styled
def curves(
    records: Sequence[Sequence[Mapping[str, Any]]],
    keys: Sequence[str],
    limits: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
    columns: int = 3,
) -> Figure:
    """One panel per key, which is looked for under `train/` and `val/`, with a curve per seed.

    `records` has the rows of metrics.jsonl of every seed; `limits` names horizontal lines of a key.
    """
    figure, axes = style.grid_of(len(keys), columns, 2.7, -0.8)
    for axis, key in zip(axes, keys, strict=True):
        for rows in records:
            primitives.learning(axis, rows, f"train/{key}", f"val/{key}")
        for name, value in (limits or {}).get(key, {}).items():
            axis.axhline(value, color=style.GOAL, linewidth=0.8, linestyle=":")
            axis.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), fontsize=7,
                          color=style.GOAL, va="bottom")  # fmt: skip
        axis.set(title=key.replace("_", " "), xlabel="update")
    primitives.legend(figure, axes, "outside upper right", ncols=2)
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
    """GRID-9's four panels: scatter with y = x, residuals, learning curve, bars of R2 (or MSE).

    `true` and `predicted` are (n,); `records` the rows of metrics.jsonl of this head; `scores` maps
    a predictor's name to its measures.
    """
    true = checked(true, "true", None)
    predicted = checked(predicted, "predicted", *true.shape)
    figure, (scatter, residual, curve, bars) = style.panels(2, 2, 3.4, 2.5)
    primitives.identity(scatter, true, predicted, "reward")
    scatter.set_title("predicted against true")
    residual.hist(predicted - true, bins=40, color=style.BLUE)
    residual.axvline(0, color=style.MUTED, linewidth=0.9)
    residual.set(xlabel="predicted - true", ylabel="transitions", title="residuals")
    primitives.learning(curve, records, "loss", "validation_loss")
    curve.set(xlabel="update", ylabel="MSE", ylim=(0, None), title="learning curve")
    curve.legend()
    known = all(one.get("r2") is not None for one in scores.values())
    values = [one["r2" if known else "mse"] for one in scores.values()]
    names = [name.replace("_", ", ") for name in scores]
    bars.barh(names, values, color=[style.colour(name) for name in scores], height=0.65)
    bars.invert_yaxis()
    bars.axvline(0, color=style.MUTED, linewidth=0.9)
    bars.set_title("R2 on held-out episodes" if known else "MSE (R2 not estimable)")
    style.headline(figure, title)
    return figure
