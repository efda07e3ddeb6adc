"""Figures of scores, rewards and latent spaces: latents of two models share no unit and no axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import styled
from hjepa_lib.pixels.compare import LABELS, RANKED, SIGMAS, floor, score
from hjepa_lib.pixels.measures import participation_ratio, spectrum

LEAST_TSNE = 10  # different samples; below it the neighbourhoods of t-SNE mean nothing
TITLES = {"reward_mlp": "Reward MLP", "larp": "Look-ahead reward predictor"}
FOLDERS = {"reward_mlp": "reward_plots", "larp": "larp_plots"}
"""Where FIG-2's scatter plots of a run stand, by head."""
SCORES = ("latent_error", "frame_error", "reward_r2", "larp_r2", "larp_gain")
Parts = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name -> true and predicted rewards (n,)."""


@styled
def reward_scatter(parts: Parts, note: str = "", title: str = "") -> Figure:
    """One square panel per name, score in its title (FIG-2)."""
    figure, axes = style.grid_of(len(parts), 3, 2.5, 0.25, title=title)
    for axis, (name, (reward, predicted)) in zip(axes, parts.items(), strict=True):
        found = score(predicted, reward, note)
        draw.identity(axis, reward, predicted, "reward")
        first = "R² not estimable" if note else f"R² {found['r2']:.3f}"
        axis.set_title(f"{LABELS.get(name, name)}\n{first}, MSE {found['mse']:.4g}")
    return figure


def save_scatters(folder: Path, head: str, parts: Parts, note: str = "") -> list[Path]:
    """One PNG per model in reward_plots/ or larp_plots/ of the run folder; returns the paths."""
    return [
        style.save(reward_scatter({name: part}, note), folder / FOLDERS[head] / f"{name}.png")
        for name, part in parts.items()
    ]


@styled
def look_ahead_gain(worlds: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """A panel per world, a line per model: squared error of LARP against that of other heads.

    `worlds` maps a panel title to claims. Left of the zero line looking ahead helps.
    """
    looks = {
        "reward_mlp": ("LARP against reward MLP", style.ORANGE),
        "larp_copy": ("LARP against LARP given the present latent", style.MUTED),
    }
    figure, axes = style.panels(1, len(worlds), 4.0, 2.6, title=title)
    for axis, (world, found) in zip(axes, worlds.items(), strict=True):
        table = pd.DataFrame(found).dropna(subset=["difference"])
        groups = []
        for head, (label, colour) in looks.items():
            own = table[table["against"] == head]
            names = own["model"].map(LABELS).tolist()
            groups.append((label, names, own[["difference", "low", "high"]], {"color": colour}))
        axis.axvline(0, color=style.INK, linewidth=0.8)
        draw.interval_rows(axis, names, groups)
        axis.set(title=world, xlabel="difference, share of the error")
    # Two labels side by side are wider than one panel.
    draw.legend(figure, axes, "outside lower center", ncols=min(2, len(worlds)))
    return figure


@styled
def latent_maps(
    latents: Mapping[str, np.ndarray], colour: np.ndarray, colour_name: str, title: str = "Latents"
) -> Figure:
    """PCA (above) and t-SNE (below) of each model's latents (M, D), D > 1, coloured by (M,)."""
    figure, axes = style.panels(2, len(latents), 1.9, 1.9, title=title)
    limits = {"vmin": colour.min(), "vmax": colour.max(), "s": 4}
    for column, (name, values) in enumerate(latents.items()):
        different = len(np.unique(values, axis=0)) if values.shape[1] > 1 else 0
        tsne = TSNE(2, perplexity=min(30.0, (len(values) - 1) / 3), random_state=0)
        for axis, least, method in zip(
            axes[column :: len(latents)], (2, LEAST_TSNE), (PCA(2, random_state=0), tsne),
            strict=True,
        ):  # fmt: skip
            points = np.full((len(values), 2), np.nan)
            if different >= least:
                points = method.fit_transform(values)
            else:
                axis.text(0.5, 0.5, "not estimable", ha="center", transform=axis.transAxes)
            dots = draw.scatter(axis, *points.T, colour, **limits)
            axis.set(xticks=[], yticks=[])
        axes[column].set_title(LABELS.get(name, name), fontsize=8)
    axes[0].set_ylabel("PCA")
    axes[len(latents)].set_ylabel("t-SNE")
    draw.colour_bar(figure, dots, axes, colour_name)
    return figure


