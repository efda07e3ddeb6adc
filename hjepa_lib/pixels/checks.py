"""What deserves a look: what is in a data set (DATA-8, DATA-9), and where gradients arrive."""

import math
from typing import Any

import numpy as np
import torch

from hjepa_lib.pixels.measures import pick
from hjepa_lib.pixels.transitions import Transitions, scaled

SAMPLES = 1_000  # transitions of each part that are looked at, at most


def frame_points(
    train: Transitions, validation: Transitions, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `samples` newest frames of each part (N, C * H * W), and which are held out (N,)."""
    parts = [data[pick(len(data), samples, seed)].state[:, -1] for data in (train, validation)]
    return scaled(torch.cat(parts).flatten(1)).numpy(), np.repeat((0, 1), [*map(len, parts)])


def inspect(data: Transitions) -> dict[str, Any]:
    """What is in a data set: shapes, types, ranges, frame differences in [0, 1] (DATA-9)."""
    some = data[pick(len(data), SAMPLES)]  # differences of a whole large set would fill memory
    change = (scaled(some.next_state[:, -1]) - scaled(some.state[:, -1])).abs().flatten(1)
    return {
        "transitions": len(data),
        "episodes": len(data.lengths),
        "episode length": f"{int(data.lengths.min())} to {int(data.lengths.max())}",
        "state": f"{data.state_shape} uint8",
        "action": f"{data.action_kind}, {data.action_dim}",
        "different actions": len(data.action.unique(dim=0)),
        "pixel range": f"{int(data.frames.min())} to {int(data.frames.max())}",
        "reward range": f"{float(data.reward.min()):.4g} to {float(data.reward.max()):.4g}",
        "non-zero rewards": int((data.reward != 0).sum()),
        "pixels that change per step": float((change > 0).float().mean()),
        "mean change of a pixel": float(change.mean()),
        "steps without any change": float((change.amax(1) == 0).float().mean()),
    }


def gradient_norms(model: Any, batch: Any) -> dict[str, float]:
    """Gradient norm of every trained part for the loss of one batch; 0 where none arrives (F3)."""
    trained = {
        name: [p for p in part.parameters() if p.requires_grad]
        for name, part in model.named_children()
    }
    flat = [p for part in trained.values() for p in part]
    if not flat:
        return {}
    found = torch.autograd.grad(model.loss(batch)[0], flat, materialize_grads=True)
    lengths = iter([float(one.norm()) for one in found])
    return {name: math.hypot(*(next(lengths) for _ in p)) for name, p in trained.items() if p}
