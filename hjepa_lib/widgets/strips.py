"""The content of a player as a static figure, for readers without scripts: moments of a story."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import frame_rgb
from hjepa_lib.figures.style import styled
from hjepa_lib.widgets.player import ARROW, draw_landscape, pair_colours
from hjepa_lib.widgets.story import UNITS, Scene, Story

_SIZE = 1.75  # inches of a panel


def moments(story: Story, count: int) -> np.ndarray:
    """Steps spread evenly from the first to the last; fewer than `count` in a short story."""
    return np.unique(np.linspace(0, story.steps, count).round().astype(int))


@styled
def film(story: Story, count: int = 5) -> Figure:
    """One column per moment: frame, plan, landscape, open loop, latents; distances below."""
    steps = moments(story, count)
    names = ("frame", "plan", f"{story.cost} cost", "open loop", "latents")
    draws = (_frame, draw_plan, _landscape, _ahead, _plane)
    figure = style.Picture(figsize=(_SIZE * len(steps) + 0.3, 6.1 * _SIZE), layout="constrained")
    grid = figure.add_gridspec(6, len(steps))
    for row, (name, shows) in enumerate(zip(names, draws, strict=True)):
        for column, step in enumerate(steps):
            axis = figure.add_subplot(grid[row, column])
            shows(axis, story, int(step))
            if row == 0:
                axis.set_title(f"step {step}", pad=3)
            if column == 0:
                _side(axis, name)
    _ways(figure.add_subplot(grid[5, :]), [story], [style.colour(story.method)], steps)
    style.headline(figure, f"{story.title}: {story.outcome}")
    return figure


@styled
def pair(left: Story, right: Story, count: int = 5) -> Figure:
    """Two stories one above the other at the same moments, and their distances in one chart."""
    longest = max(left, right, key=lambda story: story.steps)
    steps = moments(longest, count)
    colours = pair_colours(left, right)
    figure = style.Picture(figsize=(_SIZE * len(steps) + 0.3, 3.5 * _SIZE), layout="constrained")
    grid = figure.add_gridspec(3, len(steps))
    for row, story in enumerate((left, right)):
        for column, step in enumerate(steps):
            axis = figure.add_subplot(grid[row, column])
            draw_plan(axis, story, min(int(step), story.steps), colours[row])
            if row == 0:
                axis.set_title(f"step {step}", pad=3)
            if column == 0:
                _side(axis, story.method)
    _ways(figure.add_subplot(grid[2, :]), [left, right], colours, steps)
    style.headline(figure, f"{left.title} (above) and {right.title} (below)")
    return figure


@styled
def preview(scene: Scene, size: float = 2.6) -> Figure:
    """The room of a scene with start and goal, which may lie anywhere."""
    figure = style.Picture(figsize=(size, size))
    axis = figure.add_axes((0, 0, 1, 1))
    draw.show_room(axis, scene.room)
    style.mark_start(axis, np.array(scene.start), size=60)
    style.mark_goal(axis, np.array(scene.goal), size=80)
    return figure


def _side(axis: Axes, text: str) -> None:
    axis.annotate(
        text, (0, 0.5), xytext=(-6, 0), xycoords="axes fraction", textcoords="offset points",
        rotation=90, ha="right", va="center", color=style.MUTED,
    )  # fmt: skip


def _frame(axis: Axes, story: Story, step: int) -> None:
    axis.imshow(frame_rgb(story.frames[step]))
    axis.set_axis_off()


def draw_plan(axis: Axes, story: Story, step: int, colour: str = "") -> None:
    """Path so far, candidates shaded by cost, chosen plan and action, what level 2 imagines."""
    colour, call = colour or style.colour(story.method), story.call(step)
    draw.show_room(axis, story.scene.room)
    origin = story.positions[min(call * story.replan, step)]
    if story.fan is not None:
        paths = [np.vstack([origin, path]) for path in story.fan[call][::-1]]  # the best on top
        fan = LineCollection(paths, cmap=style.CANDIDATES, linewidths=0.5, alpha=0.7, zorder=2)
        fan.set_array(np.linspace(1, 0, len(paths)))
        axis.add_collection(fan)
    axis.plot(*story.positions[: step + 1].T, color=colour, linewidth=1.2, zorder=4)
    if story.macro is not None:
        way = np.vstack([origin, story.macro[call]])
        axis.plot(*way.T, ":", color=style.SUBGOAL, linewidth=0.8, zorder=5)
        look = {"marker": "D", "color": style.SUBGOAL, "edgecolor": style.INK, "linewidth": 0.5}
        axis.scatter(*way[1:].T, s=[20, *[9] * (len(way) - 2)], zorder=6, **look)
    if story.plan is not None:
        chosen = np.vstack([origin, story.plan[call]])
        axis.plot(*chosen.T, color=style.INK, linewidth=1.2, zorder=5)
    if step < story.steps:
        end = story.positions[step] + ARROW * story.actions[step]
        look = {"arrowstyle": "-|>", "color": style.GOAL, "linewidth": 1.2, "shrinkA": 0}
        axis.annotate("", end, story.positions[step], arrowprops={**look, "shrinkB": 0}, zorder=7)
    _ends(axis, story)
    _here(axis, story.positions[step], colour)


def _landscape(axis: Axes, story: Story, step: int) -> None:
    name = story.cost if story.cost in story.maps.costs else "latent"
    draw_landscape(axis, story.maps, name, story.scene)
    axis.plot(*story.positions[: step + 1].T, color=style.PAPER, linewidth=1, zorder=4)
    _ends(axis, story)
    _here(axis, story.positions[step], style.colour(story.method))


def _ahead(axis: Axes, story: Story, step: int) -> None:
    draw.show_room(axis, story.scene.room)
    axis.plot(*story.positions.T, color=style.FAINT, linewidth=0.8, zorder=2)
    if step < story.steps:
        guess = story.ahead[step]
        guess = guess[np.isfinite(guess[:, 0])]
        truth = story.positions[step : step + len(guess) + 1]
        colour = style.colour(story.method)
        axis.plot(*truth.T, color=style.INK, linewidth=1.5, zorder=4)
        path = np.vstack([truth[0], guess])
        axis.plot(*path.T, ".-", color=colour, linewidth=0.9, ms=2.5, zorder=5)
    _ends(axis, story)
    _here(axis, story.positions[step], style.INK)


def _plane(axis: Axes, story: Story, step: int) -> None:
    left = story.maps.places[:, 0] < story.scene.wall_x
    for part, colour in ((left, style.SKY), (~left, style.PURPLE)):
        axis.plot(*story.maps.plane[part].T, ".", ms=1.6, mew=0, color=colour, alpha=0.4)
    latents, call = story.latents, story.call(step)
    colour = style.colour(story.method)
    axis.plot(*latents["path"][: step + 1].T, color=colour, linewidth=1.1)
    if "macro" in latents:
        look = {"color": style.SUBGOAL, "edgecolor": style.INK, "linewidth": 0.4, "zorder": 4}
        axis.scatter(*latents["macro"][call].T, s=8, **look)
    if "plan" in latents:
        axis.plot(*latents["plan"][call].T, color=style.INK, linewidth=1.2, zorder=5)
    style.mark_goal(axis, latents["goal"], size=26)
    _here(axis, latents["path"][step], colour)
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)


def _ways(axis: Axes, stories: list[Story], colours: list[str], steps: np.ndarray) -> None:
    for story, colour in zip(stories, colours, strict=True):
        axis.plot(story.way, color=colour, label=f"{story.title}: {story.outcome}")
        shown = steps[steps <= story.steps]
        axis.plot(shown, story.way[shown], "o", ms=4, color=colour, clip_on=False)
    axis.set(xlabel="step", ylabel="shortest way left (px)", ylim=(0, None))
    axis.set_xlim(0, max(1, *(story.steps for story in stories)))
    if len(stories) > 1:
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center")
    else:
        second = axis.twinx()
        (story,) = stories
        name = story.cost if story.cost in story.costs else "latent"
        second.plot(story.costs[name], "--", color=style.INK, linewidth=1)
        second.set(ylim=(0, None))
        second.set_ylabel(f"dashed: {UNITS[name]}")
        second.spines["right"].set_visible(True)
    axis.grid(axis="y")


def _ends(axis: Axes, story: Story) -> None:
    style.mark_start(axis, np.array(story.scene.start), size=14)
    style.mark_goal(axis, np.array(story.scene.goal), size=26)


def _here(axis: Axes, place: np.ndarray, colour: str) -> None:
    axis.scatter(*place, s=22, color=colour, edgecolor=style.PAPER, lw=0.7, zorder=8)
