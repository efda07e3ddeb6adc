"""One method on stored trials: play the episodes, write the result with where it comes from.

Every result is a stage of the run, so a finished one is not played again, and one whose models were
trained anew is. Floors and ceiling (random, oracle) go the same way as the planners.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from hjepa_lib import __version__
from hjepa_lib.config import Config, ConfigError, PlanningConfig
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.evaluation.episodes import LatentPolicy, OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.results import (
    LAYOUTS,
    ResultKey,
    planner_settings,
    protocol_cap,
    save_result,
)
from hjepa_lib.files import read_json
from hjepa_lib.planning.agent import THREE_LEVELS, Agent
from hjepa_lib.runs.stages import find, own_stages
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.trials import Trials, load_trials, own_trials


def evaluate(
    ws: Workspace,
    agent: Agent | None,
    method: str,
    cost: str = "none",
    *,
    planning: PlanningConfig | None = None,
    dynamics: str = "bounce",
    budget: float = 1.0,
    folder: str = "results",
    split: str | None = None,
    trials: int | None = None,
    pictures: bool = True,
) -> Path:
    """Run one method on stored trials and write its result; skipped when it is there already.

    `pictures=False` keeps no fans and only the first plans (long horizons, many results).
    """
    config = ws.config.evaluation
    protocol = config.protocol
    key = ResultKey(method, cost, protocol, LAYOUTS[protocol], dynamics, budget)
    stage = f"{folder}/{key.filename[:-4]}"
    path = ws.run.path / folder / key.filename
    if ws.run.done(stage):
        return path
    tasks = _tasks(ws.config, split or config.split, trials or config.trials)
    planning = planning or ws.config.planning
    cap = protocol_cap(protocol, planning.action_cap)
    planning = dataclasses.replace(planning, action_cap=cap)
    if cost != "none":
        planning = dataclasses.replace(planning, cost=cost)
    needs = own_stages(ws, "l1", "distance", "l2", "l3")
    with ws.run.stage(stage, folder=folder, needs=needs) as target:
        policy, model = _policy(agent, method, planning, cap, ws.config.seed, pictures)
        outcome = run_episodes(policy, tasks, dynamics, config.steps, cap, ws.config.seed)
        latency = None
        if model is not None and config.latency and folder == "results":
            first = tasks.first(1)
            latency = run_episodes(policy, first, dynamics, config.steps, cap, 0).seconds
        header = {
            "flops_per_step": None if model is None else model.flops_per_step,
            "model_transitions_per_step": None if model is None else model.transitions_per_step,
            "seconds_per_episode": outcome.seconds / tasks.count,
            "latency_single_episode": latency,
            "planner": planner_settings(model, planning, cap, config.steps),
            **_provenance(ws, None if model is None else agent, method, cost),
            "trials_hash": tasks.sha256,
        }
        return save_result(target, key, outcome, tasks, header)


def _tasks(config: Config, split: str, n: int) -> Trials:
    """The protocol's committed trials, or those that an own world draws."""
    world, protocol = find_world(config.data.source), config.evaluation.protocol
    if world is None:
        return load_trials(protocol, split, n)
    if protocol == "p2_heldout":
        raise ConfigError("an own world has one layout, so evaluation.protocol=p2_heldout is out")
    return own_trials(world, split, n)


def _policy(
    agent: Agent | None,
    method: str,
    planning: PlanningConfig,
    cap: float,
    seed: int,
    pictures: bool,
):
    """(policy, the same policy if it plans with models, else None)."""
    if method == "oracle":
        return OraclePolicy(cap), None
    if method.startswith("random"):
        return RandomPolicy(cap, seed, persistent=method.endswith("persistent")), None
    policy = LatentPolicy(agent, method, planning, pictures)
    return policy, policy


def _provenance(ws: Workspace, agent: Agent | None, method: str, cost: str) -> dict:
    """Where a row's numbers come from: data, probes, training time, size, seed, device, version."""
    data = Trajectories.load(ws.run.path / "data").meta if ws.run.done("data") else {}
    row = {
        "data": {key: data.get(key) for key in ("recipe", "transitions", "dynamics", "hash")},
        "probe_px_encoder": None,
        "probe_px_predictor": None,
        "train_seconds": None,
        "parameters": None,
        "seed": ws.config.seed,
        "device": ws.device,
        "version": __version__,
    }
    if agent is None:
        return row
    used = {"l1": agent.level1}
    if cost == "distance":
        used["distance"] = agent.distance
    if method in ("l1+l2", THREE_LEVELS):
        used["l2"] = agent.level2
    if method == THREE_LEVELS:
        used["l3"] = agent.level3.model
    quality = read_json(find(ws, "l1") / "quality.json")
    done = [ws.run.manifest["stages"][name]["seconds"] for name in used if ws.run.done(name)]
    return row | {
        "probe_px_encoder": quality["probe_px_encoder"],
        "probe_px_predictor": quality["probe_px_predictor"],
        "train_seconds": sum(done) if len(done) == len(used) else None,
        "parameters": sum(count_all(module) for module in used.values()),
    }


def count_all(module: torch.nn.Module) -> int:
    """Weights of a module, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())
