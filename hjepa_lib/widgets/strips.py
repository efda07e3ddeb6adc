"""A roll-out as one static figure, for readers without scripts: moments of a story."""

from collections.abc import Sequence
from itertools import cycle, product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import frame_rgb, room_of
from hjepa_lib.figures.plans import moments
from hjepa_lib.figures.style import styled
from hjepa_lib.widgets.player import ARROW, colours_of
from hjepa_lib.widgets.story import UNITS, Story

_SIZE = 1.75  # inches of a panel


@styled
def film(*stories: Story, count: int = 5) -> Figure:
    """A column per moment: frame, plan, landscape, open loop, latents of one story, or the plans of
    two, one above the other; distances below."""
    first = stories[0]
    rows = [
        ("frame", _frame), ("plan", _plan), (f"{first.shown_cost} cost", _landscape),
        ("open loop", _ahead), ("latents", _plane),
    ]  # fmt: skip
    title = f"{first.title}: {first.outcome}"
    if len(stories) > 1:
        rows = [(one.method, _plan) for one in stories]
        title = f"{first.title} (above) and {stories[1].title} (below)"
    steps = moments(max(story.steps for story in stories), count)
    width, height = first.scene.size
    rest = 1.1 if len(stories) == 1 else 1.5
    size = (_SIZE * len(steps) + 0.3, _SIZE * (len(rows) * height / width + rest))
    figure = style.Picture(figsize=size, layout="constrained")
    style.headline(figure, title)
    cells = np.arange(len(rows) * len(steps)).reshape(len(rows), -1).tolist()
    *axes, chart = figure.subplot_mosaic([*cells, [-1] * len(steps)]).values()
    colours = colours_of(*stories)
    told = zip(rows, cycle(zip(stories, colours, strict=True)), strict=False)
    for axis, (((_, shows), (story, colour)), step) in zip(axes, product(told, steps), strict=True):
        shows(axis, story, min(step, story.steps), colour)
    for axis, step in zip(axes, steps, strict=False):
        axis.set_title(f"step {step}", pad=3)
    look = {"rotation": 90, "ha": "right", "va": "center", "color": style.MUTED}
    for axis, (name, _) in zip(axes[:: len(steps)], rows, strict=True):
        axis.text(-0.05, 0.5, name, transform=axis.transAxes, **look)
    _ways(chart, stories, colours, steps)
    return figure


def _frame(axis: Axes, story: Story, step: int, _: str) -> None:
    axis.imshow(frame_rgb(story.frames[step]))
    axis.set_axis_off()


def _plan(axis: Axes, story: Story, step: int, colour: str) -> None:
    """Path so far, candidates shaded by cost, chosen plan and action, what level 2 imagines."""
    call, path = story.call(step), story.positions[: step + 1]
    draw.show_room(axis, room_of(story.frames[step]))
    imagined = (one if one is None else one[call] for one in (story.fan, story.plan, story.macro))
    draw.planned(axis, path[min(call * story.replan, step)], *imagined, scale=0.6)
    draw.path(axis, path, color=colour)
    if step < story.steps and len(story.actions[step]) == 2:  # x and y
        look = {"color": style.GOAL, "width": 0.5, "length_includes_head": True, "zorder": 7}
        axis.arrow(*path[-1], *ARROW * story.actions[step], **look)
    _places(axis, story, step, colour)


def _landscape(axis: Axes, story: Story, step: int, colour: str) -> None:
    maps, name = story.maps, story.shown_cost
    draw.landscape(axis, story.scene.room, maps.costs[name], maps.x, maps.y)
    draw.path(axis, story.positions[: step + 1], color=style.PAPER)
    _places(axis, story, step, colour)


def _ahead(axis: Axes, story: Story, step: int, colour: str) -> None:
    draw.show_room(axis, story.scene.room)
    draw.path(axis, story.positions, color=style.FAINT, zorder=2)
    if step < story.steps:
        guess = story.ahead[step][np.isfinite(story.ahead[step][:, 0])]
        truth = story.positions[step : step + len(guess) + 1]
        draw.path(axis, truth, color=style.INK, lw=1.5)
        way = np.vstack([truth[0], guess])
        draw.path(axis, way, color=colour, marker=".", ms=2.5, zorder=5)
    _places(axis, story, step, style.INK)


def _plane(axis: Axes, story: Story, step: int, colour: str) -> None:
    left = story.maps.left
    for part, shade in ((left, style.SKY), (~left, style.PURPLE)):
        axis.plot(*story.maps.plane[part].T, ".", ms=1.6, mew=0, color=shade, alpha=0.4)
    latents, call = story.latents, story.call(step)
    path = latents["path"][: step + 1]
    draw.path(axis, path, color=colour)
    if "macro" in latents:
        look = {"color": style.SUBGOAL, "edgecolor": style.INK, "lw": 0.5}
        axis.scatter(*latents["macro"][call].T, s=8, zorder=4, **look)
    if "plan" in latents:
        draw.path(axis, latents["plan"][call], color=style.INK, zorder=5)
    style.mark_goal(axis, latents["goal"], size=26)
    style.mark_dot(axis, path[-1], colour)
    axis.set_aspect("equal")
    axis.set_axis_off()


def _ways(axis: Axes, stories: Sequence[Story], colours: list[str], steps: np.ndarray) -> None:
    for story, colour in zip(stories, colours, strict=True):
        shown = {"marker": "o", "ms": 4, "markevery": list(steps[steps <= story.steps])}
        label = f"{story.title}: {story.outcome}"
        axis.plot(story.way, color=colour, label=label, clip_on=False, **shown)
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


def _places(axis: Axes, story: Story, step: int, colour: str) -> None:
    start, goal = story.scene.ends
    style.mark_start(axis, start, size=14)
    style.mark_goal(axis, goal, size=26)
    style.mark_dot(axis, story.positions[step], colour)
