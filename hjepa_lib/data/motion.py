"""Random actions of the public data sets: correlated headings, truncated step lengths, door visits.

PLDM (arXiv 2502.14819): the first heading is uniform, each next one adds a von Mises angle, step
lengths are normal(1, 0.4) truncated to [0.2, 1.8] px. A share of the trajectories is built around
a point in the door that is reached at a random step. Differs: sampled by inverse distribution
functions, so that every number comes from one given generator.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from hjepa_lib.worlds.layout import DOOR_HALF, HIGH, LOW, Layout

STEP_MEAN, STEP_STD, STEP_LOW, STEP_HIGH = 1.0, 0.4, 0.2, 1.8
"""Step length in px: normal(mean, std) truncated to [low, high], which is mean +- 2 std."""
DOOR_STD = 1.4
"""Standard deviation of the crossing point around the door's centre, px."""
EDGE = 0.01
"""Back-computed starts are clamped this far inside the border, px."""
_NODES = 1 << 16


@functools.lru_cache(maxsize=8)
def _von_mises_quantiles(kappa: float) -> Tensor:  # (_NODES + 1,)
    """Angles at evenly spaced probabilities, from the numerically integrated density."""
    angle = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    density = torch.exp(kappa * (angle.cos() - 1))
    cumulative = torch.cat((torch.zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)))
    cumulative = cumulative / cumulative[-1]
    wanted = torch.linspace(0, 1, _NODES + 1, dtype=torch.float64)
    right = torch.searchsorted(cumulative, wanted).clamp(1, len(angle) - 1)
    low, high = cumulative[right - 1], cumulative[right]
    share = (wanted - low) / (high - low).clamp_min(1e-300)
    return (angle[right - 1] + share * (angle[right] - angle[right - 1])).float()


def von_mises(kappa: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Angles in [-pi, pi] with density proportional to exp(kappa cos angle)."""
    table = _von_mises_quantiles(kappa)
    place = torch.rand(shape, generator=generator) * _NODES
    node = place.long().clamp_max(_NODES - 1)
    return torch.lerp(table[node], table[node + 1], place - node)


def step_lengths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Step lengths in px, normal(1, 0.4) truncated to [0.2, 1.8]."""
    edge = math.erf((STEP_HIGH - STEP_MEAN) / STEP_STD / math.sqrt(2))
    draw = (torch.rand(shape, generator=generator) * 2 - 1) * edge
    length = STEP_MEAN + STEP_STD * math.sqrt(2) * torch.erfinv(draw)
    return length.clamp(STEP_LOW, STEP_HIGH)


def _uniform(low: float, high: float, n: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def free_starts(position: Tensor, layout: Layout, generator: torch.Generator) -> Tensor:
    """`position` (B, 2) px with starts inside the wall body moved to a random side (new x)."""
    n = len(position)
    share, side = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.5
    low, high = LOW + EDGE, HIGH - EDGE
    left = low + share * (layout.left - EDGE - low)
    right = layout.right + EDGE + share * (high - layout.right - EDGE)
    x, y = position.unbind(-1)
    column = (x >= layout.left) & (x <= layout.right)
    buried = column & ((y - layout.door_y).abs() > DOOR_HALF)
    return torch.stack((torch.where(buried, torch.where(side, right, left), x), y), -1)


def random_motion(
    layout: Layout, steps: int, kappa: Tensor, built: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Starts (B, 2) and intended actions (B, steps, 2), px, before any collision.

    `kappa` (B,) holds at most a few distinct values; `built` (B,) bool marks the trajectories
    constructed to pass the door (walls are ignored in that construction, so fewer really do).
    """
    n = layout.batch
    turn = torch.zeros(n, steps)
    for value in kappa.unique().tolist():
        rows = kappa == value
        turn[rows] = von_mises(value, (int(rows.sum()), steps), generator)
    walk = turn.cumsum(1)  # (B, steps)
    crossing_step = torch.randint(steps + 1, (n, 1), generator=generator)
    backward = _uniform(0, 2 * math.pi, n, generator)
    free = walk - walk[:, :1] + backward[:, None]
    # Built: both halves leave the door within 45 degrees of the outward normal. Seen forward in
    # time the first half arrives; half of all trajectories run the other way (heading + pi).
    reverse = (torch.rand(n, generator=generator) < 0.5).float() * math.pi
    arrive, leave = (_uniform(-math.pi / 4, math.pi / 4, n, generator) for _ in range(2))
    after = torch.arange(steps) >= crossing_step  # (B, steps)
    anchor_leave = walk.gather(1, crossing_step.clamp_max(steps - 1))
    anchor_arrive = walk.gather(1, (crossing_step - 1).clamp_min(0))
    through = torch.where(
        after, walk - anchor_leave + leave[:, None], walk - anchor_arrive + arrive[:, None]
    )
    heading = torch.where(built[:, None], through + reverse[:, None], free)
    length = step_lengths((n, steps), generator)
    actions = torch.stack((length * heading.cos(), length * heading.sin()), -1)  # (B, steps, 2)
    anywhere = torch.stack([_uniform(LOW + EDGE, HIGH - EDGE, n, generator) for _ in "xy"], -1)
    door = _door_point(layout, generator)
    start = door - (actions * ~after[..., None]).sum(1)
    start = torch.where(built[:, None], start.clamp(LOW + EDGE, HIGH - EDGE), anywhere)
    return free_starts(start, layout, generator), actions


def _door_point(layout: Layout, generator: torch.Generator) -> Tensor:  # (B, 2)
    """x uniform between the faces, y normal(door_y, 1.4) truncated to the opening."""
    share = torch.rand(layout.batch, generator=generator)
    edge = math.erf(DOOR_HALF / DOOR_STD / math.sqrt(2))
    draw = (torch.rand(layout.batch, generator=generator) * 2 - 1) * edge
    y = layout.door_y + DOOR_STD * math.sqrt(2) * torch.erfinv(draw)
    return torch.stack((layout.left + share * (layout.right - layout.left), y), -1)
