"""Generated data sets: the published recipes, at exactly the number of transitions asked for.

Recipes after PLDM (arXiv 2502.14819) and EB-JEPA (arXiv 2602.03604). Differs: the size is exact
(whole trajectories plus one truncated last one; the public generator makes multiples of 92,160),
everything follows from one seed, and `expert` (broken in PLDM) follows the shortest path.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.data.motion import random_motion
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.files import sha256
from hjepa_lib.worlds.base import World, find_world
from hjepa_lib.worlds.layout import Layout, layout_set
from hjepa_lib.worlds.oracle import oracle_action
from hjepa_lib.worlds.two_rooms import DYNAMICS, sample_start_goal, step

SMOOTH, UNIFORM = 5.0, 1e-6
"""von Mises concentration of the heading changes: 1 / 0.2 and 1 / 1e6."""
SIZES = (634, 1269, 5078, 20312, 81250, 325_000, 1_500_000, 3_000_000)
"""Published data-set sizes, in transitions."""
EXPERT_STEP = 0.9
"""Step length of `expert`, px."""
_CHUNK = 4096
"""Trajectories simulated at once: their state fits the cache, memory stays flat."""


class Recipe(NamedTuple):
    """How one trajectory is made."""

    states: int = 91  # simulated states per trajectory
    rate: float = 0.60  # share built to pass the door
    kappa: float = SMOOTH
    keep: int = 0  # keep a random slice of this many states (0 = all)


RECIPES = {
    "good": Recipe(),
    "random": Recipe(kappa=UNIFORM),
    "short17": Recipe(states=17),
    "short33": Recipe(states=33),
    "short65": Recipe(states=65),
    "mixture": Recipe(kappa=UNIFORM),
    "no_crossing": Recipe(),
    "eb_jepa": Recipe(rate=0.35, keep=17),
    "expert": Recipe(),
}


def crosses(positions: Tensor, layout: Layout) -> Tensor:
    """(R,) bool: min x < left face and max x > right face, of positions (R, L, 2)."""
    x = positions[..., 0]
    return (x.amin(1) < layout.left) & (x.amax(1) > layout.right)


def generate(
    recipe: str,
    transitions: int,
    layouts: str | np.ndarray = "fixed",
    seed: int = 0,
    dynamics: str = "blocked",
    good_fraction: float = 0.02,
    exclude_wall: str = "",
    exclude_door: str = "",
    noise: float = 0.5,
    source: str = "generated",
) -> Trajectories:
    """Exactly `transitions` transitions of a recipe; equal arguments give equal data.

    `layouts` is a name known to `layout_set` or an array (K, 2); each trajectory draws one.
    `good_fraction` acts in `mixture` only: int(fraction * R) trajectories are good, the rest
    random. `noise` (px) acts with `bounce` only. `source` "module:Class" names an own world, whose
    trajectories are free walks in its one layout. Raises `ValueError` for unknown names.
    """
    _check(recipe, transitions, dynamics, good_fraction)
    rule, world = RECIPES[recipe], find_world(source)
    if world is not None:
        _check_own(recipe, layouts)
        layouts = np.zeros((1, 2), np.int16)
    per = (rule.keep or rule.states) - 1
    count = math.ceil(transitions / per)
    lengths = torch.full((count,), per + 1)
    lengths[-1] = transitions - per * (count - 1) + 1
    named = isinstance(layouts, str)
    pool = layout_set(layouts, exclude_wall, exclude_door) if named else np.asarray(layouts)
    generator = torch.Generator().manual_seed(seed)
    kappa = torch.full((count,), rule.kappa)
    meta: dict[str, Any] = {"source": source, "recipe": recipe, "transitions": transitions}
    meta |= {"layouts": layouts if named else "custom", "seed": seed, "dynamics": dynamics}
    meta["noise_px"] = noise if dynamics == "bounce" else 0.0
    if recipe == "mixture":
        # Not the first permutation of `seed`: the split into training and validation is that one.
        marks = torch.Generator().manual_seed(int(sha256(f"mixture {seed}".encode())[:15], 16))
        kappa[torch.randperm(count, generator=marks)[: int(good_fraction * count)]] = SMOOTH
        meta["good_fraction"] = good_fraction
    if meta["layouts"] == "rectangle":
        meta |= {"exclude_wall": exclude_wall, "exclude_door": exclude_door}
    positions, actions = torch.empty(transitions + count, 2), torch.empty(transitions + count, 2)
    drawn = torch.empty(count, 2, dtype=torch.int16)
    done = 0
    while done < count:
        part = kappa[done : done + _CHUNK]
        if world is None:
            chunk = _chunk(recipe, rule, part, pool, dynamics, noise, generator)
        else:
            chunk = _walk(world, rule, part, dynamics, generator)
        size = len(chunk.positions)
        span = slice(done * (per + 1), (done + size) * (per + 1))
        # The slice of the last chunk is shorter: this is where the last trajectory is truncated.
        positions[span] = chunk.positions.reshape(-1, 2)[: len(positions[span])]
        actions[span] = chunk.actions.reshape(-1, 2)[: len(positions[span])]
        drawn[done : done + size] = chunk.layout.pairs().to(torch.int16)
        done += size
    actions[lengths.cumsum(0) - 1] = 0  # a last state has no action
    return Trajectories(positions, actions, lengths, drawn, meta)


def _check(recipe: str, transitions: int, dynamics: str, good_fraction: float) -> None:
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {recipe!r}")
    if dynamics not in DYNAMICS:
        raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}; got {dynamics!r}")
    if transitions < 1:
        raise ValueError(f"transitions must be at least 1, got {transitions}")
    if not 0 <= good_fraction <= 1:
        raise ValueError(f"good_fraction must lie in [0, 1], got {good_fraction}")


def _check_own(recipe: str, layouts: str | np.ndarray) -> None:
    if recipe in ("no_crossing", "expert"):
        raise ValueError(f"recipe {recipe} needs two rooms; an own world has none")
    if not isinstance(layouts, str) or layouts != "fixed":
        raise ValueError("an own world has one layout, so data.layouts must be fixed")


class _Chunk(NamedTuple):
    positions: Tensor  # (n, L, 2)
    actions: Tensor  # (n, L, 2), the last one unused
    layout: Layout


def _chunk(
    recipe: str,
    rule: Recipe,
    kappa: Tensor,
    pool: np.ndarray,
    dynamics: str,
    noise: float,
    generator: torch.Generator,
) -> _Chunk:
    """At most len(kappa) trajectories (`no_crossing` drops some)."""
    n = len(kappa)
    picked = torch.randint(len(pool), (n,), generator=generator).numpy()
    layout = Layout.of(np.asarray(pool)[picked])
    built = torch.arange(n) < math.ceil(rule.rate * n)
    if recipe == "eb_jepa":
        built = torch.rand(n, generator=generator) < rule.rate
    # Shuffled, so that a truncated or split set has the same share everywhere.
    built = built[torch.randperm(n, generator=generator)]
    if recipe == "expert":
        return _expert(layout, rule, built, dynamics, noise, generator)
    start, actions = random_motion(layout, rule.states - 1, kappa, built, generator)
    positions = simulate(start, actions, layout, dynamics, generator, noise)
    actions = torch.cat((actions, torch.zeros(n, 1, 2)), 1)
    if recipe == "no_crossing":
        keep = ~crosses(positions, layout)
        return _Chunk(positions[keep], actions[keep], layout.index(keep))
    return _keep(rule, _Chunk(positions, actions, layout), generator)


def _keep(rule: Recipe, chunk: _Chunk, generator: torch.Generator) -> _Chunk:
    """A random slice of `rule.keep` states of each trajectory; 0 keeps all."""
    if not rule.keep:
        return chunk
    shape = (len(chunk.positions), 1)
    first = torch.randint(rule.states - rule.keep + 1, shape, generator=generator)
    rows = (first + torch.arange(rule.keep))[..., None].expand(-1, -1, 2)
    return _Chunk(chunk.positions.gather(1, rows), chunk.actions.gather(1, rows), chunk.layout)


def _walk(
    world: type[World],
    rule: Recipe,
    kappa: Tensor,
    dynamics: str,
    generator: torch.Generator,
) -> _Chunk:
    """Free walks of an own world, from starts that it draws itself."""
    layout = Layout.of(np.zeros((len(kappa), 2)))
    free = torch.zeros(len(kappa), dtype=torch.bool)
    _, actions = random_motion(layout, rule.states - 1, kappa, free, generator)
    seed = int(torch.randint(2**31, (), generator=generator))  # of the world's own randomness
    episodes = world(layout, dynamics, seed=seed)
    positions = [episodes.reset(episodes.sample_start_goal(generator)[0])]
    positions += [episodes.step(action) for action in actions.unbind(1)]
    actions = torch.cat((actions, torch.zeros(len(kappa), 1, 2)), 1)
    return _keep(rule, _Chunk(torch.stack(positions, 1), actions, layout), generator)


def simulate(
    start: Tensor,
    actions: Tensor,
    layout: Layout,
    dynamics: str,
    generator: torch.Generator | None = None,
    noise: float = 0.5,
) -> Tensor:
    """Positions (B, S + 1, 2) px of open-loop actions (B, S, 2) from `start` (B, 2)."""
    positions = [start]
    for action in actions.unbind(1):
        positions.append(step(positions[-1], action, layout, dynamics, generator, noise))
    return torch.stack(positions, 1)


def _expert(
    layout: Layout,
    rule: Recipe,
    cross: Tensor,
    dynamics: str,
    noise: float,
    generator: torch.Generator,
) -> _Chunk:
    """Shortest paths at 0.9 px per step; a reached goal is followed by a new one.

    `cross` marks the trajectories whose goals always lie in the other room; the rest stay home.
    """

    def rooms() -> tuple[Tensor, Tensor]:
        one, two = sample_start_goal(layout, "medium", generator)
        on_left = (one[:, 0] < layout.wall_x)[:, None]
        return torch.where(on_left, one, two), torch.where(on_left, two, one)

    def new_goal(position: Tensor) -> Tensor:
        left, right = rooms()
        to_right = (position[:, 0] < layout.wall_x) == cross
        return torch.where(to_right[:, None], right, left)

    positions = [sample_start_goal(layout, "medium", generator)[0]]
    goal = new_goal(positions[0])
    actions = []
    for _ in range(rule.states - 1):
        actions.append(oracle_action(positions[-1], goal, layout, EXPERT_STEP))
        positions.append(step(positions[-1], actions[-1], layout, dynamics, generator, noise))
        reached = (positions[-1] - goal).norm(dim=-1, keepdim=True) < EXPERT_STEP / 2
        goal = torch.where(reached, new_goal(positions[-1]), goal)
    actions.append(torch.zeros_like(goal))
    return _Chunk(torch.stack(positions, 1), torch.stack(actions, 1), layout)
