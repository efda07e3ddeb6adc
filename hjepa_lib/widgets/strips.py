"""The content of a player as a static figure, for readers without scripts: moments of a story."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import frame_rgb
from hjepa_lib.figures.style import styled
from hjepa_lib.widgets.player import ARROW, colours_of, draw_landscape
from hjepa_lib.widgets.story import UNITS, Story

_SIZE = 1.75  # inches of a panel


def moments(story: Story, count: int) -> np.ndarray:
    """Steps spread evenly from the first to the last; fewer than `count` in a short story."""
    return np.unique(np.linspace(0, story.steps, count).round().astype(int))


def film(story: Story, count: int = 5) -> Figure:
    """One column per moment: frame, plan, landscape, open loop, latents; distances below."""
    rows = {
        "frame": _frame, "plan": draw_plan, f"{story.cost} cost": _landscape,
        "open loop": _ahead, "latents": _plane,
    }  # fmt: skip
    drawn = [(name, partial(shows, story=story)) for name, shows in rows.items()]
    return _strip([story], drawn, moments(story, count), f"{story.title}: {story.outcome}")


def pair(left: Story, right: Story, count: int = 5) -> Figure:
    """Two stories one above the other at the same moments, and their distances in one chart."""
    stories = [left, right]
    drawn = [
        (story.method, partial(draw_plan, story=story, colour=colour))
        for story, colour in zip(stories, colours_of(*stories), strict=True)
    ]
    steps = moments(max(stories, key=lambda story: story.steps), count)
    return _strip(stories, drawn, steps, f"{left.title} (above) and {right.title} (below)")


@styled
def _strip(
    stories: list[Story], rows: list[tuple[str, Callable]], steps: np.ndarray, title: str
) -> Figure:
    """Named rows of panels, a column per moment, above the chart of distances."""
    height = len(rows) + (1.1 if len(stories) == 1 else 1.5)
    size = (_SIZE * len(steps) + 0.3, height * _SIZE)
    figure = style.Picture(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(rows) + 1, len(steps))
    for row, (name, shows) in enumerate(rows):
        for column, step in enumerate(steps):
            axis = figure.add_subplot(grid[row, column])
            shows(axis, step=int(step))
            if row == 0:
                axis.set_title(f"step {step}", pad=3)
            if column == 0:
                axis.annotate(
                    name, (0, 0.5), xytext=(-6, 0), xycoords="axes fraction", rotation=90,
                    textcoords="offset points", ha="right", va="center", color=style.MUTED,
                )  # fmt: skip
    _ways(figure.add_subplot(grid[-1, :]), stories, steps)
    style.headline(figure, title)
    return figure


def _frame(axis: Axes, story: Story, step: int) -> None:
    axis.imshow(frame_rgb(story.frames[step]))
    axis.set_axis_off()


def draw_plan(axis: Axes, story: Story, step: int, colour: str = "") -> None:
    """Path so far, candidates shaded by cost, chosen plan and action, what level 2 imagines."""
    colour, step = colour or style.colour(story.method), min(step, story.steps)
    call, path = story.call(step), story.positions[: step + 1]
    draw.show_room(axis, story.scene.room)
    origin = path[min(call * story.replan, step)]
    if story.fan is not None:
        paths = [np.vstack([origin, one]) for one in story.fan[call][::-1]]  # the best on top
        fan = LineCollection(paths, cmap=style.CANDIDATES, linewidths=0.5, alpha=0.7, zorder=2)
        fan.set_array(np.linspace(1, 0, len(paths)))
        axis.add_collection(fan)
    draw.path(axis, path, color=colour)
    if story.macro is not None:
        way = np.vstack([origin, story.macro[call]])
        draw.path(axis, way, color=style.SUBGOAL, ls=":", lw=0.8)
        _subgoals(axis, way[1:], marker="D", s=[20, *[9] * (len(way) - 2)], zorder=6)
    if story.plan is not None:
        draw.path(axis, np.vstack([origin, story.plan[call]]), color=style.INK, zorder=5)
    if step < story.steps:
        look = {"arrowstyle": "-|>", "color": style.GOAL, "shrinkA": 0, "shrinkB": 0}
        axis.annotate(
            "", path[-1] + ARROW * story.actions[step], path[-1], arrowprops=look, zorder=7
        )
    _places(axis, story, path[-1], colour)


def _subgoals(axis: Axes, places: np.ndarray, **look: Any) -> None:
    axis.scatter(*places.T, color=style.SUBGOAL, edgecolor=style.INK, linewidth=0.5, **look)


def _landscape(axis: Axes, story: Story, step: int) -> None:
    draw_landscape(axis, story.maps, story.shown_cost, story.scene)
    draw.path(axis, story.positions[: step + 1], color=style.PAPER)
    _places(axis, story, story.positions[step], style.colour(story.method))


def _ahead(axis: Axes, story: Story, step: int) -> None:
    draw.show_room(axis, story.scene.room)
    draw.path(axis, story.positions, color=style.FAINT, zorder=2)
    if step < story.steps:
        guess = story.ahead[step][np.isfinite(story.ahead[step][:, 0])]
        truth = story.positions[step : step + len(guess) + 1]
        look = {"color": style.colour(story.method), "marker": ".", "ms": 2.5, "zorder": 5}
        draw.path(axis, truth, color=style.INK, lw=1.5)
        draw.path(axis, np.vstack([truth[0], guess]), **look)
    _places(axis, story, story.positions[step], style.INK)


def _plane(axis: Axes, story: Story, step: int) -> None:
    left = story.maps.places[:, 0] < story.scene.wall_x
    for part, colour in ((left, style.SKY), (~left, style.PURPLE)):
        axis.plot(*story.maps.plane[part].T, ".", ms=1.6, mew=0, color=colour, alpha=0.4)
    latents, call, colour = story.latents, story.call(step), style.colour(story.method)
    path = latents["path"][: step + 1]
    draw.path(axis, path, color=colour)
    if "macro" in latents:
        _subgoals(axis, latents["macro"][call], s=8, zorder=4)
    if "plan" in latents:
        draw.path(axis, latents["plan"][call], color=style.INK, zorder=5)
    style.mark_goal(axis, latents["goal"], size=26)
    _here(axis, path[-1], colour)
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)


def _ways(axis: Axes, stories: list[Story], steps: np.ndarray) -> None:
    for story, colour in zip(stories, colours_of(*stories), strict=True):
        axis.plot(story.way, color=colour, label=f"{story.title}: {story.outcome}")
        shown = steps[steps <= story.steps]
        axis.plot(shown, story.way[shown], "o", ms=4, color=colour, clip_on=False)
    axis.set(xlabel="step", ylabel="shortest way left (px)", ylim=(0, None))
    axis.set_xlim(0, max(1, *(story.steps for story in stories)))
    if len(stories) > 1:
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center")
    else:
        name, second = story.shown_cost, axis.twinx()
        second.plot(story.costs[name], "--", color=style.INK, linewidth=1)
        second.set(ylim=(0, None), ylabel=f"dashed: {UNITS[name]}")
        second.spines["right"].set_visible(True)
    axis.grid(axis="y")


def _places(axis: Axes, story: Story, here: np.ndarray, colour: str) -> None:
    style.mark_start(axis, np.array(story.scene.start), size=14)
    style.mark_goal(axis, np.array(story.scene.goal), size=26)
    _here(axis, here, colour)


def _here(axis: Axes, place: np.ndarray, colour: str) -> None:
    axis.scatter(*place, s=22, color=colour, edgecolor=style.PAPER, lw=0.7, zorder=8)
