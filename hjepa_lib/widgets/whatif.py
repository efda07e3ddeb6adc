"""Which roll-outs there are, other planner settings, and several planners in one scene."""

from collections.abc import Iterable
from functools import reduce
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from hjepa_lib.config import PlanningConfig, from_dict, to_dict
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.results import load_result
from hjepa_lib.files import FileError
from hjepa_lib.planning.agent import METHODS, Agent
from hjepa_lib.runs.places import RunError, list_runs, pretrained_runs
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import load_run
from hjepa_lib.widgets.story import UNITS, Scene, Story, costs_of, play, recall, scene_of

_MOST_RUNS = 30


class Choice(NamedTuple):
    """One method of a run: a stored result, or planning live (path None)."""

    method: str
    cost: str
    path: Path | None
    label: str


def run_names(first: str) -> list[str]:
    """Runs to choose from: `first`, then the newest ones, then the pretrained ones."""
    return list(dict.fromkeys([first, *list_runs()[::-1][:_MOST_RUNS], *pretrained_runs()]))


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
        for cost in costs_of(agent)
    ]
    for path in sorted((run.path / "results").glob("*.npz")):
        try:
            header = load_result(path).header
        except FileError:  # of an earlier version
            continue
        method, cost = header["method"], header["cost"]
        words = "" if cost == "none" else f", {cost} cost"
        found.append(Choice(method, cost, path, f"stored: {method}{words}, {header['dynamics']}"))
    return found


def pick(options: list[Choice], method: str, cost: str) -> Choice:
    """A planner's stored result in the world as it is, if there is one, else live; RunError."""
    found = [one for one in options if one[:2] == (method, cost)]
    if not found:
        raise RunError(f"there is no roll-out of {method} with the {cost} cost to choose")
    return min(found, key=lambda one: one.path is None or "__blocked__" in one.path.name)


def tell(run: Run, agent: Agent, choice: Choice, trial: int) -> Story:
    """The story of one trial; WorkbookError when there is no such trial.

    Live roll-outs play the run's own case, which is what a stored result of these settings did
    (I13).
    """
    method, cost, path, _ = choice
    stored = path and load_result(path)
    tasks = {"trials": trial + 1}
    if stored:
        tasks = {"trials": stored.header["n"], "split": stored.header["split"]}
    case = Case.of(run.config, method, cost, planning=agent.planning, **tasks)
    scene = scene_of(case.tasks, trial)
    if stored:
        return recall(agent, stored, scene, trial)
    title = f"{method}, {cost} cost, {case.split} trial {trial}, live"
    return play(agent, scene, method, case.planning, case.steps, title=title, row=trial)


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
    "control": Knob(
        "hierarchy.control", "level 2: {}", ("none", "zero", "shuffle", "perturb", "untrained")
    ),
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


def _heeded(method: str) -> list[str]:
    return [name for name in KNOBS if method != "flat" or name not in LEVEL2]


def knobs_of(planning: PlanningConfig, method: str) -> Knobs:
    """The knobs as `planning` has them."""
    return {"method": method} | {name: attrgetter(_path(name, method))(planning) for name in KNOBS}


def apply_knobs(planning: PlanningConfig, knobs: Knobs) -> PlanningConfig:
    """`planning` with the knobs' values; ConfigError when one is out of range."""
    tree = to_dict(planning)
    for name in _heeded(knobs["method"]):
        *sections, last = _path(name, knobs["method"]).split(".")
        reduce(dict.get, sections, tree)[last] = knobs[name]
    return from_dict(PlanningConfig, tree)


def describe(knobs: Knobs, planning: PlanningConfig) -> str:
    """ "l1+l2, latent cost, horizon 16": the method, the cost, what differs from `planning`."""
    method, usual = knobs["method"], knobs_of(planning, knobs["method"])
    told = [name for name in _heeded(method) if name == "cost" or knobs[name] != usual[name]]
    return ", ".join([method, *(KNOBS[name].words.format(knobs[name]) for name in told)])


def play_all(
    agent: Agent, scene: Scene, steps: int, planning: PlanningConfig, wanted: Iterable[Knobs]
) -> list[Story]:
    """A story of each planner, under the same noise of the world."""
    return [
        play(
            agent, scene, knobs["method"], apply_knobs(planning, knobs), steps,
            title=describe(knobs, planning),
        )
        for knobs in wanted
    ]  # fmt: skip
