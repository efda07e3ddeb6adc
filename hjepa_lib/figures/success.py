"""Figures of success: rates with their 95 % intervals in rows and against a setting or a price.

Rows are dicts or a DataFrame with `method` and `cost`, and either `success_rate` and `ci95`, as in
summary.json, or `rate`, `low` and `high`, as in the tables of the workbench.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, styled

PRICES = {
    "flops_per_step": "forward FLOPs per environment step",
    "model_transitions_per_step": "model transitions per environment step",
    "seconds_per_episode": "planning seconds per episode",
}
COSTS = {"latent": "latent cost", "distance": "temporal-distance cost",
         "graph": "graph cost"}  # fmt: skip
ENDS = (style.GREEN, style.SKY, style.PURPLE, style.ORANGE, style.BLUE, "#9AA3AD")
"""Colours of how trials end, in the order of evaluation/failures.LABELS."""
Rows = Sequence[Mapping[str, Any]] | pd.DataFrame
_ENDS = ["rate", "low", "high"]


def tidy(rows: Rows, column: str = "method") -> pd.DataFrame:
    """The rows with `rate`, `low`, `high` and a `label`; FigureError without any or a column."""
    table = pd.DataFrame(rows)
    if table.empty:
        raise FigureError("a figure of success needs at least one row")
    if column not in table:
        raise FigureError(f"the rows have no column {column!r}")
    cost = table["cost"].fillna("none").replace("", "none")
    names = table["method"].where(cost == "none", table["method"] + ", " + cost + " cost")
    table = table.assign(cost=cost, label=names)
    if "rate" not in table:
        low, high = zip(*table["ci95"], strict=True)
        table = table.assign(rate=table["success_rate"], low=low, high=high)
    return table


def _planners(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """(label, rows, look) of each method and cost."""
    groups = table.groupby("label", sort=False)
    return [(name, part, style.look(*part.iloc[0][["method", "cost"]])) for name, part in groups]


def _with_n(words: str, table: pd.DataFrame) -> str:
    """ "words, n = 100", or all numbers of trials there are."""
    found = sorted(set(table.get("n", [])))
    return f"{words}, n = {'/'.join(map(str, found))}" if found else words


def rows_of_success(axis: Axes, table: pd.DataFrame, by: str, names: Sequence[str]) -> None:
    """A row for each name in the column `by`, with a marker for each method and cost in it.

    Floors and ceiling continue as dotted lines (F15); rates are written where a row has one marker.
    """
    groups = [(name, list(part[by]), part[_ENDS], look) for name, part, look in _planners(table)]
    draw.interval_rows(axis, names, groups, 0 if table[by].is_unique else 0.16)
    for method, rate in zip(table["method"], table["rate"], strict=True):
        if method.startswith(("random", "oracle")):
            axis.axvline(rate, color=style.colour(method), lw=0.9, ls=":", zorder=1)
    alone = 100 * table.drop_duplicates(by, keep=False).set_index(by)[_ENDS].astype(float)
    texts = {
        names.index(name): "{:.0f} %  [{:.0f}, {:.0f}]".format(*ends)
        for name, ends in alone.iterrows()
    }
    draw.row_texts(axis, texts, fontsize=8)
    draw.percent_axis(axis, _with_n("success", table), "x")


@styled
def success_rows(
    rows: Rows, title: str = "Success", by: str = "label", order: Sequence[str] = ()
) -> Figure:
    """Success with its 95 % interval and n, in rows named by planner or by the column `by`."""
    table = tidy(rows)
    names = list(order or dict.fromkeys(table[by]))
    figure, (axis,) = style.panels(1, 1, 6.0, 1.0 + 0.34 * len(names), title)
    rows_of_success(axis, table, by, names)
    if by != "label":
        draw.legend_beside(axis, 1.2)
    return figure


@styled
def designs(
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    results: Mapping[str, Rows],
    xlabel: str = "median error (px)",
    title: str = "Designs",
) -> Figure:
    """Variants in rows: errors of their levels, each (error, low, high), and their success."""
    names, groups = list(errors), []
    figure, (left, right) = style.panels(1, 2, 3.9, 0.9 + 0.55 * len(names), title, sharey=True)
    for level in dict.fromkeys(chain(*errors.values())):
        found = {name: one[level] for name, one in errors.items() if level in one}
        groups.append((level, found, list(found.values()), style.look(level)))
    draw.interval_rows(left, names, groups)
    left.set(xlabel=xlabel, xlim=(0, None))
    played = [tidy(rows).assign(variant=name) for name, rows in results.items()]
    rows_of_success(right, pd.concat(played), "variant", names)
    draw.legend(figure, (left, right))
    return figure


@styled
def pair_differences(table: pd.DataFrame, title: str = "Paired differences") -> Figure:
    """Difference of success with its interval and exact McNemar test, per seed and over all seeds.

    `table` as workbench's `pair_table` makes it.
    """
    pooled = table["seed"] == "all"
    names = table["pair"].where(pooled, table["pair"] + ", seed " + table["seed"].astype(str))
    ends = table[["difference", "difference_low", "difference_high"]]
    figure, (axis,) = style.panels(1, 1, 6.4, 0.8 + 0.24 * len(table), title)
    groups = [
        (None, names[rows], ends[rows], {"color": shade})
        for rows, shade in ((pooled, style.BLUE), (~pooled, style.SKY))
    ]
    draw.interval_rows(axis, list(names), groups, spread=0)
    texts = {row: f"p = {p:.2g}" for row, p in enumerate(table["mcnemar_p"])}
    draw.row_texts(axis, texts, fontsize=7, color=style.MUTED)
    axis.axvline(0, color=style.MUTED, linewidth=1, zorder=1)
    draw.percent_axis(axis, "difference of success", "x", limits=(None, None))
    return figure


@styled
def failure_bars(shares: pd.DataFrame, title: str = "How trials ended") -> Figure:
    """Stacked bars of shares that sum to one: a row per planner (index), a column per ending."""
    figure, (axis,) = style.panels(1, 1, 6.4, 0.9 + 0.3 * len(shares), title)
    shares.plot.barh(ax=axis, stacked=True, width=0.66, color=ENDS, legend=False, ylabel="")
    for bars in axis.containers:
        texts = [f"{100 * part:.0f}" if part >= 0.06 else "" for part in bars.datavalues]
        axis.bar_label(bars, texts, label_type="center", fontsize=7, color=style.PAPER)
    draw.percent_axis(axis, "share of trials", "x", limits=(0, 1))
    draw.name_rows(axis, shares.index)
    draw.legend_beside(axis)
    return figure


@styled
def success_against(
    groups: Mapping[str, Rows],
    x: str,
    xlabel: str = "",
    floors: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Success with its 95 % interval against the column `x`, one panel per named group of rows.

    A line per method and cost. Where `x` is a price (`PRICES`) it joins the points that no cheaper
    one equals, the others are pale, and rows without a price are horizontal, as are the named rates
    `floors`. Otherwise x is a setting, with a tick for each value. `marks` are named places on x.
    """
    width = 3.5 if len(groups) > 1 else 5.0
    figure, axes = style.grid_of(len(groups), 3, width, 2.9 - width, title=title, sharey=True)
    for axis, (name, rows) in zip(axes, groups.items(), strict=True):
        table = tidy(rows, x)
        if x in PRICES:
            _priced(axis, table, x)
        else:
            _settings(axis, table, x)
            low, high = table[x].agg(["min", "max"])
            draw.marks(axis, {k: at for k, at in (marks or {}).items() if low <= at <= high})
        draw.levels(axis, floors or {})
        axis.set_xlabel(xlabel or PRICES.get(x, x))
        axis.set_title(_with_n(name, table) if name else "")
        draw.percent_axis(axis, "success" if axis is axes[0] else "")
    draw.legend(figure, axes)
    return figure


