"""One-step latent predictors: (M, D) latent and (M, A) normalised action -> (M, D) next latent.

`gru` is PLDM's recurrent predictor (arXiv 2502.14819): one GRU layer whose hidden state IS the
latent, followed by the encoder's own LayerNorm (shared, counted once). `mlp` adds a learned
displacement to the latent; it is cheaper per candidate and starts close to the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GruPredictor(nn.Module):
    """h' = LN(GRU(a, h)); `norm` is the encoder's output normalisation."""

    def __init__(self, latent_dim: int, action_dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.cell = nn.GRUCell(action_dim, latent_dim)
        self.norm = norm

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.norm(self.cell(action, latent))


class MlpPredictor(nn.Module):
    """z' = z + MLP([z, a]), two hidden layers."""

    def __init__(self, latent_dim: int, action_dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent_dim + action_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, latent_dim),
        )

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return latent + self.net(torch.cat([latent, action.to(latent.dtype)], dim=-1))


def build_predictor(
    name: str, latent_dim: int, action_dim: int, hidden: int, norm: nn.Module
) -> nn.Module:
    """The registered predictor `name`."""
    if name == "gru":
        return GruPredictor(latent_dim, action_dim, norm)
    if name == "mlp":
        return MlpPredictor(latent_dim, action_dim, hidden)
    raise ValueError(f"unknown predictor {name!r}; known: gru, mlp")
