"""A level of planning: its model, the space of its plans, what they cost, and its clock."""

import torch
from torch import Tensor

from hjepa_lib.config import ConfigError, HierarchyConfig, PlannerConfig, SearchConfig
from hjepa_lib.models.distance import Geometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Imagined, Level2
from hjepa_lib.models.local import Scene
from hjepa_lib.planning.search import Search, shift_plan
from hjepa_lib.worlds.base import bound

CHUNK = 4096  # candidates rolled out at once, at most
FEWEST = 512  # below this, matrix products get slower
NUMBERS = 1 << 22  # of one chunk's latents (H * D each): 16 MB, near the CPU's cache
ENDED = 30.0  # cost, in steps, of a plan on which the agent surely ends early
ON_CUDA = 16  # times as many there (256 MB): launches of small chunks cost more than memory


def reduce_horizon(costs: Tensor, config: SearchConfig, in_steps: bool) -> Tensor:
    """Costs (..., H) of the predicted steps -> (...), by `config.form`.

    `auto`: costs that count steps add up, which asks for speed; latent ones are only trusted close
    to the goal, so there the closest approach decides.
    """
    return costs.sum(-1) if in_steps or config.form == "sum" else costs.amin(-1)


def _mean(members: Tensor) -> Tensor:
    """Over the ensemble: (K, M, H, D) -> (M, H, D), without a copy of a single one."""
    return members[0] if len(members) == 1 else members.mean(0)


