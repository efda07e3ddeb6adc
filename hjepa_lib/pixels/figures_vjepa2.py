"""Figures of the two-stage model: what it imagines, and how fast that drifts from the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hjepa_lib.figures import style
from hjepa_lib.figures.style import styled


@styled
def world_model_predictions(true: np.ndarray, imagined: np.ndarray, action: np.ndarray) -> Figure:
    """One roll-out: latent dimensions 0 and 1, norms, L2 error, first number of the action.

    true (T + 1, D) with the given start first; imagined (T, D); action (T,).
    """
    true = style.checked(true, "true", None, None)
    steps, dim = len(true) - 1, true.shape[1]
    imagined = style.checked(imagined, "imagined", steps, dim)
    action = style.checked(action, "action", steps)
    figure, axes = style.panels(2, 2, 3.4, 2.3)
    time = np.arange(steps + 1)
    path = np.concatenate([true[:1], imagined])  # starts at the given latent
    second = min(1, dim - 1)
    for values, look in ((true, _TRUE), (path, _MODEL)):
        axes[0].plot(values[:, 0], values[:, second], "o-", ms=3, **look)
        axes[1].plot(time, np.linalg.norm(values, axis=1), "o-", ms=3, **look)
    style.mark_start(axes[0], true[0, [0, second]])
    axes[0].set(title="Latent dimensions 0 and 1", xlabel="dimension 0", ylabel="dimension 1")
    axes[1].set(title="Length of the latent", xlabel="step", ylabel="L2 norm")
    axes[2].plot(time, np.linalg.norm(path - true, axis=1), "o-", ms=3, **_MODEL)
    axes[2].plot(time, np.linalg.norm(true[:1] - true, axis=1), "o-", ms=3, **_COPY)
    axes[2].set(title="Error of the roll-out", xlabel="step", ylabel="L2 distance to the truth")
    axes[3].step(time[:-1], action, where="mid", color=style.INK)
    axes[3].set(title="Action embedding, first number", xlabel="step")
    for axis in axes[1:]:
        axis.grid(axis="y")
    lines = {line.get_label(): line for axis in axes for line in axis.lines}
    shown = {name: line for name, line in lines.items() if not name.startswith("_")}
    figure.legend(shown.values(), shown.keys(), loc="outside upper right", ncols=3)
    style.headline(figure, "One imagined future")
    return figure


@styled
def step_errors(curves: Mapping[str, Sequence[float]], spread: float | None = None) -> Figure:
    """Mean L1 error against imagined steps; `spread` marks the error of a constant latent."""
    figure, (axis,) = style.panels(1, 1, 4.6, 2.8)
    looks = {"model": _MODEL, "copy_last": _COPY}
    for name, values in curves.items():
        values = style.checked(values, name, None)
        look = looks.get(name, {"color": style.PURPLE, "label": name})
        axis.plot(np.arange(1, len(values) + 1), values, "o-", ms=3.5, **look)
    if spread is not None:
        axis.axhline(spread, color=style.MUTED, lw=1, ls=":", label="best constant latent")
    axis.set(xlabel="imagined steps", ylabel="mean L1 error")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")
    axis.legend()
    style.headline(figure, "Error per step")
    return figure


@styled
def masks(frame: np.ndarray, hidden: Sequence[np.ndarray], patch: int) -> Figure:
    """A frame (Hpx, Wpx) in [0, 1] under masks (N,), row by row; hidden patches are flat."""
    frame = style.checked(frame, "frame", None, None)
    figure, axes = style.grid_of(len(hidden), 4, 1.7, 0.25)
    rows, columns = (side // patch for side in frame.shape)
    for axis, mask in zip(axes, hidden, strict=True):
        grid = np.asarray(mask, dtype=bool).reshape(rows, columns)
        covered = np.kron(grid, np.ones((patch, patch), dtype=bool))
        axis.imshow(frame, cmap="gray", vmin=0, vmax=1)
        cover = np.zeros((*frame.shape, 4))
        cover[covered] = (0.90, 0.62, 0.0, 1.0)  # the house's orange
        axis.imshow(cover)
        axis.set(xticks=[], yticks=[], title=f"{grid.sum()} of {grid.size} hidden")
    style.headline(figure, "What the online encoder may see")
    return figure


_TRUE = {"color": style.INK, "label": "encoded"}
_MODEL = {"color": style.BLUE, "label": "imagined"}
_COPY = {"color": style.ORANGE, "label": "copy of the last latent"}
