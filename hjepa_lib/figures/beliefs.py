"""Figures of what the models believe: distances, level-2 latents and its proposals.

Predicted steps are environment steps of the data, lengths px, divergences nats.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy.stats import spearmanr

from hjepa_lib.figures import primitives as draw
from hjepa_lib.figures import style
from hjepa_lib.figures.style import styled

_BINS = 24
_SIDES = {"same room": style.SKY, "through the door": style.PURPLE}


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
        style.mark_start(axis, start)
        look = {"fill": False, "edgecolor": style.MUTED, "ls": ":", "lw": 1, "zorder": 4}
        axis.add_patch(Circle(start, reach, **look))
    return figure
