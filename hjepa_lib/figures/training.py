"""Figures of training and of what models believe: losses, probes, errors, distances, level 2.

Lengths are px, predicted steps environment steps of the data, divergences nats.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import NullLocator
from scipy.stats import spearmanr

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import styled

LOST = 40.0
"""px: two random places of the room are closer than this, so a larger error is a lost dot."""
_BINS = 24
_SIDES = {"same room": style.SKY, "through the door": style.PURPLE}


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


# --- what models believe
@styled
def calibration(recorded: np.ndarray, predicted: np.ndarray, gamma: float = 1.0) -> Figure:
    """Predicted steps (n,) against those recorded between two states of one trajectory (n,).

    With median and 10-90 % band in bins of 5 or more. A perfect head, trained with a discount,
    predicts (1 - gamma^n) / (1 - gamma) for n steps; a recorded path may be a detour: a good head
    lies below the reference for long ones.
    """
    figure, (axis,) = style.panels(1, 1, 4.4, 3.9, "Calibration of the distance head")
    draw.scatter(axis, recorded, predicted, color=style.BLUE, alpha=0.25)
    bins = pd.Series(predicted).groupby(pd.cut(recorded, _BINS), observed=True)
    low, middle, high = (bins.quantile(q)[bins.size() >= 5] for q in (0.1, 0.5, 0.9))
    look = {"band": (low, high), "marker": None, "lw": 2}
    draw.curve(axis, [one.mid for one in low.index], middle, "median, 10-90 % band", **look)
    n = np.linspace(0, recorded.max(initial=1), 100)
    ideal = n if gamma == 1 else (1 - gamma**n) / (1 - gamma)
    words = "as recorded" + f", discounted by {gamma:g}" * (gamma != 1)
    axis.plot(n, ideal, "-", color=style.MUTED, linewidth=1.2, label=words)
    axis.set(xlabel="recorded steps", ylabel="predicted steps", xlim=(0, n[-1]), ylim=(0, None))
    axis.grid()
    axis.legend(loc="upper left")
    return figure


@styled
def cost_geometry(
    path: np.ndarray, costs: Mapping[str, np.ndarray], other_room: np.ndarray
) -> Figure:
    """Each cost (n,) of a pair of places against the shortest path between them, path (n,) px.

    `other_room` (n,) bool: the wall is between them. Titles give Spearman's rank correlation: 1
    means that the cost orders the pairs as the room does.
    """
    figure, axes = style.panels(1, len(costs), 3.5, 3.0, "Cost against the shortest path")
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        for (label, colour), pick in zip(_SIDES.items(), (~other_room, other_room), strict=True):
            draw.scatter(axis, path[pick], values[pick], label=label, color=colour, alpha=0.4)
        rank = spearmanr(path, values).statistic
        axis.set(xlabel="shortest path (px)", ylabel=name, title=f"rank correlation {rank:.2f}")
        axis.set(xlim=(0, None), ylim=(0, None))
        axis.grid()
    draw.legend(figure, axes, "outside lower right", ncols=2, markerscale=2)
    return figure


@styled
def macro_grid(positions: np.ndarray, skip: int, room: Any) -> Figure:
    """One window of states (T, 2) px: every state small, every `skip`-th one large and numbered."""
    coarse = positions[::skip]
    figure, (axis,) = style.panels(1, 1, 5.4, 3.4, "The two clocks")
    draw.show_room(axis, room)
    draw.path(axis, positions, color=style.BLUE, marker=".", ms=3.5, label="level 1: every step")
    look = {"s": 70, "color": style.ORANGE, "edgecolor": style.INK, "lw": 0.7, "zorder": 6}
    axis.scatter(*coarse.T, label=f"level 2: every {skip} steps", **look)
    for i, place in enumerate(coarse):
        axis.annotate(str(i), place, ha="center", va="center", fontsize=6.5, zorder=7)
    draw.legend(figure, [axis])
    return figure


@styled
def kl_by_dimension(kl: np.ndarray) -> Figure:
    """Mean divergence KL(q || p) in nats of each level-2 latent dimension (Z,), largest first."""
    title = f"KL by dimension: {kl.sum():.2f} nats in all"
    figure, (axis,) = style.panels(1, 1, 4.4, 2.4, title)
    axis.bar(np.arange(1, len(kl) + 1), np.sort(kl)[::-1], color=style.ORANGE, width=0.7)
    axis.set(xlabel="latent dimension, sorted", ylabel="KL (nats)", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(axis="y")
    return figure


@styled
def proposals(starts: np.ndarray, clouds: np.ndarray, rooms: Any, reach: float) -> Figure:
    """Places (n, N, 2) px that level 2 imagines one macro-step ahead of starts (n, 2), at most 24.

    `rooms` (n, Hpx, Wpx) are the backgrounds; the circle is the longest way of one macro-step,
    `reach` px: level 1 cannot deliver what lies outside it, or behind or inside the wall.
    """
    count = min(len(starts), style.MOST_PANELS)
    figure, axes = style.grid_of(count, 4, 1.8, title="What level 2 proposes")
    for axis, start, cloud, room in zip(axes, starts, clouds, rooms, strict=False):
        draw.show_room(axis, room)
        axis.scatter(*cloud.T, s=9, color=style.SUBGOAL, alpha=0.6, lw=0, zorder=5)
        style.mark(axis, "start", start)
        look = {"fill": False, "edgecolor": style.MUTED, "ls": ":", "lw": 1, "zorder": 4}
        axis.add_patch(Circle(start, reach, **look))
    return figure
