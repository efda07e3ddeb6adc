"""Does looking ahead help to predict rewards? A study in two worlds whose reward is published.

In `hjepa/Drift-v0` the reward depends on the next state, and transitions are stochastic; in its
control `hjepa/Push-v0` it depends on state and action only, so a gain there would be an artefact of
the wider input. The formulas are in worlds/drift.py and worlds/push.py. Both worlds show the same
pictures for the same actions, and no base model sees a reward: so each is trained once per seed,
with a shortened budget, and the heads of headstages.py read the same frozen latents in both worlds,
which differ in the reward alone. One stage `study_{model}_s{seed}` per combination, in
`pixels/study/` of the run: data and models of the run itself are not touched, and an interrupted
study continues with the next combination.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import nn

from hjepa_lib.config import Config, ConfigError
from hjepa_lib.files import write_json
from hjepa_lib.pixels.collect import collect, split
from hjepa_lib.pixels.headstages import Cell, load_cell, score_model
from hjepa_lib.pixels.models import VJepa2
from hjepa_lib.pixels.pixelrows import RANDOM
from hjepa_lib.pixels.rewards import comparison
from hjepa_lib.pixels.stages import fresh_model
from hjepa_lib.pixels.tables import look_ahead_section
from hjepa_lib.pixels.training import fit_pixels
from hjepa_lib.pixels.transitions import Transitions, shapes_of
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, encode_states, fit_stage1, fit_stage2
from hjepa_lib.pixels.worlds import DRIFT_ID, PUSH_ID
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report

WORLDS = {"drift": DRIFT_ID, "push": PUSH_ID}
"""Reward of the next state, and the control."""
STUDIED = ("enc_dec_jepa", "jepa", "vjepa2", "random")
"""The models with an imagined latent, and the frozen untrained encoder (that of `vjepa2`, another
network, has its heads in the comparison itself; here the question is the look-ahead)."""
STEPS = 25
"""Environment steps of an episode: many short ones, for targets differ from episode to episode."""
Parts = tuple[Transitions, Transitions]
"""Training and validation transitions."""


def study_config(config: Config, world: str) -> Config:
    """The run's settings with a study world and its data; base budgets at most `study_updates`."""
    pixels = config.pixels
    steps = max(STEPS, pixels.data.sequence)
    changes: dict[str, Any] = {
        "pixels.environment.id": WORLDS[world],
        "pixels.environment.max_steps": steps,
        "pixels.environment.grayscale": True,
        "pixels.environment.action_repeat": 0,
        "pixels.environment.frame_skip": 0,
        "pixels.data.method": "random",
        "pixels.data.path": "",
        "pixels.data.transitions": pixels.reward.study_transitions,
        "pixels.data.episodes": -(-pixels.reward.study_transitions // steps),
        "pixels.seeds": pixels.reward.seeds,
    }
    budgets = {"": pixels, "vjepa2.stage1.": pixels.vjepa2.stage1}
    budgets["vjepa2.stage2."] = pixels.vjepa2.stage2
    for key, section in budgets.items():
        own, most = section.optim.updates, pixels.reward.study_updates
        changes[f"pixels.{key}optim.updates"] = min(own, most) if own and most else own
    return config.override(changes)


def study_data(ws: Workspace, world: str) -> Transitions:
    """All transitions of a study world, the same for all models and training seeds."""
    folder, stage = f"pixels/study/{world}/data", f"study_{world}_data"
    if not ws.run.done(stage):
        study = study_config(ws.config, world)
        with ws.run.stage(stage, folder=folder) as target:
            collect(study.pixels, study.seed).save(target)
    return Transitions.load(ws.run.path / folder)


def study_parts(ws: Workspace) -> dict[str, Parts]:
    """{world: (training, validation)}; ConfigError unless the worlds differ in the reward alone."""
    found = {world: study_data(ws, world) for world in WORLDS}
    first, second = found.values()
    for name in ("frames", "now", "after", "origin", "action", "episode"):
        if not torch.equal(getattr(first, name), getattr(second, name)):
            raise ConfigError(
                f"the study's worlds no longer share their pictures and actions: {name} differs"
            )
    return {world: split(ws, data) for world, data in found.items()}


def train_study_stage(ws: Workspace, name: str, seed: int) -> Iterator[Report]:
    """Train base model `name` with training seed number `seed`, then its heads in both worlds."""
    stage = _stage(name, seed)
    if ws.run.done(stage):
        return
    parts, study = study_parts(ws), copy.copy(ws)
    needs = tuple(f"study_{world}_data" for world in WORLDS)
    with ws.run.stage(stage, folder=_folder(name, seed), reads=needs) as target:
        study.config = study_config(ws.config, next(iter(WORLDS)))
        model = yield from _train_base(study, name, parts[next(iter(WORLDS))], seed)
        model.eval().requires_grad_(False)
        for world, pair in parts.items():
            study.config = study_config(ws.config, world)
            facts = {"seed": study.config.seed + seed}
            facts["data_sha256"] = study_data(ws, world).sha256
            log = f"study_{world}_{name}_s{seed}"
            yield from score_model(study, model, name, pair, log, target / world, facts)


def _train_base(
    study: Workspace, name: str, parts: Parts, seed: int
) -> Generator[Report, None, nn.Module]:
    model = fresh_model(study, name, seed, parts[0])
    config, number = study.config.pixels, study.config.seed + seed
    if name == "vjepa2":
        yield from _train_two_stages(study, model, parts, number)
    elif name != RANDOM:
        fit = fit_pixels(
            model, *parts, config.optim_of(name), seed=number, precision=study.precision
        )
        yield from fit
        fit.load_best()
    return model


def _train_two_stages(study: Workspace, model: VJepa2, parts: Parts, seed: int) -> Iterator[Report]:
    """Masked pre-training, then the world model on the frozen encoder, into `model`."""
    config, precision = study.config.pixels, study.precision
    masked = MaskedPrediction(config, shapes_of(parts[0])).to(study.device)
    first = fit_stage1(masked, *parts, config, seed=seed, precision=precision)
    yield from first
    first.load_best()
    model.encoder.load_state_dict(masked.online.state_dict())
    latents = [encode_states(model, part, config.data.sequence) for part in parts]
    world = model.world.requires_grad_(True)
    second = fit_stage2(world, *latents, config, seed=seed, precision=precision)
    yield from second
    second.load_best()


def train_study(ws: Workspace) -> Iterator[Report]:
    """All combinations that are not done yet: four models, `reward.seeds` seeds, both worlds."""
    for seed in range(ws.config.pixels.reward.seeds):
        for name in STUDIED:
            yield from train_study_stage(ws, name, seed)


def study_rows(ws: Workspace) -> dict[str, list[dict[str, Any]]]:
    """Stage `lookahead`: rows of `rewards.comparison` per world of the finished study."""
    seeds = range(ws.config.pixels.reward.seeds)
    rows: dict[str, list[dict[str, Any]]] = {}
    for world in WORLDS:
        cells: dict[str, list[Cell]] = {}
        for name in STUDIED:
            found = [load_cell(ws.run.path / _folder(name, n) / world) for n in seeds]
            cells[name], note = [cell for cell, _ in found], found[0][1]["note"]
        rows[world] = comparison(cells, note)
    stages = tuple(_stage(name, n) for name in STUDIED for n in seeds)
    with ws.run.stage("lookahead", folder="pixels/lookahead", reads=stages) as folder:
        write_json(folder / "lookahead.json", rows)
    leave_section(ws.run, "25-lookahead", look_ahead_section(rows))
    return rows


def _stage(name: str, seed: int) -> str:
    return f"study_{name}_s{seed}"


def _folder(name: str, seed: int) -> str:
    return f"pixels/study/{name}/s{seed}"
