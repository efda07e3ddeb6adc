"""Training of the grid models: JEPA and generative twin side by side, then the reward heads.

Both read the same batches, a pure function of (seed, update), each with its own AdamW; training
ends when BOTH have stalled, or with the budget. Each validation key `loss` decides about the best
weights. For JEPA that is its error over the variance of the targets, not the bare error: the bare
one is smallest for a collapsed encoder, often that of the very first validation.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.config.optim import EpochsConfig
from hjepa_lib.grids.buffer import GridBuffer
from hjepa_lib.grids.models import GridModel
from hjepa_lib.grids.reward import GoalReward
from hjepa_lib.training.loop import Fit, Report, Task, ValidateFn, draw_batch

CHUNK = 64  # canvases encoded at once outside training


class Update(NamedTuple):
    """One update of one of the two fits."""

    kind: str  # jepa or generative
    report: Report
    seconds: float  # without the validation
    improved: bool  # the best validation so far


class PairFit:
    """Two fits in step, JEPA first; iterate to train.

    The fits themselves never stop early. With `patience` > 0 the pair ends when both have gone so
    many validations without improvement. After an interruption the one that is behind catches up.
    """

    def __init__(self, fits: dict[str, Fit], patience: int) -> None:
        self.fits, self.patience = fits, patience
        self._checking = 0.0  # seconds spent in validations
        for fit in fits.values():
            fit.task.validate = self._timed(fit.task.validate)

    @property
    def update(self) -> int:
        return min(fit.update for fit in self.fits.values())

    @property
    def stalled(self) -> bool:
        return self.patience > 0 and all(fit.stale >= self.patience for fit in self.fits.values())

    def __iter__(self) -> Iterator[Update]:
        steps = {kind: iter(fit) for kind, fit in self.fits.items()}
        while True:
            level = len({fit.update for fit in self.fits.values()}) == 1
            if level and self.stalled:
                return
            kind = min(self.fits, key=lambda name: self.fits[name].update)
            fit, start = self.fits[kind], time.perf_counter()
            best, before = fit.best_loss, self._checking
            report = next(steps[kind], None)
            if report is None:
                return
            seconds = time.perf_counter() - start - (self._checking - before)
            yield Update(kind, report, seconds, fit.best_loss < best)

    def _timed(self, validate: ValidateFn) -> ValidateFn:
        def timed() -> dict[str, float]:
            start = time.perf_counter()
            report = validate()
            self._checking += time.perf_counter() - start
            return report

        return timed


def fit_grid(
    model: GridModel,
    train: GridBuffer,
    optim: EpochsConfig,
    validate: ValidateFn,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """One of the two fits; early stopping is the pair's."""
    device = next(model.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train), optim.batch, generator)
        return model.loss(train.batch(index).to(device))

    task = Task(model, loss_fn, validate, model.after_update)
    settings = dataclasses.replace(optim.optim(len(train)), patience=0)
    return Fit(task, settings, seed=seed, precision=precision, folder=folder)


# --- goal-conditioned reward ------------------------------------------------------------------
class RewardRows(NamedTuple):
    """What the reward head reads of M transitions."""

    latents: Tensor  # (M, 3, D): now, next, goal
    imagined: Tensor  # (M, D): the model's own next latent
    reward: Tensor  # (M,)


@torch.no_grad()
def reward_rows(model: GridModel, data: GridBuffer) -> RewardRows:
    """Frozen latents of every transition, on the CPU."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    latents, imagined = [], []
    for index in torch.arange(len(data)).split(CHUNK):
        batch = data.batch(index).to(device)
        # One goal per episode: encode each once, and every state of a chunk in one pass.
        goals, which = batch.target_state.unique(dim=0, return_inverse=True)
        both = model.encode(torch.cat([batch.state, batch.next_state, goals]))
        now, after, goal = both.split([len(index), len(index), len(goals)])
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

    settings = optim.optim(len(train.reward))
    return Fit(Task(head, loss_fn, validate), settings, seed=seed, folder=folder)


@torch.no_grad()
def predict_reward(head: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """(M, 3, D) -> (M,), on the CPU."""
    device = next(head.parameters()).device
    return torch.cat([head(rows.to(device)).cpu() for rows in latents.split(1024)])
