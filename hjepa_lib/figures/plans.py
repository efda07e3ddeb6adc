"""Plans and the paths they become, over the rendered room, as figures and GIFs; y down."""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, styled
from hjepa_lib.files import read_bytes, write_atomic

MOST_CANDIDATES = 200
FPS = 10
LIMIT_BYTES = 300_000
GAP, LINE = 10, 20  # screen pixels between panels, and height of a line of text
FINE = 3  # times larger drawn, then averaged: smooth edges


@styled
def plan_fan(
    rollouts: np.ndarray,
    costs: np.ndarray,
    chosen: np.ndarray,
    start: np.ndarray,
    goal: np.ndarray,
    room: Any,
    subgoals: np.ndarray | None = None,
    title: str = "Candidate plans",
) -> Figure:
    """Imagined paths of one planner call over the background `room`.

    `rollouts` (N, H, 2) are shaded by the rank of their `costs` (N,), at most 200 of them; `chosen`
    (H, 2) is the plan taken, `subgoals` (K, 2) the path that level 2 imagines, of which level 1
    aims at the first point.
    """
    figure, (axis,) = style.panels(1, 1, 5.4, 3.9, title)
    draw.show_room(axis, room)
    axis.set_anchor("W")  # all spare width goes to the legend
    count = min(MOST_CANDIDATES, len(costs))
    order = np.argsort(costs)[np.linspace(0, len(costs) - 1, count).round().astype(int)]
    paths = [np.vstack([start, rollouts[one]]) for one in order[::-1]]  # the best on top
    fan = LineCollection(paths, cmap=style.CANDIDATES, linewidths=0.8, alpha=0.7, zorder=2)
    fan.set_array(np.linspace(1, 0, len(paths)))
    axis.add_collection(fan)
    draw.path(axis, np.vstack([start, chosen]), color=style.INK, lw=2.2, label="chosen plan")
    if subgoals is not None:
        way = np.vstack([start, subgoals])
        draw.path(axis, way, color=style.SUBGOAL, ls=":", lw=1.2, zorder=5)
        look = {"color": style.SUBGOAL, "edgecolor": style.INK, "linewidth": 0.7, "marker": "D"}
        axis.scatter(*way[1], s=44, zorder=6.1, label="sub-goal of level 1", **look)
        axis.scatter(*way[2:].T, s=16, zorder=6, label="level 2 beyond it", **look)
    style.mark_start(axis, start, label="start")
    style.mark_goal(axis, goal, label="goal")
    bar = figure.colorbar(fan, cax=axis.inset_axes((1.04, 0.02, 0.035, 0.3)))
    bar.set_ticks([0, 1], labels=["lowest cost", "highest"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.invert_yaxis()
    draw.legend_beside(axis)
    return figure


@styled
def room_paths(
    paths: Sequence[np.ndarray],
    rooms: Any,
    goals: np.ndarray | None = None,
    titles: Sequence[str] = (),
    columns: int = 6,
    colour: str | None = None,
    dot: bool = False,
    title: str = "",
) -> Figure:
    """Paths (T, 2) over their rooms (Hpx, Wpx) from the start ring, at most 24.

    They darken with time or have one `colour`; `dot` shows where they end.
    """
    count = min(len(paths), style.MOST_PANELS)
    extra = 0.18 if titles else 0.0
    figure, axes = style.grid_of(count, columns, 1.4, extra, title=title)
    for number, (axis, way, room) in enumerate(zip(axes, paths, rooms, strict=False)):
        draw.show_room(axis, room)
        draw.path(axis, way, **{"color": colour, "alpha": 0.55 if dot else 1} if colour else {})
        style.mark_start(axis, way[0], size=14)
        if goals is not None:
            style.mark_goal(axis, goals[number], size=26)
        if dot:
            axis.scatter(*way[-1], s=24, color=colour, edgecolor=style.PAPER, lw=0.8, zorder=8)
        if titles:
            weight = "bold" if titles[number].startswith("missed") else "normal"
            axis.set_title(titles[number], fontsize=8, pad=3, fontweight=weight)
    return figure


def episode_paths(
    positions: np.ndarray, goal: np.ndarray, rooms: Any, hit: np.ndarray, **options: Any
) -> Figure:
    """Executed paths (B, S+1, 2) to goals (B, 2) in rooms (B, Hpx, Wpx).

    hit (B,) is the step of success, NaN or above S for a miss, as `termination_step`.
    """
    away = np.linalg.norm(positions[:, -1] - goal, axis=-1)
    titles = [
        f"reached at {step:.0f}" if step < len(path) else f"missed by {gap:.1f} px"
        for path, step, gap in zip(positions, hit, away, strict=True)
    ]
    look = {"columns": 5, "colour": style.BLUE, "title": "Episodes"}
    return room_paths(positions, rooms, goal, titles, **look | options)


def film_strip(
    positions: np.ndarray, goal: np.ndarray, room: Any, frames: int = 8, **options: Any
) -> Figure:
    """One episode (S+1, 2) as `frames` moments evenly spread from the first step to the last."""
    last = len(positions) - 1
    moments = np.unique(np.linspace(0, last, min(frames, last + 1)).round().astype(int))
    paths, count = [positions[: step + 1] for step in moments], len(moments)
    look = {"columns": count, "colour": style.BLUE, "dot": True}
    titles = [f"step {step}" for step in moments]
    return room_paths(paths, [room] * count, [goal] * count, titles, **look | options)


# --- GIFs: a frame per state, goal red, one fixed palette -------------------------------------
class Clip(NamedTuple):
    """One panel: an executed episode over its room, in px of the room's picture."""

    positions: np.ndarray  # (S+1, 2)
    goal: np.ndarray  # (2,)
    room: np.ndarray  # (Hpx, Wpx), walls bright (`data.room_of`)
    title: str = ""
    colour: str = style.BLUE
    subgoals: np.ndarray | None = None  # (S+1, 2) where level 1 is sent at each step


def clip_of(arrays: Mapping[str, np.ndarray], trial: int, room: np.ndarray, title: str) -> Clip:
    """One trial of a result's arrays, with the sub-goals that were not the goal itself."""
    positions, aims = arrays["positions"][trial], arrays.get("plan_subgoal_xy")
    if aims is not None:  # (n, calls, 2)
        aims = np.where(arrays["plan_near"][trial][:, None] > 0, np.nan, aims[trial])
        aims = aims.repeat(-(-(len(positions) - 1) // len(aims)), axis=0)
    return Clip(positions, arrays["goal"][trial], room, title, style.colour(title), aims)


class HtmlImage(str):
    """An <img> element that notebooks show as a picture."""

    def _repr_html_(self) -> str:
        return str(self)


def comparison_gif(path: str | Path, clips: Sequence[Clip]) -> Path:
    """Write several episodes side by side in step, a shorter one waits at its end.

    Drawn at 4 screen pixels per px of the world, or fewer until the file fits 300 KB (PL14);
    FigureError where even one does not (about 2,000 steps).
    """
    palette = _palette([clip.colour for clip in clips])
    steps = range(max(len(clip.positions) for clip in clips))
    for size in (4, 3, 2, 1):
        frames = [
            _frame(clips, step, size).quantize(palette=palette, dither=Image.Dither.NONE)
            for step in steps
        ]
        buffer = io.BytesIO()
        rest = {"save_all": True, "append_images": frames[1:], "loop": 0}
        frames[0].save(buffer, "GIF", duration=1000 // FPS, **rest)
        if buffer.tell() <= LIMIT_BYTES:
            return write_atomic(path, buffer.getvalue())
    raise FigureError(f"{path} would exceed {LIMIT_BYTES} bytes at any scale; show fewer steps")


def gif_html(path: str | Path, alt: str) -> HtmlImage:
    """The GIF as an <img> with a data URI; `alt` says in words what moves."""
    code = base64.b64encode(read_bytes(path)).decode()
    return HtmlImage(f'<img src="data:image/gif;base64,{code}" alt="{html.escape(alt)}">')


def _frame(clips: Sequence[Clip], step: int, scale: int) -> Image.Image:
    """All clips abreast at one step, their titles above and the step below.

    Pillow would merge equal neighbours, and a resting episode lose its time: the counter differs.
    """
    panels = [_panel(clip, min(step, len(clip.positions) - 1), scale) for clip in clips]
    height, width = max(one.height for one in panels), sum(one.width + GAP for one in panels)
    canvas = Image.new("RGB", (GAP + width, height + 2 * LINE + 4), style.PAPER)
    pen, font, left = ImageDraw.Draw(canvas), _font(), GAP
    for clip, panel in zip(clips, panels, strict=True):
        pen.text((left, 4), _shortened(clip.title, font, panel.width), style.INK, font)
        canvas.paste(panel, (left, LINE + 2))
        left += panel.width + GAP
    pen.text((GAP, height + LINE + 5), f"step {step}", style.INK, font)
    return canvas


def _panel(clip: Clip, step: int, scale: int) -> Image.Image:
    """One clip at a step: the room, the way so far, goal, sub-goal and dot."""
    unit, walls = scale * FINE, Image.fromarray(np.uint8(255) * (np.asarray(clip.room) > 0))
    image = ImageOps.colorize(walls, style.FLOOR, style.WALL)
    image = ImageOps.scale(image, unit, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)

    def disc(place: np.ndarray, radius: float, colour: str) -> None:
        ends = (place + 0.5 - radius, place + 0.5 + radius)
        pen.ellipse([tuple(unit * end) for end in ends], colour)

    way = unit * (np.asarray(clip.positions[: step + 1], float) + 0.5)
    pen.line([tuple(place) for place in way], _trail(clip.colour), round(0.7 * unit))
    disc(np.asarray(clip.goal), 2.0, style.GOAL)
    for aim in () if clip.subgoals is None else clip.subgoals[: step + 1][-1:]:
        if np.isfinite(aim).all():
            disc(aim, 1.3, style.INK)
            disc(aim, 1.0, style.SUBGOAL)
    disc(clip.positions[step], 1.65, style.PAPER)
    disc(clip.positions[step], 1.3, clip.colour)
    return image.reduce(FINE)


def _trail(colour: str) -> str:
    return to_hex(0.55 * np.array(to_rgb(style.FLOOR)) + 0.45 * np.array(to_rgb(colour)))


def _palette(colours: Sequence[str]) -> Image.Image:
    """Every colour that is drawn, and the blends at edges of those that differ visibly."""
    names = [style.PAPER, style.INK, style.FLOOR, style.WALL, style.GOAL, style.SUBGOAL]
    names += [one for colour in dict.fromkeys(colours) for one in (colour, _trail(colour))]
    drawn = [np.array(to_rgb(name)) for name in names]
    pairs = [(a, b) for a, b in combinations(drawn, 2) if abs(a - b).max() > 0.1]
    blends = [a + share * (b - a) for a, b in pairs for share in (0.25, 0.5, 0.75)]
    entries = np.rint(255 * np.array(drawn + blends)).astype(int)[:256]
    image = Image.new("P", (1, 1))
    image.putpalette(entries.ravel().tolist())
    return image


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), 12)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` screen pixels."""
    cut = text
    while cut and font.getlength(cut + "…" * (cut != text)) > width:
        cut = cut[:-1]
    return cut + "…" * (cut != text)
