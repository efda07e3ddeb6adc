"""Reward heads on frozen latents (MOD-11, MOD-12), all of one architecture.

The reward MLP reads [z_t, a], the look-ahead reward predictor (LARP) the imagined latent, too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hjepa_lib.config.pixels import RewardConfig
from hjepa_lib.models.layers import mlp
from hjepa_lib.pixels.training import fit, in_chunks
from hjepa_lib.training.loop import Fit

HEADS = ("reward_mlp", "larp", "larp_copy")
"""Reward MLP, LARP, and LARP told that nothing will move (the present latent as the imagined)."""
LEAST_DEVIATION = 1e-5  # a feature that varies less is constant: it is centred, never amplified


class RewardHead(nn.Module):
    """MLP from (B, width) inputs to (B,) rewards, in the environment's reward units.

    First weights depend on `seed` and the layer's widths alone: equal for every base model. They
    go by what comes in, and the last are 0: by what goes out (MOD-13) the one number would begin 70
    times as far from the mean as rewards are.
    """

    def __init__(self, config: RewardConfig, width: int, seed: int = 0) -> None:
        super().__init__()
        self.width = width
        hidden = [config.hidden] * config.layers
        self.net = mlp(width, *hidden, 1, dropout=config.dropout)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        for index, layer in enumerate(one for one in self.net if isinstance(one, nn.Linear)):
            torch.manual_seed(seed * 1_009 + index)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(layer.weight)

    def standardise(self, inputs: Tensor) -> None:
        """Take mean and deviation of training `inputs` (M, width): no units decide."""
        exact = inputs.cpu().double()  # S7
        deviation = exact.std(0, correction=0)
        self.centre.copy_(exact.mean(0))
        self.deviation.copy_(deviation.masked_fill(deviation < LEAST_DEVIATION, 1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net((inputs - self.centre) / self.deviation).squeeze(-1)

    def loss(self, batch: tuple[Tensor, Tensor], _: Any = None) -> tuple[Tensor, dict[str, float]]:
        """MSE on the rewards of (inputs (B, width), reward (B,))."""
        inputs, reward = batch
        return (self(inputs) - reward).square().mean(), {}


class Features(NamedTuple):
    """What heads read, for M transitions, detached."""

    latent: Tensor  # (M, D)
    action: Tensor  # (M, 32), the base model's own embedding
    reward: Tensor  # (M,)
    imagined: Tensor | None = None  # (M, D); None for a model without an imagined latent (F9)

    def rows(self, rows: Tensor) -> "Features":
        """Some of the transitions."""
        return Features(*(part if part is None else part[rows] for part in self))

    def inputs(self, kind: str) -> Tensor | None:
        """(M, width) of a head of `HEADS`; None when the model has no imagined latent."""
        if kind == "reward_mlp":
            return torch.cat([self.latent, self.action], dim=-1)
        if self.imagined is None:
            return None
        ahead = self.latent if kind == "larp_copy" else self.imagined
        return torch.cat([self.latent, ahead, self.action], dim=-1)


def encode(model: Any, data: Any) -> Features:
    """What heads read of all transitions."""

    def features(batch: Any) -> dict[str, Tensor]:
        latent = model.encode(batch.state)
        imagined = model.imagine(latent, batch.action)
        found = {"latent": latent, "action": model.action(batch.action), "reward": batch.reward}
        return found if imagined is None else found | {"imagined": imagined}

    return Features(**in_chunks(features, data, model.eval().background.device))


def fit_head(
    kind: str, train: Features, choice: Features, config: RewardConfig, seed: int
) -> Fit | None:
    """Iterate to train a head of `HEADS`; None when the model has no imagined latent.

    Batches, noise and budget are the same for all models; `choice` chooses the weights.
    """
    inputs = train.inputs(kind)
    if inputs is None:
        return None
    head = RewardHead(config, inputs.shape[1], seed).to(inputs.device)
    if config.standardise:
        head.standardise(inputs)
    parts = (TensorDataset(one.inputs(kind), one.reward) for one in (train, choice))
    return fit(head, *parts, config.optim, seed=seed)
