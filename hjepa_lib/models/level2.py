"""Level 2: a recurrent state-space model over level-1 latents, `step_skip` steps at a time.

    h_{i+1} = GRU([z_i, u_i], h_i)                 h_0 = first latent (projected), z_0 = 0
    prior      p(z | h)                            kinds of z: models/stochastic.py
    posterior  q(z | x, h)                         x = the next level-1 latent
    prediction xhat_{i+1}     = decoder([h_{i+1}, z_{i+1}])

u_i is the macro-action: none, the concatenated primitive actions, or a learned code of them (HWM,
arXiv 2604.03208). Seed 000's guide, with the verbs of the public dreamerv3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.config import Level2Config
from hjepa_lib.models.layers import mlp
from hjepa_lib.models.level1 import Rollout
from hjepa_lib.models.objectives import loss_terms, weighted_sum
from hjepa_lib.models.stochastic import KINDS, Distribution, kl_loss, stacked


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


class Level2(nn.Module):
    """World model over level-1 latents of width D, with the parts that are trained with it.

    Beside the RSSM: macro inverse dynamics, and the two hooks through which joint training lets it
    act on level 1 (`context`, `feedback`; models/joint.py).
    """

    def __init__(self, config: Level2Config, latent_dim: int, action_dim: int = 2) -> None:
        super().__init__()
        self.config = config
        self.latent_dim, self.action_dim = latent_dim, action_dim
        state, hidden = config.state_dim or latent_dim, config.hidden
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
        self.posterior_head = mlp(latent_dim + state, hidden, hidden, self.kind.posterior_outputs)
        self.decoder = mlp(state + self.z_width, hidden, hidden, latent_dim)
        self.idm = mlp(2 * latent_dim, hidden, chunk) if config.loss.idm > 0 else None
        self.condition = nn.Linear(self.z_width, action_dim) if config.conditioning else None
        self.correct: nn.Module | None = None
        if config.feedback:
            self.correct = mlp(config.step_skip * latent_dim, hidden, latent_dim)

    # --- pieces -------------------------------------------------------------------------------
    def chunk_actions(self, actions: Tensor) -> Tensor:
        """(B, T-1, A) -> (B, T2-1, step_skip, A); actions after the last whole chunk are unused."""
        skip = self.config.step_skip
        count = actions.shape[1] // skip
        return actions[:, : count * skip].unflatten(1, (count, skip))

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
        self, latents: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Rollout, Observed]:
        """Posterior roll-out: latents (B, T, D) of every step, actions (B, T-1, A) normalised.

        The Rollout is that of the macro states, as the objectives take it.
        """
        chunks = self.chunk_actions(actions)
        latents = latents[:, :: self.config.step_skip][:, : chunks.shape[1] + 1]  # (B, T2, D)
        state = self.initial(latents[:, 0])
        predictions, zs, priors, posteriors = [latents[:, 0]], [], [], []
        for i in range(latents.shape[1] - 1):
            h, prior = self.advance(state, self.macro(chunks[:, i]))
            raw = self.posterior_head(torch.cat([latents[:, i + 1], h], dim=-1))
            posterior = self.kind.posterior(raw)
            noise = torch.randn((len(h), self.z_width), generator=generator)
            state = State(h, posterior.draw(noise.to(h.device)))
            predictions.append(self.decode(state))
            zs.append(state.z)
            priors.append(prior)
            posteriors.append(posterior)
        observed = Observed(
            torch.stack(predictions, 1), torch.stack(zs, 1), stacked(priors), stacked(posteriors)
        )
        return Rollout(latents, observed.predictions[None], latents, chunks.flatten(2)), observed

    def imagine(
        self, latent: Tensor, steps: int, macros: Tensor | None = None, noise: Tensor | None = None
    ) -> Imagined:
        """Prior roll-out from level-1 latents (M, D): z drawn with standardised noise (M, H, Z).

        Without noise z is its mode. macros: (M, H, macro_dim), needed when the model uses actions.
        """
        if (macros is None) != (self.macro_dim == 0):
            raise ValueError(
                f"level 2 with actions={self.config.actions!r} got macros={macros is not None}"
            )
        state, predictions, zs = self.initial(latent), [], []
        for i in range(steps):
            h, prior = self.advance(state, None if macros is None else macros[:, i])
            state = State(h, prior.draw(None if noise is None else noise[:, i]))
            predictions.append(self.decode(state))
            zs.append(state.z)
        return Imagined(torch.stack(predictions, 1), torch.stack(zs, 1))

    def loss(self, rollout: Rollout, observed: Observed) -> tuple[Tensor, dict[str, Tensor]]:
        """sum of coefficients * terms + lambda * KL (seed 003), and the terms that have a weight.

        The KL is the mean over (B, T2-1, Z) after free nats.
        """
        config = self.config
        terms = loss_terms(rollout, config.loss, self.idm, weighted_only=True)
        kl = kl_loss(observed.posterior, observed.prior, config.free_nats, config.kl_balance)
        return weighted_sum(terms, config.loss) + config.kl * kl, terms | {"kl": kl}

    # --- hooks of joint training --------------------------------------------------------------
    def context(self, z: Tensor) -> Tensor | None:
        """(B, T2-1, Z) -> (B, (T2-1) * step_skip, A) added to level-1 actions, or None."""
        if self.condition is None:
            return None
        return self.condition(z).repeat_interleave(self.config.step_skip, dim=1)

    def feedback(self, states: list[Tensor]) -> Tensor | None:
        """Correction of the current level-1 state at a macro boundary: (M, D) or None."""
        past = len(states) - 1
        if self.correct is None or past == 0 or past % self.config.step_skip:
            return None
        return self.correct(torch.cat(states[-self.config.step_skip :], dim=-1)).float()
