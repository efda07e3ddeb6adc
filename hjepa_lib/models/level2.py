"""Level 2: an RSSM over every `step_skip`-th latent of level 1; and both trained together.

    h_{i+1} = GRU([z_i, u_i], h_i)                 h_0 = first latent (projected), z_0 = 0
    prior      p(z | h)
    posterior  q(z | x, h)                         x = the next level-1 latent
    prediction xhat_{i+1}     = decoder([h_{i+1}, z_{i+1}])

u_i is the macro-action: none, the concatenated primitive actions, or a learned code of them (HWM,
arXiv 2604.03208). Above a local level 1 every latent is a place: x is told from the place before,
and h_0 and the GRU see what lies around it (models/local.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import Config, Level2Config
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.models.layers import Size, mlp
from hjepa_lib.models.level1 import Jepa, Rollout
from hjepa_lib.models.local import Picture, Scene, Surroundings
from hjepa_lib.models.objectives import loss_terms, weighted_sum
from hjepa_lib.models.stochastic import Distribution, Latent, stacked
from hjepa_lib.worlds.layout import SIZE


class State(NamedTuple):
    """Recurrent state h, stochastic state z and prediction of one macro step."""

    h: Tensor  # (M, S)
    z: Tensor  # (M, Z)
    latent: Tensor  # (M, D)


class Observed(NamedTuple):
    """Posterior roll-out over T2 macro states."""

    predictions: Tensor  # (B, T2, D); entry 0 is the given start
    z: Tensor  # (B, T2-1, Z)
    prior: Distribution  # (B, T2-1, ...)
    posterior: Distribution  # (B, T2-1, ...)


class Imagined(NamedTuple):
    """Prior roll-out of H macro steps."""

    predictions: Tensor  # (M, H, D)
    z: Tensor  # (M, H, Z)


class Level2(nn.Module):
    """World model over level-1 latents of width D.

    For joint training: macro inverse dynamics, and the hooks `context` and `feedback` into level 1.
    `image` is the size of a local level 1's, whose scenes are needed then.
    """

    def __init__(
        self, config: Level2Config, latent_dim: int, action_dim: int = 2, image: Size | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.latent_dim, self.action_dim = config, latent_dim, action_dim
        self.image = image
        state, hidden = config.state_dim or latent_dim, config.hidden
        chunk = config.step_skip * action_dim
        self.around = image and Surroundings(config.step_skip, Picture(image))
        seen = latent_dim if image is None else latent_dim - 2 + self.around.width
        self.project = nn.Identity() if state == seen else nn.Linear(seen, state)
        widths = {"none": 0, "learned": config.macro_dim}
        self.macro_dim = widths.get(config.actions, chunk)
        self.macro_encoder = None
        if config.actions == "learned":
            # LayerNorm bounds the code: a percentile box of codes has a meaning (HWM).
            net = mlp(chunk, 32, 32, self.macro_dim), nn.LayerNorm(self.macro_dim)
            self.macro_encoder = nn.Sequential(*net)
        self.kind = Latent(config)
        self.z_width = self.kind.width
        fed = 0 if config.actions == "only" else self.z_width
        self.cell = nn.GRUCell(self.macro_dim + fed + (seen if image else 0), state)
        self.prior_head = nn.Linear(state, self.kind.outputs)
        self.posterior_head = mlp(latent_dim + state, hidden, hidden, self.kind.outputs)
        self.decoder = mlp(state + self.z_width, hidden, hidden, latent_dim)
        self.idm = mlp(2 * latent_dim, hidden, chunk) if config.loss.idm > 0 else None
        self.condition = nn.Linear(self.z_width, action_dim) if config.conditioning else None
        seen = config.step_skip * latent_dim
        self.correct = mlp(seen, hidden, latent_dim) if config.feedback else None

    def chunk_actions(self, actions: Tensor) -> Tensor:
        """(B, T-1, A) -> (B, T2-1, step_skip, A); what is after the last whole chunk is unused."""
        skip = self.config.step_skip
        count = actions.shape[1] // skip
        return actions[:, : count * skip].unflatten(1, (count, skip))

    def macro(self, actions: Tensor) -> Tensor | None:
        """(..., step_skip, A) normalised primitive actions -> (..., macro_dim), or None."""
        if self.config.actions == "none":
            return None
        flat = actions.flatten(-2)  # (..., step_skip * A)
        return flat if self.macro_encoder is None else self.macro_encoder(flat)

    def cells(self, scene: Scene | None) -> Scene | None:
        """What this level sees of level 1's `scene`."""
        return None if self.around is None else self.around.cells(scene)

    def initial(self, latent: Tensor, cells: Scene | None = None) -> State:
        """(M, D) -> the first state."""
        h = self.project(latent if cells is None else self.around(latent, cells))
        return State(h, latent.new_zeros(len(latent), self.z_width), latent)

    def advance(
        self, state: State, macro: Tensor | None, cells: Scene | None = None
    ) -> tuple[Tensor, Distribution]:
        """Next h (M, S) and the prior over z given it."""
        z = None if self.config.actions == "only" else state.z
        around = None if cells is None else self.around(state.latent, cells)
        fed = [part for part in (z, macro, around) if part is not None]
        h = self.cell(torch.cat(fed, -1), state.h)
        return h, self.kind.read(self.prior_head(h))

    def predict(self, before: State, h: Tensor, z: Tensor) -> State:
        """The state of h and z, after `before`."""
        latent = self.decoder(torch.cat([h, z], dim=-1)).float()
        return State(h, z, latent + self._origin(before.latent))

    def _origin(self, latent: Tensor) -> Tensor | float:
        """What the next latent is told from: the place, of a latent of places."""
        return 0.0 if self.around is None else F.pad(latent[:, :2], (0, self.latent_dim - 2))

    def observe(
        self, latents: Tensor, actions: Tensor, generator: torch.Generator,
        scene: Scene | None = None,
    ) -> tuple[Rollout, Observed]:  # fmt: skip
        """Posterior roll-out among latents (B, T, D), normalised actions (B, T-1, A)."""
        chunks, cells = self.chunk_actions(actions), self.cells(scene)
        latents = latents[:, :: self.config.step_skip][:, : chunks.shape[1] + 1]  # (B, T2, D)
        state, steps = self.initial(latents[:, 0], cells), []
        for i in range(latents.shape[1] - 1):
            h, prior = self.advance(state, self.macro(chunks[:, i]), cells)
            later = latents[:, i + 1] - self._origin(state.latent)
            posterior = self.kind.read(self.posterior_head(torch.cat([later, h], dim=-1)))
            noise = torch.randn((len(h), self.z_width), generator=generator)
            state = self.predict(state, h, posterior.draw(noise.to(h.device)))
            steps.append((state.latent, state.z, prior, posterior))
        predicted, zs, priors, posteriors = zip(*steps, strict=True)
        predictions = torch.stack([latents[:, 0], *predicted], 1)
        observed = Observed(predictions, torch.stack(zs, 1), stacked(priors), stacked(posteriors))
        return Rollout(latents, predictions[None], chunks.flatten(2)), observed

    def imagine(
        self, latent: Tensor, steps: int, macros: Tensor | None = None,
        noise: Tensor | None = None, scene: Scene | None = None,
    ) -> Imagined:  # fmt: skip
        """Prior roll-out from latents (M, D), with macros (M, H, macro_dim) of a model of actions.

        z is drawn with standardised noise (M, H, Z), its mode taken without.
        """
        cells = self.cells(scene)
        state, found = self.initial(latent, cells), []
        for i in range(steps):
            h, prior = self.advance(state, None if macros is None else macros[:, i], cells)
            state = self.predict(state, h, prior.draw(None if noise is None else noise[:, i]))
            found.append((state.latent, state.z))
        return Imagined(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))

    def loss(self, rollout: Rollout, observed: Observed) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted terms + lambda * KL (seed 003), and the terms."""
        config = self.config
        terms = loss_terms(rollout, config.loss, self.idm, weighted_only=True)
        # Rounding may bring a small one below 0.
        kl = observed.posterior.nats(observed.prior).mean(-1).clamp(min=0).mean()
        return weighted_sum(terms, config.loss) + config.kl * kl, terms | {"kl": kl}

    def context(self, z: Tensor) -> Tensor | None:
        """(B, T2-1, Z) -> (B, (T2-1) * step_skip, A) added to level-1 actions, or None."""
        return self.condition and self.condition(z).repeat_interleave(self.config.step_skip, 1)

    def feedback(self, states: list[Tensor]) -> Tensor | None:
        """Correction of the current level-1 state at a macro boundary: (M, D) or None."""
        past = len(states) - 1
        if self.correct is None or past == 0 or past % self.config.step_skip:
            return None
        return self.correct(torch.cat(states[-self.config.step_skip :], dim=-1)).float()


class HJepa(nn.Module):
    """Both levels, as `level2.train=joint` optimises them.

    Level 2 may act on level 1 through conditioning (normalised action += linear(z_i)) and feedback
    (an MLP of the last step_skip latents corrects the state at every macro boundary).
    """

    def __init__(self, config: Config, normaliser: Normaliser, image: Size = SIZE) -> None:
        super().__init__()
        self.level1 = Jepa(config.level1, normaliser, image)
        sizes = config.level1.latent_dim, self.level1.action_dim
        self.level2 = Level2(config.level2, *sizes)

    def forward(
        self, frames: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Rollout, Rollout, Observed]:
        """frames (B, T, C, Hpx, Wpx) uint8, actions (B, T-1, A) px -> both roll-outs."""
        encodings = self.level1.encode(frames)
        normal = self.level1.normalise_actions(actions)
        rollout2, observed = self.level2.observe(encodings, normal, generator)
        whole = (rollout2.encodings.shape[1] - 1) * self.level2.config.step_skip
        rollout1 = self.level1(
            frames[:, : whole + 1],
            actions[:, :whole],
            encodings[:, : whole + 1],
            context=self.level2.context(observed.z),
            feedback=self.level2.feedback,
        )
        return rollout1, rollout2, observed

    def loss(
        self, one: Rollout, two: Rollout, observed: Observed
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of both levels; all terms by name."""
        weights = self.level1.config.loss
        terms = loss_terms(one, weights, self.level1.idm)
        loss2, terms2 = self.level2.loss(two, observed)
        named = {f"l1/{name}": value for name, value in terms.items()}
        named |= {f"l2/{name}": value for name, value in terms2.items()}
        return weighted_sum(terms, weights) + loss2, named
