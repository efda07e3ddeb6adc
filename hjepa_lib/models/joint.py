"""Both levels together: what `joint` training optimises and what a checkpoint holds.

Level 2 may act on level 1 in three ways of the seed code, each an option that provably acts:
conditioning (normalised action += linear(z_i), repeated over step_skip steps), feedback (an MLP of
the last step_skip latents corrects the state at every macro boundary) and sub-goal consistency
(MSE between level-1 predictions every step_skip steps and level-2 predictions, both sides get
gradient). With `disable_l2` nothing of level 2 is built and no random number is drawn for it, so
level 1 is bit-equal to a run without level-2 code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.config import Config, Level2Config
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.models.layers import mlp
from hjepa_lib.models.level1 import ACTION_DIM, Jepa, Rollout
from hjepa_lib.models.level2 import Imagined, Observed, Rssm
from hjepa_lib.models.objectives import loss_terms, weighted_sum


class HRollout(NamedTuple):
    """One joint forward pass; level 2 entries are None with `disable_l2`."""

    level1: Rollout
    level2: Rollout | None
    observed: Observed | None


class Level2(nn.Module):
    """RSSM plus the parts that are trained with it: macro inverse dynamics and the hooks."""

    def __init__(self, config: Level2Config, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        chunk = config.step_skip * ACTION_DIM
        self.rssm = Rssm(config, latent_dim, ACTION_DIM)
        self.idm = mlp(2 * latent_dim, config.hidden, chunk) if config.loss.idm > 0 else None
        self.condition = nn.Linear(self.rssm.z_width, ACTION_DIM) if config.conditioning else None
        self.correct = (
            mlp(config.step_skip * latent_dim, config.hidden, latent_dim)
            if config.feedback
            else None
        )

    def chunk_actions(self, actions: Tensor) -> Tensor:
        """(B, T-1, A) -> (B, T2-1, step_skip, A); actions after the last whole chunk are unused."""
        skip = self.config.step_skip
        count = actions.shape[1] // skip
        return actions[:, : count * skip].unflatten(1, (count, skip))

    def observe(
        self, latents: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Rollout, Observed]:
        """Latents (B, T, D) of every step, actions (B, T-1, A) normalised -> roll-out."""
        macro_latents = latents[:, :: self.config.step_skip]  # (B, T2, D)
        chunks = self.chunk_actions(actions)
        macro_latents = macro_latents[:, : chunks.shape[1] + 1]
        used = None if self.config.actions == "none" else chunks
        observed = self.rssm.observe(macro_latents, used, generator)
        rollout = Rollout(
            macro_latents, observed.predictions[None], macro_latents, chunks.flatten(2)
        )
        return rollout, observed

    def imagine(
        self, latent: Tensor, steps: int, macros: Tensor | None = None, noise: Tensor | None = None
    ) -> Imagined:
        """Prior roll-out from level-1 latents (M, D)."""
        return self.rssm.imagine(self.rssm.initial(latent), steps, macros, noise)

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

    def loss(self, rollout: Rollout, observed: Observed) -> tuple[Tensor, dict[str, Tensor]]:
        """sum of coefficients * terms + lambda * KL (seed 003), and the terms."""
        terms = loss_terms(rollout, self.config.loss.form, self.idm)
        kl = self.rssm.loss(observed)
        total = weighted_sum(terms, self.config.loss) + self.config.kl * kl
        return total, {**terms._asdict(), "kl": kl}


class HJepa(nn.Module):
    """Level 1 and, unless disabled, level 2."""

    def __init__(self, config: Config, normaliser: Normaliser) -> None:
        super().__init__()
        self.level1 = Jepa(config.level1, normaliser)
        self.level2: Level2 | None = None
        if not config.level2.disable_l2:
            self.level2 = Level2(config.level2, config.level1.latent_dim)

    def forward(self, frames: Tensor, actions: Tensor, generator: torch.Generator) -> HRollout:
        """frames (B, T, C, Hpx, Wpx) uint8, actions (B, T-1, A) px -> roll-outs of both levels."""
        if self.level2 is None:
            return HRollout(self.level1(frames, actions), None, None)
        encodings = self.level1.encode(frames)
        normal = self.level1.normalise_actions(actions)
        rollout2, observed = self.level2.observe(encodings, normal, generator)
        whole = (rollout2.encodings.shape[1] - 1) * self.level2.config.step_skip
        rollout1 = self.level1(
            frames[:, : whole + 1],
            actions[:, :whole],
            encodings=encodings[:, : whole + 1],
            context=self.level2.context(observed.z),
            feedback=self.level2.feedback,
        )
        return HRollout(rollout1, rollout2, observed)

    def loss(self, rollout: HRollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Joint objective: level-1 loss, plus level-2 loss and sub-goal consistency."""
        config1 = self.level1.config
        terms = loss_terms(rollout.level1, config1.loss.form, self.level1.idm)
        total = weighted_sum(terms, config1.loss)
        named = {f"l1/{name}": value for name, value in terms._asdict().items()}
        if self.level2 is None:
            return total, named
        loss2, terms2 = self.level2.loss(rollout.level2, rollout.observed)
        skip, weight = self.level2.config.step_skip, self.level2.config.subgoal
        reached = rollout.level1.predictions[:, :, ::skip]  # (K, B, T2' <= T2, D)
        wanted = rollout.level2.predictions[:, :, : reached.shape[2]]  # (1, B, T2', D)
        subgoal = (reached - wanted).square().mean()
        named |= {f"l2/{name}": value for name, value in terms2.items()} | {"subgoal": subgoal}
        return total + loss2 + weight * subgoal, named
