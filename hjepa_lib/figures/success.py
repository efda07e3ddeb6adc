"""Figures of success: rates with their 95 % intervals in rows and against a setting or a price.

Rows are dicts or a DataFrame with `method` and `cost`, and either `success_rate` and `ci95`, as in
summary.json, or `rate`, `low` and `high`, as in the tables of the workbench.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
    "seconds_per_step": "planning seconds per step and trial",
}
COSTS = {"latent": "latent cost", "distance": "temporal-distance cost"}
ENDS = (style.GREEN, style.SKY, style.PURPLE, style.ORANGE, style.BLUE, "#9AA3AD")
"""Colours of how trials end, in the order of evaluation/failures.LABELS."""
Rows = Sequence[Mapping[str, Any]] | pd.DataFrame


def tidy(rows: Rows, column: str = "method") -> pd.DataFrame:
    """The rows with `rate`, `low`, `high` and a `label`; FigureError without any or a column."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
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


def _n(*tables: pd.DataFrame) -> str:
    """ "n = 100", or all numbers of trials there are."""
    found = sorted({n for table in tables if "n" in table for n in table["n"]})
    return f"n = {'/'.join(map(str, found))}" if found else ""


# --- rows -------------------------------------------------------------------------------------
def rows_of_success(axis: Axes, table: pd.DataFrame, by: str, names: Sequence[str]) -> None:
    """A row for each name in the column `by`, with a marker for each method and cost in it.

    Floors and ceiling continue as dotted lines (F15); rates are written where a row has one marker.
    """
    groups = []
    for label, part in table.groupby("label", sort=False):
        look = style.look(*part.iloc[0][["method", "cost"]])
        groups.append((label, part[by].tolist(), part[["rate", "low", "high"]].to_numpy(), look))
    draw.interval_rows(axis, names, groups, 0 if table[by].is_unique else 0.16)
    for row in table.to_dict("records"):
        if row["method"].startswith(("random", "oracle")):
            axis.axvline(row["rate"], color=style.colour(row["method"]), lw=0.9, ls=":", zorder=1)
        if (table[by] == row[by]).sum() == 1:
            text = f"{100 * row['rate']:.0f} %  [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
            axis.annotate(
                text, (1.0, names.index(row[by])), xytext=(8, 0), va="center", fontsize=8,
                xycoords=axis.get_yaxis_transform(), textcoords="offset points",
            )  # fmt: skip
    draw.percent_axis(axis, f"success, {_n(table)}".strip(", "), "x")


@styled
def success_rows(
    rows: Rows, title: str = "Success", by: str = "label", order: Sequence[str] = ()
) -> Figure:
    """Success with its 95 % interval and n, in rows named by planner or by the column `by`."""
    table = tidy(rows)
    names = list(order or dict.fromkeys(table[by]))
    figure, (axis,) = style.panels(1, 1, 6.0, 1.0 + 0.34 * len(names))
    rows_of_success(axis, table, by, names)
    if by != "label":
        axis.legend(loc="upper left", bbox_to_anchor=(1.2, 1.0))
    style.headline(figure, title)
    return figure


@styled
def designs(
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    results: Mapping[str, Rows],
    xlabel: str = "median error (px)",
    title: str = "Designs",
) -> Figure:
    """Variants in rows: errors of their levels, each (error, low, high), and their success."""
    names = list(errors)
    if not names or set(names) != set(results):
        raise FigureError("designs needs errors and results of the same variants")
    figure, (left, right) = style.panels(1, 2, 3.9, 0.9 + 0.55 * len(names), sharey=True)
    levels = list(dict.fromkeys(level for found in errors.values() for level in found))
    own = {level: [name for name in names if level in errors[name]] for level in levels}
    draw.interval_rows(
        left, names,
        [(k, at, [errors[name][k] for name in at], style.look(k)) for k, at in own.items()],
    )  # fmt: skip
    left.set(xlabel=xlabel, xlim=(0, None))
    played = [tidy(rows).assign(variant=name) for name, rows in results.items()]
    rows_of_success(right, pd.concat(played), "variant", names)
    draw.legend(figure, (left, right))
    style.headline(figure, title)
    return figure


@styled
def pair_differences(table: pd.DataFrame, title: str = "Paired differences") -> Figure:
    """Difference of success with its interval, per seed and over all seeds.

    `table` as workbench's `pair_table` makes it. The p-value is the exact McNemar test's.
    """
    if table.empty:
        raise FigureError("there is no pair to draw")
    pooled = table["seed"] == "all"
    names = (
        table["pair"].where(pooled, table["pair"] + ", seed " + table["seed"].astype(str)).tolist()
    )
    ends = table[["difference", "difference_low", "difference_high"]].to_numpy()
    kinds = [("each seed", ~pooled, style.SKY), ("all seeds", pooled, style.BLUE)]
    figure, (axis,) = style.panels(1, 1, 6.4, 0.8 + 0.24 * len(table))
    draw.interval_rows(
        axis, names,
        [(k, np.array(names)[at].tolist(), ends[at], {"color": colour}) for k, at, colour in kinds],
        spread=0,
    )  # fmt: skip
    for place, p in enumerate(table["mcnemar_p"]):
        axis.text(
            1.02, place, f"p = {p:.2g}", transform=axis.get_yaxis_transform(), va="center",
            fontsize=7, color=style.MUTED,
        )  # fmt: skip
    axis.axvline(0, color=style.MUTED, linewidth=1, zorder=1)
    draw.percent_axis(axis, "difference of success", "x", limits=(None, None))
    style.headline(figure, title)
    return figure


