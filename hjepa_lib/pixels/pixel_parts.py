"""Action embedding and latent predictor, shared by the pixel models (MOD-5, MOD-8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa_lib.config.pixels import PixelJepaConfig
from hjepa_lib.models.layers import mlp
from hjepa_lib.models.transformer import Block


class ActionEmbedding(nn.Module):
    """(B,) action numbers or (B, A) continuous actions -> (B, dim) (MOD-5)."""

    def __init__(self, kind: str, count: int, dim: int) -> None:
        super().__init__()
        self.kind, self.count = kind, count
        self.table = nn.Embedding(count, dim) if kind == "discrete" else nn.Linear(count, dim)

    def forward(self, action: Tensor) -> Tensor:
        if self.kind != "discrete":
            if action.shape[-1] != self.count:
                raise ValueError(
                    f"actions must have {self.count} components, got {tuple(action.shape)}"
                )
            return self.table(action.to(self.table.weight.dtype))
        if action.is_floating_point():
            raise ValueError(f"discrete actions must be whole numbers, got {action.dtype}")
        if action.numel() and (action.min() < 0 or action.max() >= self.count):
            low, high = action.min().item(), action.max().item()
            raise ValueError(f"actions must lie in 0..{self.count - 1}, got {low}..{high}")
        return self.table(action)


class LatentPredictor(nn.Module):
    """(B, D) latent and (B, E) embedded action -> (B, D) next latent, by MLP or transformer."""

    def __init__(self, config: PixelJepaConfig, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        self.form = config.predictor
        if config.predictor == "mlp":
            widths = (latent_dim + action_dim, *config.hidden, latent_dim)
            self.net = mlp(*widths, activation=nn.GELU, dropout=config.dropout)
            return
        # Two tokens, state and action; one block per entry of `hidden`, which is its MLP's width.
        heads = 4
        self.action = nn.Linear(action_dim, latent_dim)
        self.position = nn.Parameter(torch.zeros(2, latent_dim))
        self.blocks = nn.ModuleList(
            Block(latent_dim, heads, max(1, latent_dim // heads), width, config.dropout)
            for width in config.hidden
        )
        self.head = nn.Linear(latent_dim, latent_dim)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        if self.form == "mlp":
            return self.net(torch.cat([latent, action], dim=-1))
        x = torch.stack([latent, self.action(action)], dim=1) + self.position  # (B, 2, D)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])
