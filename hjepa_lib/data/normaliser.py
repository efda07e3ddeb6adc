"""Means and standard deviations of frames, actions and positions, computed once per data set.

The peers re-estimate them at every start and leave them out of the checkpoint (defect PL5); here
they are fitted on the training split and travel with data and checkpoints as a small dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.worlds.layout import CHANNELS, SIZE

_FRAMES = 4096
"""Frames rendered to estimate the pixel statistics (standard error of the mean below 0.5 %)."""
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Normaliser:
    """Statistics per channel (dot, walls) or axis (x, y), each a pair of numbers."""

    pixel_mean: tuple[float, float]  # [0, 255] units
    pixel_std: tuple[float, float]  # [0, 255] units
    action_mean: tuple[float, float]  # px
    action_std: tuple[float, float]  # px
    position_mean: tuple[float, float]  # px
    position_std: tuple[float, float]  # px

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if len(value) != 2 or not all(abs(float(v)) < float("inf") for v in value):
                raise ValueError(f"{item.name} must be two finite numbers, got {value!r}")
            if item.name.endswith("std") and min(value) <= 0:
                raise ValueError(f"{item.name} must be positive, got {value!r}")
            object.__setattr__(self, item.name, tuple(float(v) for v in value))

    @classmethod
    def fit(cls, trajectories: Trajectories, seed: int) -> Normaliser:
        """Statistics of a (training) set; `seed` picks the frames that are rendered."""
        generator = torch.Generator().manual_seed(seed)
        states = torch.randint(len(trajectories.positions), (_FRAMES,), generator=generator)
        row = torch.searchsorted(trajectories.lengths.cumsum(0), states, right=True)
        total, squares = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for part in torch.arange(_FRAMES).split(256):  # 9 MB of float32 pixels at a time
            world = trajectories.world(trajectories.layouts(row[part]))
            frames = world.render(trajectories.positions[states[part]])
            if frames.shape[1:] != (CHANNELS, SIZE, SIZE) or frames.dtype != torch.uint8:
                raise ValueError(
                    f"a world draws (B, {CHANNELS}, {SIZE}, {SIZE}) uint8 frames, this one "
                    f"{tuple(frames.shape)} {frames.dtype}"
                )
            pixels = frames.float()  # (256, 2, Hpx, Wpx)
            total += pixels.sum((2, 3)).double().sum(0)
            squares += pixels.square_().sum((2, 3)).double().sum(0)
        mean = total / (_FRAMES * SIZE**2)
        std = (squares / (_FRAMES * SIZE**2) - mean**2).clamp_min(_SMALLEST**2).sqrt()
        used = torch.ones(len(trajectories.actions), dtype=torch.bool)
        used[trajectories.lengths.cumsum(0) - 1] = False  # the last state has no action
        return cls(
            tuple(mean.tolist()),
            tuple(std.tolist()),
            *_statistics(trajectories.actions[used]),
            *_statistics(trajectories.positions),
        )

    def frames(self, frames: Tensor) -> Tensor:
        """uint8 or float frames (..., 2, Hpx, Wpx) in [0, 255] -> standardised float32."""
        mean, std = (_pair(v, frames)[:, None, None] for v in (self.pixel_mean, self.pixel_std))
        return (frames - mean) / std

    def actions(self, actions: Tensor) -> Tensor:
        """px (..., 2) -> standardised."""
        return (actions - _pair(self.action_mean, actions)) / _pair(self.action_std, actions)

    def actions_px(self, actions: Tensor) -> Tensor:
        """Standardised (..., 2) -> px."""
        return actions * _pair(self.action_std, actions) + _pair(self.action_mean, actions)

    def positions(self, positions: Tensor) -> Tensor:
        """px (..., 2) -> standardised."""
        mean, std = _pair(self.position_mean, positions), _pair(self.position_std, positions)
        return (positions - mean) / std

    def positions_px(self, positions: Tensor) -> Tensor:
        """Standardised (..., 2) -> px."""
        mean, std = _pair(self.position_mean, positions), _pair(self.position_std, positions)
        return positions * std + mean

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON; floats survive exactly."""
        return {item.name: list(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Normaliser:
        """Inverse of `to_dict`; raises `ValueError` for missing or unknown names."""
        names = {item.name for item in fields(cls)}
        if set(tree) != names:
            raise ValueError(f"normaliser fields must be {sorted(names)}, got {sorted(tree)}")
        return cls(**{name: tuple(value) for name, value in tree.items()})


def _pair(value: tuple[float, float], like: Tensor) -> Tensor:  # (2,)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.tensor(value, dtype=dtype, device=like.device)


def _statistics(rows: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    std, mean = torch.std_mean(rows.double(), dim=0, correction=0)
    return tuple(mean.tolist()), tuple(std.clamp_min(_SMALLEST).tolist())
