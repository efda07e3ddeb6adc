"""Where prediction breaks: from error curves and successes by horizon to the horizon of a collapse.

A curve is the median over windows with a bootstrap over windows; its collapse horizon is the first
one at which the median exceeds a threshold. A planner's is the largest planning horizon whose
success is not significantly below that of its best one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from hjepa_lib.config import Config, PlanningConfig, SearchConfig
from hjepa_lib.evaluation.statistics import Interval, StatisticsError
from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds.layout import DOOR_HALF

HALF_DOOR = DOOR_HALF
"""Half the door's width, px: a plan with a larger error misses the door it aims at."""
RESAMPLES = 500


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


def trained_lengths(config: Config) -> dict[str, int]:
    """Longest roll-out in the training of each level, in environment steps (HW4)."""
    level1, level2 = config.level1, config.level2
    macro = level2.macro_steps * level2.step_skip
    if level2.train == "joint" and not level2.disable_l2:
        return {"level 1": macro, "level 2": macro}
    lengths = {"level 1": level1.rollout or level1.window - 1}
    return lengths if level2.disable_l2 else lengths | {"level 2": macro}


# --- curves -----------------------------------------------------------------------------------
def band(curve: Curve, resamples: int = RESAMPLES, seed: int = 0) -> Band:
    """Median error by horizon with a 95 % percentile bootstrap over windows."""
    errors = _errors(curve)
    low, high = _spread(lambda rows: np.median(errors[rows], 0), len(errors), resamples, seed)
    return Band(curve.steps, np.median(errors, 0), low, high)


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

    return Interval(first(slice(None)), *map(float, _spread(first, len(errors), resamples, seed)))


def _errors(curve: Curve) -> np.ndarray:
    errors = np.asarray(curve.errors, dtype=np.float64)
    if errors.ndim != 2 or errors.size == 0 or errors.shape[1] != len(curve.steps):
        raise StatisticsError(
            f"errors must be (windows, {len(curve.steps)}) and not empty, got {errors.shape}"
        )
    if not np.isfinite(errors).all():
        raise StatisticsError("errors hold values that are not finite")
    return errors


def _spread(
    statistic: Callable[[np.ndarray], Any], n: int, resamples: int, seed: int
) -> tuple[Any, Any]:
    """2.5 % and 97.5 % quantiles of a statistic of n redrawn rows; some draws may be infinite."""
    rows = np.random.default_rng(seed).integers(n, size=(resamples, n))
    draws = np.sort([statistic(row) for row in rows], 0)
    return draws[int(0.025 * resamples)], draws[min(resamples - 1, int(0.975 * resamples))]


def horizon_text(found: Interval, longest: int) -> str:
    """ "48 (40 to 56)"; beyond the measured horizons "> 192"; "undefined" for NaN."""
    if math.isnan(found.estimate):
        return "undefined"

    def text(value: float) -> str:
        return f"> {longest}" if math.isinf(value) else f"{value:.0f}"

    return f"{text(found.estimate)} ({text(found.low)} to {text(found.high)})"


# --- planners ---------------------------------------------------------------------------------
def with_horizon(
    planning: PlanningConfig, method: str, steps: int, stride: int = 1, equal: str = "samples"
) -> PlanningConfig:
    """The same planner looking `steps` environment steps ahead, `stride` of them per planned step.

    `flat` changes its own level, `l1+l2` its upper one. `equal="samples"` keeps the samples, so a
    longer horizon costs more; `"transitions"` keeps samples x horizon.
    """
    if equal not in ("samples", "transitions"):
        raise WorkbookError(f"equal must be samples or transitions, got {equal!r}")

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

    def largest(rows: np.ndarray | slice) -> float:
        drawn = table[:, rows]
        best = drawn[drawn.mean(1).argmax()]
        lost, won = (best > drawn).sum(1), (best < drawn).sum(1)
        p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(lost, won), lost + won, 0.5))
        return float(np.array(horizons)[p >= alpha].max())

    spread = _spread(largest, table.shape[1], resamples, seed)
    return Interval(largest(slice(None)), *map(float, spread))
