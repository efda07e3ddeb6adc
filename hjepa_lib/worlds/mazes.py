"""Random grid mazes in the manner of Diverse Maze (PLDM arXiv 2502.14819, HWM 2604.03208).

8 x 7 cells of 8 px and a border of 4 px. Of the cells 50 to 80 % are open, all of them connected;
the middle of an open 3 x 3 block is closed again; the longest shortest path leads over 13 to 20
cells. The number of a map is its seed. A task is solved within half a cell of its goal.
"""

import functools
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from hjepa_lib.worlds.base import bound
from hjepa_lib.worlds.boxes import BoxWorld, grid_boxes, open_cells, slide
from hjepa_lib.worlds.layout import Layout, paint, pick_layouts

ROWS, COLUMNS = 7, 8
CELL, BORDER = 8, 4  # px
OPEN = 0.5, 0.8  # share of the cells
LONGEST = 13, 20  # steps from cell to cell of a map's longest shortest path
JITTER = 2.5  # px around a cell's middle, per axis, where tasks begin and end
NUMBERS = {
    "train": range(25), "many": range(400), "validation": range(1000, 1040),
    "test": range(2000, 2060),
}  # fmt: skip
"""Maps of a list; the 25 of training are the first of the `many`, and the very first is `fixed`."""
BINS = {"d5_8": (5, 8), "d9_12": (9, 12), "d13_16": (13, 16), "d17_20": (17, 20)}
"""Sets of tasks: steps from cell to cell of the shortest path."""


class Map(NamedTuple):
    """One maze."""

    closed: np.ndarray  # (7, 8) bool
    cells: np.ndarray  # (n, 2) int64 row and column of the open ones
    steps: np.ndarray  # (n, n) int64 between them


@functools.lru_cache(maxsize=1024)
def maze_map(number: int) -> Map:
    """The map of a number: the first good one of the grids that its seed draws."""
    random = np.random.RandomState(number)  # its stream is frozen for all versions of NumPy
    while True:
        share = random.uniform(*OPEN)
        closed = (random.permutation(ROWS * COLUMNS) >= share * ROWS * COLUMNS).reshape(ROWS, -1)
        parts, _ = label(~closed)
        closed = parts != np.bincount(parts[parts > 0]).argmax()  # all but the largest part
        for i in range(1, ROWS - 1):
            for j in range(1, COLUMNS - 1):
                if not closed[i - 1 : i + 2, j - 1 : j + 2].any():
                    closed[i, j] = True
        if OPEN[0] <= np.mean(~closed) <= OPEN[1]:
            cells, steps = open_cells(closed)
            if LONGEST[0] <= steps.max() <= LONGEST[1]:
                return Map(closed, cells, steps.astype(np.int64))


def middle(cells: np.ndarray) -> Tensor:
    """Places (..., 2) px of the middles of cells (..., 2)."""
    return torch.from_numpy(BORDER + CELL * (cells[..., ::-1] + 0.5) - 0.5).float()


class Maze(BoxWorld):
    """Kinematic: an action is a displacement. The first number of a layout's row is the map."""

    frame_shape = (2, ROWS * CELL + 2 * BORDER, COLUMNS * CELL + 2 * BORDER)
    max_steps = 500
    radius = CELL / 2
    task_sets = tuple(BINS)
    trials: ClassVar = {"validation": 50, "test": 200}

    @classmethod
    def boxes_of(cls, row: tuple[int, int]) -> np.ndarray:
        """Boxes (M, 4) px of a map."""
        return grid_boxes(maze_map(row[0]).closed, CELL, BORDER)

    @classmethod
    def layout_set(cls, name: str) -> np.ndarray:
        """Layouts (K, 2) int16, rows (map, 0), of `NUMBERS`."""
        numbers = pick_layouts(name, range(1), NUMBERS)
        return np.array([(number, 0) for number in numbers], np.int16)

    @classmethod
    def draw_tasks(
        cls, task_set: str, split: str, n: int, generator: torch.Generator
    ) -> tuple[Layout, Tensor, Tensor]:
        """n tasks of a bin, or of all in turn."""
        pool, kinds = cls.layout_set(split), [task_set] if task_set else list(BINS)

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        rows, ends = [], []
        while len(rows) < n:
            low, high = BINS[kinds[len(rows) % len(kinds)]]
            row = pool[draw(len(pool))]
            maze = maze_map(int(row[0]))
            pairs = np.argwhere((maze.steps >= low) & (maze.steps <= high))
            if len(pairs):  # the longest bin is not in every map
                rows.append(row)
                ends.append(maze.cells[pairs[draw(len(pairs))]])
        shift = JITTER * (2 * torch.rand(n, 2, 2, generator=generator) - 1)
        start, goal = (middle(np.array(ends)) + shift).unbind(1)
        return Layout.of(np.array(rows)), cls.at_rest(start), cls.at_rest(goal)

    def sample_start_goal(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States (B, N) at rest near the middles of two open cells."""
        cells = [maze_map(int(number)).cells for number in self.layout.wall_x.tolist()]
        found = []
        for shares in torch.rand(2, len(cells), generator=generator).numpy():
            picks = [own[int(share * len(own))] for share, own in zip(shares, cells, strict=True)]
            shift = JITTER * (2 * torch.rand(len(cells), 2, generator=generator) - 1)
            found.append(self.at_rest(middle(np.array(picks)) + shift).to(self.device))
        return tuple(found)


DRAG, SPEED = 0.9, 2.45  # of the last displacement a step keeps so much; px a step, at most
SLOW = 0.8  # px a step that the oracle has at a bend
GAIN = 0.3  # of the way to the next bend, that is the speed it wants


class VelocityMaze(Maze):
    """With momentum: an action is a force, added to what is kept of the last displacement.

    A state is the place and the one before it; an observation shows both, and no velocity.
    """

    stacked = 2
    state_size = 4
    action_cap = 0.6
    clearance = 2.0

    @classmethod
    def at_rest(cls, place: Tensor) -> Tensor:
        """States (..., 4) that have not moved."""
        return torch.cat((place, place), -1)

    def step(self, action: Tensor) -> Tensor:
        """Push by `action` (B, 2)."""
        here, before = self.position.split(2, -1)
        move = bound(DRAG * (here - before) + action, SPEED)
        self.position = torch.cat((slide(here, move, self.boxes), here), -1)
        return self.position

    def _frames(self, state: Tensor) -> Tensor:
        here, before = state.split(2, -1)
        return torch.cat((paint(before, self.walls), paint(here, self.walls)), -3)

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """The force (B, 2) that turns the velocity towards the next bend of the way."""
        here, before = self.position.split(2, -1)
        way = self.route(here, self.xy(goal), self.clearance)[1] - here
        gap = way.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        wanted = way / gap * (GAIN * gap).clamp(SLOW, SPEED)
        return bound(wanted - DRAG * (here - before), cap)
