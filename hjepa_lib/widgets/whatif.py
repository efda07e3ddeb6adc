"""Which roll-outs there are, other planner settings, and two planners side by side in one scene."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hjepa_lib.config import ConfigError, PlanningConfig
from hjepa_lib.evaluation import protocol_cap
from hjepa_lib.evaluation.results import load_result
from hjepa_lib.figures import style
from hjepa_lib.files import WorkbookError
from hjepa_lib.planning.agent import METHODS, Agent
from hjepa_lib.runs.places import RunError, list_runs, pretrained_folder
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import load_run
from hjepa_lib.widgets.player import player
from hjepa_lib.widgets.story import UNITS, Scene, Story, play, recall, scene_of
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.trials import ROWS, load_trials

CONTROLS = ("none", "zero", "shuffle", "perturb", "untrained")
_MOST_RUNS = 30


# --- stored and live roll-outs ----------------------------------------------------------------
class Choice(NamedTuple):
    """One method of a run: a stored result, or planning live (path None)."""

    method: str
    cost: str
    path: Path | None
    label: str


def run_names(first: str = "") -> list[str]:
    """Runs to choose from: `first`, then the newest ones, then the pretrained one."""
    names = [first] * bool(first) + list_runs()[::-1][:_MOST_RUNS]
    if (pretrained_folder() / "manifest.json").is_file():
        names.append("pretrained")
    return list(dict.fromkeys(names))


def open_run(name: str) -> tuple[Run, Agent]:
    """A run and its agent; RunError or FileError when it is missing or holds no trained level 1."""
    run = Run.named(name)
    return run, load_run(run)


def methods_of(agent: Agent) -> tuple[str, ...]:
    """The planners that it has the levels for."""
    return METHODS if agent.level2 is not None else METHODS[:1]


def choices(run: Run, agent: Agent) -> list[Choice]:
    """Live planners first (hierarchical before flat), then the stored results by file name."""
    found = [
        Choice(method, cost, None, f"live: {method}, {cost} cost")
        for method in methods_of(agent)[::-1]
        for cost in (UNITS if agent.distance is not None else ("latent",))
    ]
    for path in sorted((run.path / "results").glob("*.npz")):
        header = load_result(path).header
        method, cost = header["method"], header["cost"]
        words = "" if cost == "none" else f", {cost} cost"
        found.append(Choice(method, cost, path, f"stored: {method}{words}, {header['dynamics']}"))
    return found


def pick(options: list[Choice], method: str, cost: str) -> Choice:
    """The stored `bounce` result of a planner if there is one, else the live one; RunError."""
    found = [one for one in options if one[:2] == (method, cost)]
    if not found:
        raise RunError(f"there is no roll-out of {method} with the {cost} cost to choose")
    stored = [one for one in found if one.path is not None and "__bounce__" in one.path.name]
    return (stored or found)[0]


def planning_for(run: Run, agent: Agent, cost: str) -> PlanningConfig:
    """The run's planning with this cost and the action cap of its protocol."""
    cap = protocol_cap(run.config.evaluation.protocol, agent.planning.action_cap)
    return dataclasses.replace(agent.planning, cost=cost, action_cap=cap)


def tell(run: Run, agent: Agent, choice: Choice, trial: int) -> Story:
    """The story of one trial; WorkbookError when there is no such trial.

    Live roll-outs take protocol, trials and number of steps from the run, and `bounce` dynamics:
    what a stored result of these settings did (I13). ConfigError for a run in an own world.
    """
    if find_world(run.config.data.source) is not None:
        raise ConfigError("the inspector draws Two Rooms, this run was trained in an own world")
    if choice.path is not None:
        return recall(agent, load_result(choice.path), trial)
    evaluation = run.config.evaluation
    task = scene_of(load_trials(evaluation.protocol, evaluation.split, ROWS), trial)
    planning = planning_for(run, agent, choice.cost)
    title = f"{choice.method}, {choice.cost} cost, {evaluation.split} trial {trial}, live"
    return play(agent, task, choice.method, planning, evaluation.steps, title=title, row=trial)


# --- other planner settings -------------------------------------------------------------------
class Knobs(NamedTuple):
    """What a reader can change; the last four belong to level 2 and are ignored when flat."""

    method: str
    cost: str
    horizon: int  # steps that level 1 looks ahead
    samples: int  # candidates of level 1
    replan: int  # steps between plans of level 1
    control: str  # what is done to the sub-goals of level 2
    horizon2: int  # macro-steps that level 2 looks ahead
    samples2: int
    replan2: int  # steps between plans of level 2


