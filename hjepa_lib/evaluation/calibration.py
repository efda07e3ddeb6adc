"""The temporal-distance head against true shortest paths, layout by layout.

"True steps" are the length of the shortest path through the door over the longest step of the
training data, the fewest steps in which any of its trajectories could go there. The head never sees
this number: it learns from recorded steps alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from hjepa_lib.data.motion import STEP_HIGH, STEP_MEAN
from hjepa_lib.planning.agent import Agent
from hjepa_lib.worlds.layout import HIGH, LOW, Layout
from hjepa_lib.worlds.oracle import oracle_length
from hjepa_lib.worlds.rendering import render
from hjepa_lib.worlds.two_rooms import inside

MEAN_PACE = STEP_HIGH / STEP_MEAN
"""Steps of mean length per step of the longest one."""
MARGIN = 2.0
"""Places keep this distance from the borders, px."""


class StepPairs(NamedTuple):
    """n pairs of places; steps are environment steps of the longest training step's length."""

    shortest: np.ndarray  # (n,) true steps
    predicted: np.ndarray  # (n,) steps, by the head
    through_door: np.ndarray  # (n,) bool: the wall stands between the two
    layout: np.ndarray  # (n, 2) wall_x, door_y


@torch.no_grad()
def step_pairs(agent: Agent, layouts: np.ndarray, per_layout: int, seed: int) -> StepPairs:
    """`per_layout` random pairs of free places in each of the layouts (K, 2).

    ConfigError when the agent has no distance head, ValueError without layouts or pairs.
    """
    geometry = agent.geometry("distance")
    if len(layouts) == 0 or per_layout < 1:
        raise ValueError(f"pairs need layouts and a count, got {len(layouts)} and {per_layout}")
    generator = torch.Generator().manual_seed(seed)
    rows = Layout.of(np.repeat(np.asarray(layouts), per_layout, axis=0))
    here, there = (_free(rows, generator) for _ in range(2))
    ends = [
        torch.cat([geometry.embed(agent.encode(part)) for part in frames.split(1024)])
        for frames in (render(here, rows), render(there, rows))
    ]
    wall = rows.wall_x
    return StepPairs(
        (oracle_length(here, there, rows) / STEP_HIGH).numpy(),
        geometry.between(*ends).float().cpu().numpy(),
        ((here[:, 0] - wall) * (there[:, 0] - wall) < 0).numpy(),
        rows.pairs().numpy(),
    )


def _free(layout: Layout, generator: torch.Generator) -> torch.Tensor:
    """One free place (B, 2) px per row, drawn again wherever it falls into the wall."""
    low, high = LOW + MARGIN, HIGH - MARGIN
    place = low + (high - low) * torch.rand(layout.batch, 2, generator=generator)
    while not (free := inside(place, layout)).all():
        again = low + (high - low) * torch.rand(layout.batch, 2, generator=generator)
        place = torch.where(free[:, None], place, again)
    return place
