"""Figures of frames, scores and latents of pixel models; latents of two share no axis."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import frame_grid
from hjepa_lib.figures.style import styled
from hjepa_lib.pixels.compare import LABELS, score
from hjepa_lib.pixels.measures import pick
from hjepa_lib.pixels.transitions import TransitionBatch

SAMPLES, FIRST_SEED = 5, 42  # pictures an epoch, and what their rows are drawn from
_TRUE = {"label": "encoded", "colour": style.INK}
_MODEL = {"label": "imagined", "colour": style.BLUE}
_COPY = {"label": "copy of the last latent", "colour": style.ORANGE}
LEAST_TSNE = 10  # different samples; below it the neighbourhoods of t-SNE mean nothing
TITLES = {"reward_mlp": "Reward MLP", "larp": "Look-ahead reward predictor"}
Parts = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name -> true and predicted rewards (n,)."""


def stack_names(length: int) -> list[str]:
    """Titles of a stack's frames: t-3, t-2, t-1, t."""
    return [*(f"t-{age}" for age in range(length - 1, 0, -1)), "t"]


def samples(batch: TransitionBatch, title: str = "") -> Figure:
    """Each transition as a row: the frames of s_t, then the newest of s_{t+1}."""
    rows = [[*state, after[-1]] for state, after in zip(batch.state, batch.next_state, strict=True)]
    labels = [
        f"a={np.array2string(action.numpy(), precision=1)}\nr={reward:.2f}"
        for action, reward in zip(batch.action, batch.reward, strict=True)
    ]
    return frame_grid(rows, [*stack_names(batch.state.shape[1]), "t+1"], labels, title)


def sample_rows(rows: int, epoch: int, count: int = SAMPLES) -> Tensor:
    """The rows shown at `epoch`, equal for every model."""
    return pick(rows, count, FIRST_SEED + epoch)


