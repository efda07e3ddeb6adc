"""Generated data: the recipes of PLDM (arXiv 2502.14819) and EB-JEPA (arXiv 2602.03604).

Differs: the size is exact, everything follows from one seed (sampled by inverse distribution
functions), and `expert` (broken in PLDM) follows the shortest path.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.data.measures import crosses
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.files import WorkbookError, sha256
from hjepa_lib.worlds.base import World, find_world
from hjepa_lib.worlds.layout import DOOR_HALF, HIGH, LOW, Layout, layout_set
from hjepa_lib.worlds.oracle import oracle_action
from hjepa_lib.worlds.two_rooms import NOISE, TwoRooms, sample_start_goal, step

SMOOTH, UNIFORM = 5.0, 1e-6
"""von Mises concentration of the heading changes: 1 / 0.2 and 1 / 1e6."""
SIZES = (634, 1269, 5078, 20312, 81250, 325_000, 1_500_000, 3_000_000)
"""Published data-set sizes, in transitions."""
EXPERT_STEP = 0.9  # px, step length of `expert`
_CHUNK = 4096  # trajectories simulated at once: their state fits the cache
STEP_MEAN, STEP_STD, STEP_LOW, STEP_HIGH = 1.0, 0.4, 0.2, 1.8
"""Step length in px: normal(mean, std) truncated to [low, high], which is mean +- 2 std."""
DOOR_STD = 1.4  # px, of the crossing point around the door's centre
EDGE = 0.01  # px, how far inside the border back-computed starts are clamped
_NODES = 1 << 16


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


Chunk = tuple[Tensor, Tensor, Tensor]
"""Positions (n, L, 2), actions (n, L - 1, 2) and layouts (n, 2) of n trajectories."""


def generate(
    recipe: str,
    transitions: int,
    layouts: str | np.ndarray = "fixed",
    seed: int = 0,
    dynamics: str = "blocked",
    good_fraction: float = 0.02,
    exclude_wall: str = "",
    exclude_door: str = "",
    noise: float = NOISE,
    source: str = "generated",
) -> Trajectories:
    """Exactly `transitions` transitions of a recipe; equal arguments give equal data.

    `layouts` is a name known to `layout_set` or an array (K, 2); each trajectory draws one. An own
    world (`source`) is walked freely. `noise` (px) acts with `bounce` only.
    """
    world, rule, named = find_world(source), RECIPES[recipe], isinstance(layouts, str)
    if world is None:
        TwoRooms(Layout.fixed(), dynamics, noise)  # refuses what it does not know
    elif recipe in ("no_crossing", "expert"):
        raise WorkbookError(f"recipe {recipe} needs two rooms; an own world has none")
    elif not named or layouts != "fixed":
        raise WorkbookError("an own world has one layout, so data.layouts must be fixed")
    per = (rule.keep or rule.states) - 1
    count = math.ceil(transitions / per)
    lengths = torch.full((count,), per + 1)
    lengths[-1] = transitions - per * (count - 1) + 1
    pool = layout_set(layouts, exclude_wall, exclude_door) if named else layouts
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
    made: list[Chunk] = []
    done = 0
    while done < count:
        part = kappa[done : done + _CHUNK]
        if world is None:
            made.append(_chunk(recipe, rule, part, pool, generator, dynamics, noise))
        else:
            made.append(_walk(world, rule, part, dynamics, generator))
        done += len(made[-1][0])
    positions, actions, drawn = (torch.cat(column) for column in zip(*made, strict=True))
    actions = torch.nn.functional.pad(actions, (0, 0, 0, 1))  # a last state has no action
    positions, actions = (
        rows.flatten(0, 1)[: transitions + count] for rows in (positions, actions)
    )
    actions[-1] = 0
    return Trajectories(positions, actions, lengths, drawn[:count].to(torch.int16), meta)


def _chunk(
    recipe: str, rule: Recipe, kappa: Tensor, pool: np.ndarray, generator: torch.Generator,
    dynamics: str, noise: float,
) -> Chunk:  # fmt: skip
    """At most len(kappa) trajectories (`no_crossing` drops some)."""
    n = len(kappa)
    layout = Layout.of(pool[torch.randint(len(pool), (n,), generator=generator).numpy()])
    built = torch.arange(n) < math.ceil(rule.rate * n)
    if recipe == "eb_jepa":
        built = torch.rand(n, generator=generator) < rule.rate
    # Shuffled, so that a truncated or split set has the same share everywhere.
    built = built[torch.randperm(n, generator=generator)]
    move = functools.partial(
        step, layout=layout, dynamics=dynamics, generator=generator, noise=noise
    )
    if recipe == "expert":
        return _expert(layout, rule, built, move, generator)
    start, actions = random_motion(layout, rule.states - 1, kappa, built, generator)
    positions = [start]
    for action in actions.unbind(1):
        positions.append(move(positions[-1], action))
    chunk = (torch.stack(positions, 1), actions, layout.pairs())
    if recipe == "no_crossing":
        keep = ~crosses(chunk[0], layout)
        return tuple(part[keep] for part in chunk)
    return _keep(rule, chunk, generator)


def _keep(rule: Recipe, chunk: Chunk, generator: torch.Generator) -> Chunk:
    """A random slice of `rule.keep` states of each trajectory; 0 keeps all."""
    if not rule.keep:
        return chunk
    positions, actions, layout = chunk
    shape = (len(positions), 1)
    first = torch.randint(rule.states - rule.keep + 1, shape, generator=generator)
    rows = (first + torch.arange(rule.keep))[..., None].expand(-1, -1, 2)
    return positions.gather(1, rows), actions.gather(1, rows[:, :-1]), layout


def _walk(
    world: type[World], rule: Recipe, kappa: Tensor, dynamics: str, generator: torch.Generator
) -> Chunk:
    """Free walks of an own world, from starts that it draws itself."""
    pairs = torch.zeros(len(kappa), 2)
    layout, free = Layout.of(pairs), torch.zeros(len(kappa), dtype=torch.bool)
    _, actions = random_motion(layout, rule.states - 1, kappa, free, generator)
    seed = int(torch.randint(2**31, (), generator=generator))  # of the world's own randomness
    episodes = world(layout, dynamics, seed=seed)
    positions = [episodes.reset(episodes.sample_start_goal(generator)[0])]
    positions += [episodes.step(action) for action in actions.unbind(1)]
    return _keep(rule, (torch.stack(positions, 1), actions, pairs), generator)


def _expert(
    layout: Layout, rule: Recipe, cross: Tensor, move: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator,
) -> Chunk:  # fmt: skip
    """Shortest paths at 0.9 px per step, goal after goal; only where `cross` between the rooms."""

    def new_goal(position: Tensor) -> Tensor:
        one, two = sample_start_goal(layout, "medium", generator)
        to_right = (position[:, 0] < layout.wall_x) == cross
        return torch.where(((one[:, 0] < layout.wall_x) != to_right)[:, None], one, two)

    positions = [sample_start_goal(layout, "medium", generator)[0]]
    goal, actions = new_goal(positions[0]), []
    for _ in range(rule.states - 1):
        actions.append(oracle_action(positions[-1], goal, layout, EXPERT_STEP))
        positions.append(move(positions[-1], actions[-1]))
        reached = (positions[-1] - goal).norm(dim=-1, keepdim=True) < EXPERT_STEP / 2
        goal = torch.where(reached, new_goal(positions[-1]), goal)
    return torch.stack(positions, 1), torch.stack(actions, 1), layout.pairs()


# --- random actions -----------------------------------------------------------------------------
@functools.lru_cache(maxsize=8)
def _von_mises_quantiles(kappa: float) -> Tensor:  # (_NODES + 1,)
    """Angles at evenly spaced probabilities, from the numerically integrated density."""
    angle = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    density = torch.exp(kappa * (angle.cos() - 1))
    cumulative = torch.cat((torch.zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)))
    cumulative = cumulative / cumulative[-1]
    wanted = torch.linspace(0, 1, _NODES + 1, dtype=torch.float64)
    right = torch.searchsorted(cumulative, wanted).clamp(1, len(angle) - 1)
    low, high = cumulative[right - 1], cumulative[right]
    share = (wanted - low) / (high - low).clamp_min(1e-300)
    return (angle[right - 1] + share * (angle[right] - angle[right - 1])).float()


def von_mises(kappa: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Angles in [-pi, pi] with density proportional to exp(kappa cos angle)."""
    table = _von_mises_quantiles(kappa)
    place = torch.rand(shape, generator=generator) * _NODES
    node = place.long().clamp_max(_NODES - 1)
    return torch.lerp(table[node], table[node + 1], place - node)


