"""Prediction without correction: error in px by horizon, for both levels and for plans.

A model starts from the encoding of one frame, is fed the recorded actions and nothing else, and the
position probe reads where it believes the dot is. Level 2 is measured twice: with the posterior's z
(what its latents can express, the best plan it could find) and with the prior's mean (what it
expects without looking ahead).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import DataConfig, PlanningConfig
from hjepa_lib.data.recipes import RECIPES, SMOOTH, STEP_HIGH, STEP_MEAN, random_motion
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.evaluation.horizons import Curve
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.models.probe import Probe
from hjepa_lib.planning.agent import Agent
from hjepa_lib.training.latents import LatentBatch, LatentStore
from hjepa_lib.training.probes import rmse_px
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.layout import HIGH, LOW, Layout, layout_set
from hjepa_lib.worlds.oracle import oracle_length
from hjepa_lib.worlds.rendering import render
from hjepa_lib.worlds.trials import Trials
from hjepa_lib.worlds.two_rooms import TwoRooms, inside

WINDOWS = 256
HELD_OUT = 2**31
"""Added to the seed: seeds of runs are smaller, so no training set has these random numbers."""
MEAN_PACE = STEP_HIGH / STEP_MEAN
"""Steps of mean length per step of the longest one."""
MARGIN = 2.0
"""Places keep this distance from the borders, px."""
_PIECE = 2048


# --- windows ----------------------------------------------------------------------------------
def draw_windows(store: LatentStore, horizon: int, count: int = WINDOWS) -> LatentBatch:
    """Evenly spaced windows of horizon + 1 states, never crossing a trajectory."""
    first = store.windows(horizon + 1)
    if not len(first):
        raise WorkbookError(f"no trajectory has {horizon + 1} states for horizon {horizon}")
    return store.gather(first[:: max(1, len(first) // count)][:count], horizon + 1)


def long_walks(
    data: DataConfig, states: int, count: int, seed: int, layouts: np.ndarray | None = None
) -> Trajectories:
    """`count` fresh trajectories of `states` states with the motion and dynamics of the recipe.

    Longer than the recipe's own they are chained: each further piece brings new actions, and the
    dot goes on from where it is. `layouts` (K, 2) replaces those of the data. `expert` has no
    random motion of its own and gets that of `good`.
    """
    if states < 2 or count < 1:
        raise WorkbookError(f"walks need 2 states and 1 window at least, got {states} and {count}")
    generator = torch.Generator().manual_seed(HELD_OUT + seed)
    rule = RECIPES["good" if data.recipe == "expert" else data.recipe]
    if layouts is None:
        layouts = layout_set(data.layouts, data.exclude_wall, data.exclude_door)
    pick = torch.randint(len(layouts), (count,), generator=generator).numpy()
    layout = Layout.of(np.asarray(layouts)[pick])
    kappa = torch.full((count,), rule.kappa)
    if data.recipe == "mixture":
        kappa[: int(data.good_fraction * count)] = SMOOTH
    pieces, starts = [], []
    while sum(piece.shape[1] for piece in pieces) < states - 1:
        built = torch.rand(count, generator=generator) < rule.rate
        first, actions = random_motion(layout, rule.states - 1, kappa, built, generator)
        starts.append(first)
        pieces.append(actions)
    actions = torch.cat(pieces, 1)[:, : states - 1]
    own = find_world(data.source)
    episodes = (own or TwoRooms)(layout, data.dynamics, seed=seed)
    start = starts[0] if own is None else episodes.sample_start_goal(generator)[0]
    positions = [episodes.reset(start)]
    positions += [episodes.step(action) for action in actions.unbind(1)]
    return Trajectories(
        torch.stack(positions, 1).flatten(0, 1),
        torch.cat([actions, torch.zeros(count, 1, 2)], 1).flatten(0, 1),
        torch.full((count,), states),
        layout.pairs().to(torch.int16),
        {"source": data.source, "recipe": data.recipe, "held_out": True, "seed": seed},
    )


def whole_windows(store: LatentStore) -> LatentBatch:
    """Every trajectory of a store as one window; they must be equally long."""
    lengths = store.lengths.unique()
    if len(lengths) != 1:
        raise WorkbookError(f"windows must be equally long, got lengths {lengths.tolist()}")
    return store.gather(store.starts[:-1], int(lengths))


# --- errors in px -----------------------------------------------------------------------------
@torch.no_grad()
def gaps(probe: Probe, latents: Tensor, positions: Tensor) -> np.ndarray:
    """Probed latents (B, H, D) against positions (B, H, 2) -> (B, H) px."""
    device = next(probe.parameters()).device
    found = probe(latents.to(device)).cpu()
    return (found - positions).norm(dim=-1).numpy()


def stay_errors(batch: LatentBatch) -> np.ndarray:
    """(B, H) px: the distance really travelled, the error of never moving."""
    return (batch.positions[:, 1:] - batch.positions[:, :1]).norm(dim=-1).numpy()


@torch.no_grad()
def level1_errors(
    model: Jepa, probe: Probe, batch: LatentBatch, level2: Level2 | None = None
) -> np.ndarray:
    """(B, H) px after 1..H steps; `level2` acts on level 1 as in joint training (its hooks)."""
    device = model.pixel_mean.device
    start, actions = batch.latents[:, 0].to(device), batch.actions.to(device)
    hooks = {} if level2 is None else _hooks(level2, model, batch)
    predicted = model.rollout_members(start, actions, **hooks).mean(0)[:, 1:]  # (B, H, D)
    return gaps(probe, predicted, batch.positions[:, 1:])


def _hooks(level2: Level2, level1: Jepa, batch: LatentBatch) -> dict[str, Any]:
    """What a jointly trained level 2 adds to a roll-out, given the posterior's z of the window."""
    device = level1.pixel_mean.device
    actions = level1.normalise_actions(batch.actions.to(device))
    generator = torch.Generator().manual_seed(0)
    _, observed = level2.observe(batch.latents.to(device), actions, generator)
    context = level2.context(observed.z)  # (B, whole macro steps, A) or None
    if context is not None:  # the rest of a window keeps the last macro step
        rest = actions.shape[1] - context.shape[1]
        context = torch.cat([context, context[:, -1:].expand(-1, rest, -1)], 1)
    return {"context": context, "feedback": level2.feedback}


