"""What is asked of a world; `data.source` names a built-in one of `config.WORLDS`, or an own one.

An own one is module:Class (examples/own_world.py), in a file on Python's path.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import WORLDS, ConfigError, names_world
from hjepa_lib.worlds.layout import Layout


def trial_noise(
    seed: int, rows: Sequence[int], step: int, shape: tuple[int, ...], level: int = 0, draw: int = 0
) -> Tensor:
    """Standard normal (B, *shape), those of a trial the same alone and in any batch (I13).

    `rows` (B,) number the trials in their file; level 0 is the world, 1 upwards the planners';
    `draw` counts within an environment step.
    """
    bits = np.random.Philox(key=seed)
    normal, state = np.random.Generator(bits).standard_normal, bits.state
    numbers = np.empty((len(rows), *shape), np.float32)
    for place, row in zip(numbers, rows, strict=True):
        state["state"]["counter"][:] = (0, (level << 32) + draw, step, row)
        bits.state = state
        normal(dtype=np.float32, out=place)
    return torch.from_numpy(numbers)


def bound(actions: Tensor, cap: float, ball: bool = True) -> Tensor:
    """(..., A) -> the same with a Euclidean norm <= cap, or else with every component <= cap."""
    if not ball:
        return actions.clamp(-cap, cap)
    norm = actions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return actions * (cap / norm).clamp(max=1.0)


def reaching(direction: Tensor, cap: float, ball: bool = True) -> Tensor:
    """(..., A) -> the longest actions of these directions within the cap of `bound`."""
    length = direction.norm(dim=-1, keepdim=True) if ball else direction.abs().amax(-1, True)
    return cap * direction / length


class World:
    """B episodes with a state each; an own world has its methods up to `oracle_action`.

    All else has a default. Places are (x, y) px, x to the right and y down, whole numbers at the
    middle of a pixel; N is its `state_size`, A its `action_size`.

    Built as `World(layout, dynamics, seed=seed)` and, to draw frames, as `World(layout)`; what the
    B rows (two int16 each) of `layout` mean is its own, (0, 0) in a world with one layout.
    """

    frame_shape: ClassVar[tuple[int, int, int]] = (2, 65, 65)  # (C, Hpx, Wpx) of one frame, uint8
    stacked: ClassVar[int] = 1  # frames of one observation, oldest first
    action_size: ClassVar[int] = 2
    action_cap: ClassVar[float] = 2.45  # largest action, px where it moves the dot
    slides: ClassVar[bool] = False  # along walls, whatever dynamics are asked for
    resumes: ClassVar[bool] = True  # a state says how it goes on
    action_ball: ClassVar[bool] = True  # the cap is of the Euclidean norm, else of each component
    state_size: ClassVar[int] = 2
    place: ClassVar[tuple[int, int]] = (0, 1)  # columns of a state that are x and y, px
    max_steps: ClassVar[int] = 200  # of an episode
    radius: ClassVar[float] = math.sqrt(2)  # px, see `reached`
    task_sets: ClassVar[tuple[str, ...]] = ()  # kinds of tasks that `draw_tasks` knows
    trial_file: ClassVar[str] = ""  # how a built-in world's begin, "": with its name
    trials: ClassVar[dict[str, int]] = {"validation": 500, "test": 500}  # tasks of a split and set

    layout: Layout
    position: Tensor  # (B, N): the current states
    goal: Tensor | None = None  # (B, N), of a world whose episodes end there
    # Who plays stored trials sets `goal`, and their numbers `rows` (B,) for `trial_noise`.

    def sample_start_goal(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States (B, N) of start and goal of a task; trajectories begin at such starts too."""

    def reset(self, position: Tensor) -> Tensor:
        """Start at states (B, N), restart all randomness; returns the states."""

    def step(self, action: Tensor) -> Tensor:
        """Apply `action` (B, A); returns the new states (B, N), in a new tensor."""

    def render(self, position: Tensor | None = None) -> Tensor:
        """uint8 observations (B, ..., stacked * C, Hpx, Wpx) of states (B, ..., N), or the current.

        Made from the states alone: those of a world that stacks frames know their past.
        """

    def oracle_length(self, start: Tensor, goal: Tensor) -> Tensor:
        """Length (B,) px of the shortest feasible path, infinite where there is none."""

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """First action (B, A) of the best path from the current state, within `cap`."""

    def heading(self, goal: Tensor, cap: float) -> Tensor:
        """What the data recipe `navigate` follows: (B, A) towards the goal, within `cap`."""
        return self.oracle_action(goal, cap)

    def reached(self, state: Tensor, goal: Tensor) -> Tensor:
        """(...) bool: whether states (..., N) solve the task of their goals."""
        return (self.xy(state) - self.xy(goal)).norm(dim=-1) < self.radius

    def free(self, state: Tensor) -> Tensor:
        """(B,) bool: whether an episode may be at these states (B, N), in no wall, say."""
        return state.isfinite().all(-1)

    def crosses_wall(self, here: Tensor, there: Tensor) -> Tensor | None:
        """(B, P) bool: a step between places (B, P, 2) px goes through a wall; None: unknown."""

    def teleported(self, positions: np.ndarray, actions: np.ndarray) -> np.ndarray | None:
        """(B,) bool: something else than an action carried the dot away; None: nothing does that.

        Of episodes of positions (B, S+1, 2) px and actions (B, S, A).
        """

    @classmethod
    def observed(cls) -> tuple[int, int, int]:
        """(stacked * C, Hpx, Wpx) of what `render` draws."""
        channels, *sides = cls.frame_shape
        return (cls.stacked * channels, *sides)

    @classmethod
    def xy(cls, state: Any) -> Any:
        """Positions (..., 2) px of states (..., N), tensors or arrays."""
        own = cls.state_size == 2 and cls.place == (0, 1)
        return state if own else state[..., list(cls.place)]

    @classmethod
    def at_rest(cls, place: Tensor) -> Tensor:
        """States (..., N) that stay at positions (..., 2) px; the other columns are 0."""
        state = place.new_zeros(*place.shape[:-1], cls.state_size)
        state[..., list(cls.place)] = place
        return state

    @classmethod
    def layout_set(cls, name: str) -> np.ndarray:
        """Layouts (K, 2) int16: `fixed`, `random` = `train`, `many`, `validation`, `test`."""
        return np.zeros((1, 2), np.int16)

    @classmethod
    def draw_tasks(
        cls, task_set: str, split: str, n: int, generator: torch.Generator
    ) -> tuple[Layout, Tensor, Tensor]:
        """Layouts, starts and goals of n tasks in layouts of the split; "" is all kinds."""
        pool = cls.layout_set(split)
        several = len(pool) > 1  # nothing is drawn for one
        rows = torch.randint(len(pool), (n,), generator=generator).numpy() if several else [0] * n
        layout = Layout.of(pool[rows])
        return layout, *cls(layout).sample_start_goal(generator)

    @classmethod
    def collect(
        cls, transitions: int, layouts: np.ndarray, seed: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """A data recipe of its own, for `transitions` or more; None: the world is walked freely.

        States (R, L, N) and actions (R, L - 1, A) of episodes, their layouts (R, 2).
        """


_NEEDED = ("sample_start_goal", "reset", "step", "render", "oracle_length", "oracle_action")


def find_world(source: str) -> type[World] | None:
    """The class of a world that `data.source` names, built-in or module:Class; None for others.

    ConfigError when there is no such module or class, or when the class lacks a method.
    """
    if not names_world(source):
        return None
    own = f"{__package__}.{WORLDS[source]}" if source in WORLDS else source
    module, name = own.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.source={source}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, World)):
        raise ConfigError(f"data.source={source}: {name} must extend hjepa_lib.worlds.World")
    for method in _NEEDED:
        if getattr(found, method) is getattr(World, method):
            raise ConfigError(f"data.source={source}: the world lacks the method {method}")
    return found


