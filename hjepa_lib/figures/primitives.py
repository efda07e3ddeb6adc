"""What figures are drawn with, each on one axis: lines, intervals, scatters, maps, legends."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator, PercentFormatter

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError

_FEW = 16  # points; a line through so few of them shows each
_LOG_FROM = 8  # an axis of values becomes logarithmic when its ends differ by this factor
_ROOM = LinearSegmentedColormap.from_list("room", [style.FLOOR, style.WALL])


def curve(
    axis: Axes,
    x: Any,
    y: Any,
    label: str | None = None,
    colour: str = style.BLUE,
    band: tuple[Any, Any] | None = None,
    **look: Any,
) -> None:
    """A line through (n,) points, which are shown where they are few, and its band (low, high)."""
    marker = "o" if len(x) <= _FEW else None
    axis.plot(x, y, **{"color": colour, "label": label, "marker": marker, "ms": 3.5} | look)
    if band is not None:
        axis.fill_between(x, *band, color=colour, alpha=0.17, linewidth=0)


def learning(axis: Axes, records: Sequence[Mapping[str, Any]], key: str, validation: str) -> None:
    """A quantity of metrics.jsonl by update: training thin under its running mean, `validation`.

    FigureError when no record has a value.
    """
    table = pd.DataFrame(records).reindex(columns=["step", key, validation]).set_index("step")
    values, held_out = (table[name].dropna().astype(float) for name in (key, validation))
    every = pd.concat([values, held_out])
    if every.empty:
        raise FigureError(f"no record has {key!r} or {validation!r}")
    running = values.rolling(max(1, len(values) // 30), min_periods=1).mean()
    axis.plot(values, color=style.BLUE, alpha=0.25, linewidth=0.8)
    names = ["training" if len(values) else "_", "validation" if len(held_out) else "_"]
    axis.plot(running, color=style.BLUE, label=names[0], linewidth=1.4)
    axis.plot(held_out, "o-", ms=3, lw=1, color=style.ORANGE, label=names[1])
    if every.max() - every.min() < 1e-9 * every.abs().max():
        axis.set_ylim(*sorted((0, 2 * every.iloc[0])))  # else the axis shows rounding errors
    axis.grid(axis="y")


def levels(axis: Axes, values: Mapping[str, float]) -> None:
    """Named horizontal lines, such as floors and ceilings; two of one colour differ in dashes."""
    for (name, value), dashes in zip(values.items(), cycle((":", "-.", (0, (6, 2)))), strict=False):
        look = style.look(name)
        dashes = dashes if look["ls"] == "-" else look["ls"]
        axis.axhline(value, label=name, color=look["color"], ls=dashes, lw=1.1, zorder=1)


def marks(axis: Axes, values: Mapping[str, float]) -> None:
    """Dotted vertical lines whose names stand upright at the top."""
    for name, value in values.items():
        axis.axvline(value, color=style.MUTED, linewidth=0.9, linestyle=":", zorder=1)
        look = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 7, "color": style.MUTED}
        axis.text(value, 0.99, name, transform=axis.get_xaxis_transform(), **look)


def intervals(
    axis: Axes, at: Any, value: Any, low: Any, high: Any, across: bool = False, **look: Any
) -> None:
    """Points (n,) with whiskers from `low` to `high`; `across` lays them along x, unjoined."""
    value = np.asarray(value, dtype=float)
    gaps = np.abs(np.stack([value - low, value - high]))
    drawn = {"marker": "o", "ms": 4.5, "elinewidth": 1.2, "capsize": 2, "zorder": 3} | look
    if across:
        axis.errorbar(value, at, xerr=gaps, **drawn | {"ls": ""})
    else:
        axis.errorbar(at, value, gaps, **drawn)


def interval_rows(
    axis: Axes,
    names: Sequence[str],
    groups: Sequence[tuple[str, Sequence[str], Any, Mapping[str, Any]]],
    spread: float = 0.16,
) -> None:
    """Named rows from the top; groups of points and whiskers lie `spread` apart within a row.

    A group is (label, names of its rows, their (value, low, high) (n, 3), look).
    """
    for number, (label, rows, triples, look) in enumerate(groups):
        shift = spread * (number - (len(groups) - 1) / 2)
        at = [names.index(name) + shift for name in rows]
        intervals(axis, at, *np.asarray(triples, float).T, across=True, label=label, **look)
    name_rows(axis, names)
    axis.grid(axis="x")


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Rows 0, 1, ... from the top with their names."""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axis.tick_params(axis="y", length=0)


def row_texts(axis: Axes, texts: Mapping[float, str], **look: Any) -> None:
    """A text at the right of each of these rows."""
    for row, text in texts.items():
        axis.text(1.02, row, text, transform=axis.get_yaxis_transform(), va="center", **look)


def scatter(axis: Axes, x: Any, y: Any, values: Any = None, **look: Any) -> Any:
    """At most 3,000 points (n,), always the same ones, coloured by `values` (n,) if given."""
    some = np.random.default_rng(0).permutation(len(x))[: style.MOST_POINTS]
    look = {"s": 6, "lw": 0} | look
    if values is not None:
        look |= {"c": np.asarray(values)[some], "cmap": style.SEQUENTIAL}
    return axis.scatter(np.asarray(x)[some], np.asarray(y)[some], **look)


