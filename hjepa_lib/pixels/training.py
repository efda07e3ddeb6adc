"""One way to train on transitions: batches and noise are functions of (seed, update) alone.

The indices of the k-th batch are the first thing drawn from (seed, k), so all models of one seed
see the same transitions in the same order; noise (dropout) comes after them, from the same
generator, so a resumed training equals an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hjepa_lib.config.pixels import EpochsConfig
from hjepa_lib.pixels.transitions import Transitions, scaled
from hjepa_lib.training.loop import Fit, Task, draw_batch, mean_terms, seeded_noise

CHUNK = 256  # transitions encoded at once outside training: activations stay near 100 MB
Loss = Callable[[Any, torch.Generator], tuple[Tensor, dict[str, float]]]
"""(batch, what its noise is drawn from) -> (the scalar to minimise, named terms)."""


def passes(update: int, epoch: int) -> int:
    """Passes through the data after `update` updates, `epoch` to a pass; a cut one counts."""
    return -(-update // epoch)


def fit(
    module: nn.Module,
    loss: Loss,
    train: Any,
    validation: Any,
    optim: EpochsConfig,
    *,
    after_update: Callable[[], None] | None = None,
    most: int | None = None,
    **options: Any,
) -> Fit:
    """Iterate to train `module` in place on data of which `data[rows]` is a batch.

    Validated once an epoch, on `most` rows at most, if there is validation data. `options` are
    those of the loop: seed, precision, folder.
    """
    device = next(module.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = train[draw_batch(len(train), optim.batch, generator)]
        with seeded_noise(generator, device):
            return loss(batch, generator)

    def validate() -> dict[str, float]:
        return mean_loss(loss, validation, optim.batch, most)

    task = Task(module, loss_fn, None if validation is None else validate, after_update)
    return Fit(task, optim.optim(len(train)), **options)


@torch.no_grad()
def mean_loss(loss: Loss, data: Any, batch: int, most: int | None = None) -> dict[str, float]:
    """Loss and its terms over `data`, or `most` of its rows, weighted by rows.

    Batches are shuffled, always the same way, and about as large as in training: a spread or a
    covariance of neighbours in time, or of more rows, would be another quantity.
    """
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most]
    pieces = rows.tensor_split(max(1, len(rows) // batch))
    generator = torch.Generator().manual_seed(0)
    return mean_terms(((len(i), *loss(data[i], generator)) for i in pieces), len(rows))


def fit_pixels(
    model: Any, train: Transitions, validation: Transitions | None, optim: EpochsConfig,
    **options: Any,
) -> Fit:  # fmt: skip
    """Iterate to train `model` in place by its own `loss(batch)`."""
    device = next(model.parameters()).device

    def loss(batch: Any, _: Any) -> tuple[Tensor, dict[str, float]]:
        return model.loss(batch.to(device))

    return fit(model, loss, train, validation, optim, after_update=model.after_update, **options)


# --- the decoder of a frozen model (MOD-10) ----------------------------------------------------
@torch.no_grad()
def decoder_data(
    model: Any, data: Transitions, source: str, device: torch.device | str
) -> TensorDataset:
    """What a decoder reads, latents (M, D), and should show, the last frames of s_{t+1} (uint8)."""
    model.eval()
    batches = (data[rows].to(device) for rows in torch.arange(len(data)).split(CHUNK))
    latents = torch.cat([next_latent(model, batch, source) for batch in batches])
    return TensorDataset(latents, data.frames[data.after].to(device))


def next_latent(model: Any, batch: Any, source: str) -> Tensor:
    """(B, D) for a batch: `predictor` imagines s_{t+1}, `online` and `target` encode it."""
    if source == "predictor":
        return model.imagine(model.encode(batch.state), batch.action)
    named: Callable[[Tensor], Tensor] = getattr(model, f"encode_{source}", model.encode)
    return named(batch.next_state)


def fit_decoder(
    decoder: nn.Module, train: TensorDataset, validation: TensorDataset | None,
    optim: EpochsConfig, **options: Any,
) -> Fit:  # fmt: skip
    """Train `decoder` on latents that the frozen model computed once: the model cannot change."""

    def loss(batch: Any, _: Any) -> tuple[Tensor, dict[str, float]]:
        latent, frame = batch
        error = F.mse_loss(decoder(latent).float(), scaled(frame))
        return error, {"mse_reconstruction": error.item()}

    return fit(decoder, loss, train, validation, optim, **options)
