"""Both levels together: what `level2.train=joint` optimises.

Level 2 may act on level 1 in three ways, each an option that provably acts: conditioning
(normalised action += linear(z_i), repeated over step_skip steps), feedback (an MLP of the last
step_skip latents corrects the state at every macro boundary) and sub-goal consistency (MSE between
level-1 predictions every step_skip steps and level-2 predictions, both sides get gradient).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.config import Config
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.models.layers import Size
from hjepa_lib.models.level1 import Jepa, Rollout
from hjepa_lib.models.level2 import Level2, Observed
from hjepa_lib.models.objectives import loss_terms, weighted_sum
from hjepa_lib.worlds.layout import SIZE


class HRollout(NamedTuple):
    """One joint forward pass; level 2 entries are None with `disable_l2`."""

    level1: Rollout
    level2: Rollout | None
    observed: Observed | None


class HJepa(nn.Module):
    """Level 1 and level 2; with `disable_l2` nothing is built or drawn for level 2."""

    def __init__(self, config: Config, normaliser: Normaliser, image_size: Size = SIZE) -> None:
        super().__init__()
        self.level1 = Jepa(config.level1, normaliser, image_size)
        self.level2: Level2 | None = None
        if not config.level2.disable_l2:
            self.level2 = Level2(config.level2, config.level1.latent_dim, self.level1.action_dim)

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
        terms = loss_terms(rollout.level1, config1.loss, self.level1.idm)
        total = weighted_sum(terms, config1.loss)
        named = {f"l1/{name}": value for name, value in terms.items()}
        if self.level2 is None:
            return total, named
        loss2, terms2 = self.level2.loss(rollout.level2, rollout.observed)
        skip, weight = self.level2.config.step_skip, self.level2.config.subgoal
        reached = rollout.level1.predictions[:, :, ::skip]  # (K, B, T2' <= T2, D)
        wanted = rollout.level2.predictions[:, :, : reached.shape[2]]  # (1, B, T2', D)
        subgoal = (reached - wanted).square().mean()
        named |= {f"l2/{name}": value for name, value in terms2.items()} | {"subgoal": subgoal}
        return total + loss2 + weight * subgoal, named
