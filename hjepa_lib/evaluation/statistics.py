"""Uncertainty of success rates and of scores over seeds x trials.

Wilson interval and exact McNemar test come from SciPy's binomial test. The interquartile mean and
the percentile bootstrap follow rliable (Agarwal et al., NeurIPS 2021) for one task with S training
seeds and n shared trials, written here because SciPy's bootstrap cannot redraw two crossed factors.
The interquartile mean drops the lowest and highest quarter: of 0/1 outcomes it is 1 as soon as
three quarters succeed, so take the mean for success rates and keep it for px, steps and efficiency.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from hjepa_lib.files import WorkbookError

LEAST_SEEDS, LEAST_BLOCKS = 3, 8
"""Training seeds, and blocks of held-out data, below which nothing is claimed."""
LEAST_NONZERO = 50
"""Rewards other than 0 that both parts need before R2 is estimated."""
NOT_ESTIMABLE = "not estimable"


class StatisticsError(WorkbookError):
    """Counts, outcomes or scores which the statistic is not defined for."""


class Interval(NamedTuple):
    """A point estimate with its percentile interval."""

    estimate: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Two methods on the same trials: who solved what, and the exact two-sided p-value."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) Wilson score interval of successes / n; (NaN, NaN) for n = 0."""
    if not 0 <= successes <= n:
        raise StatisticsError(f"successes must lie in 0..n, got {successes} of {n}")
    if n == 0:
        return math.nan, math.nan
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Exact McNemar test of two 0/1 outcomes (n,) on the same trials in the same order.

    Only trials solved by exactly one method carry evidence; without any the p-value is 1.
    """
    a, b = _scores(first), _scores(second)
    if a.shape != b.shape or a.shape[0] != 1:
        raise StatisticsError(f"outcomes must be two (n,) arrays, got {a.shape} and {b.shape}")
    if not np.isin([a, b], (0, 1)).all():
        raise StatisticsError("outcomes must be 0 or 1")
    only_first, only_second = int((a > b).sum()), int((b > a).sum())
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    both, neither = int((a * b).sum()), int((a + b == 0).sum())
    return McNemar(both, only_first, only_second, neither, p_value)


def mean(scores: np.ndarray) -> float:
    """Mean over seeds and trials."""
    return float(np.mean(scores))


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean over seeds and trials: mean after dropping a quarter at each end."""
    return float(stats.trim_mean(scores, 0.25, axis=None))


def bootstrap(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], float] = mean,
    redraw: str = "both",
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of `statistic` over scores (S seeds, n trials) or (n,).

    `redraw="seeds"` is rliable's: within each trial (stratum) the seeds are redrawn, for a claim
    about new training runs on these trials; it is empty for one seed. `"trials"` redraws the trials
    within each seed, for these trained models on new trials. `"both"` (default, widest) redraws
    seeds and trials as crossed factors. Raises `StatisticsError` for empty or non-finite scores.
    """
    table = _scores(scores)
    cells = _resampled_cells(table.shape, redraw, resamples, seed)
    draws = [statistic(table[cell]) for cell in cells]
    return _interval(statistic(table), draws, confidence)


def bootstrap_difference(
    first: np.ndarray,
    second: np.ndarray,
    statistic: Callable[[np.ndarray], float] = mean,
    redraw: str = "both",
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of statistic(first) - statistic(second), paired: both use the same redrawn cells.

    Scores are (S, n) or (n,), aligned by seed and trial; the other arguments are `bootstrap`'s.
    """
    a, b = _scores(first), _scores(second)
    if a.shape != b.shape:
        raise StatisticsError(f"paired scores must have one shape, got {a.shape} and {b.shape}")
    cells = _resampled_cells(a.shape, redraw, resamples, seed)
    draws = [statistic(a[cell]) - statistic(b[cell]) for cell in cells]
    return _interval(statistic(a) - statistic(b), draws, confidence)


def student(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (S,) values, S of at least 2."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


# --- paired claims about errors ---------------------------------------------------------------
def paired(one: np.ndarray, two: np.ndarray, resamples: int = 2000) -> Interval:
    """Mean of one - two, errors (S seeds, K blocks) on the same blocks, with a cautious interval.

    Its ends are the outer ones of the bootstrap, which with three seeds believes in them too much,
    and of Student's interval over the seeds' means, which knows nothing of blocks.
    """
    gap = bootstrap_difference(one, two, resamples=resamples)
    if len(one) < 2:
        return gap
    low, high = student((np.asarray(one) - np.asarray(two)).mean(1))
    return Interval(gap.estimate, min(low, gap.low), max(high, gap.high))


def claim(
    one: np.ndarray, two: np.ndarray, least_blocks: int = LEAST_BLOCKS, resamples: int = 2000
) -> dict[str, Any]:
    """What errors (S, K) say against another's: difference, low, high, seeds, blocks, verdict.

    The difference is in units of the other's mean error in that seed; below 0 the first is better.
    """
    one, two = np.asarray(one, float), np.asarray(two, float)
    seeds, blocks = one.shape
    found = {"seeds": seeds, "blocks": blocks, "difference": None, "low": None, "high": None}
    units = two.mean(1, keepdims=True)
    if units.min() <= 0:  # the other is perfect, as a copy of frames that never change
        return found | {"verdict": NOT_ESTIMABLE}
    gap = paired(one / units, two / units, resamples)
    found |= {"difference": gap.estimate, "low": gap.low, "high": gap.high}
    for count, least, what in (
        (seeds, LEAST_SEEDS, "seeds"),
        (blocks, least_blocks, "validation blocks"),
    ):
        if count < least:
            return found | {"verdict": f"nothing claimed: {count} of {least} {what}"}
    verdict = "beats" if gap.high < 0 else "loses to" if gap.low > 0 else "no difference shown"
    return found | {"verdict": verdict}


def unestimable(train: np.ndarray, validation: np.ndarray) -> str:
    """Why R2 is not estimable from rewards (M,) and (n,); "" when it is."""
    for name, reward in (("training", train), ("validation", validation)):
        count = int(np.count_nonzero(reward))
        if count < LEAST_NONZERO:
            return f"{NOT_ESTIMABLE}: {count} non-zero rewards in the {name} part"
    if np.ptp(validation) == 0:
        return f"{NOT_ESTIMABLE}: all rewards of the validation part are equal"
    return ""


def _scores(values: np.ndarray) -> np.ndarray:
    """(S, n) float64 with one seed added to a vector; finite and not empty."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise StatisticsError(f"scores must be (seeds, trials), not empty; got {table.shape}")
    if not np.isfinite(table).all():
        raise StatisticsError("scores hold values that are not finite")
    return table


def _resampled_cells(shape: tuple[int, int], redraw: str, resamples: int, seed: int):
    """Yield `resamples` index pairs (rows, columns) that broadcast to (S, n)."""
    if redraw not in ("seeds", "trials", "both"):
        raise StatisticsError(f"redraw must be seeds, trials or both, got {redraw!r}")
    seeds, trials = shape
    draw = np.random.default_rng(seed).integers
    for _ in range(resamples):
        if redraw == "seeds":
            yield draw(seeds, size=(seeds, trials)), np.arange(trials)[None]
        elif redraw == "trials":
            yield np.arange(seeds)[:, None], draw(trials, size=(seeds, trials))
        else:
            yield draw(seeds, size=(seeds, 1)), draw(trials, size=(1, trials))


def _interval(estimate: float, draws: list[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high))
