"""OGBench's PointMaze (arXiv 2410.20092): its environment, data recipes, tasks and success.

The package `ogbench` moves the dot (MuJoCo) and says what success is; the picture is drawn here,
8 px a cell and 2 px a unit, from the place and the map alone: dot, walls and, in the teleport maze,
entrances at 255 (the disc that triggers), exits at 128.
One action is `repeat` equal environment steps; in the data its noise is one draw for all of them.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from torch import Tensor

from hjepa_lib.files import WorkbookError, extra, one_of
from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.boxes import BoxWorld, grid_boxes, open_cells
from hjepa_lib.worlds.layout import Layout

MAZES = {"medium": (8, 8), "large": (9, 12), "giant": (12, 16), "teleport": (9, 12)}
"""Cells down and across of every map, the border's included."""
UNIT, ORIGIN = 2.0, 11.5  # px a unit of the environment, and px of its (0, 0), of cell (1, 1)
CELL = 8  # px; cell (i, j), i down, covers the pixels from 8 j and 8 i on
STEPS = {"navigate": 1000, "stitch": 200}
"""Environment steps of a recorded episode; `navigate` in the giant maze has twice as many."""
BUDGET = 1000  # environment steps of a played episode
STEP = 0.2  # units that an environment step goes along an axis at most
BALL = 1.25  # px that the ball's centre keeps from walls: its radius is 1.4, contacts are soft
NOISE = 0.5  # of a recorded action, per axis, in units of its largest
AWAY = 4  # cells from the start of a `stitch` episode to its goal
TASKS = 5  # of a maze, played in turn: row r is task r % 5 + 1 with the seed r
_CHUNK = 250  # recorded episodes side by side
_JUMP = 1.5  # px: rounding a corner pushes a ball by 0.8, a teleporter moves it by 3 or more


@functools.cache
def environment(maze: str) -> Any:
    """OGBench's environment, one for all dots of a maze; whoever steps sets its data and goal.

    WorkbookError without the package, or with another map in it.
    """
    os.environ.setdefault("MUJOCO_GL", "disabled")  # nothing is drawn with it
    extra("ogbench")  # registers its environments
    env = gymnasium.make(f"pointmaze-{maze}-v0", terminate_at_goal=False).unwrapped
    if env.maze_map.shape != MAZES[maze]:
        raise WorkbookError(f"this ogbench has another {maze} maze than its version 1.2")
    return env


def teleporters(maze: str, end: str, kind: str = "xys") -> np.ndarray:
    """(n, 2) units, or cells (`ijs`), of entrances (`in`) or exits (`out`), if any."""
    info = environment(maze)._teleport_info or {}
    return np.reshape(info.get(f"teleport_{end}_{kind}", ()), (-1, 2))


@functools.cache
def closed_cells(maze: str, entrances: bool = False) -> np.ndarray:
    """(H, W) bool: closed cells of the map, `entrances` of teleporters with them."""
    found = environment(maze).maze_map == 1
    if entrances:
        found[tuple(teleporters(maze, "in", "ijs").astype(int).T)] = True
    return found


@functools.cache
def next_cell(maze: str, cell: tuple[int, int], goal: tuple[int, int]) -> np.ndarray:
    """The place (2,), units, that the environment's own oracle walks to from a cell."""
    env = environment(maze)
    return env.get_oracle_subgoal(env.ij_to_xy(cell), env.ij_to_xy(goal))[0]


def turns(maze: str) -> np.ndarray:
    """Open cells (n, 2) but those of straight corridors: goals of `navigate`."""
    closed = closed_cells(maze)
    up, down, left, right = (np.roll(closed, shift, axis) for axis in (0, 1) for shift in (1, -1))
    corridor = left & right & ~up & ~down | up & down & ~left & ~right
    return np.argwhere(~closed & ~corridor)


@functools.cache
def discs(maze: str) -> Tensor | None:
    """(Hpx, Wpx) uint8 of the teleporters, None where there are none."""
    sides = [CELL * side for side in MAZES[maze]]
    found, (down, across) = np.zeros(sides, np.uint8), np.indices(sides)
    for end, radius, light in (("out", 1.0, 128), ("in", 1.5, 255)):
        for x, y in UNIT * teleporters(maze, end) + ORIGIN:
            found[np.hypot(across - x, down - y) <= UNIT * radius] = light
    return torch.from_numpy(found) if found.any() else None


def centre_of(cell: np.ndarray) -> np.ndarray:
    """Places (..., 2), units, of cells (..., 2)."""
    return 4.0 * (cell[..., ::-1] - 1)


def to_px(place: np.ndarray) -> Tensor:
    return torch.from_numpy(UNIT * place + ORIGIN).float()


def to_units(position: Tensor) -> np.ndarray:
    return (position.double().numpy() - ORIGIN) / UNIT


