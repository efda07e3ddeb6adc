"""Planning horizons: planners that look farther, what their plans promise, and where they break.

A planner's collapse horizon is the largest planning horizon whose success is not significantly
below that of its best one. Open-loop error on recorded actions (collapse.py) is not enough to
explain it: a planner searches for actions that the model likes, so its own plans are also executed
open loop and compared with what the model promised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy import stats

from hjepa_lib.config import PlanningConfig, SearchConfig
from hjepa_lib.evaluation.collapse import RESAMPLES, Curve, resampled_ends, resampled_rows
from hjepa_lib.evaluation.openloop import gaps
from hjepa_lib.evaluation.statistics import Interval, StatisticsError
from hjepa_lib.planning.agent import Agent
from hjepa_lib.worlds.trials import Trials


@torch.no_grad()
def plan_errors(
    agent: Agent, planning: PlanningConfig, tasks: Trials, dynamics: str = "blocked"
) -> Curve:
    """Error in px of the first flat plan of every trial, executed open loop: (n, planned steps).

    `dynamics` defaults to the rule of the data, so that the error is the model's and not that of
    another world.
    """
    world = tasks.begin(dynamics, seed=0)
    latent, goal = (agent.encode(world.render(place)) for place in (tasks.start, tasks.goal))
    planner = agent.planner("flat", planning)
    planner.reset(tasks.numbers)
    with agent.autocast():
        actions = planner.plan(latent, goal, executed=0).actions  # (B, H, 2)
        promised = planner.level1.imagine(latent, actions)  # (B, H, D)
    truth = torch.stack([world.step(action) for action in actions.float().cpu().unbind(1)], 1)
    return Curve(np.arange(1, actions.shape[1] + 1), gaps(agent.probe, promised.float(), truth).T)


def with_horizon(
    planning: PlanningConfig, method: str, steps: int, stride: int = 1, equal: str = "samples"
) -> PlanningConfig:
    """The same planner looking `steps` environment steps ahead, `stride` of them per planned step.

    `flat` changes its own level, `l1+l2` its upper one. `equal="samples"` keeps the samples, so a
    longer horizon costs more; `"transitions"` keeps samples x horizon. ValueError otherwise.
    """
    if equal not in ("samples", "transitions"):
        raise ValueError(f"equal must be samples or transitions, got {equal!r}")

    def stretched(level: SearchConfig) -> SearchConfig:
        horizon = max(1, round(steps / stride))
        share = 1.0 if equal == "samples" else level.horizon / horizon
        samples = max(2, round(level.samples * share))
        return dataclasses.replace(level, horizon=horizon, samples=samples)

    if method == "flat":
        return dataclasses.replace(planning, flat=stretched(planning.flat))
    hierarchy = dataclasses.replace(planning.hierarchy, level2=stretched(planning.hierarchy.level2))
    return dataclasses.replace(planning, hierarchy=hierarchy)


def planning_horizon(
    success: Mapping[int, np.ndarray],
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Largest horizon whose success is not significantly below the best one's, with its interval.

    `success` maps a horizon to 0/1 outcomes (n,) of the same trials; significant is an exact
    two-sided McNemar test against the best horizon with p < alpha. The interval redraws trials
    (95 %). NaN where nothing succeeds at any horizon: then there is no collapse to speak of.
    """
    horizons = sorted(success)
    if not horizons:
        raise StatisticsError("success needs at least one horizon")
    columns = [np.asarray(success[horizon], dtype=np.float64) for horizon in horizons]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1 or not columns[0].size:
        raise StatisticsError("every horizon needs outcomes (n,) of the same trials")
    table = np.stack(columns)  # (horizons, n)
    if not np.isin(table, (0, 1)).all():
        raise StatisticsError("outcomes must be 0 or 1")
    if not table.any():
        return Interval(math.nan, math.nan, math.nan)

    def largest(table: np.ndarray) -> float:
        best = table[table.mean(1).argmax()]
        lost, won = (best > table).sum(1), (best < table).sum(1)
        p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(lost, won), lost + won, 0.5))
        return float(np.array(horizons)[p >= alpha].max())

    rows = resampled_rows(table.shape[1], resamples, seed)
    draws = np.sort([largest(table[:, row]) for row in rows])
    low, high = resampled_ends(resamples)
    return Interval(largest(table), float(draws[low]), float(draws[high]))
