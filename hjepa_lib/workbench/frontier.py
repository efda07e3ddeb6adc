"""Success against compute from the rows of a study (study.py), pooled over training seeds.

Rates are means over seeds; their intervals come from the crossed bootstrap over seeds and trials
(statistics.py). Compute is any column with a planner's price: `flops_per_step`,
`model_transitions_per_step` or `seconds_per_step`. Rows are checked first (rows.py): other trials,
another n or a missing seed end with one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from hjepa_lib.evaluation.failures import LABELS
from hjepa_lib.evaluation.statistics import (
    Interval,
    McNemar,
    bootstrap,
    bootstrap_difference,
    iqm,
    mcnemar,
)
from hjepa_lib.workbench.rows import POINT, RowsError, check_rows, outcomes

PRICES = ("flops_per_step", "model_transitions_per_step", "seconds_per_step")
_RESAMPLES = 1000


class Reach(NamedTuple):
    """Compute that reaches a level; `exact` is False where even the smallest budget does."""

    x: float
    exact: bool


class Ratio(NamedTuple):
    """Compute of flat over that of the hierarchy, at a share of the hierarchy's best success.

    `bound` is "" for a measured ratio, "lower" where it is at least this (flat never gets there, or
    the hierarchy needs even less than its smallest budget), "upper" where it is at most this (flat
    needs even less than its smallest), "open" where both ends of the comparison are unknown.
    """

    value: float
    bound: str
    level: float  # success that both must reach


class Ratios(NamedTuple):
    """`Ratio` per training seed and of the mean over seeds, with the 95 % interval of the latter.

    Where flat never gets there in a resample, that resample counts with its lower bound.
    """

    per_seed: dict[int, Ratio]
    pooled: Ratio
    low: float
    high: float


# --- frontiers --------------------------------------------------------------------------------
def frontier(
    rows: pd.DataFrame, x: str = "flops_per_step", keep: tuple[str, ...] = ()
) -> pd.DataFrame:
    """One line per point: method, cost, price, rate with 95 % interval, iqm, seeds, n, `keep`.

    `rate` is the mean over seeds. `iqm` is the interquartile mean of the seeds' rates, the plain
    mean for fewer than four seeds. Sorted by method, cost and price.
    """
    lines = []
    for key, group in rows.groupby(list(POINT), sort=False):
        solved = outcomes(group)
        spread = bootstrap(solved, redraw="both" if len(solved) > 1 else "trials")
        first = group.iloc[0]
        lines.append(
            dict(zip(POINT, key, strict=True))
            | {name: first[name] for name in ("group", "recipe", "method", "cost", *keep)}
            | {"x": group[x].mean(), "rate": spread.estimate, "low": spread.low}
            | {"high": spread.high, "iqm": iqm(solved.mean(1)), "seeds": len(solved)}
            | {"n": int(first["n"]), "path_efficiency": group["path_efficiency"].mean()}
        )
    return pd.DataFrame(lines).sort_values(["method", "cost", "x"], ignore_index=True)


def compute_to_reach(rows: pd.DataFrame, level: float, x: str = "flops_per_step") -> Reach | None:
    """Smallest compute that reaches `level`, None when none does; rows of one seed, any order."""
    return _reach(*_sorted(rows[x].to_numpy(float), rows["success_rate"].to_numpy(float)), level)


def _sorted(x: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x, kind="stable")
    return x[order], rate[order]


def _reach(x: np.ndarray, rate: np.ndarray, level: float) -> Reach | None:
    """x ascending. Linear in log x along the monotone envelope (the best so far)."""
    best = np.maximum.accumulate(rate)
    above = np.flatnonzero(best >= level - 1e-12)
    if not len(above):
        return None
    at = above[0]
    if at == 0:
        return Reach(float(x[0]), exact=bool(np.isclose(best[0], level)))
    share = (level - best[at - 1]) / (best[at] - best[at - 1])
    return Reach(float(np.exp(np.log(x[at - 1]) + share * np.log(x[at] / x[at - 1]))), True)


def compute_ratio(
    flat_rows: pd.DataFrame,
    hier_rows: pd.DataFrame,
    share: float = 0.8,
    x: str = "flops_per_step",
    resamples: int = _RESAMPLES,
) -> Ratios:
    """Compute of flat over that of the hierarchy where both reach share * the latter's best.

    Both sets are checked and must be on the same trials and seeds. Where flat never gets there, its
    largest budget gives a lower bound.
    """
    both = check_rows(pd.concat([flat_rows, hier_rows]))
    seeds = sorted(both["seed"].unique())
    curves = [_curve(rows, x) for rows in (flat_rows, hier_rows)]
    per_seed = {
        int(seed): _ratio(*((price[i], solved[:, i].mean(-1)) for price, solved in curves), share)
        for i, seed in enumerate(seeds)
    }

    def pooled(pick: Callable[[np.ndarray], np.ndarray]) -> Ratio:
        return _ratio(
            *((price.mean(0), pick(solved).mean((1, 2))) for price, solved in curves), share
        )

    draw = np.random.default_rng(0).integers
    count, trials = curves[0][1].shape[1:]
    draws = []
    for _ in range(resamples):
        rows = draw(count, size=(count, 1)) if count > 1 else np.zeros((1, 1), int)
        columns = draw(trials, size=(1, trials))
        draws.append(pooled(lambda solved, r=rows, c=columns: solved[:, r, c]).value)
    known = np.array(draws)[~np.isnan(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Ratios(per_seed, pooled(lambda solved: solved), float(low), float(high))


def _curve(rows: pd.DataFrame, x: str) -> tuple[np.ndarray, np.ndarray]:
    """(prices (S, P), outcomes (P, S, n)) of the P points of one planner."""
    groups = [group.sort_values("seed") for _, group in rows.groupby(list(POINT), sort=False)]
    price = np.stack([group[x].to_numpy(float) for group in groups], axis=1)
    return price, np.stack([outcomes(group) for group in groups])


def _ratio(
    flat: tuple[np.ndarray, np.ndarray], hier: tuple[np.ndarray, np.ndarray], share: float
) -> Ratio:
    """(x, rate) of each; NaN where the hierarchy solves nothing."""
    level = share * float(hier[1].max())
    if level <= 0:
        return Ratio(np.nan, "open", level)
    there, here = _reach(*_sorted(*hier), level), _reach(*_sorted(*flat), level)
    low = not there.exact or here is None
    high = here is not None and not here.exact
    bound = {(0, 0): "", (1, 0): "lower", (0, 1): "upper", (1, 1): "open"}[low, high]
    spent = float(flat[0].max()) if here is None else here.x
    return Ratio(spent / there.x, bound, level)


def failure_shares(rows: pd.DataFrame, names: str) -> pd.DataFrame:
    """How trials ended, mean over seeds: a row per value of column `names`, a column per end."""
    columns = [f"failure.{name}" for name in LABELS]
    shares = rows[columns].div(rows["n"], axis=0).groupby(rows[names], sort=False).mean()
    return shares.set_axis(list(LABELS.values()), axis=1)


# --- pairs ------------------------------------------------------------------------------------
class Pair(NamedTuple):
    """Two planners on the same trials: difference of success (first - second) and its test."""

    seed: str  # a training seed, or "all"
    first: float
    second: float
    difference: Interval
    test: McNemar


def paired(first: pd.DataFrame, second: pd.DataFrame) -> list[Pair]:
    """One `Pair` per seed and one over all; each argument is one point with its seeds.

    The interval over all redraws seeds and trials. The exact McNemar test over all counts every
    seed's trials as its own; a claim that must hold for new trainings has to hold on every seed.
    RowsError unless both are one point each on the same trials and seeds.
    """
    for rows in (first, second):
        if rows.groupby(list(POINT)).ngroups != 1:
            raise RowsError("a pair compares two points, one budget and one grid value each")
    check_rows(pd.concat([first.assign(cell="first"), second.assign(cell="second")]))
    one, two = outcomes(first), outcomes(second)
    found = []
    for i, seed in enumerate(sorted(first["seed"])):
        gap = bootstrap_difference(one[i], two[i], redraw="trials")
        found.append(Pair(str(seed), one[i].mean(), two[i].mean(), gap, mcnemar(one[i], two[i])))
    gap = bootstrap_difference(one, two, redraw="both" if len(one) > 1 else "trials")
    test = mcnemar(one.ravel(), two.ravel())
    return [*found, Pair("all", one.mean(), two.mean(), gap, test)]


def pair_table(pairs: dict[str, list[Pair]]) -> pd.DataFrame:
    """Pairs by name as a table: rates, difference with interval, only-solved counts, p."""
    lines = [
        {"pair": name, "seed": pair.seed, "first": pair.first, "second": pair.second}
        | {f"difference{end}": getattr(pair.difference, key) for end, key in _ENDS.items()}
        | {"only_first": pair.test.only_first, "only_second": pair.test.only_second}
        | {"mcnemar_p": pair.test.p_value}
        for name, found in pairs.items()
        for pair in found
    ]
    return pd.DataFrame(lines)


_ENDS = {"": "estimate", "_low": "low", "_high": "high"}


def check_parameters(first: int, second: int, tolerance: float = 0.02) -> float:
    """(first - second) / second; RowsError when the two models differ by more than `tolerance`."""
    gap = (first - second) / second
    if abs(gap) > tolerance:
        raise RowsError(
            f"models of {first:,} and {second:,} weights differ by {100 * abs(gap):.1f} %, "
            f"more than {100 * tolerance:g} %"
        )
    return gap
