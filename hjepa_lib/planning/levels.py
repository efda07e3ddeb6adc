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

from hjepa_lib.config import ConfigError, PlannerConfig
from hjepa_lib.models.geometry import Geometry
from hjepa_lib.models.hjepa import Level2
from hjepa_lib.models.jepa import Jepa
from hjepa_lib.planning.costs import reduce_horizon

CHUNK = 4096  # candidates rolled out at once: their activations stay in the CPU's cache


def clip_norm(actions: Tensor, cap: float) -> Tensor:
    """(..., A) px -> same direction, Euclidean norm <= cap."""
    norm = actions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return actions * (cap / norm).clamp(max=1.0)


class Level(Protocol):
    """What the planner needs to know about one level."""

    config: PlannerConfig
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
        self, model: Level2, config: PlannerConfig, cap: float, clip: float, box: Tensor | None,
        level1: Jepa,
    ) -> None:  # fmt: skip
        self.model, self.config, self.cap, self.clip = model, config, cap, clip
        self.level1 = level1
        self.stride = model.config.step_skip
        self.space = {"none": "z", "concat": "actions", "only": "actions", "learned": "macro"}[
            model.config.actions
        ]
        chunk = self.stride * model.rssm.action_dim
        self.plan_dim = {"z": model.config.z_dim, "actions": chunk, "macro": model.rssm.macro_dim}[
            self.space
        ]
        self.box = box  # (2, macro_dim) low and high percentiles of training macro-actions

    def project(self, plans: Tensor) -> Tensor:
        if self.space == "actions":
            steps = plans.unflatten(-1, (self.stride, -1))  # (..., step_skip, A)
            return clip_norm(steps, self.cap).flatten(-2)
        if self.space == "macro" and self.box is not None:
            return torch.maximum(torch.minimum(plans, self.box[1]), self.box[0])
        return plans.clamp(-self.clip, self.clip) if self.clip > 0 else plans

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
    pieces = []
    for begin in range(0, batch * samples, CHUNK):
        part = slice(begin, begin + CHUNK)
        row = rows[part]
        spread = 0.0
        if level.config.disagreement > 0 and isinstance(level, PrimitiveLevel):
            members = level.members(start[row], flat[part], row)  # (K, M, H, D)
            latents = members.mean(0)
            spread = level.config.disagreement * members.var(0).mean(-1).sum(-1)  # (M,)
        else:
            latents = level.imagine(start[row], flat[part], row)  # (M, H, D)
        steps = geometry.between(geometry.embed(latents), goal[row][:, None])  # (M, H)
        pieces.append(reduce_horizon(steps, level.config) + spread)
    return torch.cat(pieces).reshape(batch, samples)
