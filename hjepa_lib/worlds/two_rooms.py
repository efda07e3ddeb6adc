"""The two-room world: its dynamics, starts and goals, and shortest paths, exact for a point.

Where a step meets a border, a wall face or a door lip, PLDM (arXiv 2502.14819) has two rules:
`blocked` (data: the dot stays) and `bounce` (evaluation: hit point plus Gaussian noise, its normal
part pointing back, then 0.3 px inside the room). `slide` is `bounce` without noise.
"""

import itertools

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.files import one_of
from hjepa_lib.worlds.base import World, bound, trial_noise
from hjepa_lib.worlds.boxes import visible
from hjepa_lib.worlds.layout import DOT_STD, HIGH, LOW, Layout, layout_set, render

DYNAMICS = ("blocked", "bounce", "slide")
NOISE = 0.5  # standard deviation of the bounce per axis, px
INSET = 0.3  # px that a dot is put inside its room after a hit
SLACK, TOLERANCE = 1e-3, 1e-4  # px that a segment may touch a lip by, and that a path may
CLEARANCE = 0.5  # px from the door lips, which `oracle_action` never touches
MARGIN = 2 * DOT_STD  # px between borders or faces and starts or goals


def inside(position: Tensor, layout: Layout) -> Tensor:
    """(B,) bool: strictly within the borders and not in the wall's body (door lips are free)."""
    x, y = position.unbind(-1)
    bordered = (x > LOW) & (x < HIGH) & (y > LOW) & (y < HIGH)
    column = (x > layout.left) & (x < layout.right)
    return bordered & ~(column & ((y < layout.top) | (y > layout.bottom)))


def reachable(here: Tensor, there: Tensor, layout: Layout, way: float) -> Tensor:
    """(B,) bool: `there` (B, 2) is free and at most `way` px from `here`, around the walls."""
    return inside(there, layout) & (oracle_length(here, there, layout) <= way)


def step(
    position: Tensor,
    action: Tensor,
    layout: Layout,
    dynamics: str,
    generator: torch.Generator | Tensor | None = None,
) -> Tensor:
    """Positions after one action: (B, 2), (B, 2) -> (B, 2), all px; actions are never clipped.

    `bounce` draws (B, 2) numbers at every call, hit or not, so that all policies meet the same
    noise at a step; `generator` may be these numbers.
    """
    time, plane, axis, lip = _first_hit(position, action, layout)
    hit = time <= 1  # (B,)
    moved = position + action
    # Rounding can let a step slip by a corner into the wall: such a step is cancelled.
    slipped = inside(position, layout) & ~inside(moved, layout)
    moved = torch.where(slipped[:, None], position, moved)
    if dynamics == "blocked":
        return torch.where(hit[:, None], position, moved)
    point = position + time.clamp(max=1)[:, None] * action
    # The normal coordinate is set to the plane itself: rounding must not push it through.
    point = torch.where(axis, plane[:, None], point)
    is_left = point[:, 0] <= layout.wall_x  # the room of the hit
    if dynamics == "bounce":
        if isinstance(generator, torch.Generator):
            generator = torch.randn(position.shape, generator=generator, device=generator.device)
        shift = generator.to(position.device) * NOISE
        point = point + torch.where(axis, -shift.abs() * action.sign(), shift)
    # On or beyond a wall it is put inside its room, unless it hit a lip.
    low_x, high_x = torch.where(is_left, LOW, layout.right), torch.where(is_left, layout.left, HIGH)
    low = torch.stack((low_x, torch.full_like(low_x, LOW)), -1)
    high = torch.stack((high_x, torch.full_like(high_x, HIGH)), -1)
    settled = torch.where(point <= low, low + INSET, point)
    settled = torch.where(settled >= high, high - INSET, settled)
    settled = torch.where(lip[:, None], point, settled)
    return torch.where(hit[:, None], settled, moved)


