"""Shortest paths through the door, exact for a point: the ceiling of every comparison.

Both rooms and the 3 px thick doorway are convex, so a shortest path is straight or bends at the
four corners of the opening. All nine candidates (straight, one corner, two corners) are measured
and the shortest feasible one is taken; no graph search is needed.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hjepa_lib.worlds.layout import Layout

CLEARANCE = 0.5
"""`oracle_action` passes the door lips at this distance, px, so that it never touches them."""
_TOLERANCE = 1e-4


def _paths(start: Tensor, goal: Tensor, layout: Layout, inset: float) -> tuple[Tensor, Tensor]:
    """Lengths (B, 9) px, infinite where infeasible, and the first way-point (B, 9, 2) of each."""
    low, high = layout.top + inset, layout.bottom - inset
    gate_a = torch.maximum(torch.minimum(start[:, 0], layout.right), layout.left)
    gate_b = torch.maximum(torch.minimum(goal[:, 0], layout.right), layout.left)
    first = [torch.stack((gate_a, y), -1) for y in (low, high)]
    last = [torch.stack((gate_b, y), -1) for y in (low, high)]

    def passes(one: Tensor, two: Tensor, gate: Tensor) -> Tensor:  # (B,)
        """Whether the segment one-two is in the opening where it meets column `gate`."""
        run = two[:, 0] - one[:, 0]
        share = torch.where(run == 0, 0, (gate - one[:, 0]) / torch.where(run == 0, 1, run))
        y = one[:, 1] + share * (two[:, 1] - one[:, 1])
        return (y >= low - _TOLERANCE) & (y <= high + _TOLERANCE)

    def length(*points: Tensor) -> Tensor:  # (B,)
        return sum((b - a).norm(dim=-1) for a, b in itertools.pairwise(points))

    same = ((start[:, 0] < layout.left) & (goal[:, 0] < layout.left)) | (
        (start[:, 0] > layout.right) & (goal[:, 0] > layout.right)
    )
    straight = same | (passes(start, goal, gate_a) & passes(start, goal, gate_b))
    routes = [(length(start, goal), straight, goal)]
    for corner in first:
        feasible = passes(corner, goal, gate_b)
        routes.append((length(start, corner, goal), feasible, corner))
    for corner in last:
        feasible = passes(start, corner, gate_a)
        routes.append((length(start, corner, goal), feasible, corner))
    always = torch.ones_like(same)
    for one in first:
        for two in last:
            routes.append((length(start, one, two, goal), always, one))
    lengths = [torch.where(ok, px, float("inf")) for px, ok, _ in routes]
    return torch.stack(lengths, 1), torch.stack([way for _, _, way in routes], 1)


def oracle_length(start: Tensor, goal: Tensor, layout: Layout) -> Tensor:
    """Shortest collision-free path (B,) px from `start` (B, 2) to `goal` (B, 2)."""
    return _paths(start, goal, layout, 0.0)[0].min(1).values


def oracle_action(position: Tensor, goal: Tensor, layout: Layout, cap: float) -> Tensor:
    """Action (B, 2) px along the shortest path that clears the lips, norm at most `cap`."""
    lengths, ways = _paths(position, goal, layout, CLEARANCE)
    best = lengths.min(1).indices
    target = ways.gather(1, best[:, None, None].expand(-1, 1, 2))[:, 0]  # (B, 2)
    move = target - position
    norm = move.norm(dim=-1, keepdim=True)
    return move * (cap / norm.clamp_min(1e-12)).clamp(max=1)
