"""Figures of scores, rewards and latent spaces: rows and dictionaries in, one figure out.

Latents of different models have different units, so their panels share no axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked, styled
from hjepa_lib.pixels.compare import LABELS, Score
from hjepa_lib.pixels.measures import SIGMAS, participation_ratio, spectrum
from hjepa_lib.pixels.tables import floor

LEAST_TSNE = 10  # samples; below it the neighbourhoods of t-SNE mean nothing
TITLES = {"reward_mlp": "Reward MLP", "larp": "Look-ahead reward predictor"}
FOLDERS = {"reward_mlp": "reward_plots", "larp": "larp_plots"}
"""Where FIG-2's scatter plots of a run stand, by head."""
SCORES = ("latent_error", "frame_error", "reward_r2", "larp_r2", "larp_gain")
SHAPE = (
    "participation_ratio", "effective_rank", "two_nn_dimension", "trustworthiness_at_5",
    "continuity_at_5", "smoothness_r2", "uniformity",
)  # fmt: skip


# --- rewards (13) -----------------------------------------------------------------------------
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
        draw.identity(axis, reward, checked(predicted, "predicted", len(reward)), "reward")
        first = "R² not estimable" if score.r2 is None else f"R² {score.r2:.3f}"
        look = {"boxstyle": "round", "facecolor": style.PAPER, "edgecolor": style.FAINT}
        axis.text(0.04, 0.96, f"{first}\nMSE {score.mse:.4g}", transform=axis.transAxes, va="top",
                  fontsize=8, bbox=look)  # fmt: skip
        axis.set_title(name)
    style.headline(figure, title)
    return figure


def save_scatters(
    folder: Path, head: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray, Score]]
) -> list[Path]:
    """One PNG per model in reward_plots/ or larp_plots/ of the run folder; returns the paths."""
    return [
        style.save(
            reward_scatter({LABELS.get(name, name): part}), folder / FOLDERS[head] / f"{name}.png"
        )
        for name, part in parts.items()
    ]


@styled
def look_ahead_gain(worlds: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """One panel per world, one line per model: MSE of LARP minus MSE of another head.

    `worlds` maps a panel title to rows of `results.reward_comparison`. Left of the zero line
    looking ahead helps. Models without an imagined latent are left out.
    """
    lines = {name: [row for row in rows if row["look_ahead"]] for name, rows in worlds.items()}
    if not any(lines.values()):
        raise FigureError("no model has an imagined latent")
    height = 1.0 + 0.42 * max(map(len, lines.values()))
    figure, axes = style.panels(1, len(lines), 4.0, height)
    looks = {
        "look_ahead": (-0.13, {"color": style.ORANGE, "label": "LARP minus reward MLP"}),
        "over_copy": (0.13, {"color": style.MUTED, "marker": "s",
                             "label": "LARP minus LARP given the present latent"}),
    }  # fmt: skip
    for axis, (world, rows) in zip(axes, lines.items(), strict=True):
        axis.axvline(0, color=style.INK, linewidth=0.8)
        for key, (shift, look) in looks.items():
            values = checked(np.array([row[key] for row in rows]), key, None, 3)
            draw.intervals(axis, np.arange(len(rows)) + shift, *values.T, across=True, **look)
        axis.set_yticks(range(len(rows)), [LABELS.get(row["model"], row["model"]) for row in rows])
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="difference of MSE, 95 % interval")
        axis.set_title(world)
        axis.grid(axis="x")
    # Two labels side by side are wider than one panel.
    draw.legend(figure, axes, "outside lower center", ncols=min(2, len(lines)))
    style.headline(figure, title)
    return figure


# --- representation (15) ----------------------------------------------------------------------
@styled
def latent_maps(
    latents: Mapping[str, np.ndarray], colour: np.ndarray, colour_name: str, title: str = "Latents"
) -> Figure:
    """PCA (upper row) and t-SNE (lower row) of each model's latents (M, D), coloured by (M,)."""
    colour = checked(colour, "colour", None)
    if not latents:
        raise FigureError("there are no latents to draw")
    figure, axes = style.panels(2, len(latents), 1.9, 1.9)
    limits = {"vmin": colour.min(), "vmax": colour.max(), "s": 4}
    for column, (name, values) in enumerate(latents.items()):
        values = checked(values, name, len(colour), None)
        for axis, flatten in ((axes[column], _pca), (axes[len(latents) + column], _tsne)):
            points = flatten(values)
            if points is None:
                axis.text(0.5, 0.5, "not estimable", ha="center", transform=axis.transAxes)
                points = np.full((len(values), 2), np.nan)
            dots = draw.scatter(axis, *points.T, colour, **limits)
            axis.set(xticks=[], yticks=[])
        axes[column].set_title(LABELS.get(name, name), fontsize=8)
    axes[0].set_ylabel("PCA")
    axes[len(latents)].set_ylabel("t-SNE")
    draw.colour_bar(figure, dots, axes, colour_name)
    style.headline(figure, title)
    return figure


