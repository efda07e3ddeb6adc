"""From per-step costs over the planned horizon to one number per candidate.

The forms compared in architectures section 5 (sum, last, closest approach, weighted last k), plus
`last_mean`, the last step with a share of the horizon mean. Entry 0 is the first predicted step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa_lib.config import PlannerConfig


def reduce_horizon(costs: Tensor, config: PlannerConfig) -> Tensor:
    """Per-step costs (..., H) -> (...) by `config.form`."""
    if config.form == "sum":
        return costs.sum(-1)
    if config.form == "last":
        return costs[..., -1]
    if config.form == "closest":
        return costs.amin(-1)
    if config.form == "last_k":
        tail = costs[..., -config.last_k :]
        weights = torch.linspace(0.1, 1, tail.shape[-1], device=costs.device)
        return (tail * weights).sum(-1) / weights.sum()
    return costs[..., -1] + config.mean_weight * costs.mean(-1)
