"""Training of both stages of the V-JEPA 2 style model on the common loop.

Stage 2 reads latents that the frozen encoder made once. With T steps in a window, n = rollout_steps
and w = teacher_forcing its loss is

    TF = mean |p(z_0..z_t, a_0..a_t) - z_{t+1}|               every t, true latents in
    RO = mean |zhat_{t+1} - z_{t+1}|, t >= T - n              the last n steps, predictions fed back
    L2 = w TF + (1 - w) RO

The n fed-back steps follow T - n + 1 given ones. In training a share of those (all but the first)
is replaced by the model's own one-step predictions: `teacher_forcing_ratio` keeps the true latent.
Batch indices come first from (seed, update), as in every training on pixels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import PixelsConfig, Stage2Config
from hjepa_lib.pixels.training import CHUNK, budget
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, MaskedViT, WorldModel, draw_masks
from hjepa_lib.training.batches import draw_batch, mean_terms, seeded_noise
from hjepa_lib.training.loop import Fit, Task

HELD_OUT = 256  # states or windows of one validation at most: it takes as long as a few updates


class LatentWindows(NamedTuple):
    """Frozen latents of M transitions and where windows of T of them start (VJ-7)."""

    now: Tensor  # (M, D)
    then: Tensor  # (M, D)
    action: Tensor  # (M,) or (M, A)
    first: Tensor  # (W,) rows

    def windows(self, index: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """z_t (B, T, D), actions (B, T, ...), z_{t+1} (B, T, D) of the windows `index` (B,)."""
        rows = self.first[index.to(self.first.device), None]
        rows = rows + torch.arange(length, device=rows.device)
        return self.now[rows], self.action[rows], self.then[rows]


@torch.no_grad()
def encode_states(encoder: MaskedViT, data: Transitions, length: int) -> LatentWindows:
    """All latents of `data` from the frozen encoder: unmasked, without dropout or gradient (F4).

    s_{t+1} of a row is s_t of the next row of its episode, so only last rows need a second call.
    """
    encoder.eval()
    device = encoder.position.device

    def encode(rows: Tensor, part: str) -> Tensor:
        pieces = [getattr(data.batch(index), part) for index in rows.split(CHUNK)]
        return torch.cat([encoder(piece.to(device)) for piece in pieces])

    now = encode(torch.arange(len(data)), "state")
    last = torch.ones(len(data), dtype=torch.bool)
    last[:-1] = data.episode[1:] != data.episode[:-1]
    then = now.roll(-1, dims=0)
    then[last.to(device)] = encode(last.nonzero()[:, 0], "next_state")
    first = data.windows(length).to(device)
    return LatentWindows(now, then, data.action.to(device), first)


def fit_stage1(
    model: MaskedPrediction,
    train: Transitions,
    validation: Transitions | None,
    config: PixelsConfig,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate to train online encoder and predictor in place; the target follows them."""
    stage, device = config.vjepa2.stage1, next(model.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train), stage.optim.batch, generator)
        mask = draw_masks(len(index), model.online.patches, stage.mask, generator)
        state = train.batch(index).state.to(device)
        with seeded_noise(generator, device):
            return model.loss(state, mask.to(device))

    def validate() -> dict[str, float]:
        return masked_loss(model, validation, stage.mask)

    task = Task(model, loss_fn, None if validation is None else validate, model.after_update)
    settings = budget(stage.optim, len(train))
    return Fit(task, settings, seed=seed, precision=precision, folder=folder)


def spread_rows(count: int, most: int = HELD_OUT) -> Tensor:
    """At most `most` of `count` indices, evenly spread and always the same."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


@torch.no_grad()
def masked_loss(
    model: MaskedPrediction,
    data: Transitions,
    ratio: float,
    rows: Tensor | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Stage-1 loss in eval mode with `ratio` of the patches hidden, the same ones every time."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    rows = spread_rows(len(data)) if rows is None else rows

    def loss(index: Tensor) -> tuple[Tensor, dict[str, float]]:
        mask = draw_masks(len(index), model.online.patches, ratio, generator).to(device)
        return model.loss(data.batch(index).state.to(device), mask)

    found = mean_terms(((len(index), *loss(index)) for index in rows.split(CHUNK)), len(rows))
    model.train(was_training)
    return found


def rollout_start(stage: Stage2Config, length: int) -> int:
    """Index of the last given step before the roll-out; ConfigError when it does not fit."""
    if stage.rollout_steps > length:
        raise ConfigError(
            f"pixels.vjepa2.stage2.rollout_steps={stage.rollout_steps} does not fit into windows "
            f"of pixels.data.sequence={length} transitions"
        )
    return length - stage.rollout_steps


def stage2_loss(
    world: WorldModel,
    now: Tensor,
    action: Tensor,
    then: Tensor,
    stage: Stage2Config,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and terms of windows (B, T, ...); without a generator every given step is true."""
    steps = now.shape[1]
    start = rollout_start(stage, steps)
    forced = world(now, action)  # (B, T, D), z_1 .. z_T
    given = now[:, : start + 1]
    if generator is not None and start and stage.teacher_forcing_ratio < 1:
        draw = torch.rand(len(now), start, generator=generator)
        true = (draw < stage.teacher_forcing_ratio).to(now.device)[..., None]
        own = torch.where(true, given[:, 1:], forced[:, :start])
        given = torch.cat([given[:, :1], own], dim=1)
    imagined = world.rollout(given, action, stage.rollout_steps)
    teacher = F.l1_loss(forced, then)
    rollout = F.l1_loss(imagined, then[:, start:])
    total = stage.teacher_forcing * teacher + (1 - stage.teacher_forcing) * rollout
    return total, {"teacher_forcing": teacher.item(), "rollout": rollout.item()}


def fit_stage2(
    world: WorldModel,
    train: LatentWindows,
    validation: LatentWindows | None,
    config: PixelsConfig,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate to train the world model in place."""
    stage, length = config.vjepa2.stage2, config.data.sequence
    rollout_start(stage, length)
    device = next(world.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train.first), stage.optim.batch, generator)
        window = train.windows(index, length)
        with seeded_noise(generator, device):
            return stage2_loss(world, *window, stage, generator)

    def validate() -> dict[str, float]:
        return window_loss(world, validation, config)

    task = Task(world, loss_fn, None if validation is None else validate)
    settings = budget(stage.optim, len(train.first))
    return Fit(task, settings, seed=seed, precision=precision, folder=folder)


@torch.no_grad()
def window_loss(
    world: WorldModel, data: LatentWindows, config: PixelsConfig, rows: Tensor | None = None
) -> dict[str, float]:
    """Stage-2 loss and terms in eval mode; the given steps of the roll-out are all true."""
    was_training = world.training
    world.eval()
    rows = spread_rows(len(data.first)) if rows is None else rows

    def loss(index: Tensor) -> tuple[Tensor, dict[str, float]]:
        window = data.windows(index, config.data.sequence)
        return stage2_loss(world, *window, config.vjepa2.stage2)

    pieces = rows.tensor_split(math.ceil(len(rows) / CHUNK))
    found = mean_terms(((len(index), *loss(index)) for index in pieces), len(rows))
    world.train(was_training)
    return found