LEVEL2 = Knobs._fields[5:]
_WORDS = {
    "horizon": "horizon {}", "samples": "{} samples", "replan": "replan every {}",
    "control": "level 2: {}", "horizon2": "level-2 horizon {}", "samples2": "{} level-2 samples",
    "replan2": "level-2 replan every {}",
}  # fmt: skip


def knobs_of(planning: PlanningConfig, method: str) -> Knobs:
    """The knobs as `planning` has them."""
    hierarchy = planning.hierarchy
    level1 = planning.flat if method == "flat" else hierarchy.tracker
    return Knobs(
        method, planning.cost, level1.horizon, level1.samples, planning.replan,
        hierarchy.control, hierarchy.level2.horizon, hierarchy.level2.samples, hierarchy.replan,
    )  # fmt: skip


def apply_knobs(planning: PlanningConfig, knobs: Knobs) -> PlanningConfig:
    """`planning` with the knobs' values; ConfigError when one is out of range."""
    replace = dataclasses.replace
    planning = replace(planning, cost=knobs.cost, replan=knobs.replan)
    level1 = {"horizon": knobs.horizon, "samples": knobs.samples}
    if knobs.method == "flat":
        return replace(planning, flat=replace(planning.flat, **level1))
    hierarchy = planning.hierarchy
    hierarchy = replace(
        hierarchy,
        tracker=replace(hierarchy.tracker, **level1),
        level2=replace(hierarchy.level2, horizon=knobs.horizon2, samples=knobs.samples2),
        control=knobs.control,
        replan=knobs.replan2,
    )
    return replace(planning, hierarchy=hierarchy)


def describe(knobs: Knobs, base: Knobs) -> str:
    """ "l1+l2, latent cost, horizon 16": the method, the cost, and whatever differs from `base`."""
    words = [knobs.method, f"{knobs.cost} cost"]
    for name, text in _WORDS.items():
        value = getattr(knobs, name)
        if value != getattr(base, name) and not (name in LEVEL2 and knobs.method == "flat"):
            words.append(text.format(value))
    return ", ".join(words)


def play_pairs(
    agent: Agent,
    scene: Scene,
    steps: int,
    planning: PlanningConfig,
    base: Knobs,
    changes: Iterable[Knobs],
) -> list[tuple[Story, Story]]:
    """(as it is, changed) for every change, under the same noise of the world."""

    def one(knobs: Knobs) -> Story:
        settings, title = apply_knobs(planning, knobs), describe(knobs, base)
        return play(agent, scene, knobs.method, settings, steps, title=title)

    unchanged = one(base)
    return [(unchanged, one(knobs)) for knobs in changes]


# --- the page ---------------------------------------------------------------------------------
class Stage:
    """Where a panel shows a player and says what is wrong."""

    def __init__(self, *stories: Story) -> None:
        import ipywidgets

        self.output = ipywidgets.Output()
        self.message = ipywidgets.HTML()
        self.show(*stories)

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
        base = self.base = knobs_of(planning, first.method)._replace(cost=first.cost)
        costs = [one for one in UNITS if one in first.maps.costs]
        # Options of a list, or the least and the most of a slider.
        controls = {
            "method": ("method", methods_of(agent)), "cost": ("cost", costs),
            "horizon": ("horizon (steps)", (1, 48)), "samples": ("samples", (2, 512)),
            "replan": ("replan every", (1, 16)), "control": ("level 2", CONTROLS),
            "horizon2": ("level-2 horizon", (1, 16)), "samples2": ("level-2 samples", (2, 512)),
            "replan2": ("level-2 replan", (1, 32)),
        }  # fmt: skip
        look = {"style": {"description_width": "120px"}, "layout": {"width": "330px"}}
        self.knobs = {}
        for name, (text, range_) in controls.items():
            value = getattr(base, name)
            own = {"value": value, "description": text, **look}
            if isinstance(value, str):
                self.knobs[name] = w.Dropdown(options=range_, **own)
            else:
                low, high = min(range_[0], value), max(range_[1], value)
                self.knobs[name] = w.IntSlider(min=low, max=high, continuous_update=False, **own)
        self.button = w.Button(description="Compare", button_style="primary")
        self.button.on_click(lambda _: self.compare())
        self.knobs["method"].observe(self._method_changed, "value")
        self._method_changed()
        self.stage.say("Change the planner on the right, then compare.")
        every = list(self.knobs.values())
        columns = [w.VBox(every[:5]), w.VBox([*every[5:], self.button])]
        top = w.HBox(columns, layout={"flex_flow": "row wrap", "grid_gap": "12px"})
        self.box = w.VBox([top, self.stage.message, self.stage.output])

    def _method_changed(self, _: Any = None) -> None:
        """A flat planner has no level 2 to change."""
        for name in LEVEL2:
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
