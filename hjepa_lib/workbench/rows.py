"""Rows of a study (study.py): one planner's outcome on n stored trials each, every trial of it.

A set of rows that is unfinished or mixed (another protocol, trial file, n or dynamics, a missing
seed) is refused by `check_rows` in one sentence and never averaged. `solved` holds the outcome of
every trial, so that any two rows on the same trials can be paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hjepa_lib.config import leaves
from hjepa_lib.evaluation import failures
from hjepa_lib.evaluation.results import Result
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.files import WorkbookError

SHARED = ("protocol", "split", "layouts", "dynamics", "n", "trials_hash", "planner.steps")
"""Columns that must hold one value in a set of rows that is compared."""
POINT = ("cell", "budget", "grid")
"""Columns that name one point of a study; its rows differ in the seed only."""
SETTINGS = ("method", "cost", "control", "recipe")
"""Besides the planner's settings, what one point has once, if the table has it."""
_TEXT = ("cell", "group", "recipe", "grid", "solved", "training", "trials_hash", "revision")


class RowsError(WorkbookError):
    """A set of rows is empty, unfinished or mixed."""


def pack_solved(success: np.ndarray) -> str:
    """0/1 outcomes (n,) as hexadecimal text, first trial first."""
    return np.packbits(np.asarray(success) > 0).tobytes().hex()


def unpack_solved(text: str, n: int) -> np.ndarray:
    """(n,) 0 or 1; RowsError when the text does not hold n outcomes."""
    try:
        packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    except ValueError as error:
        raise RowsError(f"solved must be hexadecimal, got {text[:20]!r}") from error
    if len(packed) != -(-n // 8):
        raise RowsError(f"solved holds {8 * len(packed)} bits, which is not n={n} rounded up")
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
    """The table of a study with its own types; `seconds_per_step` is added."""
    if not Path(path).is_file():
        raise RowsError(f"{path} does not exist: run the study first")
    types = dict.fromkeys(_TEXT, str)  # digits of a digest are no number
    rows = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    for name in _TEXT:
        if name not in rows:
            raise RowsError(f"{path} is no table of a study: column {name!r} is missing")
    rows[list(_TEXT)] = rows[list(_TEXT)].fillna("")
    return with_price(rows)


def with_price(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `seconds_per_step`, planning seconds of one trial per environment step."""
    return rows.copy().assign(seconds_per_step=rows["seconds_per_episode"] / rows["planner.steps"])


def tidy(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of `row_of` as one checked table."""
    return check_rows(with_price(pd.DataFrame(rows)))


def check_rows(
    rows: pd.DataFrame, seeds: tuple[int, ...] = (), points: int = 0, shared: tuple = SHARED
) -> pd.DataFrame:
    """The same rows, if they are one finished set; RowsError naming the first mismatch.

    Every point has the same training seeds (`seeds` if given) and one set of settings, no row is
    there twice, all rows agree on `shared`, `solved` agrees with `successes`, and `points` (0: any)
    are present.
    """
    if rows.empty:
        raise RowsError("there is no row to compare")
    for name in shared:
        values = sorted(map(str, rows[name].unique()))
        if len(values) > 1:
            raise RowsError(f"rows differ in {name}: {values[0]} and {values[1]}")
    wanted = set(seeds) or set(rows["seed"])
    groups = rows.groupby(list(POINT), sort=False)
    for key, group in groups:
        name = " ".join(str(part) for part in key if part != "")
        if group["seed"].duplicated().any():
            raise RowsError(f"{name} has seed {group['seed'].mode()[0]} twice")
        _check_settings(name, group)
        if missing := sorted(wanted - set(group["seed"])):
            raise RowsError(f"{name} is unfinished: seed {missing[0]} is missing")
        if other := sorted(set(group["seed"]) - wanted):
            raise RowsError(f"{name} has seed {other[0]}, which was not asked for")
    if points and groups.ngroups != points:
        raise RowsError(f"the set is unfinished: {groups.ngroups} of {points} points are there")
    for row in rows.itertuples():
        if unpack_solved(row.solved, row.n).sum() != row.successes:
            raise RowsError(f"{row.cell} seed {row.seed}: solved and successes disagree")
    return rows


def _check_settings(name: str, group: pd.DataFrame) -> None:
    """RowsError when seeds of one point were played with different settings.

    A setting younger than a row is empty there and cannot have changed it.
    """
    planner = [key for key in group if key.startswith("planner.") and key != "planner.seed"]
    for key in (*(key for key in SETTINGS if key in group), *planner):
        if group[key].nunique() > 1:
            one, other = group[key].dropna().astype(str).unique()[:2]
            raise RowsError(f"{name} mixes settings: {key} is {one} and {other}")


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


def outcomes(rows: pd.DataFrame) -> np.ndarray:
    """(S, n) 0/1 outcomes of one point, seeds in ascending order."""
    ordered = rows.sort_values("seed")
    return np.stack([unpack_solved(row.solved, row.n) for row in ordered.itertuples()])
