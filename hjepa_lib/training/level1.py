"""Training of level 1: masked pre-training of `vit`, level 1 itself, refinement of its predictors.

`options` of every training in this folder are those of its `Fit`: precision, folder.
"""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_lib.data.windows import WindowBatch, Windows
from hjepa_lib.models.layers import draw_masks, mlp, update_ema
from hjepa_lib.models.level1 import Jepa, Rollout
from hjepa_lib.models.objectives import layout_identity, loss_terms, similarity, weighted_sum
from hjepa_lib.training import distributed
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.loop import Fit, Loss, Task, Terms, held_out, step_generator
from hjepa_lib.training.probes import effective_rank, fit_ridge, rmse_px

VALIDATION_WINDOWS = 128
Objective = Callable[[Jepa, Rollout, WindowBatch], Loss]


def level1_objective(model: Jepa, rollout: Rollout, batch: WindowBatch) -> Loss:
    """Weighted loss and the unweighted named terms; with a static part also `static`."""
    config = model.config
    terms = loss_terms(rollout, config.loss, model.idm, config.static_dim)
    loss = weighted_sum(terms, config.loss)
    if config.static_dim:
        part = rollout.encodings[..., : config.static_dim]  # (B, T, S)
        terms["static"] = layout_identity(part, batch.layout.numbers().to(part.device))
        loss = loss + config.loss.static * terms["static"]
    return loss, terms


def train_level1(
    model: Jepa, train: Windows, validation: Windows | None, *, seed: int,
    objective: Objective = level1_objective, **options: Any,
) -> Fit:  # fmt: skip
    """Iterate over the result to train `model` in place, by an own `objective` if there is one.

    Under torchrun each process encodes its own rows, and the objective is that of all together.
    """
    device, config = next(model.parameters()).device, model.config

    def loss_fn(generator: torch.Generator) -> Loss:
        batch = train.sample(config.optim.batch, generator, config.layouts_per_batch)
        own = distributed.own_rows(batch)
        rollout = distributed.gather_rollout(model(own.frames(device), own.actions.to(device)))
        return objective(model, rollout, batch)

    def validate() -> Terms:
        batch = validation.sample(VALIDATION_WINDOWS, step_generator(seed, 0))
        rollout = model(batch.frames(device), batch.actions.to(device))
        loss, terms = objective(model, rollout, batch)
        return {"loss": loss, **terms, **quality(rollout, batch)}

    task = Task(model, loss_fn, validation and validate)
    return Fit(task, config.optim, seed=seed, stage="l1", shared=True, **options)


