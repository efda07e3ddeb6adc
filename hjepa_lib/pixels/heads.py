"""Reward heads on frozen latents: the reward MLP and the look-ahead reward predictor (LARP).

Both are one architecture (MOD-11, MOD-12): hidden 512 x 3, dropout .2, one output. The reward MLP
reads [z_t, a] (64 + 32 = 96 wide), LARP also the model's imagined next latent (64 + 64 + 32 = 160).
Inputs are detached here, so no head can ever train its base model. They are standardised with the
mean and deviation of the training part: action embeddings start near N(0, .01) and latents of
different models live on different scales, which would decide the comparison otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa_lib.config.pixels import RewardConfig
from hjepa_lib.models.layers import mlp
from hjepa_lib.pixels.pixel_weights import initialise

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
LEAST_DEVIATION = 1e-5  # a feature that varies less is constant: it is centred, never amplified


class HeadError(ValueError):
    """The inputs of a reward head do not fit it."""


def head_inputs(latent: Tensor, action: Tensor, imagined: Tensor | None = None) -> Tensor:
    """[z_t (B, D), imagined z_{t+1} (B, D) if given, embedded action (B, 32)], detached."""
    parts = [latent, action] if imagined is None else [latent, imagined, action]
    if len({len(part) for part in parts}) > 1:
        sizes = ", ".join(str(len(part)) for part in parts)
        raise HeadError(f"latents, imagined latents and actions differ in number: {sizes}")
    return torch.cat([part.detach().float() for part in parts], dim=-1)


class RewardHead(nn.Module):
    """MLP from `width` inputs to one reward per row, in the environment's reward units."""

    def __init__(self, config: RewardConfig, width: int) -> None:
        super().__init__()
        self.width = width
        hidden = [config.hidden] * config.layers
        activation = ACTIVATIONS[config.activation]
        self.net = mlp(width, *hidden, 1, activation=activation, dropout=config.dropout)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def standardise(self, inputs: Tensor) -> None:
        """Take mean and deviation of training `inputs` (M, width); fixed from then on."""
        exact = inputs.detach().double()
        deviation = exact.std(0, correction=0)
        constant = deviation < LEAST_DEVIATION
        self.centre.copy_(exact.mean(0))
        self.deviation.copy_(torch.where(constant, torch.ones_like(deviation), deviation))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, width) -> (B,)."""
        if inputs.shape[-1] != self.width:
            raise HeadError(
                f"this reward head reads {self.width} numbers per row, got {inputs.shape[-1]}"
            )
        return self.net((inputs.detach() - self.centre) / self.deviation).squeeze(-1)


def build_head(config: RewardConfig, width: int, seed: int) -> RewardHead:
    """A head whose weights depend on width and seed alone: equal for every base model.

    Hidden layers have their own seeds, so they are equal for the reward MLP and LARP too.
    """
    with torch.random.fork_rng(devices=[]):
        head = RewardHead(config, width)
        linear = [layer for layer in head.net if isinstance(layer, nn.Linear)]
        for index, layer in enumerate(linear):
            torch.manual_seed(seed * 1_009 + index)
            initialise(layer)
    return head
