"""Small building blocks shared by the models."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(
    *widths: int,
    activation: type[nn.Module] = nn.ReLU,
    norm: bool = False,
    dropout: float | None = None,
) -> nn.Sequential:
    """Linear layers (..., widths[0]) -> (..., widths[-1]), an activation between each two.

    LayerNorm comes before the activation where asked for, dropout (share in [0, 1)) behind it.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if index < len(widths) - 2:
            layers += [nn.LayerNorm(after)] if norm else []
            layers.append(activation())
            layers += [] if dropout is None else [nn.Dropout(dropout)]
    return nn.Sequential(*layers)


@torch.no_grad()
def update_ema(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    """theta_slow <- decay * theta_slow + (1 - decay) * theta_fast, parameter by parameter."""
    for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


def full_precision(like: Tensor) -> torch.autocast:
    """A block without autocast: a bf16 training multiplies in bf16 in forward passes alone (Q4)."""
    return torch.autocast(like.device.type, enabled=False)


def count_parameters(module: nn.Module) -> int:
    """Trainable weights; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
