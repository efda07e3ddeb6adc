"""Figures of a study: success against compute, paired differences, failures, controls, sweeps.

Tables of evaluation/frontier.py in, one matplotlib figure out (see `figures`). Bars and markers are
means over training seeds, whiskers their 95 % intervals; `seeds` and n stand in the titles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    LogLocator,
    NullLocator,
    PercentFormatter,
)

from hjepa_lib.evaluation.failures import LABELS
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, styled

AXES = {
    "flops_per_step": "forward FLOPs per environment step",
    "model_transitions_per_step": "model transitions per environment step",
    "seconds_per_step": "planning seconds per step and trial",
}
FLOOR_LINES = (":", "-.", (0, (6, 2)))
"""The two random planners share a colour: their lines tell them apart."""
COSTS = {"latent": "latent cost", "distance": "temporal-distance cost"}
FAILURES = {
    "solved": style.GREEN,
    "missed_goal": style.SKY,
    "off_distribution": style.PURPLE,
    "subgoal_unreachable": style.ORANGE,
    "stuck_at_wall": style.BLUE,
    "no_door": "#9AA3AD",
}


@styled
def frontiers(
    lines: pd.DataFrame,
    x: str = "flops_per_step",
    floors: Mapping[str, float] | None = None,
    title: str = "Success against compute",
) -> Figure:
    """One panel per cost; `lines` as `frontier` makes them, price `x`, `floors` name -> rate.

    A method's line joins the points that no cheaper one of it equals; the others are hollow.
    """
    if lines.empty or not np.isfinite(lines["x"]).all() or (lines["x"] <= 0).any():
        raise FigureError("a frontier needs lines with a compute above 0 each")
    costs = [cost for cost in COSTS if (lines["cost"] == cost).any()]
    figure, axes = style.panels(1, len(costs), 3.6, 3.1, sharey=True, sharex=True)
    for axis, cost in zip(axes, costs, strict=True):
        for method, group in lines[lines["cost"] == cost].groupby("method", sort=True):
            colour, group = style.method_colour(method), group.sort_values("x")
            best = group["rate"] > group["rate"].cummax().shift(fill_value=-1.0)
            _with_interval(axis, group[best], "x", method, colour)
            if not best.all():
                _with_interval(axis, group[~best], "x", "", colour, "")
        for dashes, (name, rate) in zip(cycle(FLOOR_LINES), (floors or {}).items(), strict=False):
            colour = style.method_colour(name)
            axis.axhline(rate, color=colour, linestyle=dashes, linewidth=1.2, label=name, zorder=1)
        axis.set(title=COSTS[cost], xlabel=AXES.get(x, x), xscale="log")
        style.decimal_ticks(axis.xaxis)
        if lines["x"].max() > 20 * lines["x"].min():  # 1, 2 and 5 would run into each other
            axis.xaxis.set_major_locator(LogLocator())
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axis.grid(axis="y")
    low, high = axes[0].get_xlim()  # shared; wide enough for a tick at 1, 2 or 5
    axes[0].set_xlim(low / 1.3, high * 1.3)
    _percent(axes[0])
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


def _with_interval(
    axis: Axes, group: pd.DataFrame, x: str, label: str, colour: str, line: str = "-"
) -> None:
    """Markers, a line and whiskers; the group has columns rate, low, high."""
    rate = group["rate"].to_numpy(float)
    gaps = np.abs(np.stack([rate - group["low"], group["high"] - rate]).astype(float))
    axis.errorbar(
        group[x], rate, gaps, color=colour, ls=line, marker="o", ms=4.5, elinewidth=1, capsize=2,
        mfc=colour if line == "-" else style.PAPER, label=label, zorder=3,
    )  # fmt: skip


def _percent(axis: Axes) -> None:
    axis.set(ylabel="success", ylim=(-0.03, 1.03))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


@styled
def sweep_curve(
    lines: pd.DataFrame,
    x: str,
    label: str,
    reference: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Success over a swept setting, one line per cost (dashed: latent); `lines` has a column x.

    `reference` (name -> rate) are horizontal lines, such as the flat planner of each cost.
    """
    if lines.empty:
        raise FigureError("a sweep needs at least one point")
    figure, (axis,) = style.panels(1, 1, 4.6, 2.9)
    for cost, group in lines.groupby("cost", sort=False):
        dashes = "--" if cost == "latent" else "-"
        name = COSTS.get(cost, cost)
        _with_interval(axis, group.sort_values(x), x, name, style.ORANGE, dashes)
    for name, rate in (reference or {}).items():
        dashes = (0, (4, 3)) if "latent" in name else "-"
        axis.axhline(
            rate, color=style.method_colour(name), linestyle=dashes, linewidth=1, label=name,
            zorder=1,
        )  # fmt: skip
    values = sorted(lines[x].unique())
    if min(values) > 0 and len(values) > 1:
        axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(values))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel=label)
    axis.grid(axis="y")
    _percent(axis)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


