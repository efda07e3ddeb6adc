"""One-step latent predictors: (M, D) latent and (M, A) normalised action -> (M, D) next latent.

`gru` is PLDM's recurrent predictor (arXiv 2502.14819): one GRU layer whose hidden state IS the
latent, followed by the encoder's own LayerNorm (shared, counted once). `mlp` adds a learned
displacement to the latent; it is cheaper per candidate and starts close to the identity.
`transformer` lets a state token and an action token attend to each other (as seed 004's transition
model does) and reads the displacement from the state token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa_lib.models.transformer import Transformer


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


class TransformerPredictor(nn.Module):
    """z' = z + Linear(blocks([state token, action token])[0]); tokens are `hidden` wide."""

    def __init__(
        self, latent_dim: int, action_dim: int, hidden: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        # Separate embeddings tell the two tokens apart, so no positions are needed.
        self.state = nn.Linear(latent_dim, hidden)
        self.action = nn.Linear(action_dim, hidden)
        self.blocks = Transformer(hidden, depth, heads, max(1, hidden // heads), 2 * hidden)
        self.head = nn.Linear(hidden, latent_dim)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        tokens = [self.state(latent), self.action(action.to(latent.dtype))]
        mixed = self.blocks(torch.stack(tokens, 1))  # (M, 2, hidden)
        return latent + self.head(mixed[:, 0])


def build_predictor(
    name: str,
    latent_dim: int,
    action_dim: int,
    hidden: int,
    norm: nn.Module,
    depth: int = 2,
    heads: int = 4,
) -> nn.Module:
    """The registered predictor `name`."""
    if name == "gru":
        return GruPredictor(latent_dim, action_dim, norm)
    if name == "mlp":
        return MlpPredictor(latent_dim, action_dim, hidden)
    if name == "transformer":
        return TransformerPredictor(latent_dim, action_dim, hidden, depth, heads)
    raise ValueError(f"unknown predictor {name!r}; known: gru, mlp, transformer")
