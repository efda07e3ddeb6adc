"""Model-predictive planning with a stack of levels, batched over trials.

Flat: level 1 plans straight to the goal. Hierarchical (HWM, arXiv 2604.03208, with an RSSM on top):
every macro level, on a clock of its own, plans macro-steps to what the level above hands down, and
its first predicted latent is the sub-goal of the level below; once the goal is near, the level
below goes straight to it. Level 2 changes executed actions, and the built-in controls (zero,
shuffle, perturb) show how much (F2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.config import HierarchyConfig, SearchConfig
from hjepa_lib.models.geometry import Geometry
from hjepa_lib.planning.levels import MacroLevel, PrimitiveLevel, plan_costs
from hjepa_lib.planning.search import OPTIMISERS, Search, shift_plan
from hjepa_lib.worlds.base import trial_noise


class Plan(NamedTuple):
    """One planning call for B trials."""

    actions: Tensor  # (B, H, A) px
    search: Search  # level-1 candidates and costs
    macro: Tensor | None  # (B, H2, D) level-2 imagined latents, None when flat
    subgoal: Tensor | None  # (B, D) the latent handed to level 1, None when flat
    near: Tensor  # (B,) bool: level 1 aims at the goal itself
    transitions: int  # model transitions of all levels spent per trial
    above: tuple[tuple[Tensor, Tensor], ...] = ()  # `macro` and `subgoal` of level 3 and up


class Command:
    """A macro level at work: its clock, its warm start and what it hands down."""

    def __init__(self, level: MacroLevel, replan: int, reach: float) -> None:
        """`replan`: environment steps between plans; `reach`: cost between latents one macro-step
        apart, the scale of `hierarchy.near`."""
        self.level, self.replan, self.reach = level, replan, reach
        self.reset()

    def reset(self) -> None:
        self.nominal: Tensor | None = None  # (B, H, A)
        self.macro: Tensor | None = None  # (B, H, D) imagined latents
        self.path: Tensor | None = None  # (B, H, D) the same, after the controls
        self.since_plan = self.since_macro = 0  # environment steps

    @property
    def subgoal(self) -> Tensor:
        """(B, D): the next latent of the path; an old plan's first ones have gone by."""
        passed = self.since_plan // self.level.stride
        return self.path[:, min(passed, self.path.shape[1] - 1)]

    def due(self, executed: int) -> bool:
        """Moves the clock by `executed` steps: is it time for a new plan?"""
        self.since_plan += executed
        self.since_macro += executed
        return self.macro is None or self.since_plan >= self.replan


class Planner:
    """Owns the generator and every level's warm start; call `reset` before each episode batch."""

    def __init__(
        self,
        level1: PrimitiveLevel,
        geometry: Geometry,
        seed: int,
        commands: Sequence[Command] = (),
        hierarchy: HierarchyConfig | None = None,
    ) -> None:
        """`commands`: the macro levels from level 2 upwards, none for flat planning."""
        self.level1, self.commands, self.geometry = level1, tuple(commands), geometry
        self.hierarchy, self.seed = hierarchy, seed
        self.reset()

    @property
    def level2(self) -> MacroLevel | None:
        return self.commands[0].level if self.commands else None

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget warm starts and restart the noise: equal episodes give equal plans.

        `rows` (B,) are the trials' numbers, to which the noise belongs; None counts from 0.
        """
        self.rows, self.step = rows, 0
        self.nominal1: Tensor | None = None
        for command in self.commands:
            command.reset()

    def plan(self, latent: Tensor, goal: Tensor, executed: int) -> Plan:
        """latent, goal (B, D); `executed` environment steps since the last call, 0 at first."""
        if self.rows is None:
            self.rows = range(len(latent))
        self.step += executed
        with torch.no_grad():
            embedded = target = self.geometry.embed(goal)
            near = torch.ones(len(latent), dtype=torch.bool, device=latent.device)
            spent = _spent(self.level1.config)
            for command in reversed(self.commands):
                if command.due(executed):
                    self._plan_macro(command, latent, target)
                    spent += _spent(command.level.config)
                here = self.geometry.between(self.geometry.embed(latent), embedded)  # (B,)
                near = here <= self.hierarchy.near * command.reach
                subgoal = self.geometry.embed(command.subgoal)
                target = torch.where(near[:, None], embedded, subgoal)
            if self.commands:
                self.level1.elapsed = self.commands[0].since_plan
            search = self._level1(latent, target, executed)
            handed = tuple((command.macro, command.subgoal) for command in self.commands)
            macro, subgoal = handed[0] if handed else (None, None)
            return Plan(search.plan, search, macro, subgoal, near, spent, handed[1:])

    def _level1(self, latent: Tensor, target: Tensor, executed: int) -> Search:
        """target (B, E) embedded goal."""
        self.nominal1 = _warm(self.nominal1, latent, self.level1, executed)
        search = self._search(self.level1, latent, target, self.nominal1)
        self.nominal1 = search.plan
        return search

    def _noise(self, number: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        return trial_noise(self.seed, self.rows, self.step, shape, number, draw)

    def _search(self, level, latent: Tensor, target: Tensor, nominal: Tensor) -> Search:
        number = 1  # of the level
        for place, command in enumerate(self.commands, 2):
            number = place if command.level is level else number
        optimise = OPTIMISERS[level.config.method]
        return optimise(
            lambda plans: plan_costs(level, self.geometry, latent, plans, target),
            level.project,
            nominal,
            level.config,
            functools.partial(self._noise, number),
        )

    def _plan_macro(self, command: Command, latent: Tensor, target: Tensor) -> None:
        """A new plan of one macro level to `target` (B, E); the controls act on level 2 alone."""
        level, lowest = command.level, command is self.commands[0]
        control = self.hierarchy.control if lowest else "none"
        shifted = command.since_macro // level.stride
        nominal = _warm(command.nominal, latent, level, shifted)
        plan = self._search(level, latent, target, nominal).plan
        if control == "zero":
            plan = torch.zeros_like(plan)
        command.nominal = plan
        command.since_plan, command.since_macro = 0, command.since_macro % level.stride
        imagined = level.imagine_states(latent, plan)
        command.macro = path = imagined.predictions
        if lowest:
            self.level1.context = level.model.context(imagined.z)
        if control == "shuffle":
            # Who gets whose sub-goal is the one thing that depends on the other trials.
            order = self._noise(2, level.config.iterations, (1,))[:, 0].argsort()
            path = path[order.to(plan.device)]
        if control == "perturb":
            noise = self._noise(2, level.config.iterations, path.shape[2:]).to(plan.device)
            path = path + noise[:, None] * path.std((1, 2), keepdim=True)
        command.path = path


def _warm(nominal: Tensor | None, latent: Tensor, level, executed: int) -> Tensor:
    """The shifted previous plan, or zeros at the start of an episode."""
    if nominal is None:
        return latent.new_zeros(len(latent), level.config.horizon, level.plan_dim)
    return shift_plan(nominal, executed)


def _spent(config: SearchConfig) -> int:
    """Model transitions per trial of one search."""
    return config.samples * config.iterations * config.horizon
