"""What moves by itself: where it is, where it will be whatever is done, and where it ends things.

Its state m = (q_t, q_t - q_{t-1}, ...) is read from frames as the agent's is, and goes on without
actions: q_{t+1} - q_t = MLP(m). One roll-out serves all plans from a frame.
"""

import torch
from torch import Tensor, nn

from hjepa_lib.config import Level1Config
from hjepa_lib.models.layers import Size, mlp
from hjepa_lib.models.local import PlaceEncoder

NEAR = 0.125  # units of a place in which gaps and moves are told: 2 px of 65
FAR = 4.0  # of these, from where on a gap is as good as any
WIDE = 0.25  # and in which places are
WIDTH = 64


class Mover(nn.Module):
    """One thing that moves by itself, `config.foresight` steps ahead."""

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        self.steps = config.foresight
        self.encoder = PlaceEncoder(config, channels, image_size)
        self.move = mlp(config.latent_dim, WIDTH, WIDTH, 2)
        self.last = mlp(5, WIDTH, WIDTH, 1)

    def foresee(self, state: Tensor) -> Tensor:
        """(M, D) states -> (M, steps + 1, 2) places, from now on."""
        places = [state[:, :2]]
        for _ in range(self.steps):
            before = state[:, 2:]
            move = NEAR * self.move(torch.cat([places[-1] / WIDE, before / NEAR], 1))
            places.append(places[-1] + move)
            state = torch.cat([places[-1], move, before], 1)[:, : state.shape[1]]
        return torch.stack(places, 1)

    def odds(self, ahead: Tensor, path: Tensor) -> Tensor:
        """(M, H) log-odds that a step is the agent's last: from then on it never moves again.

        `ahead` (M, H + 1, 2) are foreseen places, `path` (M, H + 1, D) latents, both from now on.
        """
        both = min(ahead.shape[1], path.shape[1])  # beyond what is foreseen nothing is known
        gaps, steps = (ahead[:, :both] - path[:, :both, :2]) / NEAR, both - 1
        gaps = gaps.clamp(-FAR, FAR)
        count = torch.arange(steps, device=path.device) / self.steps  # what is far is less sure
        count = count.expand(len(path), -1)[..., None]
        return self.last(torch.cat([gaps[:, :-1], gaps[:, 1:], count], -1))[..., 0]
