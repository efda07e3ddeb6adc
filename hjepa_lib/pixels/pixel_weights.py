"""First weights and counts of the pixel models (MOD-13).

Conv Kaiming, linear Kaiming by fan-out or Xavier with gain 0.5 for large layers, embeddings
N(0, 0.01), learned tokens and positions N(0, 0.02), norms 1 and 0, biases 0. Beyond seed 001: a
module with `first_weights` has the last word on its own, and `unit_size` fits the encoder's last
layer to the data (the idea of arXiv 1511.06422).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa_lib.models.layers import count_parameters

LARGE = 512
"""A linear layer with a side of this length or more starts from Xavier with gain 0.5."""


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draw all weights of `model` anew from torch's generator."""
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
    for module in model.modules():
        if hasattr(module, "first_weights"):
            module.first_weights()


@torch.no_grad()
def unit_size(encoder: nn.Module, pixels: Tensor) -> None:
    """Latents of `pixels` (B, L, C, H, W) get a root mean square of 1 by the last linear layer.

    On dark frames the rules above start the latent at a hundredth of that, where a decoder does not
    tell it from nothing for hundreds of updates. The size and not the spread: a spread far below
    the size would be blown up together with the noise of dropout.
    """
    training = encoder.training
    size = encoder.eval()(pixels).square().mean().sqrt()
    encoder.train(training)
    if size > 1e-8:
        last = [module for module in encoder.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.div_(size)
        last.bias.div_(size)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Trainable weights by part (its direct children and own tensors); they sum to the total."""
    counts = {name: count_parameters(part) for name, part in model.named_children()}
    own = sum(p.numel() for p in model.parameters(recurse=False) if p.requires_grad)
    return {name: count for name, count in (counts | {"own": own}).items() if count}
