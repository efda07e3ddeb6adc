"""Rows of an experiment: one planner's outcome on n stored trials each, and what they say together.

An unfinished or mixed set (`check_rows`) is never averaged.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hjepa_lib.config import leaves
from hjepa_lib.evaluation import failures
from hjepa_lib.evaluation.results import Result
from hjepa_lib.evaluation.statistics import interval, success_rate
from hjepa_lib.files import WorkbookError
from hjepa_lib.workbench.table import Table, as_text, usual

SHARED = ("protocol", "split", "layouts", "dynamics", "n", "trials_hash", "planner.steps")
"""Columns that must hold one value in a set of rows that is compared."""
POINT = ["cell", "budget", "grid"]
"""Columns that name one point of an experiment; its rows differ in the seed only."""
SETTINGS = ("method", "cost", "control", "model")
"""Besides the planner's settings, what one point has once, if the table has it."""
_TEXT = ["cell", "group", "model", "grid", "solved", "training", "trials_hash", "revision"]
_NEEDED = dict.fromkeys((
    *_TEXT, *SHARED, "budget", "seed", "method", "cost", "successes", "success_rate",
    "seconds_per_episode", "flops_per_step",
))  # fmt: skip


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
    counts = {"failure": failures.count(failures.label(result))}
    return about | flat_row(result.row) | leaves(counts) | {"solved": pack_solved(result.success)}


def load_rows(path: Path) -> pd.DataFrame:
    """The planners of an experiment's table with its own types, and a column for every setting of
    the trainings. WorkbookError names the columns of planners that it lacks."""
    known = Table(path).trainings  # in a remote root, it brings the table
    if not path.is_file():
        raise WorkbookError(f"{path} does not exist: run the experiment first")
    types = dict.fromkeys(_TEXT, str)  # digits of a digest are no number
    rows = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    if missing := [name for name in _NEEDED if name not in rows]:
        raise WorkbookError(f"{path} is no table of planners: it lacks {', '.join(missing)}")
    rows = rows[rows["method"].notna()].astype({"n": int, "successes": int})
    rows[_TEXT] = rows[_TEXT].fillna("")
    settings = pd.DataFrame([known.get(name, {}) for name in rows["training"]], index=rows.index)
    return rows.join(settings.drop(columns=rows.columns, errors="ignore")).copy()


