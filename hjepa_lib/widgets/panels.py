"""The panels of notebook 06: look at another trial; change the scene and the planner.

The kernel computes a story once. Wrong values give a sentence.
"""

import html
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from hjepa_lib.config import Config, flatten
from hjepa_lib.figures import style
from hjepa_lib.files import WorkbookError
from hjepa_lib.planning.agent import METHODS, Agent
from hjepa_lib.widgets.player import player
from hjepa_lib.widgets.story import Story, costs_of, options_of, play_with, tell
from hjepa_lib.worlds.layout import DOOR_RANGE, WALL_RANGE
from hjepa_lib.worlds.two_rooms import TwoRooms

PLACES = ("start_x", "start_y", "goal_x", "goal_y")


def _widget(kind: str, *parts: Any, **options: Any) -> Any:
    """Something of ipywidgets, which comes with an extra."""
    return getattr(importlib.import_module("ipywidgets"), kind)(*parts, **options)


def _control(name: str, value: Any, options: tuple) -> Any:
    """A list of all options, or a slider from the least to the most, which acts when released."""
    look = {"style": {"description_width": "190px"}, "layout": {"width": "430px"}}
    look |= {"description": name.replace("_", " "), "value": value}
    if isinstance(value, str):
        return _widget("Dropdown", options=options, **look)
    kind, (low, high) = "FloatSlider" if isinstance(value, float) else "IntSlider", options
    ends = {"min": min(low, value), "max": max(high, value), "continuous_update": False}
    return _widget(kind, **ends, **look)


class Panel:
    """Controls above a player of what `play` makes of their values; `box` is to be displayed."""

    def __init__(self, controls: Mapping[str, Any], play: Callable[..., list[Story]]) -> None:
        self.controls, self.play, self.output = controls, play, _widget("Output")
        for control in controls.values():
            control.observe(self._show, "value")
        bar = _widget("HBox", [*controls.values()], layout={"flex_flow": "row wrap"})
        self.box = _widget("VBox", [bar, self.output])
        self._show()

    def _show(self, _: Any = None) -> None:
        try:
            page = player(*self.play({name: one.value for name, one in self.controls.items()}))
        except WorkbookError as error:  # anything else is a fault of ours and keeps its trace
            page = f'<p role="alert" style="color:{style.GOAL}">{html.escape(str(error))}</p>'
        data = {"text/html": str(page), "text/plain": "roll-out player"}
        # Replaced at once and without a flicker: not captured.
        self.output.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)


def explorer(config: Config, agent: Agent, story: Story, trial: int) -> Panel:
    """Choose method, cost and trial, and look at the roll-out; it begins with those of `story`."""
    methods = METHODS if agent.level2 is not None else METHODS[:1]
    controls = {
        "method": _control("method", story.method, methods),
        "cost": _control("cost", story.cost, costs_of(agent)),
        "trial": _widget("BoundedIntText", trial, description="trial", max=10_000),
    }
    return Panel(controls, lambda values: [tell(config, agent, **values)])


def studio(config: Config, agent: Agent, story: Story) -> Panel:
    """Move start and goal, in Two Rooms wall and door as well, and change the planner of `story`;
    beside it the planner as it is, where another was chosen."""
    task, method = story.scene, story.method
    sides = zip(PLACES, task.ends.flat, 2 * task.size, strict=True)
    places = {name: _control(name, round(float(at), 1), (0, side - 1)) for name, at, side in sides}
    if issubclass(task.kind, TwoRooms):
        rows = zip(("wall_x", "door_y"), task.row, (WALL_RANGE, DOOR_RANGE), strict=True)
        places |= {name: _control(name, value, ends) for name, value, ends in rows}
    usual = flatten(config.planning) | {"cost": story.cost}
    options = options_of(agent, method)
    knobs = {name: _control(name, usual[name], ends) for name, ends in options.items()}
    base = {name: usual[name] for name in options}

    def played(values: dict[str, Any]) -> list[Story]:
        x, y, goal_x, goal_y, *row = (values[name] for name in places)
        moved = task.moved((x, y), (goal_x, goal_y))
        scene = moved._replace(row=tuple(row) or moved.row)
        chosen = {name: values[name] for name in knobs}
        wanted = [base] if chosen == base else [base, chosen]
        return [play_with(agent, scene, config, method, one) for one in wanted]

    return Panel(places | knobs, played)
