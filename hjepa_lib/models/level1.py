"""Level 1: a joint-embedding predictive architecture over single steps (PLDM, arXiv 2502.14819).

z_t = enc(o_t), zhat_{t+1} = pred(zhat_t, a_t) with zhat_0 = z_0. Pixels and actions are normalised
inside, from buffers that are saved with the weights (PL5, F14).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.config import Level1Config
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.models.encoders import PREDICTORS, build_encoder
from hjepa_lib.models.layers import Size, mlp, sides
from hjepa_lib.models.local import Displacement, Scene, SceneMap
from hjepa_lib.models.mover import Mover
from hjepa_lib.worlds.layout import SIZE

ENCODED, MAPPED = 1088 * 2 * 65**2, 2**19
"""Bytes and pixels of frames that are encoded and mapped at once: activations stay near 16 MB."""


class Rollout(NamedTuple):
    """What both levels hand to the objectives; T states on the level's own clock."""

    encodings: Tensor  # (B, T, D)
    predictions: Tensor  # (K, B, T' <= T, D); entry 0 along T is the start
    actions: Tensor  # (B, T-1, A) normalised


class Reader(nn.Module):
    """What reads frames and speaks of actions."""

    def __init__(self, normaliser: Normaliser, image: Size) -> None:
        super().__init__()
        self.normaliser, self.action_dim = normaliser, len(normaliser.action_mean)
        self.image = sides(image)
        self.frame = (len(normaliser.pixel_mean), *self.image)  # C, Hpx, Wpx
        for name in ("pixel_mean", "pixel_std", "action_mean", "action_std"):
            values = torch.as_tensor(getattr(normaliser, name), dtype=torch.float32)
            self.register_buffer(name, values)

    def pixels(self, frames: Tensor) -> Tensor:
        """(M, C, Hpx, Wpx) uint8 -> normalised, channels last, in the autocast dtype."""
        if frames.dtype != torch.uint8 or frames.shape[1:] != self.frame:
            found = f"{frames.dtype} {tuple(frames.shape[1:])}"
            raise ValueError(f"frames must be uint8 in [0, 255] of {self.frame}, got {found}")
        kind = frames.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        # 0..255 is exact in bf16. Planes are scaled while contiguous: five times faster.
        scale = (1 / self.pixel_std).to(dtype).view(-1, 1, 1)
        shift = (-self.pixel_mean / self.pixel_std).to(dtype).view(-1, 1, 1)
        x = frames.to(dtype).mul_(scale).add_(shift)
        return x.contiguous(memory_format=torch.channels_last)

    def normalise_actions(self, actions: Tensor) -> Tensor:
        """(..., A) px -> zero mean, unit std per axis."""
        return (actions - self.action_mean) / self.action_std


class Jepa(Reader):
    """Encoder, K predictors, inverse-dynamics head."""

    def __init__(self, config: Level1Config, normaliser: Normaliser, image: Size = SIZE) -> None:
        super().__init__(normaliser, image)
        dim = config.latent_dim
        self.config, self.latent_dim = config, dim
        self.encoder = build_encoder(config, self.frame[0], image)
        local = config.predictor == "local"
        build, read = PREDICTORS[config.predictor], "picture" if local else "norm"
        self.predictors = nn.ModuleList(
            build(config, self.action_dim, getattr(self.encoder, read))
            for _ in range(config.predictors)
        )
        self.map = SceneMap(self.frame[0]) if local else None
        self.mover = Mover(config, self.frame[0], image) if config.foresight else None
        self.idm = None  # without a weight it would be stored and never trained
        if local:
            self.idm = Displacement(dim, self.action_dim, self.encoder.picture.unit)
        elif config.loss.idm > 0:
            self.idm = mlp(2 * dim, config.idm_hidden, self.action_dim)

    def encode(self, frames: Tensor, encoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(..., C, Hpx, Wpx) uint8 frames -> (..., D) float32 latents."""
        latents = (encoder or self.encoder)(self.pixels(frames.reshape(-1, *frames.shape[-3:])))
        return latents.float().reshape(*frames.shape[:-3], self.latent_dim)

    def pieces(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Parts of rows (M, ...), a frame each, that are encoded at once outside training."""
        return rows.split(max(1, ENCODED // math.prod(self.frame)))

    def scene(self, frames: Tensor | None) -> Scene | None:
        """What a local predictor sees of frames (M, C, Hpx, Wpx) uint8; None for others."""
        if self.map is None:
            return None
        parts, ahead = frames.split(max(1, MAPPED // math.prod(self.image))), None
        maps = torch.cat([self.map(self.pixels(part)) for part in parts])
        if self.mover is not None:
            with torch.no_grad():
                states = [self.encode(part, self.mover.encoder) for part in parts]
                ahead = self.mover.foresee(torch.cat(states))
        return Scene(maps, torch.arange(len(maps), device=maps.device), ahead=ahead)

    def rollout(
        self, start: Tensor, actions: Tensor, member: int = 0, context: Tensor | None = None,
        feedback: Callable[[list[Tensor]], Tensor | None] | None = None, scene: Scene | None = None,
    ) -> Tensor:  # fmt: skip
        """Autoregressive: start (M, D), actions (M, H, A) px -> (M, H+1, D), entry 0 is the start.

        Level 2's `context` (M, H, A) adds to the normalised actions, its `feedback` makes of all
        states so far a correction (M, D) of the last, or None; a local predictor needs the `scene`.
        """
        actions = self.normalise_actions(actions)
        actions = actions if context is None else actions + context
        states, seen = [start], () if self.map is None else (scene,)
        for action in actions.unbind(1):
            correction = feedback and feedback(states)
            latent = states[-1] if correction is None else states[-1] + correction
            states.append(self.predictors[member](latent, action, *seen).float())
        return torch.stack(states, dim=1)

    def rollout_members(self, start: Tensor, actions: Tensor, **hooks) -> Tensor:
        """Of every ensemble member: (K, M, H+1, D)."""
        members = range(len(self.predictors))
        return torch.stack([self.rollout(start, actions, one, **hooks) for one in members])

    def forward(
        self, frames: Tensor, actions: Tensor, encodings: Tensor | None = None, **hooks
    ) -> Rollout:
        """frames (B, T, C, Hpx, Wpx) uint8, actions (B, T-1, A) px; `hooks` as in `rollout`.

        `encodings` (B, T, D) where they are known.
        """
        encodings = self.encode(frames) if encodings is None else encodings
        steps = self.config.rollout or actions.shape[1]
        if self.map is not None:
            hooks = {"scene": self.scene(frames[:, 0]), **hooks}
        predictions = self.rollout_members(encodings[:, 0], actions[:, :steps], **hooks)
        return Rollout(encodings, predictions, self.normalise_actions(actions))