@contextlib.contextmanager
def _global_numpy_kept() -> Iterator[None]:
    """The environment draws from NumPy's global generator, which nobody else should notice."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


class PointMaze(BoxWorld):
    """B dots in one maze, each with a MuJoCo state; a subclass names the map and the data recipe.

    `action_cap` is `repeat` environment steps at full speed along an axis. The environment ends an
    episode at the step that met the goal, so a dot with a `goal` (B, 2) stands still from there on.
    Boxes serve shortest paths alone.
    """

    maze: ClassVar[str]
    recipe: ClassVar[str]
    repeat = 5
    action_ball = False
    resumes = False
    clearance = 0.3  # px from boxes
    radius = 1.0 * UNIT + 1e-5  # the environment's; a state is rounded to float32
    trials: ClassVar = {"validation": 50 * TASKS, "test": 50 * TASKS}

    crosses_wall = World.crosses_wall  # contacts let nobody through; boxes are wider than walls

    def __init_subclass__(cls) -> None:
        """WorkbookError for an unknown map or recipe, and where actions do not fill an episode."""
        for name, known in (("maze", MAZES), ("recipe", STEPS)):
            one_of(name, getattr(cls, name, None), known)
        if not isinstance(cls.repeat, int) or cls.repeat < 1 or STEPS["stitch"] % cls.repeat:
            raise WorkbookError(f"repeat must divide {STEPS['stitch']}, got {cls.repeat!r}")
        cls.frame_shape = (2 + (cls.maze == "teleport"), *(CELL * side for side in MAZES[cls.maze]))
        cls.action_cap, cls.max_steps = cls.repeat * STEP * UNIT, BUDGET // cls.repeat
        cls.trial_file = f"pointmaze_{cls.maze}"

    @classmethod
    def draw_tasks(
        cls, task_set: str, split: str, n: int, generator: torch.Generator
    ) -> tuple[Layout, Tensor, Tensor]:
        """Starts and goals as the environment draws them.

        Validation has five other pairs of cells: no reverse of the test's, and as far apart as the
        nearest of them at least.
        """
        env, (cells, steps) = environment(cls.maze), open_cells(closed_cells(cls.maze, True))
        number = {tuple(cell): place for place, cell in enumerate(cells.tolist())}
        pairs = [(number[task["init_ij"]], number[task["goal_ij"]]) for task in env.task_infos]
        if split != "test":
            far = np.argwhere(np.isfinite(steps) & (steps >= min(steps[pair] for pair in pairs)))
            others = [pair for pair in far.tolist() if not {(*pair,), (*pair[::-1],)} & {*pairs}]
            chosen = torch.randperm(len(others), generator=generator)[:TASKS]
            pairs = [others[place] for place in chosen]
        ends = np.empty((2, n, 2))
        with _global_numpy_kept():
            for row in range(n):
                np.random.seed(row)
                start, goal = (tuple(cells[place]) for place in pairs[row % TASKS])
                env.reset(options={"task_info": {"init_ij": start, "goal_ij": goal}})
                ends[:, row] = env.get_xy(), env.cur_goal_xy
        return Layout.of(np.zeros((n, 2))), *map(to_px, ends)

    def sample_start_goal(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, 2) px each, as in the tasks, of cells that a way without teleporters joins."""
        (cells, steps), batch = open_cells(closed_cells(self.maze, True)), self.layout.batch
        pairs = np.argwhere(np.isfinite(steps) & (steps > 0))
        pairs = pairs[torch.randint(len(pairs), (batch,), generator=generator).numpy()]
        noise = 2 * torch.rand(batch, 2, 2, generator=generator).numpy() - 1
        start, goal = to_px(centre_of(cells[pairs]) + noise).unbind(1)
        return start, goal

    def reset(self, position: Tensor) -> Tensor:
        """Put the dots at `position` (B, 2) px; nobody has arrived."""
        env, self._data = environment(self.maze), []
        for place in to_units(position):
            env.data = type(env.data)(env.model)  # new
            env.set_xy(place)
            self._data.append(env.data)
        self.position, self.steps = position.float().clone(), 0
        self.arrived = np.zeros(len(position), bool)
        return self.position

    def step(self, action: Tensor) -> Tensor:
        """Move by `action` (B, 2) px, cut to the box."""
        self.arrived |= self._advance(action, ~self.arrived)
        return self.position

    def _advance(self, action: Tensor, moving: np.ndarray, stop: bool = True) -> np.ndarray:
        """`repeat` environment steps of the rows `moving`; (B,) which met their goals in one.

        `stop`: those do not go on from there.
        """
        env, met = environment(self.maze), np.zeros(len(action), bool)
        pushes = (action / self.action_cap).clamp(-1, 1).double().numpy()
        goals = np.full(pushes.shape, np.inf) if self.goal is None else to_units(self.goal)
        places = to_units(self.position)
        with _global_numpy_kept():
            for row in np.flatnonzero(moving):
                env.data, env.cur_goal_xy = self._data[row], goals[row]
                np.random.seed((self.seed % 2**32, self.rows[row], self.steps))  # of an exit
                for _ in range(self.repeat):
                    met[row] |= env.step(pushes[row])[-1]["success"] > 0
                    if stop and met[row]:
                        break
                places[row] = env.get_xy()
        self.position, self.steps = to_px(places), self.steps + 1
        return met

    def teleported(self, positions: np.ndarray, actions: np.ndarray) -> np.ndarray | None:
        """Episodes that jumped once: a wall takes of an action what it will, and hardly adds to it
        or turns it round."""
        if self.maze != "teleport":
            return None
        moves = np.diff(positions, axis=1)
        possible = moves.clip(np.minimum(actions, 0), np.maximum(actions, 0))
        return (np.abs(moves - possible) > _JUMP).any((1, 2))

    @classmethod
    def boxes_of(cls, row: tuple[int, int]) -> np.ndarray:
        """Where the ball's centre cannot be, and cells of entrances, which shortest paths avoid."""
        closed = grid_boxes(closed_cells(cls.maze, entrances=True), CELL)
        return closed + np.float32(BALL) * np.array([-1, -1, 1, 1], np.float32)

    @functools.cached_property
    def walls(self) -> Tensor:
        """Wall channel (1, Hpx, Wpx) uint8."""
        closed = torch.from_numpy(closed_cells(self.maze)).to(self.device, torch.uint8) * 255
        return closed.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[None]

    def _frames(self, state: Tensor) -> Tensor:
        frames = super()._frames(state)
        if (still := discs(self.maze)) is None:
            return frames
        still = still.to(frames.device).expand_as(frames[..., :1, :, :])
        return torch.cat((frames, still), -3)

    @classmethod
    def collect(
        cls, transitions: int, layouts: np.ndarray, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Episodes of the recipe; published: 200,000 transitions of 5 steps."""
        begin, per = time.perf_counter(), STEPS[cls.recipe] // cls.repeat
        per *= 2 if (cls.maze, cls.recipe) == ("giant", "navigate") else 1
        count = -(-transitions // per)
        parts = [
            cls._walk(min(_CHUNK, count - first), per, np.random.default_rng((seed, first)))
            for first in range(0, count, _CHUNK)
        ]
        minutes = (time.perf_counter() - begin) / 60
        of = f"{transitions:,} transitions of PointMaze, {cls.repeat} environment steps each"
        print(f"{of}, in {minutes:.1f} min")
        positions, actions = map(torch.cat, zip(*parts, strict=True))
        return positions, actions, torch.zeros(count, 2)

    @classmethod
    def _walk(cls, n: int, steps: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Positions (n, steps + 1, 2) and actions (n, steps, 2), px.

        All walk to the next cell on the way, with noise; who met a goal gets a new one in
        `navigate`, at the next action, and stays about there in `stitch`.
        """
        env, corners = environment(cls.maze), turns(cls.maze)
        cells, apart = open_cells(closed_cells(cls.maze))

        def near(cell: np.ndarray) -> np.ndarray:
            return centre_of(cell) + rng.uniform(-1, 1, cell.shape)

        start, goal = rng.integers(len(cells), size=n), rng.choice(corners, n)
        if cls.recipe == "stitch":  # the start itself where no cell is so far away
            for row, place in enumerate(start):
                far = cells[apart[place] == AWAY]
                goal[row] = rng.choice(far) if len(far) else cells[place]
        aim, world = near(goal), cls(Layout.of(np.zeros((n, 2))), seed=int(rng.integers(2**31)))
        positions, actions = [world.reset(to_px(near(cells[start])))], []
        for _ in range(steps):
            here, world.goal = to_units(world.position), to_px(aim)
            cells_of = ([env.xy_to_ij(place) for place in places] for places in (here, aim))
            way = [next_cell(cls.maze, *ends) for ends in zip(*cells_of, strict=True)] - here
            way /= np.linalg.norm(way, axis=-1, keepdims=True) + 1e-6
            push = (way + rng.normal(0, NOISE, way.shape)).clip(-1, 1)
            actions.append(torch.from_numpy(push * cls.action_cap).float())
            met = world._advance(actions[-1], np.full(n, True), stop=False)
            positions.append(world.position)
            if cls.recipe == "navigate":
                aim[met] = near(rng.choice(corners, met.sum()))
        return torch.stack(positions, 1), torch.stack(actions, 1)


(
    MediumNavigate, MediumStitch, LargeNavigate, LargeStitch,
    GiantNavigate, GiantStitch, TeleportNavigate, TeleportStitch,
) = (
    type(f"{maze.title()}{recipe.title()}", (PointMaze,), {"maze": maze, "recipe": recipe})
    for maze in MAZES for recipe in STEPS
)  # fmt: skip
