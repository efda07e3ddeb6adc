"""One way to train on transitions: batches and noise are functions of (seed, update) alone.

The indices of the k-th batch are the first thing drawn from (seed, k), so all models of one seed
see the same transitions in the same order; noise (dropout) comes after them, from the same
generator, so a resumed training equals an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import OptimConfig
from hjepa_lib.config.pixels import EpochsConfig
from hjepa_lib.pixels.transitions import Transitions, scaled
from hjepa_lib.training.batches import draw_batch, mean_terms, seeded_noise
from hjepa_lib.training.loop import Fit, Task

CHUNK = 256  # transitions encoded at once outside training: activations stay near 100 MB
Loss = Callable[[Any, Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]
"""(data, rows (B,), what its noise is drawn from) -> (the scalar to minimise, named terms)."""


def budget(optim: EpochsConfig, rows: int) -> OptimConfig:
    """The loop's settings; a fixed number of updates is spent whole, whatever the patience."""
    settings = optim.optim(rows)
    return dataclasses.replace(settings, patience=0) if optim.updates else settings


def passes(update: int, epoch: int) -> int:
    """Passes through the data after `update` updates, `epoch` to a pass; a cut one counts."""
    return -(-update // epoch)


def fit(
    module: nn.Module,
    loss: Loss,
    train: Sized,
    validation: Sized | None,
    optim: EpochsConfig,
    *,
    after_update: Callable[[], None] | None = None,
    most: int | None = None,
    **options: Any,
) -> Fit:
    """Iterate to train `module` in place; validated once an epoch on `most` rows at most.

    `options` are those of the loop: seed, precision, folder.
    """
    device = next(module.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train), optim.batch, generator)
        with seeded_noise(generator, device):
            return loss(train, index, generator)

    def validate() -> dict[str, float]:
        return mean_loss(loss, validation, optim.batch, most)

    task = Task(module, loss_fn, None if validation is None else validate, after_update)
    return Fit(task, budget(optim, len(train)), **options)


@torch.no_grad()
def mean_loss(loss: Loss, data: Sized, batch: int, most: int | None = None) -> dict[str, float]:
    """Loss and its terms over `data`, or `most` of its rows, weighted by rows.

    Batches are shuffled, always the same way, and about as large as in training: a spread or a
    covariance of neighbours in time, or of more rows, would be another quantity.
    """
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most]
    pieces = rows.tensor_split(max(1, len(rows) // batch))
    generator = torch.Generator().manual_seed(0)
    losses = ((len(index), *loss(data, index, generator)) for index in pieces)
    return mean_terms(losses, len(rows))


def fit_pixels(
    model: Any, train: Transitions, validation: Transitions | None, optim: EpochsConfig,
    **options: Any,
) -> Fit:  # fmt: skip
    """Iterate to train `model` in place by its own `loss(batch)`."""
    device = next(model.parameters()).device

    def loss(data: Transitions, index: Tensor, _: Any) -> tuple[Tensor, dict[str, float]]:
        return model.loss(data.batch(index).to(device))

    return fit(model, loss, train, validation, optim, after_update=model.after_update, **options)


# --- the decoder of a frozen model (MOD-10) ----------------------------------------------------
@dataclass(frozen=True)
class DecoderData:
    """What a decoder reads and should show, for M transitions; nothing carries gradient."""

    latent: Tensor  # (M, D)
    transitions: Transitions

    def __len__(self) -> int:
        return len(self.latent)


@torch.no_grad()
def decoder_data(
    model: Any, data: Transitions, source: str, device: torch.device | str
) -> DecoderData:
    """Latents of s_{t+1} from a frozen `model`: imagined, or encoded online or by the target."""
    model.eval()
    pieces = torch.arange(len(data)).split(CHUNK)
    latents = [next_latent(model, data.batch(index).to(device), source) for index in pieces]
    return DecoderData(torch.cat(latents), data)


def next_latent(model: Any, batch: Any, source: str) -> Tensor:
    """(B, D) for a batch: `predictor` imagines s_{t+1}, `online` and `target` encode it."""
    if source == "predictor":
        return model.imagine(model.encode(batch.state), batch.action)
    named: Callable[[Tensor], Tensor] = getattr(model, f"encode_{source}", model.encode)
    return named(batch.next_state)


def fit_decoder(
    decoder: nn.Module, train: DecoderData, validation: DecoderData | None, optim: EpochsConfig,
    **options: Any,
) -> Fit:  # fmt: skip
    """Train `decoder` on latents that the frozen model computed once: the model cannot change."""

    def loss(data: DecoderData, index: Tensor, _: Any) -> tuple[Tensor, dict[str, float]]:
        latent = data.latent[index.to(data.latent.device)]
        frame = scaled(data.transitions.batch(index).next_state[:, -1].to(latent.device))
        error = F.mse_loss(decoder(latent).float(), frame)
        return error, {"mse_reconstruction": error.item()}

    return fit(decoder, loss, train, validation, optim, **options)
