"""Small building blocks shared by the models."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    """Linear layers of the given widths with an activation (and LayerNorm) between them."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if index < len(widths) - 2:
            layers += [nn.LayerNorm(after)] if norm else []
            layers.append(activation())
    return nn.Sequential(*layers)


@torch.no_grad()
def update_ema(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    """theta_slow <- decay * theta_slow + (1 - decay) * theta_fast, parameter by parameter."""
    for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


def count_parameters(module: nn.Module) -> int:
    """Trainable weights; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
