"""Metrics of a batch of planning episodes, from positions alone (numpy, no model, no world).

Definitions follow the wall evaluation of PLDM (arXiv 2502.14819) and EB-JEPA (arXiv 2602.03604).
With p(t) the position at step t = 0..S, g the goal and m(t) = |p(t) - g|^2 / 2 per coordinate,
tau = first t with m(t) < 1 (Euclidean < sqrt(2) px), else S + 1. Differences from the public code:
the first crossing step is t (not t + 1), no crossing gives an undefined crossing step (not 0), and
whatever is undefined is NaN (null in JSON), never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds.layout import WALL_HALF

LOOSE_PX = 4.5
"""Success radius of P2 (EB-JEPA, after DINO-WM); the strict one of P1 is sqrt(2), m < 1."""
TRAINING_STEP_PX = 1.8
"""Longest training step: the unit of `efficiency_score`, whatever cap the planner has."""
SHORTEST_PLAN = 96
"""Plans that reach fewer environment steps leave `init_plan_cross_wall_rate` undefined."""


class MetricError(WorkbookError):
    """Episodes have the wrong shape, non-finite positions, or an unknown protocol."""


class Episodes(NamedTuple):
    """B finished trials of S environment steps; lengths in px, position = (x, y), y down."""

    positions: np.ndarray  # (B, S+1, 2), the start is t = 0
    goal: np.ndarray  # (B, 2)
    wall_x: np.ndarray  # (B,)
    door_y: np.ndarray  # (B,)
    oracle: np.ndarray  # (B,) length of the shortest path through the door to the goal
    plan_end: np.ndarray  # (B, 2) probed last latent of the first plan; NaN if there is none
    plan_reach: int  # environment steps covered by that plan; 0 if there is none


class TrialMetrics(NamedTuple):
    """One value per trial, each (B,) float64; success is 0 or 1, NaN marks undefined."""

    success: np.ndarray  # the protocol's own definition
    success_first_1p41: np.ndarray
    success_last_1p41: np.ndarray
    success_first_4p5: np.ndarray
    success_last_4p5: np.ndarray
    cross_wall: np.ndarray  # 1: on the goal's side after step S; NaN: start and goal share a side
    init_plan_cross_wall: np.ndarray  # the same for the end of the first plan
    planning_error: np.ndarray  # m at the first hit, else after step S; px^2 per coordinate
    final_distance: np.ndarray  # Euclidean px after step S
    termination_step: np.ndarray  # tau
    first_crossing_step: np.ndarray  # NaN if the trial never crosses
    efficiency: np.ndarray  # (steps straight to the door) / crossing step; 0 without a crossing
    path_efficiency: np.ndarray  # success * oracle / max(oracle, travelled up to the first hit)


def per_trial(episodes: Episodes, protocol: str) -> TrialMetrics:
    """Every metric of every trial.

    `protocol` decides `success` and the hit of `path_efficiency`: `p1` is within sqrt(2) px at any
    step, t = 0 included; any `p2...` is within 4.5 px after the last step. Raises `MetricError`.
    """
    e = _checked(episodes)
    gap = e.positions - e.goal[:, None]  # (B, S+1, 2)
    error = (gap**2).sum(-1) / 2  # (B, S+1)
    distance = np.sqrt(2 * error)
    strict, loose = error < 1, distance < LOOSE_PX  # (B, S+1)
    if protocol == "p1":
        hits, success = strict, strict.any(1)
    elif protocol.startswith("p2"):
        hits, success = loose, loose[:, -1]
    else:
        raise MetricError(f"protocol must be p1 or begin with p2, got {protocol!r}")
    crossing = _first_crossing(e)
    at_end = np.minimum(_first(strict), error.shape[1] - 1)
    columns = TrialMetrics(
        success=success,
        success_first_1p41=strict.any(1),
        success_last_1p41=strict[:, -1],
        success_first_4p5=loose.any(1),
        success_last_4p5=loose[:, -1],
        cross_wall=_on_goal_side(e, e.positions[:, -1]),
        init_plan_cross_wall=_on_goal_side(e, e.plan_end, e.plan_reach >= SHORTEST_PLAN),
        planning_error=np.take_along_axis(error, at_end[:, None], axis=1)[:, 0],
        final_distance=distance[:, -1],
        termination_step=_first(strict),
        first_crossing_step=crossing,
        efficiency=_efficiency(e, crossing),
        path_efficiency=success * _directness(e, _first(hits)),
    )
    return TrialMetrics(*(column.astype(np.float64) for column in columns))


def summarise(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The metric fields of one `results` entry of summary.json; undefined values are NaN.

    `columns` are those of `TrialMetrics` by name. `ci95` is the Wilson interval [low, high] of
    `success_rate`. Rates are shares in [0, 1], lengths are px, steps are environment steps.
    """
    trial = TrialMetrics(**columns)
    n, successes = len(trial.success), int(trial.success.sum())
    error = float(trial.planning_error.mean())
    return {
        "n": n,
        "successes": successes,
        "success_rate": successes / n,
        "ci95": list(wilson(successes, n)),
        "success_first_1p41": float(trial.success_first_1p41.mean()),
        "success_last_1p41": float(trial.success_last_1p41.mean()),
        "success_first_4p5": float(trial.success_first_4p5.mean()),
        "success_last_4p5": float(trial.success_last_4p5.mean()),
        "cross_wall_rate": _defined_mean(trial.cross_wall),
        "init_plan_cross_wall_rate": _defined_mean(trial.init_plan_cross_wall),
        "planning_error_mean": error,
        "planning_error_mean_rmse": math.sqrt(error),
        "final_distance_mean": float(trial.final_distance.mean()),
        "avg_termination_step": float(trial.termination_step.mean()),
        "first_crossing_steps": _defined_mean(trial.first_crossing_step),
        "efficiency_score": float(trial.efficiency.mean()),
        "path_efficiency": float(trial.path_efficiency.mean()),
    }


