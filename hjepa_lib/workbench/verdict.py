"""What the committed study says about hierarchy: sentences for README and notebook 07."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from hjepa_lib.evaluation.statistics import Interval, McNemar, bootstrap_difference, mcnemar
from hjepa_lib.files import WorkbookError
from hjepa_lib.workbench.rows import (
    POINT,
    Ratios,
    check_rows,
    compute_ratio,
    outcomes,
    split_finished,
)

HIERARCHY, FLAT = "bar_l1l2_latent", "bar_flat_latent"
"""Cells of the pair that is compared at one budget, under the latent cost."""
METHODS, COSTS = {"flat", "l1+l2"}, ("latent", "distance")
SLACK = 1.1
"""A planner counts as one of the budget when it takes at most this times the hierarchy's FLOPs."""


class Choice(NamedTuple):
    """The best point of one method on validation trials within a budget of FLOPs per step."""

    grid: str
    budget: float
    rate: float  # mean over seeds
    flops: float
    tried: int  # points of that method within the budget


def choose(rows: pd.DataFrame, method: str, cost: str, flops: float) -> Choice:
    """The point with the best mean validation success at `flops` per step or less.

    Ties go to the cheaper one. WorkbookError when no point of the method is within the budget, or
    one lacks a seed.
    """
    found = rows[(rows["split"] == "validation") & (rows["group"] == "choose")]
    found = check_rows(found[(found["method"] == method) & (found["cost"] == cost)])
    points = found.groupby(["cell", "grid", "budget"], as_index=False)[
        ["success_rate", "flops_per_step"]
    ].mean()
    within = points[points["flops_per_step"] <= flops]
    if within.empty:
        raise WorkbookError(
            f"no validation point of {method}, {cost} takes {flops:.3g} FLOPs or less"
        )
    best = within.sort_values(["success_rate", "flops_per_step"], ascending=[False, True]).iloc[0]
    return Choice(
        best["grid"], best["budget"], best["success_rate"], best["flops_per_step"], len(within)
    )


def bar_pair(rows: pd.DataFrame) -> list[Pair]:
    """L1+L2 against flat at the fixed budget, per training seed and over all of them."""
    return paired(*(rows[rows["cell"] == cell] for cell in (HIERARCHY, FLAT)))


def ratio(rows: pd.DataFrame, cost: str, share: float = 0.8) -> Ratios:
    """FLOPs of flat over those of L1+L2 at `share` of the hierarchy's best; group `frontier`."""
    found, _ = split_finished(rows[(rows["group"] == "frontier") & (rows["cost"] == cost)])
    flat, two = (found[found["method"] == method] for method in ("flat", "l1+l2"))
    return compute_ratio(flat, two, share)


def sentences(rows: pd.DataFrame) -> list[str]:
    """Markdown sentences on test trials; what the rows do not hold yet is left out."""
    test = rows[rows["split"] == "test"]
    bar, _ = split_finished(test[test["group"] == "bar"])
    found = _pair_sentences(bar) if {HIERARCHY, FLAT} <= set(bar["cell"]) else []
    frontier = test[test["group"] == "frontier"]
    for cost in COSTS:
        part = frontier[frontier["cost"] == cost]
        if set(part["method"]) >= METHODS:
            found += [_best_sentence(split_finished(part)[0], cost), _ratio_sentence(test, cost)]
    p1, _ = split_finished(test[test["group"] == "p1"])
    if set(p1["method"]) >= METHODS:
        found.append(_whole_sentence(p1))
    heldout, seen = (
        split_finished(test[test["group"] == name])[0] for name in ("p2_heldout", "p2_seen")
    )
    if not heldout.empty:
        found.append(_layout_sentence(heldout, seen))
    return found


def _pair_sentences(rows: pd.DataFrame) -> list[str]:
    *seeds, both = bar_pair(rows)
    spent = [rows[rows["cell"] == cell]["flops_per_step"].mean() for cell in (HIERARCHY, FLAT)]
    n = int(rows[rows["cell"] == HIERARCHY]["n"].iloc[0])
    first, second = (
        " / ".join(f"{100 * getattr(one, side):.1f}" for one in seeds)
        for side in ("first", "second")
    )
    gap = both.difference
    return [
        f"Latent cost, {spent[0] / 1e6:.0f} MFLOP per step for L1+L2 and {spent[1] / 1e6:.0f} for "
        f"flat, both tuned on validation trials: {first} % against {second} % (seeds "
        f"{' / '.join(one.seed for one in seeds)}, n = {n} each), "
        f"{_points(gap.estimate)} points ({_points(gap.low)} to {_points(gap.high)}); exact paired "
        f"McNemar p per seed {' / '.join(f'{one.test.p_value:.0e}' for one in seeds)}."
    ]