@styled
def labelled_bars(
    lines: pd.DataFrame, label: str, title: str = "", order: Sequence[str] = ()
) -> Figure:
    """Success of points named by the column `label`, one panel per cost, in this `order`."""
    if lines.empty:
        raise FigureError("there is no bar to draw")
    costs = [cost for cost in COSTS if (lines["cost"] == cost).any()]
    names = list(order or dict.fromkeys(lines[label]))
    height = 0.75 + 0.3 * len(names)
    figure, axes = style.panels(1, len(costs), 3.3, height, sharex=True, sharey=True)
    for axis, cost in zip(axes, costs, strict=True):
        for row in lines[lines["cost"] == cost].to_dict("records"):
            at, colour = names.index(row[label]), style.method_colour(row["method"])
            axis.barh(at, row["rate"], height=0.62, color=colour, zorder=2)
            axis.plot([row["low"], row["high"]], [at, at], color=style.INK, linewidth=1.2, zorder=3)
            text = f"{100 * row['rate']:.0f} %"
            axis.text(min(row["high"] + 0.02, 1.03), at, text, va="center", fontsize=8)
        axis.set(title=COSTS[cost], xlabel="success", xlim=(0, 1.16))
        axis.set(yticks=range(len(names)), yticklabels=names, xticks=np.linspace(0, 1, 5))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axis.set_ylim(len(names) - 0.45, -0.6)
    style.headline(figure, title)
    return figure


@styled
def failure_bars(shares: pd.DataFrame, title: str = "How trials ended") -> Figure:
    """Stacked bars of shares that sum to one: a row per planner (index), a column per label."""
    if list(shares.columns) != list(LABELS) or shares.empty:
        raise FigureError(f"shares must have the columns {', '.join(LABELS)}")
    if not np.allclose(shares.sum(axis=1), 1):
        raise FigureError("the shares of a planner must sum to one")
    figure, (axis,) = style.panels(1, 1, 6.4, 0.9 + 0.3 * len(shares))
    left = np.zeros(len(shares))
    for name, words in LABELS.items():
        share = shares[name].to_numpy(float)
        bars = axis.barh(
            range(len(shares)), share, left=left, height=0.66, color=FAILURES[name], label=words
        )
        texts = [f"{100 * part:.0f}" if part >= 0.06 else "" for part in share]
        axis.bar_label(bars, texts, label_type="center", fontsize=7, color=style.PAPER)
        left += share
    axis.set(yticks=range(len(shares)), yticklabels=shares.index, xlim=(0, 1))
    axis.set_ylim(len(shares) - 0.5, -0.5)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.set_xlabel("share of trials")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


@styled
def pair_differences(table: pd.DataFrame, title: str = "Paired differences") -> Figure:
    """Difference of success with its interval, per seed (hollow) and over seeds (filled).

    `table` as `pair_table` makes it; a blank row separates the pairs. The p-value is the exact
    McNemar test's.
    """
    if table.empty:
        raise FigureError("there is no pair to draw")
    figure, (axis,) = style.panels(1, 1, 6.2, 0.8 + 0.24 * len(table))
    at, ticks, names = 0.0, [], []
    for name, group in table.groupby("pair", sort=False):
        for row in group.itertuples():
            pooled = row.seed == "all"
            words = name if len(group) == 1 else f"{name}, all seeds"
            colour = style.ORANGE if row.difference > 0 else style.BLUE
            ends = [row.difference_low, row.difference_high]
            axis.plot(ends, [at, at], color=colour, linewidth=1.4, zorder=2)
            face = colour if pooled else style.PAPER
            axis.scatter(row.difference, at, s=26, color=face, edgecolor=colour, zorder=3)
            axis.text(
                1.02, at, f"p = {row.mcnemar_p:.2g}", transform=axis.get_yaxis_transform(),
                va="center", fontsize=7, color=style.MUTED,
            )  # fmt: skip
            ticks.append(at)
            names.append(words if pooled else f"seed {row.seed}")
            at += 1
        at += 0.6
    axis.axvline(0, color=style.MUTED, linewidth=1, zorder=1)
    axis.set(yticks=ticks, yticklabels=names, ylim=(at - 0.8, -0.8))
    axis.set_xlabel("difference of success")
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.grid(axis="x")
    style.headline(figure, title)
    return figure


def failure_shares(rows: pd.DataFrame, names: str) -> pd.DataFrame:
    """Mean shares over seeds: index the values of the column `names`, columns the labels."""
    columns = [f"failure.{name}" for name in LABELS]
    shares = rows[columns].div(rows["n"], axis=0).groupby(rows[names], sort=False).mean()
    return shares.set_axis(list(LABELS), axis=1)