def _settings(axis: Axes, table: pd.DataFrame, x: str) -> None:
    place = draw.value_axis(axis, table[x].tolist())
    nudge = 1.03 if axis.get_xscale() == "log" else 1.0  # so that no interval hides another
    for number, (label, part, look) in enumerate(_planners(table)):
        floor = part["cost"].iloc[0] == "none"
        part = part.assign(at=part[x].map(place) * nudge**number).sort_values("at")
        ends = (part[column] for column in ("at", *_ENDS))
        more = {"ls": ":", "ms": 2} if floor else {}
        draw.intervals(axis, *ends, label=label, **look | more)


def _priced(axis: Axes, table: pd.DataFrame, x: str) -> None:
    prices = table[x].dropna()
    if (prices <= 0).any() or prices.empty:
        raise FigureError(f"success against {x} needs rows with a compute above 0")
    for label, part, look in _planners(table):
        if part[x].isna().all():
            draw.levels(axis, {label: part["rate"].iloc[0]})
            continue
        part = part.sort_values(x)
        best = part["rate"] > part["rate"].cummax().shift(fill_value=-1.0)
        for pick, more in ((best, {"label": label}), (~best, {"ls": "", "alpha": 0.35})):
            if pick.any():
                ends = (part.loc[pick, column] for column in (x, *_ENDS))
                draw.intervals(axis, *ends, **look | more)
    axis.set_xscale("log")
    style.decimal_ticks(axis.xaxis)
    if prices.max() > 20 * prices.min():  # 1, 2 and 5 would run into each other
        axis.xaxis.set_major_locator(LogLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.set_xlim(prices.min() / 1.5, prices.max() * 1.5)  # wide enough for a tick at 1, 2 or 5


def frontiers(
    lines: pd.DataFrame,
    x: str = "flops_per_step",
    floors: Mapping[str, float] | None = None,
    title: str = "Success against compute",
) -> Figure:
    """Success against the price `x`, one panel per cost; `lines` as workbench's `frontier` has."""
    groups = {words: lines[lines["cost"] == cost] for cost, words in COSTS.items()}
    kept = {words: part for words, part in groups.items() if len(part)}
    return success_against(kept, x, floors=floors, title=title)
