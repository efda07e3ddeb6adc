"""The stochastic part of level 2: what z is made of, how it is drawn, and what it costs in nats.

    draw(noise)   z from standardised noise (..., width); without noise the most likely z
    nats(prior)   KL of this posterior against a prior, per dimension or group of z

With noise ~ N(0, 1) a draw is an exact sample. Gradient reaches distribution and noise, straight
through where z is discrete.
"""

from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.special import log_ndtr

from hjepa_lib.config import Level2Config

UNIFORM = 0.01  # share of the uniform distribution in every categorical (DreamerV3)
FAR = 1e9  # standard deviations: beyond every level
COMMIT = 0.1  # of an fsq prior's pull on the code, as the commitment of VQ-VAE (arXiv 1711.00937)


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


class Rounded(NamedTuple):
    """Finite scalar quantisation (arXiv 2309.15505): a normal rounded to the levels 0..top.

    A posterior is a code, with std 0. In a prior level k has the mass between k - 1/2 and k + 1/2,
    the outermost ones their tails.
    """

    mean: Tensor  # (..., Z) in levels, within [0, top]
    std: Tensor  # (..., Z) in levels
    top: Tensor  # (..., Z)

    def draw(self, noise: Tensor | None) -> Tensor:
        """Level k of 0..top as 2 k / top - 1, in [-1, 1]."""
        place = self.mean if noise is None else self.mean + self.std * noise
        place = torch.minimum(place.clamp(min=0), self.top)
        level = place.detach().round() + (place - place.detach())
        return 2 * level / self.top - 1

    def nats(self, prior: "Rounded") -> Tensor:
        """-log prior(code) -> (..., Z)."""
        code = self.mean.detach().round()
        low = torch.where(code == 0, -FAR, (code - 0.5 - prior.mean) / prior.std)
        high = torch.where(code == self.top, FAR, (code + 0.5 - prior.mean) / prior.std)
        # log(Phi(high) - Phi(low)), from the tail that holds the smaller numbers
        mirror = low + high > 0
        low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
        above, below = log_ndtr(high), log_ndtr(low)
        nats = -(above + torch.log1p(-(below - above).exp()))
        # The gradient of a normal's -log density, straight through the rounding; no value.
        pull = ((self.mean - prior.mean.detach()) / prior.std.detach()).square() / 2
        return nats + COMMIT * (pull - pull.detach())


Distribution = Gaussian | Categorical | Rounded


def kl_loss(q: Distribution, p: Distribution, free_nats: float, balance: float) -> Tensor:
    """Mean KL over latent dims and batch; with b > 0 the prior gets the share b of the gradient."""
    if balance == 0:
        kl = q.nats(p)
    else:
        fixed_q, fixed_p = (type(one)(*(part.detach() for part in one)) for one in (q, p))
        kl = balance * fixed_q.nats(p) + (1 - balance) * q.nats(fixed_p)
    return kl.mean(-1).clamp(min=free_nats).mean()


def stacked(steps: list[Distribution]) -> Distribution:
    """Per-step distributions (B, ...) -> one (B, T2-1, ...)."""
    return type(steps[0])(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True)))


class Latent(nn.Module):
    """The heads' outputs as distributions over z, of the kind `config.latent`.

    `width` is that of z and of its noise; the two heads deliver `prior_outputs` and
    `posterior_outputs`. The levels of fsq are repeated over its dimensions.
    """

    def __init__(self, config: Level2Config) -> None:
        super().__init__()
        kind, z, self.min_std = config.latent, config.z_dim, config.min_std
        self.groups = (z, config.classes) if kind == "categorical" else None
        self.width = z * config.classes if self.groups else z
        self.prior_outputs = self.width if self.groups else 2 * z
        self.posterior_outputs = 2 * z if kind == "gaussian" else self.width
        levels = torch.tensor(list(islice(cycle(config.levels), z))).float()
        self.register_buffer("top", levels - 1 if kind == "fsq" else None)

    def _inside(self, raw: Tensor) -> Tensor:
        """Any number -> (0, top)."""
        return self.top * (1 + raw.float().tanh()) / 2

    def prior(self, raw: Tensor) -> Distribution:
        """(..., prior_outputs) of a head -> distribution; std = softplus(raw) + min_std."""
        if self.groups:
            share = raw.float().unflatten(-1, self.groups).softmax(-1)
            return Categorical(((1 - UNIFORM) * share + UNIFORM / self.groups[1]).log())
        mean, spread = raw.float().chunk(2, dim=-1)
        std = F.softplus(spread) + self.min_std
        if self.top is None:
            return Gaussian(mean, std)
        return Rounded(self._inside(mean), std, self.top.expand_as(std))

    def posterior(self, raw: Tensor) -> Distribution:
        """(..., posterior_outputs) of a head -> distribution."""
        if self.top is None:
            return self.prior(raw)
        code = self._inside(raw)
        return Rounded(code, torch.zeros_like(code), self.top.expand_as(code))