@torch.no_grad()
def level2_errors(
    level2: Level2, level1: Jepa, probe: Probe, batch: LatentBatch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps (H2,), posterior errors (B, H2), prior-mean errors (B, H2)), px."""
    device = level1.pixel_mean.device
    skip = level2.config.step_skip
    actions = level1.normalise_actions(batch.actions.to(device))
    latents = batch.latents.to(device)
    generator = torch.Generator().manual_seed(0)
    _, observed = level2.observe(latents, actions, generator)
    count = observed.z.shape[1]
    chunks = level2.chunk_actions(actions)
    macros = None if level2.macro_dim == 0 else level2.macro(chunks)
    prior = level2.imagine(latents[:, 0], count, macros).predictions
    truth = batch.positions[:, skip : count * skip + 1 : skip]
    steps = np.arange(1, count + 1) * skip
    posterior = gaps(probe, observed.predictions[:, 1:], truth)
    return steps, posterior, gaps(probe, prior, truth)


def open_loop(agent: Agent, batch: LatentBatch) -> dict[str, Curve]:
    """Errors in px of level 1, of level 2 (if there is one) and of standing still, by horizon."""
    horizon = np.arange(1, batch.actions.shape[1] + 1)
    level2 = agent.level2
    acts = level2 is not None and (level2.condition is not None or level2.correct is not None)
    errors = level1_errors(agent.level1, agent.probe, batch, level2 if acts else None)
    curves = {"level 1": Curve(horizon, errors)}
    if level2 is not None and len(horizon) >= level2.config.step_skip:
        steps, *found = level2_errors(level2, agent.level1, agent.probe, batch)
        for name, errors in zip(("posterior z", "prior mean"), found, strict=True):
            curves[f"level 2, {name}"] = Curve(steps, errors)
    return curves | {"stand still": Curve(horizon, stay_errors(batch))}


def read_error(agent: Agent, batch: LatentBatch) -> float:
    """Median px between the probe's reading of real frames and the truth: no error goes below."""
    return float(np.median(gaps(agent.probe, batch.latents, batch.positions)))


@torch.no_grad()
def probe_errors(
    model: Jepa, probe: Probe, store: LatentStore, horizon: int = 15
) -> dict[str, Any]:
    """RMSE (px) of the probe on the predicted latents of `horizon`-step roll-outs.

    PLDM's measure, without the start: that one is an encoding and no prediction.
    """
    longest = int(store.lengths.max()) - 1
    batch = draw_windows(store, min(horizon, longest))
    device = model.pixel_mean.device
    predicted = model.rollout_members(batch.latents[:, 0].to(device), batch.actions.to(device))
    found = probe(predicted.mean(0)[:, 1:]).cpu().flatten(0, 1)
    return {"probe_px_predictor": rmse_px(found, batch.positions[:, 1:].flatten(0, 1))}


