"""Which roll-outs there are, other planner settings, and two planners side by side in one scene."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from hjepa_lib.config import ConfigError, PlanningConfig
from hjepa_lib.evaluation import protocol_cap
from hjepa_lib.evaluation.results import load_result
from hjepa_lib.planning.agent import METHODS, Agent
from hjepa_lib.runs.places import RunError, list_runs, pretrained_folder
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import load_run
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


def costs_of(agent: Agent) -> tuple[str, ...]:
    """The costs that it has the heads for."""
    return tuple(UNITS) if agent.distance is not None else ("latent",)


def choices(run: Run, agent: Agent) -> list[Choice]:
    """Live planners first (hierarchical before flat), then the stored results by file name."""
    found = [
        Choice(method, cost, None, f"live: {method}, {cost} cost")
        for method in methods_of(agent)[::-1]
        for cost in costs_of(agent)
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
class Knob(NamedTuple):
    """A setting that a reader can change."""

    path: str  # below `planning.`; {} is the section of level 1
    words: str
    options: tuple  # all of a list, or the least and the most of a number


KNOBS = {
    "cost": Knob("cost", "{} cost", tuple(UNITS)),
    "horizon": Knob("{}.horizon", "horizon {}", (1, 48)),
    "samples": Knob("{}.samples", "{} samples", (2, 512)),
    "replan": Knob("replan", "replan every {}", (1, 16)),
    "control": Knob("hierarchy.control", "level 2: {}", CONTROLS),
    "horizon2": Knob("hierarchy.level2.horizon", "level-2 horizon {}", (1, 16)),
    "samples2": Knob("hierarchy.level2.samples", "{} level-2 samples", (2, 512)),
    "replan2": Knob("hierarchy.replan", "level-2 replan every {}", (1, 32)),
}
LEVEL2 = ("control", "horizon2", "samples2", "replan2")
"""Ignored by a flat planner."""
Knobs = dict[str, Any]
"""`method` and a value per knob."""


def _path(name: str, method: str) -> str:
    return KNOBS[name].path.format("flat" if method == "flat" else "hierarchy.tracker")


def knobs_of(planning: PlanningConfig, method: str) -> Knobs:
    """The knobs as `planning` has them."""
    return {"method": method} | {name: attrgetter(_path(name, method))(planning) for name in KNOBS}


def apply_knobs(planning: PlanningConfig, knobs: Knobs) -> PlanningConfig:
    """`planning` with the knobs' values; ConfigError when one is out of range."""
    for name in KNOBS:
        if not (name in LEVEL2 and knobs["method"] == "flat"):
            planning = _put(planning, _path(name, knobs["method"]), knobs[name])
    return planning


def _put(section: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    value = _put(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: value})


def describe(knobs: Knobs, base: Knobs) -> str:
    """ "l1+l2, latent cost, horizon 16": the method, the cost, and whatever differs from `base`."""
    words = [knobs["method"]]
    for name, knob in KNOBS.items():
        unused = name in LEVEL2 and knobs["method"] == "flat"
        if name == "cost" or (knobs[name] != base[name] and not unused):
            words.append(knob.words.format(knobs[name]))
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
        return play(agent, scene, knobs["method"], settings, steps, title=title)

    unchanged = one(base)
    return [(unchanged, one(knobs)) for knobs in changes]
