"""Figures of the grid models: coloured grids, curves of both models, the four reward panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives, style
from hjepa_lib.figures.data import frame_grid
from hjepa_lib.figures.style import styled

PALETTE = (
    "#ECEEF1", "#0072B2", "#E69F00", "#009E73", "#C8102E", "#56B4E9", "#F0E442", "#CC79A7",
    "#7B4B2A", "#8A8F98", "#1B1F24",
)  # fmt: skip
"""Colours 0 (the background) to 10, told apart by lightness as well as hue."""
_CELL = 12  # px


def painted(grids: np.ndarray) -> np.ndarray:
    """Canvases (N, S, S) of colours -1..10 -> (N, 3, Hpx, Wpx) uint8, lines between the cells."""
    look = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in (*PALETTE, style.FAINT)]
    cells = np.moveaxis(np.array(look, np.uint8)[np.asarray(grids)], -1, 1)  # -1, padding, is last
    frames = cells.repeat(_CELL, -1).repeat(_CELL, -2)
    frames[..., ::_CELL, :] = frames[..., ::_CELL] = 255
    return frames


def show_grids(
    rows: Sequence[Sequence[np.ndarray]],
    columns: Sequence[str],
    labels: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Rows of canvases (S, S); `columns` above the first row, `labels` left of each row."""
    return frame_grid([painted(np.stack(row)) for row in rows], columns, labels, title, 1.6)


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
    figure, axes = style.grid_of(len(keys), columns, 2.7, -0.8, title=title)
    for axis, key in zip(axes, keys, strict=True):
        for rows in records:
            primitives.learning(axis, rows, f"train/{key}", f"val/{key}")
        for name, value in (limits or {}).get(key, {}).items():
            axis.axhline(value, color=style.GOAL, linewidth=0.8, linestyle=":")
            axis.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), fontsize=7,
                          color=style.GOAL, va="bottom")  # fmt: skip
        axis.set(title=key.replace("_", " "), xlabel="update")
    primitives.legend(figure, axes, "outside upper right", ncols=2)
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
    figure, (scatter, residual, curve, bars) = style.panels(2, 2, 3.4, 2.5, title)
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
    return figure
