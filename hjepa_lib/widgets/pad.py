"""The picture beside the sliders: a room to click in, with anywidget, else one from the kernel."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from hjepa_lib.figures import style
from hjepa_lib.figures.style import png
from hjepa_lib.widgets.story import Scene
from hjepa_lib.widgets.strips import preview
from hjepa_lib.worlds.layout import DOOR_HALF, HIGH, LOW, WALL_HALF

NAMES = ("start_x", "start_y", "goal_x", "goal_y", "wall_x", "door_y")
_LOOK = {
    "low": LOW, "high": HIGH, "wall": WALL_HALF, "door": DOOR_HALF,
    "floor": style.FLOOR, "ink": style.WALL, "start": style.START, "goal": style.GOAL,
}  # fmt: skip


def link_pad(sliders: dict[str, Any]) -> tuple[Any, str]:
    """(picture of the scene that the six sliders in `NAMES` describe, how to use it).

    The picture follows the sliders, and with anywidget the sliders follow clicks in it.
    """
    import ipywidgets

    try:
        pad = _pad_class()(**{name: sliders[name].value for name in NAMES})
    except ImportError:
        image = ipywidgets.Image(format="png", width=260, height=260)

        def draw(_: Any = None) -> None:
            image.value = png(preview(read_scene(sliders)))

        for name in NAMES:
            sliders[name].observe(draw, "value")
        draw()
        return image, "Move the sliders (clicks in the picture need the package anywidget)."
    for name in NAMES:
        # In the browser: the picture follows a slider without asking the kernel.
        ipywidgets.jslink((sliders[name], "value"), (pad, name))
    return pad, "Click or drag in the picture, or move the sliders."


def read_scene(sliders: dict[str, Any]) -> Scene:
    """The scene that the sliders show; not checked."""
    start_x, start_y, goal_x, goal_y, *room = (sliders[name].value for name in NAMES)
    return Scene((start_x, start_y), (goal_x, goal_y), *map(int, room))


@functools.cache
def _pad_class() -> type:
    """Made at the first use, because its base class comes with an extra."""
    import anywidget
    import traitlets

    script = resources.files("hjepa_lib.widgets").joinpath("pad.js").read_text("utf-8")
    body = {name: traitlets.Float(0.0).tag(sync=True) for name in NAMES}
    look = traitlets.Dict(_LOOK).tag(sync=True)
    return type("Pad", (anywidget.AnyWidget,), {"_esm": script, "look": look, **body})
