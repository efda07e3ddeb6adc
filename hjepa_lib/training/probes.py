"""What a latent knows: ridge and position probes of frozen latents (px), collapse metrics."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hjepa_lib.config import OptimConfig
from hjepa_lib.models.distance import Probe
from hjepa_lib.models.layers import full_precision
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.loop import Fit, Loss, Task, draw_batch

PROBE_OPTIM = OptimConfig(
    updates=1000, batch=1024, lr=1e-3, weight_decay=0.0, warmup=0.05, validate_every=1000
)

LEAST = 0.1
"""Share of the untrained encoder's numbers below which a latent has collapsed (X5)."""
FLAT = 1e-12  # a variance below this share of the mean square is rounding


def effective_rank(latents: Tensor) -> float:
    """exp(entropy of the singular values' shares) of centred (M, D); Roy & Vetterli 2007."""
    values = torch.linalg.svdvals((latents - latents.mean(0)).float())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))


def collapse(latents: Tensor, untrained: Tensor) -> dict[str, Any]:
    """Whether latents (M, D) have collapsed: the one rule, free of units (X5).

    `varying`, variance over mean square, and effective rank must be a tenth or more of those of the
    untrained encoder's latents. `collapsed` says why not, or "".
    """
    found, floor = ({} for _ in range(2))
    for values, z in ((found, latents), (floor, untrained)):
        z = z.cpu().double()
        if not z.isfinite().all():
            return {"varying": math.nan, "effective_rank": math.nan,
                    "collapsed": "latents are not finite"}  # fmt: skip
        varying = float(z.var(0, correction=0).sum() / z.square().sum(1).mean().clamp(min=1e-30))
        values["varying"] = varying if varying > FLAT else 0.0
        values["effective_rank"] = effective_rank(z) if varying > FLAT else 1.0
    low = [name for name, value in found.items() if value < LEAST * floor[name]]
    why = [f"{name} {found[name]:.2g}, untrained {floor[name]:.2g}" for name in low]
    return found | {"collapsed": "; ".join(why).replace("_", " ")}


def fit_ridge(
    latents: Tensor, targets: Tensor, strength: float = 1e-3
) -> Callable[[Tensor], Tensor]:
    """Closed-form linear probe: latents (M, D), targets (M, P) -> function of (M', D).

    On the CPU, in float64 (S7), without autocast (Q4).
    """
    latents, targets = latents.cpu(), targets.cpu()
    mean, centre = latents.mean(0), targets.mean(0)
    x, y = (latents - mean).double(), (targets - centre).double()
    eye = torch.eye(x.shape[1], dtype=x.dtype) * strength * len(x)
    with full_precision(x):
        weights = torch.linalg.solve(x.T @ x + eye, x.T @ y).float()  # (D, P)

    def read(values: Tensor) -> Tensor:
        with full_precision(weights):
            return (values.cpu().float() - mean) @ weights + centre

    return read


def train_probe(
    model: Jepa, train: LatentStore, validation: LatentStore | None, seed: int
) -> tuple[Probe, dict[str, float]]:
    """The position probe on frozen encodings, and its RMSE (px) on held-out trajectories.

    Else on the training data (D2); {} where no position is known.
    """
    validation = validation or train
    device = next(model.parameters()).device
    mean, std = model.normaliser.position_mean, model.normaliser.position_std
    with torch.random.fork_rng(devices=[]):  # its start must not depend on what was drawn before
        torch.manual_seed(seed)
        probe = Probe((model.latent_dim, 256, len(mean)), mean, std)
    probe.to(device)
    if not train.positions.shape[1]:  # a recording that does not say where it is: nor does this
        probe.mean.fill_(torch.nan)
        return probe.eval().requires_grad_(False), {}

    def loss_fn(generator: torch.Generator) -> Loss:
        pick = draw_batch(len(train.latents), PROBE_OPTIM.batch, generator)
        latents, positions = train.latents[pick].float(), train.positions[pick]
        return probe.loss(latents.to(device), positions.to(device)), {}

    # A level 1 of a smoke run gets a probe of the same kind: no 1,000 updates after 15 of its own.
    updates = min(PROBE_OPTIM.updates, 10 * model.config.optim.updates)
    for _ in Fit(Task(probe, loss_fn), replace(PROBE_OPTIM, updates=updates), seed=seed):
        pass
    probe.eval().requires_grad_(False)
    found = probe(validation.latents.float().to(device)).cpu()
    return probe, {"probe_px_encoder": rmse_px(found, validation.positions)}


def rmse_px(predicted: Tensor, true: Tensor) -> float:
    """Root mean squared Euclidean error of (M, 2) positions, px."""
    return float((predicted - true).square().sum(-1).mean().sqrt())
