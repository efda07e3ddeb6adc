"""PLDM's location probe: an MLP with two hidden layers on standardised targets."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa_lib.models.layers import mlp


class Probe(nn.Module):
    """MLP D-hidden-hidden-P that reads standardised targets; call it for px."""

    def __init__(self, latent_dim: int, mean: Tensor, std: Tensor, hidden: int = 256) -> None:
        super().__init__()
        self.shape = (latent_dim, hidden, len(mean))
        self.net = mlp(latent_dim, hidden, hidden, len(mean))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., P) px."""
        return self.net(latents).float() * self.std + self.mean

    def loss(self, latents: Tensor, targets: Tensor) -> Tensor:
        """MSE on standardised targets, as the papers print it."""
        return (self.net(latents).float() - (targets - self.mean) / self.std).square().mean()
