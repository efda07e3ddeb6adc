"""The world models of the pixel comparison, each built and stored by its name of `FILES`.

z_t = encoder(s_t), s a stack of L frames, x its newest frame; e the action embedding, p the
predictor.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import ConfigError, from_dict, to_dict
from hjepa_lib.config.pixels import DecoderConfig, PixelsConfig
from hjepa_lib.models import checkpoint
from hjepa_lib.models.layers import count_parameters, full_precision, update_ema
from hjepa_lib.pixels import networks
from hjepa_lib.pixels.compare import UNTRAINED
from hjepa_lib.pixels.measures import pick
from hjepa_lib.pixels.networks import LatentPredictor, PatchDecoder, Sees
from hjepa_lib.pixels.training import Regulariser, build_regulariser
from hjepa_lib.pixels.transitions import PixelShapes, Transitions, scaled, shapes_of
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, TokenEncoder, WorldModel

SCALE_ROWS = 2048  # training transitions that say how tokens are read
FILES = {
    "enc_dec": "best_encoder_decoder", "enc_dec_jepa": "best_encoder_decoder", "jepa": "best_jepa",
    "stage1": "best_stage1_model", "vjepa2": "best_stage2_model", "decoder": "best_jepa_decoder",
    "random": "random_encoder", "random_vit": "random_encoder",
}  # fmt: skip
"""What the weights of a model are called, each in its folder (TRAIN-5, VJ-5, VJ-11)."""


class PixelModel(Sees):
    """Encoder and action embedding, and what every model answers to; alone one of `UNTRAINED`."""

    predicts_latents = False
    """What `imagine` returns is trained to equal an encoding."""

    def __init__(
        self, config: PixelsConfig, shapes: PixelShapes, name: str,
        encoder: nn.Module | None = None, action: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, shapes)
        self.name = name
        self.latent_dim = config.encoder.latent_dim
        # The encoder comes first in every model: with one seed they all start from the same one.
        self.encoder = encoder or networks.ENCODERS[config.encoder.kind](config.encoder, shapes)
        self.action = action or networks.action_embedding(shapes, config.action_dim)
        self.predictor: nn.Module | None = None
        self.regulariser: Regulariser | None = None

    def encode(self, state: Tensor) -> Tensor:
        """uint8 (B, L, C, Hpx, Wpx) -> (B, D) float32, as the predictor reads it."""
        return self.encoder(self.pixels(state)).float()

    def encode_target(self, state: Tensor) -> Tensor:
        """The latents that predictions are compared with; only JEPA has others than `encode`."""
        return self.encode(state)

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor | None:
        """Imagined next latent (B, D); None when the model has none (F9)."""
        if self.predictor is None:
            return None
        return self.predictor(latent, self.action(action)).float()

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor | None:
        """Latents (B, K, D) imagined after 1..K actions (B, K, ...); None without imagination."""
        if self.predictor is None:
            return None
        found = [self.encode(state)]
        for action in actions.unbind(1):
            found.append(self.imagine(found[-1], action))
        return torch.stack(found[1:], dim=1)

    def _regularised(self, error: Tensor, *views: Tensor) -> tuple[Tensor, dict[str, float]]:
        terms = {"prediction": error.item()}
        if self.regulariser is None:
            return error, terms
        # In bf16 a covariance would keep two digits, and DINO's centre would stop moving.
        with full_precision(error):
            total, parts = self.regulariser(*(view.float() for view in views))
        auxiliary = self.config.auxiliary
        parts = parts | {"total": total, "weighted": auxiliary.weight * total}
        terms |= {f"{auxiliary.kind}_{key}": part.item() for key, part in parts.items()}
        return error + parts["weighted"], terms


class EncoderDecoder(PixelModel):
    """Predicts the next frame: || decoder(u) - x_{t+1} ||^2.

    u = [z_t, e(a)] in `enc_dec`, u = p(z_t, e(a)), a next latent, in `enc_dec_jepa`.
    """

    def __init__(self, config: PixelsConfig, shapes: PixelShapes, name: str) -> None:
        super().__init__(config, shapes, name)
        dim, width = self.latent_dim, self.latent_dim + config.action_dim
        if name == "enc_dec_jepa":
            self.predictor, width = LatentPredictor(config.jepa, dim, config.action_dim), dim
        self.decoder = PatchDecoder(config.decoder, width, shapes)
        if config.auxiliary.use_for_enc_dec:
            self.regulariser = build_regulariser(config.auxiliary, dim)

    def draw(self, latent: Tensor, action: Tensor) -> Tensor:
        """Newest frame of s_{t+1} (B, C, Hpx, Wpx)."""
        imagined = self.imagine(latent, action)
        if imagined is None:
            imagined = torch.cat([latent, self.action(action)], dim=-1)
        return self.decoder(imagined)

    def predict_frame(self, batch: Any) -> Tensor:
        """The same of a TransitionBatch."""
        return self.draw(self.encode(batch.state), batch.action)

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor:
        """Each drawn frame is the newest of the next state, and encoded."""
        found = [self.encode(state)]
        for action in actions.unbind(1):
            frame = self.draw(found[-1], action).float()
            drawn = (255 * frame).round().clamp(0, 255).to(torch.uint8)
            state = torch.cat([state[:, 1:], drawn[:, None]], dim=1)
            found.append(self.encode(state))
        return torch.stack(found[1:], dim=1)

    def loss(self, batch: Any, _: Any = None) -> tuple[Tensor, dict[str, float]]:
        """(scalar, named terms) of a TransitionBatch."""
        latent = self.encode(batch.state)
        frame = self.draw(latent, batch.action)
        error = F.mse_loss(frame.float(), scaled(batch.next_state[:, -1]))
        return self._regularised(error, latent)


class PixelJepa(PixelModel):
    """|| p(z, e(a)) - stopgrad(target) ||^2 + weight * auxiliary; a slow target encoder (MOD-8).

    By target mode (MOD-9) p reads, p predicts, the auxiliary loss sees:
    default   target(s_t)   target(s_{t+1})   online(s_t), online(s_{t+1})
    vjepa2    online(s_t)   target(s_{t+1})   online(s_t)
    none      online(s_t)   online(s_{t+1})   online(s_t), online(s_{t+1})
    """

    predicts_latents = True

    def __init__(self, config: PixelsConfig, shapes: PixelShapes, name: str) -> None:
        super().__init__(config, shapes, name)
        self.mode = config.jepa.target
        self.predictor = LatentPredictor(config.jepa, self.latent_dim, config.action_dim)
        self.regulariser = build_regulariser(config.auxiliary, self.latent_dim)
        if self.mode == "default" and self.regulariser is None:
            raise ConfigError(
                "pixels.jepa.target=default teaches its encoder through the auxiliary loss alone; "
                "switch that on, or choose the target vjepa2 or none"
            )
        self.target_encoder: nn.Module | None = None

    def encode(self, state: Tensor) -> Tensor:
        return self.encode_target(state) if self.mode == "default" else self.encode_online(state)

    def encode_online(self, state: Tensor) -> Tensor:
        """(B, D) of the encoder that is trained."""
        return super().encode(state)

    def encode_target(self, state: Tensor) -> Tensor:
        """(B, D) of the slow copy, without gradient; of the encoder itself in the mode `none`."""
        with torch.no_grad():
            return (self.target_encoder or self.encoder)(self.pixels(state)).float()

    def forward(self, batch: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Prediction, target without gradient, views of the auxiliary loss; all (B, D)."""
        views = [self.encode_online(batch.state)]
        if self.mode != "vjepa2":
            views.append(self.encode_online(batch.next_state))
        start = self.encode_target(batch.state) if self.mode == "default" else views[0]
        target = views[1].detach() if self.mode == "none" else self.encode_target(batch.next_state)
        return self.imagine(start, batch.action), target, views

    def loss(self, batch: Any, _: Any = None) -> tuple[Tensor, dict[str, float]]:
        """(scalar, named terms) of a TransitionBatch."""
        prediction, target, views = self(batch)
        return self._regularised(F.mse_loss(prediction, target), *views)

    def after_update(self) -> None:
        """The target follows (no-op without one)."""
        if self.target_encoder is not None:
            update_ema(self.target_encoder, self.encoder, self.config.jepa.ema_decay)


