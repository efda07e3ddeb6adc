"""Figures of the representation report: latents as maps, scores with intervals, spectra, noise.

Latents by model name and dictionaries of evaluation/comparison.py in, one matplotlib figure out.
Axes that show the latents of different models are never shared: their units differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked, styled
from hjepa_lib.pixels.comparison import floor
from hjepa_lib.pixels.figures_rewards import LABELS
from hjepa_lib.pixels.measures import SIGMAS, participation_ratio, spectrum

COLOURS = {
    "enc_dec": style.ORANGE,
    "enc_dec_jepa": style.PURPLE,
    "jepa": style.BLUE,
    "vjepa2": style.GREEN,
    "random": "#9AA3AD",
    "random_vit": "#5F6B76",
}
SCORES = ("latent_error", "frame_error", "reward_r2", "larp_r2", "larp_gain")
SHAPE = (
    "participation_ratio", "effective_rank", "two_nn_dimension", "trustworthiness_at_5",
    "continuity_at_5", "smoothness_r2", "uniformity",
)  # fmt: skip
LEAST_TSNE = 10  # samples; below it the neighbourhoods of t-SNE mean nothing


@styled
def latent_maps(
    latents: Mapping[str, np.ndarray],
    colour: np.ndarray,
    colour_name: str,
    title: str = "Latents",
) -> Figure:
    """PCA (upper row) and t-SNE (lower row) of each model's latents (M, D), coloured by (M,)."""
    colour = checked(colour, "colour", None)
    if not latents:
        raise FigureError("there are no latents to draw")
    figure, axes = style.panels(2, len(latents), 1.9, 1.9)
    for column, (name, values) in enumerate(latents.items()):
        values = checked(values, name, len(colour), None)
        for row, flatten in enumerate((_pca, _tsne)):
            axis = axes[row * len(latents) + column]
            dots = _map(axis, flatten, values, colour)
        axes[column].set_title(LABELS.get(name, name), fontsize=8)
    axes[0].set_ylabel("PCA")
    axes[len(latents)].set_ylabel("t-SNE")
    bar = figure.colorbar(dots, ax=axes, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label(colour_name)
    bar.outline.set_visible(False)
    style.headline(figure, title)
    return figure


def _map(axis: Axes, flatten: Callable, values: np.ndarray, colour: np.ndarray) -> Any:
    axis.set(xticks=[], yticks=[])
    points = flatten(values)
    if points is None:
        axis.text(0.5, 0.5, "not estimable", ha="center", transform=axis.transAxes, fontsize=8)
        points = np.full((len(values), 2), np.nan)
    limits = {"vmin": colour.min(), "vmax": colour.max()}
    return axis.scatter(*points.T, c=colour, s=4, lw=0, cmap=style.SEQUENTIAL, **limits)


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
    rows = -(-len(columns) // across)
    across = min(across, len(columns))
    figure, axes = style.panels(rows, across, 3.2, 0.75 + 0.3 * len(models))
    for spare in axes[len(columns) :]:
        spare.remove()
    for axis, column in zip(axes, columns, strict=False):
        _bars(axis, comparison, column, models)
    for axis in axes[: len(columns) : across]:
        axis.set_yticks(range(len(models)), [LABELS.get(name, name) for name in models])
    style.headline(figure, title)
    return figure


def _bars(axis: Axes, comparison: Mapping[str, Any], column: str, models: list[str]) -> None:
    better = comparison["columns"][column]["better"]
    arrow = {"low": ", lower is better", "high": ", higher is better"}.get(better, "")
    axis.set_title(column.replace("_", " ") + arrow, fontsize=8.5)
    guess = floor(comparison, column)
    if guess is not None and not isinstance(guess, str):
        axis.axvline(guess, color=style.MUTED, linewidth=1, linestyle="--")
    found = [comparison["models"][name][column] for name in models]
    means = [cell["mean"] for cell in found if cell["mean"] is not None]
    ratio = column.endswith("_error") and bool(means) and min(means) > 0
    least = min(means) / 3 if ratio else -np.inf  # where an interval leaves a logarithmic axis
    if ratio:
        axis.set_xscale("log")
        style.decimal_ticks(axis.xaxis)
    for place, (name, cell) in enumerate(zip(models, found, strict=True)):
        colour = COLOURS.get(name, style.SKY)
        if cell["mean"] is None:
            axis.annotate(
                cell["text"], (0.03, place), xycoords=("axes fraction", "data"), va="center",
                fontsize=7.5, color=style.MUTED,
            )  # fmt: skip
            continue
        if cell["low"] is not None:
            axis.hlines(place, max(cell["low"], least), cell["high"], color=colour, linewidth=2)
        axis.plot(cell["mean"], place, "o", color=colour, ms=5)
    axis.set(ylim=(len(models) - 0.5, -0.5), yticks=[])
    axis.grid(axis="x")


@styled
def spectra(latents: Mapping[str, np.ndarray], title: str = "Spectra of the latents") -> Figure:
    """Share of the variance by direction, largest first, for each model's latents (M, D)."""
    figure, (axis,) = style.panels(1, 1, 7.4, 3.2)
    for name, values in latents.items():
        found = spectrum(checked(values, name, None, None))
        total = found.sum()
        label = LABELS.get(name, name)
        if total <= 0:
            axis.plot([], [], color=COLOURS.get(name, style.SKY), label=f"{label}: no variance")
            continue
        ratio = participation_ratio(values)
        share = np.where(found > 0, found / total, np.nan)
        axis.plot(
            np.arange(1, len(found) + 1), share, color=COLOURS.get(name, style.SKY),
            label=f"{label}: participation ratio {ratio:.1f}",
        )  # fmt: skip
    axis.set(yscale="log", xlabel="direction", ylabel="share of the variance", ylim=(1e-8, 1.5))
    axis.grid()
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


@styled
def noise_curves(comparison: Mapping[str, Any], title: str = "Pixel noise") -> Figure:
    """Relative latent shift against the noise on pixels, mean over seeds with 95 % intervals."""
    figure, (axis,) = style.panels(1, 1, 6.6, 3.0)
    for name, cells in comparison["models"].items():
        found = [cells[f"noise_{sigma:g}"] for sigma in SIGMAS]
        if any(cell["mean"] is None for cell in found):
            continue
        colour = COLOURS.get(name, style.SKY)
        axis.plot(SIGMAS, [c["mean"] for c in found], "o-", ms=4, color=colour,
                  label=LABELS.get(name, name))  # fmt: skip
        if all(cell["low"] is not None for cell in found):
            ends = [[c[key] for c in found] for key in ("low", "high")]
            axis.fill_between(SIGMAS, *ends, color=colour, alpha=0.15, lw=0)
    axis.set(xlabel="standard deviation of the noise, pixels in [0, 1]", ylim=(0, None))
    axis.set_ylabel("latent shift / spread")
    axis.grid()
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure
