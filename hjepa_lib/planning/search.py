"""Plan optimisers, batched over trials: MPPI, CEM and gradient descent on the candidates.

All three minimise `objective(candidates (B, N, H, A)) -> (B, N)` inside a convex set given by
`project` (an action-norm ball, a box), so weighted means of candidates stay inside it (EB1).
MPPI follows Williams et al. 2017 with weights softmax(-(cost - min) / (temperature * unit)); the
unit is a trial's standard deviation of costs, so one temperature fits both cost geometries, or 1 as
in the papers. The temperature DIVIDES: 0 is the arg-min, infinity the plain mean (EB3). Nominal
plans live outside, so warm starts are explicit (PL3), and so does the noise. A candidate without a
finite cost has no say; a trial without a finite candidate keeps its nominal plan and is `lost`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.config import SearchConfig

Objective = Callable[[Tensor], Tensor]
Project = Callable[[Tensor], Tensor]
Noise = Callable[[int, tuple[int, ...]], Tensor]
"""(draw, shape) -> standard normal (B, *shape), each row its trial's own."""


class Search(NamedTuple):
    """Outcome of one optimisation over B trials."""

    plan: Tensor  # (B, H, A)
    candidates: Tensor  # (B, N, H, A) of the last iteration
    costs: Tensor  # (B, N) of the last iteration, infinite where they were not finite
    effective: Tensor  # (B,) 1 / sum of squared weights: so many candidates made the plan

    @property
    def lost(self) -> Tensor:
        """(B,) bool: no candidate has a finite cost."""
        return self.costs.isinf().all(1)


def softmin_weights(costs: Tensor, temperature: float, unit: str = "spread") -> Tensor:
    """(B, N) costs -> (B, N) weights that sum to one; 0 for what is not finite (Q1)."""
    known = costs.isfinite()
    gap = torch.where(known, costs - _finite(costs).amin(dim=1, keepdim=True), torch.inf)
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


def _keep(lost: Tensor, nominal: Tensor, plan: Tensor) -> Tensor:
    """The old plan where the search is lost: lost (B,), plans (B, H, A)."""
    return torch.where(lost[:, None, None], nominal, plan)


def shift_plan(plan: Tensor, executed: int) -> Tensor:
    """Warm start: drop the executed steps, fill the end with zeros. plan (B, H, A)."""
    kept = plan[:, executed:]
    return torch.cat(
        [kept, plan.new_zeros(len(plan), plan.shape[1] - kept.shape[1], plan.shape[2])], 1
    )


def _candidates(
    nominal: Tensor, spread: Tensor | float, samples: int, noise: Noise, draw: int
) -> Tensor:
    """(B, H, A) -> (B, N, H, A) around it; candidate 0 is the nominal plan itself."""
    offsets = spread * noise(draw, (samples, *nominal.shape[1:])).to(nominal.device)
    offsets[:, 0] = 0
    return nominal[:, None] + offsets


def mppi(
    objective: Objective,
    project: Project,
    nominal: Tensor,
    config: SearchConfig,
    noise: Noise,
) -> Search:
    """nominal (B, H, A); the nominal plan itself is always candidate 0."""
    for draw in range(config.iterations):
        candidates = project(_candidates(nominal, config.sigma, config.samples, noise, draw))
        costs = _finite(objective(candidates))
        weights = softmin_weights(costs, config.temperature, config.temperature_unit)
        # Elementwise, not einsum: under autocast a matrix product would round past the norm bound.
        mean = project((weights[:, :, None, None] * candidates).sum(1))  # (B, H, A)
        search = Search(mean, candidates, costs, 1 / weights.square().sum(1).clamp(min=1e-12))
        nominal = _keep(search.lost, nominal, mean)
    return search._replace(plan=nominal)


def cem(
    objective: Objective,
    project: Project,
    nominal: Tensor,
    config: SearchConfig,
    noise: Noise,
) -> Search:
    """Cross-entropy method: refit mean and std on the elites; executes the mean."""
    std = torch.full_like(nominal, config.sigma)
    elites = min(config.elites, config.samples)
    for draw in range(config.iterations):
        candidates = project(_candidates(nominal, std[:, None], config.samples, noise, draw))
        costs = _finite(objective(candidates))
        values, best = costs.topk(elites, dim=1, largest=False)  # (B, E)
        search = Search(nominal, candidates, costs, values.isfinite().sum(1).float())
        best = torch.where(values.isinf(), best[:, :1], best)
        chosen = candidates[torch.arange(len(best), device=best.device)[:, None], best]
        nominal = _keep(search.lost, nominal, project(chosen.mean(1)))
        std = chosen.std(1, unbiased=False).clamp(min=1e-3)
    return search._replace(plan=nominal)


def gradient(
    objective: Objective,
    project: Project,
    nominal: Tensor,
    config: SearchConfig,
    noise: Noise,
) -> Search:
    """Adam on N noisy copies of the nominal plan, projected after every step; the best one wins."""
    with torch.enable_grad():
        plans = project(_candidates(nominal, config.sigma, config.samples, noise, 0))
        plans = plans.detach().requires_grad_()
        optimiser = torch.optim.Adam([plans], lr=config.lr)
        for _ in range(config.iterations):
            optimiser.zero_grad()
            objective(plans).sum().backward()
            optimiser.step()
            with torch.no_grad():
                plans.copy_(project(plans))
    candidates = plans.detach()
    with torch.no_grad():
        costs = _finite(objective(candidates))
    search = Search(nominal, candidates, costs, torch.ones_like(costs[:, 0]))
    rows = torch.arange(len(candidates), device=candidates.device)
    best = candidates[rows, search.costs.argmin(1)]
    return search._replace(plan=_keep(search.lost, nominal, best))


def evaluations(config: SearchConfig) -> int:
    """How often a search asks for the costs of all its candidates."""
    return config.iterations + (config.method == "gradient")  # and once more, for the last step


OPTIMISERS = {"mppi": mppi, "cem": cem, "gradient": gradient}
