"""Goal-conditioned reward from three frozen latents: now, next and goal (seed 004, GRID-9).

A transformer of 4 layers reads the three latents as tokens, each with a learned type and a
sinusoidal position, and an MLP of two layers reads the mean and the maximum over the tokens.
Latents are standardised by the training part's mean and deviation, stored with the weights: the
scale of a latent is arbitrary and must not decide which encoder looks best.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hjepa_lib.models.layers import Transformer, mlp

TOKENS = 3
DEPTH, HEADS, HIDDEN = 4, 8, 512
_LEAST_STD = 1e-6  # a dimension that never changes says nothing, however it is scaled


def sinusoids(length: int, dim: int) -> Tensor:
    """Positions of "Attention is all you need": (length, dim), sine and cosine in turn."""
    rate = torch.exp(-math.log(10_000.0) * torch.arange(0, dim, 2) / dim)
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class GoalReward(nn.Module):
    """(B, 3, D) latents of now, next and goal -> rewards (B,)."""

    def __init__(self, latent_dim: int, mean: Tensor | None = None, std: Tensor | None = None):
        super().__init__()
        self.latent_dim = latent_dim
        self.register_buffer("mean", torch.zeros(latent_dim) if mean is None else mean.clone())
        std = torch.ones(latent_dim) if std is None else std.clamp(min=_LEAST_STD)
        self.register_buffer("std", std)
        self.register_buffer("positions", sinusoids(TOKENS, latent_dim), persistent=False)
        self.types = nn.Parameter(0.02 * torch.randn(TOKENS, latent_dim))
        head_dim = max(1, latent_dim // HEADS)
        self.blocks = Transformer(latent_dim, DEPTH, HEADS, head_dim, HIDDEN)
        self.head = mlp(2 * latent_dim, latent_dim, 1, activation=nn.GELU)

    def forward(self, latents: Tensor) -> Tensor:
        if latents.dim() != 3 or latents.shape[1:] != (TOKENS, self.latent_dim):
            wanted = f"(B, {TOKENS}, {self.latent_dim})"
            raise ValueError(f"latents must be {wanted}, got {tuple(latents.shape)}")
        tokens = (latents - self.mean) / self.std + self.types + self.positions
        mixed = self.blocks(tokens)  # (B, 3, D)
        pooled = torch.cat([mixed.mean(1), mixed.amax(1)], dim=-1)  # (B, 2 D)
        return self.head(pooled)[:, 0]


def build_reward(latents: Tensor, seed: int) -> GoalReward:
    """A head standardised for training latents (M, 3, D); its weights depend on `seed` alone."""
    flat = latents.flatten(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GoalReward(flat.shape[1], flat.mean(0), flat.std(0))
