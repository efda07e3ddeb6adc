"""The world models of the pixel comparison: one interface, ways to learn a latent.

    enc_dec        zhat = none         loss: || decoder([z_t, e(a)]) - x_{t+1} ||^2
    enc_dec_jepa   zhat = p(z_t, a)    loss: || decoder(zhat) - x_{t+1} ||^2
    jepa           zhat = p(z_t, a)    loss: || zhat - stopgrad(target) ||^2 + weight * auxiliary
    vjepa2         the two stages of vjepa2.py, trained there and frozen here
    random, random_vit                 the first encoder of the others and of vjepa2, untrained

z_t = encoder(s_t), s a stack of L frames, x its newest frame; e the action embedding, p the
predictor. JEPA's target modes (MOD-9), with a slow (EMA) copy of the encoder as target encoder:

    | mode    | predictor reads | and predicts         | auxiliary loss on            |
    |---------|-----------------|----------------------|------------------------------|
    | default | target(s_t)     | target(s_{t+1})      | online(s_t), online(s_{t+1}) |
    | vjepa2  | online(s_t)     | target(s_{t+1})      | online(s_t)                  |
    | none    | online(s_t)     | online(s_{t+1})      | online(s_t), online(s_{t+1}) |

`encode` is the encoder that the predictor reads.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.models.layers import update_ema
from hjepa_lib.pixels.losses import build_regulariser
from hjepa_lib.pixels.networks import (
    ActionEmbedding,
    LatentPredictor,
    PatchDecoder,
    build_pixel_encoder,
)
from hjepa_lib.pixels.transitions import PixelShapes, scaled
from hjepa_lib.pixels.vjepa2 import MaskedViT, WorldModel


class JepaStep(NamedTuple):
    """What JEPA returns for one transition; each (B, D)."""

    prediction: Tensor
    target: Tensor  # never carries gradient
    online: Tensor  # online encoder at s_t
    online_next: Tensor | None  # at s_{t+1}; None in the mode `vjepa2`


class PixelModel(nn.Module):
    """Encoder and action embedding, and what every model of the comparison answers to.

    As it stands it is a baseline: nothing imagined, nothing decoded, nothing to learn.
    """

    predicts_latents = False
    """What `imagine` returns is trained to equal an encoding."""

    def __init__(
        self,
        config: PixelsConfig,
        shapes: PixelShapes,
        name: str = "random",
        encoder: nn.Module | None = None,
        action: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config, self.shapes, self.name = config, shapes, name
        self.latent_dim = config.encoder.latent_dim
        # The encoder comes first in every model: with one seed they all start from the same one.
        self.encoder = encoder or build_pixel_encoder(config.encoder, shapes)
        embedding = shapes.action_kind, shapes.action_dim, config.action_dim
        self.action = action or ActionEmbedding(*embedding)

    def encode(self, state: Tensor) -> Tensor:
        """(B, L, C, Hpx, Wpx) uint8 -> (B, D) float32."""
        return self.encoder(self.shapes.pixels(state)).float()

    def encode_target(self, state: Tensor) -> Tensor:
        """The latents that predictions are compared with; only JEPA has others than `encode`."""
        return self.encode(state)

    def embed_action(self, action: Tensor) -> Tensor:
        """(B,) or (B, A) -> (B, 32)."""
        return self.action(action)

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor | None:
        """Imagined next latent (B, D); None when the model has none (F9)."""
        return None

    def predict_frame(self, state: Tensor, action: Tensor) -> Tensor | None:
        """Predicted newest frame of s_{t+1} (B, C, Hpx, Wpx); None without a decoder."""
        return None

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """(scalar, named terms) of a TransitionBatch."""
        raise ConfigError(f"the model {self.name!r} is a baseline and is never trained")

    def after_update(self) -> None:
        """What follows an optimiser step."""

    def _regularised(
        self, prediction: Tensor, first: Tensor, second: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Prediction error plus the weighted auxiliary loss on one or two views."""
        terms = {"prediction": prediction.item()}
        if self.regulariser is None:
            return prediction, terms
        # In bf16 a covariance would keep two digits, and DINO's centre would stop moving.
        with torch.autocast(first.device.type, enabled=False):
            auxiliary = self.regulariser(first.float(), None if second is None else second.float())
        kind = self.config.auxiliary.kind
        terms |= {f"{kind}_{key}": value.item() for key, value in auxiliary.terms.items()}
        weighted = self.config.auxiliary.weight * auxiliary.total
        terms |= {f"{kind}_total": auxiliary.total.item(), f"{kind}_weighted": weighted.item()}
        return prediction + weighted, terms


