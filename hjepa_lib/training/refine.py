"""Refinement of level 1's predictors alone, on stored latents of the finished encoder.

While both are trained together the encoder moves, every update renders and encodes frames, and the
predictor sees few steps. Afterwards its targets stand still and an update is five times cheaper:
sharp walls need that. Held-out random layouts, 3,000 common updates: pushed at the wall five times,
the imagined dot walked through in 34 % of cases, after 3,000 refining updates in 2 % (seed 0);
seed 1 needed 4,000 more to come from 18 to 1 %, so the preset `random_layouts` takes 8,000.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from hjepa_lib.config import Level1Config
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.objectives import similarity
from hjepa_lib.training.latents import LatentBatch, LatentStore
from hjepa_lib.training.loop import Fit, Task, step_generator

STEPS = 3
"""Steps of the roll-outs in the loss: a wall is met within a few, and each costs a prediction."""
BATCH = 512
VALIDATION_WINDOWS = 2048


def refine_predictors(
    model: Jepa,
    store: LatentStore,
    validation: LatentStore | None,
    config: Level1Config,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate over the result to train the predictors of `model` in place; see training/loop.py.

    The loss is the similarity term over the moving part, mean over the ensemble. Learning rate,
    schedule and clipping are those of `level1.optim`; batch, patience and weight decay are not.
    Stored latents are (M, D), actions px. ValueError when no trajectory has `STEPS` steps.
    """
    device = next(model.parameters()).device
    first = store.windows(STEPS + 1)
    if not len(first):
        raise ValueError(f"refinement needs trajectories of {STEPS + 1} states; these are shorter")
    optim = dataclasses.replace(
        config.optim, updates=config.refine_updates, batch=BATCH, weight_decay=0.0, patience=0
    )

    def error(batch: LatentBatch) -> Tensor:
        latents, actions = batch.latents.to(device), batch.actions.to(device)
        ahead = torch.stack(
            [model.rollout(latents[:, 0], actions, member) for member in range(config.predictors)]
        )  # (K, B, STEPS + 1, D)
        return similarity(ahead[..., config.static_dim :], latents[..., config.static_dim :])

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        loss = error(store.sample(first, BATCH, STEPS + 1, generator))
        return loss, {"sim": loss.item()}

    def validate() -> dict[str, float]:
        among, generator = validation.windows(STEPS + 1), step_generator(seed, 0)
        found = error(validation.sample(among, VALIDATION_WINDOWS, STEPS + 1, generator)).item()
        return {"loss": found, "sim": found}

    task = Task(model.predictors, loss_fn, None if validation is None else validate)
    return Fit(task, optim, seed=seed, precision=precision, folder=folder, stage="l1_refine")
