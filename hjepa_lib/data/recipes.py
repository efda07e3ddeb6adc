"""Generated data: the recipes of PLDM (arXiv 2502.14819) and EB-JEPA (arXiv 2602.03604).

Differs: the size is exact, and all follows from one seed (by inverse distribution functions).
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from hjepa_lib.data.measures import crosses
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds.base import World, find_world
from hjepa_lib.worlds.layout import DOOR_HALF, HIGH, LOW, Layout, layout_set
from hjepa_lib.worlds.two_rooms import NOISE, TwoRooms

SMOOTH, UNIFORM = 5.0, 1e-6  # von Mises concentration of the heading's changes
SIZES = (634, 1269, 5078, 20312, 81250, 325_000, 1_500_000, 3_000_000)
"""Published data-set sizes, in transitions."""
STEP_MEAN, STEP_STD, STEP_LOW, STEP_HIGH = 1.0, 0.4, 0.2, 1.8  # px, see `step_lengths`
DOOR_STD = 1.4  # px, of the crossing point around the door's centre
EDGE = 0.01  # px, how far inside the border back-computed starts are clamped
STRAY, GOALS = 0.5, 3  # `navigate`: noise per axis of a unit heading (OGBench's), goals in a row
_CHUNK = 4096  # trajectories simulated at once: their state fits the cache
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
    "no_crossing": Recipe(),
    "eb_jepa": Recipe(rate=0.35, keep=17),
    "navigate": Recipe(),
}


def generate(
    recipe: str,
    transitions: int,
    layouts: str = "fixed",
    seed: int = 0,
    dynamics: str = "blocked",
    source: str = "generated",
    states: int = 0,
) -> Trajectories:
    """Exactly `transitions` transitions of a recipe; equal arguments give equal data.

    `layouts` is a name known to `layout_set`; each trajectory draws one. Another world (`source`)
    is walked freely, or from goal to goal in 60 % of the trajectories of `navigate`, the longest
    step being its cap, or collects by a recipe of its own. `states` replaces the recipe's own
    number per trajectory.
    """
    world, rule = find_world(source), RECIPES[recipe]
    if world is None:
        if recipe == "navigate":
            raise WorkbookError("recipe navigate is of other worlds than Two Rooms: good passes")
        pool = layout_set(layouts)
    else:
        if recipe == "no_crossing":
            raise WorkbookError(f"recipe {recipe} needs two rooms; an own world has none")
        pool = world.layout_set(layouts)
        if len(pool) == 1 and layouts != "fixed":
            raise WorkbookError("an own world has one layout, so data.layouts must be fixed")
    rule = rule._replace(states=states, keep=0) if states else rule
    count = math.ceil(transitions / ((rule.keep or rule.states) - 1))
    played = "slide" if world and world.slides else dynamics
    meta: dict[str, Any] = {"source": source, "recipe": recipe, "transitions": transitions}
    meta |= {"layouts": layouts, "seed": seed, "dynamics": played}
    meta["noise_px"] = NOISE if played == "bounce" else 0.0
    if own := world and world.collect(transitions, pool, seed):
        found = [tuple(one.shape) if isinstance(one, Tensor) else () for one in own]
        count, length, *_ = (*found[0], 0, 0)
        steps = count, length - 1, world.action_size
        whole = found == [(count, length, world.state_size), steps, (count, 2)]
        if not whole or count * steps[1] < transitions:
            shapes = "states (R, L, N), actions (R, L - 1, A) and layouts (R, 2) of whole episodes"
            raise WorkbookError(f"{world.__name__}.collect must return enough {shapes}")
        positions, actions, layout = own
        meta["recipe"] = "own"
    else:
        if world is not None and world.action_size != 2:
            raise WorkbookError(f"{world.__name__} has other actions than x and y: it must collect")
        generator, made, done = torch.Generator().manual_seed(seed), [], 0
        while done < count:
            part = min(_CHUNK, count - done)
            made.append(_chunk(world, recipe, rule, part, pool, generator, dynamics))
            done += len(made[-1][0])
        positions, actions, layout = map(torch.cat, zip(*made, strict=True))
    if not (positions.isfinite().all() and actions.isfinite().all()):
        raise WorkbookError(f"{source} made states or actions that are not finite numbers")
    lengths = torch.full((len(positions),), positions.shape[1])
    actions = pad(actions, (0, 0, 0, 1))  # a last state has no action
    whole = positions.flatten(0, 1), actions.flatten(0, 1), lengths, layout.to(torch.int16)
    return Trajectories(*whole, meta).first(transitions)


def _chunk(
    world: type[World] | None, recipe: str, rule: Recipe, n: int, pool: np.ndarray,
    generator: torch.Generator, dynamics: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """States (m, L, N), actions (m, L - 1, 2), layouts (m, 2); m <= n."""
    layout = Layout.of(pool[torch.randint(len(pool), (n,), generator=generator).numpy()])
    built = torch.zeros(n, dtype=torch.bool)
    if world is None or recipe == "navigate":
        built = torch.arange(n) < math.ceil(rule.rate * n)
        if recipe == "eb_jepa":
            built = torch.rand(n, generator=generator) < rule.rate
        # Shuffled, so that a truncated or split set has the same share everywhere.
        built = built[torch.randperm(n, generator=generator)]
    passing = built if world is None else torch.zeros_like(built)
    place, actions = random_motion(layout, rule.states - 1, rule.kappa, passing, generator)
    if world is None:
        episodes = TwoRooms(layout, dynamics)
        episodes.generator = generator
        place = episodes.reset(place)
    else:  # starts, scale and randomness are its own
        scale = world.action_cap / STEP_HIGH
        if not world.action_ball:  # a box is filled to its corners
            longest = actions.abs().amax(-1, keepdim=True)
            scale = scale * actions.norm(dim=-1, keepdim=True) / longest
        actions = actions * scale
        seed = int(torch.randint(2**31, (), generator=generator))
        episodes = world(layout, dynamics, seed=seed)
        place = episodes.reset(episodes.sample_start_goal(generator)[0])
    places = [place]
    if recipe == "navigate":
        goals = torch.stack([episodes.sample_start_goal(generator)[1] for _ in range(GOALS)])
        done = torch.zeros(n, dtype=torch.int64)
    for time, action in enumerate(actions.unbind(1)):
        if recipe == "navigate":
            goal = goals[done, torch.arange(n)]
            way = normalize(episodes.heading(goal, world.action_cap), dim=-1)
            way += STRAY * torch.randn(n, 2, generator=generator)
            way *= (action.norm(dim=-1) / way.norm(dim=-1))[:, None]  # of the free one's length
            actions[:, time] = action = torch.where(built[:, None], way, action)
            done = (done + episodes.reached(place, goal)).clamp(max=GOALS - 1)
        place = episodes.step(action)
        places.append(place)
    positions, pairs = torch.stack(places, 1), layout.pairs()
    if recipe == "no_crossing":
        keep = ~crosses(positions, layout)
        return positions[keep], actions[keep], pairs[keep]
    if rule.keep:
        first = torch.randint(rule.states - rule.keep + 1, (n, 1), generator=generator)
        rows = torch.arange(n)[:, None], first + torch.arange(rule.keep)
        positions, actions = positions[rows], actions[rows[0], rows[1][:, :-1]]
    return positions, actions, pairs


@functools.lru_cache(maxsize=8)
def _von_mises_quantiles(kappa: float) -> Tensor:  # (_NODES + 1,)
    """Angles at evenly spaced probabilities."""
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
    draw = (torch.rand(shape, generator=generator) * 2 - 1) * math.erf(limit / std / math.sqrt(2))
    return std * math.sqrt(2) * torch.erfinv(draw)


def step_lengths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Step lengths in px, normal(1, 0.4) truncated to [0.2, 1.8]."""
    draw = _truncated_normal(STEP_STD, STEP_HIGH - STEP_MEAN, shape, generator)
    return (STEP_MEAN + draw).clamp(STEP_LOW, STEP_HIGH)


