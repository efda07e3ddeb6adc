"""The interface that planning and evaluation need from a world: implement it to bring another one.

A world is a batch of B independent episodes simulated in torch. `TwoRooms` is the implementation
shipped here; `worlds/gym_env.py` wraps the same dynamics for Gymnasium, one episode at a time.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from hjepa_lib.worlds.layout import Layout


@runtime_checkable
class World(Protocol):
    """B episodes with a position each; positions and actions in px."""

    layout: Layout
    position: Tensor  # (B, 2)

    def reset(self, position: Tensor) -> Tensor:
        """Start at `position` (B, 2), restart all randomness; returns the positions."""

    def step(self, action: Tensor) -> Tensor:
        """Apply `action` (B, 2); returns the new positions (B, 2)."""

    def render(self, position: Tensor | None = None) -> Tensor:
        """uint8 frames (B, ..., C, Hpx, Wpx) of positions (B, ..., 2), default the current ones."""

    def oracle_length(self, start: Tensor, goal: Tensor) -> Tensor:
        """Length (B,) of the shortest feasible path."""

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """First action (B, 2) of the shortest path from the current position, norm <= `cap`."""
