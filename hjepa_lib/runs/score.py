"""Playing cases: the episodes of one method on stored trials, and which methods a table has."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hjepa_lib import __version__, evaluation
from hjepa_lib.config import Config, differences, names_world, profile
from hjepa_lib.evaluation import Case, played_cap
from hjepa_lib.evaluation.episodes import (
    ClonedPolicy,
    LatentPolicy,
    OraclePolicy,
    RandomPolicy,
    run_episodes,
)
from hjepa_lib.evaluation.metrics import Episodes
from hjepa_lib.evaluation.offline import planned_rows, recognised
from hjepa_lib.evaluation.openloop import PUSHES, draw_windows, long_walks, wall_leak
from hjepa_lib.evaluation.results import Result, load_result, save_result
from hjepa_lib.files import read_json, write_json
from hjepa_lib.models.checkpoint import load_part
from hjepa_lib.planning import GRAPH, METHODS, ONE_STEP, THREE_LEVELS
from hjepa_lib.planning.agent import Agent
from hjepa_lib.runs.keys import Stage, closure, core_stages, files_of
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.stages import load_data, load_trained
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.latents import LatentStore

FLOORS = tuple((name, "none") for name in evaluation.FLOORS if name not in evaluation.RULES)
COSTS = ("latent", "distance")


def play(
    ws: Workspace, agent: Agent | None, case: Case, folder: str = "results",
    latency: bool | None = None,
) -> Result:  # fmt: skip
    """The result of a case, played in this run unless it is there; the rest is of `stage_of`."""
    stage = stage_of(ws.config, case, folder, agent, latency)
    for _ in ws.make(stage):
        pass
    return load_result(ws.run.path / f"{stage.name}.npz")


def stage_of(
    config: Config,
    case: Case,
    folder: str = "results",
    agent: Agent | None = None,
    latency: bool | None = None,
) -> Stage:
    """A result as a stage of the run: it reads the trained stages that its method uses.

    `latency` also times one episode alone, by default on test trials if the settings ask for it.
    """
    if latency is None:
        latency = case.split == "test" and config.evaluation.latency
    stages = core_stages(config)
    reads = tuple(stages[name] for name in case.stages)

    def _make(ws: Workspace, target: Path) -> None:
        save_result(target, case, *_play(ws, agent, case, latency))

    # Keys tell results apart that kept what the inspector draws.
    about = {"case": case.digest, "pictures": False, "latency": latency}
    name = f"{folder}/{case.name}"
    played = files_of(case.world) if names_world(case.world) else ()  # floors read no stage
    return Stage(
        name, _make, reads=reads, recipe=case.recipe, folder=folder, about=about, files=played
    )


def _play(
    ws: Workspace, agent: Agent | None, case: Case, latency: bool
) -> tuple[Episodes, dict[str, Any]]:
    """(what happened, the header beside it)."""
    cap, header = case.planning.action_cap, _provenance(ws, agent, case)
    if case.learned:
        policy = LatentPolicy(agent, case.planner, case.planning, case.steps)
    elif case.stages:
        model = load_part(ws.run.path / "policies", "policy").to(ws.device)
        policy = ClonedPolicy(model, cap, case.settings.get("idm_steps", 0))
        header["parameters"] = count_all(model)
    elif case.method in ("oracle", *evaluation.RULES):
        policy = OraclePolicy(cap, case.method)
    else:
        policy = RandomPolicy(cap, case.seed, persistent=case.method == "random-persistent")
    rules = (case.dynamics, case.steps, cap, case.seed)
    episodes = run_episodes(policy, case.tasks, *rules)
    header["seconds_per_episode"] = episodes.seconds / case.trials
    if case.stages:
        header["replan"] = policy.replan
        header["flops_per_step"] = policy.flops_per_step
        header["model_transitions_per_step"] = policy.transitions_per_step
        if latency:
            alone = run_episodes(policy, case.tasks.first(1), *rules)
            header["latency_single_episode"] = alone.seconds
    return episodes, header


def offline(ws: Workspace) -> tuple[list[dict[str, Any]], dict[str, tuple], float]:
    """Of a recording: rows of planned actions, recognised shares by horizon, and their chance."""
    agent, (train, held_out, _) = load_trained(ws), load_data(ws)
    store = LatentStore(agent.level1, held_out or train, 200, ws.precision)
    longest = min(agent.planning.flat.horizon, int(store.lengths.max()) - 1)
    batch = draw_windows(store, longest)
    looks = sorted({1, max(1, longest // 2), longest})
    rows = planned_rows(agent, batch, learned(ws.config), looks)
    write_json(ws.run.path / "offline.json", rows)
    return rows, {"level 1": recognised(agent, batch)}, 1 / len(batch.latents)


def _provenance(ws: Workspace, agent: Agent | None, case: Case) -> dict[str, Any]:
    """Where a row's numbers come from (I4)."""
    run, used, stages = ws.run, case.stages, core_stages(ws.config)
    data = ws.data_of(stages[name] for name in used)
    names = ("source", "recipe", "transitions", "dynamics", "hash")
    quality = read_json(run.path / "l1" / "quality.json") if case.learned else {}
    row = {
        "told": evaluation.TOLD.get(case.method, case.settings.get("truth", "")),
        "data": {key: data.get(key) for key in names},
        "weights": ws.weights(used),
        "probe_px_encoder": quality.get("probe_px_encoder"),
        "probe_px_predictor": quality.get("probe_px_predictor"),
        "device": ws.device,
        "version": __version__,
        **dict.fromkeys(("train_seconds", "parameters", "replan", "flops_per_step")),
        **dict.fromkeys(("model_transitions_per_step", "latency_single_episode")),
    }
    if used:
        made = {one.name for name in used for one in closure(stages[name]) if not one.recorded}
        there = run.manifest["stages"]
        row["train_seconds"] = sum(there[name]["seconds"] for name in made & there.keys())
    if case.learned:
        above = agent.level3 and agent.level3.model
        parts = {"l1": agent.level1, "distance": agent.distance, "l2": agent.level2, "l3": above}
        row["parameters"] = sum(count_all(parts[name]) for name in used)
    return row


