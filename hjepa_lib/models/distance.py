"""What is read from latents: how far one is from another, and a place.

    latent:    mean_d (z - z_goal)^2, as in PLDM and EB-JEPA
    distance:  d(s, g) = || phi(s) - phi(g) ||_2

phi is a learned head that counts environment steps (training/distance.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hjepa_lib.config import DistanceConfig
from hjepa_lib.models.layers import mlp
from hjepa_lib.models.local import Scene


class Geometry:
    """A cost between latents; `embed` prepares them, goals once per episode."""

    name: str
    in_steps: bool  # whether the cost counts environment steps

    def begin(self, scene: Scene | None, goals: Tensor) -> None:
        """New episodes, from what is seen first to goals (B, D)."""

    def embed_goal(self, goals: Tensor) -> Tensor:
        """(B, D) -> (B, E)."""
        return self.embed(goals)

    def embed_subgoal(self, latents: Tensor, level: int, steps: int) -> Tensor:
        """(B, D) that `level` hands down, some `steps` ahead -> (B, E)."""
        return self.embed(latents)


class LatentGeometry(Geometry):
    """mean_d (z - z_goal)^2."""

    name = "latent"
    in_steps = False

    def embed(self, latents: Tensor) -> Tensor:
        """(..., D) as they are."""
        return latents

    def between(self, embedded: Tensor, goal: Tensor) -> Tensor:
        """(..., D), broadcast with goal (..., D) -> (...) cost >= 0."""
        return (embedded - goal).square().mean(-1)


class Distance(nn.Module, Geometry):
    """phi: (..., D) latents -> (..., dim) embedding in which distance means steps."""

    name = "distance"
    in_steps = True

    def __init__(self, config: DistanceConfig, latent_dim: int) -> None:
        super().__init__()
        self.config, self.latent_dim = config, latent_dim
        widths = (latent_dim, config.hidden, config.hidden, config.dim)
        self.phi = mlp(*widths, activation=nn.GELU, norm=True)
        # Only differences of embeddings are used: a bias would cancel and never learn.
        self.phi[-1] = nn.Linear(config.hidden, config.dim, bias=False)

    def embed(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., dim) float32."""
        return self.phi(latents).float()

    def between(self, start: Tensor, goal: Tensor) -> Tensor:
        """Distance of embeddings (..., dim), broadcast -> (...) environment steps."""
        # sqrt has no gradient at 0, where start and goal coincide
        return ((start - goal).square().sum(-1) + 1e-6).sqrt()

    def forward(self, start: Tensor, goal: Tensor) -> Tensor:
        """Latents (..., D), (..., D) -> (...) environment steps."""
        return self.between(self.embed(start), self.embed(goal))


class Probe(nn.Module):
    """PLDM's location probe: an MLP D-hidden-hidden-P on standardised targets; call it for px."""

    def __init__(
        self, shape: tuple[int, int, int], mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.shape = dim, hidden, outputs = shape
        self.net = mlp(dim, hidden, hidden, outputs)
        self.register_buffer("mean", torch.tensor(mean or [0.0] * outputs))
        self.register_buffer("std", torch.tensor(std or [1.0] * outputs))

    def forward(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., P) px."""
        return self.net(latents).float() * self.std + self.mean

    def loss(self, latents: Tensor, targets: Tensor) -> Tensor:
        """MSE on standardised targets, as the papers print it."""
        return (self.net(latents).float() - (targets - self.mean) / self.std).square().mean()
