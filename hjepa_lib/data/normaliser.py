"""Means and standard deviations of a training set, which travel with its models (PL5)."""

import math

import torch

from hjepa_lib.config.fields import Float, Section
from hjepa_lib.data.trajectories import Trajectories

_FRAMES = 4096  # rendered for the pixel statistics: standard error of the mean below 0.5 %
_SMALLEST = 1e-6
Mean, Std = tuple[Float[-math.inf :], ...], tuple[Float[1e-12:], ...]


class Normaliser(Section):
    """Statistics per image channel, or per component of actions and positions.

    `config.from_dict` refuses what cannot be one.
    """

    pixel_mean: Mean = ()  # [0, 255] units
    pixel_std: Std = ()  # [0, 255] units
    action_mean: Mean = ()  # px
    action_std: Std = ()  # px
    position_mean: Mean = ()  # px
    position_std: Std = ()  # px

    @classmethod
    def fit(cls, trajectories: Trajectories, seed: int) -> "Normaliser":
        """Of a (training) set; `seed` picks the frames."""
        generator = torch.Generator().manual_seed(seed)
        states = torch.randint(len(trajectories.positions), (_FRAMES,), generator=generator)
        shape = trajectories.frame_shape
        total, squares = torch.zeros(2, shape[0], dtype=torch.float64)
        for part in torch.arange(_FRAMES).split(256):  # 9 MB of float32 pixels at a time
            frames = trajectories.frames(states[part])
            pixels = frames.float()  # (256, C, Hpx, Wpx)
            total += pixels.sum((2, 3)).double().sum(0)
            squares += pixels.square_().sum((2, 3)).double().sum(0)
        count = _FRAMES * shape[1] * shape[2]
        mean = total / count
        std = (squares / count - mean**2).clamp_min(_SMALLEST**2).sqrt()
        used = torch.ones(len(trajectories.actions), dtype=torch.bool)
        used[trajectories.lengths.cumsum(0) - 1] = False  # the last state has no action
        found = [mean, std]
        places = trajectories.world.xy(trajectories.positions)
        if not places.shape[1]:  # of a recording that does not say
            places = torch.zeros(1, 2)
        for rows in (trajectories.actions[used], places):
            std, mean = torch.std_mean(rows.double(), dim=0, correction=0)
            found += [mean, std.clamp_min(_SMALLEST)]
        return cls(*(values.tolist() for values in found))
