"""The temporal-distance head in a small maze with a wall and a door, against shortest paths.

5 x 5 cells, a wall between columns 1 and 2 and a door in its first row; walks are random and never
see most of the long ways. In the one-way maze the door lets nobody back: the way home is another
door in the last row.
"""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import shortest_path
from scipy.stats import spearmanr
from tiny import seeded

from hjepa_lib.config import DistanceConfig, OptimConfig
from hjepa_lib.models.distance import Distance
from hjepa_lib.training.distance import train_distance
from hjepa_lib.worlds.layout import Layout

SIDE = 5
CELLS = SIDE * SIDE
COLUMN = np.arange(CELLS) % SIDE
WALL = 1  # behind this column
FORMS = ("metric", "quasimetric")


def maze(one_way: bool = False) -> np.ndarray:
    """Neighbours (CELLS, CELLS), entry [i, j]: one step leads from i to j."""
    steps = np.zeros((CELLS, CELLS))
    for cell in range(CELLS):
        row, column = divmod(cell, SIDE)
        if row + 1 < SIDE:
            steps[cell, cell + SIDE] = steps[cell + SIDE, cell] = 1
        if column + 1 < SIDE:
            there, back = column != WALL or row == 0, column != WALL or row == 0
            if one_way and column == WALL:
                there, back = row == 0, row == SIDE - 1
            steps[cell, cell + 1], steps[cell + 1, cell] = there, back
    return steps


def walks(steps: np.ndarray, count: int = 300, length: int = 30) -> torch.Tensor:
    """Random walks (count, length) of cell numbers."""
    chance = torch.tensor(steps / steps.sum(1, keepdims=True))
    generator = seeded(1)
    path = [torch.randint(CELLS, (count,), generator=generator)]
    for _ in range(length - 1):
        path.append(torch.multinomial(chance[path[-1]], 1, generator=generator)[:, 0])
    return torch.stack(path, 1)


def latents() -> torch.Tensor:
    """(CELLS, D): the cell's place and one-hot number."""
    row, column = np.divmod(np.arange(CELLS), SIDE)
    place = torch.tensor(np.stack([row, column], 1) / SIDE, dtype=torch.float32)
    return torch.cat([place, torch.eye(CELLS)], 1)


@functools.cache
def learned(form: str, one_way: bool) -> tuple[np.ndarray, np.ndarray]:
    """(learned, true) steps between all cells, both (CELLS, CELLS)."""
    steps = maze(one_way)
    paths = walks(steps)
    count, length = paths.shape
    store = SimpleNamespace(
        lengths=torch.full((count,), length),
        starts=torch.arange(count + 1) * length,
        trajectory=torch.arange(count).repeat_interleave(length),
        latents=latents()[paths.flatten()],
        positions=torch.zeros(count * length, 2),
        layout=Layout.fixed(count),
    )
    optim = OptimConfig(updates=900, batch=128, lr=3e-3, weight_decay=0.0, warmup=0.02)
    config = DistanceConfig(
        form=form, dim=24, hidden=48, n_step=2, gamma=0.995, expectile=0.97, ema_rate=0.05,
        optim=optim,
    )  # fmt: skip
    torch.manual_seed(0)
    head = Distance(config, latents().shape[1])
    for _ in train_distance(head, store, None, config, seed=0):
        pass
    with torch.no_grad():
        found = head(latents()[:, None], latents()[None]).numpy()
    return found, shortest_path(steps, directed=True)


def pairs(across: bool | None = None) -> np.ndarray:
    """Pairs of different cells; with the wall between them, on one side, or (None) all."""
    different = ~np.eye(CELLS, dtype=bool)
    sides = (COLUMN[:, None] <= WALL) != (COLUMN[None] <= WALL)
    return different if across is None else different & (sides == across)


# --- the maze itself --------------------------------------------------------------------------
def test_the_maze_has_a_wall_a_door_and_two_one_way_doors():
    plain, one_way = (shortest_path(maze(kind), directed=True) for kind in (False, True))
    assert (plain == plain.T).all()
    below = (SIDE - 1) * SIDE + WALL  # beside the wall, in the last row
    assert plain[below, below + 1] == 2 * (SIDE - 1) + 1  # up, through the door, down again
    assert one_way[WALL, WALL + 1] == 1
    assert one_way[WALL + 1, WALL] == 2 * (SIDE - 1) + 1
    assert np.isfinite(one_way).all()


# --- exactness --------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_learned_steps_are_shortest_paths(form):
    """Rank correlation above .95 and half a step of mean error, also through the door.

    In the open a Euclidean norm cannot repeat the ties of steps along rows and columns.
    """
    found, true = learned(form, False)
    assert spearmanr(found[pairs()], true[pairs()]).statistic > 0.95
    assert np.abs(found - true)[pairs()].mean() < 0.6
    assert np.abs(found - true)[pairs(across=True)].mean() < 0.6
    assert spearmanr(found[pairs(True)], true[pairs(True)]).statistic > 0.97
    beside = [(row * SIDE + WALL, row * SIDE + WALL + 1) for row in range(1, SIDE)]
    behind, open_air = (np.array([found[a, b + shift] for a, b in beside]) for shift in (0, -2))
    assert (behind > open_air + 1).all()  # neighbours in the plane, with and without the wall


@pytest.mark.parametrize(
    ("form", "one_way"), [("metric", False), ("quasimetric", False), ("quasimetric", True)]
)
def test_triangle_inequality_and_zero(form, one_way):
    """No way round is shorter than the direct one, for all triples of cells."""
    found, _ = learned(form, one_way)
    detour = (found[:, :, None] + found[None]).min(1)  # over the cell between
    assert (found <= detour + 2e-3).all()
    assert found.min() >= 0
    assert np.diag(found).max() <= 2e-3
    if form == "metric":
        np.testing.assert_allclose(found, found.T, atol=1e-3)


# --- one way ----------------------------------------------------------------------------------
def test_a_one_way_door_needs_the_quasimetric():
    """It knows the way there from the way back; a symmetric form cannot, however it is trained."""
    found, true = learned("quasimetric", True)
    assert spearmanr(found[pairs()], true[pairs()]).statistic > 0.97
    assert np.abs(found - true)[pairs()].mean() < 0.5
    gap, wanted = (steps - steps.T for steps in (found, true))
    unequal = wanted > 0
    assert (gap[unequal] > 0).mean() > 0.9
    assert np.corrcoef(gap[unequal], wanted[unequal])[0, 1] > 0.95
    assert found[WALL, WALL + 1] < 2 < found[WALL + 1, WALL]
    symmetric = np.abs(found + found.T)[pairs()] / 2  # the best that a symmetric form could say
    assert np.abs(symmetric - true[pairs()]).mean() > np.abs(found - true)[pairs()].mean()
