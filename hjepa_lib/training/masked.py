"""Masked pre-training of level 1's `vit`: predict the latent of a frame from part of its patches.

Stage 1 of seed 002, after V-JEPA 2 (arXiv 2506.09985), on single frames:

    L = | MLP(enc(x with hidden patches)) - sg(enc_slow(x)) |_1

A share `level1.pretrain_mask` of the patches is replaced by a learned token, the target is the
latent of the whole frame under a slow copy (EMA, .996 per update). Token, MLP and slow copy are of
no use afterwards: only the encoder's weights stay. Nothing in L forbids a constant latent, so
validation reports spread and rank beside it; the level-1 training that follows has its own guards.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from hjepa_lib.config import Level1Config
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.layers import draw_masks, mlp, update_ema
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.training.loop import Fit, Task, step_generator
from hjepa_lib.training.probes import effective_rank

DECAY = 0.996
HIDDEN = 256
LR, WEIGHT_DECAY = 1e-4, 0.05
"""Of seed 002's stage 1."""
VALIDATION_WINDOWS = 32


class Masked(nn.Module):
    """What pre-training optimises; `encoder` is level 1's own."""

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

    def update_slow(self) -> None:
        """theta_slow <- .996 theta_slow + .004 theta."""
        update_ema(self.slow, self.encoder, DECAY)


def pretrain_level1(
    model: Jepa,
    train: Windows,
    validation: Windows | None,
    config: Level1Config,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate over the result to train the encoder of `model` in place; see training/loop.py."""
    device = next(model.parameters()).device
    optim = dataclasses.replace(
        config.optim,
        updates=config.pretrain_updates,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        clip=1.0,
        patience=0,
    )
    masked = Masked(model).to(device)
    patches = model.encoder.patches.count

    def drawn(source: Windows, windows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        frames = source.sample(windows, generator).frames(device).flatten(0, 1)
        hidden = draw_masks(len(frames), patches, config.pretrain_mask, generator)
        return frames, hidden.to(device)

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        loss = masked.loss(model, *drawn(train, optim.batch, generator))
        return loss, {"masked_l1": loss.item()}

    def validate() -> dict[str, float]:
        frames, hidden = drawn(validation, VALIDATION_WINDOWS, step_generator(seed, 0))
        latents = model.encode(frames).float()
        return {
            # No key "loss": it falls to 0 under collapse, so it must not choose weights.
            "masked_l1": masked.loss(model, frames, hidden).item(),
            "latent_std": float(latents.std(0).mean()),
            "effective_rank": effective_rank(latents.cpu()),
        }

    task = Task(masked, loss_fn, None if validation is None else validate, masked.update_slow)
    return Fit(task, optim, seed=seed, precision=precision, folder=folder, stage="l1_pretrain")
