"""Which methods a run compares, and where a notebook that only reads results finds them.

Every table has its floors and its ceiling (F15): two random walkers and the oracle stand beside the
learned planners, which are {flat, l1+l2} x {latent, distance}, and l1+l2+l3 where it is enabled.
"""

from __future__ import annotations

from collections.abc import Iterable

from hjepa_lib.config import Config
from hjepa_lib.planning.agent import METHODS, THREE_LEVELS
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.run import Run, RunError, pretrained_folder
from hjepa_lib.runs.workspace import Workspace, latest_run

FLOORS = (("random", "none"), ("random-persistent", "none"), ("oracle", "none"))
COSTS = ("latent", "distance")


def learned(config: Config) -> list[tuple[str, str]]:
    """(method, cost) of the planners with a world model; without level 2 only the flat ones."""
    methods = ("flat",) if config.level2.disable_l2 else METHODS
    methods += (THREE_LEVELS,) if config.level3.enabled else ()
    return [(method, cost) for method in methods for cost in COSTS]


def lineup(config: Config) -> list[tuple[str, str]]:
    """Every (method, cost) of the headline table."""
    return [*FLOORS, *learned(config)]


def best(rows: Iterable[dict]) -> tuple[str, str]:
    """(method, cost) with the highest success; path efficiency, then less compute, break ties."""
    planned = [row for row in rows if row["flops_per_step"] is not None]
    if not planned:
        raise RunError("there is no result of a planner with a world model to choose from")
    winner = max(
        planned,
        key=lambda row: (row["success_rate"], row["path_efficiency"], -row["flops_per_step"]),
    )
    return winner["method"], winner["cost"]


def find_results(ws: Workspace) -> tuple[Run, str]:
    """(run that holds results, where it was found): this, the latest agreeing, or pretrained.

    Where nobody has any, they are made in this run, with whatever models the stages find.
    """
    candidates = [(ws.run, "this run"), (latest_run(ws.run), "latest run")]
    if (pretrained_folder() / "manifest.json").is_file():
        candidates.append((Run.at(pretrained_folder()), "pretrained"))
    for run, origin in candidates:
        agrees = run is not None and (origin == "pretrained" or run.config == ws.config)
        if agrees and any((run.path / "results").glob("*.npz")):
            return run, origin
    agent = stages.load_trained(ws)
    for method, cost in lineup(ws.config):
        scoring.evaluate(ws, agent, method, cost)
    return ws.run, "made now"
