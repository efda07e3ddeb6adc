"""Statistics of a data set that the literature quotes: crossing rate, spread, step lengths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.data.trajectories import Trajectories, Unplayed
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import TwoRooms

PUBLISHED: dict[str, dict[str, float]] = {
    "good": {
        "crossing_rate": 0.369, "sides_differ_rate": 0.34, "spread_px": 31.0,
        "action_std_x": 0.756, "action_std_y": 0.743, "step_mean_px": 1.0, "step_std_px": 0.351,
        "blocked_rate": 0.27,
    },
    "random": {
        "crossing_rate": 0.441, "sides_differ_rate": 0.268, "spread_px": 12.5, "blocked_rate": 0.04,
    },
}  # fmt: skip
"""`describe` of 512 trajectories made by the public PLDM generator, per recipe (measured)."""


def crosses(positions: Tensor, layout: Layout) -> Tensor:
    """(R,) bool: min x < left face and max x > right face, of positions (R, L, 2)."""
    x = positions[..., 0]
    return (x.amin(1) < layout.left) & (x.amax(1) > layout.right)


def describe(trajectories: Trajectories, limit: int = 2048) -> dict[str, float]:
    """Rates in [0, 1] and lengths in px over the first `limit` trajectories.

    In Two Rooms crossing_rate: see `crosses`; sides_differ_rate: the ends lie on two sides of the
    wall's centre;
    spread_px: largest distance of two positions of a trajectory; blocked_rate: steps without a
    move; action_std_x, action_std_y, step_mean_px, step_std_px. Of a recording only action_std_0
    and so on, in its own units.
    """
    walks, layout = _walks(trajectories, limit), trajectories.layouts()
    count, rates = len(walks), {}
    if trajectories.world is Unplayed:
        spread = torch.cat([actions for _, actions in walks]).std(0).tolist()
        return {"trajectories": count} | {f"action_std_{n}": std for n, std in enumerate(spread)}
    if trajectories.world is TwoRooms:
        crossed = [bool(crosses(p[None], layout.index([row]))) for row, (p, _) in enumerate(walks)]
        ends = torch.stack([p[[0, -1], 0] for p, _ in walks]) - layout.wall_x[:count, None]
        rates["crossing_rate"] = sum(crossed) / count
        rates["sides_differ_rate"] = int((ends.prod(1) < 0).sum()) / count
    actions = torch.cat([a for _, a in walks])
    moves = torch.cat([p.diff(dim=0) for p, _ in walks])
    steps, (std_x, std_y) = actions.norm(dim=-1), actions.std(0).tolist()
    return {
        "trajectories": count,
        **rates,
        "spread_px": sum(float(torch.cdist(p, p).max()) for p, _ in walks) / count,
        "action_std_x": std_x,
        "action_std_y": std_y,
        "step_mean_px": float(steps.mean()),
        "step_std_px": float(steps.std()),
        "blocked_rate": float((moves == 0).all(1).float().mean()),
    }


def _walks(trajectories: Trajectories, limit: int) -> list[tuple[Tensor, Tensor]]:
    """Positions px and actions of the first `limit` trajectories."""
    ones = [trajectories.one(row) for row in range(min(limit, trajectories.count))]
    return [(trajectories.world.xy(states), actions) for states, actions in ones]


class Motion(NamedTuple):
    """How the dot moves: one row per step, turn and visited place."""

    steps: Tensor  # (n,) commanded step lengths, px
    turns: Tensor  # (n',) degrees in (-180, 180] between consecutive actions of a trajectory
    positions: Tensor  # (m, 2) px


def motion(trajectories: Trajectories, limit: int = 512) -> Motion:
    """Samples for the motion figure from the first `limit` trajectories."""
    walks = _walks(trajectories, limit)
    turns = torch.cat([torch.atan2(a[:, 1], a[:, 0]).diff().rad2deg() for _, a in walks])
    steps = torch.cat([a.norm(dim=-1) for _, a in walks])
    return Motion(steps, 180 - (180 - turns) % 360, torch.cat([p for p, _ in walks]))
