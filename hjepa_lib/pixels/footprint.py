"""Memory that one training update of a pixel model needs, counted rather than sampled."""

from __future__ import annotations

from typing import Any

import torch

from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.models.layers import draw_masks
from hjepa_lib.pixels.registry import build_pixel_model
from hjepa_lib.pixels.transitions import shapes_of
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, WorldModel, stage2_loss


def update_megabytes(name: str, config: PixelsConfig, data: Any) -> float:
    """MB of one update of model `name` on `data`; of the larger stage for `vjepa2`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name != "vjepa2":
            model = build_pixel_model(name, config, data).train()
            batch = data.batch(torch.arange(config.optim.batch) % len(data))
            return update_bytes(model, lambda: model.loss(batch)[0]) / 1e6
        return max(_stage1(config, data), _stage2(config, data)) / 1e6


def _stage1(config: PixelsConfig, data: Any) -> int:
    stage = config.vjepa2.stage1
    model = MaskedPrediction(config, shapes_of(data)).train()
    state = data.batch(torch.arange(stage.optim.batch) % len(data)).state
    generator = torch.Generator().manual_seed(0)
    mask = draw_masks(len(state), model.online.patches, stage.mask, generator)
    return update_bytes(model, lambda: model.loss(state, mask)[0])


def _stage2(config: PixelsConfig, data: Any) -> int:
    """The loss that stage 2 trains with: one teacher-forced pass, and the roll-out fed back."""
    stage, dim = config.vjepa2.stage2, config.encoder.latent_dim
    model = WorldModel(config, shapes_of(data)).train()
    now, then = torch.randn(2, stage.optim.batch, config.data.sequence, dim)
    rows = torch.arange(stage.optim.batch * config.data.sequence) % len(data)
    actions = data.action[rows].unflatten(0, now.shape[:2])
    generator = torch.Generator().manual_seed(0)
    return update_bytes(model, lambda: stage2_loss(model, now, actions, then, stage, generator)[0])
