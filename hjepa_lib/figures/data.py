"""Figures of data and representation: plain arrays in, one matplotlib figure out.

Nothing is shown and no global state is touched; a figure displays itself when a notebook cell ends
with it, and `style.save` writes it. Positions are px of the 65 x 65 image, (x, y) with y down.
Frames may be uint8 in 0..255 or floats in 0..1 and look the same either way (the seed project fed
0..255 to a plot that expected 0..1: white images, F14). See also `learning` and `plans`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from sklearn.decomposition import PCA

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, as_array, checked, styled
from hjepa_lib.worlds.layout import HIGH, LOW

_OVERSHOOT = 16.0  # floats above this are no prediction of [0, 1], but 0..255


# --- frames -----------------------------------------------------------------------------------
def frame_rgb(frames: Any, predicted: bool = False) -> np.ndarray:
    """Frames (..., C, Hpx, Wpx) -> RGB (..., Hpx, Wpx, 3) uint8; C is 1, 2 (dot, walls) or 3.

    uint8 is read as 0..255 and floats as 0..1, always on that scale. Other ranges, such as
    normalised frames, are refused instead of being clipped to a plausible picture; `predicted`
    clips what a decoder draws a little outside 0..1.
    """
    frames = as_array(frames)
    if frames.ndim < 3 or frames.shape[-3] not in (1, 2, 3):
        raise FigureError(f"frames must be (..., 1 to 3, Hpx, Wpx), got {frames.shape}")
    unit = frames / 255.0 if frames.dtype == np.uint8 else frames
    low, high = (float("-inf"), _OVERSHOOT) if predicted else (0, 1)
    floats = np.issubdtype(unit.dtype, np.floating) and np.isfinite(unit).all()
    if not floats or (unit.size and (unit.min() < low or unit.max() > high)):
        raise FigureError(
            f"frames must be uint8 in 0..255 or floats in 0..1, got {frames.dtype} "
            f"in {frames.min():g}..{frames.max():g}"
        )
    unit = np.moveaxis(unit.clip(0, 1), -3, -1)  # (..., Hpx, Wpx, C)
    if unit.shape[-1] == 2:
        dot, walls = unit[..., :1], unit[..., 1:]
        unit = dot + (1 - dot) * walls * np.array([0.45, 0.49, 0.54])
    return np.rint(255 * np.broadcast_to(unit, (*unit.shape[:-1], 3))).astype(np.uint8)


def room_of(frames: Any) -> np.ndarray:
    """Rendered frames (..., C, Hpx, Wpx) as backgrounds for `show_room`.

    Of (dot, walls) the walls (..., Hpx, Wpx), otherwise the whole frame as RGB.
    """
    frames = as_array(frames)
    return frames[..., 1, :, :] if frames.shape[-3] == 2 else frame_rgb(frames)


def show_frame(axis: Axes, frame: Any, title: str = "", **options: Any) -> None:
    """A frame (C, Hpx, Wpx) as `frame_rgb` makes it, without ticks."""
    axis.imshow(frame_rgb(frame, **options), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=8, pad=3)


@styled
def frame_grid(
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str = "",
    size: float = 1.05,
    predicted: bool = True,
) -> Figure:
    """Frames (C, Hpx, Wpx) in rows; `columns` above the first row, `labels` left of each row."""
    width = len(rows[0]) if len(rows) else 0
    if width == 0 or any(len(row) != width for row in rows):
        raise FigureError("a grid of frames needs rows of equal length, at least one frame each")
    figure, axes = style.panels(len(rows), width, size, size)
    heads = [*columns, *[""] * width * len(rows)]
    for axis, frame, head in zip(axes, (one for row in rows for one in row), heads, strict=False):
        show_frame(axis, frame, head, predicted=predicted)
    for axis, label in zip(axes[::width], labels, strict=False):
        axis.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    style.headline(figure, title)
    return figure


def film(frames: Sequence[Any], captions: Sequence[str], scale: int = 2) -> bytes:
    """PNG of frames (C, Hpx, Wpx) side by side under their captions, pixel by pixel."""
    gap, head = 8, 16
    images = [
        np.kron(frame_rgb(one, predicted=True), np.ones((scale, scale, 1), np.uint8))
        for one in frames
    ]
    height, width = images[0].shape[:2]
    canvas = Image.new("RGB", (len(images) * (width + gap) + gap, height + head + gap), style.PAPER)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = gap + number * (width + gap)
        ImageDraw.Draw(canvas).text((left, 2), caption, fill=style.INK)
        canvas.paste(Image.fromarray(image), (left, head))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


@styled
def sample_trajectories(
    positions: Sequence[np.ndarray],
    layouts: np.ndarray,
    columns: int = 6,
    title: str = "Sampled trajectories",
) -> Figure:
    """Paths over their rooms, darkening with time from the start ring.

    `positions` holds R arrays (T, 2) px, `layouts` (R, 2) rows (wall_x, door_y). At most 24 panels.
    """
    layouts = checked(layouts, "layouts", len(positions), 2)
    shown = list(zip(positions, layouts, strict=True))[: style.MOST_PANELS]
    figure, axes = style.grid_of(len(shown), columns, 1.35)
    for axis, (path, layout) in zip(axes, shown, strict=True):
        path = checked(path, "positions", None, 2)
        style.draw_room(axis, *layout)
        _path_over_time(axis, path)
        style.mark_start(axis, path[0], size=14)
    style.headline(figure, title)
    return figure


def _path_over_time(axis: Axes, path: np.ndarray) -> None:
    segments = np.stack([path[:-1], path[1:]], axis=1)  # (T-1, 2, 2)
    lines = LineCollection(segments, cmap=style.TIME, linewidths=1.1, zorder=4)
    lines.set_array(np.arange(len(segments)))
    axis.add_collection(lines)


@styled
def montage(
    frames: np.ndarray,
    columns: int = 8,
    titles: Sequence[str] = (),
    title: str = "Frames as the encoder gets them",
) -> Figure:
    """Frames (N, 2, Hpx, Wpx), uint8 0..255 or float 0..1: dot white, walls grey. At most 24."""
    images = frame_rgb(frames)[: style.MOST_PANELS]
    extra = 0.2 if titles else 0.0
    figure, axes = style.grid_of(len(images), columns, 1.15, extra)
    for i, (axis, image) in enumerate(zip(axes, images, strict=True)):
        axis.imshow(image)
        axis.set_axis_off()
        axis.set_title(titles[i] if i < len(titles) else "", fontsize=8, pad=3)
    style.headline(figure, title)
    return figure


@styled
def motion(
    steps: np.ndarray,
    turns: np.ndarray,
    positions: np.ndarray,
    title: str = "How the dot moves",
) -> Figure:
    """Step lengths (n,) px, turning angles (n',) degrees, and where positions (m, 2) px lie."""
    steps, turns = checked(steps, "steps", None), checked(turns, "turns", None)
    positions = checked(positions, "positions", None, 2)
    figure, axes = style.panels(1, 3, 2.9, 2.6)
    for axis, values, name in zip(
        axes, (steps, turns), ("step (px)", "turn (degrees)"), strict=False
    ):
        axis.hist(values, bins=60, density=True, color=style.BLUE)
        axis.set(xlabel=name, yticks=[])
        axis.spines["left"].set_visible(False)
    axes[0].set(xlim=(0, None), title=f"steps: mean {steps.mean():.2f}, std {steps.std():.2f} px")
    axes[1].set(xlim=(-180, 180), xticks=[-180, -90, 0, 90, 180], title="turns between steps")
    edges = np.linspace(LOW, HIGH, 57)  # one bin per px
    visits, _, _ = np.histogram2d(positions[:, 1], positions[:, 0], bins=[edges, edges])
    image = axes[2].imshow(
        visits / visits.mean(), extent=(LOW, HIGH, HIGH, LOW), vmax=3, cmap=style.SEQUENTIAL
    )
    bar = figure.colorbar(image, ax=axes[2], shrink=0.85, aspect=25, pad=0.02)
    bar.set_label("visits / mean")
    bar.outline.set_visible(False)
    axes[2].set(title="where it is", xticks=[], yticks=[], anchor="W")
    style.headline(figure, title)
    return figure


@styled
def layout_lists(lists: Mapping[str, np.ndarray], title: str = "Layouts by list") -> Figure:
    """Walls and doors of named layout lists, each (n, 2) rows (wall_x, door_y) px, in one plane."""
    colours = (style.SKY, style.ORANGE, style.PURPLE, style.GREEN)
    figure, (axis,) = style.panels(1, 1, 4.6, 3.4)
    for (name, rows), colour in zip(lists.items(), colours, strict=False):
        rows = checked(rows, name, None, 2)
        axis.scatter(*rows.T, s=11, marker="s", lw=0, color=colour, label=f"{name}: {len(rows)}")
    axis.set(xlabel="wall_x (px)", ylabel="door_y (px)")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


@styled
def latent_map(latents: np.ndarray, positions: np.ndarray, title: str = "Latent map") -> Figure:
    """First two principal components of latents (n, D), coloured by positions (n, 2), x and y."""
    positions = checked(positions, "positions", None, 2)
    latents = checked(latents, "latents", len(positions), None)
    some = style.subset(len(latents))
    pca = PCA(n_components=2, random_state=0)
    flat = pca.fit_transform(latents)[some]
    first, second = 100 * pca.explained_variance_ratio_
    figure, axes = style.panels(1, 2, 3.5, 3.0, sharey=True)
    for k, (axis, name) in enumerate(zip(axes, "xy", strict=True)):
        dots = axis.scatter(*flat.T, c=positions[some, k], s=5, lw=0, cmap=style.SEQUENTIAL)
        axis.set(xlabel=f"component 1 ({first:.0f} % of the variance)", xticks=[], yticks=[])
        bar = figure.colorbar(dots, ax=axis, shrink=0.85, aspect=25, pad=0.02)
        bar.set_label(f"{name} (px)")
        bar.outline.set_visible(False)
    axes[0].set_ylabel(f"component 2 ({second:.0f} %)")
    style.headline(figure, title)
    return figure


@styled
def cost_landscape(
    costs: Mapping[str, np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    goal: np.ndarray,
    wall_x: float,
    door_y: float,
    title: str = "Cost of being at a place, for one goal",
) -> Figure:
    """Costs over the room side by side, each with its own scale; the goal is red.

    `costs` maps a name (with its unit, used as the colour bar's label) to values (Gy, Gx) on the
    evenly spaced grid x (Gx,), y (Gy,) px; NaN looks like wall.
    """
    x, y = checked(x, "x", None), checked(y, "y", None)
    half = np.array([np.ptp(x) / max(1, len(x) - 1), np.ptp(y) / max(1, len(y) - 1)]) / 2
    extent = (x[0] - half[0], x[-1] + half[0], y[-1] + half[1], y[0] - half[1])
    figure, axes = style.panels(1, len(costs), 3.3, 2.9)
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        values = np.ma.masked_invalid(checked(values, name, len(y), len(x)))
        image = axis.imshow(values, extent=extent, cmap=style.SEQUENTIAL, interpolation="nearest")
        axis.contour(x, y, values, levels=9, colors="white", linewidths=0.6, alpha=0.55)
        style.draw_room(axis, wall_x, door_y, floor=False)
        axis.set_facecolor(style.WALL)  # grid cells cut by the wall look like wall
        style.mark_goal(axis, goal, size=48)
        bar = figure.colorbar(image, ax=axis, shrink=0.85, aspect=25, pad=0.02)
        bar.outline.set_visible(False)
        axis.set_title(name)
    style.headline(figure, title)
    return figure
