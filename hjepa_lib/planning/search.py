"""Plan optimisers, batched over trials: MPPI and CEM.

`project` leads into a convex set, so that weighted means of candidates stay inside it (EB1). A
candidate without a finite cost has no say.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.config import SearchConfig

Objective = Callable[[Tensor], Tensor]
"""Candidates (B, N, H, A) -> costs (B, N)."""
Project = Callable[[Tensor], Tensor]
Noise = Callable[[int, tuple[int, ...]], Tensor]
"""(draw, shape) -> standard normal (B, *shape), each row its trial's own."""


class Search(NamedTuple):
    """Outcome of one optimisation over B trials; candidates and costs of the last iteration."""

    plan: Tensor  # (B, H, A)
    candidates: Tensor  # (B, N, H, A)
    costs: Tensor  # (B, N), infinite where they were not finite
    effective: Tensor  # (B,) 1 / sum of squared weights: so many made the plan; NaN where lost

    @property
    def lost(self) -> Tensor:
        """(B,) bool: no candidate has a finite cost."""
        return self.costs.isinf().all(1)


def softmin_weights(costs: Tensor, temperature: float, unit: str = "spread") -> Tensor:
    """softmax(-(cost - min) / (temperature * unit)) of (B, N) costs; 0 for what is not finite (Q1).

    MPPI of Williams et al. 2017. The temperature divides: 0 is the arg-min, infinity the plain mean
    (EB3). The unit `spread`, a trial's standard deviation of costs, fits both geometries; else 1.
    """
    costs = _finite(costs)
    known, gap = costs.isfinite(), costs - costs.amin(dim=1, keepdim=True)
    if temperature == 0:
        return (gap == 0).float() / (gap == 0).sum(1, keepdim=True).clamp(min=1)
    scale = _spread(costs, known).clamp(min=1e-8) if unit == "spread" else 1.0
    logits = torch.where(known, -gap / (temperature * scale), -torch.inf)
    return torch.softmax(logits, dim=1).nan_to_num(0.0)


def _finite(costs: Tensor) -> Tensor:
    return torch.where(costs.isfinite(), costs, torch.inf)


def _spread(costs: Tensor, known: Tensor) -> Tensor:
    """(B, 1) standard deviation of the known costs."""
    if known.all():
        return costs.std(dim=1, keepdim=True)
    count = known.sum(1, keepdim=True)
    mean = costs.where(known, 0).sum(1, keepdim=True) / count.clamp(min=1)
    square = (costs - mean).square().where(known, 0).sum(1, keepdim=True)
    return (square / (count - 1).clamp(min=1)).sqrt()


def shift_plan(plan: Tensor, executed: int) -> Tensor:
    """Warm start: plan (B, H, A) without its executed steps, zeros at the end (PL3)."""
    kept = plan[:, executed:]
    return torch.nn.functional.pad(kept, (0, 0, 0, plan.shape[1] - kept.shape[1]))


def search(
    objective: Objective, project: Project, nominal: Tensor, config: SearchConfig, noise: Noise
) -> Search:
    """A plan near nominal (B, H, A), itself candidate 0, by `config.method`; the old one if lost.

    `mppi`: softmin-weighted mean, one spread. `cem`: mean and spread of the elites.
    """
    rows = torch.arange(len(nominal), device=nominal.device)[:, None]
    spread = torch.full_like(nominal, config.sigma)
    for iteration in range(config.iterations):
        shape = (config.samples, *nominal.shape[1:])
        offsets = spread[:, None] * noise(iteration, shape).to(nominal.device)
        offsets[:, 0] = 0
        candidates = project(nominal[:, None] + offsets)
        costs = _finite(objective(candidates))
        if config.method == "mppi":
            weights = softmin_weights(costs, config.temperature, config.temperature_unit)
            effective = 1 / weights.square().sum(1).clamp(min=1e-12)
            # Elementwise: under autocast a matrix product would round past the norm bound.
            mean = project((weights[:, :, None, None] * candidates).sum(1))
        else:
            elites = min(config.elites, config.samples)
            values, best = costs.topk(elites, dim=1, largest=False)  # (B, E)
            effective = values.isfinite().sum(1).float()
            chosen = candidates[rows, torch.where(values.isinf(), best[:, :1], best)]
            mean, spread = chosen.mean(1), chosen.std(1, unbiased=False).clamp(min=1e-3)
            mean = project(mean)
        found = Search(nominal, candidates, costs, effective)
        nominal = torch.where(found.lost[:, None, None], nominal, mean)
    effective = found.effective.masked_fill(found.lost, torch.nan)  # Q1: no plan, no number
    return found._replace(plan=nominal, effective=effective)
