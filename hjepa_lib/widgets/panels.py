"""The panels of notebook 06: choose a roll-out, change the scene, change the planner.

The kernel computes a story once; its player then needs no kernel. Wrong values give a sentence.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import html
from collections.abc import Callable
from importlib import resources
from typing import Any

from hjepa_lib.config import PlanningConfig
from hjepa_lib.figures import style
from hjepa_lib.files import WorkbookError
from hjepa_lib.planning.agent import Agent
from hjepa_lib.runs.run import Run
from hjepa_lib.widgets import whatif
from hjepa_lib.widgets.player import player
from hjepa_lib.widgets.story import Scene, Story, checked_scene, play
from hjepa_lib.worlds.layout import DOOR_HALF, DOOR_RANGE, HIGH, LOW, SIZE, WALL_HALF, WALL_RANGE

PAUSE = 0.4  # seconds without a change before the live replan starts
NAMES = ("start_x", "start_y", "goal_x", "goal_y", "wall_x", "door_y")
_LOOK = {
    "low": LOW, "high": HIGH, "wall": WALL_HALF, "door": DOOR_HALF,
    "floor": style.FLOOR, "ink": style.WALL, "start": style.START, "goal": style.GOAL,
}  # fmt: skip


class Panel:
    """Controls above a line of text and a player."""

    def __init__(self, *stories: Story) -> None:
        import ipywidgets

        self.output = ipywidgets.Output()
        self.message = ipywidgets.HTML()
        self.show(*stories)

    def lay_out(self, *controls: Any, text: str) -> None:
        """Make `box`, what a notebook displays."""
        import ipywidgets as w

        self.say(text)
        bar = w.HBox(controls, layout={"flex_flow": "row wrap", "grid_gap": "12px"})
        self.box = w.VBox([bar, self.message, self.output])

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

    def attempt(self, work: Callable[[], Any]) -> bool:
        """Do the work, saying so; False and a sentence in the page when a value does not fit."""
        self.say("planning ...")
        try:
            work()
        except WorkbookError as error:  # anything else is a fault of ours and keeps its trace
            self.say(str(error), wrong=True)
            return False
        return True


def _control(kind: str, label: str, width: int = 350, **options: Any) -> Any:
    """A widget of ipywidgets with its label beside it."""
    import ipywidgets

    look = {"style": {"description_width": "130px"}, "layout": {"width": f"{width}px"}}
    return getattr(ipywidgets, kind)(description=label, **look, **options)


class Explorer(Panel):
    """Choose run, method and trial, and look at the roll-out."""

    def __init__(
        self, run: Run, agent: Agent, choice: whatif.Choice, trial: int, story: Story
    ) -> None:
        super().__init__(story)
        self._agents = {run.name: (run, agent)}
        self.run = _control("Dropdown", "run", options=whatif.run_names(run.name))
        self.method = _control("Dropdown", "method")
        self.trial = _control("BoundedIntText", "trial", 210, value=trial, min=0, max=499)
        self._fill_methods()
        self.method.value = self._choices.index(choice)
        self.run.observe(self._run_changed, "value")
        self.method.observe(self._show, "value")
        self.trial.observe(self._show, "value")
        self.lay_out(self.run, self.method, self.trial, text=story.outcome)

    def _opened(self) -> tuple[Run, Agent]:
        name = self.run.value
        if name not in self._agents:
            self._agents[name] = whatif.open_run(name)
        return self._agents[name]

    def _fill_methods(self) -> None:
        self._choices = whatif.choices(*self._opened())
        self.method.options = [(one.label, i) for i, one in enumerate(self._choices)]

    def _run_changed(self, _: Any) -> None:
        self.method.unobserve(self._show, "value")
        try:
            filled = self.attempt(self._fill_methods)
        finally:
            self.method.observe(self._show, "value")
        if filled:
            self._show()

    def _show(self, _: Any = None) -> None:
        def work() -> None:
            run, agent = self._opened()
            story = whatif.tell(run, agent, self._choices[self.method.value], self.trial.value)
            self.show(story)
            stored = story.plan is not None and story.fan is None
            left_out = "; its candidates were not stored (only those of the first trials are)"
            self.say(story.outcome + (left_out if stored else ""))

        self.attempt(work)


class Studio(Panel):
    """Move start, goal, wall and door, see the room at once, and replan live."""

    def __init__(self, agent: Agent, story: Story, planning: PlanningConfig, steps: int) -> None:
        """`planning` is used with the method and cost that the reader chooses."""
        import ipywidgets as w

        super().__init__(story)
        self.agent, self.planning, self.steps = agent, planning, steps
        self._timer: asyncio.TimerHandle | None = None
        place = {"min": 0.0, "max": SIZE - 1.0, "step": 0.5, "readout_format": ".1f"}
        places = [round(2 * value) / 2 for value in (*story.scene.start, *story.scene.goal)]
        self.sliders = {
            name: _control("FloatSlider", name.replace("_", " "), value=value, **place)
            for name, value in zip(NAMES, places, strict=False)
        }
        for name, (low, high) in (("wall_x", WALL_RANGE), ("door_y", DOOR_RANGE)):
            limits = {"value": getattr(story.scene, name), "min": low, "max": high}
            self.sliders[name] = _control("IntSlider", name.replace("_", " "), **limits)
        self.method = _control(
            "Dropdown", "method", options=whatif.methods_of(agent), value=story.method
        )
        self.cost = _control(
            "Dropdown", "cost", options=whatif.costs_of(agent), value=story.shown_cost
        )
        self.live = w.Checkbox(value=True, description="replan after every change", indent=False)
        self.button = w.Button(description="Replan", button_style="primary")
        self.pad = _pad_class()(**{name: self.sliders[name].value for name in NAMES})
        for name in NAMES:
            # In the browser: the picture follows a slider without asking the kernel.
            w.jslink((self.sliders[name], "value"), (self.pad, name))
        controls = [*self.sliders.values(), self.method, self.cost]
        for control in controls:
            control.observe(self._changed, "value")
        self.button.on_click(lambda _: self.replan())
        hint = "Click or drag in the picture, or move the sliders."
        self.lay_out(w.VBox(controls), self.pad, w.VBox([self.button, self.live]), text=hint)

    @property
    def scene(self) -> Scene:
        """What the sliders show; WorkbookError when the dot cannot be there."""
        x, y, goal_x, goal_y, *room = (self.sliders[name].value for name in NAMES)
        return checked_scene(Scene((x, y), (goal_x, goal_y), *room))

    def _changed(self, _: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        valid = self.attempt(lambda: self.scene)
        self.button.disabled = not valid
        if not valid:
            return
        self.say("ready to replan")
        if self.live.value:
            self._later()

    def _later(self) -> None:
        """Replan when the sliders have come to rest; at once where no event loop is running."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.replan()
        else:
            self._timer = loop.call_later(PAUSE, self.replan)

    def replan(self) -> None:
        """Roll the scene out and show it."""

        def work() -> None:
            planning = dataclasses.replace(self.planning, cost=self.cost.value)
            story = play(self.agent, self.scene, self.method.value, planning, self.steps)
            self.show(story)
            self.say(story.outcome)

        self.attempt(work)