class VJepa2(PixelModel):
    """The two stages of vjepa2.py as one frozen model (VJ-14): it never trains again."""

    predicts_latents = True

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        encoder = TokenEncoder(config.encoder, config.vjepa2.stage1, shapes)
        networks.initialise(encoder)
        world = WorldModel(config, shapes)
        super().__init__(config, shapes, "vjepa2", encoder, world.embedding)
        self.world = world
        self.requires_grad_(False).eval()

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.world(latent[:, None], action[:, None])[:, 0]

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor:
        return self.world.rollout(self.encode(state)[:, None], actions, actions.shape[1])


KINDS = {"enc_dec": EncoderDecoder, "enc_dec_jepa": EncoderDecoder, "jepa": PixelJepa,
         "random": PixelModel}  # fmt: skip


def build_pixel_model(name: str, config: PixelsConfig, data: Any) -> Any:
    """The model `name` of `FILES` with fresh weights from torch's generator (MOD-13).

    `data` are `PixelShapes`, or training `Transitions`, to which it is fitted (`fit_scale`).
    """
    shapes = shapes_of(data)
    if name == "stage1":
        model = MaskedPrediction(config, shapes)
    elif name in ("vjepa2", "random_vit"):
        model = VJepa2(config, shapes)
        if name == "random_vit":  # with one seed stage 1 begins with this very encoder
            model = PixelModel(config, shapes, name, model.encoder, model.action).eval()
    else:
        seed = int(torch.randint(2**31, (1,)))
        model = KINDS[name](config, shapes, name)
        torch.manual_seed(seed)  # building drew another number of them per model
        networks.initialise(model)
    if isinstance(data, Transitions):
        fit_scale(model, data)
    if name == "jepa" and model.mode != "none":
        model.target_encoder = copy.deepcopy(model.encoder).requires_grad_(False)
    return model.requires_grad_(False) if name in UNTRAINED else model