def quality(rollout: Rollout, batch: WindowBatch) -> dict[str, float]:
    """Collapse; px that a ridge of half the batch errs in the other, now and in open loops."""
    places = batch.world.xy(batch.positions)
    steps = places.shape[1]
    flat = rollout.encodings.flatten(0, 1).cpu()  # (B * T, D)
    half = len(places) // 2 * steps
    position = places.flatten(0, 1)
    probe = fit_ridge(flat[:half], position[:half])
    ahead = rollout.predictions.mean(0).cpu()  # (B, T', D)
    predicted = probe(ahead.flatten(0, 1)).unflatten(0, ahead.shape[:2])
    truth = places[:, : ahead.shape[1]]
    drift = (predicted - truth)[len(truth) // 2 :].square().sum(-1)  # (B/2, T')
    report = {
        "latent_std": float(flat.std(0).mean()),
        "effective_rank": effective_rank(flat),
        "probe_position_px": rmse_px(probe(flat[half:]), position[half:]),
        "open_loop_px": float(drift[:, -1].mean().sqrt()),
    }
    if not places.shape[-1]:  # of a recording that does not say where it is
        return {name: value for name, value in report.items() if not name.endswith("_px")}
    return report


DECAY, HIDDEN, LR, WEIGHT_DECAY = 0.996, 256, 1e-4, 0.05  # of seed 002's stage 1
MASKED_WINDOWS = 32  # of a validation


class Masked(nn.Module):
    """Seed 002's stage 1: L = | MLP(enc(x, patches hidden)) - sg(enc_slow(x)) |_1.

    As in arXiv 2506.09985; `encoder` is level 1's own.
    """

    def __init__(self, level1: Jepa) -> None:
        super().__init__()
        dim, width = level1.latent_dim, level1.config.width
        self.encoder = level1.encoder
        self.slow = copy.deepcopy(level1.encoder).requires_grad_(False)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.predictor = mlp(dim, HIDDEN, HIDDEN, dim, activation=nn.GELU)

    def loss(self, level1: Jepa, frames: Tensor, hidden: Tensor) -> Tensor:
        """frames (M, C, Hpx, Wpx) uint8, hidden (M, N) bool -> mean absolute error."""
        seen = level1.encode(frames, lambda x: self.encoder(x, hidden, self.token))
        with torch.no_grad():
            target = level1.encode(frames, self.slow)
        return (self.predictor(seen).float() - target).abs().mean()


def pretrain_level1(
    model: Jepa, train: Windows, validation: Windows | None, *, seed: int, **options: Any
) -> Fit:
    """Iterate to train the encoder of `model` in place."""
    device, config = next(model.parameters()).device, model.config
    own = {"updates": config.pretrain_updates, "lr": LR, "weight_decay": WEIGHT_DECAY, "clip": 1.0}
    optim = dataclasses.replace(config.optim, patience=0, **own)
    masked = Masked(model).to(device)
    patches = model.encoder.patches.count

    def drawn(source: Windows, windows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        frames = source.sample(windows, generator).frames(device).flatten(0, 1)
        hidden = draw_masks(len(frames), patches, config.pretrain_mask, generator)
        return frames, hidden.to(device)

    def loss_fn(generator: torch.Generator) -> Loss:
        loss = masked.loss(model, *drawn(train, optim.batch, generator))
        return loss, {"masked_l1": loss}

    def validate() -> Terms:
        frames, hidden = drawn(validation, MASKED_WINDOWS, step_generator(seed, 0))
        latents = model.encode(frames)
        return {
            # No key "loss": it falls to 0 under collapse, so it must not choose weights.
            "masked_l1": masked.loss(model, frames, hidden),
            "latent_std": latents.std(0).mean(),
            "effective_rank": effective_rank(latents.cpu()),
        }

    follow = partial(update_ema, masked.slow, masked.encoder, DECAY)
    task = Task(masked, loss_fn, validation and validate, follow)
    return Fit(task, optim, seed=seed, stage="l1_pretrain", **options)


REFINE_STEPS = 3  # of the roll-outs in the loss: a wall is met within a few
REFINE_BATCH = 512
REFINE_WINDOWS = 2048  # of a validation


def refine_predictors(
    model: Jepa, store: LatentStore, validation: LatentStore | None, *, seed: int, **options: Any
) -> Fit:
    """Iterate to train the predictors of `model` in place, on latents that no longer change.

    By the similarity of the moving part, with the rate, schedule and clipping of `level1.optim`.
    """
    device, config = next(model.parameters()).device, model.config
    own = {"updates": config.refine_updates, "batch": REFINE_BATCH, "weight_decay": 0.0}
    optim = dataclasses.replace(config.optim, patience=0, **own)

    def loss(source: LatentStore, rows: int, generator: torch.Generator) -> Loss:
        batch = source.sample(rows, REFINE_STEPS + 1, generator)
        latents, actions = batch.latents.to(device), batch.actions.to(device)
        ahead = model.rollout_members(latents[:, 0], actions)  # (K, B, REFINE_STEPS + 1, D)
        found = similarity(ahead[..., config.static_dim :], latents[..., config.static_dim :])
        return found, {"sim": found}

    check = validation and held_out(partial(loss, validation, REFINE_WINDOWS), seed)
    task = Task(model.predictors, partial(loss, store, REFINE_BATCH), check)
    return Fit(task, optim, seed=seed, stage="l1_refine", **options)
