"""One-step latent predictors: (M, D) latent and (M, A) normalised action -> (M, D) next latent.

`mlp` and `transformer` add a displacement to the latent, and leave its first `static_dim`
components as they are: a layout does not change while the dot moves.
"""

from __future__ import annotations

from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import Level1Config
from hjepa_lib.models.layers import Transformer


def displace(latent: Tensor, step: Tensor) -> Tensor:
    """latent (M, D) plus step (M, D - S): the first S components, the static part, stay."""
    static = latent.shape[-1] - step.shape[-1]
    return latent + (F.pad(step, (static, 0)) if static else step)


class GruPredictor(nn.Module):
    """h' = LN(GRU(a, h)), PLDM's: the hidden state IS the latent, LN the encoder's own, shared."""

    def __init__(self, config: Level1Config, action_dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.cell = nn.GRUCell(action_dim, config.latent_dim)
        self.norm = norm

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.norm(self.cell(action, latent))


class MlpPredictor(nn.Module):
    """z' = z + MLP([z, a]): cheap per candidate, and close to the identity at first."""

    def __init__(self, config: Level1Config, action_dim: int, norm: nn.Module) -> None:
        super().__init__()
        widths = [config.latent_dim + action_dim, *[config.hidden] * config.layers]
        blocks = [[nn.Linear(a, b), nn.ReLU()] for a, b in pairwise(widths)]
        last = nn.Linear(config.hidden, config.latent_dim - config.static_dim)
        self.net = nn.Sequential(*chain(*blocks), last)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        step = self.net(torch.cat([latent, action.to(latent.dtype)], dim=-1))
        return displace(latent, step)


class TransformerPredictor(nn.Module):
    """z' = z + Linear(blocks([state token, action token])[0]), as seed 004's transition model."""

    def __init__(self, config: Level1Config, action_dim: int, norm: nn.Module) -> None:
        super().__init__()
        width, heads = config.hidden, config.heads
        # Separate embeddings tell the two tokens apart, so no positions are needed.
        self.state = nn.Linear(config.latent_dim, width)
        self.action = nn.Linear(action_dim, width)
        self.blocks = Transformer(width, config.depth, heads, max(1, width // heads), 2 * width)
        self.head = nn.Linear(width, config.latent_dim - config.static_dim)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        tokens = [self.state(latent), self.action(action.to(latent.dtype))]
        mixed = self.blocks(torch.stack(tokens, 1))  # (M, 2, width)
        return displace(latent, self.head(mixed[:, 0]))


PREDICTORS: dict[str, type[nn.Module]] = {
    "gru": GruPredictor, "mlp": MlpPredictor, "transformer": TransformerPredictor,
}  # fmt: skip
