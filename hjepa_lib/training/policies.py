"""Training of the policy without a world model: recorded actions, goals from the same future."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.models.policies import GoalPolicy
from hjepa_lib.training.loop import Fit, Loss, Task, draw_batch, held_out

VALIDATION_PAIRS = 512


def draw_pairs(
    data: Trajectories, batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of `batch` states, of a later state of the trajectory of each, and steps (batch,).

    In the first half they are not told, 0, and any later state is as likely; in the rest few steps
    are as likely as many on a logarithmic scale.
    """
    lengths = data.lengths
    pick = draw_batch(data.transitions, batch, generator)
    row = torch.searchsorted((lengths - 1).cumsum(0), pick, right=True)  # its trajectory
    now = pick + row  # each trajectory before it has a last state without an action
    left = lengths.cumsum(0)[row] - 1 - now  # steps to the trajectory's end, 1 or more
    share = torch.rand(batch, generator=generator, dtype=torch.float64)
    told = torch.arange(batch) >= batch // 2
    steps = torch.where(told, (left + 1) ** share, 1 + left * share).long().clamp(max=left)
    return now, now + steps, steps * told


def train_policy(
    model: GoalPolicy, train: Trajectories, validation: Trajectories | None, *, seed: int,
    **options: Any,
) -> Fit:  # fmt: skip
    """Iterate to train `model` in place: squared error of normalised actions, of both halves."""
    device, optim = model.pixel_mean.device, model.config.optim

    def loss(data: Trajectories, batch: int, generator: torch.Generator) -> Loss:
        now, later, steps = draw_pairs(data, batch, generator)
        frames, goals = data.frames(torch.cat([now, later]), device).chunk(2)
        wanted = model.normalise_actions(data.actions[now].to(device))
        error = (model(frames, goals, steps) - wanted).square().mean(-1)  # (B,)
        half = batch // 2
        return error.mean(), {"gcbc": error[:half].mean(), "idm": error[half:].mean()}

    check = validation and held_out(partial(loss, validation, VALIDATION_PAIRS), seed)
    task = Task(model, partial(loss, train, optim.batch), check)
    return Fit(task, optim, seed=seed, stage="policies", **options)
