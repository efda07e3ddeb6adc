"""Model-predictive planning with one or two levels, batched over trials.

Flat: level 1 plans straight to the goal. Hierarchical (HWM, arXiv 2604.03208, with an RSSM on top):
level 2 plans macro-steps to the goal, its first predicted latent is the sub-goal of level 1; once
the goal is near, level 1 goes straight to it. Level 2 changes executed actions, and the
built-in controls (zero, shuffle, perturb) show how much (F2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.config import HierarchyConfig, PlannerConfig
from hjepa_lib.models.geometry import Geometry
from hjepa_lib.planning.levels import MacroLevel, PrimitiveLevel, plan_costs
from hjepa_lib.planning.optimisers import OPTIMISERS, Search, shift_plan


class Plan(NamedTuple):
    """One planning call for B trials."""

    actions: Tensor  # (B, H, A) px
    search: Search  # level-1 candidates and costs
    macro: Tensor | None  # (B, H2, D) level-2 imagined latents, None when flat
    subgoal: Tensor | None  # (B, D) the latent handed to level 1, None when flat
    near: Tensor  # (B,) bool: level 1 aims at the goal itself
    transitions: int  # level-1 plus level-2 model transitions spent per trial


class Planner:
    """Owns the generator and every level's warm start; call `reset` before each episode batch."""

    def __init__(
        self,
        level1: PrimitiveLevel,
        geometry: Geometry,
        seed: int,
        level2: MacroLevel | None = None,
        hierarchy: HierarchyConfig | None = None,
        reach: float = 0.0,
    ) -> None:
        """`reach`: cost between latents step_skip steps apart; the scale of `hierarchy.near`."""
        self.level1, self.level2, self.geometry = level1, level2, geometry
        self.hierarchy, self.reach, self.seed = hierarchy, reach, seed
        self.generator = torch.Generator()
        self.reset()

    def reset(self) -> None:
        """Forget warm starts and restart the noise: equal episodes give equal plans."""
        self.generator.manual_seed(self.seed)
        self.nominal1: Tensor | None = None
        self.nominal2: Tensor | None = None
        self.subgoal: Tensor | None = None
        self.macro: Tensor | None = None
        self.since_level2 = self.since_macro = 0

    def plan(self, latent: Tensor, goal: Tensor, executed: int) -> Plan:
        """latent, goal (B, D); `executed` environment steps since the last call, 0 at first."""
        with torch.no_grad():
            if self.level2 is None:
                near = torch.ones(len(latent), dtype=torch.bool, device=latent.device)
                search = self._level1(latent, self.geometry.embed(goal), executed)
                return Plan(search.plan, search, None, None, near, _spent(self.level1.config))
            return self._hierarchical(latent, goal, executed)

    def _level1(self, latent: Tensor, target: Tensor, executed: int) -> Search:
        """target (B, E) embedded goal."""
        self.nominal1 = _warm(self.nominal1, latent, self.level1, executed)
        search = self._search(self.level1, latent, target, self.nominal1)
        self.nominal1 = search.plan
        return search

    def _search(self, level, latent: Tensor, target: Tensor, nominal: Tensor) -> Search:
        optimise = OPTIMISERS[level.config.method]
        return optimise(
            lambda plans: plan_costs(level, self.geometry, latent, plans, target),
            level.project,
            nominal,
            level.config,
            self.generator,
        )

    def _hierarchical(self, latent: Tensor, goal: Tensor, executed: int) -> Plan:
        embedded = self.geometry.embed(goal)
        spent = _spent(self.level1.config)
        self.since_level2 += executed
        self.since_macro += executed
        if self.macro is None or self.since_level2 >= self.hierarchy.replan:
            self._plan_level2(latent, embedded)
            spent += _spent(self.level2.config)
        here = self.geometry.between(self.geometry.embed(latent), embedded)  # (B,)
        near = here <= self.hierarchy.near * self.reach
        target = torch.where(near[:, None], embedded, self.geometry.embed(self.subgoal))
        self.level1.elapsed = self.since_level2
        search = self._level1(latent, target, executed)
        return Plan(search.plan, search, self.macro, self.subgoal, near, spent)

    def _plan_level2(self, latent: Tensor, embedded_goal: Tensor) -> None:
        level, control = self.level2, self.hierarchy.control
        shifted = self.since_macro // level.stride
        self.nominal2 = _warm(self.nominal2, latent, level, shifted)
        plan = self._search(level, latent, embedded_goal, self.nominal2).plan
        if control == "zero":
            plan = torch.zeros_like(plan)
        self.nominal2 = plan
        self.since_level2, self.since_macro = 0, self.since_macro % level.stride
        imagined = level.imagine_states(latent, plan)
        self.macro, self.subgoal = imagined.predictions, imagined.predictions[:, 0]
        self.level1.context = level.model.context(imagined.z)
        if control == "shuffle":
            order = torch.randperm(len(plan), generator=self.generator)
            self.subgoal = self.subgoal[order.to(plan.device)]
        if control == "perturb":
            noise = torch.randn(self.subgoal.shape, generator=self.generator).to(plan.device)
            self.subgoal = self.subgoal + noise * self.subgoal.std()


def _warm(nominal: Tensor | None, latent: Tensor, level, executed: int) -> Tensor:
    """The shifted previous plan, or zeros at the start of an episode."""
    if nominal is None:
        return latent.new_zeros(len(latent), level.config.horizon, level.plan_dim)
    return shift_plan(nominal, executed)


def _spent(config: PlannerConfig) -> int:
    """Model transitions per trial of one search."""
    return config.samples * config.iterations * config.horizon
