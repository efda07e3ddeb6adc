"""From per-step costs over the planned horizon to one number per candidate.

The forms compared in architectures section 5 (sum, last, closest approach, weighted last k), plus
`last_mean`, the last step with a share of the horizon mean. Entry 0 is the first predicted step.

`auto` follows the geometry. A cost that counts steps adds up: its sum asks for speed. The latent
cost is only trusted close to the goal, so there the closest approach decides (validation trials of
two training seeds: with last_mean the hierarchy solved 52 and 46 of 60, with closest 57 and 54).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa_lib.config import SearchConfig


def reduce_horizon(costs: Tensor, config: SearchConfig, in_steps: bool) -> Tensor:
    """Per-step costs (..., H) -> (...) by `config.form`; `in_steps`: the cost counts steps."""
    form = config.form
    if form == "auto":
        form = "sum" if in_steps else "closest"
    if form == "sum":
        return costs.sum(-1)
    if form == "last":
        return costs[..., -1]
    if form == "closest":
        return costs.amin(-1)
    if form == "last_k":
        tail = costs[..., -config.last_k :]
        weights = torch.linspace(0.1, 1, tail.shape[-1], device=costs.device)
        return (tail * weights).sum(-1) / weights.sum()
    return costs[..., -1] + config.mean_weight * costs.mean(-1)
