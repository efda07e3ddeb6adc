"""A level of planning = a model that imagines, the space its plans live in, and a cost.

Flat and hierarchical planning are the same code with a different stack of levels (planner.py).
`PrimitiveLevel` plans actions in px with level 1; `MacroLevel` plans macro-steps with level 2, in
one of three spaces: the prior's standardised z (models without actions), concatenated primitive
actions, or learned macro-actions bounded by a percentile box of training data (HWM).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hjepa_lib.config import ConfigError, PlannerConfig, SearchConfig
from hjepa_lib.models.geometry import Geometry
from hjepa_lib.models.joint import Level2
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.planning.costs import reduce_horizon

CHUNK = 4096  # candidates rolled out at once, at most
FEWEST = 512  # below this, matrix products get slower
NUMBERS = 1 << 22  # of one chunk's latents (H * D each): 16 MB, near the CPU's cache


def clip_norm(actions: Tensor, cap: float) -> Tensor:
    """(..., A) px -> same direction, Euclidean norm <= cap."""
    norm = actions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return actions * (cap / norm).clamp(max=1.0)


class Level(Protocol):
    """What the planner needs to know about one level."""

    config: SearchConfig
    plan_dim: int
    stride: int  # environment steps per planned step

    def project(self, plans: Tensor) -> Tensor:
        """(..., A) -> the same, inside the allowed convex set."""
        ...

    def imagine(self, start: Tensor, plans: Tensor) -> Tensor:
        """start (M, D), plans (M, H, A) -> latents (M, H, D)."""
        ...


class PrimitiveLevel:
    """Level 1: one action per environment step, norm <= cap px."""

    stride = 1

    def __init__(
        self, model: Jepa, config: PlannerConfig, cap: float, level2: Level2 | None
    ) -> None:
        if config.disagreement > 0 and len(model.predictors) == 1:
            raise ConfigError("a planner's disagreement cost needs level1.predictors > 1")
        self.model, self.config, self.cap = model, config, cap
        self.plan_dim = 2
        self.level2 = level2
        self.context: Tensor | None = None  # (B, H2, A) conditioning by level 2's last plan
        self.elapsed = 0  # environment steps since that plan

    def project(self, plans: Tensor) -> Tensor:
        return clip_norm(plans, self.cap)

    def _hooks(self, rows: Tensor | None, horizon: int) -> dict:
        feedback = None if self.level2 is None else self.level2.feedback
        if self.context is None or rows is None:
            return {"feedback": feedback}
        # Beyond level 2's horizon its last macro-step holds on.
        steps = (self.elapsed + torch.arange(horizon, device=rows.device)).clamp(
            max=self.context.shape[1] - 1
        )
        return {"feedback": feedback, "context": self.context[rows[:, None], steps]}

    def imagine(self, start: Tensor, plans: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean over the ensemble; `rows` (M,) says which trial a candidate belongs to."""
        hooks = self._hooks(rows, plans.shape[1])
        if len(self.model.predictors) == 1:
            return self.model.rollout(start, plans, **hooks)[:, 1:]
        return self.members(start, plans, rows).mean(0)

    def members(self, start: Tensor, plans: Tensor, rows: Tensor | None = None) -> Tensor:
        """(K, M, H, D), one roll-out per ensemble member."""
        hooks = self._hooks(rows, plans.shape[1])
        return self.model.rollout_members(start, plans, **hooks)[:, :, 1:]


