"""What a latent knows: ridge probes during training, a two-layer probe afterwards, collapse metrics.

A probe never touches the world model: it reads detached latents. `Probe` is PLDM's location probe
(MLP with two hidden layers on standardised targets); errors are always in px.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hjepa_lib.models.layers import mlp


def effective_rank(latents: Tensor) -> float:
    """exp(entropy of the normalised singular values) of centred latents (M, D); Roy & Vetterli 2007."""
    values = torch.linalg.svdvals((latents - latents.mean(0)).float())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))


def fit_ridge(latents: Tensor, targets: Tensor, strength: float = 1e-3) -> Callable[[Tensor], Tensor]:
    """Closed-form linear probe: latents (M, D), targets (M, P) -> function of (M', D)."""
    mean, centre = latents.mean(0), targets.mean(0)
    x, y = (latents - mean).double(), (targets - centre).double()
    eye = torch.eye(x.shape[1], dtype=x.dtype) * strength * len(x)
    weights = torch.linalg.solve(x.T @ x + eye, x.T @ y).float()  # (D, P)
    return lambda values: (values.float() - mean) @ weights + centre


class Probe(nn.Module):
    """MLP D-hidden-hidden-P that reads standardised targets; call it for px."""

    def __init__(self, latent_dim: int, mean: Tensor, std: Tensor, hidden: int = 256) -> None:
        super().__init__()
        self.net = mlp(latent_dim, hidden, hidden, len(mean))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., P) px."""
        return self.net(latents).float() * self.std + self.mean

    def loss(self, latents: Tensor, targets: Tensor) -> Tensor:
        """MSE on standardised targets, as the papers print it."""
        return (self.net(latents).float() - (targets - self.mean) / self.std).square().mean()
