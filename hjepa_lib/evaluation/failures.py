"""Why a trial failed: the first rule that applies gives its one label.

| label | rule |
|---|---|
| solved | the protocol's own success |
| missed_goal | came within 4.5 px of the goal at some step |
| off_distribution | L1+L2: median `subgoal_offset` (episodes.py) of the commanded calls above 2 |
| subgoal_unreachable | L1+L2: more than half of the commanded sub-goals out of reach |
| missed_goal | was beyond the wall's face on the goal's side at some step |
| stuck_at_wall | over half of the second half's steps within 3 px of a wall face, beside the door |
| no_door | none of these: moved about on the start's side and never found the door |

In other worlds than Two Rooms walls are unknown: beyond the first three rules a trial missed the
goal. A call is commanded when level 1 aims at the sub-goal and not at the goal itself. A sub-goal
is out of reach in a wall, beyond the border, or farther by the shortest path than a macro-step and
2 px.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from hjepa_lib.evaluation.metrics import LOOSE_PX, SLACK_PX
from hjepa_lib.evaluation.results import Result
from hjepa_lib.worlds.layout import DOOR_HALF, WALL_HALF, Layout
from hjepa_lib.worlds.two_rooms import reachable

LABELS = {
    "solved": "solved",
    "missed_goal": "missed the goal",
    "off_distribution": "level 2 off-distribution",
    "subgoal_unreachable": "sub-goal unreachable",
    "stuck_at_wall": "stuck at the wall",
    "no_door": "never found the door",
}
"""Label -> words for tables and figures, in the order of a stacked bar."""
STUCK_PX = 3.0  # to a wall face
OFFSET = 2.0  # in units of level-1 predictions


class Commands(NamedTuple):
    """What level 2 told level 1 at R planning calls of B trials."""

    position: np.ndarray  # (B, R, 2) where the agent was, px
    subgoal: np.ndarray  # (B, R, 2) where the probe reads the sub-goal, px
    offset: np.ndarray  # (B, R) `subgoal_offset`, NaN where it was not measured
    commanded: np.ndarray  # (B, R) bool: level 1 aimed at the sub-goal
    reach: float  # px that level 1 can go in one macro-step


def classify(
    positions: np.ndarray,
    goal: np.ndarray,
    layouts: np.ndarray | None,
    solved: np.ndarray,
    commands: Commands | None = None,
) -> np.ndarray:
    """(B,) labels of positions (B, S+1, 2), goal (B, 2), layouts (B, 2), None in other worlds."""
    positions, goal = (np.asarray(a, np.float64) for a in (positions, goal))
    near = (np.linalg.norm(positions - goal[:, None], axis=-1) < LOOSE_PX).any(1)
    rules = [("solved", np.asarray(solved) > 0), ("missed_goal", near)]
    if commands is not None:
        offsets = np.ma.masked_invalid(np.where(commands.commanded, commands.offset, np.nan))
        rules.append(("off_distribution", np.ma.median(offsets, axis=1).filled(0) > OFFSET))
    if layouts is not None:
        layouts = np.asarray(layouts, np.float64)
        wall_x, door_y = layouts[:, :1], layouts[:, 1:]  # (B, 1) each
        side = np.sign(goal[:, :1] - wall_x)
        crossed = ((positions[..., 0] - wall_x) * side > WALL_HALF).any(1)
        half = positions[:, positions.shape[1] // 2 :]
        at_face = np.abs(half[..., 0] - wall_x) <= WALL_HALF + STUCK_PX
        beside = np.abs(half[..., 1] - door_y) > DOOR_HALF
        if commands is not None:
            rules.append(("subgoal_unreachable", unreachable_share(commands, layouts) > 0.5))
        rules += [("missed_goal", crossed), ("stuck_at_wall", (at_face & beside).mean(1) > 0.5)]
    names, found = zip(*rules, strict=True)
    return np.select(found, names, "missed_goal" if layouts is None else "no_door")


def unreachable_share(commands: Commands, layouts: np.ndarray) -> np.ndarray:
    """(B,) share of the commanded sub-goals that are out of reach, 0 without any."""
    commanded = commands.commanded
    layout = Layout.of(np.repeat(layouts, commanded.shape[1], axis=0))
    ends = (commands.position, commands.subgoal)
    here, there = (torch.as_tensor(place, dtype=torch.float32).flatten(0, 1) for place in ends)
    found = reachable(here, there, layout, commands.reach + SLACK_PX).numpy()
    far = ~found.reshape(commanded.shape) & commanded
    return far.sum(1) / np.maximum(commanded.sum(1), 1)


def label(result: Result) -> np.ndarray:
    """(n,) labels of a result."""
    *where, layout = (result.arrays[name] for name in ("positions", "goal", "layout"))
    layout = None if result.header["protocol"] == "own" else layout
    return classify(*where, layout, result.success, commands_of(result))


def commands_of(result: Result) -> Commands | None:
    """The calls of a hierarchical result, else None."""
    arrays, planner = result.arrays, result.header["planner"]
    if "plan_subgoal_xy" not in arrays:
        return None
    subgoal = arrays["plan_subgoal_xy"]
    calls = np.arange(subgoal.shape[1]) * result.header.get("replan", planner["replan"])
    reach = float(arrays["plan_macro_stride"]) * planner["action_cap"]
    position, commanded = arrays["positions"][:, calls], arrays["plan_near"] == 0
    return Commands(position, subgoal, arrays["plan_subgoal_offset"], commanded, reach)


def count(labels: Sequence[str] | np.ndarray) -> dict[str, int]:
    """How many trials carry each label."""
    return {name: int((np.asarray(labels) == name).sum()) for name in LABELS}
