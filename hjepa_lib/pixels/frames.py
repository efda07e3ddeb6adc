"""How well a next frame is predicted, next to two predictions that need no model.

`copy_last`: the newest frame of s_t stands still. `mean_frame`: the mean of the training frames,
always. Errors are mean squared differences of pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.pixels.transitions import TransitionBatch, Transitions

CHUNK = 256
Predict = Callable[[TransitionBatch], Tensor]


class FrameErrors(NamedTuple):
    """Over all transitions of a data set."""

    mse: float
    copy_last_mse: float
    mean_frame_mse: float
    changed_share: float  # of pixels that differ by more than 0.02 from the frame before


def mean_frame(data: Transitions) -> Tensor:
    """(C, H, W) mean of the stored frames in [0, 1]."""
    total = sum(part.double().sum(dim=0) for part in data.frames.split(CHUNK))
    return (total / len(data.frames) / 255).float()


@torch.no_grad()
def frame_errors(
    predict: Predict, data: Transitions, mean: Tensor, device: torch.device | str
) -> FrameErrors:
    """`predict` maps a batch on `device` to (B, C, H, W); `mean` is the training mean frame."""
    sums = torch.zeros(4, dtype=torch.float64)
    for index in torch.arange(len(data)).split(CHUNK):
        batch = data.batch(index).to(device)
        after, before = (s[:, -1].float() / 255 for s in (batch.next_state, batch.state))
        guesses = (predict(batch), before, mean.to(device))
        gaps = [(guess - after).square().mean() for guess in guesses]
        changed = ((after - before).abs() > 0.02).float().mean()
        sums += torch.stack([*gaps, changed]).double().cpu() * len(index)
    return FrameErrors(*(sums / len(data)).tolist())