def count_all(module: torch.nn.Module) -> int:
    """Weights of a module, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def learned(config: Config) -> list[tuple[str, str]]:
    """(method, cost) of the planners with a world model that these settings train."""
    methods = ("flat",) if config.level2.disable_l2 else METHODS
    methods += (THREE_LEVELS,) if config.level3.enabled else ()
    return [(method, cost) for method in methods for cost in costs(config)]


def costs(config: Config) -> tuple[str, ...]:
    """What planners can minimise with the models that these settings train."""
    return (*COSTS, "graph") if config.level1.predictor == "local" else COSTS


def extra(config: Config) -> list[tuple[str, str]]:
    """(method, cost) of the rows that `evaluation.rows` adds."""
    planned, rows = {ONE_STEP: "distance", GRAPH: "graph"}, config.evaluation.rows
    return [(row, planned.get(row, "none")) for row in rows if row != "usual"]


def cases_of(config: Config, **changes: Any) -> list[Case]:
    """The headline table: floors, ceiling (F15), rows that `evaluation.rows` adds, planners.

    `changes` go to `Case.of`.
    """
    ruled = hasattr(evaluation.world_of(config), "rule_action")
    ruled = [(name, "none") for name in evaluation.RULES if ruled]
    named = [*FLOORS, *ruled, *extra(config), *learned(config)]
    return [Case.of(config, method, cost, **changes) for method, cost in named]


def tuned_pair(config: Config) -> list[Case]:
    """The default verdict on the hierarchy (Q5): flat as validation trials chose it, and L1+L2.

    Latent cost, equal compute (cells `bar_*` of the study). [] but in the profile laptop: of other
    data, levels, planners or episodes nobody has chosen any.
    """
    free = "level1.load", "planning.cost"  # where weights come from; the cases name their cost
    changed = differences(profile("laptop"), config).keys() - free
    shaping = "data.", "level1.", "level2.", "planning.", "evaluation.protocol", "evaluation.steps"
    if any(name.startswith(shaping) for name in changed):
        return []
    search = dataclasses.replace(config.planning.flat, horizon=48, iterations=1, sigma=3.5)
    planning = dataclasses.replace(config.planning, flat=search, replan=8)
    flat = Case.of(config, "flat", "latent", planning=planning, budget=0.4375)
    return [flat, Case.of(config, "l1+l2", "latent", budget=0.25)]


def best(rows: Iterable[dict]) -> tuple[str, str]:
    """(method, cost) of most success; path efficiency, then less compute, break ties."""
    planned = [row for row in rows if row["flops_per_step"] is not None]
    if not planned:
        raise RunError("there is no result of a planner with a world model to choose from")
    names = ("success_rate", "path_efficiency")
    winner = max(planned, key=lambda row: (*(row[name] for name in names), -row["flops_per_step"]))
    return winner["method"], winner["cost"]


def find_results(ws: Workspace, cases: Iterable[Case], folder: str = "results") -> list[Result]:
    """The results of these cases: of this run, taken over with their models, or played now."""
    found, agent = [], None
    for case in cases:
        if not ws.found(stage_of(ws.config, case, folder)) and case.learned:
            agent = agent or load_trained(ws)
        found.append(play(ws, agent, case, folder))
    return found


def leak_rows(ws: Workspace, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The wall leak of this run's level 1, from fresh walks; where layouts vary, in held-out ones.

    `settings` may say how many `pushes`; the cap is the protocol's. A cell of an experiment.
    """
    agent, config = load_trained(ws, ("l1",)), ws.config
    layouts = "fixed" if config.data.layouts == "fixed" else "validation"
    walks = long_walks(config.data, 92, 100, config.seed, layouts=layouts)
    cap = played_cap(config, config.planning.action_cap)
    found = wall_leak(agent, walks, cap, settings.get("pushes", PUSHES))
    return [{"world": config.data.source, "layouts": layouts, "action_cap": cap, **found}]
