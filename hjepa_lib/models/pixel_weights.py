"""First weights and counts of the pixel models (MOD-13)."""

from __future__ import annotations

import torch
from torch import nn

from hjepa_lib.models.layers import count_parameters

LARGE = 512
"""A linear layer with a side of this length or more starts from Xavier with gain 0.5."""


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """First weights (MOD-13): Kaiming, Xavier gain 0.5 for large layers, N(0, 0.01) embeddings.

    Learned tokens and positions are N(0, 0.02); norms 1 and 0; biases 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            if max(module.weight.shape) >= LARGE:
                nn.init.xavier_uniform_(module.weight, gain=0.5)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d)):
            nn.init.ones_(module.weight)
        else:
            for token in module.parameters(recurse=False):
                nn.init.normal_(token, std=0.02)
            continue
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Trainable weights by part (its direct children and own tensors); they sum to the total."""
    counts = {name: count_parameters(part) for name, part in model.named_children()}
    own = sum(p.numel() for p in model.parameters(recurse=False) if p.requires_grad)
    return {name: count for name, count in (counts | {"own": own}).items() if count}
