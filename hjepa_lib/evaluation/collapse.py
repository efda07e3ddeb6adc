"""Where prediction breaks: error far beyond the trained roll-out, and the horizon of the collapse.

Recorded trajectories are 91 states long, so long open-loop windows are walked anew: the motion of
the data's recipe, from a stream of random numbers that no training set can have. An error curve is
the median over windows with a bootstrap over windows; its collapse horizon is the first horizon at
which the median exceeds a stated threshold. Planners have theirs in horizons.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import Config, DataConfig
from hjepa_lib.data.motion import random_motion
from hjepa_lib.data.recipes import RECIPES, SMOOTH
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.evaluation.openloop import gaps, level1_errors, level2_errors, stay_errors
from hjepa_lib.evaluation.statistics import Interval, StatisticsError
from hjepa_lib.planning.agent import Agent
from hjepa_lib.training.latents import LatentBatch, LatentStore
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.layout import DOOR_HALF, Layout, layout_set
from hjepa_lib.worlds.two_rooms import TwoRooms

HELD_OUT = 2**31
"""Added to the seed: seeds of runs are smaller, so no training set has these random numbers."""
HALF_DOOR = DOOR_HALF
"""Half the door's width, px: a plan with a larger error misses the door it aims at."""
RESAMPLES = 500
_PIECE = 2048


class Curve(NamedTuple):
    """Open-loop errors by horizon."""

    steps: np.ndarray  # (h,) environment steps
    errors: np.ndarray  # (n, h) px, or what the axis says


class Band(NamedTuple):
    """Median over windows with its bootstrap interval, each (h,)."""

    steps: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray


# --- windows ----------------------------------------------------------------------------------
def long_walks(
    data: DataConfig, states: int, count: int, seed: int, layouts: np.ndarray | None = None
) -> Trajectories:
    """`count` fresh trajectories of `states` states with the motion and dynamics of the recipe.

    Longer than the recipe's own trajectories they are chained: each further piece brings new
    actions, and the dot goes on from where it is. `layouts` (K, 2) replaces those of the data.
    `expert` has no random motion of its own and gets that of `good`. Raises ValueError.
    """
    if states < 2 or count < 1:
        raise ValueError(f"walks need 2 states and 1 window at least, got {states} and {count}")
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
    """Every trajectory of a store as one window; they must be equally long (ValueError)."""
    lengths = store.lengths.unique()
    if len(lengths) != 1:
        raise ValueError(f"windows must be equally long, got lengths {lengths.tolist()}")
    return store.gather(store.starts[:-1], int(lengths))


def trained_lengths(config: Config) -> dict[str, int]:
    """Longest roll-out in the training of each level, in environment steps (HW4)."""
    level1, level2 = config.level1, config.level2
    macro = level2.macro_steps * level2.step_skip
    if level2.train == "joint" and not level2.disable_l2:
        return {"level 1": macro, "level 2": macro}
    lengths = {"level 1": level1.rollout or level1.window - 1}
    return lengths if level2.disable_l2 else lengths | {"level 2": macro}


# --- curves -----------------------------------------------------------------------------------
@torch.no_grad()
def open_loop(agent: Agent, batch: LatentBatch) -> dict[str, Curve]:
    """Errors in px of level 1, of level 2 (if there is one) and of standing still, by horizon."""
    horizon = np.arange(1, batch.actions.shape[1] + 1)
    level2 = agent.level2
    acts = level2 is not None and (level2.condition is not None or level2.correct is not None)
    errors = level1_errors(agent.level1, agent.probe, batch, level2 if acts else None)
    curves = {"level 1": Curve(horizon, errors.T)}
    if level2 is not None and len(horizon) >= level2.config.step_skip:
        steps, *found = level2_errors(level2, agent.level1, agent.probe, batch)
        for name, errors in zip(("posterior z", "prior mean"), found, strict=True):
            curves[f"level 2, {name}"] = Curve(steps, errors.T)
    return curves | {"stand still": Curve(horizon, stay_errors(batch).T)}


@torch.no_grad()
def read_error(agent: Agent, batch: LatentBatch) -> float:
    """Median px between the probe's reading of real frames and the truth: no error goes below."""
    return float(np.median(gaps(agent.probe, batch.latents, batch.positions)))


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


def band(curve: Curve, resamples: int = RESAMPLES, seed: int = 0) -> Band:
    """Median error by horizon with a 95 % percentile bootstrap over windows."""
    errors = _errors(curve)
    draws = np.sort(
        [np.median(errors[row], 0) for row in resampled_rows(len(errors), resamples, seed)], 0
    )
    low, high = resampled_ends(resamples)
    return Band(curve.steps, np.median(errors, 0), draws[low], draws[high])


def collapse_horizon(
    curve: Curve, threshold: float | np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """First horizon at which the median error exceeds the threshold, with a 95 % interval.

    `threshold` is a number or, for a baseline on the same windows, errors (n, h): then the two
    medians are compared, on the same redrawn windows. Where a curve starts above its threshold the
    search begins where it first falls below (a probe misreads by more than one step's length); one
    that never does has collapsed at its first step. Infinity: not within the measured horizons.
    """
    errors = _errors(curve)
    limits = np.asarray(threshold, dtype=np.float64)
    if limits.ndim and limits.shape != errors.shape:
        raise StatisticsError(
            f"a baseline needs the shape of the errors {errors.shape}, got {limits.shape}"
        )
    if not np.isfinite(limits).all():
        raise StatisticsError("a threshold must be finite")

    def first(rows: np.ndarray | slice) -> float:
        limit = np.median(limits[rows], 0) if limits.ndim else limits
        over = np.median(errors[rows], 0) > limit
        if over.all():
            return float(curve.steps[0])
        start = int((~over).argmax())
        return float(curve.steps[start + over[start:].argmax()]) if over[start:].any() else math.inf

    draws = np.sort([first(rows) for rows in resampled_rows(len(errors), resamples, seed)])
    low, high = resampled_ends(resamples)
    return Interval(first(slice(None)), float(draws[low]), float(draws[high]))


def _errors(curve: Curve) -> np.ndarray:
    errors = np.asarray(curve.errors, dtype=np.float64)
    if errors.ndim != 2 or errors.size == 0 or errors.shape[1] != len(curve.steps):
        raise StatisticsError(
            f"errors must be (windows, {len(curve.steps)}) and not empty, got {errors.shape}"
        )
    if not np.isfinite(errors).all():
        raise StatisticsError("errors hold values that are not finite")
    return errors


def resampled_rows(n: int, resamples: int, seed: int) -> np.ndarray:
    """Row numbers of every resample, (resamples, n)."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def resampled_ends(resamples: int) -> tuple[int, int]:
    """Places of the 2.5 % and 97.5 % quantiles among sorted draws (of which some are infinite)."""
    return int(0.025 * resamples), min(resamples - 1, int(0.975 * resamples))


def horizon_text(found: Interval, longest: int) -> str:
    """ "48 (40 to 56)"; beyond the measured horizons "> 192"; "undefined" for NaN."""
    if math.isnan(found.estimate):
        return "undefined"

    def text(value: float) -> str:
        return f"> {longest}" if math.isinf(value) else f"{value:.0f}"

    return f"{text(found.estimate)} ({text(found.low)} to {text(found.high)})"
