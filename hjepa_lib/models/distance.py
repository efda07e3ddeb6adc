"""How far one latent is from another: the cost geometries of planning, a lever beside hierarchy.

    latent:       mean_d (z - z_goal)^2, as in PLDM and EB-JEPA
    metric:       d(s, g) = || phi(s) - phi(g) ||_2    (symmetric, a metric by construction)
    quasimetric:  d(s, g) = max_i relu(phi_i(g) - phi_i(s)) + mean_i relu(phi_i(g) - phi_i(s))

The last two are a learned head that counts environment steps, trained by training/distance.py.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import DistanceConfig
from hjepa_lib.models.layers import mlp


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


class Distance(nn.Module):
    """phi: (..., D) latents -> (..., dim) embedding in which distance means steps."""

    name = "distance"
    in_steps = True

    def __init__(self, config: DistanceConfig, latent_dim: int) -> None:
        super().__init__()
        self.config, self.latent_dim = config, latent_dim
        self.phi = mlp(
            latent_dim, config.hidden, config.hidden, config.dim, activation=nn.GELU, norm=True
        )
        # Only differences of embeddings are used: a bias would cancel and never learn.
        self.phi[-1] = nn.Linear(config.hidden, config.dim, bias=False)

    def embed(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., dim) float32."""
        return self.phi(latents).float()

    def between(self, start: Tensor, goal: Tensor) -> Tensor:
        """Distance of embeddings (..., dim), broadcast -> (...) in environment steps."""
        if self.config.form == "metric":
            # sqrt has no gradient at 0, where start and goal coincide
            return ((start - goal).square().sum(-1) + 1e-6).sqrt()
        gap = F.relu(goal - start)
        return gap.amax(-1) + gap.mean(-1)

    def forward(self, start: Tensor, goal: Tensor) -> Tensor:
        """Latents (..., D), (..., D) -> (...) environment steps."""
        return self.between(self.embed(start), self.embed(goal))
