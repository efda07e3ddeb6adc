"""The panels of notebook 06: choose a roll-out; change the scene and the planner.

The kernel computes a story once; its player then needs no kernel. Wrong values give a sentence.
"""

import asyncio
import functools
import html
import importlib
from collections.abc import Callable
from importlib import resources
from typing import Any

from hjepa_lib.config import PlanningConfig
from hjepa_lib.figures import style
from hjepa_lib.files import WorkbookError
from hjepa_lib.planning.agent import Agent
from hjepa_lib.runs.run import Run
from hjepa_lib.widgets import whatif
from hjepa_lib.widgets.player import floor_picture, player
from hjepa_lib.widgets.story import Scene, Story, checked_scene, costs_of
from hjepa_lib.worlds.layout import DOOR_RANGE, WALL_RANGE
from hjepa_lib.worlds.two_rooms import TwoRooms

PAUSE = 0.4  # seconds without a change before the live replan starts
NAMES = ("start_x", "start_y", "goal_x", "goal_y")


def _widget(kind: str, *parts: Any, **options: Any) -> Any:
    """Something of ipywidgets, which comes with an extra."""
    return getattr(importlib.import_module("ipywidgets"), kind)(*parts, **options)


def _control(kind: str, label: str, width: int = 350, **options: Any) -> Any:
    """A widget with its label beside it."""
    look = {"style": {"description_width": "130px"}, "layout": {"width": f"{width}px"}}
    return _widget(kind, description=label.replace("_", " "), **look, **options)


def _attempted(work: Callable[[Any], Any]) -> Callable[..., bool]:
    """A panel's work, which says so; False and a sentence in the page when a value does not fit."""

    @functools.wraps(work)
    def attempt(panel: Panel, *_: Any) -> bool:  # of events, it is enough that they happened
        panel.say("planning ...")
        try:
            work(panel)
        except WorkbookError as error:  # anything else is a fault of ours and keeps its trace
            panel.say(str(error), wrong=True)
            return False
        return True

    return attempt


class Panel:
    """Controls above a line of text and a player."""

    def __init__(self, *stories: Story) -> None:
        self.output, self.message = _widget("Output"), _widget("HTML")
        self.show(*stories)

    def lay_out(self, *controls: Any, text: str) -> None:
        """Make `box`, what a notebook displays."""
        self.say(text)
        bar = _widget("HBox", controls, layout={"flex_flow": "row wrap", "grid_gap": "12px"})
        self.box = _widget("VBox", [bar, self.message, self.output])

    def show(self, *stories: Story) -> None:
        """Show a player of the stories, replaced at once and without a flicker: not captured."""
        data = {"text/html": str(player(*stories)), "text/plain": "roll-out player"}
        self.output.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)

    def say(self, text: str, wrong: bool = False) -> None:
        """A line below the controls; `wrong` makes it an alert."""
        colour, role = (style.GOAL, "alert") if wrong else (style.MUTED, "status")
        self.message.value = (
            f'<span role="{role}" class="hjepa-message" style="color:{colour}">'
            f"{html.escape(text)}</span>"
        )


class Explorer(Panel):
    """Choose run, method and trial, and look at the roll-out."""

    def __init__(
        self, run: Run, agent: Agent, choice: whatif.Choice, trial: int, story: Story
    ) -> None:
        super().__init__(story)
        self._opened = {run.name: (run, agent)}
        self.run = _control("Dropdown", "run", options=whatif.run_names(run.name))
        self.method = _control("Dropdown", "method", options=self._methods(), value=choice)
        self.trial = _control("BoundedIntText", "trial", 210, value=trial, min=0, max=499)
        self.run.observe(self._run_changed, "value")
        self.method.observe(self._show, "value")
        self.trial.observe(self._show, "value")
        self.lay_out(self.run, self.method, self.trial, text=story.outcome)

    def _open(self) -> tuple[Run, Agent]:
        name = self.run.value
        if name not in self._opened:
            self._opened[name] = whatif.open_run(name)
        return self._opened[name]

    def _methods(self) -> list[tuple[str, whatif.Choice]]:
        return [(one.label, one) for one in whatif.choices(*self._open())]

    @_attempted
    def _run_changed(self) -> None:
        before = self.method.value
        self.method.options = self._methods()  # shows the first, if it is new
        if self.method.value == before:
            self._show()

    @_attempted
    def _show(self) -> None:
        story = whatif.tell(*self._open(), self.method.value, self.trial.value)
        self.show(story)
        stored = story.plan is not None and story.fan is None
        left_out = "; its candidates were not stored (only those of the first trials are)"
        self.say(story.outcome + (left_out if stored else ""))