def identity(axis: Axes, true: np.ndarray, predicted: np.ndarray, name: str) -> None:
    """Predicted against true values (n,) of `name` with the line y = x, on equal scales."""
    ends = np.quantile([true, predicted], [0, 1])
    axis.plot(ends, ends, color=style.MUTED, linewidth=0.9, zorder=3)
    scatter(axis, true, predicted, color=style.BLUE, alpha=0.3)
    axis.set(xlabel=f"true {name}", ylabel=f"predicted {name}", aspect="equal")
    axis.grid()


def show_room(axis: Axes, room: Any) -> AxesImage:
    """A rendered layout as the background of an axis in px, y down, without ticks.

    `room` is (Hpx, Wpx), walls bright, or RGB (Hpx, Wpx, 3); pixels have whole numbers as centres.
    """
    room = np.asarray(room)
    top = 255 if room.dtype == np.uint8 else 1
    image = axis.imshow(room, cmap=_ROOM, vmin=0, vmax=top, interpolation="nearest", zorder=0)
    axis.autoscale(False)
    axis.set_axis_off()
    return image


def landscape(axis: Axes, room: Any, values: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
    """Values (Gy, Gx) on an evenly spaced grid with contour lines; NaN shows the room."""
    show_room(axis, room)
    values = np.ma.masked_invalid(values)
    image = axis.pcolormesh(x, y, values, cmap=style.SEQUENTIAL, zorder=1)
    axis.contour(x, y, values, levels=9, colors="white", linewidths=0.6, alpha=0.55)
    return image


def path(axis: Axes, places: np.ndarray, **look: Any) -> None:
    """A path (T, 2), darkening with time; of one colour with `color`."""
    if "color" in look:
        axis.plot(*np.asarray(places).T, **{"lw": 1.1, "zorder": 4} | look)
        return
    segments = np.stack([places[:-1], places[1:]], axis=1)  # (T-1, 2, 2)
    lines = LineCollection(segments, cmap=style.TIME, linewidths=1.1, zorder=4, **look)
    lines.set_array(np.arange(len(segments)))
    axis.add_collection(lines)


def planned(
    axis: Axes, start: np.ndarray, fan: Any, chosen: Any, subgoals: Any, scale: float = 1.0
) -> None:
    """What one planning call at `start` (2,) imagined; what is None is left out.

    Candidates `fan` (F, H, 2), cheapest first, the plan `chosen` (H, 2), and the path `subgoals`
    (K, 2) of level 2, of which level 1 aims at the first point.
    """
    if fan is not None:
        paths = [np.vstack([start, one]) for one in fan[::-1]]  # the best on top
        shades = style.CANDIDATES(np.linspace(1, 0, len(paths)))
        axis.add_collection(LineCollection(paths, colors=shades, lw=0.8 * scale, alpha=0.7))
        for label, shade in (("lowest", shades[-1]), ("highest", shades[0])):
            axis.plot([], [], color=shade, label=f"candidate, {label} cost")
    if chosen is not None:
        way = np.vstack([start, chosen])
        path(axis, way, color=style.INK, lw=2.2 * scale, zorder=5, label="chosen plan")
    if subgoals is not None:
        way = np.vstack([start, subgoals])
        path(axis, way, color=style.SUBGOAL, ls=":", lw=1.2 * scale)
        look = {"color": style.SUBGOAL, "edgecolor": style.INK, "lw": 0.7 * scale, "marker": "D"}
        axis.scatter(*way[1], s=44 * scale**2, zorder=6.1, label="sub-goal of level 1", **look)
        axis.scatter(*way[2:].T, s=16 * scale, zorder=6, label="level 2 beyond it", **look)


def value_axis(axis: Axes, values: Sequence[Any]) -> dict[Any, float]:
    """The x axis of a setting with a tick at each of its values; returns where each value lies.

    Numbers lie where they are, a logarithmic axis parts distant ends; others lie side by side.
    """
    values = list(dict.fromkeys(values))
    places, texts = range(len(values)), [str(one) for one in values]
    if pd.Series(values).dtype.kind in "iuf":
        places = values = sorted(values)
        texts = [f"{one:,.10g}" for one in values]
        if values[-1] >= _LOG_FROM * values[0] > 0:
            axis.set_xscale("log")
            axis.set_xlim(values[0] / 1.2, values[-1] * 1.2)
    axis.set_xticks(places, texts, rotation=30 if sum(map(len, texts)) > 30 else 0)
    axis.xaxis.set_minor_locator(NullLocator())
    return dict(zip(values, map(float, places), strict=True))


def percent_axis(
    axis: Axes, label: str = "success", which: str = "y", limits: tuple = (-0.03, 1.03)
) -> None:
    """Shares written in per cent, by default from 0 to 1."""
    axis.set(**{f"{which}label": label, f"{which}lim": limits})
    formatter = PercentFormatter(1, decimals=0, symbol=" %")
    (axis.yaxis if which == "y" else axis.xaxis).set_major_formatter(formatter)
    axis.grid(axis=which)


def legend(
    figure: Figure, axes: Sequence[Axes], place: str = "outside right center", **look: Any
) -> None:
    """One legend of all axes, each name once, beside the panels."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, names = axis.get_legend_handles_labels()
        found = dict(zip(names, handles, strict=True)) | found
    figure.legend(found.values(), found.keys(), loc=place, **look)


def legend_beside(axis: Axes, right: float = 1.0, **look: Any) -> None:
    """The legend of one axis, at the right of it."""
    axis.legend(loc="upper left", bbox_to_anchor=(right, 1.0), **look)


def colour_bar(figure: Figure, drawn: Any, axes: Any, label: str = "") -> None:
    """The scale of a coloured scatter or picture beside its axis."""
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, aspect=25, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
