"""Training of level 1: windows of positions -> rendered frames -> roll-out -> loss terms.

Validation runs on one fixed batch of held-out trajectories and reports, next to the loss, what a
loss cannot show: collapse (mean std and effective rank of the latents), how well a ridge regression
reads position and layout (px), and how far open-loop predictions drift (px, by the same probe).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hjepa_lib.config import Level1Config
from hjepa_lib.data.windows import WindowBatch, Windows
from hjepa_lib.models.level1 import Jepa, Rollout
from hjepa_lib.models.objectives import layout_identity, loss_terms, weighted_sum
from hjepa_lib.training import distributed
from hjepa_lib.training.loop import Fit, Task, step_generator
from hjepa_lib.training.probes import effective_rank, fit_ridge, rmse_px

VALIDATION_WINDOWS = 128


def train_level1(
    model: Jepa,
    train: Windows,
    validation: Windows | None,
    config: Level1Config,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate over the result to train `model` in place; see training/loop.py."""
    device = next(model.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = train.sample(config.optim.batch, generator, config.layouts_per_batch)
        return level1_loss(model, batch, device)

    def validate() -> dict[str, float]:
        batch = validation.sample(VALIDATION_WINDOWS, step_generator(seed, 0))
        return validate_level1(model, batch, device)

    task = Task(model, loss_fn, None if validation is None else validate, model.update_target)
    return Fit(
        task, config.optim, seed=seed, precision=precision, folder=folder, stage="l1", shared=True
    )


def level1_loss(
    model: Jepa, batch: WindowBatch, device: torch.device
) -> tuple[Tensor, dict[str, float]]:
    """Weighted loss and the unweighted named terms of one batch of windows.

    Under torchrun each process encodes its own rows, and the terms are those of all rows together.
    """
    own = distributed.own_rows(batch)
    rollout = distributed.gather_rollout(model(own.frames(device), own.actions.to(device)))
    loss, terms = _objective(model, rollout, batch)
    return loss, {name: value.item() for name, value in terms.items()}


def _objective(
    model: Jepa, rollout: Rollout, batch: WindowBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    config = model.config
    six = loss_terms(rollout, config.loss.form, model.idm, config.static_dim)
    loss, terms = weighted_sum(six, config.loss), six._asdict()
    if config.static_dim:
        part = rollout.encodings[..., : config.static_dim]  # (B, T, S)
        terms["static"] = layout_identity(part, batch.layout.numbers().to(part.device))
        loss = loss + config.loss.static * terms["static"]
    return loss, terms


def validate_level1(model: Jepa, batch: WindowBatch, device: torch.device) -> dict[str, float]:
    """Loss terms, collapse metrics and ridge probes of one held-out batch."""
    frames = batch.frames(device)
    rollout = model(frames, batch.actions.to(device))
    loss, terms = _objective(model, rollout, batch)
    latents = rollout.encodings  # (B, T, D)
    flat = latents.flatten(0, 1).cpu()
    half = len(batch.positions) // 2 * batch.positions.shape[1]
    position = batch.positions.flatten(0, 1)
    probe = fit_ridge(flat[:half], position[:half])
    ahead = rollout.predictions.mean(0).cpu()  # (B, T', D)
    predicted = probe(ahead.flatten(0, 1)).view(*ahead.shape[:2], 2)
    truth = batch.positions[:, : ahead.shape[1]]
    drift = (predicted - truth)[len(truth) // 2 :].square().sum(-1)  # (B/2, T')
    report = {
        "loss": loss.item(),
        **{name: value.item() for name, value in terms.items()},
        "latent_std": float(flat.std(0).mean()),
        "effective_rank": effective_rank(flat),
        "probe_position_px": rmse_px(probe(flat[half:]), position[half:]),
        "open_loop_px": float(drift[:, -1].mean().sqrt()),
    }
    layout = torch.stack([batch.layout.wall_x, batch.layout.door_y], -1)  # (B, 2)
    if len(layout.unique(dim=0)) > 1:
        repeated = layout.repeat_interleave(batch.positions.shape[1], 0)
        found = fit_ridge(flat[:half], repeated[:half])(flat[half:])
        for axis, name in enumerate(("wall_x", "door_y")):
            gap = found[:, axis] - repeated[half:, axis]
            report[f"probe_{name}_px"] = float(gap.square().mean().sqrt())
    return report
