"""Training of the temporal-distance head on frozen latents, from offline trajectories only.

`bootstrap`, the idea of HILP (Park et al. 2024): expectile regression on n-step targets from an EMA
copy dbar; with V = -d, and 0 at the goal,

    target = -(1 - gamma^n) / (1 - gamma) - gamma^n * dbar(s_{t+n}, g)
    loss   = L2_tau(target - V(s_t, g)) + relu(d(s_t, s_{t+k}) - k)^2,  k <= n

`graph`: lengths of shortest paths among recorded states (Eysenbach et al. 2019, arXiv 1906.05253).
Recorded steps are edges of length 1; states whose latents are closer than `link` usual steps are
joined by an edge as long as their gap.
"""

import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib.config import DistanceConfig
from hjepa_lib.data.windows import Groups
from hjepa_lib.models.distance import Distance
from hjepa_lib.models.layers import update_ema
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.loop import Fit, Loss, Task, Terms, TrainingError, step_generator

SLOW = 0.98  # share that the slow copy keeps per update
FUTURE_GOALS = 0.5  # share of goals from the trajectory's own future
SOURCES, TARGETS = 128, 48
"""Pairs of one graph: so many starts, each with so many goals."""
SHORTEST = 1e-3  # steps; a sparse graph takes an edge of length 0 for no edge


def train_distance(
    head: Distance, store: LatentStore, validation: LatentStore | None, *, seed: int, **options: Any
) -> Fit:
    """Iterate to train `head` in place; the slow copy of `bootstrap` is there for a resume."""
    device, config = next(head.parameters()).device, head.config
    slow: Distance | None = None
    trained = torch.nn.ModuleDict({"head": head})
    if config.teacher == "bootstrap":
        slow = trained["slow"] = copy.deepcopy(head).requires_grad_(False)
        sampler = GoalSampler(store, config.n_step, FUTURE_GOALS)
    else:
        starts, goals, lengths = find_paths(store, config, seed)
    held_out = validation and GoalSampler(validation, config.n_step, 1.0)

    def fetch(source: LatentStore, *index: Tensor) -> tuple[Tensor, ...]:
        return source.latents[torch.stack(index)].float().to(device).unbind(0)

    def terms(source: GoalSampler, batch: int, generator: torch.Generator) -> Terms:
        now, later, goal = pick = source.sample(batch, generator)
        known = (later - now).float().to(device), (later == goal).to(device)
        return distance_terms(head, slow, *fetch(source.store, *pick), *known)

    def loss_fn(generator: torch.Generator) -> Loss:
        if slow is None:
            pick = torch.randint(len(lengths), (config.optim.batch,), generator=generator)
            start, goal = fetch(store, starts[pick], goals[pick])
            loss = F.smooth_l1_loss(head(start, goal), lengths[pick].to(device))
            return loss, {"path_error": loss}
        found = terms(sampler, config.optim.batch, generator)
        return sum(found.values()), found

    def validate() -> Terms:
        # No key "loss": the target grows while the head gets better, so it cannot choose weights.
        report = {} if slow is None else terms(held_out, 4096, step_generator(seed, 0))
        pick = held_out.sample(4096, step_generator(seed, 1))
        predicted = head(*fetch(validation, pick.now, pick.goal))
        recorded = (pick.goal - pick.now).float()  # an upper bound of the true distance
        return report | {
            "recorded_steps": recorded.mean(),
            "predicted_steps": predicted.mean(),
            "overestimated": (predicted.cpu() > recorded).float().mean(),
        }

    follow = slow and partial(update_ema, slow, head, SLOW)
    task = Task(trained, loss_fn, validation and validate, follow)
    return Fit(task, config.optim, seed=seed, stage="distance", **options)


