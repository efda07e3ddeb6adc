"""Training of the pixel models on transitions: one loop, the same batches for every model.

The indices of the k-th batch are the first thing drawn from (seed, k), so all models of one seed
see the same transitions in the same order; noise (dropout) comes after them, from the same
generator, so a resumed training equals an uninterrupted one. A fixed number of updates
(`updates` above 0) is spent whole: models stopped early at different times had different budgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import OptimConfig
from hjepa_lib.config.pixels import EpochsConfig
from hjepa_lib.pixels.models import PixelModel
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.training.batches import draw_batch, mean_terms, seeded_noise
from hjepa_lib.training.loop import Fit, Task

CHUNK = 256  # transitions encoded at once outside training: activations stay near 100 MB


def budget(optim: EpochsConfig, rows: int) -> OptimConfig:
    """The loop's settings; early stopping belongs to budgets in epochs only."""
    settings = optim.optim(rows)
    return dataclasses.replace(settings, patience=0) if optim.updates else settings


def passes(update: int, epoch: int) -> int:
    """Passes through the data after `update` updates, `epoch` to a pass; a cut one counts."""
    return -(-update // epoch)


@torch.no_grad()
def mean_loss(
    model: nn.Module, data: Transitions, batch: int, device: torch.device
) -> dict[str, float]:
    """Loss and its terms over all of `data`, weighted by rows.

    Batches are shuffled (always the same way) and about as large as in training: a spread or a
    covariance of neighbours in time, or of more rows, would be another quantity.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    pieces = order.tensor_split(max(1, len(data) // batch))
    losses = ((len(index), *model.loss(data.batch(index).to(device))) for index in pieces)
    return mean_terms(losses, len(data))


def fit_pixels(
    model: nn.Module,
    train: Transitions,
    validation: Transitions | None,
    optim: EpochsConfig,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate to train `model` in place by its own `loss(batch)`; validated once an epoch."""
    device = next(model.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = train.batch(draw_batch(len(train), optim.batch, generator)).to(device)
        with seeded_noise(generator, device):
            return model.loss(batch)

    def validate() -> dict[str, float]:
        return mean_loss(model, validation, optim.batch, device)

    task = Task(model, loss_fn, None if validation is None else validate, model.after_update)
    settings = budget(optim, len(train))
    return Fit(task, settings, seed=seed, precision=precision, folder=folder)


# --- the decoder of a frozen model (MOD-10) ----------------------------------------------------
class DecoderData(NamedTuple):
    """What a decoder reads and should show, for M transitions; nothing carries gradient."""

    latent: Tensor  # (M, D)
    transitions: Transitions


@torch.no_grad()
def decoder_data(
    model: Any, data: Transitions, source: str, device: torch.device | str
) -> DecoderData:
    """Latents of s_{t+1} from a frozen `model`: imagined, or encoded online or by the target."""
    model.eval()
    pieces = []
    for index in torch.arange(len(data)).split(CHUNK):
        batch = data.batch(index).to(device)
        pieces.append(next_latent(model, batch, source))
    return DecoderData(torch.cat(pieces), data)


def next_latent(model: Any, batch: Any, source: str) -> Tensor:
    """(B, D) for a batch: `predictor` imagines s_{t+1}, `online` and `target` encode it."""
    if source == "predictor":
        return model.imagine(model.encode(batch.state), batch.action)
    named: Callable[[Tensor], Tensor] = getattr(model, f"encode_{source}", model.encode)
    return named(batch.next_state)


def newest_frames(data: Transitions, index: Tensor, device: torch.device | str) -> Tensor:
    """The last frames of s_{t+1} (B, C, H, W) in [0, 1]."""
    return PixelModel.scaled(data.batch(index).next_state[:, -1].to(device))


def fit_decoder(
    decoder: nn.Module,
    train: DecoderData,
    validation: DecoderData | None,
    optim: EpochsConfig,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Train `decoder` on latents that the frozen model computed once: the model cannot change."""
    device = next(decoder.parameters()).device

    def error(part: DecoderData, index: Tensor) -> Tensor:
        frame = decoder(part.latent[index.to(device)])
        return F.mse_loss(frame.float(), newest_frames(part.transitions, index, device))

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train.latent), optim.batch, generator)
        with seeded_noise(generator, device):
            loss = error(train, index)
        return loss, {"mse_reconstruction": loss.item()}

    def validate() -> dict[str, float]:
        rows = len(validation.latent)
        pieces = torch.arange(rows).split(CHUNK)
        mse = sum(error(validation, index).item() * len(index) / rows for index in pieces)
        return {"loss": mse, "mse_reconstruction": mse}

    task = Task(decoder, loss_fn, None if validation is None else validate)
    settings = budget(optim, len(train.latent))
    return Fit(task, settings, seed=seed, precision=precision, folder=folder)
