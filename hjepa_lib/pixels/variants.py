"""Short trainings of JEPA's variants: what target mode and auxiliary loss do to the latents.

Prediction errors in different latents are no comparable numbers, so each is divided by the variance
of its own targets and stands next to "the latent stays as it is", and next to the spread: a
collapsed latent is predicted perfectly (F13).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.pixels.diagnostics import collapse_ratio, health
from hjepa_lib.pixels.models import PixelJepa
from hjepa_lib.pixels.registry import build_pixel_model
from hjepa_lib.pixels.training import fit_pixels
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.training.probes import effective_rank

VARIANTS = (
    ("default", "vicreg"), ("vjepa2", "vicreg"), ("none", "vicreg"), ("default", "barlow_twins"),
    ("default", "dino"), ("vjepa2", "none"),
)  # fmt: skip
"""(target mode, auxiliary loss); the last has EMA and stop-gradient alone against collapse."""
ROWS = 512  # validation transitions measured


class LatentErrors(NamedTuple):
    """Squared errors of next latents over the variance of the targets: 1 = always their mean."""

    predicted: float
    stay: float  # the target's latent of s_t taken for that of s_{t+1}


class Variant(NamedTuple):
    """One short training, measured on held-out transitions."""

    target: str
    auxiliary: str
    std: float  # mean over dimensions
    effective_rank: float
    collapse_ratio: float
    health: float
    predicted: float
    stay: float


@torch.no_grad()
def latent_errors(model: Any, batch: Any) -> LatentErrors:
    """Of one batch in evaluation mode; NaN for a latent without variance or a model without one."""
    before, target = model.encode_target(batch.state), model.encode_target(batch.next_state)
    variance = (target - target.mean(dim=0)).square().mean()
    imagined = model.imagine(model.encode(batch.state), batch.action)
    if imagined is None or variance < 1e-12:
        return LatentErrors(float("nan"), float("nan"))
    errors = [((z - target).square().mean() / variance).item() for z in (imagined, before)]
    return LatentErrors(*errors)


def some_rows(data: Transitions, count: int = ROWS, seed: int = 0) -> torch.Tensor:
    """Indices of at most `count` transitions from all over `data`, always the same ones."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return order[:count]


def vary(config: PixelsConfig, target: str, auxiliary: str) -> PixelsConfig:
    """`config` with another target mode and auxiliary loss."""
    return dataclasses.replace(
        config,
        jepa=dataclasses.replace(config.jepa, target=target),
        auxiliary=dataclasses.replace(config.auxiliary, kind=auxiliary),
    )


def try_variants(
    config: PixelsConfig,
    train: Transitions,
    validation: Transitions,
    updates: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    variants: Sequence[tuple[str, str]] = VARIANTS,
) -> Iterator[Variant]:
    """Train each variant for `updates` updates from the same start and yield what it became."""
    batch = validation.batch(some_rows(validation)).to(device)
    optim = dataclasses.replace(config.optim_of("jepa"), updates=updates)
    for target, auxiliary in variants:
        torch.manual_seed(seed)
        model: PixelJepa = build_pixel_model("jepa", vary(config, target, auxiliary), train)
        model.to(device)
        for _ in fit_pixels(model, train, None, optim, seed=seed, precision=precision):
            pass
        model.eval()
        with torch.no_grad():
            # In `default` the encoder that learns is the online one; its slow copy lags behind.
            z = model.encode_online(batch.state).cpu()
        yield Variant(
            target, auxiliary, z.std(dim=0).mean().item(), float(effective_rank(z)),
            collapse_ratio(z), health([z]), *latent_errors(model, batch),
        )  # fmt: skip
