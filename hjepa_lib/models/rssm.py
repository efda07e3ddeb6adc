"""Level 2: a recurrent state-space model over level-1 latents, `step_skip` steps at a time.

Seed 000's guide and the public dreamerv3 verbs (`initial`, `observe`, `imagine`, `loss`):

    h_{i+1} = GRU([z_i, u_i], h_i)                 h_0 = first latent (projected), z_0 = 0
    prior      p(z | h)       = N(mu, softplus(raw) + min_std)
    posterior  q(z | x, h)    = N(...)             x = the next level-1 latent
    prediction xhat_{i+1}     = decoder([h_{i+1}, z_{i+1}])

u_i is the macro-action: none, the concatenated primitive actions, or a learned code of them (HWM,
arXiv 2604.03208). The seed text leaves z_0 open: zeros here. z is a reparameterised sample, so the
gradient reaches the posterior; `min_std` is a standard deviation (the seed calls it min_var).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import Level2Config
from hjepa_lib.models.layers import mlp


class Gaussian(NamedTuple):
    """Diagonal normal."""

    mean: Tensor  # (..., Z)
    std: Tensor  # (..., Z)


class State(NamedTuple):
    """Recurrent state h and stochastic state z of one macro step."""

    h: Tensor  # (M, S)
    z: Tensor  # (M, Z)


class Observed(NamedTuple):
    """Posterior roll-out over T2 macro states; the T2-1 transitions carry the distributions."""

    predictions: Tensor  # (B, T2, D); entry 0 is the given start
    z: Tensor  # (B, T2-1, Z)
    prior: Gaussian  # (B, T2-1, Z)
    posterior: Gaussian  # (B, T2-1, Z)


class Imagined(NamedTuple):
    """Prior roll-out of H macro steps."""

    predictions: Tensor  # (M, H, D)
    z: Tensor  # (M, H, Z)


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """Per dimension: log(sp/sq) + (sq^2 + (mq-mp)^2) / (2 sp^2) - 1/2, in nats -> (..., Z)."""
    return (
        (p.std / q.std).log()
        + (q.std.square() + (q.mean - p.mean).square()) / (2 * p.std.square())
        - 0.5
    )


def kl_loss(q: Gaussian, p: Gaussian, free_nats: float, balance: float) -> Tensor:
    """Mean over latent dims and batch; with b > 0 the prior gets the share b of the gradient."""
    if balance == 0:
        kl = kl_divergence(q, p)
    else:
        to_prior = kl_divergence(Gaussian(q.mean.detach(), q.std.detach()), p)
        to_posterior = kl_divergence(q, Gaussian(p.mean.detach(), p.std.detach()))
        kl = balance * to_prior + (1 - balance) * to_posterior
    return kl.mean(-1).clamp(min=free_nats).mean()


def _stack(steps: list[Gaussian]) -> Gaussian:
    """Per-step (B, Z) normals -> one (B, T2-1, Z) normal."""
    return Gaussian(
        torch.stack([step.mean for step in steps], 1), torch.stack([step.std for step in steps], 1)
    )


class Rssm(nn.Module):
    """Level-2 world model over level-1 latents of width D."""

    def __init__(self, config: Level2Config, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.latent_dim, self.action_dim = latent_dim, action_dim
        state = config.state_dim or latent_dim
        chunk = config.step_skip * action_dim
        self.project = nn.Identity() if state == latent_dim else nn.Linear(latent_dim, state)
        self.macro_encoder: nn.Module | None = None
        macro = {"none": 0, "concat": chunk, "only": chunk, "learned": config.macro_dim}
        self.macro_dim = macro[config.actions]
        if config.actions == "learned":
            # LayerNorm bounds the code, so that a percentile box of codes is meaningful (HWM).
            self.macro_encoder = nn.Sequential(
                mlp(chunk, 32, 32, config.macro_dim), nn.LayerNorm(config.macro_dim)
            )
        self.uses_z = config.actions != "only"
        self.cell = nn.GRUCell(self.macro_dim + (config.z_dim if self.uses_z else 0), state)
        self.prior_head = nn.Linear(state, 2 * config.z_dim)
        hidden = config.hidden
        self.posterior_head = mlp(latent_dim + state, hidden, hidden, 2 * config.z_dim)
        self.decoder = mlp(state + config.z_dim, hidden, hidden, latent_dim)

    # --- pieces -------------------------------------------------------------------------------
    def _gaussian(self, raw: Tensor) -> Gaussian:
        mean, spread = raw.float().chunk(2, dim=-1)
        return Gaussian(mean, F.softplus(spread) + self.config.min_std)

    def macro(self, actions: Tensor) -> Tensor | None:
        """(..., step_skip, A) normalised primitive actions -> (..., macro_dim), or None."""
        if self.config.actions == "none":
            return None
        flat = actions.flatten(-2)  # (..., step_skip * A)
        return flat if self.macro_encoder is None else self.macro_encoder(flat)

    def initial(self, latent: Tensor) -> State:
        """(M, D) -> h_0 = projected latent, z_0 = zeros."""
        return State(self.project(latent), latent.new_zeros(len(latent), self.config.z_dim))

    def advance(self, state: State, macro: Tensor | None) -> tuple[Tensor, Gaussian]:
        """One macro step: next h (M, S) and the prior over z given it."""
        parts = [state.z] if self.uses_z else []
        parts += [] if macro is None else [macro]
        h = self.cell(torch.cat(parts, dim=-1), state.h)
        return h, self._gaussian(self.prior_head(h))

    def decode(self, state: State) -> Tensor:
        """h (..., S), z (..., Z) -> predicted level-1 latent (..., D)."""
        return self.decoder(torch.cat([state.h, state.z], dim=-1)).float()

    # --- verbs --------------------------------------------------------------------------------
    def observe(
        self, latents: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Observed:
        """Posterior roll-out. latents (B, T2, D), actions (B, T2-1, step_skip, A) normalised."""
        state = self.initial(latents[:, 0])
        predictions, zs, priors, posteriors = [latents[:, 0]], [], [], []
        for i in range(latents.shape[1] - 1):
            macro = None if actions is None else self.macro(actions[:, i])
            h, prior = self.advance(state, macro)
            posterior = self._gaussian(
                self.posterior_head(torch.cat([latents[:, i + 1], h], dim=-1))
            )
            noise = torch.randn(posterior.mean.shape, generator=generator)
            z = posterior.mean + posterior.std * noise.to(h.device)
            state = State(h, z)
            predictions.append(self.decode(state))
            zs.append(z)
            priors.append(prior)
            posteriors.append(posterior)
        return Observed(
            torch.stack(predictions, 1), torch.stack(zs, 1), _stack(priors), _stack(posteriors)
        )

    def imagine(
        self, start: State, steps: int, macros: Tensor | None = None, noise: Tensor | None = None
    ) -> Imagined:
        """Prior roll-out: z = mean + std * noise, with noise (M, H, Z) standardised (None: mean).

        macros: (M, H, macro_dim), needed exactly when the model uses actions.
        """
        if (macros is None) != (self.macro_dim == 0):
            raise ValueError(
                f"level 2 with actions={self.config.actions!r} got macros={macros is not None}"
            )
        state, predictions, zs = start, [], []
        for i in range(steps):
            h, prior = self.advance(state, None if macros is None else macros[:, i])
            z = prior.mean if noise is None else prior.mean + prior.std * noise[:, i]
            state = State(h, z)
            predictions.append(self.decode(state))
            zs.append(z)
        return Imagined(torch.stack(predictions, 1), torch.stack(zs, 1))

    def loss(self, observed: Observed) -> Tensor:
        """The KL term, mean over (B, T2-1, Z) after free nats; the six others are objectives.py."""
        config = self.config
        return kl_loss(observed.posterior, observed.prior, config.free_nats, config.kl_balance)