class Level:
    """What the planner needs of a level: `project`, `members`, `penalty`, and its last plan.

    Level 1 plans at every call, one above each `replan` environment steps; `reach` is the cost
    between latents one macro-step apart, the scale of `hierarchy.near`.
    """

    stride = 1  # environment steps per planned step
    plan_dim: int  # width of a planned step
    replan, reach = 0, 0.0

    def __init__(
        self, config: SearchConfig, geometry: Geometry, cap: float, ball: bool = True
    ) -> None:
        self.config, self.geometry, self.cap, self.ball = config, geometry, cap, ball
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
        passed = self.since_plan // self.stride
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
        passed, self.since_step = divmod(self.since_step, self.stride)
        self.since_plan = 0
        if self.search is None:
            return latent.new_zeros(len(latent), self.config.horizon, self.plan_dim)
        return shift_plan(self.search.plan, passed)

    def imagine(self, start: Tensor, plans: Tensor, *seen: Scene | Tensor | None) -> Tensor:
        """start (M, D), plans (M, H, A), and as in `members` -> latents (M, H, D)."""
        return _mean(self.members(start, plans, *seen))

    def costs(
        self, start: Tensor, plans: Tensor, goal: Tensor, context: Tensor | None = None,
        scene: Scene | None = None,
    ) -> Tensor:  # fmt: skip
        """start (B, D), plans (B, N, H, A), goal (B, E) embedded, context (B, H, A) -> (B, N)."""
        batch, samples, horizon = plans.shape[:3]
        rows = torch.arange(batch, device=plans.device).repeat_interleave(samples)  # (B * N,)
        scale = ON_CUDA if start.device.type == "cuda" else 1
        size = min(CHUNK * scale, max(FEWEST, NUMBERS * scale // (horizon * start.shape[-1])))
        pieces = []
        for row, part in zip(rows.split(size), plans.flatten(0, 1).split(size), strict=True):
            here, seen = start[row], scene and scene.pick(row)
            hooks = None if context is None else context[row]
            members = self.members(here, part, hooks, seen)
            path = self.geometry.embed(_mean(members))  # (M, H, E)
            steps = self.geometry.between(path, goal[row][:, None])  # (M, H)
            cost = reduce_horizon(steps, self.config, self.geometry.in_steps)
            pieces.append(cost + self.penalty(here, members, path, seen))
        return torch.cat(pieces).reshape(batch, samples)


class PrimitiveLevel(Level):
    """Level 1: one action per environment step, within the cap; a joint level 2 acts on it."""

    config: PlannerConfig

    def __init__(
        self, model: Jepa, config: PlannerConfig, geometry: Geometry, cap: float,
        level2: Level2 | None = None, ball: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(config, geometry, cap, ball)
        if config.disagreement and len(model.predictors) == 1:  # a loaded level 1 may have one
            raise ConfigError("a disagreement cost needs a level 1 of several predictors")
        self.model, self.plan_dim = model, model.action_dim
        self.feedback = None if level2 is None else level2.feedback

    def project(self, plans: Tensor) -> Tensor:
        """(..., A) -> the same within the cap."""
        return bound(plans, self.cap, self.ball)

    def members(
        self, start: Tensor, plans: Tensor, context: Tensor | None = None,
        scene: Scene | None = None,
    ) -> Tensor:  # fmt: skip
        """(K, M, H, D), a roll-out per member in its `scene`.

        `context` (M, H, A) adds to the normalised actions.
        """
        hooks = {"context": context, "feedback": self.feedback, "scene": scene}
        return self.model.rollout_members(start, plans, **hooks)[:, :, 1:]

    def penalty(
        self, start: Tensor, members: Tensor, path: Tensor, scene: Scene | None = None
    ) -> Tensor | float:
        """(M,) disagreement of an ensemble's `members` (PLDM v2), and the risk of an early end."""
        cost = 0.0
        if self.config.disagreement:
            cost = self.config.disagreement * members.var(0).mean(-1).sum(-1)
        if scene is None or scene.ahead is None:
            return cost
        way = torch.cat([start[:, None], _mean(members)], 1)
        odds = self.model.mover.odds(scene.ahead[scene.rows], way)
        return cost + ENDED * (1 - torch.sigmoid(-odds).prod(1))


class MacroLevel(Level):
    """Level 2 and up: one macro-step is `step_skip` environment steps.

    By `level2.actions` plans live in the prior's standardised z (none), in concatenated actions
    (concat, only), or in macro-actions within a percentile box of training data (learned, HWM).
    """

    def __init__(
        self, model: Level2, config: SearchConfig, geometry: Geometry, cap: float,
        hierarchy: HierarchyConfig, box: Tensor | None, level1: Jepa, ball: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(config, geometry, cap, ball)
        self.model, self.hierarchy, self.level1 = model, hierarchy, level1
        self.stride, self.space = model.config.step_skip, model.config.actions
        widths = {"none": model.z_width, "learned": model.macro_dim}
        self.plan_dim = widths.get(self.space, self.stride * model.action_dim)
        self.box = box  # (2, macro_dim) low and high percentiles of training macro-actions

    def project(self, plans: Tensor) -> Tensor:
        """(..., A) -> the same inside the space's set."""
        clip = self.hierarchy.clip
        if self.space in ("concat", "only"):
            steps = plans.unflatten(-1, (self.stride, -1))  # (..., step_skip, A)
            return bound(steps, self.cap, self.ball).flatten(-2)
        if clip == 0:
            return plans
        return plans.clamp(-clip, clip) if self.box is None else plans.clamp(*self.box)

    def macros(self, plans: Tensor) -> Tensor | None:
        """Plans (M, H, A) in this level's space -> what the GRU is fed, or None."""
        if self.space in ("none", "learned"):
            return plans if self.space == "learned" else None
        steps = plans.unflatten(-1, (self.stride, -1))  # (M, H, step_skip, A) px
        return self.model.macro(self.level1.normalise_actions(steps))

    def imagine_states(self, start: Tensor, plans: Tensor, scene: Scene | None = None) -> Imagined:
        """Predictions and z of a prior roll-out."""
        noise = plans if self.space == "none" else None
        return self.model.imagine(start, plans.shape[1], self.macros(plans), noise, scene)

    def members(
        self, start: Tensor, plans: Tensor, context: Tensor | None = None,
        scene: Scene | None = None,
    ) -> Tensor:  # fmt: skip
        """(1, M, H, D): it is no ensemble, and nothing acts on it."""
        return self.imagine_states(start, plans, scene).predictions[None]

    def penalty(
        self, start: Tensor, members: Tensor, path: Tensor, scene: Scene | None = None
    ) -> Tensor | float:
        """(M,) what a path asks beyond level 1 (a decoder may jump through a wall), in steps.

        Sum over macro-steps d > stride steps long of (d - stride)^2 / stride.
        """
        if self.hierarchy.reachable == 0 or not self.geometry.in_steps:
            return 0.0
        before = torch.cat([self.geometry.embed(start)[:, None], path[:, :-1]], 1)  # (M, H, E)
        excess = (self.geometry.between(before, path) - self.stride).clamp(min=0)  # (M, H)
        return self.hierarchy.reachable * (excess.square().sum(-1) / self.stride)
