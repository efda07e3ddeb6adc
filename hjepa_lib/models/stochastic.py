"""The stochastic part of level 2: what z is made of, how it is drawn, and what it costs in nats.

    draw(noise)   z from standardised noise (..., width); without noise the most likely z
    nats(prior)   KL of this posterior against a prior, per dimension or group of z

With noise ~ N(0, 1) a draw is an exact sample. Gradient reaches distribution and noise, straight
through where z is discrete.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.special import log_ndtr

from hjepa_lib.config import Level2Config

UNIFORM = 0.01  # share of the uniform distribution in every categorical (DreamerV3)


class Gaussian(NamedTuple):
    """Diagonal normal."""

    mean: Tensor  # (..., Z)
    std: Tensor  # (..., Z)

    def draw(self, noise: Tensor | None) -> Tensor:
        return self.mean if noise is None else self.mean + self.std * noise

    def nats(self, prior: "Gaussian") -> Tensor:
        """log(sp/sq) + (sq^2 + (mq-mp)^2) / (2 sp^2) - 1/2 -> (..., Z)."""
        spread = self.std.square() + (self.mean - prior.mean).square()
        return (prior.std / self.std).log() + spread / (2 * prior.std.square()) - 0.5


class Categorical(NamedTuple):
    """G choices of one class out of K: one-hot arg-max of log p + Gumbel(noise).

    DreamerV3 (arXiv 2301.04104), with its 1 % uniform mix; gradient of arXiv 1611.01144.
    """

    logp: Tensor  # (..., G, K) log-probabilities

    def draw(self, noise: Tensor | None) -> Tensor:
        """One-hot (..., G * K)."""
        logits = self.logp
        if noise is not None:
            # Phi(noise) is uniform, so -log(-log Phi(noise)) is Gumbel; 12 keeps it finite.
            uniform = log_ndtr(noise.float().clamp(-12, 12)).unflatten(-1, logits.shape[-2:])
            logits = logits - (-uniform).log()
        soft = logits.softmax(-1)
        hard = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(soft.dtype)
        return (hard + (soft - soft.detach())).flatten(-2)

    def nats(self, prior: "Categorical") -> Tensor:
        """sum_k q_k (log q_k - log p_k) -> (..., G)."""
        return (self.logp.exp() * (self.logp - prior.logp)).sum(-1)


Distribution = Gaussian | Categorical


def stacked(steps: list[Distribution]) -> Distribution:
    """Per-step distributions (B, ...) -> one (B, T2-1, ...)."""
    return type(steps[0])(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True)))


class Latent:
    """`outputs` numbers of a head -> a distribution over z, of `width` as its noise."""

    def __init__(self, config: Level2Config) -> None:
        z, self.min_std = config.z_dim, config.min_std
        self.groups = (z, config.classes) if config.latent == "categorical" else None
        self.width = z * config.classes if self.groups else z
        self.outputs = self.width if self.groups else 2 * z

    def read(self, raw: Tensor) -> Distribution:
        """(..., outputs); std = softplus(raw) + min_std."""
        if self.groups:
            share = raw.float().unflatten(-1, self.groups).softmax(-1)
            return Categorical(((1 - UNIFORM) * share + UNIFORM / self.groups[1]).log())
        mean, spread = raw.float().chunk(2, dim=-1)
        return Gaussian(mean, F.softplus(spread) + self.min_std)
