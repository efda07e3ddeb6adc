"""A roll-out as one static figure, for readers without scripts: moments of a story."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import room_of
from hjepa_lib.figures.style import styled
from hjepa_lib.widgets.player import ARROW, colours_of
from hjepa_lib.widgets.story import Story

MOMENTS = 5
_SIZE = 1.75  # inches of a panel


@styled
def film(*stories: Story) -> Figure:
    """A row of plans at moments of each story; ways left to the goal below."""
    first, rows = stories[0], len(stories)
    last = max(story.steps for story in stories)
    steps = np.unique(np.linspace(0, last, MOMENTS).round().astype(int))
    width, height = first.scene.size
    size = (_SIZE * len(steps) + 0.3, _SIZE * (rows * height / width + 1.1 + 0.2 * rows))
    figure = style.Picture(figsize=size, layout="constrained")
    style.headline(figure, " and ".join(story.title for story in stories))
    cells = np.arange(rows * len(steps)).reshape(rows, -1).tolist()
    *axes, chart = figure.subplot_mosaic([*cells, [-1] * len(steps)]).values()
    colours, columns = colours_of(*stories), len(steps)
    for number, (story, colour) in enumerate(zip(stories, colours, strict=True)):
        for axis, step in zip(axes[number * columns :], steps, strict=False):
            _plan(axis, story, min(step, story.steps), colour)
    for axis, step in zip(axes, steps, strict=False):
        axis.set_title(f"step {step}", pad=3)
    _ways(chart, stories, colours, steps)
    return figure


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
    start, goal = story.scene.ends
    style.mark_start(axis, start, size=14)
    style.mark_goal(axis, goal, size=26)
    style.mark_dot(axis, story.positions[step], colour)


def _ways(axis: Axes, stories: Sequence[Story], colours: list[str], steps: np.ndarray) -> None:
    for story, colour in zip(stories, colours, strict=True):
        shown = {"marker": "o", "ms": 4, "markevery": list(steps[steps <= story.steps])}
        label = f"{story.title}: {story.outcome}"
        axis.plot(story.way, color=colour, label=label, clip_on=False, **shown)
    axis.set(xlabel="step", ylabel="shortest way left (px)", ylim=(0, None))
    axis.set_xlim(0, max(1, *(story.steps for story in stories)))
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center")
    axis.grid(axis="y")