class MacroLevel:
    """Level 2: one macro-step is `step_skip` environment steps."""

    def __init__(
        self, model: Level2, config: SearchConfig, cap: float, clip: float, box: Tensor | None,
        level1: Jepa, reachable: float = 0.0,
    ) -> None:  # fmt: skip
        self.model, self.config, self.cap, self.clip = model, config, cap, clip
        self.level1, self.reachable = level1, reachable
        self.stride = model.config.step_skip
        self.space = {"none": "z", "concat": "actions", "only": "actions", "learned": "macro"}[
            model.config.actions
        ]
        chunk = self.stride * model.rssm.action_dim
        self.plan_dim = {"z": model.rssm.z_width, "actions": chunk, "macro": model.rssm.macro_dim}[
            self.space
        ]
        self.box = box  # (2, macro_dim) low and high percentiles of training macro-actions

    def project(self, plans: Tensor) -> Tensor:
        if self.space == "actions":
            steps = plans.unflatten(-1, (self.stride, -1))  # (..., step_skip, A)
            return clip_norm(steps, self.cap).flatten(-2)
        if self.clip == 0:
            return plans
        if self.space == "macro" and self.box is not None:
            return torch.maximum(torch.minimum(plans, self.box[1]), self.box[0])
        return plans.clamp(-self.clip, self.clip)

    def macros(self, plans: Tensor) -> Tensor | None:
        """Plans (M, H, A) in this level's space -> what the GRU is fed, or None."""
        if self.space == "z":
            return None
        if self.space == "macro":
            return plans
        steps = plans.unflatten(-1, (self.stride, -1))  # (M, H, step_skip, A) px
        return self.model.rssm.macro(self.level1.normalise_actions(steps))

    def imagine_states(self, start: Tensor, plans: Tensor):
        """Predictions and z of a prior roll-out (models/rssm.py, Imagined)."""
        noise = plans if self.space == "z" else None
        return self.model.imagine(start, plans.shape[1], self.macros(plans), noise)

    def imagine(self, start: Tensor, plans: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.imagine_states(start, plans).predictions


def chunk_rows(horizon: int, dim: int) -> int:
    """Candidates rolled out at once: fewer for long plans in wide latents."""
    return min(CHUNK, max(FEWEST, NUMBERS // (horizon * dim)))


def unreachable(level: MacroLevel, geometry: Geometry, start: Tensor, path: Tensor) -> Tensor:
    """How far an imagined path asks for more than level 1 can do: start (M, D), path (M, H, E).

    (M,) sum over macro-steps of (d - stride)^2 / stride, in steps, where consecutive ones are d >
    stride steps apart. A decoder may jump through a wall; the distance knows the way round.
    """
    before = torch.cat([geometry.embed(start)[:, None], path[:, :-1]], 1)  # (M, H, E)
    excess = (geometry.between(before, path) - level.stride).clamp(min=0)  # (M, H)
    return excess.square().sum(-1) / level.stride


def plan_costs(
    level: PrimitiveLevel | MacroLevel,
    geometry: Geometry,
    start: Tensor,
    plans: Tensor,
    goal: Tensor,
) -> Tensor:
    """start (B, D), plans (B, N, H, A), goal (B, E) embedded -> costs (B, N)."""
    batch, samples = plans.shape[:2]
    rows = torch.arange(batch, device=plans.device).repeat_interleave(samples)  # (B*N,)
    flat = plans.flatten(0, 1)  # (B*N, H, A)
    pieces, size = [], chunk_rows(plans.shape[2], start.shape[-1])
    for begin in range(0, batch * samples, size):
        part = slice(begin, begin + size)
        row = rows[part]
        spread = 0.0
        if isinstance(level, PrimitiveLevel) and level.config.disagreement > 0:
            members = level.members(start[row], flat[part], row)  # (K, M, H, D)
            latents = members.mean(0)
            spread = level.config.disagreement * members.var(0).mean(-1).sum(-1)  # (M,)
        else:
            latents = level.imagine(start[row], flat[part], row)  # (M, H, D)
        path = geometry.embed(latents)  # (M, H, E)
        costs = geometry.between(path, goal[row][:, None])  # (M, H)
        extra = spread
        if isinstance(level, MacroLevel) and level.reachable > 0 and geometry.in_steps:
            extra = level.reachable * unreachable(level, geometry, start[row], path)
        pieces.append(reduce_horizon(costs, level.config, geometry.in_steps) + extra)
    return torch.cat(pieces).reshape(batch, samples)
