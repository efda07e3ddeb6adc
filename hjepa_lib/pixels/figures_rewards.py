"""Figures of the reward heads: true against predicted rewards, and what looking ahead adds.

Plain arrays and rows of evaluation/rewards.py in, one matplotlib figure out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked, styled
from hjepa_lib.pixels.rewards import Score

LABELS = {
    "enc_dec": "encoder-decoder",
    "enc_dec_jepa": "encoder-decoder, JEPA style",
    "jepa": "JEPA",
    "vjepa2": "V-JEPA 2 style",
    "random": "random encoder",
    "random_vit": "random ViT encoder",
}
TITLES = {"reward_mlp": "Reward MLP", "larp": "Look-ahead reward predictor"}
FOLDERS = {"reward_mlp": "reward_plots", "larp": "larp_plots"}
"""Where FIG-2's scatter plots of a run stand, by head."""


def box_text(score: Score) -> str:
    """The lines of the box: R2, or why there is none, and MSE."""
    first = "R² not estimable" if score.r2 is None else f"R² {score.r2:.3f}"
    return f"{first}\nMSE {score.mse:.4g}"


def _scatter(axis: Axes, reward: np.ndarray, predicted: np.ndarray, score: Score) -> None:
    low, high = min(reward.min(), predicted.min()), max(reward.max(), predicted.max())
    margin = 0.05 * (high - low) or 0.5
    ends = (low - margin, high + margin)
    keep = style.subset(len(reward))
    axis.plot(ends, ends, color=style.MUTED, linewidth=1, linestyle="--", label="y = x")
    axis.scatter(reward[keep], predicted[keep], s=6, color=style.BLUE, alpha=0.35, linewidth=0)
    axis.set(xlim=ends, ylim=ends, aspect="equal", xlabel="true reward")
    look = {"boxstyle": "round", "facecolor": style.PAPER, "edgecolor": style.FAINT}
    axis.text(
        0.04, 0.96, box_text(score), transform=axis.transAxes, va="top", fontsize=8, bbox=look
    )


@styled
def reward_scatter(
    parts: Mapping[str, tuple[np.ndarray, np.ndarray, Score]], title: str = "", columns: int = 3
) -> Figure:
    """One square panel per name: true rewards (n,), predicted rewards (n,) and their score (FIG-2).

    At most 3,000 points a panel are drawn; the box speaks of all of them.
    """
    if not parts:
        raise FigureError("there is nothing to scatter")
    figure, axes = style.grid_of(len(parts), columns, 2.5, 0.25)
    for axis, (name, (reward, predicted, score)) in zip(axes, parts.items(), strict=True):
        reward = checked(reward, "reward", None)
        _scatter(axis, reward, checked(predicted, "predicted", len(reward)), score)
        axis.set_title(name)
    for axis in axes[::columns]:
        axis.set_ylabel("predicted reward")
    style.headline(figure, title)
    return figure


def save_scatters(
    folder: Path, head: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray, Score]]
) -> list[Path]:
    """One PNG per model in reward_plots/ or larp_plots/ of the run folder; returns the paths."""
    place = folder / FOLDERS[head]
    place.mkdir(parents=True, exist_ok=True)
    return [
        style.save(reward_scatter({LABELS.get(name, name): part}), place / f"{name}.png")
        for name, part in parts.items()
    ]


@styled
def look_ahead_gain(worlds: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """One panel per world, one line per model: MSE of LARP minus MSE of another head.

    `worlds` maps a panel title to rows of `rewards.comparison`. Left of the zero line looking ahead
    helps. Models without an imagined latent are left out.
    """
    lines = {name: [row for row in rows if row["look_ahead"]] for name, rows in worlds.items()}
    if not any(lines.values()):
        raise FigureError("no model has an imagined latent")
    height = 1.0 + 0.42 * max(len(rows) for rows in lines.values())
    figure, axes = style.panels(1, len(lines), 4.0, height)
    looks = {
        "look_ahead": (-0.13, style.ORANGE, "o", "LARP minus reward MLP"),
        "over_copy": (0.13, style.MUTED, "s", "LARP minus LARP given the present latent"),
    }
    for axis, (world, rows) in zip(axes, lines.items(), strict=True):
        axis.axvline(0, color=style.INK, linewidth=0.8)
        for key, (shift, colour, marker, label) in looks.items():
            values = checked(np.array([row[key] for row in rows]), key, None, 3)
            place = np.arange(len(rows)) + shift
            axis.hlines(place, values[:, 1], values[:, 2], color=colour, linewidth=1.6)
            axis.plot(values[:, 0], place, marker, color=colour, ms=5, label=label)
        axis.set_yticks(range(len(rows)), [LABELS.get(row["model"], row["model"]) for row in rows])
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="difference of MSE, 95 % interval")
        axis.set_title(world)
        axis.grid(axis="x")
    handles, labels = axes[0].get_legend_handles_labels()
    # Two labels side by side are wider than one panel.
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(lines)))
    style.headline(figure, title)
    return figure
