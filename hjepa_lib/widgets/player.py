"""The player: a story as one piece of HTML that plays and scrubs in the browser, without a kernel.

Frames, floor plan and landscapes travel as pictures, paths and plans as numbers that a script draws
over them. Where scripts are stripped a sentence points to the film strip above it.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import json
from collections.abc import Callable, Sequence
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.data import frame_rgb
from hjepa_lib.figures.style import styled
from hjepa_lib.widgets.story import UNITS, Maps, Scene, Story
from hjepa_lib.worlds.layout import SIZE

EDGE = (-0.5, SIZE - 0.5)  # px shown of the room, as in `primitives.show_room`
ARROW = 3  # an action is at most a few px long: it is drawn this many times as long
_COLUMNS = 16  # frames per row of the sprite
_PAGE = Template(
    """<div class="hjepa-player">
<style>$css</style>
<script type="application/json">$data</script>
<p class="hp-still">$note</p>
<script>(() => {
"use strict";
$script})();</script>
</div>"""
)
_NOTE = (
    "The player needs its script: run this cell, or trust the notebook. "
    "The film strip above shows the same roll-out."
)


class Player(str):
    """The HTML of a player; notebooks show it."""

    def __repr__(self) -> str:
        return "Player()"  # its text would stand in the notebook a second time

    def _repr_html_(self) -> str:
        return str(self)


def player(*stories: Story) -> Player:
    """One story with all its panels, or two of the same room side by side with a shared clock.

    FigureError for any other number.
    """
    if len(stories) not in (1, 2):
        raise style.FigureError(f"a player shows one story or two, got {len(stories)}")
    data = json.dumps(payload(stories), separators=(",", ":"), allow_nan=False)
    page = _PAGE.substitute(
        css=_part("player.css"),
        script="\n".join(map(_part, ("panels.js", "charts.js", "player.js"))),
        data=data.replace("<", "\\u003c"),  # so that no title ends or opens a script (S10)
        note=html.escape(_NOTE),
    )
    return Player(page)


@functools.cache
def _part(name: str) -> str:
    return resources.files("hjepa_lib.widgets").joinpath(name).read_text("utf-8")


def payload(stories: Sequence[Story]) -> dict[str, Any]:
    """What player.js draws, JSON-ready: numbers rounded, pictures as data URIs."""
    colours = {
        "ink": style.INK, "muted": style.MUTED, "faint": style.FAINT, "paper": style.PAPER,
        "goal": style.GOAL, "subgoal": style.SUBGOAL, "left": style.SKY, "right": style.PURPLE,
        "best": to_hex(style.CANDIDATES(0.0)), "worst": to_hex(style.CANDIDATES(1.0)),
    }  # fmt: skip
    told = [_story(*one) for one in zip(stories, colours_of(*stories), strict=True)]
    if len(stories) == 1:
        told[0] |= _whole(stories[0])
    page = {"edge": EDGE, "arrow": ARROW, "colours": colours, "units": UNITS}
    return page | {"stories": told}


def colours_of(*stories: Story) -> list[str]:
    """The methods' colours; purple for the second of two stories of one method."""
    first, *second = (style.colour(story.method) for story in stories)
    return [first, *(style.PURPLE if one == first else one for one in second)]


def _story(story: Story, colour: str) -> dict[str, Any]:
    fan = 0 if story.fan is None else story.fan.shape[1]
    return {
        "title": story.title,
        "outcome": story.outcome,
        "colour": colour,
        "replan": story.replan,
        "floor": _data_uri(floor_picture(story.scene)),
        "start": _round(np.array(story.scene.start)),
        "goal": _round(np.array(story.scene.goal)),
        "path": _round(story.positions, 2),
        "actions": _round(story.actions, 2),
        "way": _round(story.way),
        "costs": {name: _round(values, 4) for name, values in story.costs.items()},
        "cost": story.cost,
        "plan": _round(story.plan),
        "fan": _round(story.fan),
        "shades": [to_hex(style.CANDIDATES(x)) for x in np.linspace(0, 1, fan)],
        "macro": _round(story.macro),
        "near": None if story.near is None else story.near.tolist(),
    }


def _whole(story: Story) -> dict[str, Any]:
    """Frames, landscapes, open loop and latents, which two at once leave out."""
    maps, scene = story.maps, story.scene
    left = maps.places[:, 0] < scene.wall_x
    ends = {name: (np.nanmin(one), np.nanmax(one)) for name, one in maps.costs.items()}
    return {
        "sprite": _data_uri(_png(Image.fromarray(sprite(story.frames)))),
        "columns": _COLUMNS,
        "size": story.frames.shape[-1],
        "landscapes": {one: _data_uri(landscape_picture(maps, one, scene)) for one in maps.costs},
        "ranges": {name: [_number(value) for value in pair] for name, pair in ends.items()},
        "ramp": [to_hex(colormaps[style.SEQUENTIAL](x)) for x in np.linspace(0, 1, 9)],
        "ahead": [_round(row[np.isfinite(row[:, 0])]) for row in story.ahead],
        "plane": {
            "left": _round(maps.plane[left], 2),
            "right": _round(maps.plane[~left], 2),
            "explained": _round(100 * maps.explained, 0),
            **{name: _round(values, 2) for name, values in story.latents.items()},
        },
    }


def _round(values: np.ndarray | None, digits: int = 1) -> Any:
    return None if values is None else np.round(values.astype(np.float64), digits).tolist()


def _number(value: float) -> float:
    return float(f"{value:.2g}") if value >= 0.1 else round(float(value), 1)


def sprite(frames: np.ndarray) -> np.ndarray:
    """Frames (T, 2, Hpx, Wpx) uint8 as one RGB image, 16 in a row, reading order."""
    images = frame_rgb(frames)
    rows = -(-len(images) // _COLUMNS)
    grid = np.zeros((rows * _COLUMNS, *images.shape[1:]), np.uint8)
    grid[: len(images)] = images
    lines = grid.reshape(rows, _COLUMNS, *images.shape[1:]).swapaxes(1, 2)
    return lines.reshape(rows * images.shape[1], -1, 3)


def floor_picture(scene: Scene) -> bytes:
    """The empty room as a square PNG that shows `EDGE` px in both directions."""
    return _square(lambda axis: draw.show_room(axis, scene.room))


def landscape_picture(maps: Maps, name: str, scene: Scene) -> bytes:
    """The cost of every place, as a picture like `floor_picture`."""
    return _square(lambda axis: draw_landscape(axis, maps, name, scene))


def draw_landscape(axis: Axes, maps: Maps, name: str, scene: Scene) -> None:
    """Colours with contour lines in the room; the same look as `figures.cost_landscape`."""
    draw.show_room(axis, scene.room)
    draw.landscape(axis, maps.costs[name], maps.axis, maps.axis)


@styled
def _square(shows: Callable[[Axes], None]) -> bytes:
    figure = style.Picture(figsize=(3.0, 3.0))
    shows(figure.add_axes((0, 0, 1, 1)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    # 256 colours are a third of the bytes, and every notebook holds several such pictures.
    return _png(Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
