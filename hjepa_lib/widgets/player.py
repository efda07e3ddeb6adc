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
<script>$script</script>
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


def player(*stories: Story, scale: float = 1.0) -> Player:
    """One story with all its panels, or two of the same room side by side with a shared clock.

    `scale` multiplies the resolution of the pictures in it. FigureError for any other number.
    """
    if len(stories) not in (1, 2):
        raise style.FigureError(f"a player shows one story or two, got {len(stories)}")
    data = json.dumps(payload(stories, scale), separators=(",", ":"), allow_nan=False)
    page = _PAGE.substitute(
        css=_part("player.css"),
        script=_script(),
        data=data.replace("<", "\\u003c"),  # so that no title ends or opens a script (S10)
        note=html.escape(_NOTE),
    )
    return Player(page)


@functools.cache
def _script() -> str:
    """The three scripts as one, in a scope of its own."""
    parts = "\n".join(_part(name) for name in ("panels.js", "charts.js", "player.js"))
    return f'(() => {{\n"use strict";\n{parts}}})();'


@functools.cache
def _part(name: str) -> str:
    return resources.files("hjepa_lib.widgets").joinpath(name).read_text("utf-8")


def payload(stories: Sequence[Story], scale: float = 1.0) -> dict[str, Any]:
    """What player.js draws, JSON-ready: numbers rounded, pictures as data URIs."""
    colours = pair_colours(*stories) if len(stories) == 2 else [_colour(stories[0])]
    return {
        "edge": EDGE,
        "arrow": ARROW,
        "colours": {
            "ink": style.INK, "muted": style.MUTED, "faint": style.FAINT, "paper": style.PAPER,
            "goal": style.GOAL, "subgoal": style.SUBGOAL, "left": style.SKY, "right": style.PURPLE,
            "best": to_hex(style.CANDIDATES(0.0)), "worst": to_hex(style.CANDIDATES(1.0)),
        },
        "units": UNITS,
        "stories": [
            _story(story, colour, scale, whole=len(stories) == 1)
            for story, colour in zip(stories, colours, strict=True)
        ],
    }  # fmt: skip


def _colour(story: Story) -> str:
    return style.colour(story.method)


def pair_colours(left: Story, right: Story) -> list[str]:
    """The methods' colours; purple for the second of two stories of one method."""
    first, second = _colour(left), _colour(right)
    return [first, style.PURPLE if second == first else second]


def _story(story: Story, colour: str, scale: float, whole: bool) -> dict[str, Any]:
    """`whole`: with frames, landscapes, open loop and latents, which two at once leave out."""
    maps, scene = story.maps, story.scene
    data = {
        "title": story.title,
        "outcome": story.outcome,
        "colour": colour,
        "replan": story.replan,
        "floor": _data_uri(floor_picture(scene, scale)),
        "start": _round(np.array(scene.start)),
        "goal": _round(np.array(scene.goal)),
        "path": _round(story.positions, 2),
        "actions": _round(story.actions, 2),
        "way": _round(story.way),
        "costs": {name: _round(values, 4) for name, values in story.costs.items()},
        "cost": story.cost,
        "plan": _round(story.plan),
        "fan": _round(story.fan),
        "shades": [] if story.fan is None else _shades(story.fan.shape[1]),
        "macro": _round(story.macro),
        "near": None if story.near is None else story.near.tolist(),
    }
    if whole:
        left = maps.places[:, 0] < scene.wall_x
        data |= {
            "sprite": _data_uri(_png(Image.fromarray(sprite(story.frames)))),
            "columns": _COLUMNS,
            "size": story.frames.shape[-1],
            "landscapes": {
                name: _data_uri(landscape_picture(maps, name, scene, scale)) for name in maps.costs
            },
            "ranges": {
                name: [_number(np.nanmin(values)), _number(np.nanmax(values))]
                for name, values in maps.costs.items()
            },
            "ramp": [to_hex(colormaps[style.SEQUENTIAL](x)) for x in np.linspace(0, 1, 9)],
            "ahead": [_round(row[np.isfinite(row[:, 0])]) for row in story.ahead],
            "plane": {
                "left": _round(maps.plane[left], 2),
                "right": _round(maps.plane[~left], 2),
                "explained": _round(100 * maps.explained, 0),
                **{name: _round(values, 2) for name, values in story.latents.items()},
            },
        }
    return data


def _round(values: np.ndarray | None, digits: int = 1) -> Any:
    return None if values is None else np.round(values.astype(np.float64), digits).tolist()


def _number(value: float) -> float:
    return float(f"{value:.2g}") if value >= 0.1 else round(float(value), 1)


def _shades(count: int) -> list[str]:
    return [to_hex(style.CANDIDATES(x)) for x in np.linspace(0, 1, count)]


def sprite(frames: np.ndarray) -> np.ndarray:
    """Frames (T, 2, Hpx, Wpx) uint8 as one RGB image, 16 in a row, reading order."""
    images = frame_rgb(frames)
    rows = -(-len(images) // _COLUMNS)
    blank = np.zeros((rows * _COLUMNS, *images.shape[1:]), np.uint8)
    blank[: len(images)] = images
    grid = blank.reshape(rows, _COLUMNS, *images.shape[1:])  # (rows, 16, Hpx, Wpx, 3)
    return grid.swapaxes(1, 2).reshape(rows * images.shape[1], -1, 3)


def floor_picture(scene: Scene, scale: float = 1.0) -> bytes:
    """The empty room as a square PNG that shows `EDGE` px in both directions."""
    return _square(lambda axis: draw.show_room(axis, scene.room), scale)


def landscape_picture(maps: Maps, name: str, scene: Scene, scale: float = 1.0) -> bytes:
    """The cost of every place, as a picture like `floor_picture`."""
    return _square(lambda axis: draw_landscape(axis, maps, name, scene), scale)


def draw_landscape(axis: Axes, maps: Maps, name: str, scene: Scene) -> None:
    """Colours with contour lines in the room; the same look as `figures.cost_landscape`."""
    draw.show_room(axis, scene.room)
    draw.landscape(axis, maps.costs[name], maps.axis, maps.axis)


@styled
def _square(shows: Callable[[Axes], None], scale: float) -> bytes:
    figure = style.Picture(figsize=(3.0 * scale, 3.0 * scale))
    axis = figure.add_axes((0, 0, 1, 1))
    shows(axis)
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
