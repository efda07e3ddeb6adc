"""Model-predictive planning with a stack of levels (HWM, arXiv 2604.03208), batched over trials.

A level above the first plans macro-steps on its own clock; its next predicted latent is the
sub-goal of the level below, unless the goal is near.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.config import HierarchyConfig
from hjepa_lib.models.local import Scene
from hjepa_lib.planning.levels import Level
from hjepa_lib.planning.search import Search, search
from hjepa_lib.worlds.base import trial_noise


class Handed(NamedTuple):
    """What a macro level hands down."""

    macro: Tensor  # (B, H2, D) imagined latents of its plan
    subgoal: Tensor  # (B, D) the latent that the level below aims at
    effective: Tensor  # (B,) see `Search`


class Plan(NamedTuple):
    """One planning call for B trials."""

    actions: Tensor  # (B, H, A) px; NaN where a level found no finite plan
    search: Search  # level-1 candidates and costs
    near: Tensor  # (B,) bool: level 1 aims at the goal itself
    above: tuple[Handed, ...]  # of level 2 and up, none when flat
    context: Tensor | None  # (B, H, A) what level 2 added to the actions of level 1's roll-outs

    @property
    def macro(self) -> Tensor | None:
        """(B, H2, D) level-2 imagined latents, None when flat."""
        return self.above[0].macro if self.above else None


class Planner:
    """Levels from the first up, it alone is flat planning; `every` steps lie between two calls.

    With `ahead`, level 1 goes straight to what lies so many steps on along the geometry's way.
    Call `reset` before each batch of episodes.
    """

    def __init__(
        self, levels: Sequence[Level], seed: int, every: int,
        hierarchy: HierarchyConfig | None = None, ahead: int = 0,
    ) -> None:  # fmt: skip
        self.levels, self.seed, self.every, self.hierarchy = levels, seed, every, hierarchy
        self.level1, self.level2 = levels[0], levels[1] if len(levels) > 1 else None
        self.ahead = ahead
        self.geometry = self.level1.geometry
        self.reset()

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget warm starts and restart the noise; `rows` (B,) number the trials, None: from 0."""
        self.rows, self.step = rows, 0
        self.scene: Scene | None = None
        self.goal: Tensor | None = None  # (B, E) embedded
        for level in self.levels:
            level.reset()

    @torch.no_grad()
    def plan(self, latent: Tensor, goal: Tensor, executed: int, scene: Scene | None = None) -> Plan:
        """latent, goal (B, D); `executed` environment steps since the last call, 0 at first."""
        if self.rows is None:
            self.rows = range(len(latent))
        if self.goal is None:
            self.geometry.begin(scene, goal)
            self.goal = self.geometry.embed_goal(goal)
        self.step += executed
        self.scene, target = scene, self.goal
        near = torch.ones(len(latent), dtype=torch.bool, device=latent.device)
        if self.ahead:
            node = self.geometry.ahead(latent, goal, self.ahead)
            target, near = self.geometry.embed(node), (node == goal).all(-1)  # without a field
        goal = self.goal
        for number in range(len(self.levels), 0, -1):
            level = self.levels[number - 1]
            if level.due(executed):
                self.replan(number, latent, target)
            if number > 1:
                here = self.geometry.between(self.geometry.embed(latent), goal)  # (B,)
                near = here <= self.hierarchy.near * level.reach
                handed = self.geometry.embed_subgoal(level.subgoal, number, level.stride)
                target = torch.where(near[:, None], goal, handed)
        lost = torch.stack([level.search.lost for level in self.levels]).any(0)  # (B,)
        found = self.level1.search
        actions = found.plan.masked_fill(lost[:, None, None], torch.nan)
        handed = [Handed(one.macro, one.subgoal, one.search.effective) for one in self.levels[1:]]
        return Plan(actions, found, near, tuple(handed), self.context)

    @property
    def context(self) -> Tensor | None:
        """(B, H, A) what level 2 adds to the actions of level 1's roll-outs from now on."""
        return self.level2.context(self.level1.config.horizon) if self.level2 else None

    def replan(self, number: int, latent: Tensor, target: Tensor) -> Search:
        """A new plan of level `number` to `target` (B, E); the controls act on level 2 alone."""
        level, context = self.levels[number - 1], self.context if number == 1 else None

        def noise(draw: int, shape: tuple[int, ...]) -> Tensor:
            return trial_noise(self.seed, self.rows, self.step, shape, number, draw)

        def cost(plans: Tensor) -> Tensor:
            return level.costs(latent, plans, target, context, self.scene)

        found = search(cost, level.project, level.warm(latent), level.config, noise)
        control = self.hierarchy.control if number == 2 else "none"
        if control == "zero":
            found = found._replace(plan=torch.zeros_like(found.plan))
        level.search = found
        if number == 1:
            return found
        imagined = level.imagine_states(latent, found.plan, self.scene)
        level.macro = path = imagined.predictions
        level.hooks = level.model.context(imagined.z)
        if control == "shuffle":  # whose sub-goal one gets: this depends on the other trials
            path = path[noise(level.config.iterations, (1,)).to(path.device)[:, 0].argsort()]
        elif control == "perturb":
            shift = noise(level.config.iterations, path.shape[2:]).to(path.device)
            path = path + shift[:, None] * path.std((1, 2), keepdim=True)
        level.path = path
        return found
