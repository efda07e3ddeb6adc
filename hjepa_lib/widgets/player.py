"""Stories to look at: a film strip, and a piece of HTML that plays in the browser without a kernel.

Frames, floor plan and landscapes travel as pictures, paths and plans as numbers that a script draws
over them. The strip is for readers without scripts.
"""

import functools
import json
from collections.abc import Callable, Sequence
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import frame_rgb, room_of
from hjepa_lib.figures.style import data_uri, encoded, styled
from hjepa_lib.widgets.story import UNITS, Story

ARROW = 3  # an action is at most a few px long: it is drawn this many times as long
MOMENTS = 5  # of a strip
_SIZE = 1.75  # inches of its panels
_COLUMNS = 16  # frames per row of the sprite


def player(*stories: Story) -> style.Html:
    """One story with all its panels, or two of the same layout side by side, a clock for both.

    FigureError for any other number.
    """
    if len(stories) not in (1, 2):
        raise style.FigureError(f"a player shows one story or two, got {len(stories)}")
    data = json.dumps(payload(stories), separators=(",", ":"), allow_nan=False)
    page = Template(_part("player.html")).substitute(
        css=_part("player.css"),
        script="\n".join(map(_part, ("panels.js", "charts.js", "player.js"))),
        data=data.replace("<", "\\u003c"),  # so that no title ends or opens a script (S10)
    )
    return style.Html(page)


@functools.cache
def _part(name: str) -> str:
    return resources.files("hjepa_lib.widgets").joinpath(name).read_text("utf-8")


def payload(stories: Sequence[Story]) -> dict[str, Any]:
    """What player.js draws, JSON-ready: numbers rounded, pictures as data URIs."""
    colours = {
        "ink": style.INK, "muted": style.MUTED, "faint": style.FAINT, "paper": style.PAPER,
        "goal": style.GOAL, "subgoal": style.SUBGOAL,
        "best": to_hex(style.CANDIDATES(0.0)), "worst": to_hex(style.CANDIDATES(1.0)),
    }  # fmt: skip
    told = [_story(*one) for one in zip(stories, colours_of(*stories), strict=True)]
    if len(stories) == 1:
        told[0] |= _whole(stories[0])
    page = {"size": stories[0].scene.size, "arrow": ARROW, "colours": colours, "units": UNITS}
    return page | {"stories": told}


def colours_of(*stories: Story) -> list[str]:
    """The methods' colours; purple for the second of two stories of one method."""
    first, *second = (style.colour(story.method) for story in stories)
    return [first, *(style.PURPLE if one == first else one for one in second)]


def _story(story: Story, colour: str) -> dict[str, Any]:
    fan = 0 if story.fan is None else story.fan.shape[1]
    same = ("title", "outcome", "replan", "cost")
    rounded = ("way", "plan", "fan", "macro", "near")
    (start, goal), room = _round(story.scene.ends, 2), story.scene.room
    return {
        **{name: getattr(story, name) for name in same},
        **{name: _round(getattr(story, name)) for name in rounded},
        "colour": colour,
        "floor": room_picture(room, lambda axis: draw.show_room(axis, room)),
        "start": start,
        "goal": goal,
        "path": _round(story.positions, 2),
        "actions": _round(story.actions, 2),
        "costs": {name: _round(values, 4) for name, values in story.costs.items()},
        "shades": [to_hex(style.CANDIDATES(x)) for x in np.linspace(0, 1, fan)],
    }


def _whole(story: Story) -> dict[str, Any]:
    """Frames, landscapes and open loop, which two at once leave out."""
    maps, room = story.maps, story.scene.room

    def landscape(values: np.ndarray) -> str:
        return room_picture(room, lambda axis: draw.landscape(axis, room, values, maps.x, maps.y))

    return {
        "sprite": data_uri(encoded(Image.fromarray(sprite(story.frames)), optimize=True)),
        "columns": _COLUMNS,
        "landscapes": {name: landscape(values) for name, values in maps.costs.items()},
        "ranges": {name: _round(np.nanquantile(one, [0, 1])) for name, one in maps.costs.items()},
        "ramp": [to_hex(colormaps[style.SEQUENTIAL](x)) for x in np.linspace(0, 1, 9)],
        "ahead": [_round(row[np.isfinite(row[:, 0])]) for row in story.ahead],
    }


def _round(values: np.ndarray | None, digits: int = 1) -> Any:
    return None if values is None else np.round(values.astype(np.float64), digits).tolist()


def sprite(frames: np.ndarray) -> np.ndarray:
    """Frames (T, C, Hpx, Wpx) uint8 as one RGB image, 16 in a row, reading order."""
    images = frame_rgb(frames)
    images = np.pad(images, [(0, -len(images) % _COLUMNS), *[(0, 0)] * 3])
    return np.vstack([np.hstack(row) for row in images.reshape(-1, _COLUMNS, *images.shape[1:])])


@styled
def room_picture(room: np.ndarray, shows: Callable[[Axes], Any]) -> str:
    """What `shows` draws on an axis, as the address of a PNG of the shape of `room`."""
    height, width = room.shape[:2]
    figure = style.Picture(figsize=(3.0, 3.0 * height / width), dpi=150)
    shows(figure.add_axes((0, 0, 1, 1)))
    # 256 colours are a third of the bytes, and every notebook holds several such pictures.
    image = Image.fromarray(style.rgb(figure)).quantize(256, dither=Image.Dither.NONE)
    return data_uri(encoded(image, optimize=True))


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
    style.mark(axis, "start", start, s=14)
    style.mark(axis, "goal", goal, s=26)
    style.mark(axis, "dot", story.positions[step], color=colour)


def _ways(axis: Axes, stories: Sequence[Story], colours: list[str], steps: np.ndarray) -> None:
    for story, colour in zip(stories, colours, strict=True):
        shown = {"marker": "o", "ms": 4, "markevery": list(steps[steps <= story.steps])}
        label = f"{story.title}: {story.outcome}"
        axis.plot(story.way, color=colour, label=label, clip_on=False, **shown)
    axis.set(xlabel="step", ylabel="shortest way left (px)", ylim=(0, None))
    axis.set_xlim(0, max(1, *(story.steps for story in stories)))
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center")
    axis.grid(axis="y")
