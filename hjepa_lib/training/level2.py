"""Training of level 2: on stored latents of a frozen level 1, or both from scratch."""

from typing import Any

import torch
from torch import Tensor

from hjepa_lib.config import Config
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.distance import Geometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import HJepa, Level2
from hjepa_lib.training.latents import LatentBatch, LatentStore
from hjepa_lib.training.loop import Fit, Loss, Task, Terms, step_generator

VALIDATION_WINDOWS = 512


def train_level2(
    level2: Level2, level1: Jepa, store: LatentStore, validation: LatentStore | None, *,
    seed: int, **options: Any,
) -> Fit:  # fmt: skip
    """Iterate to train `level2` in place on stored latents of a frozen `level1`.

    Validation has the error with the posterior's z (`sim`), and with the prior's mean, which does
    not look ahead (`prior_sim`).
    """
    device, config = next(level2.parameters()).device, level2.config
    length = config.macro_steps * config.step_skip + 1
    for part in filter(None, (store, validation)):
        part.windows(length)  # short ones are refused now

    def error(batch: LatentBatch, generator: torch.Generator) -> Loss:
        actions = level1.normalise_actions(batch.actions.to(device))
        latents = batch.latents.to(device)
        return level2.loss(*level2.observe(latents, actions, generator, batch.scene))

    def loss_fn(generator: torch.Generator) -> Loss:
        return error(store.sample(config.optim.batch, length, generator), generator)

    def validate() -> Terms:
        generator = step_generator(seed, 0)
        batch = validation.sample(VALIDATION_WINDOWS, length, generator)
        total, terms = error(batch, generator)
        return {"loss": total, **terms, "prior_sim": prior_error(level2, level1, batch)}

    task = Task(level2, loss_fn, validation and validate)
    return Fit(task, config.optim, seed=seed, stage="l2", **options)


def prior_error(level2: Level2, level1: Jepa, batch: LatentBatch) -> Tensor:
    """MSE of one macro step predicted with the prior's mean z."""
    device = next(level2.parameters()).device
    actions = level1.normalise_actions(batch.actions.to(device))
    macros = level2.macro(level2.chunk_actions(actions)[:, :1])  # (B, 1, macro_dim)
    start = batch.latents[:, 0].to(device)
    predicted = level2.imagine(start, 1, macros, scene=batch.scene).predictions[:, 0]
    truth = batch.latents[:, level2.config.step_skip].to(device)
    return (predicted - truth).square().mean()


def train_joint(model: HJepa, train: Windows, config: Config, *, seed: int, **options: Any) -> Fit:
    """Both levels from scratch; windows must hold macro_steps * step_skip + 1 states."""
    device = next(model.parameters()).device

    def loss_fn(generator: torch.Generator) -> Loss:
        batch = train.sample(config.level1.optim.batch, generator, config.level1.layouts_per_batch)
        return model.loss(*model(batch.frames(device), batch.actions.to(device), generator))

    task = Task(model, loss_fn)
    return Fit(task, config.level1.optim, seed=seed, stage="l1", **options)


@torch.no_grad()
def macro_box(
    level2: Level2, level1: Jepa, store: LatentStore, inset: float = 0.1, share: float = 0.02
) -> Tensor | None:
    """HWM's percentile box of learned macro-actions: (2, macro_dim), low and high."""
    if level2.config.actions != "learned":
        return None
    length = level2.config.step_skip + 1
    windows = store.windows(length)
    pick = windows[:: max(1, len(windows) // 20_000)]
    # Scenes of so many windows would fill 20 GB in a giant maze.
    device = next(level2.parameters()).device
    actions = store.gather(pick, length, scene=False).actions.to(device)
    codes = level2.macro(level1.normalise_actions(actions)).float()  # (M, macro_dim)
    bounds = torch.quantile(codes, torch.tensor([share, 1 - share], device=device), dim=0)
    return torch.stack([bounds[0] + inset, bounds[1] - inset])


@torch.no_grad()
def typical_cost(geometry: Geometry, store: LatentStore, steps: int) -> float:
    """Median cost between states `steps` apart in the data: the scale of "near"."""
    windows = store.windows(steps + 1)
    pick = windows[:: max(1, len(windows) // 5_000)]
    start = geometry.embed(store.latents[pick].float())
    end = geometry.embed(store.latents[pick + steps].float())
    return float(geometry.between(start, end).median())
