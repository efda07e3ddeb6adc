"""Figures of the pixel models: training curves, who gets gradient, what variants become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, styled


@styled
def training_curves(
    records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str = ""
) -> Figure:
    """A panel per model: training loss thin, validation loss with dots, one line per seed.

    `records` maps a model to its seeds' rows of metrics.jsonl. Losses of different models have
    different units and therefore no common axis.
    """
    figure, axes = style.panels(1, len(records), 2.7, 2.1)
    for axis, (name, seeds) in zip(axes, records.items(), strict=True):
        for number, rows in enumerate(seeds):
            shown = {}
            for key in ("loss", "validation_loss"):
                pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                shown[key] = np.array(pairs, dtype=float).reshape(-1, 2).T
            if shown["validation_loss"].size == 0:
                raise FigureError(f"the records of {name} have no validation loss")
            label = {"label": "training"} if number == 0 else {}
            axis.plot(*shown["loss"], color=style.BLUE, alpha=0.35, linewidth=0.8, **label)
            label = {"label": "validation"} if number == 0 else {}
            axis.plot(*shown["validation_loss"], "o-", ms=2.5, lw=1, color=style.ORANGE, **label)
        axis.set(title=name, xlabel="update", yscale="log")
        style.decimal_ticks(axis.yaxis)
        axis.grid(axis="y")
    axes[0].set_ylabel("loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    style.headline(figure, title)
    return figure


@styled
def gradient_flow(norms: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Gradient norm of each part (columns) under each loss (rows); an empty cell got none."""
    parts = list(dict.fromkeys(part for row in norms.values() for part in row))
    values = np.array([[row.get(part, np.nan) for part in parts] for row in norms.values()])
    with np.errstate(divide="ignore"):
        shade = np.log10(np.where(values > 0, values, np.nan))
    figure, (axis,) = style.panels(1, 1, 1.6 + 1.1 * len(parts), 1.0 + 0.28 * len(norms))
    axis.imshow(shade, aspect="auto", cmap=style.SEQUENTIAL, alpha=0.55)
    for (row, column), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else "none" if value == 0 else f"{value:.2g}"
        axis.text(column, row, text, ha="center", va="center", color=style.INK, fontsize=8)
    axis.set_xticks(range(len(parts)), parts)
    axis.set_yticks(range(len(norms)), list(norms))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    style.headline(figure, title)
    return figure


@styled
def variant_bars(rows: Sequence[Any], full_rank: int, title: str = "") -> Figure:
    """Spread, effective rank and relative error of `pixelvariants.Variant` rows."""
    names = [f"{row.target} · {row.auxiliary}" for row in rows]
    figure, axes = style.panels(1, 3, 3.0, 0.9 + 0.26 * len(rows), sharey=True)
    place = np.arange(len(rows))[::-1]
    axes[0].barh(place, [row.std for row in rows], color=style.BLUE, height=0.6)
    axes[0].set(title="std of a latent dimension", yticks=place, yticklabels=names)
    axes[1].barh(place, [row.effective_rank for row in rows], color=style.GREEN, height=0.6)
    axes[1].set(title=f"effective rank of {full_rank}")
    axes[2].barh(place + 0.15, [row.predicted for row in rows], color=style.ORANGE, height=0.3)
    axes[2].barh(place - 0.15, [row.stay for row in rows], color=style.FAINT, height=0.3)
    axes[2].set(title="error / variance (grey: latent stays)")
    for axis in axes:
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
    style.headline(figure, title)
    return figure
