"""Plan optimisers, batched over trials: MPPI, CEM and gradient descent on the candidates.

All three minimise `objective(candidates (B, N, H, A)) -> (B, N)` inside a convex set given by
`project` (an action-norm ball, a box), so weighted means of candidates stay inside it (EB1).
MPPI follows Williams et al. 2017 with weights softmax(-(cost - min) / (temperature * unit)); the
unit is a trial's standard deviation of costs, so one temperature fits both cost geometries, or 1 as
in the papers. The temperature DIVIDES: 0 is the arg-min, infinity the plain mean (EB3). Nominal
plans live outside, so warm starts are explicit (PL3), and so does the noise.
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
    costs: Tensor  # (B, N) of the last iteration


def softmin_weights(costs: Tensor, temperature: float, unit: str = "spread") -> Tensor:
    """(B, N) costs -> (B, N) weights that sum to one."""
    gap = costs - costs.amin(dim=1, keepdim=True)
    if temperature == 0:
        return (gap == 0).float() / (gap == 0).sum(1, keepdim=True)
    scale = costs.std(dim=1, keepdim=True).clamp(min=1e-8) if unit == "spread" else 1.0
    return torch.softmax(-gap / (temperature * scale), dim=1)


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
        costs = objective(candidates)
        weights = softmin_weights(costs, config.temperature, config.temperature_unit)
        # Elementwise, not einsum: under autocast a matrix product would round past the norm bound.
        nominal = project((weights[:, :, None, None] * candidates).sum(1))  # (B, H, A)
    return Search(nominal, candidates, costs)


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
        costs = objective(candidates)
        best = costs.topk(elites, dim=1, largest=False).indices  # (B, E)
        chosen = candidates[torch.arange(len(best), device=best.device)[:, None], best]
        nominal, std = project(chosen.mean(1)), chosen.std(1, unbiased=False).clamp(min=1e-3)
    return Search(nominal, candidates, costs)


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
        costs = objective(candidates)
    rows = torch.arange(len(costs), device=costs.device)
    return Search(candidates[rows, costs.argmin(1)], candidates, costs)


def evaluations(config: SearchConfig) -> int:
    """How often a search asks for the costs of all its candidates."""
    return config.iterations + (config.method == "gradient")  # and once more, for the last step


OPTIMISERS = {"mppi": mppi, "cem": cem, "gradient": gradient}
