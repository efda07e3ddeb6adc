"""Figures of frames: stacks and predictions, samples of a data set, train against validation.

Frames come as uint8 in 0..255 or as floats in [0, 1] and are always drawn on the fixed scale
[0, 1]: no frame is stretched to its own range, and one given in 0..255 as floats is refused
instead of being drawn white (F14). All helpers take tensors or arrays (C, H, W), C = 1 or 3.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, styled
from hjepa_lib.files import write_atomic
from hjepa_lib.pixels.checks import Check, Embedding, sample_rows
from hjepa_lib.pixels.transitions import TransitionBatch, Transitions

_OUT_OF_SCALE = 16.0
"""Floats above this cannot be an overshooting prediction of [0, 1], but are 0..255 (F14)."""
_ZOOM, _GAP = 2, 4  # of sample strips: pixels per pixel, and between frames
_DOMINANT = 0.8
"""Share of samples in one bin above which shares are drawn on a log scale."""
TRAIN, VALIDATION = style.BLUE, style.ORANGE


# --- frames -----------------------------------------------------------------------------------
def to_image(frame: torch.Tensor | np.ndarray) -> np.ndarray:
    """A frame (C, H, W) as a picture in [0, 1]: (H, W) for C = 1, (H, W, 3) for C = 3.

    uint8 is divided by 255, floats are cut to [0, 1]. FigureError for another shape, values that
    are not finite, or floats that are evidently in 0..255.
    """
    values = frame.detach().cpu() if isinstance(frame, torch.Tensor) else torch.as_tensor(frame)
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise FigureError(f"a frame must be (1 or 3, H, W), got {tuple(values.shape)}")
    image = values.permute(1, 2, 0).float().numpy()
    if values.dtype == torch.uint8:
        image = image / 255
    elif not np.isfinite(image).all():
        raise FigureError("a frame holds NaN or infinite values")
    elif image.max(initial=0) > _OUT_OF_SCALE:
        raise FigureError(f"a frame of floats must be in [0, 1], its largest is {image.max():.4g}")
    image = np.clip(image, 0, 1)
    return image[..., 0] if image.shape[-1] == 1 else image


def show_frame(axis: Axes, frame: torch.Tensor | np.ndarray, title: str = "") -> None:
    """Draw one frame on the fixed scale [0, 1], without ticks."""
    axis.imshow(to_image(frame), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, fontsize=8)


@styled
def frame_grid(
    rows: Sequence[Sequence[torch.Tensor | np.ndarray]],
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str = "",
    size: float = 1.05,
) -> Figure:
    """Frames in rows of equal length; `columns` above the first row, `labels` left of each row."""
    width = len(rows[0]) if rows else 0
    if width == 0 or any(len(row) != width for row in rows):
        raise FigureError("a grid of frames needs rows of equal length, at least one frame each")
    figure, axes = style.panels(len(rows), width, size, size)
    for number, row in enumerate(rows):
        for place, frame in enumerate(row):
            axis = axes[number * width + place]
            show_frame(axis, frame, columns[place] if columns and number == 0 else "")
            if labels and place == 0:
                axis.set_ylabel(labels[number], fontsize=8)
    style.headline(figure, title)
    return figure


def stack_names(length: int) -> list[str]:
    """Column titles of a stack and the next frame: t-3, t-2, t-1, t, t+1."""
    return [f"t-{age}" if age else "t" for age in range(length - 1, -1, -1)] + ["t+1"]


def samples(batch: TransitionBatch, title: str = "") -> Figure:
    """Each transition as a row: the frames of s_t, then the newest of s_{t+1}."""
    rows = [[*state, after[-1]] for state, after in zip(batch.state, batch.next_state, strict=True)]
    labels = [_action_label(a, float(r)) for a, r in zip(batch.action, batch.reward, strict=True)]
    return frame_grid(rows, stack_names(batch.state.shape[1]), labels, title)


def _action_label(action: torch.Tensor, reward: float) -> str:
    text = str(int(action)) if action.ndim == 0 else ",".join(f"{a:.1f}" for a in action.tolist())
    return f"a={text}\nr={reward:.2f}"


def sample_strip(state: torch.Tensor, after: torch.Tensor) -> bytes:
    """PNG of the frames of s_t (L, C, H, W) and, behind a wider gap, the newest of s_{t+1}."""
    images = [to_image(frame) for frame in (*state, after[-1])]
    images = [np.repeat(np.repeat(image, _ZOOM, 0), _ZOOM, 1) for image in images]
    if images[0].ndim == 2:
        images = [np.repeat(image[..., None], 3, 2) for image in images]
    gap = np.ones((len(images[0]), _GAP, 3))
    parts = [part for image in images[:-1] for part in (image, gap)]
    strip = np.concatenate([*parts, gap, gap, images[-1]], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(strip * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def save_samples(
    data: Transitions, folder: str | Path, count: int = 50, seed: int = 0
) -> list[Path]:
    """At most `count` random transitions as `sample_NN.png` in `folder` (DATA-9)."""
    rows = sample_rows(data, count, seed)
    batch = data.batch(rows)
    strips = map(sample_strip, batch.state, batch.next_state)
    names = (f"sample_{number:02d}.png" for number in range(len(rows)))
    return [
        write_atomic(Path(folder) / name, strip) for name, strip in zip(names, strips, strict=True)
    ]


# --- data sets --------------------------------------------------------------------------------
@styled
def distributions(
    train: dict[str, np.ndarray], validation: dict[str, np.ndarray], checks: Sequence[Check]
) -> Figure:
    """A histogram of both parts per checked quantity, with the smallest p-value."""
    figure, axes = style.panels(1, len(checks), 2.7, 2.1)
    for axis, check in zip(axes, checks, strict=True):
        parts = (train[check.quantity], validation[check.quantity])
        edges = np.histogram_bin_edges(np.concatenate(parts), bins=24)
        for values, colour, name in zip(
            parts, (TRAIN, VALIDATION), ("training", "validation"), strict=True
        ):
            weights = np.full(len(values), 1 / max(len(values), 1))
            look = {"histtype": "step", "lw": 1.5, "color": colour, "label": name}
            shares, *_ = axis.hist(values, edges, weights=weights, **look)
            if shares.max() > _DOMINANT:
                axis.set_yscale("log")  # the rest would be a flat line
        axis.set_title(f"{check.quantity}: {_verdict(check)}")
        axis.set_ylabel("share of samples")
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="y")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2)
    style.headline(figure, "Training and validation part")
    return figure


def _verdict(check: Check) -> str:
    found = "alike" if check.alike else "flagged"
    return f"{found}, least p {min(check.p_values.values()):.2g}" if check.p_values else found


@styled
def embeddings(embedding: Embedding) -> Figure:
    """PCA and t-SNE of frames, training and validation part in their colours."""
    planes: list[tuple[str, Any]] = [("PCA", embedding.pca)]
    if embedding.tsne is not None:
        planes.append(("t-SNE", embedding.tsne))
    figure, axes = style.panels(1, len(planes), 3.4, 3.0)
    for axis, (name, points) in zip(axes, planes, strict=True):
        for held, colour, label in ((0, TRAIN, "training"), (1, VALIDATION, "validation")):
            chosen = points[embedding.held_out == held]
            axis.scatter(*chosen.T, s=9, color=colour, alpha=0.6, linewidth=0, label=label)
        axis.set_title(name)
        axis.set(xticks=[], yticks=[])
    share = embedding.explained
    axes[0].set_xlabel(f"component 1 ({share[0]:.0%} of the variance)")
    axes[0].set_ylabel(f"component 2 ({share[1]:.0%})")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2)
    style.headline(figure, "Frames as points of the plane")
    return figure