def _first_hit(position: Tensor, action: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """First line met: time (B,) (> 1 if none), its coordinate (B,), axis (B, 2) bool, lip (B,)."""
    right, down = (action > 0).unbind(-1)
    edge_x, edge_y = (torch.where(ahead, HIGH, LOW).to(position) for ahead in (right, down))
    # From inside the wall body (starts of the public data) the far face.
    x = position[:, 0]
    ahead = torch.where(right, x <= layout.left, x < layout.right)
    face = torch.where(ahead, layout.left, layout.right)
    # Only the lip ahead, so it is met from inside: from outside the face would come first.
    lip = torch.where(down, layout.bottom, layout.top)
    lines, across = torch.stack((lip, face, edge_x, edge_y), -1), [1, 0, 0, 1]  # (B, 4), their axis
    gap, speed = lines - position[:, across], action[:, across]
    towards = (speed != 0) & (gap * speed.sign() >= 0)
    times = torch.where(towards, gap / torch.where(speed == 0, 1, speed), float("inf"))
    x_lip, y_face = (position + times[:, :2] * action).unbind(-1)
    in_door = (x_lip >= layout.left) & (x_lip <= layout.right)
    closed = (y_face < layout.top) | (y_face > layout.bottom)
    times[:, :2].masked_fill_(~torch.stack((in_door, closed), -1), float("inf"))
    time, which = times.min(-1)  # ties: in the order of the lines
    plane = lines.gather(-1, which[:, None])[:, 0]
    vertical = (which == 1) | (which == 2)
    return time, plane, torch.stack((vertical, ~vertical), -1), which == 0


def _paths(
    start: Tensor, goal: Tensor, layout: Layout, inset: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Lengths (B, 9) px, infinite where infeasible, and first way-points (B, 9, 2).

    Rooms and doorway are convex, so a shortest path bends at the opening's corners alone.
    """
    low, high = layout.top + inset, layout.bottom - inset
    gate_a, gate_b = (
        torch.maximum(torch.minimum(place[:, 0], layout.right), layout.left)
        for place in (start, goal)
    )
    first, last = ([torch.stack((gate, y), -1) for y in (low, high)] for gate in (gate_a, gate_b))

    def passes(one: Tensor, two: Tensor, gate: Tensor) -> Tensor:  # (B,)
        """The segment one-two is in the opening where it meets column `gate`."""
        run = two[:, 0] - one[:, 0]
        share = torch.where(run == 0, 0, (gate - one[:, 0]) / torch.where(run == 0, 1, run))
        y = one[:, 1] + share * (two[:, 1] - one[:, 1])
        return (y >= low - TOLERANCE) & (y <= high + TOLERANCE)

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
    return bound(move, cap)


class TwoRooms(World):
    """B independent rooms; a state is the position."""

    dot_std = DOT_STD  # px
    bright = 255.0  # of the dot's centre
    scale = 1.0  # px that a displacement of 1 px moves
    rooms = Layout
    generator: torch.Generator | None = None  # draws the noise of steps that belong to no trial

    def __init__(self, layout: Layout, dynamics: str = "bounce", seed: int = 0) -> None:
        """`layout` gives B and the device, (`seed`, row, step) the noise of a step."""
        one_of("dynamics", dynamics, DYNAMICS)
        self.layout = self.rooms(*layout)
        self.dynamics, self.seed = dynamics, seed
        self.rows, self.steps = range(layout.batch), 0
        self.position = torch.full((layout.batch, 2), float("nan"), device=layout.wall_x.device)

    @classmethod
    def layout_set(cls, name: str) -> np.ndarray:
        """(K, 2) int16, rows wall_x and door_y, see `layout_set`."""
        return layout_set(name)

    def free(self, state: Tensor) -> Tensor:
        """(B,) bool, see `inside`."""
        return inside(state, self.layout)

    def sample_start_goal(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Start and goal (B, 2) px in different rooms, 2.6 px away from borders and faces."""
        layout = self.layout

        def uniform(low: Tensor | float, high: Tensor | float) -> Tensor:  # (B,)
            draw = torch.rand(layout.batch, generator=generator, device=generator.device)
            return low + (high - low) * draw.to(layout.wall_x)

        low, high = (torch.full_like(layout.wall_x, edge) for edge in (LOW + MARGIN, HIGH - MARGIN))
        left, right = (
            torch.stack((uniform(*x_range), uniform(low, high)), -1)
            for x_range in ((low, layout.left - MARGIN), (layout.right + MARGIN, high))
        )
        flip = uniform(0, 1)[:, None] < 0.5
        return torch.where(flip, right, left), torch.where(flip, left, right)

    def reset(self, position: Tensor) -> Tensor:
        """Put the dots at free places (B, 2) px."""
        self.steps, self.position = 0, position.to(self.layout.wall_x).clone()
        return self.position

    def step(self, action: Tensor) -> Tensor:
        """Move by `action` (B, 2) px."""
        draw = self.generator
        if draw is None and self.dynamics == "bounce":
            draw = trial_noise(self.seed, self.rows, self.steps, (2,))
        self.steps += 1
        self.position = step(self.position, self.scale * action, self.layout, self.dynamics, draw)
        return self.position

    def render(self, position: Tensor | None = None) -> Tensor:
        """Frames (B, ..., 2, 65, 65) uint8."""
        position = self.position if position is None else position
        return render(position, self.layout, self.bright, self.dot_std)

    def crosses_wall(self, here: Tensor, there: Tensor) -> Tensor:
        """(B, P) bool: the segment meets the wall's body."""
        layout, far = self.layout, torch.full_like(self.layout.wall_x, 1e3)
        above = torch.stack((layout.left, -far, layout.right, layout.top - SLACK), -1)
        below = torch.stack((layout.left, layout.bottom + SLACK, layout.right, far), -1)
        return ~visible(here, there, torch.stack((above, below), 1), margin=0.0)

    def oracle_length(self, start: Tensor, goal: Tensor) -> Tensor:
        """Shortest path (B,) px."""
        return oracle_length(start, goal, self.layout)

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """First action (B, 2) of the shortest path, norm <= `cap` px."""
        return oracle_action(self.position, goal, self.layout, cap)


class ThickWall(Layout):
    """5 px instead of 3, drawn and in the way."""

    half = 2.0


SHIFTS = {
    "large_dot": {"dot_std": 1.3 * DOT_STD},
    "small_dot": {"dot_std": 0.7 * DOT_STD},
    "dim": {"bright": 0.7 * 255},
    "thick_wall": {"rooms": ThickWall},
    "weak": {"scale": 0.8},
}
"""What no training has seen in the world `p3_NAME` (after CLEAR-LeWM)."""
_WORLDS = {
    f"p3_{name}": type(f"TwoRooms_{name}", (TwoRooms,), changes) for name, changes in SHIFTS.items()
}


def shifted(protocol: str) -> type[TwoRooms]:
    """The two-room world of a protocol."""
    return _WORLDS.get(protocol, TwoRooms)
