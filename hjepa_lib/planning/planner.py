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
from hjepa_lib.planning.search import Search, search, shift_plan
from hjepa_lib.worlds.base import trial_noise


class Handed(NamedTuple):
    """What a macro level hands down."""

    macro: Tensor  # (B, H2, D) imagined latents of its plan
    subgoal: Tensor  # (B, D) the latent that the level below aims at
    effective: Tensor  # (B,) candidates that count in the plan, see `Search`


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


class Layer:
    """A level at work: its clock, its warm start and, above level 1, what it hands down.

    `replan`: environment steps between plans, 0 for a plan at every call; `reach`: cost between
    latents one macro-step apart, the scale of `hierarchy.near`.
    """

    def __init__(self, level: Level, replan: int = 0, reach: float = 0.0) -> None:
        self.level, self.replan, self.reach = level, replan, reach
        self.reset()

    def reset(self) -> None:
        """Forget the plan."""
        self.search: Search | None = None  # its plan (B, H, A) is the next warm start
        self.macro: Tensor | None = None  # (B, H, D) imagined latents
        self.path: Tensor | None = None  # (B, H, D) the same, after the controls
        self.hooks: Tensor | None = None  # (B, H * stride, A) for the level below
        self.since_plan = self.since_step = 0  # environment steps; the latter of a whole stride

    @property
    def subgoal(self) -> Tensor:
        """(B, D): the next latent of the path; an old plan's first ones have gone by."""
        passed = self.since_plan // self.level.stride
        return self.path[:, min(passed, self.path.shape[1] - 1)]

    def context(self, horizon: int) -> Tensor | None:
        """(B, horizon, A) from now on; beyond this level's own horizon its last step holds on."""
        if self.hooks is None:
            return None
        ahead = self.since_plan + torch.arange(horizon, device=self.hooks.device)
        return self.hooks[:, ahead.clamp(max=self.hooks.shape[1] - 1)]

    def due(self, executed: int) -> bool:
        """Moves the clock by `executed` steps: is it time for a new plan?"""
        self.since_plan += executed
        self.since_step += executed
        return self.search is None or self.since_plan >= self.replan

    def warm(self, latent: Tensor) -> Tensor:
        """The shifted previous plan, or zeros at the start of an episode; the clock starts anew."""
        passed, self.since_step = divmod(self.since_step, self.level.stride)
        self.since_plan = 0
        if self.search is None:
            return latent.new_zeros(len(latent), self.level.config.horizon, self.level.plan_dim)
        return shift_plan(self.search.plan, passed)


class Planner:
    """Layers from level 1 upwards, it alone is flat planning; `every` steps lie between two calls.

    With `ahead`, level 1 goes straight to what lies so many steps on along the geometry's way.
    Call `reset` before each batch of episodes.
    """

    def __init__(
        self, layers: Sequence[Layer], seed: int, every: int,
        hierarchy: HierarchyConfig | None = None, ahead: int = 0,
    ) -> None:  # fmt: skip
        self.layers, self.seed, self.every, self.hierarchy = layers, seed, every, hierarchy
        self.ahead = ahead
        self.level1 = layers[0].level
        self.level2 = layers[1].level if len(layers) > 1 else None
        self.geometry = self.level1.geometry
        self.reset()

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget warm starts and restart the noise; `rows` (B,) number the trials, None: from 0."""
        self.rows, self.step = rows, 0
        self.scene: Scene | None = None
        self.goal: Tensor | None = None  # (B, E) embedded
        for layer in self.layers:
            layer.reset()

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
        for number in range(len(self.layers), 0, -1):
            layer = self.layers[number - 1]
            if layer.due(executed):
                self.replan(number, latent, target)
            if number > 1:
                here = self.geometry.between(self.geometry.embed(latent), goal)  # (B,)
                near = here <= self.hierarchy.near * layer.reach
                target = torch.where(near[:, None], goal, self.geometry.embed(layer.subgoal))
        lost = torch.stack([layer.search.lost for layer in self.layers]).any(0)  # (B,)
        found = self.layers[0].search
        actions = found.plan.masked_fill(lost[:, None, None], torch.nan)
        handed = [Handed(one.macro, one.subgoal, one.search.effective) for one in self.layers[1:]]
        return Plan(actions, found, near, tuple(handed), self.context)

    @property
    def context(self) -> Tensor | None:
        """(B, H, A) what level 2 adds to the actions of level 1's roll-outs from now on."""
        return self.layers[1].context(self.level1.config.horizon) if self.level2 else None

    def replan(self, number: int, latent: Tensor, target: Tensor) -> Search:
        """A new plan of level `number` to `target` (B, E); the controls act on level 2 alone."""
        layer, context = self.layers[number - 1], self.context if number == 1 else None
        level = layer.level

        def noise(draw: int, shape: tuple[int, ...]) -> Tensor:
            return trial_noise(self.seed, self.rows, self.step, shape, number, draw)

        def cost(plans: Tensor) -> Tensor:
            return level.costs(latent, plans, target, context, self.scene)

        found = search(cost, level.project, layer.warm(latent), level.config, noise)
        control = self.hierarchy.control if number == 2 else "none"
        if control == "zero":
            found = found._replace(plan=torch.zeros_like(found.plan))
        layer.search = found
        if number == 1:
            return found
        imagined = level.imagine_states(latent, found.plan, self.scene)
        layer.macro = path = imagined.predictions
        layer.hooks = level.model.context(imagined.z)
        if control == "shuffle":  # whose sub-goal one gets: this depends on the other trials
            path = path[noise(level.config.iterations, (1,)).to(path.device)[:, 0].argsort()]
        elif control == "perturb":
            shift = noise(level.config.iterations, path.shape[2:]).to(path.device)
            path = path + shift[:, None] * path.std((1, 2), keepdim=True)
        layer.path = path
        return found
