"""What is asked of a world; `data.source=module:Class` names an own one (examples/own_world.py)."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import ConfigError
from hjepa_lib.worlds.layout import Layout


def trial_noise(
    seed: int, rows: Sequence[int], step: int, shape: tuple[int, ...], level: int = 0, draw: int = 0
) -> Tensor:
    """Standard normal (B, *shape), those of a trial the same alone and in any batch (I13).

    `rows` (B,) are the trials' numbers in their file, `step` counts environment steps, level 0 is
    the world and 1 upwards are the planners', `draw` counts within a step.
    """
    bits = np.random.Philox(key=seed)
    normal, state = np.random.Generator(bits).standard_normal, bits.state
    numbers = np.empty((len(rows), *shape), np.float32)
    for place, row in zip(numbers, rows, strict=True):
        state["state"]["counter"][:] = (0, (level << 32) + draw, step, row)
        bits.state = state
        normal(dtype=np.float32, out=place)
    return torch.from_numpy(numbers)


def clip_norm(actions: Tensor, cap: float) -> Tensor:
    """(..., A) px -> same direction, Euclidean norm <= cap."""
    norm = actions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return actions * (cap / norm).clamp(max=1.0)


class World:
    """B episodes with a state each; an own world has all methods, and what differs of the rest.

    Built as `World(layout, dynamics, seed=seed)` and, to draw frames, as `World(layout)`; the B
    rows of `layout` are (0, 0) in an own world.
    """

    frame_shape: ClassVar[tuple[int, int, int]] = (2, 65, 65)  # (C, Hpx, Wpx), uint8
    stacked: ClassVar[int] = 1  # frames of one observation, oldest first
    action_size: ClassVar[int] = 2
    action_cap: ClassVar[float] = 2.45  # largest action, px
    action_ball: ClassVar[bool] = True  # the cap is of the Euclidean norm, else of each component
    state_size: ClassVar[int] = 2
    place: ClassVar[tuple[int, ...]] = (0, 1)  # columns of a state that are its position
    max_steps: ClassVar[int] = 200  # of an episode
    radius: ClassVar[float] = math.sqrt(2)  # px, see `reached`

    layout: Layout
    position: Tensor  # (B, state_size)
    # Who plays stored trials sets `rows`, their numbers (B,): noise comes from `trial_noise`.

    def reached(self, state: Tensor, goal: Tensor) -> Tensor:
        """(...) bool: whether states (..., state_size) solve the task of their goals."""
        columns = list(self.place)
        return (state - goal)[..., columns].norm(dim=-1) < self.radius

    def sample_start_goal(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Start and goal (B, 2) of a task each; trajectories begin at such starts too."""

    def reset(self, position: Tensor) -> Tensor:
        """Start at `position` (B, 2), restart all randomness; returns the positions."""

    def step(self, action: Tensor) -> Tensor:
        """Apply `action` (B, 2); returns the new positions (B, 2), in a new tensor."""

    def render(self, position: Tensor | None = None) -> Tensor:
        """uint8 frames (B, ..., 2, 65, 65) of positions (B, ..., 2), default the current ones."""

    def oracle_length(self, start: Tensor, goal: Tensor) -> Tensor:
        """Length (B,) of the shortest feasible path."""

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """First action (B, 2) of the shortest path from the current position, norm <= `cap`."""


def find_world(source: str) -> type[World] | None:
    """The class of an own world, for a `data.source` of the form module:Class; None for others.

    ConfigError when there is no such module or class, or when the class lacks a method.
    """
    match = re.fullmatch(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)", source)
    if not match:
        return None
    module, name = match.groups()
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.source={source}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, World)):
        raise ConfigError(f"data.source={source}: {name} must extend hjepa_lib.worlds.World")
    for method, default in vars(World).items():
        wanted = inspect.isfunction(default) and method != "reached"
        if wanted and getattr(found, method) is default:
            raise ConfigError(f"data.source={source}: the world lacks the method {method}")
    return found
