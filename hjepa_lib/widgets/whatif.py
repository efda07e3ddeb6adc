"""Stories of a run's trials, and of planners with other settings in one scene."""

from collections.abc import Mapping
from typing import Any

from hjepa_lib.config import Config, flatten
from hjepa_lib.evaluation import Case
from hjepa_lib.planning.agent import METHODS, Agent
from hjepa_lib.widgets.story import Scene, Story, costs_of, play, scene_of

Knobs = Mapping[str, Any]
"""Settings below `planning`: {"hierarchy.control": "zero"}."""


def tell(config: Config, agent: Agent, method: str, cost: str, trial: int) -> Story:
    """The story of one trial of the run's own case, as a result of these settings has it (I13).

    WorkbookError when there is no such trial.
    """
    case = Case.of(config, method, cost, trials=trial + 1)
    title = f"{method}, {cost} cost, {case.split} trial {trial}"
    scene = scene_of(case.tasks, trial)
    return play(agent, scene, method, case.planning, case.steps, title=title, row=trial)


def methods_of(agent: Agent) -> tuple[str, ...]:
    """The planners that it has the levels for."""
    return METHODS if agent.level2 is not None else METHODS[:1]


def options(agent: Agent, method: str) -> dict[str, tuple]:
    """What a panel changes of a planner: all of a list, or the least and the most of a number."""
    level1 = "flat" if method == "flat" else "hierarchy.tracker"
    found = {"cost": costs_of(agent), f"{level1}.horizon": (1, 48), f"{level1}.samples": (2, 512)}
    found["replan"] = (1, 16)
    if method != "flat":
        found |= {
            "hierarchy.control": ("none", "zero", "shuffle", "perturb", "untrained"),
            "hierarchy.level2.horizon": (1, 16),
            "hierarchy.level2.samples": (2, 512),
            "hierarchy.replan": (1, 32),
        }
    return found


def play_with(agent: Agent, scene: Scene, config: Config, method: str, knobs: Knobs) -> Story:
    """The story of the planner with other settings; the world's noise is the same. ConfigError."""
    changed = config.override({f"planning.{name}": value for name, value in knobs.items()})
    case, usual = Case.of(changed, method, changed.planning.cost), flatten(config.planning)
    other = [f"{k} {v}" for k, v in knobs.items() if k != "cost" and usual[k] != v]
    title = ", ".join([method, f"{case.cost} cost", *other])
    return play(agent, scene, method, case.planning, case.steps, title=title)
