"""Metrics of a batch of planning episodes, from what happened alone: no model.

After the wall evaluation of PLDM (arXiv 2502.14819) and EB-JEPA (arXiv 2602.03604). With p(t) the
position at step t = 0..S, g the goal and m(t) = |p(t) - g|^2 / 2, tau = first t with m(t) < 1
(Euclidean < sqrt(2) px), else S + 1. Unlike in the public code the first crossing step is t (not
t + 1), and whatever is undefined is NaN, never 0.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.worlds.layout import WALL_HALF, Layout
from hjepa_lib.worlds.two_rooms import oracle_length

LOOSE_PX = 4.5  # success radius of P2 (EB-JEPA, after DINO-WM); the strict one is sqrt(2), m < 1
TRAINING_STEP_PX = 1.8  # longest one: the unit of `efficiency_score`, whatever cap a planner has
SLACK_PX = 2.0  # beyond the longest way of a planned step, for the probe's error
HOLD = 5  # steps in a row that P3 asks for
_SAME = (
    "success_first_1p41", "success_last_1p41", "success_hold_1p41", "success_first_4p5",
    "success_last_4p5",
    "init_plan_reach", "path_efficiency", "effective_samples", "effective_samples_macro",
)  # fmt: skip
MEANS = {name: name for name in _SAME} | {
    "cross_wall_rate": "cross_wall",
    "init_plan_cross_wall_rate": "init_plan_cross_wall",
    "init_plan_through_wall_rate": "init_plan_through_wall",
    "planning_error_mean": "planning_error",
    "final_distance_mean": "final_distance",
    "avg_termination_step": "termination_step",
    "first_crossing_steps": "first_crossing_step",
    "efficiency_score": "efficiency",
    "invalid_route_rate": "invalid_route",
}
"""Field of a row -> the column of `per_trial` whose defined values it is the mean of."""


class Episodes(NamedTuple):
    """B finished trials of S environment steps; lengths in px."""

    positions: np.ndarray  # (B, S+1, 2), the start is t = 0
    actions: np.ndarray  # (B, S, 2)
    goal: np.ndarray  # (B, 2)
    layout: np.ndarray  # (B, 2) rows wall_x, door_y; 0 in a world without them
    oracle: np.ndarray  # (B,) length of the shortest path to the goal
    lost: np.ndarray  # (B,) bool: the planner had no finite plan, the trial stood still from there
    seen: dict[str, np.ndarray]  # what the planner saw and chose at R calls, (B, R, ...) each
    cap: float  # longest action
    reached: np.ndarray | None = None  # (B, S+1) bool by the world's own rule, None: the protocol's
    states: np.ndarray | None = None  # (B, S+1, N), None where they are the positions
    invalid: np.ndarray | None = None  # (B,) bool: some step went through a wall; None: unknown
    teleported: np.ndarray | None = None  # (B,) bool, see `World.teleported`
    seconds: float = 0.0  # planning wall time of all steps


def per_trial(episodes: Episodes, protocol: str) -> dict[str, np.ndarray]:
    """Every metric of every trial, (B,) float64 each; success is 0 or 1, NaN marks undefined.

    Success by the protocol, t = 0 included, or `reached` at any step.
    """
    names = ("positions", "goal", "layout", "oracle")
    e = episodes._replace(**{name: getattr(episodes, name).astype(float) for name in names})
    error = ((e.positions - e.goal[:, None]) ** 2).sum(-1) / 2  # (B, S+1)
    distance = np.sqrt(2 * error)
    strict, loose = near_goal(e), distance < LOOSE_PX  # (B, S+1)
    hits, success = solved(near_goal(e, protocol), protocol)
    own = e.reached is not None
    if own:  # rows of `layout` mean something else there
        e = e._replace(layout=np.zeros_like(e.layout))
    side = np.sign(e.positions[..., 0] - e.layout[:, :1])  # (B, S+1)
    crossed = side != side[:, :1]
    crossing = np.where(crossed.any(1), crossed.argmax(1), np.nan)
    straight = np.linalg.norm(e.positions[:, 0] - e.layout, axis=-1) / TRAINING_STEP_PX
    steps = np.linalg.norm(np.diff(e.positions, axis=1), axis=-1)  # (B, S)
    travelled = np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1)  # (B, S+1)
    way = np.maximum(e.oracle, _at(travelled, _first(hits)))
    columns = {
        "success": success,
        "success_first_1p41": strict.any(1),
        "success_last_1p41": strict[:, -1],
        "success_hold_1p41": solved(strict, "p3")[1],
        "success_first_4p5": loose.any(1),
        "success_last_4p5": loose[:, -1],
        # 1: on the goal's side after step S; NaN: start and goal share a side
        "cross_wall": _on_goal_side(e, e.positions[:, -1]),
        "planning_error": _at(error, _first(strict)),  # at tau or S
        "final_distance": distance[:, -1],
        "termination_step": _first(strict),  # tau
        "first_crossing_step": crossing,
        # straight steps to the door over the crossing step, 0 without one; NaN in another world
        "efficiency": np.nan_to_num(straight / crossing, nan=math.nan if own else 0.0),
        # oracle / way up to the hit, 1 where the goal is the start
        "path_efficiency": success * np.divide(e.oracle, way, out=np.ones_like(way), where=way > 0),
        "lost": e.lost,
        "invalid_route": np.full(len(e.goal), np.nan) if e.invalid is None else e.invalid,
    }
    columns |= {} if e.teleported is None else {"teleported": e.teleported}
    columns |= _planned(e)
    return {name: column.astype(np.float64) for name, column in columns.items()}


def near_goal(e: Episodes, protocol: str = "p1") -> np.ndarray:
    """(B, S+1) bool, which steps are near the goal: by the world's own rule, in Two Rooms within
    sqrt(2) px, with P2 within `LOOSE_PX`."""
    if e.reached is not None:
        return e.reached
    error = ((e.positions - e.goal[:, None]) ** 2).sum(-1) / 2
    return np.sqrt(2 * error) < LOOSE_PX if protocol.startswith("p2") else error < 1


def solved(near: np.ndarray, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps that begin a success (B, S+1), success (B,)), bool, of steps near the goal (B, S+1).

    P2 asks for the last step, P3 for `HOLD` steps in a row, all others for any step.
    """
    if protocol.startswith("p2"):
        return near, near[:, -1]
    rest = HOLD - 1 if protocol.startswith("p3") else 0
    after = np.pad(near, ((0, 0), (0, rest)))
    held = np.lib.stride_tricks.sliding_window_view(after, rest + 1, axis=1).all(-1)
    return held, held.any(1)


