"""Cost geometry: how far one latent is from another, a lever of its own beside hierarchy.

`latent` is the mean squared latent difference of PLDM and EB-JEPA; `distance` is the learned
temporal distance in environment steps (models/distance.py).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hjepa_lib.models.distance import Distance


class Geometry(Protocol):
    """Per-step cost of being at a latent when the goal is another."""

    name: str
    in_steps: bool  # the cost counts environment steps

    def embed(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., E); goals are embedded once per plan."""
        ...

    def between(self, embedded: Tensor, goal: Tensor) -> Tensor:
        """(..., E), broadcast with goal (..., E) -> (...) cost >= 0."""
        ...


class LatentGeometry:
    """mean_d (z - z_goal)^2."""

    name = "latent"
    in_steps = False

    def embed(self, latents: Tensor) -> Tensor:
        return latents

    def between(self, embedded: Tensor, goal: Tensor) -> Tensor:
        return (embedded - goal).square().mean(-1)


class DistanceGeometry:
    """Environment steps, by the learned temporal-distance head."""

    name = "distance"
    in_steps = True

    def __init__(self, head: Distance) -> None:
        self.head = head

    def embed(self, latents: Tensor) -> Tensor:
        return self.head.embed(latents)

    def between(self, embedded: Tensor, goal: Tensor) -> Tensor:
        return self.head.between(embedded, goal)
