"""Rows of an experiment: one planner's outcome on n stored trials each, and what they say together.

A set of rows that is unfinished or mixed (another protocol, trial file, n or dynamics, a missing
seed) is refused in one sentence and never averaged. `solved` holds the outcome of every trial, so
that any two rows on the same trials can be paired. Compute is any column with a planner's price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hjepa_lib.config import leaves
from hjepa_lib.evaluation import failures
from hjepa_lib.evaluation.results import Result
from hjepa_lib.evaluation.statistics import (
    bootstrap,
    iqm,
    wilson,
)
from hjepa_lib.files import WorkbookError, read_json

PRICES = ("flops_per_step", "model_transitions_per_step", "seconds_per_step")
_RESAMPLES = 1000
SHARED = ("protocol", "split", "layouts", "dynamics", "n", "trials_hash", "planner.steps")
"""Columns that must hold one value in a set of rows that is compared."""
POINT = ("cell", "budget", "grid")
"""Columns that name one point of an experiment; its rows differ in the seed only."""
SETTINGS = ("method", "cost", "control", "model")
"""Besides the planner's settings, what one point has once, if the table has it."""
_TEXT = ("cell", "group", "model", "grid", "solved", "training", "trials_hash", "revision")


def pack_solved(success: np.ndarray) -> str:
    """0/1 outcomes (n,) as hexadecimal text, first trial first."""
    return np.packbits(np.asarray(success) > 0).tobytes().hex()