def _checked(episodes: Episodes) -> Episodes:
    """The same episodes in float64 with their shapes verified."""
    *arrays, reach = episodes
    e = Episodes(*(np.asarray(array, dtype=np.float64) for array in arrays), int(reach))
    if e.positions.ndim != 3 or e.positions.shape[2] != 2 or 0 in e.positions.shape:
        raise MetricError(f"positions must be (B, S+1, 2) and not empty, got {e.positions.shape}")
    batch = len(e.positions)
    shapes = {"goal": (batch, 2), "wall_x": (batch,), "door_y": (batch,), "oracle": (batch,)}
    for name, shape in (shapes | {"plan_end": (batch, 2)}).items():
        if getattr(e, name).shape != shape:
            raise MetricError(f"{name} must be {shape}, got {getattr(e, name).shape}")
    for name in ("positions", *shapes):
        if not np.isfinite(getattr(e, name)).all():
            raise MetricError(f"{name} holds values that are not finite")
    return e


def _first(hits: np.ndarray) -> np.ndarray:
    """(B,) index of the first True along the steps, S + 1 where there is none."""
    return np.where(hits.any(1), hits.argmax(1), hits.shape[1])


def _side(position: np.ndarray, wall_x: np.ndarray) -> np.ndarray:
    """-1 left of the wall's left face, +1 right of its right face, 0 inside it, NaN for NaN."""
    gap = position[..., 0] - wall_x
    return np.sign(gap) * np.where(np.abs(gap) <= WALL_HALF, 0.0, 1.0)


def _on_goal_side(e: Episodes, position: np.ndarray, defined: bool = True) -> np.ndarray:
    """(B,) whether `position` (B, 2) has the goal's side; NaN where it says nothing."""
    goal, here = _side(e.goal, e.wall_x), _side(position, e.wall_x)
    eligible = (_side(e.positions[:, 0], e.wall_x) * goal == -1) & ~np.isnan(here) & defined
    return np.where(eligible, here == goal, np.nan)


def _first_crossing(e: Episodes) -> np.ndarray:
    """(B,) first step t >= 1 whose sign(x - wall_x) differs from the start's; NaN if none."""
    side = np.sign(e.positions[..., 0] - e.wall_x[:, None])  # (B, S+1)
    crossed = side != side[:, :1]
    return np.where(crossed.any(1), crossed.argmax(1), np.nan)


def _efficiency(e: Episodes, crossing: np.ndarray) -> np.ndarray:
    """(B,) straight-line steps from start to door centre over the crossing step, 0 if none."""
    door = np.stack([e.wall_x, e.door_y], axis=-1)
    straight = np.linalg.norm(e.positions[:, 0] - door, axis=-1) / TRAINING_STEP_PX
    return np.nan_to_num(straight / crossing, nan=0.0)


def _directness(e: Episodes, hit: np.ndarray) -> np.ndarray:
    """(B,) oracle / max(oracle, travelled up to step `hit`), 1 where the goal is the start."""
    lengths = np.linalg.norm(np.diff(e.positions, axis=1), axis=-1)  # (B, S)
    travelled = np.cumsum(np.pad(lengths, ((0, 0), (1, 0))), axis=1)  # (B, S+1)
    at_hit = np.minimum(hit, travelled.shape[1] - 1)
    longest = np.maximum(e.oracle, np.take_along_axis(travelled, at_hit[:, None], axis=1)[:, 0])
    return np.divide(e.oracle, longest, out=np.ones_like(longest), where=longest > 0)


def _defined_mean(values: np.ndarray) -> float:
    """Mean of the defined values; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan
