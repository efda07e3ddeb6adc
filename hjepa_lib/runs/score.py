"""Playing cases: the episodes of one method on stored trials, and which methods a table has.

Every result is a stage of the run, so a finished one is not played again, and one whose models were
trained anew is. Floors and ceiling (random, oracle) go the same way as the planners.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from hjepa_lib import __version__
from hjepa_lib.config import Config
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.evaluation.episodes import LatentPolicy, OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.results import Case, Result, load_result, save_result
from hjepa_lib.files import read_json
from hjepa_lib.planning.agent import METHODS, THREE_LEVELS, Agent
from hjepa_lib.runs.places import RunError, list_runs, outputs_root, pretrained_folder
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import load_trained
from hjepa_lib.runs.workspace import Workspace

FLOORS = (("random", "none"), ("random-persistent", "none"), ("oracle", "none"))
COSTS = ("latent", "distance")


# --- playing ----------------------------------------------------------------------------------
def play(
    ws: Workspace,
    agent: Agent | None,
    case: Case,
    folder: str = "results",
    *,
    pictures: bool = True,
    latency: bool | None = None,
) -> Result:
    """The result of one case, played unless it is there already.

    `pictures=False` keeps no fans and only the first plans (long horizons, many results);
    `latency` also times one episode alone: by default in `results`, if the settings ask for it.
    """
    stage = f"{folder}/{case.name}"
    path = ws.run.path / folder / f"{case.name}.npz"
    if ws.run.done(stage):
        return load_result(path)
    cap = case.planning.action_cap
    with ws.run.stage(stage, folder, reads=case.stages) as target:
        policy = _policy(agent, case, pictures)
        outcome = run_episodes(policy, case.tasks, case.dynamics, case.steps, cap, case.seed)
        alone = None
        if latency is None:
            latency = folder == "results" and ws.config.evaluation.latency
        if latency and case.learned:
            first = case.tasks.first(1)
            alone = run_episodes(policy, first, case.dynamics, case.steps, cap, 0).seconds
        header = {
            "flops_per_step": getattr(policy, "flops_per_step", None),
            "model_transitions_per_step": getattr(policy, "transitions_per_step", None),
            "seconds_per_episode": outcome.seconds / case.tasks.count,
            "latency_single_episode": alone,
            **_provenance(ws, agent, case),
        }
        return load_result(save_result(target, case, outcome, header))


def _policy(agent: Agent | None, case: Case, pictures: bool):
    cap = case.planning.action_cap
    if case.method == "oracle":
        return OraclePolicy(cap)
    if case.method.startswith("random"):
        return RandomPolicy(cap, case.seed, persistent=case.method.endswith("persistent"))
    return LatentPolicy(agent, case.method, case.planning, pictures)


def _provenance(ws: Workspace, agent: Agent | None, case: Case) -> dict:
    """Where a row's numbers come from: data, weights, probes, time, size, device, version."""
    data = Trajectories.load(ws.run.path / "data").meta if ws.run.done("data") else {}
    names = ("source", "recipe", "transitions", "dynamics", "hash")
    used = case.stages
    row = {
        "data": {key: data.get(key) for key in names},
        "weights": {name: ws.origin(name) for name in used},
        "probe_px_encoder": None,
        "probe_px_predictor": None,
        "train_seconds": None,
        "parameters": None,
        "device": ws.device,
        "version": __version__,
    }
    if not used:
        return row
    level3 = None if agent.level3 is None else agent.level3.model
    parts = {"l1": agent.level1, "distance": agent.distance, "l2": agent.level2, "l3": level3}
    quality = read_json(ws.run.path / "l1" / "quality.json")
    done = [ws.run.manifest["stages"][name]["seconds"] for name in used if ws.run.done(name)]
    return row | {
        "probe_px_encoder": quality["probe_px_encoder"],
        "probe_px_predictor": quality["probe_px_predictor"],
        "train_seconds": sum(done) if len(done) == len(used) else None,
        "parameters": sum(count_all(parts[name]) for name in used),
    }


def count_all(module: torch.nn.Module) -> int:
    """Weights of a module, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())


# --- which methods ----------------------------------------------------------------------------
def learned(config: Config) -> list[tuple[str, str]]:
    """(method, cost) of the planners with a world model; without level 2 only the flat ones."""
    methods = ("flat",) if config.level2.disable_l2 else METHODS
    methods += (THREE_LEVELS,) if config.level3.enabled else ()
    return [(method, cost) for method in methods for cost in COSTS]


def cases_of(config: Config, **changes) -> list[Case]:
    """The headline table: floors, ceiling (F15), learned planners; `changes` go to `Case.of`."""
    named = [*FLOORS, *learned(config)]
    return [Case.of(config, method, cost, **changes) for method, cost in named]


def tuned_pair(config: Config) -> list[Case]:
    """The default verdict on the hierarchy (Q5): flat as validation trials chose it, and L1+L2.

    Latent cost, equal compute in the profile laptop (cells `bar_*` of the study); [] without l2.
    """
    if config.level2.disable_l2:
        return []
    search = dataclasses.replace(config.planning.flat, horizon=48, iterations=1, sigma=3.5)
    planning = dataclasses.replace(config.planning, flat=search, replan=8)
    flat = Case.of(config, "flat", "latent", planning=planning, budget=0.4375)
    return [flat, Case.of(config, "l1+l2", "latent", budget=0.25)]


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
    newest = [Run.at(outputs_root() / name) for name in reversed(list_runs())]
    same = [(run, "latest run") for run in newest if run.config == ws.config][:1]
    candidates = [(ws.run, "this run"), *same]
    if (pretrained_folder() / "manifest.json").is_file():
        candidates.append((Run.at(pretrained_folder()), "pretrained"))
    for run, origin in candidates:
        if any((run.path / "results").glob("*.npz")):
            return run, origin
    agent = load_trained(ws)
    for case in cases_of(ws.config):
        play(ws, agent, case)
    for case in tuned_pair(ws.config):
        play(ws, agent, case, "tuned")
    return ws.run, "made now"
