"""Temporal-distance head: how many environment steps lie between two level-1 latents.

    metric:       d(s, g) = || phi(s) - phi(g) ||_2    (symmetric, a metric by construction)
    quasimetric:  d(s, g) = max_i relu(phi_i(g) - phi_i(s)) + mean_i relu(phi_i(g) - phi_i(s))

trained on frozen latents, by default with expectile regression on an n-step bootstrapped target,
the idea of HILP (Park et al. 2024; training/paths.py is the other teacher): with V = -d,

    target = -(1 - gamma^n) / (1 - gamma) - gamma^n * dbar(s_{t+n}, g)     (0 at the goal)
    loss   = L2_tau(target - V(s_t, g)) + relu(d(s_t, s_{t+k}) - k)^2,  k <= n

dbar is an EMA copy. The second term uses that k steps never cost more than k. Unlike HILP there is
no policy and no value ensemble: the head is only a planning cost.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import DistanceConfig
from hjepa_lib.models.layers import mlp, update_ema


class DistanceTerms(NamedTuple):
    """Scalars of one update."""

    expectile: Tensor
    excess: Tensor  # squared steps by which close pairs are over-estimated


class Distance(nn.Module):
    """phi: (..., D) latents -> (..., dim) embedding in which distance means steps."""

    def __init__(self, config: DistanceConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.phi = mlp(
            latent_dim, config.hidden, config.hidden, config.dim, activation=nn.GELU, norm=True
        )
        # Only differences of embeddings are used: a bias would cancel and never learn.
        self.phi[-1] = nn.Linear(config.hidden, config.dim, bias=False)

    def embed(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., dim) float32."""
        return self.phi(latents).float()

    def between(self, start: Tensor, goal: Tensor) -> Tensor:
        """Distance of embeddings (..., dim), broadcast -> (...) in environment steps."""
        if self.config.form == "metric":
            # sqrt has no gradient at 0, where start and goal coincide
            return ((start - goal).square().sum(-1) + 1e-6).sqrt()
        gap = F.relu(goal - start)
        return gap.amax(-1) + gap.mean(-1)

    def forward(self, start: Tensor, goal: Tensor) -> Tensor:
        """Latents (..., D), (..., D) -> (...) environment steps."""
        return self.between(self.embed(start), self.embed(goal))

    def slow_copy(self) -> Distance:
        """The EMA copy that bootstraps the target; owned by the training code."""
        return copy.deepcopy(self).requires_grad_(False)


def distance_terms(
    head: Distance,
    slow: Distance,
    now: Tensor,
    later: Tensor,
    goal: Tensor,
    steps: Tensor,
    at_goal: Tensor,
) -> DistanceTerms:
    """One batch of (s_t, s_{t+k}, g).

    now, later, goal: (M, D) latents; steps: (M,) the k between now and later, 1 <= k <= n, smaller
    than n only when the goal is reached on the way (then later is the goal); at_goal: (M,) bool.
    """
    config = head.config
    phi_now, phi_later, phi_goal = head.embed(torch.stack([now, later, goal])).unbind(0)
    predicted = head.between(phi_now, phi_goal)  # (M,)
    discount = config.gamma**steps
    with torch.no_grad():
        bootstrap = slow(later, goal).masked_fill(at_goal, 0.0)
        passed = (1 - discount) / (1 - config.gamma) if config.gamma < 1 else steps
        target = -(passed + discount * bootstrap)
    gap = target + predicted  # advantage: target - V
    weight = torch.where(gap > 0, config.expectile, 1 - config.expectile)
    excess = F.relu(head.between(phi_now, phi_later) - steps).square().mean()
    return DistanceTerms((weight * gap.square()).mean(), excess)


def update_slow(slow: Distance, head: Distance) -> None:
    """theta_slow <- theta_slow + rate * (theta - theta_slow)."""
    update_ema(slow, head, 1 - head.config.ema_rate)