def masks(frame: np.ndarray, hidden: Sequence[np.ndarray], patch: int) -> Figure:
    """A frame (Hpx, Wpx) in [0, 1] under masks (N,), row by row; hidden patches are orange."""
    grids = [mask.reshape([side // patch for side in frame.shape]) for mask in hidden]
    covers = [np.kron(grid, np.ones((patch, patch))) > 0 for grid in grids]
    shown = [np.where(cover, np.reshape((0.90, 0.62, 0.0), (3, 1, 1)), frame) for cover in covers]
    titles = [f"{grid.sum()} of {grid.size} hidden" for grid in grids]
    return frame_grid([shown], titles, title="What the online encoder may see", size=1.7)


@styled
def horizon(comparison: Mapping[str, Any]) -> Figure:
    """px against steps, mean over seeds: imagined (lines), from true frames (dots), guesses.

    A model called "untrained ..." is grey.
    """
    figure, (axis,) = style.panels(1, 1, 7.0, 3.4, title="State px by imagined steps")
    guesses: dict[str, Any] = {}
    for name, seeds in comparison["curves"].items():
        mean = {kind: np.mean([one[kind] for one in seeds], axis=0) for kind in seeds[0]}
        if not mean:
            continue
        steps, label = np.arange(1, len(mean["guess"]) + 1), LABELS.get(name, name)
        shade = style.MUTED if name.startswith("untrained") else style.colour(name)
        if "imagined" in mean:
            draw.curve(axis, steps, mean["imagined"], label, shade)
        look = {} if "imagined" in mean else {"label": f"{label}, true frames"}
        axis.plot(steps, mean["encoded"], ":", color=shade, linewidth=1, **look)
        guesses = {"nothing changes": mean["last"], "mean position": mean["mean"]}
    axis.plot([], [], ":", color=style.MUTED, linewidth=1, label="from true frames")
    for (label, values), dash in zip(guesses.items(), ("--", "-."), strict=False):
        axis.plot(steps, values, dash, color=style.MUTED, label=label, linewidth=1)
    axis.set(xlabel="imagined steps", ylabel="px from the true position", yscale="log")
    style.decimal_ticks(axis.yaxis)
    axis.grid()
    draw.legend_beside(axis)
    return figure


@styled
def label_curves(rows: Sequence[Mapping[str, Any]], ceilings: Mapping[str, float]) -> Figure:
    """A panel per label, R2 of test rows against labelled rows, mean over seeds, by head.

    `ceilings` are levels by name, in the first panel.
    """
    table = pd.DataFrame(rows)
    table["r2"] = table["r2"].astype(float)
    looks = {"reward_mlp": "--", "larp": "-", "larp_copy": ":"}
    worlds = [*table["pays"].unique()]
    figure, axes = style.panels(1, len(worlds), 3.8, 2.8, sharey=True, title="R2 by labels")
    for axis, world in zip(axes, worlds, strict=True):
        own = table[table["pays"] == world]
        for (model, head), one in own.groupby(["model", "head"]):
            mean = one.groupby("labels")["r2"].mean()
            label = f"{LABELS[model]}, {head.replace('_', ' ')}"
            axis.plot(mean.index, mean, looks[head], color=style.colour(model), label=label)
        draw.levels(axis, ceilings if axis is axes[0] else {})
        axis.set(title=f"pays for the {world}", xlabel="labelled rows", xscale="log")
        axis.set_ylim(max(-0.5, own["r2"].min() - 0.05), 1.02)
        axis.set_xlim(own["labels"].min() / 1.3, own["labels"].max() * 1.3)  # R2 may be NaN
    axes[0].set_ylabel("R2")
    draw.legend(figure, axes, "outside lower center", ncols=3)
    return figure


@styled
def world_model_predictions(true: np.ndarray, imagined: np.ndarray, action: np.ndarray) -> Figure:
    """One roll-out: latent dimensions 0 and 1, norms, L2 error, first number of the action.

    true (T + 1, D) with the given start first; imagined (T, D); action (T,).
    """
    figure, axes = style.panels(2, 2, 3.4, 2.3, title="One imagined future")
    time, path = np.arange(len(true)), np.concatenate([true[:1], imagined])
    for values, look in ((true, _TRUE), (path, _MODEL)):
        draw.curve(axes[0], values[:, 0], values[:, 1], **look)
        draw.curve(axes[1], time, np.linalg.norm(values, axis=1), **look)
    for values, look in ((path, _MODEL), (true[:1], _COPY)):
        draw.curve(axes[2], time, np.linalg.norm(values - true, axis=1), **look)
    axes[3].step(time[:-1], action, where="mid", color=style.INK)
    axes[0].set(title="Latent dimensions 0 and 1", xlabel="dimension 0", ylabel="dimension 1")
    axes[1].set(title="Length of the latent", xlabel="step", ylabel="L2 norm")
    axes[2].set(title="Error of the roll-out", xlabel="step", ylabel="L2 distance to the truth")
    axes[3].set(title="Action embedding, first number", xlabel="step")
    draw.legend(figure, axes, "outside lower center", ncols=3)
    return figure


@styled
def reward_scatter(parts: Parts, note: str = "", title: str = "") -> Figure:
    """One square panel per name, score in its title."""
    figure, axes = style.grid_of(len(parts), 3, 2.5, 0.6, title=title)
    for axis, (name, (reward, predicted)) in zip(axes, parts.items(), strict=True):
        found = score(predicted, reward, note)
        draw.identity(axis, reward, predicted, "reward")
        first = "R² not estimable" if note else f"R² {found['r2']:.3f}"
        axis.set_title(f"{LABELS.get(name, name)}\n{first}, MSE {found['mse']:.4g}")
    return figure


@styled
def latent_maps(
    latents: Mapping[str, np.ndarray], colour: np.ndarray, colour_name: str, title: str = "Latents"
) -> Figure:
    """PCA (above) and t-SNE (below) of each model's latents (M, D), D > 1, coloured by (M,)."""
    figure, axes = style.panels(2, len(latents), 1.9, 1.9, title=title)
    limits = {"vmin": colour.min(), "vmax": colour.max(), "s": 4}
    for column, (name, values) in enumerate(latents.items()):
        different = len(np.unique(values, axis=0))
        tsne = TSNE(2, perplexity=min(30.0, (len(values) - 1) / 3), random_state=0)
        methods = (2, PCA(2, random_state=0)), (LEAST_TSNE, tsne)
        for axis, (least, method) in zip(axes[column :: len(latents)], methods, strict=True):
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