def summarise(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The metric fields of a row from the columns of `per_trial`; NaN where undefined.

    `ci95` is the Wilson interval [low, high] of `success_rate`; rates are shares, lengths px, steps
    the environment's. `invalid_routes` and `teleported` count episodes, where the world knows them.
    """
    n, successes = len(columns["success"]), int(columns["success"].sum())
    found = {"n": n, "successes": successes, "success_rate": successes / n}
    found["ci95"] = list(wilson(successes, n))
    for name, column in MEANS.items():
        defined = columns[column][~np.isnan(columns[column])]
        found[name] = float(defined.mean()) if len(defined) else math.nan
    rmse = math.sqrt(found["planning_error_mean"])
    if not math.isnan(found["invalid_route_rate"]):
        found["invalid_routes"] = int(columns["invalid_route"].sum())
    if "teleported" in columns:
        found["teleported"] = int(columns["teleported"].sum())
        found["teleported_failures"] = int((columns["teleported"] * (1 - columns["success"])).sum())
    return found | {"planning_error_mean_rmse": rmse, "lost_trials": int(columns["lost"].sum())}


def _planned(e: Episodes) -> dict[str, np.ndarray]:
    """Columns of the first plan that looks farthest, and of all calls; NaN without any plan."""
    names = ("cross_wall", "reach", "through_wall")
    found = dict.fromkeys(
        (*(f"init_plan_{name}" for name in names), "effective_samples", "effective_samples_macro"),
        np.full(len(e.goal), np.nan),
    )
    for name in ("", "_macro"):  # 1 / sum of squared weights of level 1 and 2, mean over calls
        if f"effective{name}" in e.seen:
            found[f"effective_samples{name}"] = e.seen[f"effective{name}"].mean(1)
    levels = [name for name in ("macro3", "macro", "plan") if f"{name}_xy" in e.seen]
    if not levels:
        return found
    plan = e.seen[f"{levels[0]}_xy"][:, 0]  # (B, P, 2) px
    stride, wall_x = int(e.seen.get(f"{levels[0]}_stride", 1)), e.layout[:, :1]
    found["init_plan_cross_wall"] = _on_goal_side(e, plan[:, -1])  # its last place
    found["init_plan_reach"] = np.full(len(plan), plan.shape[1] * stride)
    if (wall_x > 0).all():  # 1: a step changes rooms by a way that is longer than the step (Q7)
        places = np.concatenate([e.positions[:, :1], plan], axis=1)
        changes = np.diff(np.sign(places[..., 0] - wall_x), axis=1) != 0  # (B, P)
        layout = Layout.of(e.layout.repeat(plan.shape[1], axis=0))
        ends = (torch.as_tensor(part.reshape(-1, 2)).float() for part in (places[:, :-1], plan))
        way = oracle_length(*ends, layout).numpy().reshape(changes.shape)
        through = (changes & (way > stride * e.cap + SLACK_PX)).any(1)
        found["init_plan_through_wall"] = np.where(np.isnan(plan).any((1, 2)), np.nan, through)
    return found


def _first(hits: np.ndarray) -> np.ndarray:
    """(B,) index of the first True along the steps, S + 1 where there is none."""
    return np.where(hits.any(1), hits.argmax(1), hits.shape[1])


def _at(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(B,) of values (B, S+1) at step (B,), the last one beyond the end."""
    return values[np.arange(len(values)), np.minimum(step, values.shape[1] - 1)]


def _on_goal_side(e: Episodes, position: np.ndarray) -> np.ndarray:
    """(B,) whether `position` (B, 2) has the goal's side; NaN where it says nothing."""
    gaps = np.stack([e.positions[:, 0], e.goal, position])[..., 0] - e.layout[:, 0]
    start, goal, here = np.sign(gaps) * (np.abs(gaps) > WALL_HALF)  # (B,) each, 0 in the wall
    return np.where((start * goal == -1) & ~np.isnan(here), here == goal, np.nan)
