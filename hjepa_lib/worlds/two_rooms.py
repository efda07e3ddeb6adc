"""The two-room world, batched in torch: dynamics, start and goal sampling, and a stateful wrapper.

Where a step meets a border, a wall face or a door lip, PLDM (arXiv 2502.14819) has two rules:
`blocked` (data: the dot stays) and `bounce` (evaluation: hit point plus Gaussian noise, its normal
part pointing back, then 0.3 px inside the room). `slide` is `bounce` without noise.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.files import WorkbookError, one_of
from hjepa_lib.worlds.base import World, trial_noise
from hjepa_lib.worlds.boxes import visible
from hjepa_lib.worlds.layout import DOT_STD, HIGH, LOW, Layout, layout_set
from hjepa_lib.worlds.oracle import oracle_action, oracle_length
from hjepa_lib.worlds.rendering import render

DYNAMICS = ("blocked", "bounce", "slide")
NOISE = 0.5
"""Standard deviation of the bounce noise per axis, px."""
INSET = 0.3
"""After a hit, a dot on or beyond a wall is put this far inside its room, px."""
SLACK = 1e-3  # px that a segment may touch a lip by
MARGIN = 2 * DOT_STD
"""Starts and goals keep this distance from borders and faces, px."""


def inside(position: Tensor, layout: Layout) -> Tensor:
    """(B,) bool: strictly within the borders and not in the wall body (its door lips are free)."""
    x, y = position.unbind(-1)
    bordered = (x > LOW) & (x < HIGH) & (y > LOW) & (y < HIGH)
    column = (x > layout.left) & (x < layout.right)
    return bordered & ~(column & ((y < layout.top) | (y > layout.bottom)))


def reachable(here: Tensor, there: Tensor, layout: Layout, way: float) -> Tensor:
    """(B,) bool: `there` (B, 2) is a free place at most `way` px from `here`, around the walls."""
    return inside(there, layout) & (oracle_length(here, there, layout) <= way)


def step(
    position: Tensor,
    action: Tensor,
    layout: Layout,
    dynamics: str,
    generator: torch.Generator | Tensor | None = None,
    noise: float = NOISE,
) -> Tensor:
    """Positions after one action: (B, 2), (B, 2) -> (B, 2), all px; actions are never clipped.

    `bounce` with noise > 0 draws (B, 2) numbers at every call, hit or not, so that two policies on
    one seed meet the same noise at the same step; `generator` may be these numbers.
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
    if dynamics == "bounce" and noise > 0:
        if isinstance(generator, torch.Generator):
            generator = torch.randn(position.shape, generator=generator, device=generator.device)
        shift = generator.to(position.device) * noise
        point = point + torch.where(axis, -shift.abs() * action.sign(), shift)
    # On or beyond a wall it is put INSET inside its room, unless it hit a lip.
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


class TwoRooms(World):
    """`World` of B independent rooms with a current position each."""

    dot_std: ClassVar[float] = DOT_STD  # px
    bright: ClassVar[float] = 255.0  # of the dot's centre
    scale: ClassVar[float] = 1.0  # px that a displacement of 1 px moves
    rooms: ClassVar[type[Layout]] = Layout
    generator: torch.Generator | None = None  # draws the noise of steps that belong to no trial

    def __init__(
        self, layout: Layout, dynamics: str = "bounce", noise: float = NOISE, seed: int = 0
    ) -> None:
        """`layout` gives B and the device; `noise` px, that of a step from (`seed`, row, step)."""
        one_of("dynamics", dynamics, DYNAMICS)
        if not noise >= 0:
            raise WorkbookError(f"noise must be at least 0 px, got {noise!r}")
        self.layout = self.rooms(*layout)
        self.dynamics, self.noise, self.seed = dynamics, noise, seed
        self.rows, self.steps = range(layout.batch), 0
        self.position = torch.full((layout.batch, 2), float("nan"), device=layout.wall_x.device)

    @classmethod
    def layout_set(cls, name: str) -> np.ndarray:
        """Layouts (K, 2) int16, rows wall_x and door_y, by a name known to `layout_set`."""
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
        """Put the dots at `position` (B, 2) px, free places, and restart the noise."""
        self.steps, self.position = 0, position.to(self.layout.wall_x).clone()
        return self.position

    def step(self, action: Tensor) -> Tensor:
        """Move by `action` (B, 2) px; returns the new positions (B, 2)."""
        draw = self.generator
        if draw is None and self.dynamics == "bounce" and self.noise > 0:
            draw = trial_noise(self.seed, self.rows, self.steps, (2,))
        self.steps += 1
        action = self.scale * action
        self.position = step(self.position, action, self.layout, self.dynamics, draw, self.noise)
        return self.position

    def render(self, position: Tensor | None = None) -> Tensor:
        """Frames (B, ..., 2, 65, 65) uint8 of `position` (B, ..., 2), default the current one."""
        position = self.position if position is None else position
        return render(position, self.layout, self.bright, self.dot_std)

    def crosses_wall(self, here: Tensor, there: Tensor) -> Tensor:
        """(B, P) bool: segments between places (B, P, 2) px that meet the wall's body."""
        layout, far = self.layout, torch.full_like(self.layout.wall_x, 1e3)
        above = torch.stack((layout.left, -far, layout.right, layout.top - SLACK), -1)
        below = torch.stack((layout.left, layout.bottom + SLACK, layout.right, far), -1)
        return ~visible(here, there, torch.stack((above, below), 1), margin=0.0)

    def oracle_length(self, start: Tensor, goal: Tensor) -> Tensor:
        """Shortest path (B,) px between two sets of positions (B, 2)."""
        return oracle_length(start, goal, self.layout)

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """Next action (B, 2) of the shortest path from the current position, norm <= `cap` px."""
        return oracle_action(self.position, goal, self.layout, cap)


class ThickWall(Layout):
    """A wall of 5 px instead of 3, drawn and in the way."""

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
    """The two-room world of a protocol, the usual one unless it is shifted."""
    return _WORLDS.get(protocol, TwoRooms)