@torch.no_grad()
def off_manifold(
    agent: Agent, batch: LatentBatch, bank: Tensor, steps: np.ndarray
) -> dict[str, Curve]:
    """Distance of predicted latents to the nearest real one, over what real latents have: (n, h).

    bank (M, D) real latents; the unit is the median distance of this batch's own encodings to the
    bank, so 1 means "as near to the data as a real frame". `steps` (h,) environment steps.
    """
    device = agent.device
    bank = bank.float().to(device)
    unit = float(_nearest(batch.latents[:, :: max(1, len(steps))].to(device), bank).median())
    start, actions = batch.latents[:, 0].to(device), batch.actions.to(device)
    steps = np.asarray(steps)
    predicted = agent.level1.rollout_members(start, actions[:, : steps.max()]).mean(0)
    found = {"level 1": (steps, predicted[:, torch.as_tensor(steps)])}
    level2 = agent.level2
    if level2 is not None and level2.config.actions == "none":
        skip = level2.config.step_skip
        own = steps[(steps % skip == 0) & (steps > 0)]
        if len(own):
            imagined = level2.imagine(start, int(own.max()) // skip).predictions
            found["level 2, prior mean"] = (own, imagined[:, torch.as_tensor(own // skip - 1)])
    return {
        name: Curve(at, (_nearest(latents, bank) / unit).cpu().numpy())
        for name, (at, latents) in found.items()
    }


def _nearest(latents: Tensor, bank: Tensor) -> Tensor:
    """(..., D), (M, D) -> (...) Euclidean distance to the nearest row of the bank."""
    flat = latents.float().flatten(0, -2)
    found = [torch.cdist(part, bank).amin(1) for part in flat.split(_PIECE)]
    return torch.cat(found).reshape(latents.shape[:-1])


@torch.no_grad()
def plan_errors(
    agent: Agent, planning: PlanningConfig, tasks: Trials, dynamics: str = "blocked"
) -> Curve:
    """Error in px of the first flat plan of every trial, executed open loop: (n, planned steps).

    A planner searches for actions that the model likes, so its own plans break their promises
    sooner than recorded motion does. `dynamics` defaults to the rule of the data, so that the error
    is the model's and not that of another world.
    """
    world = tasks.begin(dynamics, seed=0)
    latent, goal = (agent.encode(world.render(place)) for place in (tasks.start, tasks.goal))
    planner = agent.planner("flat", planning)
    planner.reset(tasks.numbers)
    with agent.autocast():
        actions = planner.plan(latent, goal, executed=0).actions  # (B, H, 2)
        promised = planner.level1.imagine(latent, actions)  # (B, H, D)
    truth = torch.stack([world.step(action) for action in actions.float().cpu().unbind(1)], 1)
    return Curve(np.arange(1, actions.shape[1] + 1), gaps(agent.probe, promised.float(), truth))


# --- the distance head ------------------------------------------------------------------------
class StepPairs(NamedTuple):
    """n pairs of places; steps are environment steps of the longest training step's length."""

    shortest: np.ndarray  # (n,) true steps
    predicted: np.ndarray  # (n,) steps, by the head
    through_door: np.ndarray  # (n,) bool: the wall stands between the two
    layout: np.ndarray  # (n, 2) wall_x, door_y


@torch.no_grad()
def step_pairs(agent: Agent, layouts: np.ndarray, per_layout: int, seed: int) -> StepPairs:
    """`per_layout` random pairs of free places in each of the layouts (K, 2).

    True steps are the shortest path over the longest step of the data; the head never saw them.
    ConfigError when the agent has no distance head.
    """
    geometry = agent.geometry("distance")
    if len(layouts) == 0 or per_layout < 1:
        raise WorkbookError(f"pairs need layouts and a count, got {len(layouts)} and {per_layout}")
    generator = torch.Generator().manual_seed(seed)
    rows = Layout.of(np.repeat(np.asarray(layouts), per_layout, axis=0))
    here, there = (_free(rows, generator) for _ in range(2))
    ends = [
        torch.cat([geometry.embed(agent.encode(part)) for part in frames.split(1024)])
        for frames in (render(here, rows), render(there, rows))
    ]
    wall = rows.wall_x
    return StepPairs(
        (oracle_length(here, there, rows) / STEP_HIGH).numpy(),
        geometry.between(*ends).float().cpu().numpy(),
        ((here[:, 0] - wall) * (there[:, 0] - wall) < 0).numpy(),
        rows.pairs().numpy(),
    )


def _free(layout: Layout, generator: torch.Generator) -> Tensor:
    """One free place (B, 2) px per row, drawn again wherever it falls into the wall."""
    low, high = LOW + MARGIN, HIGH - MARGIN
    place = low + (high - low) * torch.rand(layout.batch, 2, generator=generator)
    while not (free := inside(place, layout)).all():
        again = low + (high - low) * torch.rand(layout.batch, 2, generator=generator)
        place = torch.where(free[:, None], place, again)
    return place