def distance_terms(
    head: Distance, slow: Distance, now: Tensor, later: Tensor, goal: Tensor, steps: Tensor,
    at_goal: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """`expectile` and `excess`, what close pairs are over-estimated by, of (s_t, s_{t+k}, g).

    Latents (M, D); steps (M,) are the k, 1 <= k <= n; at_goal (M,) bool: later is the goal.
    """
    config = head.config
    phi_now, phi_later, phi_goal = head.embed(torch.stack([now, later, goal])).unbind(0)
    predicted = head.between(phi_now, phi_goal)  # (M,)
    discount = config.gamma**steps
    with torch.no_grad():
        bootstrap = slow(later, goal).masked_fill(at_goal, 0.0)
        passed = (1 - discount) / (1 - config.gamma) if config.gamma < 1 else steps
        target = -(passed + discount * bootstrap)
    gap = target + predicted  # advantage: target - V
    weight = torch.where(gap > 0, config.expectile, 1 - config.expectile)
    excess = F.relu(head.between(phi_now, phi_later) - steps).square().mean()
    return {"expectile": (weight * gap.square()).mean(), "excess": excess}


class GoalBatch(NamedTuple):
    """Numbers (M,) of states of the store."""

    now: Tensor
    later: Tensor
    goal: Tensor


class GoalSampler:
    """Draws (s_t, s_{t+k}, g), k = n or less where the goal or the trajectory's end comes first.

    A share `future_goals` of the goals is from the trajectory's own future, the rest from its
    layout: one of another layout is never reachable.
    """

    def __init__(self, store: LatentStore, n_step: int, future_goals: float) -> None:
        self.store, self.n_step, self.future_goals = store, n_step, future_goals
        index = torch.arange(len(store.trajectory))
        self.usable = index[index + 1 < store.starts[1:][store.trajectory]]  # not the last states
        self.group = store.layout.numbers()  # (R,) of its trajectories
        self.alike = Groups(torch.arange(len(self.group)), self.group)

    def sample(self, batch: int, generator: torch.Generator) -> GoalBatch:
        """`batch` triples; a pure function of the generator."""

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator, dtype=torch.float64)

        def below(limit: Tensor | int) -> Tensor:  # integers in [0, limit)
            return (uniform() * limit).long()

        store, now = self.store, self.usable[below(len(self.usable))]
        row = store.trajectory[now]
        end = store.starts[row + 1] - 1  # the last state of the trajectory
        future = now + 1 + below(end - now)
        other = self.alike.draw(self.group[row], uniform())
        distant = store.starts[other] + below(store.lengths[other])
        is_future = uniform() < self.future_goals
        goal = torch.where(is_future, future, distant)
        ahead = (goal > now) & (goal <= end)  # the goal lies on the way (also by chance)
        gap = torch.where(ahead, goal - now, self.n_step)
        steps = torch.minimum(gap, end - now).clamp(max=self.n_step)
        return GoalBatch(now, now + steps, goal)


def usual_step(store: LatentStore) -> float:
    """Median latent length of the recorded steps that moved; TrainingError when none did."""
    gap = (store.latents[1:].float() - store.latents[:-1].float()).norm(dim=-1).cpu()
    moved = gap[(store.trajectory[1:] == store.trajectory[:-1]) & (gap > 0)]
    if not len(moved):
        raise TrainingError("no recorded step moves the latent: there are no paths to learn from")
    return moved.median().item()


def join_states(latents: Tensor, trajectory: Tensor, radius: float, unit: float) -> csr_array:
    """Edge lengths in steps, (N, N) sparse; recorded steps lead one way, links both.

    latents (N, D) float32, trajectory (N,) ascending; `radius` in steps, `unit` the latent length
    of one.
    """
    here = torch.nonzero(trajectory[1:] == trajectory[:-1])[:, 0]
    gaps = torch.cdist(latents, latents) / unit  # (N, N)
    gaps.fill_diagonal_(torch.inf)
    gaps[here, here + 1] = torch.inf  # a recorded step takes the place of that link
    a, b = torch.nonzero(gaps < radius, as_tuple=True)
    rows, columns = torch.cat([here, a]), torch.cat([here + 1, b])
    lengths = torch.cat([torch.ones(len(here)), gaps[a, b].clamp(min=SHORTEST)])
    size = len(latents)
    return csr_array((lengths.numpy(), (rows.numpy(), columns.numpy())), shape=(size, size))


def find_paths(
    store: LatentStore, config: DistanceConfig, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random pairs that a path connects: starts and goals (P,) in the store, lengths (P,) in steps.

    Of every graph of `graph_trajectories` trajectories of one layout, or fewer. The head is
    symmetric: recorded steps may be walked backwards.
    """
    generator = torch.Generator().manual_seed(seed)
    unit, layouts = usual_step(store), store.layout.numbers()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for layout in layouts.unique():
        members = torch.nonzero(layouts == layout)[:, 0]
        for part in members.split(config.graph_trajectories):
            states = torch.nonzero(torch.isin(store.trajectory, part))[:, 0]
            latents = store.latents[states].float().cpu()
            graph = join_states(latents, store.trajectory[states], config.link, unit)
            start = torch.randperm(len(states), generator=generator)[:SOURCES]
            goal = torch.randint(len(states), (len(start), TARGETS), generator=generator)
            steps = dijkstra(graph, directed=False, indices=start.numpy())  # (S, N)
            steps = torch.from_numpy(np.take_along_axis(steps, goal.numpy(), 1)).float()
            known = steps.isfinite()
            first = start[:, None].expand_as(goal)
            found.append((states[first[known]], states[goal[known]], steps[known]))
    return tuple(torch.cat(column) for column in zip(*found, strict=True))
