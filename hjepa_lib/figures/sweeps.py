"""Plots of a sweep: success against each swept setting, from the study's one table.

Seeds are pooled as in every table here: the line is successes / trials over all seeds with its
Wilson 95 % interval, small dots are the single seeds. What else was swept, and the protocol and
dynamics of the trials, get panels of their own, so nothing is averaged over settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.figures import style
from hjepa_lib.figures.plans import row_label
from hjepa_lib.figures.style import FigureError, styled

_LOG_FROM = 8  # a numeric axis becomes logarithmic when its ends differ by this factor
_COLUMNS = 3  # panels in a row


def write_figures(table: pd.DataFrame, swept: list[str], folder: Path) -> list[Path]:
    """`success_by_<setting>.png` for every swept setting that took at least two values."""
    paths = []
    for key in swept:
        if len(table) and table[key].nunique() > 1:
            name = re.sub(r"[^A-Za-z0-9]+", "_", key.rsplit(".", 1)[-1])
            others = [other for other in swept if other != key]
            figure = success_against(table, key, others)
            paths.append(style.save(figure, folder / f"success_by_{name}.png"))
    return paths


@styled
def success_against(
    table: pd.DataFrame, key: str, others: list[str] | None = None, title: str = ""
) -> Figure:
    """Success rate with its 95 % interval against the column `key`, a line per planner and cost.

    Rows need `method`, `cost`, `protocol`, `dynamics`, `seed`, `successes` and `n`. Panels (at most
    24) are the combinations of the columns `others` with protocol and dynamics. Raises FigureError
    when there is no row or no such column.
    """
    needed = [key, *(others or []), "protocol", "dynamics"]
    missing = [name for name in needed if name not in table]
    if missing or not len(table):
        raise FigureError(f"the table has no column {missing[0]!r}" if missing else "no row")
    values = _ordered(table[key])
    split = [
        name for name in needed[1:] if name in ("protocol", "dynamics") or _varies(table, name)
    ]
    groups = list(table.groupby(split, sort=False, dropna=False))[: style.MOST_PANELS]
    columns = min(_COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = style.panels(rows, columns, 3.4 if columns > 1 else 4.6, 2.7, sharey=True)
    for spare in axes[len(groups) :]:
        spare.remove()
    for axis, (names, rows_of_panel) in zip(axes, groups, strict=False):
        _panel(axis, rows_of_panel, key, values)
        axis.set_title(", ".join(_named(name, at) for name, at in zip(split, names, strict=True)))
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    shown = dict(
        pair
        for axis in axes[: len(groups)]
        for pair in zip(*reversed(axis.get_legend_handles_labels()), strict=True)
    )
    figure.legend(shown.values(), shown.keys(), loc="outside right upper")
    seeds = table["seed"].nunique()
    style.headline(figure, title or f"Success by {_short(key)}, {seeds} seed{'s' * (seeds > 1)}")
    return figure


def pooled(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """One row per value of `key`: successes, n, rate, low, high of all seeds together."""
    sums = rows.groupby(key, sort=False)[["successes", "n"]].sum()
    sums["rate"] = sums["successes"] / sums["n"]
    bounds = [wilson(int(row.successes), int(row.n)) for row in sums.itertuples()]
    sums[["low", "high"]] = np.array(bounds).reshape(-1, 2)
    return sums


def _panel(axis: Axes, rows: pd.DataFrame, key: str, values: list[Any]) -> None:
    numeric = all(isinstance(value, (int, float)) for value in values)
    places = values if numeric else list(range(len(values)))
    place = dict(zip(values, places, strict=True))
    lines = rows.groupby(["method", "cost"], sort=False, dropna=False)
    for (method, cost), group in lines:
        cost = "none" if pd.isna(cost) else cost  # how "none" comes back from a CSV file
        colour, floor = style.method_colour(method), cost == "none"
        sums = pooled(group, key)
        sums = sums.loc[[value for value in values if value in sums.index]]
        at = [place[value] for value in sums.index]
        gaps = np.abs(sums[["low", "high"]].to_numpy().T - sums["rate"].to_numpy())
        line, face = ("--", style.PAPER) if cost == "latent" else ("-", colour)
        axis.errorbar(
            at, sums["rate"], gaps, color=colour, ls=":" if floor else line, marker="o",
            ms=2 if floor else 5, mfc=face, elinewidth=1, capsize=2,
            label=row_label({"method": method, "cost": cost}),
        )  # fmt: skip
        if group["seed"].nunique() > 1 and not floor:
            single = group["successes"] / group["n"]
            axis.plot([place[value] for value in group[key]], single, ".", color=colour, ms=3)
    if numeric and min(values) > 0 and max(values) >= _LOG_FROM * min(values):
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
    crowded = sum(len(_text(value)) for value in values) > 30
    axis.set_xticks(
        places, labels=[_text(value) for value in values], rotation=30 if crowded else 0
    )
    axis.set_xlabel(_short(key))
    axis.grid(axis="y")


def _ordered(column: pd.Series) -> list[Any]:
    """The values: numbers by size, anything else in the order of the grid."""
    values = [value.item() if hasattr(value, "item") else value for value in column.unique()]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return sorted(values)
    return values


def _varies(table: pd.DataFrame, name: str) -> bool:
    return table[name].nunique(dropna=False) > 1


def _named(name: str, value: Any) -> str:
    return str(value) if name in ("protocol", "dynamics") else f"{_short(name)} {_text(value)}"


def _short(key: str) -> str:
    return key.removeprefix("planning.").removeprefix("data.").replace("_", " ")


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
