"""Compute of a planner, and memory of an update: counted by torch on one sample.

One environment step costs (encode one frame + samples * iterations * horizon transitions, each
with its embedding into the cost's space) / replan interval, per level. Multiply-adds count as 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hjepa_lib.models.level1 import IMAGE_CHANNELS, Jepa
from hjepa_lib.planning.planner import Planner


def count(call: Callable[[], object]) -> int:
    """Forward FLOPs of one call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def planner_flops(planner: Planner, model: Jepa, replan: int) -> tuple[float, float]:
    """(FLOPs, model transitions) per environment step and trial."""
    device = model.pixel_mean.device
    side = model.image_size
    frame = torch.zeros(1, IMAGE_CHANNELS, side, side, dtype=torch.uint8, device=device)
    latent = torch.zeros(1, model.latent_dim, device=device)
    embed = count(lambda: planner.geometry.embed(latent))
    flops = count(lambda: model.encode(frame)) / replan
    transitions = 0.0
    levels = [(planner.level1, replan)]
    for layer in planner.layers[1:]:
        # a macro level plans anew at the first level-1 plan that is due
        rounds = -(-layer.replan // replan)
        levels.append((layer.level, rounds * replan))
    for level, every in levels:
        plan = torch.zeros(1, 1, level.plan_dim, device=device)
        one = count(lambda level=level, plan=plan: level.imagine(latent, plan))
        members = len(model.predictors) if level.stride == 1 else 1
        calls = level.config.samples * level.config.iterations * level.config.horizon / every
        flops += calls * (one + embed)
        transitions += calls * members
    return flops, transitions


def update_bytes(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes of one update of `module` that minimises `loss()`, whatever ran before.

    Weights (EMA copies included), a gradient and two Adam moments per trained weight, and every
    tensor that autograd keeps for the backward pass, each storage once.
    """
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
