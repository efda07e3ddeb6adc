"""Any model of the pixel comparison by its name, with fresh weights (MOD-13)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hjepa_lib.config import ConfigError
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.pixels.models import (
    EncoderDecoder,
    PixelJepa,
    PixelModel,
    shapes_of,
)
from hjepa_lib.pixels.networks import PatchDecoder, initialise, parameter_counts, unit_size
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.pixels.vjepa2 import RandomVit, build_vjepa2

SIZE_ROWS = 256  # transitions that set the scale of the first latents


def build_pixel_model(name: str, config: PixelsConfig, data: Any) -> nn.Module:
    """The model `name` with fresh weights from torch's generator.

    `data` gives the shapes; training `Transitions` (not bare `PixelShapes`) also set the scale of
    the first latents.
    """
    if name == "vjepa2":
        return build_vjepa2(config, data)
    if name == "random_vit":
        return RandomVit(config, shapes_of(data))
    shapes, seed = shapes_of(data), int(torch.randint(2**31, (1,)))
    if name in ("enc_dec", "enc_dec_jepa"):
        model: PixelModel = EncoderDecoder(config, shapes, predictor=name == "enc_dec_jepa")
    elif name == "jepa":
        model = PixelJepa(config, shapes)
    elif name == "random":
        model = PixelModel(config, shapes)
    else:
        raise ConfigError(
            f"unknown model {name!r}; known: enc_dec, enc_dec_jepa, jepa, vjepa2, random, "
            "random_vit"
        )
    with torch.random.fork_rng(devices=[]):  # building drew another number of them per model
        torch.manual_seed(seed)
        initialise(model)
    if isinstance(data, Transitions):
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:SIZE_ROWS]
        unit_size(model.encoder, model.pixels(data.batch(rows.sort().values).state))
    if isinstance(model, PixelJepa):
        model.make_target()
    return model.requires_grad_(False) if name == "random" else model


def matched_counts(config: PixelsConfig, data: Any) -> dict[str, int]:
    """Weights that the JEPA-style twin and JEPA with its decoder train to predict a frame.

    The auxiliary loss's projector is scaffolding of either and left out.
    """
    twin = parameter_counts(build_pixel_model("enc_dec_jepa", config, data))
    jepa = parameter_counts(build_pixel_model("jepa", config, data))
    shapes = shapes_of(data)
    decoder = PatchDecoder(
        config.decoder, config.encoder.latent_dim, shapes.channels, shapes.image_size
    )
    pair = {"enc_dec_jepa": twin, "jepa + decoder": jepa | {"decoder": count_parameters(decoder)}}
    return {
        name: sum(count for part, count in parts.items() if part != "regulariser")
        for name, parts in pair.items()
    }