def try_out(source: str, rows: int = 8) -> None:
    """ConfigError when a method of an own world returns something else than it promises."""
    world, generator = find_world(source), torch.Generator().manual_seed(0)
    if world is None or source in WORLDS:
        return
    own = world(Layout.of(world.layout_set("fixed")[[0] * rows]), "slide", seed=0)
    state, cap, ball = world.state_size, world.action_cap, world.action_ball

    def asked(method: str, found: Any, *shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        wanted, got = ((rows, *shape), kind), type(found)
        if isinstance(found, Tensor):
            got = tuple(found.shape), found.dtype
            if got[0] == wanted[0] and torch.can_cast(found.dtype, kind):
                return found
        raise ConfigError(f"data.source={source}: {method} must return {wanted}, got {got}")

    ends = own.sample_start_goal(generator)
    ends = (None, None) if ends is None else ends
    start, goal = (asked("sample_start_goal", one, state) for one in ends)
    own.rows, own.goal = range(rows), goal
    here = asked("reset", own.reset(start), state)
    best = asked("oracle_action", own.oracle_action(goal, cap), world.action_size)
    before, push = here.clone(), torch.randn(best.shape, generator=generator)
    there = asked("step", own.step(reaching(push, cap, ball)), state)
    seen = torch.stack([before, there, there], 1)
    asked("render", own.render(seen), 3, *world.observed(), kind=torch.uint8)
    asked("reached", own.reached(seen, goal[:, None]), 3, kind=torch.bool)
    asked("oracle_length", own.oracle_length(start, goal))
    if not here.equal(before):
        raise ConfigError(f"data.source={source}: step must return a new tensor, not change one")
    if not torch.allclose(best, bound(best, cap, ball), rtol=1e-4):
        raise ConfigError(f"data.source={source}: oracle_action goes beyond the cap of {cap}")
