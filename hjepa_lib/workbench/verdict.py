"""What committed rows say about hierarchy: sentences for README, notebooks 07 and 09."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from hjepa_lib.evaluation.statistics import (
    EQUAL_COMPUTE,
    LEAST_SEEDS,
    bootstrap_difference,
    mcnemar,
)
from hjepa_lib.files import WorkbookError
from hjepa_lib.workbench.rows import POINT, check_rows, compute_ratio, finished, outcomes

HIERARCHY, FLAT = "bar_l1l2_latent", "bar_flat_latent"
"""Cells of the pair that is compared at one budget, under the latent cost."""
_WORDS = {"": "", "lower": "at least ", "upper": "at most ", "open": "undecided, about "}


def bar_pair(rows: pd.DataFrame) -> pd.DataFrame:
    """L1+L2 against flat at the fixed budget, per training seed and over all of them."""
    return paired(*(rows[rows["cell"] == cell] for cell in (HIERARCHY, FLAT)))


def sentences(rows: pd.DataFrame) -> list[str]:
    """Markdown sentences on test trials; what the rows do not hold yet is left out."""
    names = ("bar", "frontier", "p2_heldout", "p2_seen")
    bar, frontier, heldout, seen = (finished(rows, name) for name in names)
    found = []
    if {HIERARCHY, FLAT} <= set(bar["cell"]):
        found.append(_pair_sentence(bar))
    for cost in ("latent", "distance"):
        part = frontier[frontier["cost"] == cost]
        if {"flat", "l1+l2"} <= set(part["method"]):
            found += [_best_sentence(part, bar, cost), _ratio_sentence(part, cost)]
    return [*found, _layout_sentence(heldout, seen)] if len(heldout) else found


def _slashed(values: Iterable[object], form: str = "") -> str:
    return " / ".join(format(value, form) for value in values)


def _percent(rates: Iterable[float]) -> str:
    return _slashed((100 * rate for rate in rates), ".1f")


def _pair_sentence(rows: pd.DataFrame) -> str:
    pair = bar_pair(rows)
    seeds = pair[:-1]
    two, flat = (rows[rows["cell"] == cell]["flops_per_step"].mean() for cell in (HIERARCHY, FLAT))
    return (
        f"Latent cost, {two / 1e6:.0f} MFLOP per step for L1+L2 and {flat / 1e6:.0f} for flat, "
        f"both tuned on validation trials: {_percent(seeds['first'])} % against "
        f"{_percent(seeds['second'])} % (seeds {_slashed(seeds['seed'])}, n = {rows['n'].iloc[0]} "
        f"each), {_gap(pair.iloc[-1])}; exact paired McNemar p per seed "
        f"{_slashed(seeds['mcnemar_p'], '.0e')}."
    )


def _best_sentence(rows: pd.DataFrame, bar: pd.DataFrame, cost: str) -> str:
    keys = ["success_rate", "flops_per_step"]
    points = rows.groupby(["method", *POINT], as_index=False)[keys].mean()
    best = points.sort_values(keys, ascending=[False, True]).groupby("method").first()[::-1]
    spent = rows.groupby("method")["flops_per_step"].agg(["min", "max"]) / 1e6
    texts = [
        f"{one.Index} {100 * one.success_rate:.1f} % at {one.flops_per_step / 1e6:.0f} of "
        "{:.0f} to {:.0f} MFLOP per step".format(*spent.loc[one.Index])
        for one in best.itertuples()
    ]
    # The first trials may be easier than all: what the pair of the headline has on them.
    bar = bar.loc[bar["cost"] == cost, ["method", "grid", "budget"]].drop_duplicates()
    pair = [
        f"{one.method} {100 * one.success_rate:.1f} %" for one in points.merge(bar).itertuples()
    ]
    same = f"; on these trials the pair above has {', '.join(pair[::-1])}" * (len(pair) == 2)
    return (
        f"{cost.capitalize()} cost, best of all budgets: "
        f"{', '.join(texts)} (n = {rows['n'].iloc[0]} a seed{same})."
    )


def _ratio_sentence(rows: pd.DataFrame, cost: str) -> str:
    found = compute_ratio(*(rows[rows["method"] == method] for method in ("flat", "l1+l2")))
    whole, *seeds = (
        f"{_WORDS[one.bound]}{one.value:.2g}" for one in (found.pooled, *found.per_seed.values())
    )
    low = f"from {found.low:.2g}" if found.low > 0 else "without a lower end"
    high = f"up to {found.high:.2g}" if np.isfinite(found.high) else "without an upper end"
    return (
        f"{cost.capitalize()} cost, FLOPs of flat over those of L1+L2 where both reach 0.8 of the "
        f"hierarchy's best ({100 * found.pooled.level:.0f} %): {whole} (95 % interval "
        f"{low} {high}; seeds: {_slashed(seeds)})."
    )


def _layout_sentence(heldout: pd.DataFrame, seen: pd.DataFrame) -> str:
    texts = []
    for rows, where in ((heldout, "layouts of no training"), (seen, "those of the training")):
        if len(rows):
            part = check_rows(rows).sort_values("seed")
            texts.append(
                f"{_percent(part['success_rate'])} % in {where} (seeds {_slashed(part['seed'])}, "
                f"n = {part['n'].iloc[0]} each; within sqrt(2) px at some step "
                f"{100 * part['success_first_1p41'].mean():.1f} %)"
            )
    return f"Random layouts, flat, distance cost, within 4.5 px at the end: {', '.join(texts)}."


# --- over worlds
def claims(rows: pd.DataFrame) -> pd.DataFrame:
    """Each planner with sub-goals against flat, of each model (a world), tasks, dynamics and cost.

    Of the group `equal`, on test trials, it `helps` where the 95 % interval of the paired
    difference (`bootstrap_difference`) lies above 0, `hurts` where it lies below, and else is
    `undecided`. So it is with fewer than `LEAST_SEEDS` seeds that both have played, without a row
    of flat, where FLOPs per step differ by more than `EQUAL_COMPUTE`, and where either was `told`
    more than frames. The rule is older than its rows, Student's part of the interval is not.
    """
    rows = rows.assign(place=named(rows))
    rows = rows[(rows["split"] == "test") & (rows["group"] == "equal")]
    where, lines = ["place", "model", "task_set", "cost"], []
    for place, part in rows.groupby(where, sort=False, dropna=False):
        about = dict(zip(where, place, strict=True))
        flat = part[part["method"] == "flat"]
        for method, two in part[part["method"] != "flat"].groupby("method", sort=False):
            lines.append(about | {"method": method} | _claim(flat, two))
    return pd.DataFrame(lines)


def _claim(flat: pd.DataFrame, two: pd.DataFrame) -> dict[str, object]:
    found = {"verdict": "undecided", "why": ""}
    two, flat = two[two["seed"].isin(flat["seed"])], flat[flat["seed"].isin(two["seed"])]
    if flat.empty:
        return found | {"why": "no row of flat"}
    pair = paired(two, flat).iloc[-1]
    spent = [part["flops_per_step"].mean() / 1e6 for part in (two, flat)]
    found |= pair.drop("seed").to_dict()
    ratio = max(spent) / min(spent)
    if pd.concat([flat, two])["told"].dropna().ne("").any():
        return found | {"why": "told more than frames"}
    if ratio > EQUAL_COMPUTE:
        return found | {"why": f"FLOPs differ by a factor of {ratio:.2g}"}
    if len(two) < LEAST_SEEDS:
        return found | {"why": f"{len(two)} of {LEAST_SEEDS} seeds"}
    verdicts = {pair["difference_low"] > 0: "helps", pair["difference_high"] < 0: "hurts"}
    return found | {"verdict": verdicts.get(True, "undecided")}


def judged(one: Mapping[str, Any]) -> str:
    """ "L1+L2 hurts: -4 points (-7 to -1), graph cost": a line of `claims` in words."""
    method = str(one["method"]).replace("l1+l2", "L1+L2")
    gap = f" {_gap(one)}," if pd.notna(one.get("difference")) else ""
    why = f", {one['why']}" if one["why"] else ""
    return f"{method} {one['verdict']}:{gap} {one['cost']} cost{why}"


def claim_sentences(found: pd.DataFrame) -> list[str]:
    """What `claims` found, a sentence a line."""
    return [f"{one['place']}: {judged(one)}" for one in found.to_dict("records")]


def named(rows: pd.DataFrame) -> pd.Series:
    """ "maze d13 16": the world of each row, its set of tasks, its dynamics if a model has more."""
    more = rows.groupby("model")["dynamics"].transform("nunique") > 1
    tasks = rows["task_set"].astype(object).fillna("")
    columns = rows["model"], tasks, rows["dynamics"].where(more, "")
    names = [
        " ".join(f"{model} {kind * (kind not in model)} {rule}".replace("_", " ").split())
        for model, kind, rule in zip(*columns, strict=True)
    ]
    return pd.Series(names, rows.index)


def _gap(one: Mapping[str, Any]) -> str:
    ends = (100 * one[end] for end in ("difference", "difference_low", "difference_high"))
    return "{:+.0f} points ({:+.0f} to {:+.0f})".format(*ends)


# --- pairs
def paired(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Two planners on the same trials, one point each: rates, difference with interval, who solved
    what, exact McNemar p; a line per `seed`, and "all".

    McNemar's test over all counts every seed's trials as its own: new trainings need every seed.
    """
    if any(rows.groupby(POINT).ngroups != 1 for rows in (first, second)):
        raise WorkbookError("a pair compares two points, one budget and one grid value each")
    check_rows(pd.concat([first.assign(cell="first"), second.assign(cell="second")]))
    one, two = outcomes(first), outcomes(second)
    seeds, lines = [*map(str, sorted(first["seed"])), "all"], []
    for seed, a, b in zip(seeds, [*one[:, None], one], [*two[:, None], two], strict=True):
        gap, low, high = bootstrap_difference(a, b)
        won, lost, p = mcnemar(a.ravel(), b.ravel())
        line = {"seed": seed, "first": a.mean(), "second": b.mean(), "difference": gap}
        line |= {"difference_low": low, "difference_high": high}
        lines.append(line | {"only_first": won, "only_second": lost, "mcnemar_p": p})
    return pd.DataFrame(lines)


def pair_table(pairs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Pairs by name as one table, whose first column is `pair`."""
    return pd.concat(pairs, names=["pair"]).reset_index("pair").reset_index(drop=True)
