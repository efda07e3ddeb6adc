"""Rows of an experiment: one planner's outcome on n stored trials each, and what they say together.

A set of rows that is unfinished or mixed is refused in one sentence and never averaged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hjepa_lib.config import leaves
from hjepa_lib.evaluation import failures
from hjepa_lib.evaluation.results import Result
from hjepa_lib.evaluation.statistics import bootstrap, iqm, wilson
from hjepa_lib.files import WorkbookError, read_json

SHARED = ("protocol", "split", "layouts", "dynamics", "n", "trials_hash", "planner.steps")
"""Columns that must hold one value in a set of rows that is compared."""
POINT = ["cell", "budget", "grid"]
"""Columns that name one point of an experiment; its rows differ in the seed only."""
SETTINGS = ("method", "cost", "control", "model")
"""Besides the planner's settings, what one point has once, if the table has it."""
_TEXT = ["cell", "group", "model", "grid", "solved", "training", "trials_hash", "revision"]


def pack_solved(success: np.ndarray) -> str:
    """0/1 outcomes (n,) as hexadecimal text, first trial first."""
    return np.packbits(np.asarray(success) > 0).tobytes().hex()


def unpack_solved(text: str, n: int) -> np.ndarray:
    """(n,) 0 or 1; WorkbookError when the text does not hold n outcomes."""
    digits = 2 * -(-n // 8)
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        raise WorkbookError(f"solved must be {digits} hexadecimal digits for n={n}, got {text!r}")
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:n].astype(np.int64)


def flat_row(values: dict[str, Any]) -> dict[str, Any]:
    """A result's row with a column per number."""
    low, high = values["ci95"]
    rest = {name: value for name, value in values.items() if name != "ci95"}
    return {"ci95_low": low, "ci95_high": high} | leaves(rest)


def row_of(result: Result, **about: Any) -> dict[str, Any]:
    """A result as one flat row: `about` (cell, group, ...), every field, outcomes and failures."""
    counts = failures.count(failures.label(result))
    ends = {f"failure.{name}": number for name, number in counts.items()}
    return about | flat_row(result.row) | ends | {"solved": pack_solved(result.success)}


def load_rows(path: Path) -> pd.DataFrame:
    """The table of an experiment with its own types; settings of the trainings become columns.

    `seconds_per_step` is added, the planning seconds of one trial per environment step.
    """
    path = Path(path)
    if not path.is_file():
        raise WorkbookError(f"{path} does not exist: run the experiment first")
    types = dict.fromkeys(_TEXT, str)  # digits of a digest are no number
    rows = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    if absent := [name for name in _TEXT if name not in rows]:
        raise WorkbookError(f"{path} is no table of an experiment: column {absent[0]!r} is missing")
    rows[_TEXT] = rows[_TEXT].fillna("")
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


def check_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows, if they are one finished set; WorkbookError naming the first mismatch.

    Every point has the same seeds and one set of settings (one that is younger than a row is empty
    there), and all rows agree on `SHARED`.
    """
    if rows.empty:
        raise WorkbookError("there is no row to compare")
    for name in SHARED:
        values = sorted(map(str, rows[name].unique()))
        if len(values) > 1:
            raise WorkbookError(f"rows differ in {name}: {values[0]} and {values[1]}")
    planner = [key for key in rows if key.startswith("planner.") and key != "planner.seed"]
    once = [*(key for key in SETTINGS if key in rows), *planner]
    for key, group in rows.groupby(POINT, sort=False):
        if group["seed"].duplicated().any():
            raise WorkbookError(f"{_title(key)} has seed {group['seed'].mode()[0]} twice")
        for column in once:
            values = group[column].dropna().unique()
            if len(values) > 1:
                raise WorkbookError(
                    f"{_title(key)} mixes settings: {column} is {values[0]} and {values[1]}"
                )
        if missing := sorted(set(rows["seed"]) - set(group["seed"])):
            raise WorkbookError(f"{_title(key)} is unfinished: seed {missing[0]} is missing")
    for row in rows.itertuples():
        if unpack_solved(row.solved, row.n).sum() != row.successes:
            raise WorkbookError(f"{row.cell} seed {row.seed}: solved and successes disagree")
    return rows


def _title(point: tuple) -> str:
    return " ".join(str(part) for part in point if part != "")


def split_finished(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(rows of the points that have every seed of the set, names of the unfinished points)."""
    whole = rows.groupby(POINT)["seed"].transform("nunique") == rows["seed"].nunique()
    left = rows.loc[~whole, POINT].drop_duplicates()
    return rows[whole], [_title(point) for point in left.itertuples(index=False)]


