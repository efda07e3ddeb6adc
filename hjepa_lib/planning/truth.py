"""Flat planning with one part made true (`planning.truth`): told more than frames."""

from collections.abc import Callable

import torch
from torch import Tensor

from hjepa_lib.config import ConfigError
from hjepa_lib.models.distance import Probe
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.local import Scene
from hjepa_lib.planning.graph import GraphDistance, pixels_of
from hjepa_lib.worlds.base import World


def resume(world: World, rows: Tensor) -> World:
    """A copy that goes on from the states of trials `rows` (M,), without `bounce`, on the CPU."""
    rows = rows.cpu()
    rule = getattr(world, "dynamics", "slide").replace("bounce", "slide")
    copy = type(world)(world.layout.index(rows), rule, seed=1 << 30)  # no chance is foretold
    copy.rows, copy.goal = range(len(rows)), world.goal[rows]
    copy.reset(world.position[rows])
    copy.position = world.position[rows]  # with what a reset forgets
    return copy


def witness(world: World, seen: Scene | None, device: torch.device | str = "cpu") -> Scene:
    """What level 1 on `device` sees of B trials, and the world as it is now."""
    rows = torch.arange(world.layout.batch, device=device)
    return Scene(seen and seen.maps, rows, resume(world, rows), seen and seen.ahead)


def _asked(scene: Scene | None) -> World:
    if scene is None or scene.world is None:
        raise ConfigError("planning.truth asks the world: behind these frames there is none")
    return scene.world


class TrueDynamics:
    """Level 1's roll-outs as a copy of the world makes them; its frames are encoded."""

    predictors = (None,)

    def __init__(self, encode: Callable[[Tensor], Tensor], model: Jepa) -> None:
        self.encode, self.mover, self.action_dim = encode, model.mover, model.action_dim

    def rollout_members(self, start: Tensor, plans: Tensor, scene: Scene, **hooks) -> Tensor:
        """start (M, D), plans (M, H, A) px -> (1, M, H+1, D)."""
        world, latents = resume(_asked(scene), scene.rows), [start]
        for action in plans.float().cpu().unbind(1):
            world.step(action)
            latents.append(self.encode(world.render()))
        return torch.stack(latents, 1)[None]


class TrueDistance(GraphDistance):
    """The world's own ways in steps of `cap` px, from where the probe reads a latent.

    Between pixels: a place a little inside a wall has the way of what lies beside it.
    """

    name = "distance"

    def __init__(self, probe: Probe, cap: float) -> None:
        self.places, self.step = probe, cap

    def begin(self, scene: Scene, goals: Tensor) -> None:
        """New episodes, to the goals of the world."""
        world = _asked(scene)
        _, *sides = world.frame_shape
        ways = []
        for row in scene.rows.tolist():
            for part in pixels_of(*sides).split(1024):  # some 200 MB
                rows, states = torch.full((len(part),), row), world.at_rest(part)
                there = type(world)(world.layout.index(rows))
                way = there.oracle_length(states, world.goal[rows])
                ways.append(way.where(there.free(states), torch.inf))
        self.take(torch.cat(ways).reshape(-1, *sides).to(goals))
