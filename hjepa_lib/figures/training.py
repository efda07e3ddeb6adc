"""Figures of training: loss terms, learning rate, probes in px, open-loop error by horizon.

Plain arrays and rows of metrics.jsonl in, one matplotlib figure out (see `figures`). Errors are in
px and horizons in environment steps, so that levels with different clocks share one axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked, styled


@styled
def loss_curves(
    records: Sequence[Mapping[str, Any]],
    terms: Sequence[str],
    x: str = "step",
    validation: str = "validation_",
    log: bool = False,
    columns: int = 3,
    title: str = "Losses",
) -> Figure:
    """One panel per named term: training thin with its running mean, validation as dots.

    `records` are rows of metrics.jsonl; a term's validation value has the key `validation + term`.
    Missing or null values are skipped. `log` applies to panels whose values are all positive.
    Raises `FigureError` for a term that no record has.
    """
    columns = min(columns, len(terms))
    figure, axes = style.panels(-(-len(terms) // columns), columns, 2.7, 1.75, sharex=True)
    for spare in axes[len(terms) :]:
        spare.remove()
    for i, (axis, term) in enumerate(zip(axes, terms, strict=False)):
        steps, values = _series(records, x, term)
        checks, held_out = _series(records, x, validation + term)
        if len(values) + len(held_out) == 0:
            raise FigureError(f"no record has the term {term!r}")
        axis.plot(steps, values, color=style.BLUE, alpha=0.25, linewidth=0.8)
        axis.plot(steps, _running_mean(values), color=style.BLUE, label="training")
        axis.plot(checks, held_out, "o-", ms=3.5, lw=1, color=style.ORANGE, label="validation")
        if log and min([*values, *held_out]) > 0:
            axis.set_yscale("log")
            style.decimal_ticks(axis.yaxis)
        elif np.ptp(every := np.array([*values, *held_out])) < 1e-9 * abs(every).max():
            axis.set_ylim(*sorted((0, 2 * every[0])))  # else the axis shows rounding errors
        axis.set_title(term)
        axis.grid(axis="y")
        axis.tick_params(labelbottom=i + columns >= len(terms))
        if i + columns >= len(terms):
            axis.set_xlabel("update")
    lines = [line for axis in axes[: len(terms)] for line in axis.lines if len(line.get_xdata())]
    shown = {line.get_label(): line for line in lines if line.get_label()[0] != "_"}
    figure.legend(shown.values(), shown.keys(), loc="outside upper right", ncols=2)
    style.headline(figure, title)
    return figure


def _series(records: Sequence[Mapping[str, Any]], x: str, key: str) -> tuple[np.ndarray, ...]:
    pairs = [(row[x], row[key]) for row in records if row.get(key) is not None]
    return tuple(np.array(pairs, dtype=float).reshape(-1, 2).T)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Trailing mean over a thirtieth of the curve, as long as the curve."""
    window = max(1, len(values) // 30)
    total = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / (end - start)


@styled
def learning_rate(records: Sequence[Mapping[str, Any]], x: str = "step", key: str = "lr") -> Figure:
    """The learning rate by update, to see that it never rises again after the warm-up (PL4)."""
    steps, rates = _series(records, x, key)
    if len(rates) == 0:
        raise FigureError(f"no record has {key!r}")
    figure, (axis,) = style.panels(1, 1, 3.6, 2.1)
    axis.plot(steps, rates, color=style.BLUE)
    axis.set(xlabel="update", ylim=(0, None))
    axis.ticklabel_format(axis="y", scilimits=(-2, 2))
    axis.grid(axis="y")
    style.headline(figure, "Learning rate")
    return figure


@styled
def probe_scatter(
    true: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str] = ("x", "y"),
    title: str = "Position probe",
) -> Figure:
    """Predicted against true values (n, K) px of a linear probe, one panel per coordinate.

    Each panel's title gives its RMSE in px and the spread (std) of the true values, below which a
    probe knows something; with names (x, y) the headline adds the RMSE of the Euclidean error. For
    a layout probe pass names ("wall_x", "door_y").
    """
    true = checked(true, "true", None, len(names))
    predicted = checked(predicted, "predicted", *true.shape)
    figure, axes = style.panels(1, len(names), 3.2, 3.0)
    some = style.subset(len(true))
    errors = np.sqrt(((predicted - true) ** 2).mean(0))  # (K,)
    for k, axis in enumerate(axes):
        both = np.stack([true[some, k], predicted[some, k]])
        ends = np.array([both.min() - 2, both.max() + 2])
        axis.plot(ends, ends, color=style.MUTED, linewidth=0.9, zorder=3)
        axis.scatter(true[some, k], predicted[some, k], s=6, color=style.BLUE, alpha=0.25, lw=0)
        axis.set(xlabel=f"true {names[k]} (px)", ylabel=f"predicted {names[k]} (px)")
        axis.set_title(f"{names[k]}: RMSE {errors[k]:.2f} px, spread {true[:, k].std():.1f} px")
        axis.set(xlim=ends, ylim=ends, aspect="equal")
        axis.grid()
    if tuple(names) == ("x", "y"):
        title = f"{title}: RMSE {np.sqrt((errors**2).sum()):.2f} px"
    style.headline(figure, title)
    return figure


@styled
def open_loop_error(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    stay: tuple[np.ndarray, np.ndarray],
    marks: Mapping[str, float] | None = None,
    title: str = "Open-loop error",
) -> Figure:
    """Position error of predictions by horizon: median and 10-90 % band per level.

    `curves` maps a level's name to (steps (h,), errors (n, h) px), steps in environment steps;
    `stay` is the same for the baseline that predicts the current position. `marks` draws named
    vertical lines, such as the training roll-out and the planning horizon (HW4).
    """
    figure, (axis,) = style.panels(1, 1, 5.2, 3.2)
    for name, (steps, errors) in [*curves.items(), ("stay where you are", stay)]:
        steps = checked(steps, f"steps of {name}", None)
        errors = checked(errors, f"errors of {name}", None, len(steps))
        low, median, high = np.quantile(errors, [0.1, 0.5, 0.9], axis=0)
        baseline = name not in curves
        colour = style.MUTED if baseline else style.method_colour(name)
        marker = "o" if len(steps) <= 16 and not baseline else None
        line = "--" if baseline else "-"
        axis.plot(steps, median, line, color=colour, marker=marker, ms=3.5, label=name)
        if not baseline:
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel="horizon (environment steps)", ylabel="error of the position (px)")
    axis.set(xlim=(0, None), ylim=(0, None))
    for name, step in (marks or {}).items():
        axis.axvline(step, color=style.MUTED, linewidth=0.8, linestyle=":")
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axis.annotate(
            name, (step, 1), xytext=(-3, -2), rotation=90, ha="right", va="top", fontsize=7.5,
            color=style.MUTED, **where,
        )  # fmt: skip
    axis.grid(axis="y")
    axis.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), title="median, 10-90 % band", alignment="left"
    )
    style.headline(figure, title)
    return figure
