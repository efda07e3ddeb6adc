"""Frozen level-1 latents of whole trajectories, encoded once and kept in memory."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import first_states
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.local import Scene
from hjepa_lib.worlds.layout import Layout


class LatentBatch(NamedTuple):
    """Windows of T consecutive states of one trajectory each."""

    latents: Tensor  # (B, T, D) float32
    actions: Tensor  # (B, T-1, A) px
    positions: Tensor  # (B, T, 2) px
    layout: Layout  # B
    scene: Scene | None = None  # of the first states, for a local level 1


class LatentStore:
    """Latents, actions and positions of the first trajectories of a data set."""

    def __init__(self, model: Jepa, data: Trajectories, limit: int, precision: str) -> None:
        count = min(limit, len(data.lengths))
        self.lengths = data.lengths[:count]
        self.starts = torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])
        total = int(self.starts[-1])
        self.positions = data.world.xy(data.positions[:total])
        self.actions = data.actions[:total]
        self.trajectory = torch.repeat_interleave(torch.arange(count), self.lengths)  # (M,)
        self.layout = data.layouts(slice(count))  # one per trajectory
        self.model, self.data = model, data
        self._windows: dict[int, Tensor] = {}
        model.eval()
        device = next(model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            latents = self.encode()
        # Places have few digits to lose.
        self.latents = latents if model.map else latents.to(torch.bfloat16)

    @torch.no_grad()
    def encode(self, encoder: nn.Module | None = None) -> Tensor:
        """(M, D) float32 of all frames, by level 1's encoder or another like it."""
        pieces = self.model.pieces(torch.arange(len(self.positions)))
        return torch.cat([self.model.encode(self.frames(piece), encoder) for piece in pieces])

    def windows(self, length: int) -> Tensor:
        """See `first_states`."""
        if length not in self._windows:
            self._windows[length] = first_states(self.lengths, length)
        return self._windows[length]

    def sample(self, batch: int, length: int, generator: torch.Generator) -> LatentBatch:
        """`batch` windows of `length` states, all as likely."""
        first = self.windows(length)
        pick = torch.randint(len(first), (batch,), generator=generator)
        return self.gather(first[pick], length)

    @torch.no_grad()
    def scene(self, index: Tensor) -> Scene | None:
        """What a local level 1 sees of the frames of states `index` (B,); None for others."""
        return self.model.scene(self.frames(index)) if self.model.map else None

    def frames(self, index: Tensor) -> Tensor:
        """(B, C, Hpx, Wpx) uint8 of states `index` (B,)."""
        return self.data.frames(index, next(self.model.parameters()).device)

    def gather(self, first: Tensor, length: int, scene: bool = True) -> LatentBatch:
        """first (B,) indices -> windows, with or without their scenes."""
        rows = first[:, None] + torch.arange(length)  # (B, T)
        return LatentBatch(
            self.latents[rows].float(),
            self.actions[rows[:, :-1]],
            self.positions[rows],
            self.layout.index(self.trajectory[first]),
            self.scene(first) if scene else None,
        )
