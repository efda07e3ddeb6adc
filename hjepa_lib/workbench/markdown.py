"""Markdown tables of committed rows: of any planner, of other worlds, of own mazes."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from hjepa_lib.evaluation.openloop import LEAK_PX
from hjepa_lib.workbench.rows import POINT, check_rows, finished, pooled
from hjepa_lib.workbench.table import as_text, usual
from hjepa_lib.workbench.verdict import claims, judged, named

NUMBERS = [
    "path_efficiency", "flops_per_step", "seconds_per_episode", "cross_wall_rate",
    "init_plan_cross_wall_rate", "planning_error_mean", "planning_error_mean_rmse",
    "invalid_route_rate",
]  # fmt: skip
BY = ["method", "cost", "protocol", "layouts", "dynamics", *POINT, "group", "told", "settings"]
BY += ["data.layouts", "level1.encoder"]
PLAYED = ("planner.action_cap", "planner.cost")  # said elsewhere, or the protocol's
WORLD_GROUPS = ("floors", "equal", "policies")  # of the study over worlds, shown
SPREAD = (
    "MFLOP per step: what an episode begins with, such as the graph of its scene, is spread over "
    "the most steps that it may have; planners that are called equal share it. Dijkstra's search "
    "on it, which sub-goals repeat, is not counted. A step of a PointMaze is five of its "
    "environment."
)
# Of columns by their first word; "" are all others, the planners.
_ORDER = (
    "world", "tasks", "random", "random-persistent", "heading", "rule", "", "hierarchy", "oracle",
)  # fmt: skip
SHIFTED = "two_rooms_p3_"  # models of shifted worlds: on the results page alone


def points(rows: pd.DataFrame, groups: Iterable[str]) -> pd.DataFrame:
    """The finished points of these groups on test trials, seeds pooled.

    Within a group, rows of different trials or settings are refused.
    """
    parts = [check_rows(part) for name in groups if len(part := finished(rows, name))]
    if not parts:
        return rows.head(0)
    found = pd.concat(parts)
    found = found.assign(settings=changes(found))
    by, means = ([name for name in names if name in found] for names in (BY, NUMBERS))
    return pooled(found, by, means)


def changes(rows: pd.DataFrame) -> list[str]:
    """ "horizon 48, samples x 0.25" of each row: what differs from the planner's defaults, or is
    one of several values that were played."""
    found = []
    for row in rows.to_dict("records"):
        parts = []
        for name, value in row.items():
            default = usual(name, row.get("profile", "laptop"))
            if not name.startswith("planner.") or default is None or pd.isna(value):
                continue
            if name.endswith(".samples"):
                default = max(2, round(default * row["budget"]))
            swept = f"+{name.removeprefix('planner.')}=" in f"+{row['grid']}"
            if swept or (name not in PLAYED and value not in (default, as_text(default))):
                words = re.sub(r"planner\.(flat\.|hierarchy\.)?", "", name)
                shown = value if isinstance(value, str) else f"{value:g}"
                parts.append(f"{re.sub('[_.]', ' ', words)} {shown}")
        parts += [f"samples x {row['budget']:g}"] if row["budget"] != 1 else []
        found.append(", ".join(parts))
    return found


def cells(row: Any) -> dict[str, str]:
    """MFLOP, success and n of a pooled point, as every table shows them."""
    return {
        "MFLOP per step": number(row.flops_per_step / 1e6, 0),
        "success, % (95 %)": f"{100 * row.rate:.1f} ({100 * row.low:.1f}-{100 * row.high:.1f})",
        "n (seeds)": f"{row.n * row.seeds} ({row.seeds})",
    }


def number(value: float, digits: int) -> str:
    """With so many digits; "-" where there is none."""
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def table(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> str:
    """Rows as a Markdown table; "" without any."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return ""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def point_line(row: Any) -> dict[str, str]:
    """A pooled point in the long tables of the results page."""
    planned = pd.notna(row.flops_per_step)
    return {
        "planner, cost": f"{row.method}, {row.cost}",
        **cells(row),
        "path efficiency": number(row.path_efficiency, 2),
        "s per episode": number(row.seconds_per_episode, 2) if planned else "-",
    }


