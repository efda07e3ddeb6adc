"""Figures of frames, trajectories and latents; positions are px of the frame, (x, y) with y down.

Frames are uint8 in 0..255 or floats in 0..1 and look the same either way.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from sklearn.decomposition import PCA

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, styled

_OVERSHOOT = 16.0  # floats above this are no prediction of [0, 1], but 0..255


def frame_rgb(frames: Any, predicted: bool = False) -> np.ndarray:
    """Frames (..., C, Hpx, Wpx) -> RGB (..., Hpx, Wpx, 3) uint8; C is 1, 2 (dot, walls) or 3.

    Of stacked frames, of 2 or 3 channels each, the newest is shown.
    FigureError for other shapes and for values outside the range, such as normalised frames;
    `predicted` clips what a decoder draws a little outside 0..1.
    """
    frames = _newest(frames)
    if frames.ndim < 3 or frames.shape[-3] not in (1, 2, 3):
        raise FigureError(f"frames must be (..., 1 to 3, Hpx, Wpx), got {frames.shape}")
    unit = frames / 255.0 if frames.dtype == np.uint8 else frames
    low, high = (-np.inf, _OVERSHOOT) if predicted else (0, 1)
    inside = np.isfinite(unit) & (unit >= low) & (unit <= high)
    if unit.dtype.kind != "f" or not inside.all():
        raise FigureError(
            f"frames must be uint8 in 0..255 or floats in 0..1, got {frames.dtype} "
            f"in {frames.min():g}..{frames.max():g}"
        )
    unit = np.moveaxis(unit.clip(0, 1), -3, -1)  # (..., Hpx, Wpx, C)
    if unit.shape[-1] == 2:
        dot, walls = unit[..., :1], unit[..., 1:]
        unit = dot + (1 - dot) * walls * np.array([0.45, 0.49, 0.54])
    return np.rint(255 * np.broadcast_to(unit, (*unit.shape[:-1], 3))).astype(np.uint8)


def _newest(frames: Any) -> np.ndarray:
    frames = np.asarray(frames.detach().cpu() if hasattr(frames, "detach") else frames)
    channels = frames.shape[-3] if frames.ndim > 2 else 0
    each = 3 if channels % 2 else 2
    return frames[..., -each:, :, :] if channels > 3 and channels % each == 0 else frames


def room_of(frames: Any) -> np.ndarray:
    """Backgrounds for `show_room`: of frames (dot, walls) the walls, of others all, as pale RGB."""
    frames = _newest(frames)
    if frames.shape[-3] == 2:
        return frames[..., 1, :, :]
    return 255 - (255 - frame_rgb(frames)) // 3  # so that lines on it are seen


@styled
def frame_grid(
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str = "",
    size: float = 1.05,
) -> Figure:
    """Frames (C, Hpx, Wpx) in rows; `columns` above the first row, `labels` left of each row."""
    width = len(rows[0])
    figure, axes = style.panels(len(rows), width, size, size, title)
    heads = [*columns, *[""] * width * len(rows)]
    for axis, frame, head in zip(axes, chain(*rows), heads, strict=False):
        axis.imshow(frame_rgb(frame, predicted=True), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(head, fontsize=8, pad=3)
    for axis, label in zip(axes[::width], labels, strict=False):
        axis.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def film(frames: Sequence[Any], captions: Sequence[str]) -> bytes:
    """PNG of frames (C, Hpx, Wpx) side by side under their captions, 2 screen pixels per px."""
    gap, head = 8, 16
    large = [frame_rgb(one, predicted=True).repeat(2, 0).repeat(2, 1) for one in frames]
    panels = [np.pad(one, [(head, gap), (gap, 0), (0, 0)], constant_values=255) for one in large]
    end = np.full((len(panels[0]), gap, 3), 255, np.uint8)
    canvas = Image.fromarray(np.hstack([*panels, end]))
    for number, caption in enumerate(captions):
        left = gap + number * panels[0].shape[1]
        ImageDraw.Draw(canvas).text((left, 2), caption, fill=style.INK)
    return style.encoded(canvas)


@styled
def motion(steps: np.ndarray, turns: np.ndarray, positions: np.ndarray, room: Any) -> Figure:
    """Step lengths (n,) px, turning angles (n',) degrees, and where positions (m, 2) px lie.

    The map has a cell for each pixel of the background `room` (Hpx, Wpx).
    """
    figure, (left, middle, right) = style.panels(1, 3, 2.9, 2.6, "How the dot moves")
    for axis, values in ((left, steps), (middle, turns)):
        axis.hist(values, bins=60, density=True, color=style.BLUE)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    told = f"steps: mean {np.mean(steps):.2f}, std {np.std(steps):.2f} px"
    left.set(xlabel="step (px)", xlim=(0, None), title=told)
    middle.set(xlabel="turn (degrees)", xlim=(-180, 180), title="turns between steps")
    middle.set_xticks([-180, -90, 0, 90, 180])
    draw.show_room(right, room)
    edges = [np.arange(side + 1) - 0.5 for side in np.shape(room)[:2]]
    visits = np.histogram2d(positions[:, 1], positions[:, 0], bins=edges)[0]
    shown = np.ma.masked_equal(visits, 0) / visits[visits > 0].mean()
    top = np.quantile(shown.compressed(), 0.99)
    image = right.pcolormesh(*edges[::-1], shown, cmap=style.SEQUENTIAL, vmin=0, vmax=top)
    draw.colour_bar(figure, image, right, "visits / mean")
    right.set(title="where it is", anchor="W")
    return figure


@styled
def layout_lists(lists: Mapping[str, np.ndarray]) -> Figure:
    """Walls and doors of named layout lists, each (n, 2) rows (wall_x, door_y) px, in one plane."""
    figure, (axis,) = style.panels(1, 1, 4.6, 3.4, "Layouts by list")
    for (name, rows), colour in zip(
        lists.items(), (style.SKY, style.ORANGE, style.PURPLE), strict=True
    ):
        look = {"s": 11, "marker": "s", "lw": 0, "color": colour}
        axis.scatter(*np.transpose(rows), label=f"{name}: {len(rows)}", **look)
    axis.set(xlabel="wall_x (px)", ylabel="door_y (px)")
    axis.invert_yaxis()
    draw.legend_beside(axis)
    return figure


@styled
def latent_map(latents: np.ndarray, positions: np.ndarray, unit: str = "px") -> Figure:
    """First two principal components of latents (n, D), coloured by positions (n, 2), x and y."""
    pca = PCA(n_components=2, random_state=0)
    flat = pca.fit_transform(np.asarray(latents, float))
    first, second = 100 * pca.explained_variance_ratio_
    figure, axes = style.panels(1, 2, 3.5, 3.0, "Latent map", sharey=True)
    for axis, values, name in zip(axes, np.transpose(positions), "xy", strict=True):
        dots = draw.scatter(axis, *flat.T, values, s=5)
        axis.set(xlabel=f"component 1 ({first:.0f} % of the variance)", xticks=[], yticks=[])
        draw.colour_bar(figure, dots, axis, f"{name} ({unit})")
    axes[0].set_ylabel(f"component 2 ({second:.0f} %)")
    return figure


@styled
def cost_landscape(
    costs: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray, goal: np.ndarray, room: Any
) -> Figure:
    """Costs over the room side by side, each with its own scale; the goal is red.

    `costs` maps a name (with its unit) to values (Gy, Gx) on the evenly spaced grid x (Gx,),
    y (Gy,); where they are NaN the background `room` shows.
    """
    figure, axes = style.panels(1, len(costs), 3.3, 2.9, "Cost of being at a place, for one goal")
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        image = draw.landscape(axis, room, values, x, y)
        style.mark(axis, "goal", goal, s=48)
        draw.colour_bar(figure, image, axis)
        axis.set_title(name)
    return figure