def check_rows(rows: pd.DataFrame | Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The same rows, if they are one finished set; WorkbookError naming the first mismatch.

    Every point has the same seeds and one set of settings, of planner and training (one that is
    younger than a row counts with its default), and all rows agree on `SHARED`.
    """
    rows = pd.DataFrame(rows)
    if rows.empty:
        raise WorkbookError("there is no row to compare")
    for name in SHARED:
        values = sorted(map(str, rows[name].unique()))
        if len(values) > 1:
            raise WorkbookError(f"rows differ in {name}: {values[0]} and {values[1]}")
    for name in rows:
        _check_setting(rows, name)
    for key, group in rows.groupby(POINT, sort=False):
        if group["seed"].duplicated().any():
            raise WorkbookError(f"{_title(key)} has seed {group['seed'].mode()[0]} twice")
        if missing := sorted(set(rows["seed"]) - set(group["seed"])):
            raise WorkbookError(f"{_title(key)} is unfinished: seed {missing[0]} is missing")
    for row in rows.itertuples():
        if unpack_solved(row.solved, row.n).sum() != row.successes:
            raise WorkbookError(f"{row.cell} seed {row.seed}: solved and successes disagree")
    return rows


def _check_setting(rows: pd.DataFrame, name: str) -> None:
    """WorkbookError where a point has two values of a column that is a setting."""
    set_by = name in SETTINGS or name.startswith(("planner.", "recipe.", "files.", "key."))
    set_by = set_by or ("." in name and usual(name) is not None)
    if not set_by or name == "planner.seed" or rows[name].map(str).nunique() < 2:
        return
    default = usual(name, rows["profile"].iloc[0] if "profile" in rows else "laptop")
    values = rows[name].astype(object)
    if not name.startswith("data."):  # the row's own, empty where its run has lost its data
        values = values.where(values.notna(), default)
    values = values.map(lambda one: as_text(one) if isinstance(one, list) else one)
    if values.nunique() > 1:
        points = values.groupby([rows[one] for one in POINT], sort=False)
        for key, found in points if (points.nunique() > 1).any() else ():
            if found.nunique() > 1:
                one, two = found.unique()[:2]
                raise WorkbookError(f"{_title(key)} mixes settings: {name} is {one} and {two}")


def _title(point: Sequence[Any]) -> str:
    return " ".join(str(part) for part in point if part != "")


def split_finished(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(rows of the points that have every seed of the set, names of the unfinished points)."""
    whole = rows.groupby(POINT)["seed"].transform("nunique") == rows["seed"].nunique()
    left = rows.loc[~whole, POINT].drop_duplicates()
    return rows[whole], [_title(point) for point in left.itertuples(index=False)]


def finished(rows: pd.DataFrame, group: str) -> pd.DataFrame:
    """The finished points of a group on test trials."""
    return split_finished(rows[(rows["split"] == "test") & (rows["group"] == group)])[0]


def pooled(rows: pd.DataFrame, by: list[str], means: Sequence[str] = ()) -> pd.DataFrame:
    """Seeds pooled per value of the columns `by`: `rate` on `n` trials with its interval `low` to
    `high` (`success_rate`), how many `seeds`, and the mean of the columns `means`."""
    groups = rows.groupby(by, sort=False, dropna=False)
    table = groups.agg(n=("n", "first"), seeds=("seed", "nunique"))
    found = [success_rate(outcomes(part)) for _, part in groups]
    table[["rate", "low", "high"]] = np.array(found).reshape(-1, 3)
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


# --- success against compute
def frontier(
    rows: pd.DataFrame, x: str = "flops_per_step", keep: tuple[str, ...] = ()
) -> pd.DataFrame:
    """A line per point, with the mean of its price `x` and the columns `keep`; by price."""
    found = pooled(rows, [*POINT, "method", "cost", *keep], [x])
    return found.sort_values(["method", "cost", x], ignore_index=True)


class Ratio(NamedTuple):
    """Compute of flat over that of the hierarchy, at a share of the hierarchy's best success.

    `bound`: "" if measured, "lower" if at least this (flat never gets there, or the hierarchy's
    smallest budget does), "upper" if at most (flat's does), "open" for both.
    """

    value: float
    bound: str
    level: float  # success that both must reach


class Ratios(NamedTuple):
    """`Ratio` per training seed and of the mean over seeds, with the latter's 95 % interval.

    An end is inf or 0 where draws that far out are bounds: how far they reach is not known.
    """

    per_seed: dict[int, Ratio]
    pooled: Ratio
    low: float
    high: float


def compute_ratio(
    flat_rows: pd.DataFrame, hier_rows: pd.DataFrame, resamples: int = 1000
) -> Ratios:
    """FLOPs of flat over those of the hierarchy where both reach 0.8 of the latter's best.

    Both sets must be on the same trials and seeds.
    """
    seeds = sorted(check_rows(pd.concat([flat_rows, hier_rows]))["seed"].unique())
    planners = []
    for rows in (flat_rows, hier_rows):
        points = [group.sort_values("seed") for _, group in rows.groupby(POINT, sort=False)]
        prices = np.stack([group["flops_per_step"].to_numpy(float) for group in points])  # (P, S)
        planners.append((prices, np.stack([outcomes(group) for group in points])))  # (P, S, n)

    def ratio(of: Any, cells: Any) -> Ratio:
        """Priced as the seeds `of`, with the best success of the cells (seeds, trials) so far."""
        curves = []
        for prices, solved in planners:
            price, success = prices[:, of].mean(1), solved[:, *cells].mean((1, 2))
            order = np.argsort(price, kind="stable")
            curves.append((price[order], np.maximum.accumulate(success[order])))
        return _ratio(*curves)

    every, shape = slice(None), planners[0][1].shape[1:]
    per_seed = {int(seed): ratio([i], ([i],)) for i, seed in enumerate(seeds)}

    def least(cells: Any) -> float:
        one = ratio(every, cells)
        return one.value * (one.bound in ("", "lower"))

    def most(cells: Any) -> float:
        """Its reciprocal, which has a quantile where it is infinite."""
        one = ratio(every, cells)
        return (one.bound in ("", "upper")) / one.value

    low, inverse = (interval(end, shape, resamples).low for end in (least, most))
    return Ratios(per_seed, ratio(every, (every,)), low, 1 / inverse if inverse else np.inf)


def _ratio(flat: tuple, hier: tuple) -> Ratio:
    """Of two curves (prices, best success up to each), linear in log price between points; NaN
    where the hierarchy fails."""
    level = 0.8 * float(hier[1][-1])
    if level <= 0:
        return Ratio(np.nan, "open", level)
    spent, first = [], []  # what the level takes, and whether the smallest budget is enough
    for price, best in (flat, hier):
        spent.append(float(np.exp(np.interp(level - 1e-12, best, np.log(price)))))
        first.append(best[0] >= level and not np.isclose(best[0], level))
    never = flat[1][-1] < level - 1e-12  # then its largest price stands for it
    bound = {(0, 0): "", (1, 0): "lower", (0, 1): "upper", (1, 1): "open"}
    return Ratio(spent[0] / spent[1], bound[first[1] or never, first[0]], level)
