"""Dropout that costs little on a CPU: one random byte per value instead of one random float.

Drawing the mask takes torch's own dropout longer than the matrix product beside it (8 ms against
3 ms for a million values on one core). A byte decides in steps of 1/256, so the share that is
dropped is p rounded to that, and what is kept is scaled by the rounded share. On a GPU, where
random numbers are cheap, it is torch's dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ByteDropout(nn.Module):
    """`nn.Dropout(p)` for CPUs; draws from torch's global generator, as that does."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout share must lie in [0, 1), got {p}")
        self.p = p
        self.limit = min(round(256 * p), 255)  # bytes below it are dropped

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.limit):
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p, training=True)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.limit
        return x * keep.to(x.dtype).mul_(256 / (256 - self.limit))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def use_byte_dropout(module: nn.Module) -> nn.Module:
    """Replace every `nn.Dropout` inside `module` by `ByteDropout`; returns `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, ByteDropout(child.p))
        else:
            use_byte_dropout(child)
    return module