def unpack_solved(text: str, n: int) -> np.ndarray:
    """(n,) 0 or 1; WorkbookError when the text does not hold n outcomes."""
    try:
        packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    except ValueError as error:
        raise WorkbookError(f"solved must be hexadecimal, got {text[:20]!r}") from error
    if len(packed) != -(-n // 8):
        raise WorkbookError(f"solved holds {8 * len(packed)} bits, which is not n={n} rounded up")
    return np.unpackbits(packed)[:n].astype(np.int64)


def row_of(result: Result, **about: Any) -> dict[str, Any]:
    """A result as one flat row: `about` (cell, group, ...), every field, outcomes and failures."""
    values = result.row
    low, high = values.pop("ci95")
    row = about | {"ci95_low": low, "ci95_high": high} | leaves(values)
    counts = failures.count(failures.label(result))
    row |= {f"failure.{name}": number for name, number in counts.items()}
    return row | {"solved": pack_solved(result.success)}


def load_rows(path: Path) -> pd.DataFrame:
    """The table of an experiment with its own types; settings of the trainings become columns.

    `seconds_per_step` is added, the planning seconds of one trial per environment step.
    """
    path = Path(path)
    if not path.is_file():
        raise WorkbookError(f"{path} does not exist: run the experiment first")
    types = dict.fromkeys(_TEXT, str)  # digits of a digest are no number
    rows = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    for name in _TEXT:
        if name not in rows:
            raise WorkbookError(f"{path} is no table of an experiment: column {name!r} is missing")
    rows[list(_TEXT)] = rows[list(_TEXT)].fillna("")
    known = path.with_name(f"{path.stem}_trainings.json")
    known = read_json(known) if known.is_file() else {}
    settings = pd.DataFrame([known.get(name, {}) for name in rows["training"]], index=rows.index)
    return with_price(rows.join(settings.drop(columns=rows.columns, errors="ignore")))


def with_price(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `seconds_per_step`."""
    return rows.copy().assign(seconds_per_step=rows["seconds_per_episode"] / rows["planner.steps"])


def tidy(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of `row_of` as one checked table."""
    return check_rows(with_price(pd.DataFrame(rows)))


def check_rows(
    rows: pd.DataFrame, seeds: tuple[int, ...] = (), points: int = 0, shared: tuple = SHARED
) -> pd.DataFrame:
    """The same rows, if they are one finished set; WorkbookError naming the first mismatch.

    Every point has the same `seeds` and one set of settings, and all rows agree on `shared`.
    """
    if rows.empty:
        raise WorkbookError("there is no row to compare")
    for name in shared:
        values = sorted(map(str, rows[name].unique()))
        if len(values) > 1:
            raise WorkbookError(f"rows differ in {name}: {values[0]} and {values[1]}")
    wanted = set(seeds) or set(rows["seed"])
    groups = rows.groupby(list(POINT), sort=False)
    for key, group in groups:
        name = " ".join(str(part) for part in key if part != "")
        if group["seed"].duplicated().any():
            raise WorkbookError(f"{name} has seed {group['seed'].mode()[0]} twice")
        _check_settings(name, group)
        if missing := sorted(wanted - set(group["seed"])):
            raise WorkbookError(f"{name} is unfinished: seed {missing[0]} is missing")
        if other := sorted(set(group["seed"]) - wanted):
            raise WorkbookError(f"{name} has seed {other[0]}, which was not asked for")
    if points and groups.ngroups != points:
        raise WorkbookError(f"the set is unfinished: {groups.ngroups} of {points} points are there")
    for row in rows.itertuples():
        if unpack_solved(row.solved, row.n).sum() != row.successes:
            raise WorkbookError(f"{row.cell} seed {row.seed}: solved and successes disagree")
    return rows


def _check_settings(name: str, group: pd.DataFrame) -> None:
    """WorkbookError when seeds of one point were played with different settings.

    A setting younger than a row is empty there and cannot have changed it.
    """
    planner = [key for key in group if key.startswith("planner.") and key != "planner.seed"]
    for key in (*(key for key in SETTINGS if key in group), *planner):
        if group[key].nunique() > 1:
            one, other = group[key].dropna().astype(str).unique()[:2]
            raise WorkbookError(f"{name} mixes settings: {key} is {one} and {other}")


def split_finished(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(rows of the points that have every seed of the set, names of the unfinished points)."""
    wanted = set(rows["seed"])
    sizes = rows.groupby(list(POINT), sort=False)["seed"].nunique()
    short = sizes[sizes < len(wanted)].index
    left = [" ".join(str(part) for part in key if part != "") for key in short]
    whole = rows.groupby(list(POINT))["seed"].transform("nunique") == len(wanted)
    return rows[whole], left


def pooled(rows: pd.DataFrame, by: list[str], means: Sequence[str] = ()) -> pd.DataFrame:
    """Seeds pooled: one row per value of the columns `by`, with the mean of the columns `means`.

    `rate` is successes / n over all seeds with its Wilson interval `low` to `high`.
    """
    groups = rows.groupby(by, sort=False, dropna=False)
    table = groups[["successes", "n"]].sum().join(groups["seed"].nunique().rename("seeds"))
    table["rate"] = table["successes"] / table["n"]
    bounds = [wilson(int(row.successes), int(row.n)) for row in table.itertuples()]
    table[["low", "high"]] = np.array(bounds).reshape(-1, 2)
    return table.join(groups[list(means)].mean()).reset_index()


def failure_shares(rows: pd.DataFrame, names: str) -> pd.DataFrame:
    """How trials ended, mean over seeds: a row per value of column `names`, a column per end."""
    columns = [f"failure.{name}" for name in failures.LABELS]
    shares = rows[columns].div(rows["n"], axis=0).groupby(rows[names], sort=False).mean()
    return shares.set_axis(list(failures.LABELS.values()), axis=1)


def outcomes(rows: pd.DataFrame) -> np.ndarray:
    """(S, n) 0/1 outcomes of one point, seeds in ascending order."""
    ordered = rows.sort_values("seed")
    return np.stack([unpack_solved(row.solved, row.n) for row in ordered.itertuples()])


# --- success against compute ------------------------------------------------------------------
class Reach(NamedTuple):
    """Compute that reaches a level; `exact` is False where even the smallest budget does."""

    x: float
    exact: bool


class Ratio(NamedTuple):
    """Compute of flat over that of the hierarchy, at a share of the hierarchy's best success.

    `bound` is "" for a measured ratio, "lower" where it is at least this (flat never gets there, or
    the hierarchy's smallest budget does), "upper" where at most (flat's does), "open" for both.
    """

    value: float
    bound: str
    level: float  # success that both must reach


class Ratios(NamedTuple):
    """`Ratio` per training seed and of the mean over seeds, with the latter's 95 % interval."""

    per_seed: dict[int, Ratio]
    pooled: Ratio
    low: float
    high: float


# --- frontiers --------------------------------------------------------------------------------
def frontier(
    rows: pd.DataFrame, x: str = "flops_per_step", keep: tuple[str, ...] = ()
) -> pd.DataFrame:
    """One line per point: method, cost, price, mean rate with 95 % interval, iqm, seeds, `keep`."""
    lines = []
    for key, group in rows.groupby(list(POINT), sort=False):
        solved = outcomes(group)
        spread = bootstrap(solved, redraw="both" if len(solved) > 1 else "trials")
        first = group.iloc[0]
        lines.append(
            dict(zip(POINT, key, strict=True))
            | {name: first[name] for name in ("group", "model", "method", "cost", *keep)}
            | {"x": group[x].mean(), "rate": spread.estimate, "low": spread.low}
            | {"high": spread.high, "iqm": iqm(solved.mean(1)), "seeds": len(solved)}
            | {"n": int(first["n"]), "path_efficiency": group["path_efficiency"].mean()}
        )
    return pd.DataFrame(lines).sort_values(["method", "cost", "x"], ignore_index=True)


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
