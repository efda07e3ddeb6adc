"""Figures of where prediction and planning break: by horizon, replanning, data, size and design.

Plain arrays and rows in, one matplotlib figure out (see `figures`). Errors are px, horizons and
replanning intervals environment steps; rows are `results` entries of summary.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from hjepa_lib.evaluation.collapse import Band
from hjepa_lib.evaluation.statistics import Interval
from hjepa_lib.figures import style
from hjepa_lib.figures.plans import row_label
from hjepa_lib.figures.style import FigureError, checked, styled

LOST = 40.0
"""px: two random places of the room are closer than this, so a larger error is a lost dot."""
TICKS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)


def _steps_axis(axis: Axes, ends: tuple[float, float]) -> None:
    """A logarithmic axis of steps with plain numbers."""
    axis.set_xscale("log")
    axis.set_xlim(ends[0] / 1.12, ends[1] * 1.12)
    inside = [tick for tick in TICKS if ends[0] <= tick <= ends[1] and tick not in (128, 256)]
    axis.xaxis.set_major_locator(FixedLocator(inside))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")


def _marks(axis: Axes, marks: Mapping[str, float]) -> None:
    """Dotted vertical lines with a name each, turned upright at the top."""
    for name, step in marks.items():
        axis.axvline(step, color=style.MUTED, linewidth=0.9, linestyle=":", zorder=1)
        axis.annotate(
            name, (step, 1), xytext=(-2, -2), rotation=90, ha="right", va="top", fontsize=7,
            color=style.MUTED, xycoords=("data", "axes fraction"), textcoords="offset points",
        )  # fmt: skip


@styled
def error_by_horizon(
    bands: Mapping[str, Band],
    marks: Mapping[str, float] | None = None,
    threshold: tuple[str, float] | None = None,
    collapsed: Mapping[str, Interval] | None = None,
    ylabel: str = "median error (px)",
    top: float | None = None,
    log: bool = False,
    title: str = "Open-loop error",
) -> Figure:
    """Median error by horizon with its bootstrap interval, on a logarithmic axis of steps.

    `marks` are named vertical lines (trained roll-out lengths, HW4), `threshold` a named horizontal
    one. `collapsed` maps a band's name to its collapse horizon, drawn as a diamond with its
    interval on the threshold; one beyond the last step is left out. The axis ends at `top` where
    the values go beyond it, or is logarithmic with `log`.
    """
    if not bands:
        raise FigureError("error_by_horizon needs at least one band")
    figure, (axis,) = style.panels(1, 1, 5.6, 3.3)
    ends = [math.inf, 0.0]
    for name, one in bands.items():
        steps = checked(one.steps, f"steps of {name}", None)
        low, median, high = (checked(v, name, len(steps)) for v in (one.low, one.median, one.high))
        colour = style.MUTED if name.startswith("stand") else style.method_colour(name)
        line = "--" if name.startswith("stand") or "latent cost" in name else "-"
        marker = "o" if len(steps) <= 16 else None
        axis.plot(steps, median, line, color=colour, marker=marker, ms=3, label=name)
        axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        ends = [min(ends[0], steps[0]), max(ends[1], steps[-1])]
    _steps_axis(axis, (ends[0], ends[1]))
    axis.set(xlabel="horizon (environment steps)", ylabel=ylabel)
    if log:
        axis.set_yscale("log")
        style.decimal_ticks(axis.yaxis)
    else:
        axis.set_ylim(0, min(axis.get_ylim()[1], top or math.inf))
    if threshold is not None:
        axis.axhline(threshold[1], color=style.GOAL, linewidth=0.9, label=threshold[0])
        for name, found in (collapsed or {}).items():
            if math.isfinite(found.estimate):
                colour = style.method_colour(name)
                reach = min(found.high, ends[1] * 1.1)
                axis.plot([found.low, reach], [threshold[1]] * 2, color=colour, lw=3, alpha=0.5)
                look = {"color": colour, "mec": style.INK, "mew": 0.7, "zorder": 6}
                axis.plot(found.estimate, threshold[1], "D", ms=6, **look)
    _marks(axis, marks or {})
    axis.grid(axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="median, 95 %", alignment="left")
    style.headline(figure, title)
    return figure


@styled
def success_by_setting(
    groups: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    xlabel: str,
    marks: Mapping[str, float] | None = None,
    title: str = "Success",
) -> Figure:
    """Success with its 95 % interval against a setting in steps, one panel per group.

    `groups` maps a panel's title to pairs (value of the setting, row); rows of one method and cost
    are one line, nudged apart so that no interval hides another. The number of trials stands in
    each panel's title.
    """
    if not groups or not all(groups.values()):
        raise FigureError("success_by_setting needs at least one row in every group")
    figure, axes = style.panels(1, len(groups), 3.5, 2.9, sharey=True)
    for axis, (name, pairs) in zip(axes, groups.items(), strict=True):
        lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
        for value, row in pairs:
            lines.setdefault(row_label(row), []).append((value, row))
        for at, (label, line) in enumerate(lines.items()):
            line.sort(key=lambda pair: pair[0])
            _rates(axis, [x * 1.04**at for x, _ in line], [row for _, row in line], label)
        values = [value for value, _ in pairs]
        _steps_axis(axis, (min(values), max(values)))
        axis.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
        n = {row["n"] for _, row in pairs}
        axis.set(xlabel=xlabel, title=f"{name}, n = {'/'.join(map(str, sorted(n)))}")
        inside = {key: v for key, v in (marks or {}).items() if min(values) <= v <= max(values)}
        _marks(axis, inside)
    _success_axis(axes[0])
    _shared_legend(figure, axes)
    style.headline(figure, title)
    return figure


def _rates(axis: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], label: str) -> None:
    rate = np.array([row["success_rate"] for row in rows])
    low, high = np.array([row["ci95"] for row in rows]).T
    colour = style.method_colour(rows[0]["method"])
    latent = rows[0]["cost"] == "latent"
    axis.errorbar(
        x, rate, np.abs([rate - low, high - rate]), color=colour, ls="--" if latent else "-",
        marker="o", ms=4.5, mfc=style.PAPER if latent else colour, elinewidth=1, capsize=2,
        label=label,
    )  # fmt: skip
    axis.grid(axis="y")


def _success_axis(axis: Axes) -> None:
    axis.set(ylabel="success", ylim=(-0.03, 1.03))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, outside on the right."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside right upper")


@styled
def scaling(
    rows: Sequence[Mapping[str, Any]],
    results: Sequence[tuple[float, Mapping[str, Any]]],
    x: str,
    xlabel: str,
    committed: Sequence[tuple[float, Mapping[str, Any]]] = (),
    title: str = "",
) -> Figure:
    """Open-loop error (left) and success (right) against a training setting, on a log axis.

    `rows` have the value `x` and `error`, an Interval in px; `results` pairs (value, row) as in
    `success_by_setting`, as do `committed` ones, drawn as grey squares.
    """
    if not rows:
        raise FigureError("scaling needs at least one row")
    figure, axes = style.panels(1, 2, 3.7, 2.9)
    ordered = sorted(rows, key=lambda row: row[x])
    at = checked(np.array([row[x] for row in ordered]), x, None)
    found = np.array([row["error"] for row in ordered])  # (r, 3)
    spread = np.abs(found[:, 1:].T - found[:, 0])
    axes[0].errorbar(
        at, found[:, 0], spread, color=style.BLUE, marker="o", ms=4.5, elinewidth=1, capsize=2
    )
    axes[0].set(ylabel="level 1: median error (px)", ylim=(0, None), title="prediction")
    axes[0].grid(axis="y")
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for value, row in results:
        lines.setdefault(row_label(row), []).append((value, row))
    for i, (label, line) in enumerate(lines.items()):
        line.sort(key=lambda pair: pair[0])
        _rates(axes[1], [v * 1.05**i for v, _ in line], [row for _, row in line], label)
    for value, row in committed:
        look = {"color": "#9AA3AD", "marker": "s", "ms": 4, "lw": 0, "zorder": 1.5}
        hollow = style.PAPER if row["cost"] == "latent" else look["color"]
        axes[1].plot(
            value, row["success_rate"], mfc=hollow, label=f"study: {row_label(row)}", **look
        )
    n = {row["n"] for _, row in results}
    axes[1].set(title=f"planning, n = {'/'.join(map(str, sorted(n)))}")
    _success_axis(axes[1])
    for axis in axes:
        axis.set(xlabel=xlabel, xscale="log")
        axis.xaxis.set_minor_locator(NullLocator())
        values = sorted({*at.tolist(), *(value for value, _ in committed if axis is axes[1])})
        axis.xaxis.set_major_locator(FixedLocator(values))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlim(values[0] / 1.5, values[-1] * 1.5)
        axis.tick_params(axis="x", labelrotation=30 if len(values) > 3 else 0)
    _shared_legend(figure, axes)
    style.headline(figure, title)
    return figure


@styled
def designs(
    errors: Mapping[str, Mapping[str, Interval]],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    ylabel: str = "median error (px)",
    title: str = "Designs",
) -> Figure:
    """Variants side by side: prediction errors with intervals above, success below.

    `errors` maps a variant to its levels' intervals, `results` a variant to its rows.
    """
    names = list(errors)
    if not names or set(names) != set(results):
        raise FigureError("designs needs errors and results of the same variants")
    figure, axes = style.panels(1, 2, 3.9, 0.9 + 0.55 * len(names), sharey=True)
    levels = list(dict.fromkeys(level for found in errors.values() for level in found))
    for i, level in enumerate(levels):
        shift = 0.16 * (i - (len(levels) - 1) / 2)
        rows = [(at, errors[name][level]) for at, name in enumerate(names) if level in errors[name]]
        middle = np.array([found.estimate for _, found in rows])
        spread = np.abs([[f.estimate - f.low, f.high - f.estimate] for _, f in rows]).T
        colour = style.MUTED if level.startswith("stand") else style.method_colour(level)
        axes[0].errorbar(
            middle, [at + shift for at, _ in rows], xerr=spread, color=colour, lw=0, elinewidth=1.2,
            marker="o", ms=4.5, capsize=2, label=level,
        )  # fmt: skip
    axes[0].set(xlabel=ylabel, xlim=(0, None))
    kinds = list(dict.fromkeys(row_label(row) for found in results.values() for row in found))
    for i, kind in enumerate(kinds):
        shift = 0.16 * (i - (len(kinds) - 1) / 2)
        for at, name in enumerate(names):
            for row in results[name]:
                if row_label(row) != kind:
                    continue
                rate, (low, high) = row["success_rate"], row["ci95"]
                colour = style.method_colour(row["method"])
                face = style.PAPER if row["cost"] == "latent" else colour
                axes[1].errorbar(
                    rate, at + shift, xerr=np.abs([[rate - low], [high - rate]]), color=colour,
                    marker="o", ms=5, mfc=face, lw=0, elinewidth=1.2, capsize=2,
                    label=kind if at == 0 else None,
                )  # fmt: skip
    n = sorted({row["n"] for found in results.values() for row in found})
    axes[1].set(xlabel=f"success, n = {'/'.join(map(str, n))}", xlim=(-0.03, 1.03))
    axes[1].xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes[0].set_yticks(range(len(names)), labels=names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for axis in axes:
        axis.grid(axis="x")
    _shared_legend(figure, axes)
    style.headline(figure, title)
    return figure
