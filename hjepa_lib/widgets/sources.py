"""Which roll-outs there are to look at: stored results of a run, and live ones with its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import hjepa_lib
from hjepa_lib.config import ConfigError, PlanningConfig
from hjepa_lib.evaluation import protocol_cap
from hjepa_lib.evaluation.results import load_result
from hjepa_lib.planning.agent import METHODS, Agent
from hjepa_lib.runs.places import RunError, list_runs, pretrained_folder
from hjepa_lib.runs.run import Run
from hjepa_lib.widgets.scene import scene_of
from hjepa_lib.widgets.story import UNITS, Story, play, recall
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.trials import ROWS, load_trials

PRETRAINED = "pretrained"
_MOST_RUNS = 30


class Choice(NamedTuple):
    """One method of a run: a stored result, or planning live (path None)."""

    method: str
    cost: str
    path: Path | None
    label: str


def run_names(first: str = "") -> list[str]:
    """Runs to choose from: `first`, then the newest ones, then the pretrained one."""
    names = [first, *reversed(list_runs()[-_MOST_RUNS:])] if first else list_runs()[::-1]
    if (pretrained_folder() / "manifest.json").is_file():
        names.append(PRETRAINED)
    return list(dict.fromkeys(names))


def open_run(name: str) -> tuple[Run, Agent]:
    """A run and its agent; RunError or FileError when it is missing or holds no trained level 1."""
    run = Run.at(pretrained_folder()) if name == PRETRAINED else Run.open(name)
    return run, hjepa_lib.load(name)


def choices(run: Run, agent: Agent) -> list[Choice]:
    """Live planners first (hierarchical before flat), then the stored results by file name."""
    costs = UNITS if agent.distance is not None else ("latent",)
    methods = METHODS[::-1] if agent.level2 is not None else METHODS[:1]
    live = [
        Choice(method, cost, None, f"live: {method}, {cost} cost")
        for method in methods
        for cost in costs
    ]
    stored = []
    for path in sorted((run.path / "results").glob("*.npz")):
        header = load_result(path).header
        method, cost = header["method"], header["cost"]
        words = "" if cost == "none" else f", {cost} cost"
        stored.append(Choice(method, cost, path, f"stored: {method}{words}, {header['dynamics']}"))
    return live + stored


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
    """The story of one trial; SceneError when there is no such trial.

    Live roll-outs take protocol, trials and number of steps from the run, and `bounce` dynamics.
    ConfigError for a run in an own world: the inspector draws Two Rooms.
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
