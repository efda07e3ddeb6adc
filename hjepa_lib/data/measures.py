"""Statistics of a data set that the literature quotes: crossing rate, spread, step lengths."""

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


def published(trajectories: Trajectories) -> dict[str, float]:
    """What `PUBLISHED` has to hold `describe` against, if anything."""
    recipe = trajectories.meta.get("recipe", "") if trajectories.world is TwoRooms else ""
    return PUBLISHED.get(recipe, {})


def crosses(positions: Tensor, layout: Layout) -> Tensor:
    """(R,) bool: min x < left face and max x > right face, of positions (R, L, 2)."""
    x = positions[..., 0]
    return (x.amin(1) < layout.left) & (x.amax(1) > layout.right)


def describe(trajectories: Trajectories, limit: int = 2048) -> dict[str, float]:
    """Rates in [0, 1] and lengths in px over the first `limit` trajectories.

    crossing_rate: see `crosses`; sides_differ_rate: the ends lie on two sides of the wall's centre
    (both in Two Rooms alone); spread_px: largest distance of two positions of a trajectory;
    blocked_rate: steps without a move. Of a recording action_std_ alone, in its own units.
    """
    walks, layout = _walks(trajectories, limit), trajectories.layouts()
    count, rates, world = len(walks), {}, trajectories.world
    actions = torch.cat([a for _, a in walks])
    axes = "xy" if world is not Unplayed and actions.shape[1] == 2 else range(actions.shape[1])
    stds = zip(axes, actions.std(0).tolist(), strict=True)
    spread = {f"action_std_{axis}": std for axis, std in stds}
    if world is Unplayed:
        return {"trajectories": count, **spread}
    if world is TwoRooms:
        crossed = [bool(crosses(p[None], layout.index([row]))) for row, (p, _) in enumerate(walks)]
        ends = torch.stack([p[[0, -1], 0] for p, _ in walks]) - layout.wall_x[:count, None]
        rates["crossing_rate"] = sum(crossed) / count
        rates["sides_differ_rate"] = int((ends.prod(1) < 0).sum()) / count
    moves = torch.cat([p.diff(dim=0) for p, _ in walks])
    steps = (actions if actions.shape[1] == 2 else moves).norm(dim=-1)
    return {
        "trajectories": count,
        **rates,
        "spread_px": sum(float(torch.cdist(p, p).max()) for p, _ in walks) / count,
        **spread,
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

    steps: Tensor  # (n,) lengths of actions, px; where they are not x and y, of moves
    turns: Tensor  # (n',) degrees in (-180, 180] between consecutive ones
    positions: Tensor  # (m, 2) px


def motion(trajectories: Trajectories, limit: int = 512) -> Motion:
    """Samples from the first `limit` trajectories."""
    walks = _walks(trajectories, limit)
    steps = [a if a.shape[1] == 2 else p.diff(dim=0) for p, a in walks]
    turns = torch.cat([torch.atan2(a[:, 1], a[:, 0]).diff().rad2deg() for a in steps])
    lengths = torch.cat(steps).norm(dim=-1)
    return Motion(lengths, 180 - (180 - turns) % 360, torch.cat([p for p, _ in walks]))