@functools.cache
def _pad_class() -> type:
    """A room to click in: made at the first use, because its base class comes with an extra."""
    import anywidget
    import traitlets

    script = resources.files("hjepa_lib.widgets").joinpath("pad.js").read_text("utf-8")
    body = {name: traitlets.Float(0.0).tag(sync=True) for name in NAMES}
    look = traitlets.Dict(_LOOK).tag(sync=True)
    return type("Pad", (anywidget.AnyWidget,), {"_esm": script, "look": look, **body})


class WhatIf(Panel):
    """The same scene with the planner as it is and with other settings, side by side."""

    def __init__(
        self,
        agent: Agent,
        scene: Callable[[], Scene],
        steps: int,
        planning: PlanningConfig,
        pair: tuple[Story, Story],
    ) -> None:
        """`scene` is asked at every comparison (for example the scene of a `Studio`)."""
        import ipywidgets as w

        super().__init__(*pair)
        self.agent, self.scene, self.steps, self.planning = agent, scene, steps, planning
        self.base = whatif.knobs_of(planning, pair[0].method) | {"cost": pair[0].cost}
        lists = {"method": whatif.methods_of(agent), "cost": whatif.costs_of(agent)}
        self.knobs = {}
        for name, value in self.base.items():
            knob = whatif.KNOBS.get(name, whatif.Knob("", name, ()))
            label, options = knob.words.replace("{}", "").strip(" :"), lists.get(name, knob.options)
            if isinstance(value, str):
                self.knobs[name] = _control("Dropdown", label, options=options, value=value)
            else:
                ends = {"min": min(options[0], value), "max": max(options[1], value)}
                ends |= {"value": value, "continuous_update": False}
                self.knobs[name] = _control("IntSlider", label, **ends)
        self.button = w.Button(description="Compare", button_style="primary")
        self.button.on_click(lambda _: self.compare())
        self.knobs["method"].observe(self._method_changed, "value")
        self._method_changed()
        every = list(self.knobs.values())
        columns = [w.VBox(every[:5]), w.VBox([*every[5:], self.button])]
        self.lay_out(*columns, text="Change the planner on the right, then compare.")

    def _method_changed(self, _: Any = None) -> None:
        """A flat planner has no level 2 to change."""
        for name in whatif.LEVEL2:
            self.knobs[name].disabled = self.knobs["method"].value == "flat"

    @property
    def chosen(self) -> whatif.Knobs:
        """The knobs as they stand."""
        return {name: control.value for name, control in self.knobs.items()}

    def compare(self) -> None:
        """Play both planners on the scene and show them."""

        def work() -> None:
            (pair,) = whatif.play_pairs(
                self.agent, self.scene(), self.steps, self.planning, self.base, [self.chosen]
            )
            self.show(*pair)
            self.say(" | ".join(f"{story.title}: {story.outcome}" for story in pair))

        self.attempt(work)