class EncoderDecoder(PixelModel):
    """Predicts the next frame from latent and action: `enc_dec_jepa` by way of a next latent."""

    def __init__(self, config: PixelsConfig, shapes: PixelShapes, name: str) -> None:
        super().__init__(config, shapes, name)
        dim, self.predictor = self.latent_dim, None
        width = dim + config.action_dim
        if name == "enc_dec_jepa":
            self.predictor, width = LatentPredictor(config.jepa, dim, config.action_dim), dim
        self.decoder = PatchDecoder(config.decoder, width, shapes)
        used = config.auxiliary.use_for_enc_dec
        self.regulariser = build_regulariser(config.auxiliary, dim) if used else None

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor | None:
        if self.predictor is None:
            return None
        return self.predictor(latent, self.action(action)).float()

    def decode(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, D), action -> (B, C, Hpx, Wpx)."""
        if self.predictor is None:
            return self.decoder(torch.cat([latent, self.action(action)], dim=-1))
        return self.decoder(self.predictor(latent, self.action(action)))

    def predict_frame(self, state: Tensor, action: Tensor) -> Tensor:
        return self.decode(self.encode(state), action)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        latent = self.encode(batch.state)
        frame = self.decode(latent, batch.action)
        error = F.mse_loss(frame.float(), scaled(batch.next_state[:, -1]))
        return self._regularised(error, latent, None)


class PixelJepa(PixelModel):
    """Joint-embedding predictive architecture with a slow target encoder (MOD-8)."""

    predicts_latents = True

    def __init__(self, config: PixelsConfig, shapes: PixelShapes, name: str = "jepa") -> None:
        super().__init__(config, shapes, name)
        self.mode = config.jepa.target
        self.predictor = LatentPredictor(config.jepa, self.latent_dim, config.action_dim)
        used = config.auxiliary.use_for_jepa
        self.regulariser = build_regulariser(config.auxiliary, self.latent_dim) if used else None
        if self.mode == "default" and self.regulariser is None:
            raise ConfigError(
                "pixels.jepa.target=default teaches its encoder through the auxiliary loss alone; "
                "switch that on, or choose the target vjepa2 or none"
            )
        self.target_encoder: nn.Module | None = None

    def make_target(self) -> None:
        """Copy the encoder; called once its first weights are drawn."""
        if self.mode != "none":
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    def train(self, mode: bool = True) -> PixelJepa:
        """The target encoder never drops anything out: what is predicted must not be noise."""
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.eval()
        return self

    def encode(self, state: Tensor) -> Tensor:
        return self.encode_target(state) if self.mode == "default" else self.encode_online(state)

    def encode_online(self, state: Tensor) -> Tensor:
        """(B, D) of the encoder that is trained."""
        return super().encode(state)

    def encode_target(self, state: Tensor) -> Tensor:
        """(B, D) of the slow copy, without gradient; of the encoder itself in the mode `none`."""
        with torch.no_grad():
            encoder = self.encoder if self.target_encoder is None else self.target_encoder
            return encoder(self.shapes.pixels(state)).float()

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.predictor(latent, self.action(action)).float()

    def forward(self, state: Tensor, action: Tensor, next_state: Tensor) -> JepaStep:
        """(prediction, target, online s_t, online s_{t+1}) of one batch."""
        online = self.encode_online(state)
        online_next = None if self.mode == "vjepa2" else self.encode_online(next_state)
        start = self.encode_target(state) if self.mode == "default" else online
        target = online_next.detach() if self.mode == "none" else self.encode_target(next_state)
        return JepaStep(self.imagine(start, action), target, online, online_next)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        step = self(batch.state, batch.action, batch.next_state)
        error = F.mse_loss(step.prediction, step.target)
        return self._regularised(error, step.online, step.online_next)

    def after_update(self) -> None:
        """The target follows (no-op without one)."""
        if self.target_encoder is not None:
            update_ema(self.target_encoder, self.encoder, self.config.jepa.ema_decay)

    @torch.no_grad()
    def weight_difference(self) -> float:
        """Mean squared difference between online and target weights (0 without a target)."""
        if self.target_encoder is None:
            return 0.0
        pairs = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
        gaps = torch.cat([(slow - fast).flatten() for slow, fast in pairs])
        return gaps.square().mean().item()


class VJepa2(PixelModel):
    """The trained pair as one frozen model of the comparison (VJ-14): it never trains again."""

    predicts_latents = True

    def __init__(self, config: PixelsConfig, shapes: PixelShapes, name: str = "vjepa2") -> None:
        encoder, world = MaskedViT(config, shapes), WorldModel(config, shapes)
        super().__init__(config, shapes, name, encoder, world.embedding)
        self.world = world
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> VJepa2:
        """Stays in evaluation mode, whoever trains a head on it (F4)."""
        return super().train(False)

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor:
        """Next latent (B, D) after one action."""
        return self.world(latent[:, None], action[:, None])[:, 0]

    def forward(self, state: Tensor, action: Tensor, next_state: Tensor) -> JepaStep:
        """The outputs of JEPA; target and latent of s_{t+1} are the same here."""
        now, then = self.encode(state), self.encode(next_state)
        return JepaStep(self.imagine(now, action), then, now, then)