def _points(difference: float) -> str:
    return f"{100 * difference:+.0f}"


def _best_sentence(rows: pd.DataFrame, cost: str) -> str:
    """The best point of either planner at any budget, seeds pooled by their mean."""
    texts = []
    for method in sorted(METHODS, reverse=True):
        points = rows[rows["method"] == method].groupby(list(POINT), as_index=False)
        means = points[["success_rate", "flops_per_step"]].mean()
        order = means.sort_values(["success_rate", "flops_per_step"], ascending=[False, True])
        best = order.iloc[0]
        price = f"{best['flops_per_step'] / 1e6:.0f} MFLOP per step"
        texts.append(f"{method} {100 * best['success_rate']:.1f} % at {price}")
    low, high = rows["flops_per_step"].min() / 1e6, rows["flops_per_step"].max() / 1e6
    return (
        f"{cost.capitalize()} cost, best of all budgets from {low:.0f} to {high:.0f} MFLOP: "
        f"{', '.join(texts)} (n = {int(rows['n'].iloc[0])} a seed)."
    )


def _whole_sentence(rows: pd.DataFrame) -> str:
    """The planners of group p1 on every trial."""
    texts = []
    for (method, cost), part in rows.groupby(["method", "cost"]):
        texts.append(
            f"{method} ({cost} cost) solves {part['successes'].sum():,} of {part['n'].sum():,} at "
            f"{part['flops_per_step'].mean() / 1e6:.0f} MFLOP per step, path efficiency "
            f"{part['path_efficiency'].mean():.2f}"
        )
    return f"All trials, defaults: {'; '.join(texts)}."


def _layout_sentence(heldout: pd.DataFrame, seen: pd.DataFrame) -> str:
    """Flat planning where walls and doors stand elsewhere in every trial."""
    texts = []
    for rows, where in ((heldout, "layouts of no training"), (seen, "those of the training")):
        if not rows.empty:
            part = check_rows(rows).sort_values("seed")
            rates = " / ".join(f"{100 * rate:.1f}" for rate in part["success_rate"])
            strict = 100 * part["success_first_1p41"].mean()
            texts.append(
                f"{rates} % in {where} (seeds {' / '.join(part['seed'].astype(str))}, n = "
                f"{part['n'].iloc[0]} each; within sqrt(2) px at some step {strict:.1f} %)"
            )
    return f"Random layouts, flat, distance cost, within 4.5 px at the end: {', '.join(texts)}."


def _ratio_sentence(rows: pd.DataFrame, cost: str) -> str:
    found = ratio(rows, cost)
    words = {"": "", "lower": "at least ", "upper": "at most ", "open": "undecided, about "}
    per_seed = " / ".join(f"{words[one.bound]}{one.value:.2g}" for one in found.per_seed.values())
    return (
        f"{cost.capitalize()} cost, FLOPs of flat over those of L1+L2 where both reach 0.8 of the "
        f"hierarchy's best ({100 * found.pooled.level:.0f} %): {words[found.pooled.bound]}"
        f"{found.pooled.value:.2g} (95 % interval {found.low:.2g} to {found.high:.2g}; seeds: "
        f"{per_seed})."
    )


# --- pairs ------------------------------------------------------------------------------------
class Pair(NamedTuple):
    """Two planners on the same trials: difference of success (first - second) and its test."""

    seed: str  # a training seed, or "all"
    first: float
    second: float
    difference: Interval
    test: McNemar


def paired(first: pd.DataFrame, second: pd.DataFrame) -> list[Pair]:
    """One `Pair` per seed and one over all, which redraws seeds and trials; one point each.

    The exact McNemar test over all counts every seed's trials as its own: a claim that must hold
    for new trainings has to hold on every seed.
    """
    for rows in (first, second):
        if rows.groupby(list(POINT)).ngroups != 1:
            raise WorkbookError("a pair compares two points, one budget and one grid value each")
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
