"""The panels of notebook 06 that choose a roll-out and change the scene (whatif.py: the planner).

The kernel computes a story once; its player then needs no kernel. Wrong values give a sentence.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from hjepa_lib.config import PlanningConfig
from hjepa_lib.planning.agent import Agent
from hjepa_lib.runs.run import Run
from hjepa_lib.widgets.pad import link_pad, read_scene
from hjepa_lib.widgets.story import Scene, Story, checked_scene, play
from hjepa_lib.widgets.whatif import Choice, Stage, choices, methods_of, open_run, run_names, tell
from hjepa_lib.worlds.layout import DOOR_RANGE, SIZE, WALL_RANGE

PAUSE = 0.4  # seconds without a change before the live replan starts


class Explorer:
    """Choose run, method and trial, and look at the roll-out."""

    def __init__(self, run: Run, agent: Agent, choice: Choice, trial: int, story: Story) -> None:
        import ipywidgets as w

        self._agents = {run.name: (run, agent)}
        self.stage = Stage(story)
        look = {"style": {"description_width": "60px"}}
        names = run_names(run.name)
        self.run = w.Dropdown(options=names, description="run", layout={"width": "300px"}, **look)
        self.method = w.Dropdown(description="method", layout={"width": "330px"}, **look)
        self.trial = w.BoundedIntText(
            value=trial, min=0, max=499, description="trial", layout={"width": "140px"}, **look
        )
        self._quiet = True
        self._fill_methods()
        self.method.value = self._choices.index(choice)
        self._quiet = False
        self.run.observe(self._run_changed, "value")
        self.method.observe(self._show, "value")
        self.trial.observe(self._show, "value")
        self.stage.say(story.outcome)
        bar = w.HBox([self.run, self.method, self.trial], layout={"flex_flow": "row wrap"})
        self.box = w.VBox([bar, self.stage.message, self.stage.output])

    def _opened(self) -> tuple[Run, Agent]:
        name = self.run.value
        if name not in self._agents:
            self._agents[name] = open_run(name)
        return self._agents[name]

    def _fill_methods(self) -> None:
        self._choices = choices(*self._opened())
        self.method.options = [(one.label, i) for i, one in enumerate(self._choices)]

    def _run_changed(self, _: Any) -> None:
        self._quiet = True
        try:
            filled = self.stage.attempt(self._fill_methods)
        finally:
            self._quiet = False
        if filled:
            self._show()

    def _show(self, _: Any = None) -> None:
        if self._quiet:
            return

        def work() -> None:
            run, agent = self._opened()
            choice = self._choices[self.method.value]
            story = tell(run, agent, choice, self.trial.value)
            self.stage.show(story)
            stored = story.plan is not None and story.fan is None
            left_out = "; its candidates were not stored (only those of the first trials are)"
            self.stage.say(story.outcome + (left_out if stored else ""))

        self.stage.attempt(work)


class Studio:
    """Move start, goal, wall and door, see the room at once, and replan live."""

    def __init__(self, agent: Agent, story: Story, planning: PlanningConfig, steps: int) -> None:
        """`planning` is used with the method and cost that the reader chooses."""
        import ipywidgets as w

        self.agent, self.planning, self.steps = agent, planning, steps
        self.stage = Stage(story)
        self._timer: asyncio.TimerHandle | None = None
        scene = story.scene
        look = {"style": {"description_width": "60px"}, "layout": {"width": "330px"}}
        place = {"min": 0.0, "max": SIZE - 1.0, "step": 0.5, "readout_format": ".1f", **look}
        self.sliders = {
            f"{name}_{axis}": w.FloatSlider(
                value=round(2 * value) / 2, description=f"{name} {axis}", **place
            )
            for name in ("start", "goal")
            for axis, value in zip("xy", getattr(scene, name), strict=True)
        }
        for name, (low, high) in (("wall_x", WALL_RANGE), ("door_y", DOOR_RANGE)):
            self.sliders[name] = w.IntSlider(
                value=getattr(scene, name), min=low, max=high, description=name.replace("_", " "),
                **look,
            )  # fmt: skip
        self.method = w.Dropdown(
            options=methods_of(agent), value=story.method, description="method", **look
        )  # fmt: skip
        costs = list(story.maps.costs)
        self.cost = w.Dropdown(options=costs, value=story.cost, description="cost", **look)
        self.live = w.Checkbox(value=True, description="replan after every change", indent=False)
        self.button = w.Button(description="Replan", button_style="primary")
        self.pad, hint = link_pad(self.sliders)
        for control in (*self.sliders.values(), self.method, self.cost):
            control.observe(self._changed, "value")
        self.button.on_click(lambda _: self.replan())
        self.stage.say(hint)
        controls = w.VBox([*self.sliders.values(), self.method, self.cost])
        buttons = w.VBox([self.button, self.live])
        top = w.HBox(
            [controls, self.pad, buttons], layout={"flex_flow": "row wrap", "grid_gap": "12px"}
        )
        self.box = w.VBox([top, self.stage.message, self.stage.output])

    @property
    def scene(self) -> Scene:
        """What the sliders show; WorkbookError when the dot cannot be there."""
        return checked_scene(read_scene(self.sliders))

    def _changed(self, _: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        valid = self.stage.attempt(lambda: self.scene)
        self.button.disabled = not valid
        if not valid:
            return
        self.stage.say("ready to replan")
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
            self.stage.show(story)
            self.stage.say(story.outcome)

        self.stage.attempt(work)
