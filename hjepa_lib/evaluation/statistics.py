"""Uncertainty of success rates and of scores over seeds x trials.

The percentile bootstrap follows rliable (Agarwal et al., NeurIPS 2021) for one task with S training
seeds and n shared trials; SciPy's cannot redraw two crossed factors.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

LEAST_SEEDS, LEAST_BLOCKS = 3, 8  # of training and of held-out data: below, nothing is claimed
EQUAL_COMPUTE = 1.15  # largest ratio of two planners' FLOPs per step that is called equal
LEAST_NONZERO = 50  # rewards other than 0 that both parts need before R2 is estimated
NOT_ESTIMABLE = "not estimable"
Statistic = Callable[[np.ndarray], float]


class Interval(NamedTuple):
    """An estimate with its percentile interval."""

    estimate: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Two methods on the same trials: who solved what alone, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of successes / n; NaN for n = 0."""
    if n == 0:
        return math.nan, math.nan
    ends = stats.binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Exact McNemar test of two 0/1 outcomes (n,) of the same trials; p = 1 where all agree."""
    one, two = np.asarray(first) > 0, np.asarray(second) > 0
    won, lost = int((one & ~two).sum()), int((two & ~one).sum())
    return McNemar(won, lost, float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0)


def bootstrap(
    scores: np.ndarray, statistic: Statistic = np.mean, resamples: int = 2000
) -> Interval:
    """95 % percentile bootstrap of `statistic` over scores (S seeds, n trials) or (n,).

    Seeds and trials are redrawn, crossed; one seed says nothing about others.
    """
    table = np.atleast_2d(scores).astype(float)
    return interval(lambda cell: statistic(table[cell]), table.shape, resamples)


def success_rate(solved: np.ndarray) -> Interval:
    """Rate of 0/1 outcomes (S seeds, n trials) in [0, 1] with its 95 % interval.

    Seeds play the same trials: the outer ends of `bootstrap` and of Wilson's for n trials, however
    many seeds there are; one seed has Wilson's alone.
    """
    seeds, n = np.atleast_2d(solved).shape
    mean = np.count_nonzero(solved) / seeds
    low, high = wilson(math.floor(mean), n)[0], wilson(math.ceil(mean), n)[1]
    if seeds > 1:
        found = bootstrap(solved)
        low, high = min(low, found.low), max(high, found.high)
    return Interval(mean / n, low, high)


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, statistic: Statistic = np.mean, resamples: int = 2000
) -> Interval:
    """`bootstrap` of statistic(first) - statistic(second), paired: the same redrawn cells.

    Too sure of few seeds; of several it has the outer ends of itself and of `student` over theirs.
    """
    one, two = (np.atleast_2d(scores).astype(float) for scores in (first, second))

    def gap(cell: Any) -> float:
        return statistic(one[cell]) - statistic(two[cell])

    found = interval(gap, one.shape, resamples)
    if len(one) == 1:
        return found
    low, high = student(np.array([gap([seed]) for seed in range(len(one))]))
    return Interval(found.estimate, min(low, found.low), max(high, found.high))


def interval(statistic: Callable[[Any], float], shape: tuple[int, int], resamples: int) -> Interval:
    """Of a statistic of index pairs (rows, columns) that broadcast to (S, n); NaN is left out."""
    (seeds, trials), draw = shape, np.random.default_rng(0).integers
    draws = [
        statistic((draw(seeds, size=(seeds, 1)), draw(trials, size=(1, trials))))
        for _ in range(resamples)
    ]
    known = [one for one in draws if not math.isnan(one)] or [math.nan]
    tail = (1 - 0.95) / 2
    return Interval(*map(float, (statistic((...,)), *np.quantile(known, [tail, 1 - tail]))))


def student(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (S,) values, S of at least 2."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def seeds_for(gain: float, deviation: float, seen: int) -> int:
    """Fewest seeds, at most a million, whose `student` interval is above 0 in four of five times.

    For a true mean `gain` above 0 and the deviation of `seen` seeds, 2 or more, at its upper 80 %
    confidence limit: few say little of their own spread.
    """
    limit = deviation * math.sqrt((seen - 1) / stats.chi2.ppf(0.2, seen - 1))
    ratio = gain / max(limit, gain / 30)

    def shown(count: int) -> float:
        return stats.nct.sf(stats.t.ppf(0.975, count - 1), count - 1, ratio * math.sqrt(count))

    return 2 + bisect_left(range(2, 1_000_000), 0.8, key=shown)


def claim(
    one: np.ndarray, two: np.ndarray, least_blocks: int = LEAST_BLOCKS, resamples: int = 2000,
    power: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """What errors (S seeds, K blocks) say against another's: difference, low, high and verdict.

    The ratio of the mean errors to this `power`, over seeds the geometric mean, less 1: below 0 the
    first is better, and nothing is below -1 (X16). The 95 % interval is of the logarithm, and of
    `bootstrap_difference`.
    """
    one, two = np.asarray(one, float), np.asarray(two, float)
    seeds, blocks = one.shape
    found = {"seeds": seeds, "blocks": blocks, "difference": None, "low": None, "high": None}
    if not two.mean(1).min() > 0:  # the other is perfect (copies of frames that stay) or NaN
        return found | {"verdict": NOT_ESTIMABLE}

    def level(errors: np.ndarray) -> Any:
        return power * np.log(np.maximum(errors.mean(-1), 1e-30)).mean(-1)

    gap, low, high = map(math.expm1, bootstrap_difference(one, two, level, resamples))
    verdict = "beats" if high < 0 else "loses to" if low > 0 else "no difference shown"
    if blocks < least_blocks:
        verdict = f"nothing claimed: {blocks} of {least_blocks} validation blocks"
    if seeds < LEAST_SEEDS:
        verdict = f"nothing claimed: {seeds} of {LEAST_SEEDS} seeds"
    return found | {"difference": gap, "low": low, "high": high, "verdict": verdict}


def sentence(
    who: str, against: str, found: Mapping[str, Any], what: str = "error", blocks: bool = True
) -> str:
    """A `claim` as text: "jepa beats random: error -4.0 % (-5.0 to -3.0; seeds: 3, blocks: 9)"."""
    verdict = found["verdict"]
    told = f"{who} against {against}, {verdict}"
    if verdict in ("beats", "loses to"):
        told = f"{who} {verdict} {against}"
    if found["difference"] is not None:
        middle, low, high = (f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high"))
        ends = f"{low} to {high}; " * (found["low"] < found["high"]) + f"seeds: {found['seeds']}"
        ends += f", blocks: {found['blocks']}" * blocks
        told += f": {what} {middle} % ({ends})"
    return told


def over_seeds(values: Sequence[float | str]) -> dict[str, Any]:
    """Mean, low and high of seeds, and their text; a note of one seed is that of all."""
    mean = low = high = None
    text = next((value for value in values if isinstance(value, str)), "")
    if not text:
        numbers = np.array(values, dtype=float)
        mean, text = numbers.mean(), number(numbers.mean())
        if len(numbers) > 1:
            low, high = float(numbers.min()), float(numbers.max())
            text += f" [{number(low)} to {number(high)}]" * (low < high)
        else:
            text += " (1 seed)"
    return {"mean": mean, "low": low, "high": high, "seeds": len(values), "text": text}


def number(value: float) -> str:
    """Three significant digits, whole numbers with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def unestimable(train: np.ndarray, validation: np.ndarray) -> str:
    """Why R2 is not estimable from rewards (M,) and (n,); "" when it is."""
    for name, reward in (("training", train), ("validation", validation)):
        count = int(np.count_nonzero(reward))
        if count < LEAST_NONZERO:
            return f"{NOT_ESTIMABLE}: {count} non-zero rewards in the {name} part"
    if np.ptp(validation) == 0:
        return f"{NOT_ESTIMABLE}: all rewards of the validation part are equal"
    return ""