def _truncated_normal(
    std: float, limit: float, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """normal(0, std) truncated to [-limit, limit]."""
    edge = math.erf(limit / std / math.sqrt(2))
    draw = (torch.rand(shape, generator=generator) * 2 - 1) * edge
    return std * math.sqrt(2) * torch.erfinv(draw)


def step_lengths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Step lengths in px, normal(1, 0.4) truncated to [0.2, 1.8]."""
    draw = _truncated_normal(STEP_STD, STEP_HIGH - STEP_MEAN, shape, generator)
    return (STEP_MEAN + draw).clamp(STEP_LOW, STEP_HIGH)


def free_starts(position: Tensor, layout: Layout, generator: torch.Generator) -> Tensor:
    """`position` (B, 2) px with starts inside the wall body moved to a random side (new x)."""
    n = len(position)
    share, side = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.5
    low, high = LOW + EDGE, HIGH - EDGE
    left = low + share * (layout.left - EDGE - low)
    right = layout.right + EDGE + share * (high - layout.right - EDGE)
    x, y = position.unbind(-1)
    column = (x >= layout.left) & (x <= layout.right)
    buried = column & ((y - layout.door_y).abs() > DOOR_HALF)
    return torch.stack((torch.where(buried, torch.where(side, right, left), x), y), -1)


def random_motion(
    layout: Layout, steps: int, kappa: Tensor, built: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Starts (B, 2) and intended actions (B, steps, 2), px, before any collision.

    `kappa` (B,) holds a few distinct values; `built` (B,) bool marks the trajectories constructed
    to pass the door, walls ignored, so fewer really do.
    """
    n = layout.batch
    turn = torch.zeros(n, steps)
    for value in kappa.unique().tolist():
        rows = kappa == value
        turn[rows] = von_mises(value, (int(rows.sum()), steps), generator)
    walk = turn.cumsum(1)  # (B, steps)
    crossing_step = torch.randint(steps + 1, (n, 1), generator=generator)

    def uniform(low: float, high: float) -> Tensor:  # (n,)
        return low + (high - low) * torch.rand(n, generator=generator)

    backward = uniform(0, 2 * math.pi)
    free = walk - walk[:, :1] + backward[:, None]
    # Built: both halves leave the door within 45 degrees of the outward normal, the first one
    # backward in time; half of all trajectories run the other way (heading + pi).
    reverse = (torch.rand(n, generator=generator) < 0.5).float() * math.pi
    arrive, leave = (uniform(-math.pi / 4, math.pi / 4) for _ in range(2))
    after = torch.arange(steps) >= crossing_step  # (B, steps)
    anchor_leave = walk.gather(1, crossing_step.clamp_max(steps - 1))
    anchor_arrive = walk.gather(1, (crossing_step - 1).clamp_min(0))
    through = torch.where(
        after, walk - anchor_leave + leave[:, None], walk - anchor_arrive + arrive[:, None]
    )
    heading = torch.where(built[:, None], through + reverse[:, None], free)
    length = step_lengths((n, steps), generator)
    actions = torch.stack((length * heading.cos(), length * heading.sin()), -1)  # (B, steps, 2)
    anywhere = torch.stack([uniform(LOW + EDGE, HIGH - EDGE) for _ in "xy"], -1)
    # A point of the door: x uniform between the faces, y normal(door_y, 1.4) in the opening.
    door_x = layout.left + torch.rand(n, generator=generator) * (layout.right - layout.left)
    door_y = layout.door_y + _truncated_normal(DOOR_STD, DOOR_HALF, (n,), generator)
    start = torch.stack((door_x, door_y), -1) - (actions * ~after[..., None]).sum(1)
    start = torch.where(built[:, None], start.clamp(LOW + EDGE, HIGH - EDGE), anywhere)
    return free_starts(start, layout, generator), actions