class Studio(Panel):
    """Move start and goal, in Two Rooms wall and door as well, change the planner, and replan live;
    beside it the planner as it is, where another was chosen."""

    def __init__(self, agent: Agent, story: Story, planning: PlanningConfig, steps: int) -> None:
        super().__init__(story)
        self.agent, self.planning, self.steps = agent, planning, steps
        self._timer: asyncio.TimerHandle | None = None
        self.task = scene = story.scene
        self.base = whatif.knobs_of(planning, story.method) | {"cost": story.shown_cost}
        place = {"min": 0.0, "step": 0.5, "readout_format": ".1f"}
        self.sliders = {
            name: _control("FloatSlider", name, value=round(2 * value) / 2, max=side - 1.0, **place)
            for name, value, side in zip(NAMES, scene.ends.flat, 2 * scene.size, strict=True)
        }
        if issubclass(scene.kind, TwoRooms):
            ranges = {"wall_x": WALL_RANGE, "door_y": DOOR_RANGE}
            for (name, (low, high)), value in zip(ranges.items(), scene.row, strict=True):
                self.sliders[name] = _control("IntSlider", name, value=value, min=low, max=high)
        lists = {"method": whatif.methods_of(agent), "cost": costs_of(agent)}
        self.knobs = {}
        for name, value in self.base.items():
            _, words, options = whatif.KNOBS.get(name, ("", name, ()))
            label, options = words.replace("{}", "").strip(" :"), lists.get(name, options)
            if isinstance(value, str):
                self.knobs[name] = _control("Dropdown", label, options=options, value=value)
            else:
                every = [whatif.knobs_of(planning, one)[name] for one in lists["method"]]
                ends = {"min": min(*options, *every), "max": max(*options, *every)}
                ends |= {"value": value, "continuous_update": False}
                self.knobs[name] = _control("IntSlider", label, **ends)
        live = {"value": True, "description": "replan after every change", "indent": False}
        self.live = _widget("Checkbox", **live)
        self.button = _widget("Button", description="Replan", button_style="primary")
        look = {"size": scene.size, "start": style.START, "goal": style.GOAL}
        places = {name: self.sliders[name].value for name in NAMES}
        self.pad = _pad_class()(look=look, floor=floor_picture(scene), **places)
        for name in NAMES:
            # In the browser: the picture follows a slider without asking the kernel.
            _widget("jslink", (self.sliders[name], "value"), (self.pad, name))
        self.knobs["method"].observe(self._method_changed, "value")
        self._method_changed()
        columns = [[*one.values()] for one in (self.sliders, self.knobs)]
        for control in (*columns[0], *columns[1]):
            control.observe(self._changed, "value")
        self.button.on_click(lambda _: self.replan())
        hint = "Click or drag in the picture, move the sliders, or change the planner."
        columns = [_widget("VBox", one) for one in (*columns, [self.button, self.live])]
        self.lay_out(columns[0], self.pad, *columns[1:], text=hint)

    @property
    def scene(self) -> Scene:
        """What the sliders show; WorkbookError when the dot cannot be there."""
        x, y, goal_x, goal_y, *row = (one.value for one in self.sliders.values())
        moved = self.task.moved((x, y), (goal_x, goal_y))
        return checked_scene(moved._replace(row=tuple(row) or moved.row))

    @property
    def chosen(self) -> whatif.Knobs:
        """The knobs as they stand."""
        return {name: control.value for name, control in self.knobs.items()}

    def _method_changed(self, _: Any = None) -> None:
        """Another method begins with its own settings; a flat one has no level 2 to change."""
        method = self.knobs["method"].value
        for name, value in whatif.knobs_of(self.planning, method).items():
            if name not in ("method", "cost"):
                self.knobs[name].value = value
                self.knobs[name].disabled = method == "flat" and name in whatif.LEVEL2

    @_attempted
    def _check(self) -> None:
        self.pad.floor = floor_picture(self.scene)
        self.say("ready to replan")

    def _changed(self, _: Any) -> None:
        """Replan when the sliders have come to rest; at once where no event loop is running."""
        if self._timer is not None:
            self._timer.cancel()
        self.button.disabled = not self._check()
        if self.button.disabled or not self.live.value:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.replan()
        else:
            self._timer = loop.call_later(PAUSE, self.replan)

    @_attempted
    def replan(self) -> None:
        """Roll the scene out and show it."""
        wanted = [self.base] if self.chosen == self.base else [self.base, self.chosen]
        told = whatif.play_all(self.agent, self.scene, self.steps, self.planning, wanted)
        self.show(*told)
        self.say(" | ".join(f"{story.title}: {story.outcome}" for story in told))


@functools.cache
def _pad_class() -> type:
    """A map to click in: made at the first use, because its base class comes with an extra."""
    import anywidget
    import traitlets

    script = resources.files("hjepa_lib.widgets").joinpath("pad.js").read_text("utf-8")
    body = {name: traitlets.Float(0.0).tag(sync=True) for name in NAMES}
    body |= {"look": traitlets.Dict().tag(sync=True), "floor": traitlets.Unicode().tag(sync=True)}
    return type("Pad", (anywidget.AnyWidget,), {"_esm": script, **body})
