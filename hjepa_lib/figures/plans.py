"""Figures of planning: fans of candidate plans, episodes, success with intervals and compute.

Plain arrays and result rows in, one matplotlib figure out (see `figures`). Lengths are px, (x, y)
with y down; rows are `results` entries of summary.json, so a figure shows the numbers of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked, styled

MOST_CANDIDATES = 200


@styled
def plan_fan(
    rollouts: np.ndarray,
    costs: np.ndarray,
    chosen: np.ndarray,
    start: np.ndarray,
    goal: np.ndarray,
    wall_x: float,
    door_y: float,
    subgoals: np.ndarray | None = None,
    title: str = "Candidate plans",
) -> Figure:
    """Imagined paths of one planner call over the room.

    `rollouts` (N, H, 2) px are the candidates, shaded by the rank of their `costs` (N,); `chosen`
    (H, 2) is the plan taken; `subgoals` (K, 2) are those of level 2 in order. At most 200
    candidates are drawn, evenly spread over the ranks.
    """
    rollouts = checked(rollouts, "rollouts", None, None, 2)
    costs = checked(costs, "costs", len(rollouts))
    chosen = checked(chosen, "chosen", None, 2)
    start, goal = checked(start, "start", 2), checked(goal, "goal", 2)
    figure, (axis,) = style.panels(1, 1, 5.4, 3.9)
    style.draw_room(axis, wall_x, door_y)
    axis.set_anchor("W")  # all spare width goes to the legend
    count = min(MOST_CANDIDATES, len(costs))
    order = np.argsort(costs)[np.linspace(0, len(costs) - 1, count).round().astype(int)]
    paths = [_from(start, path) for path in rollouts[order[::-1]]]  # the best on top
    ranks = np.linspace(1, 0, len(paths))
    fan = LineCollection(paths, cmap=style.CANDIDATES, linewidths=0.8, alpha=0.7, zorder=2)
    fan.set_array(ranks)
    axis.add_collection(fan)
    axis.plot(
        *_from(start, chosen).T, color=style.INK, linewidth=2.2, zorder=5, label="chosen plan"
    )
    if subgoals is not None:
        way = _from(start, checked(subgoals, "subgoals", None, 2))
        axis.plot(*way.T, ":", color=style.SUBGOAL, linewidth=1.2, zorder=5)
        look = {"edgecolor": style.INK, "linewidth": 0.7, "zorder": 6}
        axis.scatter(
            *way[1:].T, s=34, marker="D", color=style.SUBGOAL, label="level-2 sub-goals", **look
        )
    style.mark_start(axis, start, label="start")
    style.mark_goal(axis, goal, label="goal")
    bar = figure.colorbar(fan, cax=axis.inset_axes((1.04, 0.02, 0.035, 0.3)))
    bar.set_ticks([0, 1], labels=["lowest cost", "highest"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


def _from(start: np.ndarray, path: np.ndarray) -> np.ndarray:
    return np.concatenate([start[None], path])


@styled
def success_bars(rows: Sequence[Mapping[str, Any]], title: str = "Success") -> Figure:
    """Success rate with its 95 % interval, one bar per row in the given order.

    Each row needs `method`, `cost`, `n`, `success_rate` and `ci95`. Random and oracle rows have
    bars too and continue as dotted lines: the floor and the ceiling of every other bar (F15).
    """
    if not rows:
        raise FigureError("success_bars needs at least one row")
    figure, (axis,) = style.panels(1, 1, 6.0, 0.9 + 0.34 * len(rows))
    for at, row in enumerate(rows):
        colour = style.method_colour(row["method"])
        rate, (low, high) = row["success_rate"], row["ci95"]
        light = 0.45 if row["cost"] == "latent" else 1.0
        axis.barh(at, rate, height=0.62, color=colour, alpha=light)
        axis.plot([low, high], [at, at], color=style.INK, linewidth=1.1)
        axis.plot([low, high], [at, at], "|", color=style.INK, markersize=6)
        axis.annotate(
            f"{100 * rate:.0f} %  [{100 * low:.0f}, {100 * high:.0f}]  n = {row['n']}",
            (1.0, at), xytext=(8, 0), xycoords=axis.get_yaxis_transform(),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
        if "random" in row["method"] or "oracle" in row["method"]:
            axis.axvline(rate, color=colour, linewidth=0.9, linestyle=":", zorder=0.5)
    axis.set_yticks(range(len(rows)), labels=[row_label(row) for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.grid(axis="x")
    style.headline(figure, title)
    return figure


def row_label(row: Mapping[str, Any]) -> str:
    """ "flat, distance cost"; planners without a cost go by their name alone."""
    cost = row["cost"]
    return row["method"] if cost in ("", "none", None) else f"{row['method']}, {cost} cost"


@styled
def success_against_compute(
    rows: Sequence[Mapping[str, Any]], title: str = "Success against planning compute"
) -> Figure:
    """Success rate with its 95 % interval by forward FLOPs per environment step, log scale.

    Rows as in `success_bars` plus `flops_per_step`; rows of one method and cost are one line. Rows
    without FLOPs (random, oracle) are horizontal dotted lines.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row_label(row), []).append(row)
    figure, (axis,) = style.panels(1, 1, 5.6, 3.2)
    for label, group in lines.items():
        colour = style.method_colour(group[0]["method"])
        group = sorted(group, key=lambda row: row["flops_per_step"] or 0)
        rate = np.array([row["success_rate"] for row in group])
        flops = np.array([row["flops_per_step"] or np.nan for row in group], dtype=float)
        if np.isnan(flops).all():
            axis.axhline(rate[0], color=colour, linestyle=":", label=label)
            continue
        low, high = np.array([row["ci95"] for row in group]).T
        line, face = ("--", style.PAPER) if group[0]["cost"] == "latent" else ("-", colour)
        gaps = np.abs([rate - low, high - rate])
        axis.errorbar(
            flops, rate, gaps, color=colour, ls=line, marker="o", ms=5, mfc=face, elinewidth=1,
            capsize=2, label=label,
        )  # fmt: skip
    axis.set_xscale("log")
    style.decimal_ticks(axis.xaxis)
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    low, high = axis.get_xlim()
    axis.set_xlim(low / 1.3, high * 1.3)  # wide enough for a tick at 1, 2 or 5
    axis.set(xlabel="forward FLOPs per environment step", ylabel="success", ylim=(-0.03, 1.03))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.grid(axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


@styled
def episode_paths(
    positions: np.ndarray,
    goal: np.ndarray,
    layouts: np.ndarray,
    hit: np.ndarray,
    columns: int = 5,
    colour: str = style.BLUE,
    title: str = "Episodes",
) -> Figure:
    """Executed paths of B trials (at most 24) with the step of their success.

    positions (B, S+1, 2), goal (B, 2) px, layouts (B, 2) rows (wall_x, door_y), hit (B,) the step
    of success, NaN or above S for a miss (`termination_step` of the metrics fits).
    """
    positions = checked(positions, "positions", None, None, 2)
    batch, states = positions.shape[:2]
    goal, layouts = checked(goal, "goal", batch, 2), checked(layouts, "layouts", batch, 2)
    hit = checked(hit, "hit", batch)
    figure, axes = style.grid_of(min(batch, style.MOST_PANELS), columns, 1.5, 0.18)
    for i, axis in enumerate(axes):
        style.draw_room(axis, *layouts[i])
        reached = hit[i] < states
        _executed(axis, positions[i], goal[i], colour)
        away = np.linalg.norm(positions[i, -1] - goal[i])
        text = f"reached at {hit[i]:.0f}" if reached else f"missed by {away:.1f} px"
        weight = "normal" if reached else "bold"
        axis.set_title(text, fontsize=8, pad=3, fontweight=weight)
    style.headline(figure, title)
    return figure


def _executed(axis: Axes, path: np.ndarray, goal: np.ndarray, colour: str) -> None:
    axis.plot(*path.T, color=colour, linewidth=1.1, zorder=4)
    style.mark_start(axis, path[0], size=16)
    style.mark_goal(axis, goal, size=26)


@styled
def film_strip(
    positions: np.ndarray,
    goal: np.ndarray,
    wall_x: float,
    door_y: float,
    frames: int = 8,
    colour: str = style.BLUE,
    title: str = "",
) -> Figure:
    """One episode (S+1, 2) px as `frames` moments evenly spread from the first step to the last.

    Cut `positions` after the step of success to see the way instead of the waiting.
    """
    positions = checked(positions, "positions", None, 2)
    goal = checked(goal, "goal", 2)
    last = len(positions) - 1
    moments = np.unique(np.linspace(0, last, min(frames, last + 1)).round().astype(int))
    figure, axes = style.panels(1, len(moments), 1.35, 1.55)
    for axis, step in zip(axes, moments, strict=True):
        style.draw_room(axis, wall_x, door_y)
        axis.plot(*positions[: step + 1].T, color=colour, linewidth=1, alpha=0.55, zorder=4)
        style.mark_goal(axis, goal, size=52)
        axis.scatter(*positions[step], s=24, color=colour, edgecolor=style.PAPER, lw=0.8, zorder=8)
        axis.set_title(f"step {step}", fontsize=8, pad=3)
    style.headline(figure, title)
    return figure