def _pca(values: np.ndarray) -> np.ndarray | None:
    from sklearn.decomposition import PCA

    if min(values.shape) < 2 or not values.var(0).any():
        return None
    return PCA(n_components=2, random_state=0).fit_transform(values)


def _tsne(values: np.ndarray) -> np.ndarray | None:
    from sklearn.manifold import TSNE

    if len(np.unique(values, axis=0)) < LEAST_TSNE:
        return None
    perplexity = min(30.0, (len(values) - 1) / 3)
    start = "pca" if values.shape[1] > 1 else "random"
    return TSNE(2, perplexity=perplexity, init=start, random_state=0).fit_transform(values)


@styled
def score_bars(
    comparison: Mapping[str, Any],
    columns: Sequence[str] = SCORES,
    title: str = "Scores",
    across: int = 3,
) -> Figure:
    """One panel per column, one line per model: mean over seeds with its 95 % interval.

    The dashed line is the trivial guess; errors relative to it are drawn on logarithmic axes. A
    missing number is written out, never drawn as 0.
    """
    models = list(comparison["models"])
    height = 0.75 + 0.3 * len(models) - 3.2
    figure, axes = style.grid_of(len(columns), across, 3.2, height)
    for axis, column in zip(axes, columns, strict=True):
        _score_rows(axis, comparison, column, models)
    for axis in axes[::across]:
        axis.set_yticks(range(len(models)), [LABELS.get(name, name) for name in models])
    style.headline(figure, title)
    return figure


def _score_rows(axis: Axes, comparison: Mapping[str, Any], column: str, models: list[str]) -> None:
    better = comparison["columns"][column]["better"]
    arrow = {"low": ", lower is better", "high": ", higher is better"}.get(better, "")
    axis.set_title(column.replace("_", " ") + arrow, fontsize=8.5)
    guess = floor(comparison, column)
    if guess is not None and not isinstance(guess, str):
        draw_at = {"color": style.MUTED, "linewidth": 1, "linestyle": "--"}
        axis.axvline(guess, **draw_at)
    found = [comparison["models"][name][column] for name in models]
    means = [cell["mean"] for cell in found if cell["mean"] is not None]
    least = -np.inf
    if column.endswith("_error") and means and min(means) > 0:
        least = min(means) / 3  # where an interval leaves a logarithmic axis
        axis.set_xscale("log")
        style.decimal_ticks(axis.xaxis)
    for place, (name, cell) in enumerate(zip(models, found, strict=True)):
        if cell["mean"] is None:
            axis.annotate(
                cell["text"], (0.03, place), xycoords=("axes fraction", "data"), va="center",
                fontsize=7.5, color=style.MUTED,
            )  # fmt: skip
            continue
        ends = [cell["mean"] if cell[end] is None else cell[end] for end in ("low", "high")]
        triple = ([cell["mean"]], [max(ends[0], least)], [ends[1]])
        draw.intervals(axis, [place], *triple, across=True, color=style.colour(name))
    axis.set(ylim=(len(models) - 0.5, -0.5), yticks=[])
    axis.grid(axis="x")


@styled
def spectra(latents: Mapping[str, np.ndarray], title: str = "Spectra of the latents") -> Figure:
    """Share of the variance by direction, largest first, for each model's latents (M, D)."""
    figure, (axis,) = style.panels(1, 1, 7.4, 3.2)
    for name, values in latents.items():
        found = spectrum(checked(values, name, None, None))
        ratio = participation_ratio(values)
        said = "no variance" if np.isnan(ratio) else f"participation ratio {ratio:.1f}"
        share = np.where(found > 0, found / max(found.sum(), 1e-300), np.nan)
        look = {"color": style.colour(name), "label": f"{LABELS.get(name, name)}: {said}"}
        axis.plot(np.arange(1, len(found) + 1), share, **look)
    axis.set(yscale="log", xlabel="direction", ylabel="share of the variance", ylim=(1e-8, 1.5))
    return _beside(figure, axis, title)


@styled
def noise_curves(comparison: Mapping[str, Any], title: str = "Pixel noise") -> Figure:
    """Relative latent shift against the noise on pixels, mean over seeds with 95 % intervals."""
    figure, (axis,) = style.panels(1, 1, 6.6, 3.0)
    for name, cells in comparison["models"].items():
        found = [cells[f"noise_{sigma:g}"] for sigma in SIGMAS]
        mean, low, high = ([cell[key] for cell in found] for key in ("mean", "low", "high"))
        if None not in mean:
            band = None if None in low else (low, high)
            draw.curve(axis, SIGMAS, mean, LABELS.get(name, name), style.colour(name), band)
    axis.set(xlabel="standard deviation of the noise, pixels in [0, 1]", ylim=(0, None))
    axis.set_ylabel("latent shift / spread")
    return _beside(figure, axis, title)


def _beside(figure: Figure, axis: Axes, title: str) -> Figure:
    axis.grid()
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure
