"""Memory that one training update of a pixel model needs, counted rather than sampled.

Weights (EMA copies included), one gradient and two Adam moments per trained weight, and every
tensor that autograd keeps between forward and backward pass, each storage once. The process's own
peak would depend on what ran before in it; this depends on model, batch size and shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.models.layers import draw_masks
from hjepa_lib.pixels.models import build_pixel_model, shapes_of
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, WorldModel, stage2_loss


def update_bytes(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes of one update of `module` that minimises `loss()`."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return weights + 3 * trained + activations


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
