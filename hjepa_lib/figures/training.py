"""Figures of training: loss terms, learning rate, probes in px, open-loop error by horizon."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import styled

LOST = 40.0
"""px: two random places of the room are closer than this, so a larger error is a lost dot."""


@styled
def loss_curves(
    records: Sequence[Any],
    terms: Sequence[str],
    columns: int = 3,
    title: str = "Losses",
    limits: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Rows of metrics.jsonl, one panel per term; its validation is called `validation_` + term.

    A list of such rows per seed draws a curve per seed; `limits` names horizontal lines of a term.
    """
    seeds = [records] if not records or isinstance(records[0], Mapping) else records
    figure, axes = style.grid_of(len(terms), columns, 2.7, -0.8, title=title)
    for axis, term in zip(axes, terms, strict=True):
        for rows in seeds:
            draw.learning(axis, rows, term, f"validation_{term}")
        for name, value in (limits or {}).get(term, {}).items():
            axis.axhline(value, color=style.GOAL, linewidth=0.8, linestyle=":")
            axis.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), fontsize=7,
                          color=style.GOAL, va="bottom")  # fmt: skip
        axis.set(title=term.replace("_", " "), xlabel="update")
    place = "outside upper right" if len(terms) > 1 else "outside lower right"  # beside the title
    draw.legend(figure, axes, place, ncols=2)
    return figure


@styled
def probe_scatter(
    true: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str] = ("x", "y"),
    title: str = "Position probe",
    unit: str = "px",
) -> Figure:
    """Predicted against true values (n, K) of a probe, one panel per coordinate.

    Titles give the RMSE and the spread (std) of the true values, below which a probe knows
    something; with names (x, y) the headline adds the RMSE of the Euclidean error.
    """
    errors = np.sqrt(((predicted - true) ** 2).mean(0))  # (K,)
    if tuple(names) == ("x", "y"):
        title = f"{title}: RMSE {np.linalg.norm(errors):.2f} {unit}"
    figure, axes = style.panels(1, len(names), 3.2, 3.0, title)
    for axis, name, one, other, error in zip(axes, names, true.T, predicted.T, errors, strict=True):
        draw.identity(axis, one, other, f"{name} ({unit})")
        axis.set_title(f"{name}: RMSE {error:.2f} {unit}, spread {one.std():.1f}")
    return figure


def open_loop_error(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    marks: Mapping[str, float] | None = None,
    **look: Any,
) -> Figure:
    """Median and 10-90 % band by horizon of each level's errors, and of standing still.

    `curves` maps a name to (environment steps (h,), errors (n, h) px), the rest as in
    `error_by_horizon`.
    """
    bands = {
        name: (steps, *np.quantile(errors, [0.5, 0.1, 0.9], axis=0))
        for name, (steps, errors) in curves.items()
    }
    return error_by_horizon(bands, marks, band="median, 10-90 % band", **look)


@styled
def error_by_horizon(
    bands: Mapping[str, tuple[np.ndarray, ...]],
    marks: Mapping[str, float] | None = None,
    threshold: tuple[str, float] | None = None,
    collapsed: Mapping[str, Sequence[float]] | None = None,
    ylabel: str = "error of the position (px)",
    band: str = "median, 95 %",
    top: float | None = None,
    log: bool = False,
    title: str = "Open-loop error",
) -> Figure:
    """Errors by horizon, each (steps, middle, low, high), on a logarithmic axis of steps.

    `marks` are named horizons (HW4), such as that of training; `threshold` is a named error.
    `collapsed` maps a name to its collapse horizon (estimate, low, high), a diamond on the
    threshold where it is finite. The error's axis ends at `top`, or is logarithmic with `log`.
    """
    figure, (axis,) = style.panels(1, 1, 5.6, 3.3, title)
    for name, (steps, middle, low, high) in bands.items():
        baseline = name.startswith("sta")  # stand still, stay where it was
        line = "--" if baseline else style.look(name)["ls"]
        width = None if baseline else (low, high)
        draw.curve(axis, steps, middle, name, style.colour(name), width, ls=line)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel="horizon (environment steps)", ylabel=ylabel)
    if log:
        axis.set_yscale("log")
        style.decimal_ticks(axis.yaxis)
    else:
        axis.set_ylim(0, min(axis.get_ylim()[1], top or math.inf))
    if threshold is not None:
        axis.axhline(threshold[1], color=style.GOAL, linewidth=0.9, label=threshold[0])
        last = max(steps[-1] for steps, *_ in bands.values())
        for name, (found, low, high) in (collapsed or {}).items():
            if math.isfinite(found):
                ends = [min(low, last)], [min(high, 1.1 * last)]
                look = {"color": style.colour(name), "marker": "D", "mec": style.INK, "capsize": 0}
                draw.intervals(axis, [threshold[1]], [found], *ends, across=True, **look)
    draw.marks(axis, marks or {})
    axis.grid(axis="y")
    draw.legend_beside(axis, title=band, alignment="left")
    return figure
