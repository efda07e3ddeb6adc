"""Shortest paths through the door, exact for a point: straight, or by corners of the opening."""

import itertools

import torch
from torch import Tensor

from hjepa_lib.worlds.base import clip_norm
from hjepa_lib.worlds.layout import Layout

CLEARANCE = 0.5  # px from the door lips, which `oracle_action` never touches
_TOLERANCE = 1e-4


def _paths(
    start: Tensor, goal: Tensor, layout: Layout, inset: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Lengths (B, 9) px, infinite where infeasible, and first way-points (B, 9, 2).

    Both rooms and the doorway are convex, so a shortest path bends at the opening's corners alone.
    """
    low, high = layout.top + inset, layout.bottom - inset
    gate_a, gate_b = (
        torch.maximum(torch.minimum(place[:, 0], layout.right), layout.left)
        for place in (start, goal)
    )
    first, last = ([torch.stack((gate, y), -1) for y in (low, high)] for gate in (gate_a, gate_b))

    def passes(one: Tensor, two: Tensor, gate: Tensor) -> Tensor:  # (B,)
        """Whether the segment one-two is in the opening where it meets column `gate`."""
        run = two[:, 0] - one[:, 0]
        share = torch.where(run == 0, 0, (gate - one[:, 0]) / torch.where(run == 0, 1, run))
        y = one[:, 1] + share * (two[:, 1] - one[:, 1])
        return (y >= low - _TOLERANCE) & (y <= high + _TOLERANCE)

    same = ((start[:, 0] < layout.left) & (goal[:, 0] < layout.left)) | (
        (start[:, 0] > layout.right) & (goal[:, 0] > layout.right)
    )
    straight = same | (passes(start, goal, gate_a) & passes(start, goal, gate_b))
    always = torch.ones_like(same)
    routes = [((start, goal), straight)]
    routes += [((start, one, goal), passes(one, goal, gate_b)) for one in first]
    routes += [((start, two, goal), passes(start, two, gate_a)) for two in last]
    routes += [((start, one, two, goal), always) for one in first for two in last]
    lengths = [
        torch.where(ok, sum((b - a).norm(dim=-1) for a, b in itertools.pairwise(way)), float("inf"))
        for way, ok in routes
    ]
    return torch.stack(lengths, 1), torch.stack([way[1] for way, _ in routes], 1)


def oracle_length(start: Tensor, goal: Tensor, layout: Layout) -> Tensor:
    """Shortest collision-free path (B,) px from `start` (B, 2) to `goal` (B, 2)."""
    return _paths(start, goal, layout, 0.0)[0].min(1).values


def oracle_action(
    position: Tensor,
    goal: Tensor,
    layout: Layout,
    cap: float,
    clearance: float | Tensor = CLEARANCE,
) -> Tensor:
    """Action (B, 2) px along the shortest path that clears the lips, norm at most `cap`."""
    lengths, ways = _paths(position, goal, layout, clearance)
    best = lengths.min(1).indices
    move = ways.gather(1, best[:, None, None].expand(-1, 1, 2))[:, 0] - position  # (B, 2)
    return clip_norm(move, cap)
