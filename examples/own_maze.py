"""An own maze: a point that slides along thin walls. Copy this file for yours, under another name.

python examples/own_maze.py  # before any training: does the oracle arrive? How does it look?
PYTHONPATH=examples python -m hjepa_lib run --set data.source=own_maze:Maze  # then the chapters
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse.csgraph import shortest_path

from hjepa_lib.worlds import Layout, World

NUMBER = 100  # which maze; each in its own file, as trainings are known by the file's name
CELLS, CELL, WIDE = 8, 8, 1.5  # cells a side, px a cell, px a wall; grid lines at 0, 8 ... 64 px
FINE = 4  # squares a px of the drawing below, which says for all others what is wall
WAY = 85, 130  # px: shortest ways from start to goal
PARTS = 8  # of a step; each far shorter than a wall is wide (largest action: 2.45 px)


def carve(random):
    """The walls of a maze, bool (65 FINE, 65 FINE): squares of a drawing that begins at -0.5 px."""
    wide, cell, rim = int(WIDE * FINE), CELL * FINE, int((WIDE + 1) * FINE / 2)
    walls = np.pad(np.zeros((65 * FINE - 2 * rim,) * 2, bool), rim, constant_values=True)
    area = np.arange(CELLS**2)  # of each cell, row by row
    pairs = [(n, n + 1) for n in area if (n + 1) % CELLS] + [(n, n + CELLS) for n in area[:-CELLS]]
    for one, two in random.permutation(pairs):
        closed = area[one] == area[two]  # Kruskal: what parts two areas is opened
        area[area == area[two]] = area[one]
        top, left = (line * cell + rim - wide for line in divmod(two, CELLS))
        high, long = (wide, cell + wide) if two - one == CELLS else (cell + wide, wide)
        walls[max(top, 0) : top + high, max(left, 0) : left + long] |= closed
    return torch.from_numpy(walls)


def in_wall(place):
    """Whether places (..., 2) px, x and y, are wall: (...) bool; outside all is wall."""
    column, row = ((place + 0.5) * FINE).long().clamp(0, 65 * FINE - 1).unbind(-1)
    return WALLS.take(row * 65 * FINE + column)


def sight(one, two):
    """Distance of places (..., 2) px that see each other, else infinite: (...)."""
    way = torch.linspace(0, 1, 129)[:, None] * (two - one)[..., None, :]
    blocked = in_wall(one[..., None, :] + way).any(-1)
    return torch.where(blocked, torch.inf, (two - one).norm(dim=-1))


WALLS = carve(np.random.RandomState(NUMBER))
PICTURE = (255 * WALLS.view(65, FINE, 65, FINE).float().mean((1, 3))).byte()
TOUCH = [  # free squares that touch a wall with a corner only: shortest ways bend there
    (WALLS.roll((y, x), (0, 1)) & ~WALLS.roll(y, 0) & ~WALLS.roll(x, 1) & ~WALLS).nonzero()
    for y, x in ((1, 1), (1, -1), (-1, 1), (-1, -1))
]
CORNERS = (torch.cat(TOUCH).flip(1) + 0.5) / FINE - 0.5  # (K, 2) px
BETWEEN = torch.tensor(shortest_path(sight(CORNERS[:, None], CORNERS).numpy())).float()  # (K, K) px


class Maze(World):
    """B points; `python -m pydoc hjepa_lib.worlds.World` says what the methods take and return."""

    def __init__(self, layout, dynamics="slide", seed=0):
        self.layout, self.position = layout, None

    def sample_start_goal(self, generator):
        (start, goal), length = torch.zeros(2, self.layout.batch, 2), torch.zeros(self.layout.batch)
        while (left := (length < WAY[0]) | (length > WAY[1])).any():  # these are drawn again
            cell = torch.randint(CELLS, (2, int(left.sum()), 2), generator=generator)
            inside = WIDE + (CELL - 2 * WIDE) * torch.rand(cell.shape, generator=generator)
            start[left], goal[left] = CELL * cell + inside
            length[left] = self.oracle_length(start[left], goal[left])
        return start, goal

    def reset(self, position):
        self.position = position
        return position

    def step(self, action):
        for _ in range(PARTS):  # x, then y: what a wall stops in one, goes on in the other
            for move in action * torch.eye(2)[:, None] / PARTS:
                moved = self.position + move
                self.position = torch.where(in_wall(moved)[:, None], self.position, moved)
        return self.position

    def free(self, state):
        return ~in_wall(state)

    def render(self, position=None):
        x, y = (self.position if position is None else position)[..., None, None].unbind(-3)
        pixel = torch.arange(65.0, device=x.device)
        dot = 255 * torch.exp(-((pixel - x) ** 2) / 4) * torch.exp(-((pixel[:, None] - y) ** 2) / 4)
        return torch.stack((dot.byte(), PICTURE.to(x.device).expand(dot.shape)), -3)

    def oracle_length(self, start, goal):
        return self._route(start, goal)[0]

    def oracle_action(self, goal, cap):
        move = self._route(self.position, goal)[1] - self.position
        return move * cap / move.norm(dim=-1, keepdim=True).clamp(min=cap)

    def _route(self, start, goal):
        """Length (B,) px of the shortest way and where it bends first, or ends: (B, 2) px."""
        gap, one = (start[:, None] - CORNERS).norm(dim=-1).min(-1)
        start = torch.where(gap[:, None] < 0.01, CORNERS[one], start)  # rounding must hide nothing
        straight = sight(start, goal)
        near, far = (torch.stack([sight(end, k) for k in CORNERS], -1) for end in (start, goal))
        rest = (far[:, None] + BETWEEN).amin(-1)  # (B, K) from each corner to the goal
        bend = CORNERS[(near + 1.0001 * rest).argmin(-1)]  # of equal ways the corner farther on
        bend = torch.where(straight.isfinite()[:, None], goal, bend)
        return torch.minimum(straight, (near + rest).amin(-1)), bend


if __name__ == "__main__":
    world = Maze(Layout.of(np.zeros((100, 2))))
    start, goal = world.sample_start_goal(torch.Generator().manual_seed(0))
    plt.imsave("own_maze.png", world.render(world.reset(start))[0].amax(0), cmap="gray")
    solved = torch.zeros(100, dtype=torch.bool)
    for _ in range(world.max_steps):
        solved |= world.reached(world.step(world.oracle_action(goal, 1.8365)), goal)
    print(f"the oracle solves {solved.sum()} of 100 tasks; the first start is in own_maze.png")
