"""Training of the grid models: JEPA and generative twin side by side, then the reward heads."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.config.optim import EpochsConfig
from hjepa_lib.grids.buffer import GridBatch, GridBuffer
from hjepa_lib.grids.models import GoalReward, GridModel
from hjepa_lib.training.loop import Fit, Report, Task, ValidateFn, draw_batch

CHUNK = 64  # canvases encoded at once outside training


def train_pair(fits: dict[str, Fit], patience: int = 0) -> Iterator[tuple[str, Report]]:
    """Two fits in step, JEPA first: (kind, report) of every update.

    Their settings have no patience of their own: with `patience` > 0 the pair ends when BOTH have
    gone so many validations without improvement. One that is behind, after an interruption, catches
    up.
    """
    while True:
        level = len({fit.update for fit in fits.values()}) == 1
        if level and patience and all(fit.stale >= patience for fit in fits.values()):
            return
        kind = min(fits, key=lambda name: fits[name].update)
        report = next(iter(fits[kind]), None)
        if report is None:
            return
        yield kind, report


def fit_grid(
    model: GridModel,
    train: GridBuffer,
    optim: EpochsConfig,
    validate: ValidateFn,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
    stage: str = "",
) -> Fit:
    """One of a pair: `model.seconds` is what its last update took, without validation."""
    device, model.seconds = next(model.parameters()).device, math.nan

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        model.began = time.perf_counter()
        index = draw_batch(len(train), optim.batch, generator)
        return model.loss(train.batch(index).to(device))

    def after_update() -> None:
        model.after_update()
        model.seconds = time.perf_counter() - model.began

    task = Task(model, loss_fn, validate, after_update)
    settings = dataclasses.replace(optim.optim(len(train)), patience=0)
    return Fit(task, settings, seed=seed, precision=precision, folder=folder, stage=stage)


def pieces(batch: GridBatch, model: GridModel) -> Iterator[GridBatch]:
    """The batch in chunks, on the model's device."""
    device = next(model.parameters()).device
    for rows in zip(*(field.split(CHUNK) for field in batch), strict=True):
        yield GridBatch(*rows).to(device)


# --- goal-conditioned reward ------------------------------------------------------------------
class RewardRows(NamedTuple):
    """What the reward head reads of M transitions."""

    latents: Tensor  # (M, 3, D): now, next, goal
    imagined: Tensor  # (M, D): the model's own next latent
    reward: Tensor  # (M,)


@torch.no_grad()
def reward_rows(model: GridModel, data: GridBuffer) -> RewardRows:
    """Frozen latents of every transition, on the CPU."""
    was_training = model.training
    model.eval()
    latents, imagined = [], []
    for batch in pieces(data.batch(torch.arange(len(data))), model):
        # One goal per episode: encode each once, and every state of a chunk in one pass.
        goals, which = batch.target_state.unique(dim=0, return_inverse=True)
        both = model.encode(torch.cat([batch.state, batch.next_state, goals]))
        now, after, goal = both.split([len(which), len(which), len(goals)])
        latents.append(torch.stack([now, after, goal[which]], dim=1).cpu())
        imagined.append(model.imagine(now, batch.action).cpu())
    model.train(was_training)
    reward = torch.from_numpy(data.reward)
    return RewardRows(torch.cat(latents).float(), torch.cat(imagined).float(), reward)


def fit_reward(
    head: GoalReward,
    train: RewardRows,
    validation: RewardRows,
    optim: EpochsConfig,
    *,
    seed: int,
    folder: Path | None = None,
    stage: str = "",
) -> Fit:
    """MSE of the reward; the latents are data, so no gradient can reach their encoder."""
    device = next(head.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train.reward), optim.batch, generator)
        error = head(train.latents[index].to(device)) - train.reward[index].to(device)
        return error.square().mean(), {}

    def validate() -> dict[str, float]:
        gap = predict_reward(head, validation.latents) - validation.reward
        return {"loss": float(gap.square().mean())}

    task, settings = Task(head, loss_fn, validate), optim.optim(len(train.reward))
    return Fit(task, settings, seed=seed, folder=folder, stage=stage)


@torch.no_grad()
def predict_reward(head: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """(M, 3, D) -> (M,), on the CPU."""
    device = next(head.parameters()).device
    return torch.cat([head(rows.to(device)).cpu() for rows in latents.split(1024)])
