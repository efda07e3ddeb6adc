"""Compute of a planner: forward FLOPs per environment step, counted by torch on one sample.

One environment step costs (encode one frame + samples * iterations * horizon transitions, each
with its embedding into the cost's space) / replan interval, per level. Multiply-adds count as 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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
    for command in planner.commands:
        # a macro level plans anew at the first level-1 plan that is due
        rounds = -(-command.replan // replan)
        levels.append((command.level, rounds * replan))
    for level, every in levels:
        plan = torch.zeros(1, 1, level.plan_dim, device=device)
        one = count(lambda level=level, plan=plan: level.imagine(latent, plan))
        members = len(model.predictors) if level.stride == 1 else 1
        calls = level.config.samples * level.config.iterations * level.config.horizon / every
        flops += calls * (one + embed)
        transitions += calls * members
    return flops, transitions
