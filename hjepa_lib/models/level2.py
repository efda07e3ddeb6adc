"""Level 2: a recurrent state-space model over level-1 latents, `step_skip` steps at a time.

Seed 000's guide and the public dreamerv3 verbs (`initial`, `observe`, `imagine`, `loss`):

    h_{i+1} = GRU([z_i, u_i], h_i)                 h_0 = first latent (projected), z_0 = 0
    prior      p(z | h)                            kinds of z: models/stochastic.py
    posterior  q(z | x, h)                         x = the next level-1 latent
    prediction xhat_{i+1}     = decoder([h_{i+1}, z_{i+1}])

u_i is the macro-action: none, the concatenated primitive actions, or a learned code of them (HWM,
arXiv 2604.03208). The seed text leaves z_0 open: zeros here. z is a sample that passes gradient, so
the posterior learns; `min_std` is a standard deviation (the seed calls it min_var).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.config import Level2Config
from hjepa_lib.models.layers import mlp
from hjepa_lib.models.stochastic import KINDS, Distribution, detached, kl_divergence, stacked


class State(NamedTuple):
    """Recurrent state h and stochastic state z of one macro step."""

    h: Tensor  # (M, S)
    z: Tensor  # (M, Z)


class Observed(NamedTuple):
    """Posterior roll-out over T2 macro states; the T2-1 transitions carry the distributions."""

    predictions: Tensor  # (B, T2, D); entry 0 is the given start
    z: Tensor  # (B, T2-1, Z)
    prior: Distribution  # (B, T2-1, ...)
    posterior: Distribution  # (B, T2-1, ...)


class Imagined(NamedTuple):
    """Prior roll-out of H macro steps."""

    predictions: Tensor  # (M, H, D)
    z: Tensor  # (M, H, Z)


def kl_loss(q: Distribution, p: Distribution, free_nats: float, balance: float) -> Tensor:
    """Mean over latent dims and batch; with b > 0 the prior gets the share b of the gradient."""
    if balance == 0:
        kl = kl_divergence(q, p)
    else:
        to_prior = kl_divergence(detached(q), p)
        to_posterior = kl_divergence(q, detached(p))
        kl = balance * to_prior + (1 - balance) * to_posterior
    return kl.mean(-1).clamp(min=free_nats).mean()


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
        self.kind = KINDS[config.latent](config)
        self.z_width = self.kind.width
        self.cell = nn.GRUCell(self.macro_dim + (self.z_width if self.uses_z else 0), state)
        self.prior_head = nn.Linear(state, self.kind.prior_outputs)
        hidden = config.hidden
        self.posterior_head = mlp(latent_dim + state, hidden, hidden, self.kind.posterior_outputs)
        self.decoder = mlp(state + self.z_width, hidden, hidden, latent_dim)

    # --- pieces -------------------------------------------------------------------------------
    def macro(self, actions: Tensor) -> Tensor | None:
        """(..., step_skip, A) normalised primitive actions -> (..., macro_dim), or None."""
        if self.config.actions == "none":
            return None
        flat = actions.flatten(-2)  # (..., step_skip * A)
        return flat if self.macro_encoder is None else self.macro_encoder(flat)

    def initial(self, latent: Tensor) -> State:
        """(M, D) -> h_0 = projected latent, z_0 = zeros."""
        return State(self.project(latent), latent.new_zeros(len(latent), self.z_width))

    def advance(self, state: State, macro: Tensor | None) -> tuple[Tensor, Distribution]:
        """One macro step: next h (M, S) and the prior over z given it."""
        parts = [state.z] if self.uses_z else []
        parts += [] if macro is None else [macro]
        h = self.cell(torch.cat(parts, dim=-1), state.h)
        return h, self.kind.prior(self.prior_head(h))

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
            raw = self.posterior_head(torch.cat([latents[:, i + 1], h], dim=-1))
            posterior = self.kind.posterior(raw)
            noise = torch.randn((len(h), self.z_width), generator=generator)
            z = posterior.draw(noise.to(h.device))
            state = State(h, z)
            predictions.append(self.decode(state))
            zs.append(z)
            priors.append(prior)
            posteriors.append(posterior)
        return Observed(
            torch.stack(predictions, 1), torch.stack(zs, 1), stacked(priors), stacked(posteriors)
        )

    def imagine(
        self, start: State, steps: int, macros: Tensor | None = None, noise: Tensor | None = None
    ) -> Imagined:
        """Prior roll-out: z drawn with standardised noise (M, H, Z), its mode for None.

        macros: (M, H, macro_dim), needed exactly when the model uses actions.
        """
        if (macros is None) != (self.macro_dim == 0):
            raise ValueError(
                f"level 2 with actions={self.config.actions!r} got macros={macros is not None}"
            )
        state, predictions, zs = start, [], []
        for i in range(steps):
            h, prior = self.advance(state, None if macros is None else macros[:, i])
            z = prior.draw(None if noise is None else noise[:, i])
            state = State(h, z)
            predictions.append(self.decode(state))
            zs.append(z)
        return Imagined(torch.stack(predictions, 1), torch.stack(zs, 1))

    def loss(self, observed: Observed) -> Tensor:
        """The KL term, mean over (B, T2-1, Z) after free nats; the six others are objectives.py."""
        config = self.config
        return kl_loss(observed.posterior, observed.prior, config.free_nats, config.kl_balance)