@styled
def score_bars(
    comparison: Mapping[str, Any], columns: Sequence[str] = SCORES, title: str = "Scores"
) -> Figure:
    """One panel per column, one line per model: mean over seeds with its 95 % interval.

    The dashed line is the trivial guess; a missing number is written out, never drawn as 0.
    """
    models, height = comparison["models"], 0.3 * len(comparison["models"]) - 2.4
    figure, axes = style.grid_of(len(columns), 3, 3.2, height, sharey=True, title=title)
    for axis, column in zip(axes, columns, strict=True):
        better = f", {RANKED[column][0]}er is better" if column in RANKED else ""
        axis.set_title(column.replace("_", " ") + better, fontsize=8.5)
        guess = floor(comparison, column)
        if isinstance(guess, float):
            axis.axvline(guess, color=style.MUTED, linewidth=1, linestyle="--")
        cells = pd.DataFrame([one[column] for one in models.values()], [LABELS[m] for m in models])
        ends = cells[["mean", "low", "high"]].astype(float).T.ffill().T  # one seed has no interval
        if column.endswith("_error") and ends["mean"].min() > 0:
            ends["low"] = ends["low"].clip(lower=ends["mean"].min() / 3)  # an axis without a 0
            axis.set_xscale("log")
            style.decimal_ticks(axis.xaxis)
        groups = [
            (None, [LABELS[name]], [ends.loc[LABELS[name]]], {"color": style.colour(name)})
            for name in models
        ]
        draw.interval_rows(axis, list(cells.index), groups, spread=0)
        for place, text in enumerate(cells["text"].where(ends["mean"].isna(), "")):
            axis.text(0.03, place, text, transform=axis.get_yaxis_transform(), va="center",
                      fontsize=7.5, color=style.MUTED)  # fmt: skip
    return figure


@styled
def spectra(latents: Mapping[str, np.ndarray], title: str = "Spectra of the latents") -> Figure:
    """Share of the variance by direction, largest first, for each model's latents (M, D)."""
    figure, (axis,) = style.panels(1, 1, 7.4, 3.2, title=title)
    for name, values in latents.items():
        found, ratio = spectrum(values), participation_ratio(values)
        said = "no variance" if np.isnan(ratio) else f"participation ratio {ratio:.1f}"
        share = np.where(found > 0, found / max(found.sum(), 1e-300), np.nan)
        look = {"color": style.colour(name), "label": f"{LABELS[name]}: {said}"}
        axis.plot(np.arange(1, len(found) + 1), share, **look)
    axis.set(yscale="log", xlabel="direction", ylabel="share of the variance", ylim=(1e-8, 1.5))
    return _beside(figure, axis)


@styled
def noise_curves(comparison: Mapping[str, Any], title: str = "Pixel noise") -> Figure:
    """Relative latent shift against the noise on pixels, mean over seeds with 95 % intervals."""
    figure, (axis,) = style.panels(1, 1, 6.6, 3.0, title=title)
    for name, cells in comparison["models"].items():
        found = pd.DataFrame([cells[f"noise_{sigma:g}"] for sigma in SIGMAS])
        if found["mean"].notna().all():
            band = None if found["low"].isna().any() else (found["low"], found["high"])
            draw.curve(axis, SIGMAS, found["mean"], LABELS[name], style.colour(name), band)
    axis.set(xlabel="standard deviation of the noise, pixels in [0, 1]", ylim=(0, None))
    axis.set_ylabel("latent shift / spread")
    return _beside(figure, axis)


def _beside(figure: Figure, axis: Any) -> Figure:
    axis.grid()
    draw.legend_beside(axis)
    return figure
