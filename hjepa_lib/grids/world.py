"""The built-in grid world of seed 004: coloured grids, 2,484 actions, reward towards a goal grid.

A grid has 1 to 30 rows and columns of colours 0..10 (0 = background) in the top left corner of a
square canvas of `size` cells a side; the rest of the canvas is padding, -1. A state is the grid
alone: there is no cursor, so every action names its place by an anchor, one of 6 x 6 points spread
evenly over the grid whatever its shape. With a = anchor, 0..35, the action ids are

    kind      ids          id - first                              what it does
    paint        0..1187   (brush * 11 + colour) * 36 + a          a cell, a 3 x 3 block or a row
    flood     1188..1583   colour * 36 + a                         recolours the anchor's object
    move      1584..1727   direction * 36 + a                      shifts the anchor's object a cell
    symmetry  1728..2483   (window * 7 + operation) * 36 + a       turns or mirrors a window

An object is a 4-connected region of one colour. A move needs free background and leaves background
behind; the background itself does not move. The windows of a symmetry are 3 x 3, 5 x 5 (pushed or
shrunk into the grid where need be) and the whole grid, where quarter turns exchange the sides and
the anchor plays no part. The factors are ours: 2,484 is the number of actions of the seed's model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from hjepa_lib.files import WorkbookError

COLOURS = 11
PAD, BACKGROUND = -1, 0
MOST = 30
"""Longest side of a grid and of its canvas."""
SIDE = 6
ANCHORS = SIDE * SIDE
KINDS = ("paint", "flood", "move", "symmetry")
BRUSHES = ("cell", "block", "row")
DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
SYMMETRIES = {
    "rotate 90": lambda x: np.rot90(x, 1),
    "rotate 180": lambda x: np.rot90(x, 2),
    "rotate 270": lambda x: np.rot90(x, 3),
    "flip rows": lambda x: x[::-1],
    "flip columns": lambda x: x[:, ::-1],
    "transpose": lambda x: x.T,
    "antitranspose": lambda x: np.rot90(x.T, 2),
}
WINDOWS = {"small": 3, "large": 5, "grid": MOST}
_SIZES = (
    len(BRUSHES) * COLOURS * ANCHORS,
    COLOURS * ANCHORS,
    len(DIRECTIONS) * ANCHORS,
    len(WINDOWS) * len(SYMMETRIES) * ANCHORS,
)
FIRST = tuple(int(first) for first in np.cumsum((0, *_SIZES)))
"""First id of every kind, and the number of all actions."""
ACTIONS = FIRST[-1]
FACTS = ("height", "width", "most", "least", "count")
"""Grid metadata: sides, most and least common colour (the lower one of equals), colours present."""


class GridError(WorkbookError):
    """An action or a grid lies outside what the grid world knows."""


class GridAction(NamedTuple):
    """What an action id means; what a kind does not use is empty."""

    kind: str
    anchor: tuple[int, int]  # row and column of the 6 x 6 points, 0..5
    colour: int | None = None
    what: str = ""  # brush, direction or operation
    window: str = ""

    def __str__(self) -> str:
        colour = "" if self.colour is None else f" colour {self.colour}"
        return f"{self.kind} {self.what} {self.window}".rstrip() + f"{colour} at {self.anchor}"


def decode(action: int) -> GridAction:
    """The meaning of an action id, 0..2483; GridError outside."""
    if not 0 <= action < ACTIONS:
        raise GridError(f"action {action} is outside 0..{ACTIONS - 1}")
    index = kind_of(action)
    choice, place = divmod(int(action) - FIRST[index], ANCHORS)
    kind, anchor = KINDS[index], divmod(place, SIDE)
    if kind == "paint":
        brush, colour = divmod(choice, COLOURS)
        return GridAction(kind, anchor, colour, BRUSHES[brush])
    if kind == "flood":
        return GridAction(kind, anchor, choice)
    if kind == "move":
        return GridAction(kind, anchor, None, list(DIRECTIONS)[choice])
    window, operation = divmod(choice, len(SYMMETRIES))
    return GridAction(kind, anchor, None, list(SYMMETRIES)[operation], list(WINDOWS)[window])


def encode(action: GridAction) -> int:
    """The id of an action: the inverse of `decode`."""
    if action.kind == "paint":
        choice = BRUSHES.index(action.what) * COLOURS + action.colour
    elif action.kind == "flood":
        choice = action.colour
    elif action.kind == "move":
        choice = list(DIRECTIONS).index(action.what)
    else:
        window = list(WINDOWS).index(action.window)
        choice = window * len(SYMMETRIES) + list(SYMMETRIES).index(action.what)
    row, column = action.anchor
    return FIRST[KINDS.index(action.kind)] + choice * ANCHORS + row * SIDE + column


def kind_of(action: int | np.ndarray) -> int | np.ndarray:
    """Index into KINDS of an id, or of an array of ids."""
    found = np.searchsorted(FIRST[1:], action, side="right")
    return int(found) if np.isscalar(action) else found.astype(np.int8)


# --- dynamics ---------------------------------------------------------------------------------
def sides(grid: np.ndarray) -> tuple[int, int]:
    """(height, width) of the grid on the canvas."""
    valid = grid >= 0
    return int(valid.any(1).sum()), int(valid.any(0).sum())


def apply(grid: np.ndarray, action: int) -> np.ndarray:
    """The canvas (size, size) int8 after an action; the argument stays as it is."""
    meaning = decode(action)
    height, width = sides(grid)
    after = grid.copy()
    area = after[:height, :width]
    row = (2 * meaning.anchor[0] + 1) * height // (2 * SIDE)
    column = (2 * meaning.anchor[1] + 1) * width // (2 * SIDE)
    if meaning.kind == "paint":
        rows = {"cell": slice(row, row + 1), "row": slice(row, row + 1)}
        columns = {"cell": slice(column, column + 1), "row": slice(None)}
        near = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
        brush = meaning.what
        area[near if brush == "block" else (rows[brush], columns[brush])] = meaning.colour
    elif meaning.kind == "flood":
        area[_object_at(area, row, column)] = meaning.colour
    elif meaning.kind == "move":
        _move(area, row, column, DIRECTIONS[meaning.what])
    else:
        _turn(after, (height, width), (row, column), meaning)
    return after


def _object_at(area: np.ndarray, row: int, column: int) -> np.ndarray:
    """(h, w) bool: the 4-connected cells of the colour at that cell."""
    parts, _ = label(area == area[row, column])
    return parts == parts[row, column]


def _move(area: np.ndarray, row: int, column: int, step: tuple[int, int]) -> None:
    colour = area[row, column]
    if colour == BACKGROUND:
        return
    old = _object_at(area, row, column)
    rows, columns = np.nonzero(old)
    rows, columns = rows + step[0], columns + step[1]
    if min(rows.min(), columns.min()) < 0:
        return
    if rows.max() >= area.shape[0] or columns.max() >= area.shape[1]:
        return
    if not (old[rows, columns] | (area[rows, columns] == BACKGROUND)).all():
        return
    area[old] = BACKGROUND
    area[rows, columns] = colour


def _turn(
    canvas: np.ndarray, shape: tuple[int, int], centre: tuple[int, int], action: GridAction
) -> None:
    operation = SYMMETRIES[action.what]
    if action.window == "grid":
        turned = operation(canvas[: shape[0], : shape[1]]).copy()
        canvas[:] = PAD
        canvas[: turned.shape[0], : turned.shape[1]] = turned
        return
    side = min(WINDOWS[action.window], *shape)
    corner = [
        min(max(0, c - side // 2), long - side) for c, long in zip(centre, shape, strict=True)
    ]
    window = canvas[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    window[:] = operation(window).copy()


def similarity(grid: np.ndarray, goal: np.ndarray) -> float:
    """Share of the cells of either grid that are equal in both, 0..1."""
    either = (grid >= 0) | (goal >= 0)
    return float((grid == goal)[either].mean())


class GridWorld:
    """One task: a canvas, a goal, and progress towards it as the reward."""

    def __init__(self, grid: np.ndarray, goal: np.ndarray) -> None:
        if grid.shape != goal.shape:
            raise GridError(f"grid {grid.shape} and goal {goal.shape} need canvases of one size")
        self.grid, self.goal = grid, goal

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        """(next canvas, rise of the similarity to the goal in [-1, 1], goal reached)."""
        before, self.grid = self.grid, apply(self.grid, action)
        reward = similarity(self.grid, self.goal) - similarity(before, self.goal)
        return self.grid, reward, bool((self.grid == self.goal).all())


def random_grid(size: int, rng: np.random.Generator) -> np.ndarray:
    """A canvas (size, size) int8 with a grid of size // 2 to size cells a side and 2-6 boxes."""
    height, width = rng.integers(max(3, size // 2), size + 1, 2)
    canvas = np.full((size, size), PAD, dtype=np.int8)
    area = canvas[:height, :width]
    area[:] = BACKGROUND
    for _ in range(rng.integers(2, 7)):
        tall, wide = rng.integers(1, max(2, min(height, width) // 2) + 1, 2)
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        area[top : top + tall, left : left + wide] = rng.integers(1, COLOURS)
    return canvas


def random_action(grid: np.ndarray, rng: np.random.Generator, tries: int = 5) -> int:
    """A kind, then an action of that kind, both uniform; drawn again while it changes nothing."""
    for _ in range(tries):
        kind = int(rng.integers(len(KINDS)))
        action = int(rng.integers(FIRST[kind], FIRST[kind + 1]))
        if not (apply(grid, action) == grid).all():
            break
    return action


# --- metadata ---------------------------------------------------------------------------------
def facts(grids: Tensor) -> Tensor:
    """Metadata of canvases (N, size, size) -> (N, 5) int64, columns as in FACTS."""
    valid = grids >= 0
    counts = torch.stack([(grids == colour).sum((1, 2)) for colour in range(COLOURS)], 1)  # (N, 11)
    present = counts > 0
    # The colour itself, below any count's weight, settles ties towards the lower one.
    order = counts * COLOURS - torch.arange(COLOURS, device=grids.device)
    rare = counts * COLOURS + torch.arange(COLOURS, device=grids.device)
    rare = rare.masked_fill(~present, torch.iinfo(torch.int64).max)
    columns = (valid.any(2).sum(1), valid.any(1).sum(1), order.argmax(1), rare.argmin(1))
    return torch.stack([*columns, present.sum(1)], 1)