def pooled(rows: pd.DataFrame, by: list[str], means: Sequence[str] = ()) -> pd.DataFrame:
    """Seeds pooled: `rate` with its Wilson interval `low` to `high` per value of the columns `by`,
    and the mean of the columns `means`."""
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


def redraw(solved: np.ndarray) -> str:
    """What `bootstrap` redraws of outcomes (S, n): one seed says nothing about others."""
    return "both" if len(solved) > 1 else "trials"


# --- success against compute ------------------------------------------------------------------
def frontier(
    rows: pd.DataFrame, x: str = "flops_per_step", keep: tuple[str, ...] = ()
) -> pd.DataFrame:
    """One line per point: method, cost, price, mean rate with 95 % interval, iqm, seeds, `keep`."""
    lines = []
    for _, group in rows.groupby(POINT, sort=False):
        solved = outcomes(group)
        _, low, high = spread = bootstrap(solved, redraw=redraw(solved))
        line = group.iloc[0][[*POINT, "group", "model", "method", "cost", *keep]].to_dict()
        line |= {"x": group[x].mean(), "rate": spread.estimate, "low": low, "high": high}
        line |= {"iqm": iqm(solved.mean(1)), "seeds": len(solved), "n": solved.shape[1]}
        lines.append(line | {"path_efficiency": group["path_efficiency"].mean()})
    return pd.DataFrame(lines).sort_values(["method", "cost", "x"], ignore_index=True)


class Ratio(NamedTuple):
    """Compute of flat over that of the hierarchy, at a share of the hierarchy's best success.

    `bound`: "" if measured, "lower" if at least this (flat never gets there, or the hierarchy's
    smallest budget does), "upper" if at most (flat's does), "open" for both.
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


class _Curve(NamedTuple):
    """The P points of one planner."""

    price: np.ndarray  # (S, P)
    solved: np.ndarray  # (P, S, n)

    @classmethod
    def of(cls, rows: pd.DataFrame, x: str) -> _Curve:
        groups = [group.sort_values("seed") for _, group in rows.groupby(POINT, sort=False)]
        price = np.stack([group[x].to_numpy(float) for group in groups], axis=1)
        return cls(price, np.stack([outcomes(group) for group in groups]))

    @property
    def envelope(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean price (P,), ascending, and the best mean success up to it."""
        price = self.price.mean(0)
        order = np.argsort(price, kind="stable")
        return price[order], np.maximum.accumulate(self.solved.mean((1, 2))[order])

    def reach(self, level: float) -> tuple[float, bool] | None:
        """(price that reaches the level, False where even the smallest budget does).

        Linear in log price along the envelope; None where no budget reaches it.
        """
        x, best = self.envelope
        if best[-1] < level - 1e-12:
            return None
        exact = best[0] < level or bool(np.isclose(best[0], level))
        return float(np.exp(np.interp(level - 1e-12, best, np.log(x)))), exact


def compute_ratio(
    flat_rows: pd.DataFrame,
    hier_rows: pd.DataFrame,
    share: float = 0.8,
    x: str = "flops_per_step",
    resamples: int = 1000,
) -> Ratios:
    """Compute of flat over that of the hierarchy where both reach share * the latter's best.

    Both sets must be on the same trials and seeds; the price is the column `x`.
    """
    seeds = sorted(check_rows(pd.concat([flat_rows, hier_rows]))["seed"].unique())
    curves = [_Curve.of(rows, x) for rows in (flat_rows, hier_rows)]
    per_seed = {
        int(seed): _ratio(*(_Curve(one.price[[i]], one.solved[:, [i]]) for one in curves), share)
        for i, seed in enumerate(seeds)
    }
    (count, trials), draw = curves[0].solved.shape[1:], np.random.default_rng(0).integers
    draws = []
    for _ in range(resamples):
        rows = draw(count, size=(count, 1)) if count > 1 else np.zeros((1, 1), int)
        cells = (slice(None), rows, draw(trials, size=(1, trials)))
        draws.append(_ratio(*(_Curve(one.price, one.solved[cells]) for one in curves), share).value)
    known = np.array(draws)[~np.isnan(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Ratios(per_seed, _ratio(*curves, share), float(low), float(high))


def _ratio(flat: _Curve, hier: _Curve, share: float) -> Ratio:
    """NaN where the hierarchy solves nothing."""
    level = share * float(hier.envelope[1][-1])
    if level <= 0:
        return Ratio(np.nan, "open", level)
    (there, exact), here = hier.reach(level), flat.reach(level)
    low = not exact or here is None
    high = here is not None and not here[1]
    bound = {(0, 0): "", (1, 0): "lower", (0, 1): "upper", (1, 1): "open"}[low, high]
    spent = flat.envelope[0][-1] if here is None else here[0]
    return Ratio(float(spent) / there, bound, level)
