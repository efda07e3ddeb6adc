"""Where prediction breaks: error curves and successes by horizon, and the horizon of a collapse."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from hjepa_lib.config import Config, PlanningConfig
from hjepa_lib.evaluation.statistics import Interval
from hjepa_lib.worlds.layout import DOOR_HALF

HALF_DOOR = DOOR_HALF  # px: a plan with a larger error misses the door it aims at
RESAMPLES = 500


class Curve(NamedTuple):
    """Open-loop errors by horizon."""

    steps: np.ndarray  # (h,) environment steps
    errors: np.ndarray  # (n, h) px, or what the axis says


def trained_lengths(config: Config) -> dict[str, int]:
    """Longest roll-out in the training of each level, in environment steps (HW4)."""
    level1, level2 = config.level1, config.level2
    macro = level2.macro_steps * level2.step_skip
    alone = level1.rollout or level1.window - 1
    if level2.disable_l2:
        return {"level 1": alone}
    return {"level 1": macro if level2.train == "joint" else alone, "level 2": macro}


# --- curves
def band(curve: Curve) -> tuple[np.ndarray, ...]:
    """Steps, median error, its 95 % bootstrap interval over windows (low, high), (h,) each."""
    return curve.steps, *_spread(lambda rows: np.median(rows, 0), curve.errors)


def collapse_horizon(curve: Curve, threshold: float | np.ndarray) -> Interval:
    """First horizon at which the median error exceeds the threshold, with a 95 % interval.

    `threshold` is a number or a baseline's errors (n, h) on the same windows. A curve that starts
    above is searched from where it first falls below, if ever. Infinity: beyond the measured ones.
    """
    limits = np.broadcast_to(threshold, curve.errors.shape)

    def first(rows: np.ndarray) -> float:
        errors, limit = np.median(rows, 0)
        over = errors > limit
        if over.all():
            return float(curve.steps[0])
        start = int((~over).argmax())
        return float(curve.steps[start + over[start:].argmax()]) if over[start:].any() else math.inf

    return Interval(*_spread(first, np.stack([curve.errors, limits], 1)))


def _spread(statistic: Callable[[np.ndarray], Any], rows: np.ndarray) -> tuple:
    """A statistic of rows (n, ...), and its 2.5 % and 97.5 % quantiles, maybe infinite."""
    drawn = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    draws = np.sort([statistic(rows[row]) for row in drawn], 0)
    return statistic(rows), draws[int(0.025 * RESAMPLES)], draws[int(0.975 * RESAMPLES)]


def horizon_text(found: Interval, longest: int) -> str:
    """ "48 (40 to 56)"; beyond the measured horizons "> 192"; "undefined" for NaN."""
    if math.isnan(found.estimate):
        return "undefined"
    texts = [f"> {longest}" if math.isinf(value) else f"{value:.0f}" for value in found]
    return "{} ({} to {})".format(*texts)


# --- planners
def with_horizon(
    planning: PlanningConfig, method: str, steps: int, stride: int = 1, equal: str = "samples"
) -> PlanningConfig:
    """The same planner looking `steps` environment steps ahead, `stride` of them per planned step.

    `l1+l2` with its upper level. `equal`: "samples" are kept, or "transitions": samples x horizon.
    """
    level = planning.flat if method == "flat" else planning.hierarchy.level2
    horizon = max(1, round(steps / stride))
    share = 1.0 if equal == "samples" else level.horizon / horizon
    level = replace(level, horizon=horizon, samples=max(2, round(level.samples * share)))
    if method == "flat":
        return replace(planning, flat=level, replan=min(planning.replan, horizon))
    return replace(planning, hierarchy=replace(planning.hierarchy, level2=level))


def planning_horizon(success: Mapping[int, np.ndarray]) -> Interval:
    """Largest horizon whose success is not significantly below the best one's, with its interval.

    `success`: horizon -> 0/1 outcomes (n,) of the same trials; significant: exact McNemar p < 0.05.
    NaN where nothing ever succeeds.
    """
    horizons = np.array(sorted(success))
    table = np.stack([success[horizon] for horizon in horizons], 1).astype(float)  # (n, horizons)
    if not table.any():
        return Interval(math.nan, math.nan, math.nan)

    def largest(rows: np.ndarray) -> float:
        best = rows[:, [rows.mean(0).argmax()]]
        lost, won = (best > rows).sum(0), (best < rows).sum(0)
        p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(lost, won), lost + won, 0.5))
        return float(horizons[p >= 0.05].max())

    return Interval(*_spread(largest, table))
