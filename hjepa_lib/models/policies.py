"""Acting without imagining: a = f(frame, goal's frame, steps), one forward pass per step.

Behaviour cloning (`gcbc`) leaves open when the goal is reached, the inverse-dynamics policy (`idm`)
says in how many steps (as in arXiv 2605.08732, there on frozen latents). It is one network, so both
rows have the same weights, encoder and data.
"""

import torch
from torch import Tensor

from hjepa_lib.config import Level1Config, PolicyConfig
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.models.encoders import build_encoder
from hjepa_lib.models.layers import Size, mlp
from hjepa_lib.models.level1 import Reader
from hjepa_lib.worlds.layout import SIZE


class GoalPolicy(Reader):
    """An encoder of its own over both frames, channel by channel, and an MLP."""

    def __init__(self, config: PolicyConfig, normaliser: Normaliser, image: Size = SIZE) -> None:
        super().__init__(normaliser, image)
        self.config = config
        encoder = Level1Config(latent_dim=config.latent_dim)
        self.encoder = build_encoder(encoder, 2 * self.frame[0], image)
        self.head = mlp(config.latent_dim + 2, config.hidden, config.hidden, self.action_dim)

    def forward(self, frames: Tensor, goals: Tensor, steps: Tensor) -> Tensor:
        """frames, goals (B, C, Hpx, Wpx) uint8 -> normalised actions (B, A).

        steps (B,): in so many environment steps the goal is to be reached, 0 for not said.
        """
        pair = torch.cat([self.pixels(frames), self.pixels(goals)], 1)
        steps = steps.to(frames.device, torch.float32)
        said = torch.stack([(steps > 0).float(), steps.log1p()], -1)  # (B, 2)
        return self.head(torch.cat([self.encoder(pair).float(), said], -1)).float()

    @torch.no_grad()
    def act(self, frames: Tensor, goals: Tensor, steps: int = 0) -> Tensor:
        """The same as actions (B, A) px; whoever plays keeps them within a cap."""
        said = torch.full((len(frames),), steps)
        return self(frames, goals, said) * self.action_std + self.action_mean
