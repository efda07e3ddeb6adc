"""Figures of what the models believe: distances, level-2 latents, its proposals and its controls.

Plain arrays in, one matplotlib figure out (see `figures`). Predicted steps are environment steps of
the data, lengths are px, (x, y) with y down, divergences are nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked, styled

_BINS = 24


@styled
def calibration(
    recorded: np.ndarray,
    predicted: np.ndarray,
    gamma: float = 1.0,
    title: str = "Calibration of the distance head",
) -> Figure:
    """Predicted steps (n,) against the steps recorded between two states of one trajectory (n,).

    The reference is what a perfect head predicts for a recorded path that is the shortest one: n
    steps discounted by `gamma`, (1 - gamma^n) / (1 - gamma). A recorded path may be a detour, so a
    good head lies on this line for short paths and below it for long ones.
    """
    recorded = checked(recorded, "recorded", None)
    predicted = checked(predicted, "predicted", len(recorded))
    figure, (axis,) = style.panels(1, 1, 4.4, 3.2)
    some = style.subset(len(recorded))
    axis.scatter(recorded[some], predicted[some], s=5, color=style.BLUE, alpha=0.2, lw=0)
    centres, bands = _bands(recorded, predicted)
    axis.fill_between(centres, bands[0], bands[2], color=style.ORANGE, alpha=0.25, linewidth=0)
    axis.plot(centres, bands[1], color=style.ORANGE, label="median, 10-90 % band")
    end = max(recorded.max(), 1)
    steps = np.linspace(0, end, 100)
    ideal = steps if gamma == 1 else (1 - gamma**steps) / (1 - gamma)
    label = "as recorded" if gamma == 1 else f"as recorded, discounted by {gamma:g}"
    axis.plot(steps, ideal, color=style.MUTED, linewidth=1.1, label=label)
    axis.set(xlabel="recorded steps", ylabel="predicted steps", xlim=(0, end), ylim=(0, None))
    axis.grid()
    axis.legend(loc="upper left")
    style.headline(figure, title)
    return figure


def _bands(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bin centres (k,) and the 10, 50, 90 % quantiles (3, k) of y in bins with 5 values or more."""
    edges = np.linspace(x.min(), x.max() + 1e-9, _BINS + 1)
    place = np.digitize(x, edges) - 1
    full = [k for k in range(_BINS) if (place == k).sum() >= 5]
    bands = [np.quantile(y[place == k], [0.1, 0.5, 0.9]) for k in full]
    centres = (edges[:-1] + edges[1:])[full] / 2
    return centres, np.array(bands).reshape(-1, 3).T


