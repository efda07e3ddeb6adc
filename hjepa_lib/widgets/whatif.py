"""The what-if panel: the planner as it is beside one with other settings, in the same scene."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hjepa_lib.config import PlanningConfig
from hjepa_lib.planning.agent import METHODS, Agent
from hjepa_lib.widgets.planners import CONTROLS, Knobs, apply_knobs, describe, knobs_of
from hjepa_lib.widgets.scene import Scene
from hjepa_lib.widgets.stage import Stage
from hjepa_lib.widgets.story import UNITS, Story, play

_LEVEL2 = ("control", "horizon2", "samples2", "replan2")


class WhatIf:
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

        self.agent, self.scene, self.steps, self.planning = agent, scene, steps, planning
        self.stage = Stage(*pair)
        first = pair[0]
        self.base = knobs_of(planning, first.method)._replace(cost=first.cost)
        look = {"style": {"description_width": "120px"}, "layout": {"width": "330px"}}

        def pick(options: Any, value: str, name: str) -> Any:
            return w.Dropdown(options=options, value=value, description=name, **look)

        def slide(value: int, most: int, name: str) -> Any:
            low, high = min(1, value), max(most, value)
            return w.IntSlider(
                value=value, min=low, max=high, description=name, continuous_update=False, **look
            )

        base = self.base
        methods = METHODS if agent.level2 is not None else METHODS[:1]
        self.knobs = {
            "method": pick(methods, base.method, "method"),
            "cost": pick([one for one in UNITS if one in first.maps.costs], base.cost, "cost"),
            "horizon": slide(base.horizon, 48, "horizon (steps)"),
            "samples": slide(base.samples, 512, "samples"),
            "replan": slide(base.replan, 16, "replan every"),
            "control": pick(CONTROLS, base.control, "level 2"),
            "horizon2": slide(base.horizon2, 16, "level-2 horizon"),
            "samples2": slide(base.samples2, 512, "level-2 samples"),
            "replan2": slide(base.replan2, 32, "level-2 replan"),
        }
        self.knobs["samples"].min = self.knobs["samples2"].min = 2
        self.button = w.Button(description="Compare", button_style="primary")
        self.button.on_click(lambda _: self.compare())
        self.knobs["method"].observe(self._method_changed, "value")
        self._method_changed()
        self.stage.say("Change the planner on the right, then compare.")
        names = list(self.knobs)
        columns = [w.VBox([self.knobs[name] for name in part]) for part in (names[:5], names[5:])]
        columns[1].children = (*columns[1].children, self.button)
        top = w.HBox(columns, layout={"flex_flow": "row wrap", "grid_gap": "12px"})
        self.box = w.VBox([top, self.stage.message, self.stage.output])

    def _method_changed(self, _: Any = None) -> None:
        """A flat planner has no level 2 to change."""
        for name in _LEVEL2:
            self.knobs[name].disabled = self.knobs["method"].value == "flat"

    @property
    def chosen(self) -> Knobs:
        return Knobs(**{name: control.value for name, control in self.knobs.items()})

    def compare(self) -> None:
        """Play both planners on the scene and show them."""

        def work() -> None:
            (pair,) = play_pairs(
                self.agent, self.scene(), self.steps, self.planning, self.base, [self.chosen]
            )
            self.stage.show(*pair)
            self.stage.say(" | ".join(f"{story.title}: {story.outcome}" for story in pair))

        self.stage.attempt(work)


def play_pairs(
    agent: Agent,
    scene: Scene,
    steps: int,
    planning: PlanningConfig,
    base: Knobs,
    changes: Iterable[Knobs],
) -> list[tuple[Story, Story]]:
    """(as it is, changed) for every change, under the same noise of the world within a pair."""
    played: dict[tuple[Knobs, bool], Story] = {}

    def one(knobs: Knobs, shuffled: bool) -> Story:
        if (knobs, shuffled) not in played:
            settings, title = apply_knobs(planning, knobs), describe(knobs, base)
            played[knobs, shuffled] = play(
                agent, scene, knobs.method, settings, steps, title=title, shuffled=shuffled
            )
        return played[knobs, shuffled]

    pairs = []
    for knobs in changes:
        shuffled = "shuffle" in (base.control, knobs.control)
        pairs.append((one(base, shuffled), one(knobs, shuffled)))
    return pairs