@styled
def failure_bars(shares: pd.DataFrame, title: str = "How trials ended") -> Figure:
    """Stacked bars of shares that sum to one: a row per planner (index), a column per ending."""
    if shares.empty or not np.allclose(shares.sum(axis=1), 1):
        raise FigureError("the shares of a planner must sum to one")
    figure, (axis,) = style.panels(1, 1, 6.4, 0.9 + 0.3 * len(shares))
    left, at = np.zeros(len(shares)), range(len(shares))
    for words, colour in zip(shares, ENDS, strict=True):
        share = shares[words].to_numpy(float)
        drawn = axis.barh(at, share, left=left, height=0.66, color=colour, label=words)
        texts = [f"{100 * part:.0f}" if part >= 0.06 else "" for part in share]
        axis.bar_label(drawn, texts, label_type="center", fontsize=7, color=style.PAPER)
        left += share
    draw.percent_axis(axis, "share of trials", "x", limits=(0, 1))
    axis.set(yticks=at, yticklabels=shares.index, ylim=(len(shares) - 0.5, -0.5))
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


# --- lines ------------------------------------------------------------------------------------
@styled
def success_against(
    groups: Mapping[str, Rows],
    x: str,
    xlabel: str = "",
    floors: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    singles: Mapping[str, Rows] | None = None,
    title: str = "",
) -> Figure:
    """Success with its 95 % interval against the column `x`, one panel per named group of rows.

    Rows of one method and cost are one line. Where `x` is a price (`PRICES`) the line joins the
    points that no cheaper one equals, the others are pale, and rows without a price are horizontal
    lines, as are the named rates `floors`. Otherwise x is a setting, with a tick for each value.
    `marks` are named places on x, `singles` the rows of single seeds, small dots.
    """
    if not groups:
        raise FigureError("a figure of success needs at least one row")
    width = 3.5 if len(groups) > 1 else 5.0
    figure, axes = style.grid_of(len(groups), 3, width, 2.9 - width, sharey=True)
    for axis, (name, rows) in zip(axes, groups.items(), strict=True):
        table = tidy(rows, x)
        if x in PRICES:
            _priced(axis, table, x)
        else:
            _settings(axis, table, x, tidy(singles[name]) if singles else None)
            inside = table[x].min(), table[x].max()
            shown = {k: at for k, at in (marks or {}).items() if inside[0] <= at <= inside[1]}
            draw.marks(axis, shown)
        draw.levels(axis, floors or {})
        axis.set_xlabel(xlabel or PRICES.get(x, x))
        axis.set_title(f"{name}, {_n(table)}".strip(", ") if name else "")
        draw.percent_axis(axis, "success" if axis is axes[0] else "")
    draw.legend(figure, axes)
    style.headline(figure, title)
    return figure


def _settings(axis: Axes, table: pd.DataFrame, x: str, singles: pd.DataFrame | None) -> None:
    place = draw.value_axis(axis, table[x].tolist())
    nudge = 1.03 if axis.get_xscale() == "log" else 1.0  # so that no interval hides another
    for number, (label, part) in enumerate(table.groupby("label", sort=False)):
        floor = part["cost"].iloc[0] == "none"
        look = style.look(part["method"].iloc[0], part["cost"].iloc[0])
        part = part.assign(at=part[x].map(place)).sort_values("at")
        ends = (part[column] for column in ("rate", "low", "high"))
        more = {"ls": ":", "ms": 2} if floor else {}
        draw.intervals(axis, part["at"] * nudge**number, *ends, label, **look | more)
        if singles is not None and not floor:
            own = singles[singles["label"] == label]
            axis.plot(own[x].map(place), own["rate"], ".", color=look["color"], ms=3)


def _priced(axis: Axes, table: pd.DataFrame, x: str) -> None:
    prices = table[x].dropna()
    if (prices <= 0).any() or prices.empty:
        raise FigureError(f"success against {x} needs rows with a compute above 0")
    for label, part in table.groupby("label", sort=False):
        if part[x].isna().all():
            draw.levels(axis, {label: part["rate"].iloc[0]})
            continue
        look, part = style.look(*part.iloc[0][["method", "cost"]]), part.sort_values(x)
        best = part["rate"] > part["rate"].cummax().shift(fill_value=-1.0)
        for pick, more in ((best, {"label": label}), (~best, {"ls": "", "alpha": 0.35})):
            ends = (part.loc[pick, column] for column in (x, "rate", "low", "high"))
            if pick.any():
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
    lines = lines.rename(columns={"x": x})
    groups = {words: lines[lines["cost"] == cost] for cost, words in COSTS.items()}
    kept = {words: part for words, part in groups.items() if len(part)}
    return success_against(kept, x, floors=floors, title=title)
