"""Means and standard deviations of frames, actions and positions, computed once per data set.

Fitted on the training split, they travel with data and checkpoints (PL5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.files import WorkbookError

_FRAMES = 4096
"""Frames rendered to estimate the pixel statistics (standard error of the mean below 0.5 %)."""
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Normaliser:
    """Statistics per image channel, or per component of actions and positions."""

    pixel_mean: tuple[float, ...]  # [0, 255] units
    pixel_std: tuple[float, ...]  # [0, 255] units
    action_mean: tuple[float, ...]  # px
    action_std: tuple[float, ...]  # px
    position_mean: tuple[float, ...]  # px
    position_std: tuple[float, ...]  # px

    @classmethod
    def fit(cls, trajectories: Trajectories, seed: int) -> Normaliser:
        """Statistics of a (training) set; `seed` picks the frames that are rendered."""
        generator = torch.Generator().manual_seed(seed)
        states = torch.randint(len(trajectories.positions), (_FRAMES,), generator=generator)
        row = torch.searchsorted(trajectories.lengths.cumsum(0), states, right=True)
        shape = trajectories.world.frame_shape
        total, squares = torch.zeros(2, shape[0], dtype=torch.float64)
        for part in torch.arange(_FRAMES).split(256):  # 9 MB of float32 pixels at a time
            world = trajectories.world(trajectories.layouts(row[part]))
            frames = world.render(trajectories.positions[states[part]])
            if frames.shape[1:] != shape or frames.dtype != torch.uint8:
                raise WorkbookError(
                    f"a world draws (B, {', '.join(map(str, shape))}) uint8 frames, this one "
                    f"{tuple(frames.shape)} {frames.dtype}"
                )
            pixels = frames.float()  # (256, C, Hpx, Wpx)
            total += pixels.sum((2, 3)).double().sum(0)
            squares += pixels.square_().sum((2, 3)).double().sum(0)
        count = _FRAMES * shape[1] * shape[2]
        mean = total / count
        std = (squares / count - mean**2).clamp_min(_SMALLEST**2).sqrt()
        used = torch.ones(len(trajectories.actions), dtype=torch.bool)
        used[trajectories.lengths.cumsum(0) - 1] = False  # the last state has no action
        return cls(
            tuple(mean.tolist()),
            tuple(std.tolist()),
            *_statistics(trajectories.actions[used]),
            *_statistics(trajectories.positions),
        )

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON; floats survive exactly."""
        return {name: list(values) for name, values in vars(self).items()}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Normaliser:
        """Inverse of `to_dict`; WorkbookError for other names, or values that cannot be."""
        names = [item.name for item in fields(cls)]
        if set(tree) != set(names):
            raise WorkbookError(f"normaliser fields must be {sorted(names)}, got {sorted(tree)}")
        for name in names:
            low = 0 if name.endswith("std") else -math.inf
            if not tree[name] or not all(low < float(one) < math.inf for one in tree[name]):
                raise WorkbookError(f"{name} must be finite, and std above 0; got {tree[name]}")
        return cls(**{name: tuple(map(float, tree[name])) for name in names})


def _statistics(rows: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    std, mean = torch.std_mean(rows.double(), dim=0, correction=0)
    return tuple(mean.tolist()), tuple(std.clamp_min(_SMALLEST).tolist())