def fit_scale(model: Any, data: Transitions, background: Tensor | None = None) -> None:
    """Take the mean frame of training, or a `background`, and what a `TokenEncoder` reads."""
    frame = data.mean_frame if background is None else background
    for part in model.modules():
        if hasattr(part, "background"):
            part.background.copy_(frame)
    if isinstance(getattr(model, "encoder", None), TokenEncoder):
        state = data[pick(len(data), SCALE_ROWS)].state
        model.encoder.fit(model.pixels(state.to(model.background.device)))


def matched_counts(config: PixelsConfig, data: Any) -> dict[str, int]:
    """Weights that the twin, and JEPA with its decoder, train to predict a frame."""
    twin, jepa = (build_pixel_model(name, config, data) for name in ("enc_dec_jepa", "jepa"))
    decoder = PatchDecoder(config.decoder, config.encoder.latent_dim, shapes_of(data))
    pair = count_parameters(jepa) + count_parameters(decoder)
    return {"enc_dec_jepa": count_parameters(twin), "jepa + decoder": pair}


def save_model(folder: Path, model: Any, /, **facts: Any) -> Path:
    """Write `model` under its name of `FILES` with its config and `facts`."""
    path = folder / FILES[model.name]
    meta = {"config": to_dict(model.config), "shapes": model.shapes._asdict()}
    checkpoint.save_module(path, model, f"pixel {model.name}", **meta, **facts)
    return path


def load_model(path: Path, name: str) -> Any:
    """The stored model `name` of a file or folder, frozen and in eval mode on the CPU."""

    def build(meta: dict[str, Any]) -> nn.Module:
        shapes = PixelShapes(**meta["shapes"])
        if name == "decoder":
            config = from_dict(DecoderConfig, meta["config"])
            return PatchDecoder(config, meta["input_dim"], shapes)
        return build_pixel_model(name, from_dict(PixelsConfig, meta["config"]), shapes)

    return checkpoint.load_module(_find(path, name), f"pixel {name}", build)


def about_model(path: Path, name: str) -> dict[str, Any]:
    """The facts written beside a stored model; FileError when it is another."""
    meta = checkpoint.read_meta(_find(path, name), f"pixel {name}")
    return {key: meta[key] for key in meta if key not in ("kind", "config", "shapes")}


def fill_model(path: Path, model: Any) -> dict[str, Any]:
    """Weights of a file or folder into `model` (TRAIN-6), whose facts these are; FileError if they
    do not fit."""
    facts = about_model(path, model.name)
    checkpoint.load_weights(Path(f"{_find(path, model.name)}.safetensors"), model)
    return facts


def _find(path: Path, name: str) -> Path:
    return path.with_suffix("") if path.suffix == ".safetensors" else path / FILES[name]
