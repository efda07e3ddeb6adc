"""Figures of frames and trainings on pixels; frames are (C, H, W) as in figures.data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import film, frame_grid, show_frame
from hjepa_lib.figures.style import styled
from hjepa_lib.files import write_atomic
from hjepa_lib.pixels.measures import pick
from hjepa_lib.pixels.transitions import TransitionBatch, Transitions

SAMPLES, FIRST_SEED = 5, 42  # pictures an epoch, and what their rows are drawn from
_TRUE, _MODEL, _COPY = (
    {"label": label, "colour": colour}
    for label, colour in (
        ("encoded", style.INK), ("imagined", style.BLUE), ("copy of the last latent", style.ORANGE)
    )
)  # fmt: skip


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
    """The rows shown at `epoch`: a function of (rows, epoch) alone, so equal for every model."""
    return pick(rows, count, FIRST_SEED + epoch)


def save_samples(
    data: Transitions, folder: str | Path, count: int = 50, seed: int = 0
) -> list[Path]:
    """At most `count` random transitions as `sample_NN.png` in `folder` (DATA-9)."""
    batch = data[pick(len(data), count, seed)]
    pictures = {"t+1": batch.next_state[:, -1]}
    return write_films(Path(folder), "sample_{:02d}.png", batch.state, pictures)


def write_films(
    folder: Path, name: str, stacks: Tensor, others: Mapping[str, Tensor]
) -> list[Path]:
    """PNGs `name.format(number)`: the frames of a stack (n, L, C, H, W), then titled `others`."""
    titles = [*stack_names(stacks.shape[1]), *others]
    return [
        write_atomic(folder / name.format(number), film([*stack, *rest], titles))
        for number, (stack, *rest) in enumerate(zip(stacks, *others.values(), strict=True))
    ]


@styled
def masks(frame: np.ndarray, hidden: Sequence[np.ndarray], patch: int) -> Figure:
    """A frame (Hpx, Wpx) in [0, 1] under masks (N,), row by row; hidden patches are flat."""
    figure, axes = style.grid_of(len(hidden), 4, 1.7, 0.25, title="What the online encoder may see")
    for axis, mask in zip(axes, hidden, strict=True):
        grid = np.asarray(mask, dtype=bool).reshape([side // patch for side in frame.shape])
        show_frame(axis, frame[None], f"{grid.sum()} of {grid.size} hidden")
        cover = np.zeros((*frame.shape, 4))
        cover[np.kron(grid, np.ones((patch, patch), dtype=bool))] = (0.90, 0.62, 0.0, 1.0)
        axis.imshow(cover)
    return figure


@styled
def training_curves(
    records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str = ""
) -> Figure:
    """A panel per model, a line per seed: losses in that model's rows of metrics.jsonl by seed."""
    figure, axes = style.panels(1, len(records), 2.7, 2.1, title=title)
    for axis, (name, seeds) in zip(axes, records.items(), strict=True):
        for rows in seeds:
            draw.learning(axis, rows, "loss", "validation_loss", log=True)
        axis.set(title=name, xlabel="update")
    axes[0].set_ylabel("loss")
    return _whole(figure, axes)


@styled
def gradient_flow(norms: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Gradient norm of each part (columns) under each loss (rows); an empty cell got none."""
    table = pd.DataFrame.from_dict(norms, orient="index")
    size = 1.6 + 1.1 * table.shape[1], 1.0 + 0.28 * len(table)
    figure, (axis,) = style.panels(1, 1, *size, title=title)
    shade = np.log10(table.where(table > 0))
    axis.imshow(shade, aspect="auto", cmap=style.SEQUENTIAL, alpha=0.55)
    for (row, column), value in np.ndenumerate(table):
        text = "" if np.isnan(value) else "none" if value == 0 else f"{value:.2g}"
        axis.text(column, row, text, ha="center", va="center", color=style.INK, fontsize=8)
    axis.set_xticks(range(table.shape[1]), table.columns)
    axis.set_yticks(range(len(table)), table.index)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


@styled
def variant_bars(rows: Sequence[Any], full_rank: int, title: str = "") -> Figure:
    """Spread, effective rank and relative error of rows of `studies.try_variants`."""
    panels = {
        "std of a latent dimension": "std",
        f"effective rank of {full_rank}": "effective_rank",
        "error / variance": "predicted",
        "error of no change / variance": "stay",
    }
    height = 0.9 + 0.26 * len(rows)
    figure, axes = style.panels(1, len(panels), 2.3, height, sharey=True, title=title)
    names = [f"{row['target']} · {row['auxiliary']}" for row in rows]
    for axis, (name, key) in zip(axes, panels.items(), strict=True):
        axis.barh(names, [row[key] for row in rows], color=style.BLUE, height=0.6)
        axis.set_title(name)
        axis.grid(axis="x")
    axes[0].invert_yaxis()
    return figure


@styled
def world_model_predictions(true: np.ndarray, imagined: np.ndarray, action: np.ndarray) -> Figure:
    """One roll-out: latent dimensions 0 and 1, norms, L2 error, first number of the action.

    true (T + 1, D) with the given start first; imagined (T, D); action (T,).
    """
    figure, axes = style.panels(2, 2, 3.4, 2.3, title="One imagined future")
    time, path = np.arange(len(true)), np.concatenate([true[:1], imagined])
    for values, look in ((true, _TRUE), (path, _MODEL)):
        draw.curve(axes[0], values[:, 0], values[:, -1 if true.shape[1] < 2 else 1], **look)
        draw.curve(axes[1], time, np.linalg.norm(values, axis=1), **look)
    for values, look in ((path, _MODEL), (true[:1], _COPY)):
        draw.curve(axes[2], time, np.linalg.norm(values - true, axis=1), **look)
    axes[3].step(time[:-1], action, where="mid", color=style.INK)
    axes[0].set(title="Latent dimensions 0 and 1", xlabel="dimension 0", ylabel="dimension 1")
    axes[1].set(title="Length of the latent", xlabel="step", ylabel="L2 norm")
    axes[2].set(title="Error of the roll-out", xlabel="step", ylabel="L2 distance to the truth")
    axes[3].set(title="Action embedding, first number", xlabel="step")
    return _whole(figure, axes)


@styled
def step_errors(curves: Mapping[str, Sequence[float]], spread: float | None = None) -> Figure:
    """Mean L1 error against imagined steps; `spread` marks the error of a constant latent."""
    figure, (axis,) = style.panels(1, 1, 4.6, 2.8, title="Error per step")
    for name, look in (("model", _MODEL), ("copy_last", _COPY)):
        draw.curve(axis, np.arange(1, len(curves[name]) + 1), curves[name], **look)
    if spread is not None:
        draw.levels(axis, {"best constant latent": spread})
    axis.set(xlabel="imagined steps", ylabel="mean L1 error", ylim=(0, None))
    axis.grid(axis="y")
    axis.legend()
    return figure


def _whole(figure: Figure, axes: Sequence[Axes]) -> Figure:
    draw.legend(figure, axes, "outside upper right", ncols=3)
    return figure