def in_worlds(
    rows: pd.DataFrame, groups: Sequence[str] = WORLD_GROUPS
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each world's name and points, best last; a point may have fewer seeds than its neighbour."""
    test = rows[(rows["split"] == "test") & rows["group"].isin(groups)]
    for of, part in test.groupby(named(rows), sort=False):
        played = part.groupby(POINT)["seed"].transform(lambda seeds: str(sorted(seeds)))
        alike = [points(some, groups) for _, some in part.groupby(played)]
        found = pd.concat(alike, ignore_index=True).fillna({"told": ""})
        yield of, found.sort_values(["rate", "path_efficiency"])


def world_table(rows: pd.DataFrame) -> str:
    """Markdown table of every world's points."""
    lines = []
    for world, found in in_worlds(rows):
        for row in found.itertuples():
            line = {"world": world, "told": row.told or "-", **point_line(row)}
            line["invalid routes, %"] = number(100 * row.invalid_route_rate, 1)
            lines.append(line)
    return f"{table(lines)}\n\n{SPREAD}"


def leak_sentence(leaks: pd.DataFrame) -> str:
    """What level 1 imagines of walls, by world; "" without rows of the group `leak`."""
    found = leaks.groupby("model", sort=False)["leak"].agg(["mean", "size"]).itertuples()
    texts = [f"{one.Index.replace('_', ' ')} {100 * one.mean:.1f} ({one.size})" for one in found]
    said = (
        f"% of straight pushes that a wall stops whose imagined end is more than {LEAK_PX:g} px off"
    )
    return f"Wall leak of level 1, {said} (seeds): {', '.join(texts)}." if texts else ""


def worlds_block(rows: pd.DataFrame) -> str:
    """The README's line of each world: every method on test tasks, seeds pooled, and what planning
    with sub-goals changes there at equal FLOPs, by the rule of `claims`.
    """
    lines, said = [], claims(rows)
    for world, found in in_worlds(rows[~rows["model"].str.startswith(SHIFTED)]):
        about = f"{found['n'].max()} x {found['seeds'].max()}"
        line = {"world": world, "tasks x seeds": about}
        for row in found.sort_values("rate", ascending=False).itertuples():
            head = row.method.replace("l1+l2", "L1+L2") + (
                f" (told {row.told})" if row.told else ""
            )
            text = cells(row)["success, % (95 %)"]
            if row.flops_per_step > 0:
                text += f", {row.cost} cost" * (row.cost != "none")
                text += f", {row.flops_per_step / 1e6:.0f} MFLOP"
            if row.seeds < found["seeds"].max():
                text += f", seeds: {row.seeds}"
            line[head] = "<br>".join(filter(None, [line.get(head), text]))
        here = said[said["place"] == world] if len(said) else said
        line["hierarchy"] = "<br>".join(map(judged, here.to_dict("records")))
        lines.append(line)

    def place(head: str) -> int:
        return _ORDER.index(first if (first := head.split(" ")[0]) in _ORDER else "")

    heads = sorted(pd.DataFrame(lines), key=place)
    return table(pd.DataFrame(lines, columns=heads).replace("", pd.NA).fillna("-"))


def factor_sentences(rows: pd.DataFrame) -> list[str]:
    """What one part made true changes (`planning.truth`), in each world that has such rows."""
    sentences = []
    for world, found in in_worlds(rows, ("factors",)):
        trained, head = found.iloc[0], "learned"
        if trained.get("level1.encoder") == "place" and trained.get("data.layouts") != "fixed":
            head = "learned by a head that sees the place alone, not which layout it is"
        parts = [
            f"{cells(row)['success, % (95 %)']} {f'told its {row.told}' if row.told else head}"
            for row in found.sort_values("told").itertuples()
        ]
        about = f"flat planning, {found['cost'].iloc[0]} cost, n = {found['n'].iloc[0]}"
        sentences.append(f"{world}, {about} x {found['seeds'].min()}: {', '.join(parts)}.")
    return sentences


def own_mazes_block(rows: pd.DataFrame) -> str:
    """How the default planner fares in each of the own mazes."""
    parts = []
    for (method, cost), part in rows.groupby(["method", "cost"], sort=False):
        rates = (100 * part["successes"] / part["n"]).sort_values()
        label = method + (f" ({cost})" if cost != "none" else "")
        parts.append(f"{label} {rates.median():.0f} (lowest {rates.iloc[0]:.0f})")
    if absent := sorted({"random", "random-persistent", "oracle"} - {*rows["method"]}):
        parts.append(f"not played: {', '.join(absent)}")
    return (
        f"- {rows['world'].nunique()} own mazes of thin walls (copies of "
        "[examples/own_maze.py](examples/own_maze.py), laptop defaults, one training seed each, "
        f"n = {rows['n'].min()} each), median % solved: {', '.join(parts)}."
    )