def free_starts(position: Tensor, layout: Layout, generator: torch.Generator) -> Tensor:
    """(B, 2) px: starts inside the wall's body get a new x on a random side."""
    share, side = torch.rand(2, len(position), generator=generator)
    low, high = LOW + EDGE, HIGH - EDGE
    left = low + share * (layout.left - EDGE - low)
    right = layout.right + EDGE + share * (high - layout.right - EDGE)
    x, y = position.unbind(-1)
    column = (x >= layout.left) & (x <= layout.right)
    buried = column & ((y - layout.door_y).abs() > DOOR_HALF)
    return torch.stack((torch.where(buried, torch.where(side < 0.5, right, left), x), y), -1)


def random_motion(
    layout: Layout, steps: int, kappa: float, built: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Starts (B, 2) and intended actions (B, steps, 2), px, before any collision.

    `built` (B,) bool marks what is to pass the door, walls ignored, so fewer really do.
    """
    n = layout.batch
    walk = von_mises(kappa, (n, steps), generator).cumsum(1)  # (B, steps)
    crossing_step = torch.randint(steps + 1, (n, 1), generator=generator)

    def uniform(low: float | Tensor, high: float | Tensor) -> Tensor:  # (n, 1)
        return low + (high - low) * torch.rand(n, generator=generator)[:, None]

    free = walk - walk[:, :1] + uniform(0, 2 * math.pi)
    # Built: both halves leave the door within 45 degrees of the outward normal, the first one
    # backward in time; half of all trajectories run the other way (heading + pi).
    reverse = (uniform(0, 1) < 0.5).float() * math.pi
    arrive, leave = (uniform(-math.pi / 4, math.pi / 4) for _ in range(2))
    after = torch.arange(steps) >= crossing_step  # (B, steps)
    anchor_leave = walk.gather(1, crossing_step.clamp_max(steps - 1))
    anchor_arrive = walk.gather(1, (crossing_step - 1).clamp_min(0))
    through = torch.where(after, walk - anchor_leave + leave, walk - anchor_arrive + arrive)
    heading = torch.where(built[:, None], through + reverse, free)
    length = step_lengths((n, steps), generator)
    actions = torch.stack((length * heading.cos(), length * heading.sin()), -1)  # (B, steps, 2)
    anywhere = torch.cat([uniform(LOW + EDGE, HIGH - EDGE) for _ in "xy"], 1)
    # A point of the door: x uniform between the faces, y normal(door_y, 1.4) in the opening.
    door_x = uniform(layout.left[:, None], layout.right[:, None])
    door_y = layout.door_y[:, None] + _truncated_normal(DOOR_STD, DOOR_HALF, (n, 1), generator)
    start = torch.cat((door_x, door_y), 1) - (actions * ~after[..., None]).sum(1)
    start = torch.where(built[:, None], start.clamp(LOW + EDGE, HIGH - EDGE), anywhere)
    return free_starts(start, layout, generator), actions
