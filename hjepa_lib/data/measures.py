"""Statistics of a data set that the literature quotes: crossing rate, spread, step lengths.

Definitions as used for the published sets: a trajectory crosses when min x < left face and max x >
right face; sides differ when first and last position lie on different sides of the wall's centre;
spread is the largest distance between any two of its positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.worlds.layout import Layout

PUBLISHED: dict[str, dict[str, float]] = {
    "good": {
        "crossing_rate": 0.369,
        "sides_differ_rate": 0.34,
        "spread_px": 31.0,
        "action_std_x": 0.756,
        "action_std_y": 0.743,
        "step_mean_px": 1.0,
        "step_std_px": 0.351,
        "blocked_rate": 0.27,
    },
    "random": {
        "crossing_rate": 0.441,
        "sides_differ_rate": 0.268,
        "spread_px": 12.5,
        "blocked_rate": 0.04,
    },
}
"""`describe` of 512 trajectories made by the public PLDM generator, per recipe (measured)."""


def crosses(positions: Tensor, layout: Layout) -> Tensor:
    """(R,) bool: min x < left face and max x > right face, of positions (R, L, 2)."""
    x = positions[..., 0]
    return (x.amin(1) < layout.left) & (x.amax(1) > layout.right)


def describe(trajectories: Trajectories, limit: int = 2048) -> dict[str, float]:
    """Rates in [0, 1] and lengths in px over the first `limit` trajectories.

    Keys: trajectories, crossing_rate, sides_differ_rate, spread_px, action_std_x, action_std_y,
    step_mean_px, step_std_px, blocked_rate (share of steps that did not move the dot).
    """
    count = min(limit, trajectories.count)
    layout = trajectories.layouts(slice(0, count))
    crossed, differ, spread = [], [], []
    for row in range(count):
        positions, _ = trajectories.one(row)
        left, wall, right = (float(v[row]) for v in (layout.left, layout.wall_x, layout.right))
        x = positions[:, 0]
        crossed.append(bool((x.min() < left) & (x.max() > right)))
        differ.append(bool((x[0] - wall) * (x[-1] - wall) < 0))
        spread.append(float(torch.cdist(positions, positions).max()))
    states = int(trajectories.lengths[:count].sum())
    last = trajectories.lengths[:count].cumsum(0) - 1
    used = torch.ones(states, dtype=torch.bool)
    used[last] = False
    actions = trajectories.actions[:states][used]
    before = trajectories.positions[:states][used]
    after = trajectories.positions[:states].roll(-1, 0)[used]
    steps = actions.norm(dim=-1)
    std = actions.std(0)
    return {
        "trajectories": count,
        "crossing_rate": sum(crossed) / count,
        "sides_differ_rate": sum(differ) / count,
        "spread_px": sum(spread) / count,
        "action_std_x": float(std[0]),
        "action_std_y": float(std[1]),
        "step_mean_px": float(steps.mean()),
        "step_std_px": float(steps.std()),
        "blocked_rate": float((before == after).all(1).float().mean()),
    }


class Motion(NamedTuple):
    """How the dot moves: one row per step, turn and visited place."""

    steps: Tensor  # (n,) commanded step lengths, px
    turns: (
        Tensor  # (n',) angles between consecutive actions of a trajectory, degrees in (-180, 180]
    )
    positions: Tensor  # (m, 2) px


def motion(trajectories: Trajectories, limit: int = 512) -> Motion:
    """Samples for the motion figure from the first `limit` trajectories."""
    steps, turns = [], []
    for row in range(min(limit, trajectories.count)):
        actions = trajectories.one(row)[1]
        heading = torch.atan2(actions[:, 1], actions[:, 0])
        turn = heading.diff().rad2deg()
        steps.append(actions.norm(dim=-1))
        turns.append(180 - (180 - turn) % 360)
    states = int(trajectories.lengths[:limit].sum())
    return Motion(torch.cat(steps), torch.cat(turns), trajectories.positions[:states])