@styled
def layout_calibration(
    shortest: np.ndarray,
    predicted: np.ndarray,
    through_door: np.ndarray,
    layouts: np.ndarray,
    gamma: float = 1.0,
    paces: Mapping[str, float] | None = None,
    names: Mapping[tuple[int, int], str] | None = None,
    title: str = "Distance head against true steps",
) -> Figure:
    """Predicted steps (n,) against the true shortest ones (n,), a panel per layout (at most 24).

    `through_door` (n,) marks pairs with the wall between them, `layouts` (n, 2) are rows (wall_x,
    door_y). Lines are what a perfect head says at a pace, discounted by `gamma` as in
    `calibration`: `paces` maps a name to steps per true step (default "exact": 1). Each panel's
    title has Spearman's rank correlation of all pairs; `names` adds words for a layout.
    """
    shortest = checked(shortest, "shortest", None)
    predicted = checked(predicted, "predicted", len(shortest))
    across = checked(through_door, "through_door", len(shortest)).astype(bool)
    layouts = checked(layouts, "layouts", len(shortest), 2)
    found = list(dict.fromkeys(map(tuple, layouts.astype(int).tolist())))[: style.MOST_PANELS]
    columns = min(3, len(found))
    figure, axes = style.panels(-(-len(found) // columns), columns, 3.4, 2.9, sharey=True)
    for spare in axes[len(found) :]:
        spare.remove()
    kinds = (("same room", style.SKY), ("through the door", style.PURPLE))
    end = float(shortest.max())
    steps = np.linspace(0, end, 100)
    for axis, layout in zip(axes, found, strict=False):
        own = (layouts.astype(int) == layout).all(1)
        for (label, colour), rows in zip(kinds, (own & ~across, own & across), strict=True):
            axis.scatter(shortest[rows], predicted[rows], s=6, lw=0, alpha=0.35, color=colour)
            if rows.sum() >= _BINS:
                centres, bands = _bands(shortest[rows], predicted[rows])
                axis.plot(centres, bands[1], color=colour, lw=2, label=label)
                axis.plot(centres, bands[1], color=style.INK, lw=0.6)
        for dash, (label, pace) in zip("-:", (paces or {"exact": 1}).items(), strict=False):
            n = pace * steps
            ideal = n if gamma == 1 else (1 - gamma**n) / (1 - gamma)
            axis.plot(steps, ideal, dash, color=style.MUTED, linewidth=1.2, label=label)
        rank = spearmanr(shortest[own], predicted[own]).statistic
        word = (names or {}).get(layout, "")
        place = f"wall {layout[0]}, door {layout[1]}"
        axis.set_title(f"{place}{', ' + word if word else ''}\nrank correlation {rank:.2f}")
        axis.set(xlabel="true shortest steps", xlim=(0, end), ylim=(0, None))
        axis.grid()
    axes[0].set_ylabel("predicted steps")
    axes[0].legend(loc="upper left")
    style.headline(figure, title)
    return figure


@styled
def cost_geometry(
    path: np.ndarray,
    costs: Mapping[str, np.ndarray],
    other_room: np.ndarray,
    title: str = "Cost against the shortest path",
) -> Figure:
    """Each cost (n,) of a pair of places against the shortest path between them, path (n,) px.

    `other_room` (n,) marks pairs with the wall between them. The number in each panel's title is
    Spearman's rank correlation: 1 means that the cost orders the pairs as the room does.
    """
    path = checked(path, "path", None)
    across = checked(other_room, "other_room", len(path)).astype(bool)
    figure, axes = style.panels(1, len(costs), 3.5, 3.0)
    kinds = (("same room", ~across, style.SKY), ("other room", across, style.PURPLE))
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        values = checked(values, name, len(path))
        for label, pick, colour in kinds:
            axis.scatter(path[pick], values[pick], s=6, lw=0, alpha=0.4, color=colour, label=label)
        rank = spearmanr(path, values).statistic
        axis.set(xlabel="shortest path (px)", ylabel=name, title=f"rank correlation {rank:.2f}")
        axis.set(xlim=(0, None), ylim=(0, None))
        axis.grid()
    legend = axes[0].legend(loc="upper left", markerscale=2)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    style.headline(figure, title)
    return figure


@styled
def macro_grid(
    positions: np.ndarray, skip: int, wall_x: float, door_y: float, title: str = "The two clocks"
) -> Figure:
    """One window of states (T, 2) px: every state small, every `skip`-th one large and numbered."""
    positions = checked(positions, "positions", None, 2)
    coarse = positions[::skip]
    figure, (axis,) = style.panels(1, 1, 5.4, 3.4)
    style.draw_room(axis, wall_x, door_y)
    axis.set_anchor("W")
    axis.plot(*positions.T, ".-", color=style.BLUE, lw=0.8, ms=3.5, label="level 1: every step")
    look = {"s": 70, "color": style.ORANGE, "edgecolor": style.INK, "lw": 0.7, "zorder": 6}
    axis.scatter(*coarse.T, label=f"level 2: every {skip} steps", **look)
    for i, place in enumerate(coarse):
        axis.annotate(str(i), place, ha="center", va="center", fontsize=6.5, zorder=7)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, title)
    return figure


@styled
def kl_by_dimension(kl: np.ndarray, title: str = "KL by dimension") -> Figure:
    """Mean divergence KL(q || p) in nats of each level-2 latent dimension (Z,), largest first."""
    kl = np.sort(checked(kl, "kl", None))[::-1]
    figure, (axis,) = style.panels(1, 1, 4.4, 2.4)
    axis.bar(np.arange(1, len(kl) + 1), kl, color=style.ORANGE, width=0.7)
    axis.set(xlabel="latent dimension, sorted", ylabel="KL (nats)", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(axis="y")
    style.headline(figure, f"{title}: {kl.sum():.2f} nats in all")
    return figure


@styled
def proposals(
    starts: np.ndarray,
    clouds: np.ndarray,
    layouts: np.ndarray,
    reach: float | None = None,
    columns: int = 4,
    title: str = "What level 2 proposes",
) -> Figure:
    """Places (n, N, 2) px that level 2 imagines one macro-step ahead of n starts (n, 2).

    layouts (n, 2) rows (wall_x, door_y); `reach` px is the longest way the dot can go in one
    macro-step, drawn as a circle. A place outside it, or behind the wall, is one that level 1
    cannot deliver.
    """
    starts = checked(starts, "starts", None, 2)
    clouds = checked(clouds, "clouds", len(starts), None, 2)
    layouts = checked(layouts, "layouts", len(starts), 2)
    if len(starts) > style.MOST_PANELS:
        raise FigureError(f"at most {style.MOST_PANELS} starts fit, got {len(starts)}")
    figure, axes = style.grid_of(len(starts), columns, 1.8)
    for axis, start, cloud, layout in zip(axes, starts, clouds, layouts, strict=True):
        style.draw_room(axis, *layout)
        look = {"s": 9, "color": style.SUBGOAL, "alpha": 0.6, "lw": 0, "zorder": 5}
        axis.scatter(*cloud.T, **look)
        style.mark_start(axis, start)
        if reach is not None:
            angle = np.linspace(0, 2 * np.pi, 73)
            circle = start + reach * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
            axis.plot(*circle.T, ":", color=style.MUTED, linewidth=1, zorder=4)
    style.headline(figure, title)
    return figure


@styled
def control_effects(
    rows: Sequence[Mapping],
    deviations: Mapping[str, np.ndarray],
    title: str = "Level 2 switched off in three ways",
) -> Figure:
    """Success of each control with its interval, and how far its paths leave the uncontrolled ones.

    `rows` need `control`, `success_rate`, `ci95`; `deviations` maps a control to px by step (S+1,).
    Both panels share the colours that the left one names.
    """
    colours = dict(
        zip(
            [row["control"] for row in rows],
            (style.ORANGE, style.MUTED, style.BLUE, style.PURPLE),
            strict=False,
        )
    )
    figure, axes = style.panels(1, 2, 3.7, 2.7)
    for at, row in enumerate(rows):
        axes[0].barh(at, row["success_rate"], height=0.6, color=colours[row["control"]])
        axes[0].plot(row["ci95"], [at, at], "|-", color=style.INK, linewidth=1.1, markersize=6)
    axes[0].set_yticks(range(len(rows)), labels=[row["control"] for row in rows])
    axes[0].set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="success, 95 % interval")
    axes[0].grid(axis="x")
    for name, by_step in deviations.items():
        by_step = checked(by_step, name, None)
        axes[1].plot(np.arange(len(by_step)), by_step, color=colours[name], label=name)
    axes[1].set(xlabel="environment step", ylabel="px from the path of 'none'")
    axes[1].set(xlim=(0, None), ylim=(0, None))
    axes[1].grid(axis="y")
    style.headline(figure, title)
    return figure
