"""Prediction without correction: error by horizon, for both levels and for plans.

A model starts from the encoding of one frame, is fed the recorded actions, and the position probe
reads where it believes the dot is: px. Of recordings without places RMS distances of latents.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import DataConfig, PlanningConfig
from hjepa_lib.data.readers import is_recording
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories, Unplayed
from hjepa_lib.evaluation.horizons import Curve
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.distance import Probe
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.planning.agent import Agent, Controller
from hjepa_lib.training.latents import LatentBatch, LatentStore
from hjepa_lib.training.probes import rmse_px
from hjepa_lib.worlds.base import reaching
from hjepa_lib.worlds.trials import Trials

WINDOWS = 256
HELD_OUT = 2**31  # added to seeds, which are smaller: no training set has these random numbers
PUSHES, PUSH_STEPS, LEAK_PX = 2000, 8, 3.0  # see `wall_leak`
AT_ONCE = 200  # of them: the maps of giant mazes take 40 MB


# --- windows
def draw_windows(store: LatentStore, horizon: int, count: int = WINDOWS) -> LatentBatch:
    """Evenly spaced windows of horizon + 1 states, never crossing a trajectory."""
    first = store.windows(horizon + 1)
    return store.gather(first[:: max(1, len(first) // count)][:count], horizon + 1)


def long_walks(
    data: DataConfig, states: int, count: int, seed: int, layouts: str = ""
) -> Trajectories:
    """`count` fresh trajectories of `states` states, in the layouts of `data` unless others are
    named; WorkbookError for a recording."""
    own = {"recipe": data.recipe, "dynamics": data.dynamics, "source": data.played}
    own["layouts"] = layouts or data.layouts
    if is_recording(data.played):
        raise WorkbookError("a recording has no other walks: data.world=module:Class can make some")
    return generate(transitions=count * (states - 1), seed=HELD_OUT + seed, states=states, **own)


def imagined(
    model: Jepa, batch: LatentBatch, device: torch.device, steps: int | None = None, **hooks
) -> Tensor:
    """(B, steps + 1, D) from first latents by actions, ensemble mean."""
    start, actions = batch.latents[:, 0].to(device), batch.actions[:, :steps].to(device)
    return model.rollout_members(start, actions, scene=batch.scene, **hooks).mean(0)


# --- errors in px
def _gaps(agent: Agent, latents: Tensor, positions: Tensor) -> np.ndarray:
    """Probed latents (B, H, D) against positions (B, H, 2) -> (B, H) px."""
    return (agent.probe(latents.to(agent.device)).cpu() - positions).norm(dim=-1).numpy()


def unit_of(store: LatentStore) -> str:
    """What `open_loop` measures in windows of this store."""
    unit = "unit of the file" if store.data.world is Unplayed else "px"
    return f"error of the position ({unit})" if store.positions.shape[1] else "RMS of latents"


@torch.no_grad()
def open_loop(agent: Agent, batch: LatentBatch) -> dict[str, Curve]:
    """Errors by horizon of level 1, of level 2 and of standing still.

    Level 2 has the posterior's z (the best plan it could find) or the prior's mean, which is told
    nothing, or the actions where macro-actions are fed to it; it acts on level 1 as in training.
    """
    level1, level2 = agent.level1, agent.level2
    latents, pushes = batch.latents.to(agent.device), batch.actions.to(agent.device)
    length, size = pushes.shape[1], batch.latents.shape[-1] ** 0.5
    placed = batch.positions.shape[-1] > 0
    truth, hooks, above = batch.positions if placed else batch.latents.cpu() / size, {}, {}

    def gaps(found: Tensor, steps: np.ndarray) -> np.ndarray:
        if placed:
            return _gaps(agent, found, truth[:, steps])
        return (found.float().cpu() / size - truth[:, steps]).norm(dim=-1).numpy()

    if level2 is not None and length >= level2.config.step_skip:
        actions = level1.normalise_actions(pushes)
        noise = torch.Generator().manual_seed(0)
        _, observed = level2.observe(latents, actions, noise, batch.scene)
        steps = level2.config.step_skip * np.arange(1, observed.z.shape[1] + 1)
        macros = level2.macro(level2.chunk_actions(actions))
        prior = level2.imagine(latents[:, 0], len(steps), macros, scene=batch.scene).predictions
        told = ", told the actions" * (macros is not None)
        both = {"posterior z": observed.predictions[:, 1:], f"prior mean{told}": prior}
        for name, found in both.items():
            above[f"level 2, {name}"] = Curve(steps, gaps(found, steps))
        context = level2.context(observed.z)  # (B, whole macro steps, A) or None
        if context is not None:  # the rest of a window keeps the last macro step
            rest = context[:, -1:].expand(-1, length - context.shape[1], -1)
            context = torch.cat([context, rest], 1)
        hooks = {"context": context, "feedback": level2.feedback}
    steps, still = np.arange(1, length + 1), (truth[:, 1:] - truth[:, :1]).norm(dim=-1).numpy()
    predicted = imagined(level1, batch, agent.device, **hooks)[:, 1:]
    curves = {"level 1": Curve(steps, gaps(predicted, steps))}
    return curves | above | {"stand still": Curve(steps, still)}


@torch.no_grad()
def read_error(agent: Agent, batch: LatentBatch) -> float:
    """Median px of the probe on real frames: no error goes below."""
    return float(np.median(_gaps(agent, batch.latents, batch.positions)))


@torch.no_grad()
def probe_errors(model: Jepa, probe: Probe, store: LatentStore) -> dict[str, Any]:
    """RMSE (px) of the probe on 15-step roll-outs without their start; {} without positions."""
    if not store.positions.shape[1]:
        return {}
    batch = draw_windows(store, min(15, int(store.lengths.max()) - 1))
    predicted = imagined(model, batch, model.pixel_mean.device)[:, 1:]
    found = probe(predicted).cpu().flatten(0, 1)
    return {"probe_px_predictor": rmse_px(found, batch.positions[:, 1:].flatten(0, 1))}


@torch.no_grad()
def off_manifold(
    agent: Agent, batch: LatentBatch, bank: Tensor, steps: np.ndarray
) -> dict[str, Curve]:
    """Distance (n, h) of predicted latents at `steps` (h,) to the nearest of real ones (M, D).

    In units of the median of this batch's own encodings.
    """
    bank = bank.float().to(agent.device)
    unit = np.median(_nearest(batch.latents[:, :: max(1, len(steps))], bank))
    predicted = imagined(agent.level1, batch, agent.device, steps.max())
    curves = {"level 1": Curve(steps, _nearest(predicted[:, steps], bank) / unit)}
    level2 = agent.level2
    if level2 is not None and level2.config.actions == "none":
        skip = level2.config.step_skip
        own = steps[(steps % skip == 0) & (steps > 0)]
        if len(own):
            counts = int(own.max()) // skip
            above = level2.imagine(predicted[:, 0], counts, scene=batch.scene).predictions
            away = _nearest(above[:, own // skip - 1], bank) / unit
            curves["level 2, prior mean"] = Curve(own, away)
    return curves


def _nearest(latents: Tensor, bank: Tensor) -> np.ndarray:
    """(..., D), (M, D) -> (...) Euclidean distance to the nearest row of the bank."""
    parts = latents.float().to(bank.device).flatten(0, -2).split(2048)
    found = torch.cat([torch.cdist(part, bank).amin(1) for part in parts])
    return found.reshape(latents.shape[:-1]).cpu().numpy()


@torch.no_grad()
def plan_errors(agent: Agent, planning: PlanningConfig, tasks: Trials, dynamics: str) -> Curve:
    """Errors (n, planned steps) px of the first flat plans, executed open loop."""
    world = tasks.begin(dynamics, seed=0)
    hand = Controller(agent, "flat", planning).start(world.render(tasks.goal), tasks.numbers)
    hand.step(world.render())
    actions = hand.last.actions  # (B, H, 2)
    with agent.autocast():
        promised = hand.planner.level1.imagine(hand.latent, actions, None, hand.scene)  # (B, H, D)
    states = [world.step(action) for action in actions.float().cpu().unbind(1)]
    truth = world.xy(torch.stack(states, 1))
    return Curve(np.arange(1, actions.shape[1] + 1), _gaps(agent, promised.float(), truth))


@torch.no_grad()
def wall_leak(agent: Agent, data: Trajectories, cap: float, count: int = PUSHES) -> dict[str, Any]:
    """How often level 1 imagines a push through a wall, whatever the world's walls are.

    From `count` states of `data` the world is pushed straight ahead, as far as `cap` allows, for
    `PUSH_STEPS` steps without noise. A wall stopped a push that ends at less than half the usual
    pace and `LEAK_PX` short of the usual way; it leaks if its imagined end is more than `LEAK_PX`
    from the true one. `leak` has its 95 % interval; `free_off` is the share of the other pushes
    that are as far off. Dots that a guard holds or a teleporter carries do not count.
    WorkbookError for recorded frames.
    """
    if data.record is not None:
        raise WorkbookError("recorded frames have no world to push in: no wall leak")
    generator = torch.Generator().manual_seed(HELD_OUT + agent.seed)
    pick = torch.randint(len(data.positions), (count,), generator=generator)
    rule = data.meta.get("dynamics", "blocked")
    world = data.world(
        data.layouts(data.row_of(pick)), "slide" if rule == "bounce" else rule
    )  # without noise
    start = world.reset(data.positions[pick])
    push = torch.randn(count, data.actions.shape[-1], generator=generator)
    push = reaching(push, cap, world.action_ball)
    states = [start, *(world.step(push) for _ in range(PUSH_STEPS))]
    path = world.xy(torch.stack(states, 1))  # (B, PUSH_STEPS + 1, 2)
    plans, ends = push[:, None].expand(-1, PUSH_STEPS, -1), []
    if (carried := world.teleported(path.numpy(), plans.numpy())) is not None:
        path[torch.from_numpy(carried)] = torch.nan
    plans = plans.to(agent.device)
    for frames, part in zip(world.render(start).split(AT_ONCE), plans.split(AT_ONCE), strict=True):
        latents, scene = agent.encode(frames), agent.scene(frames)
        ends.append(agent.level1.rollout_members(latents, part, scene=scene).mean(0)[:, -1:])
    off = torch.from_numpy(_gaps(agent, torch.cat(ends), path[:, -1:]))[:, 0] > LEAK_PX
    pace, way = ((path[:, -1] - path[:, then]).norm(dim=-1) for then in (-2, 0))
    # Held ones have failed, wherever the goal is.
    held = ~world.reached(states[-1], states[-1]) | way.isnan()
    slow, short = pace < pace.nanquantile(0.99) / 2, way < way.nanquantile(0.99) - LEAK_PX
    stopped, free = slow & short & ~held, ~(slow & short) & ~held
    n, leaks = int(stopped.sum()), int((stopped & off).sum())
    low, high = wilson(leaks, n)
    found = {"pushes": count, "stopped": n, "leak": leaks / max(n, 1), "low": low, "high": high}
    return found | {"free_off": float((off & free).sum() / free.sum().clamp(min=1))}
