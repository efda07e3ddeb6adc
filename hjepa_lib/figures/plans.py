"""Figures of plans and of the paths they become, over the rendered room; (x, y) with y down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import styled

MOST_CANDIDATES = 200


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
