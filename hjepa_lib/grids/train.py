"""Training of the grid models: JEPA and generative twin side by side, then the reward heads."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hjepa_lib.config.optim import EpochsConfig
from hjepa_lib.grids.buffer import GridBatch, GridBuffer
from hjepa_lib.grids.models import GoalReward, GridModel
from hjepa_lib.training.loop import Fit, Report, Task, ValidateFn, draw_batch

CHUNK = 64  # canvases encoded at once outside training


def train_pair(fits: dict[str, Fit], patience: int = 0) -> Iterator[tuple[str, Report]]:
    """Two fits in step: (kind, report) of every update; one that was interrupted catches up.

    With `patience` > 0 the pair ends when BOTH have gone so many validations without improvement.
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
    model: GridModel, train: GridBuffer, optim: EpochsConfig, validate: ValidateFn, **options: Any
) -> Fit:
    """One of a pair, with the fit's own `options`; `model.seconds` is what its last update took."""
    model.seconds = math.nan

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        model.began = time.perf_counter()
        index = draw_batch(len(train), optim.batch, generator)
        return model.loss(train.batch(index).to(model.device))

    def after_update() -> None:
        model.after_update()
        model.seconds = time.perf_counter() - model.began

    settings = dataclasses.replace(optim.optim(len(train)), patience=0)
    return Fit(Task(model, loss_fn, validate, after_update), settings, **options)


def pieces(batch: GridBatch, model: GridModel) -> Iterator[GridBatch]:
    """The batch in chunks, on the model's device."""
    for rows in zip(*(field.split(CHUNK) for field in batch), strict=True):
        yield GridBatch(*rows).to(model.device)


# --- goal-conditioned reward ------------------------------------------------------------------
@torch.no_grad()
def reward_latents(model: GridModel, data: GridBuffer) -> Tensor:
    """Frozen latents of every transition, on the CPU: (M, 4, D) of now, next, goal, imagined."""
    was_training = model.training
    model.eval()
    found = []
    for batch in pieces(data.batch(torch.arange(len(data))), model):
        # One goal per episode: encode each once, and every state of a chunk in one pass.
        goals, which = batch.target_state.unique(dim=0, return_inverse=True)
        both = model.encode(torch.cat([batch.state, batch.next_state, goals]))
        now, after, goal = both.split([len(which), len(which), len(goals)])
        imagined = model.imagine(now, batch.action)
        found.append(torch.stack([now, after, goal[which], imagined], dim=1).float().cpu())
    model.train(was_training)
    return torch.cat(found)


def fit_reward(
    head: GoalReward, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor],
    optim: EpochsConfig, **options: Any,
) -> Fit:  # fmt: skip
    """MSE of the rewards (M,) from latents (M, 3, D): data, so their encoder gets no gradient."""
    device = head.types.device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        latents, reward = train
        index = draw_batch(len(reward), optim.batch, generator)
        error = head(latents[index].to(device)) - reward[index].to(device)
        return error.square().mean(), {}

    def validate() -> dict[str, float]:
        latents, reward = validation
        return {"loss": float((predict_reward(head, latents) - reward).square().mean())}

    return Fit(Task(head, loss_fn, validate), optim.optim(len(train[1])), **options)


@torch.no_grad()
def predict_reward(head: GoalReward, latents: Tensor) -> Tensor:
    """(M, 3, D) -> (M,), on the CPU."""
    return torch.cat([head(rows.to(head.types.device)).cpu() for rows in latents.split(1024)])
