"""Rolling policies out on stored trials: world -> frames -> latents -> plan -> actions -> world.

All trials advance together, no early stop; the world's noise is the same for every policy.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import PlanningConfig
from hjepa_lib.evaluation.compute import count, planner_flops
from hjepa_lib.evaluation.metrics import Episodes
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.policies import GoalPolicy
from hjepa_lib.planning.agent import Agent, Controller
from hjepa_lib.planning.truth import witness
from hjepa_lib.worlds.base import World, bound, reaching, trial_noise
from hjepa_lib.worlds.trials import Trials, TwoRooms

FAN = 24  # candidates kept per planning call of the first trial, for the inspector
OFFSET_CALLS = 8  # planning calls per trial at which sub-goals are compared with real frames


class Policy:
    """Acts on B trials at once."""

    needs_frames = False

    def reset(self, world: World, goal: Tensor) -> None:
        """Begin new episodes to goal states (B, N)."""
        self.world, self.goal = world, goal

    def act(self, position: Tensor, frames: Tensor | None) -> Tensor:
        """States (B, N) (privileged policies), frames (B, C, Hpx, Wpx) -> (B, k, A) actions."""

    def diagnostics(self) -> dict[str, np.ndarray]:
        """What it saw and chose at R calls, (B, R, ...) each."""
        return {}


def run_episodes(
    policy: Policy, trials: Trials, dynamics: str, steps: int, cap: float, seed: int
) -> Episodes:
    """All trials of any world; an action beyond `cap` is a bug and raises ValueError (EB1).

    An action that is not a number ends its own trial: the dot stays where it is.
    """
    world = trials.begin(dynamics, seed)
    policy.reset(world, trials.goal)
    positions, actions, seconds = [world.position], [], 0.0
    lost = torch.zeros(trials.count, dtype=torch.bool)
    while len(actions) < steps:
        frames = world.render() if policy.needs_frames else None
        begin = time.perf_counter()
        chunk = policy.act(positions[-1], frames)[:, : steps - len(actions)].float().cpu()
        seconds += time.perf_counter() - begin
        lost |= ~chunk.isfinite().flatten(1).all(1)
        chunk = chunk.masked_fill(lost[:, None, None], 0.0)  # (B, k, 2)
        size = chunk.norm(dim=-1) if world.action_ball else chunk.abs()
        if size.max() > cap * (1 + 1e-4):
            raise ValueError(f"a planned action exceeds the cap of {cap} px")
        for action in chunk.unbind(1):
            positions.append(world.step(action))
            actions.append(action)
    states = torch.stack(positions, 1)  # (B, S+1, N)
    if not states.isfinite().all():
        raise WorkbookError(f"{type(world).__name__} returned positions that are not finite")
    places, reached = world.xy(states), None
    if not issubclass(trials.world, TwoRooms):
        reached = world.reached(states, trials.goal[:, None]).numpy()
    through = world.crosses_wall(places[:, :-1], places[:, 1:])  # (B, S)
    return Episodes(
        places.numpy(),
        torch.stack(actions, 1).numpy(),
        world.xy(trials.goal).numpy(),
        trials.layout.pairs().numpy(),
        world.oracle_length(trials.start, trials.goal).numpy(),
        lost.numpy(),
        policy.diagnostics(),
        cap,
        reached,
        None if places is states else states.numpy(),
        None if through is None else through.any(1).numpy(),
        world.teleported(places.numpy(), torch.stack(actions, 1).numpy()),
        seconds,
    )


class RandomPolicy(Policy):
    """Uniform directions as far as the cap: new every step, or kept until a wall."""

    def __init__(self, cap: float, seed: int, persistent: bool = False) -> None:
        self.cap, self.seed, self.persistent = cap, seed, persistent

    def reset(self, world: World, goal: Tensor) -> None:
        """Forget the heading."""
        self.world, self.step = world, 0

    def act(self, position: Tensor, frames: Tensor | None) -> Tensor:
        """(B, 1, A)."""
        world, position = self.world, self.world.xy(position)
        draw = trial_noise(self.seed, world.rows, self.step, (world.action_size,), level=1)
        heading = reaching(draw, self.cap, world.action_ball)  # any direction alike
        if self.persistent and self.step:
            # A step that moved less than half the cap met a wall: only then turn.
            free = (position - self.last).norm(dim=-1, keepdim=True) > self.cap / 2
            heading = torch.where(free, self.heading, heading)
        self.heading, self.last, self.step = heading, position, self.step + 1
        return heading[:, None]


class OraclePolicy(Policy):
    """Knows the world; walks its shortest path, or follows its `rule` or its `heading`."""

    def __init__(self, cap: float, kind: str = "oracle") -> None:
        self.cap, self.kind = cap, kind

    def act(self, position: Tensor, frames: Tensor | None) -> Tensor:
        """(B, 1, A)."""
        act = self.kind if self.kind == "heading" else f"{self.kind}_action"
        return getattr(self.world, act)(self.goal, self.cap)[:, None]


class ClonedPolicy(Policy):
    """One forward pass a step, and no plan; `steps` as in `GoalPolicy.forward`."""

    needs_frames, replan, transitions_per_step = True, 1, 0.0

    def __init__(self, model: GoalPolicy, cap: float, steps: int = 0) -> None:
        self.model, self.cap, self.steps = model, cap, steps
        frame = torch.zeros(1, *model.frame, dtype=torch.uint8, device=model.pixel_mean.device)
        self.flops_per_step = float(count(lambda: model.act(frame, frame, steps)))

    def reset(self, world: World, goal: Tensor) -> None:
        """It sees the goals as frames."""
        self.ball = world.action_ball
        self.frames = world.render(goal).to(self.model.pixel_mean.device)

    def act(self, position: Tensor, frames: Tensor | None) -> Tensor:
        """(B, 1, A)."""
        actions = self.model.act(frames.to(self.frames.device), self.frames, self.steps)
        return bound(actions, self.cap, self.ball)[:, None]


class LatentPolicy(Policy):
    """Plans with an agent's world models; sees frames only, but for `planning.truth`.

    With `fans` it keeps candidates and all plans, else the first plans alone.
    """

    needs_frames = True

    def __init__(
        self, agent: Agent, method: str, planning: PlanningConfig, steps: int = 200,
        fans: bool = False,
    ) -> None:  # fmt: skip
        self.agent, self.told = agent, planning.truth != "none"
        self.fans = fans and not self.told  # of the world at the first call alone
        self.controller = Controller(agent, method, planning)
        self.planner = self.controller.planner
        self.replan = self.planner.every
        self.steps = steps
        self.flops_per_step = self.transitions_per_step = 0.0  # known with the first frame

    def reset(self, world: World, goal: Tensor) -> None:
        """Forget what was played; it sees the goals as frames."""
        self.world = world
        if not self.flops_per_step:
            frame, scene = world.render()[:1], None
            if self.told:
                scene = witness(world, self.agent.scene(frame), self.agent.device).pick([0])
            counted = planner_flops(self.planner, self.agent.level1, frame, self.steps, scene)
            self.flops_per_step, self.transitions_per_step = counted
        self.controller.start(world.render(goal), world.rows)
        self.log: dict[str, list[Tensor]] = {}

    def act(self, position: Tensor, frames: Tensor | None) -> Tensor:
        """(B, k, A); latents are kept and probed at the end, outside the timed loop."""
        actions = self.controller.step(frames, self.world if self.told else None)
        plan = self.controller.last
        kept = {"latent": self.controller.latent, "plan": plan.actions, "near": plan.near}
        kept["effective"] = plan.search.effective
        if self.fans:
            order = plan.search.costs[0].argsort()  # (N,)
            pick = order[:: max(1, len(order) // FAN)][:FAN]  # (F,), best first
            kept["fan"] = plan.search.candidates[:1, pick]
        for level, handed in zip(("", "3"), plan.above, strict=False):
            kept |= {f"macro{level}": handed.macro, f"subgoal{level}": handed.subgoal}
        if plan.above:
            kept["effective_macro"] = plan.above[0].effective
        if plan.context is not None:
            kept["context"] = plan.context
        if not self.log:  # walls stay
            self.scene = self.controller.scene
        for key, value in kept.items():
            self.log.setdefault(key, []).append(value)
        return actions

    @torch.no_grad()
    def diagnostics(self) -> dict[str, np.ndarray]:
        """Probed to px; R planning calls, (B, R, ...) each."""
        log, probe = {key: torch.stack(one, 1) for key, one in self.log.items()}, self.agent.probe
        found = {"plan_xy": probe(self._reached(log, slice(None if self.fans else 1)))}
        kept = ["near", "effective", "effective_macro"]
        if self.fans:
            fan = log["fan"]  # (1, R, F, H, A)
            start = log["latent"][:1, :, None].expand(*fan.shape[:3], -1)
            hooks = log["context"][:1, :, None] if "context" in log else None
            found["fan_xy"] = probe(self._imagine(start, fan, hooks))
        names = [name for name in ("macro", "subgoal", "macro3", "subgoal3") if name in log]
        found |= {f"{name}_xy": probe(log[name]) for name in names}
        if names:
            found["subgoal_offset"] = self._subgoal_offset(log)
        found |= {name: log[name] for name in kept if name in log}
        arrays = {name: value.float().cpu().numpy() for name, value in found.items()}
        for number, level in zip(("", "3"), self.planner.levels[1:], strict=False):
            arrays[f"macro{number}_stride"] = np.array(level.stride)
        return arrays

    def _imagine(self, start: Tensor, plans: Tensor, hooks: Tensor | None) -> Tensor:
        """start (..., D), plans (..., H, A), hooks likewise or None -> (..., H, D)."""
        hooks = None if hooks is None else hooks.expand_as(plans).flatten(0, -3)
        scene = self.scene
        if scene is not None:
            rows = torch.arange(len(start)).repeat_interleave(start[0, ..., 0].numel())
            scene = scene.pick(rows.to(start.device))
        flat = start.flatten(0, -2), plans.flatten(0, -3)
        latents = self.planner.level1.imagine(*flat, hooks, scene)
        return latents.unflatten(0, plans.shape[:-2])

    def _reached(self, log: dict[str, Tensor], calls: slice | Tensor) -> Tensor:
        """(B, R, H, D) that the plans of some calls lead to."""
        names = ("latent", "plan", "context")
        return self._imagine(*(log[name][:, calls] if name in log else None for name in names))

    def _subgoal_offset(self, log: dict[str, Tensor]) -> Tensor:
        """(B, R) RMS distance of a sub-goal from the encoding of a frame with the dot at its place.

        In units of the mean for ends of level-1 plans; NaN but at `OFFSET_CALLS` calls.
        """

        def offset(latents: Tensor) -> Tensor:  # (B, R, D) -> (B, R), its place by the probe
            places = self.agent.probe(latents).float().cpu()
            frames = self.world.render(self.world.at_rest(places)).flatten(0, 1)
            real = self.agent.encode(frames).reshape(latents.shape)
            return (latents - real).square().mean(-1).sqrt()

        calls = log["subgoal"].shape[1]
        pick = torch.linspace(0, calls - 1, min(calls, OFFSET_CALLS)).round().long()
        found = log["latent"].new_full(log["subgoal"].shape[:2], math.nan)
        unit = offset(self._reached(log, pick)[..., -1, :])
        unit = unit[unit.isfinite()].mean().clamp_min(1e-12)  # a lost trial has none (Q1)
        found[:, pick] = offset(log["subgoal"][:, pick]) / unit
        return found
