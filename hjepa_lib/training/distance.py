"""Training of the temporal-distance head on frozen latents, from offline trajectories only.

Two teachers. `bootstrap`: n-step targets (models/distance.py) for goals of which `future_goals`
come from the future of the same trajectory and the rest are random states of the same layout (a
state of another layout is never reachable). `graph`: lengths of shortest paths (paths.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib.config import DistanceConfig
from hjepa_lib.models.distance import Distance, DistanceTerms, distance_terms, update_slow
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.loop import Fit, Task, step_generator
from hjepa_lib.training.paths import find_paths


class GoalBatch(NamedTuple):
    """Index form of a batch, into the store's flat latents; all (M,)."""

    now: Tensor
    later: Tensor
    goal: Tensor
    steps: Tensor  # later - now, >= 1
    at_goal: Tensor  # bool: later is the goal


class GoalSampler:
    """Draws (s_t, s_{t+k}, g), k = n or less where the goal or the trajectory's end comes first."""

    def __init__(self, store: LatentStore, n_step: int, future_goals: float) -> None:
        self.store, self.n_step, self.future_goals = store, n_step, future_goals
        self.ends = store.starts[1:][store.trajectory] - 1  # last state of each state's trajectory
        index = torch.arange(len(store.positions))
        self.usable = index[index < self.ends]  # states with at least one successor
        self.group = store.layout.numbers()  # (R,) of its trajectories
        self.order = self.group.argsort(stable=True)
        self.counts = self.group.bincount()
        self.offsets = self.counts.cumsum(0) - self.counts

    def sample(self, batch: int, generator: torch.Generator) -> GoalBatch:
        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator, dtype=torch.float64)

        def below(limit: Tensor | int) -> Tensor:  # integers in [0, limit)
            return (uniform() * limit).long()

        now = self.usable[below(len(self.usable))]
        end = self.ends[now]
        future = now + 1 + below(end - now)
        group = self.group[self.store.trajectory[now]]
        other = self.order[self.offsets[group] + below(self.counts[group])]
        distant = self.store.starts[other] + below(self.store.lengths[other])
        is_future = uniform() < self.future_goals
        goal = torch.where(is_future, future, distant)
        ahead = (goal > now) & (goal <= end)  # the goal lies on the way (also by chance)
        gap = torch.where(ahead, goal - now, self.n_step)
        steps = torch.minimum(gap, end - now).clamp(max=self.n_step)
        later = now + steps
        return GoalBatch(now, later, goal, steps, later == goal)


def train_distance(
    head: Distance,
    store: LatentStore,
    validation: LatentStore | None,
    config: DistanceConfig,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate to train `head` in place; the slow copy of `bootstrap` rides along for a resume."""
    device = next(head.parameters()).device
    slow = head.slow_copy() if config.teacher == "bootstrap" else None
    trained = torch.nn.ModuleDict({"head": head})
    if slow is not None:
        trained["slow"] = slow  # so that a resume restores it too
        sampler = GoalSampler(store, config.n_step, config.future_goals)
    else:
        pairs = find_paths(store, config, seed)
    held_out = None
    if validation is not None:
        held_out = GoalSampler(validation, config.n_step, 1.0)

    def fetch(source: LatentStore, *index: Tensor) -> tuple[Tensor, ...]:
        return source.latents[torch.stack(index)].float().to(device).unbind(0)

    def terms(source: GoalSampler, batch: int, generator: torch.Generator) -> DistanceTerms:
        pick = source.sample(batch, generator)
        now, later, goal = fetch(source.store, pick.now, pick.later, pick.goal)
        steps = pick.steps.float().to(device)
        return distance_terms(head, slow, now, later, goal, steps, pick.at_goal.to(device))

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if slow is None:
            pick = torch.randint(len(pairs.steps), (config.optim.batch,), generator=generator)
            start, goal = fetch(store, pairs.start[pick], pairs.goal[pick])
            loss = F.smooth_l1_loss(head(start, goal), pairs.steps[pick].to(device))
            return loss, {"path_error": loss.item()}
        found = terms(sampler, config.optim.batch, generator)
        return found.expectile + found.excess, {k: v.item() for k, v in found._asdict().items()}

    def validate() -> dict[str, float]:
        # No key "loss": the bootstrapped target grows while the head gets better, so its loss
        # cannot choose weights; the calibration against recorded steps is what to look at.
        report: dict[str, float] = {}
        if slow is not None:
            found = terms(held_out, 4096, step_generator(seed, 0))
            report = {k: v.item() for k, v in found._asdict().items()}
        pick = held_out.sample(4096, step_generator(seed, 1))
        predicted = head(*fetch(validation, pick.now, pick.goal))
        recorded = (pick.goal - pick.now).float()  # an upper bound of the true distance
        return report | {
            "recorded_steps": recorded.mean().item(),
            "predicted_steps": predicted.mean().item(),
            "overestimated": (predicted.cpu() > recorded).float().mean().item(),
        }

    task = Task(
        trained,
        loss_fn,
        None if held_out is None else validate,
        None if slow is None else lambda: update_slow(slow, head),
    )
    return Fit(task, config.optim, seed=seed, precision=precision, folder=folder, stage="distance")
