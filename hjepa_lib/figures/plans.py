"""Plans and the paths they become, over the rendered room, as figures and GIFs; y down."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, styled

MOST_CANDIDATES = 200
FPS = 10
LIMIT_BYTES = 300_000


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
    and `subgoals` as in `primitives.planned`.
    """
    figure, (axis,) = style.panels(1, 1, 5.4, 3.9, title)
    draw.show_room(axis, room)
    ranks = np.linspace(0, len(costs) - 1, min(MOST_CANDIDATES, len(costs))).round().astype(int)
    draw.planned(axis, start, rollouts[np.argsort(costs)[ranks]], chosen, subgoals)
    style.mark(axis, "start", start, label="start")
    style.mark(axis, "goal", goal, label="goal")
    draw.legend(figure, [axis])
    return figure


@styled
def room_paths(
    paths: Sequence[np.ndarray],
    rooms: Any,
    goals: np.ndarray | None = None,
    titles: Sequence[str] = (),
    columns: int = 6,
    colour: str = "",
    title: str = "",
) -> Figure:
    """Paths (T, 2) over their rooms (Hpx, Wpx) from the start ring, at most 24.

    They darken with time, or have one `colour` and a dot where they end.
    """
    count = min(len(paths), style.MOST_PANELS)
    extra = 0.18 if titles else 0.0
    figure, axes = style.grid_of(count, columns, 1.4, extra, title=title)
    for number, (axis, way, room) in enumerate(zip(axes, paths, rooms, strict=False)):
        draw.show_room(axis, room)
        draw.path(axis, way, **{"color": colour, "alpha": 0.6} if colour else {})
        style.mark(axis, "start", way[0], s=14)
        if goals is not None:
            style.mark(axis, "goal", goals[number], s=26)
        if colour:
            style.mark(axis, "dot", way[-1], color=colour)
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


class Clip(NamedTuple):
    """One panel of a GIF: an executed episode over its room, in px of the room's picture."""

    positions: np.ndarray  # (S+1, 2)
    goal: np.ndarray  # (2,)
    room: np.ndarray  # (Hpx, Wpx), walls bright (`data.room_of`), or RGB of each step, 4 axes
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


def comparison_gif(clips: Sequence[Clip]) -> bytes:
    """A GIF of episodes side by side in step; a shorter one waits at its end.

    Drawn at 4 screen pixels per px of the world, or fewer until the file fits 300 KB (PL14);
    FigureError where even one does not (about 2,000 steps).
    """
    steps = range(max(len(clip.positions) for clip in clips))
    names = (style.GOAL, style.SUBGOAL, *(clip.colour for clip in clips))
    rare = [ImageColor.getrgb(name) for name in names]  # of small discs
    for scale in (4, 3, 2, 1):
        shot = _stage(clips, scale * style.DPI / 4)
        some = np.vstack([shot(step) for step in steps[:: len(steps) // 8 + 1]])
        common = sorted(Image.fromarray(some).getcolors(some.size), reverse=True)[:64]
        palette = Image.new("P", (1, 1))
        palette.putpalette(np.ravel(rare + [colour for _, colour in common]).tolist())
        first, *rest = (
            Image.fromarray(shot(step)).quantize(palette=palette, dither=Image.Dither.NONE)
            for step in steps
        )
        times = {"duration": 1000 // FPS, "loop": 0}
        data = style.encoded(first, "gif", save_all=True, append_images=rest, **times)
        if len(data) <= LIMIT_BYTES:
            return data
    raise FigureError(f"a GIF would exceed {LIMIT_BYTES} bytes at any scale; show fewer steps")


@styled
def _stage(clips: Sequence[Clip], dpi: float) -> Callable[[int], np.ndarray]:
    """What draws all clips abreast at a step, RGB.

    Pillow would merge equal neighbours, and a resting episode lose its time: the counter differs.
    """
    figure, axes = style.panels(1, len(clips), 2.7, 3.1)
    figure.set_dpi(dpi)
    canvas, moving = FigureCanvasAgg(figure), []
    count = figure.supxlabel("step", x=0.02, ha="left", fontsize=9, animated=True)
    for axis, clip in zip(axes, clips, strict=True):
        seen = draw.show_room(axis, clip.room[0] if clip.room.ndim == 4 else clip.room)
        axis.set_title(textwrap.shorten(clip.title, 40, placeholder="…"))
        (trail,) = axis.plot([], [], color=clip.colour, alpha=0.45, lw=2, animated=True)
        goal, aim, dot = (
            axis.scatter([], [], s=s, color=colour, edgecolor=edge, lw=0.8, animated=True)
            for s, colour, edge in (
                (120, style.GOAL, style.PAPER),
                (35, style.SUBGOAL, style.INK),
                (60, clip.colour, style.PAPER),
            )
        )
        goal.set_offsets(clip.goal)
        moving.append((clip, seen, trail, goal, aim, dot))
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)

    def shot(step: int) -> np.ndarray:
        canvas.restore_region(still)
        count.set_text(f"step {step}")
        for clip, seen, trail, goal, aim, dot in moving:
            way = clip.positions[: step + 1]
            if clip.room.ndim == 4:
                seen.set_data(clip.room[len(way) - 1])
                figure.draw_artist(seen)
            trail.set_data(*way.T)
            dot.set_offsets(way[-1])
            if clip.subgoals is not None:
                aim.set_offsets(clip.subgoals[: step + 1][-1])
            for part in (trail, goal, aim, dot):
                figure.draw_artist(part)
        figure.draw_artist(count)
        return np.array(canvas.buffer_rgba())[..., :3]

    return shot
