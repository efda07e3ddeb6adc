"""The built-in grid world of seed 004: coloured grids and 2,484 actions.

A grid of 1 to 30 rows and columns of colours 0..10 (0 = background) lies at the top left of a
square canvas, the rest is padding, -1. An anchor a = 0..35 is one of 6 x 6 points spread over it.

    kind      ids          id - first                              what it does
    paint        0..1187   (brush * 11 + colour) * 36 + a          a cell, a 3 x 3 block or a row
    flood     1188..1583   colour * 36 + a                         recolours the anchor's object
    move      1584..1727   direction * 36 + a                      shifts the anchor's object a cell
    symmetry  1728..2483   (window * 7 + operation) * 36 + a       turns or mirrors a window

An object is a 4-connected region of one colour, no background, and moves into background only.
Windows are 3 x 3, 5 x 5 (pushed or shrunk into the grid) and the whole grid.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

COLOURS, PAD, BACKGROUND = 11, -1, 0
MOST = 30
"""Longest side of a grid and of its canvas."""
SIDE = 6  # anchors per side
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
FACTS = ("height", "width", "most", "least", "count")
"""Of a grid: sides, most and least common colour (the lower one of equals), colours present."""


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


_CHOICES = (
    *(("paint", colour, brush, "") for brush, colour in product(BRUSHES, range(COLOURS))),
    *(("flood", colour, "", "") for colour in range(COLOURS)),
    *(("move", None, direction, "") for direction in DIRECTIONS),
    *(("symmetry", None, turn, window) for window, turn in product(WINDOWS, SYMMETRIES)),
)
_ANCHORS = tuple(product(range(SIDE), repeat=2))
_MEANINGS = [GridAction(one[0], anchor, *one[1:]) for one in _CHOICES for anchor in _ANCHORS]
ACTIONS = len(_MEANINGS)
FIRST = (*map([one.kind for one in _MEANINGS].index, KINDS), ACTIONS)
"""First id of every kind, and the number of all actions."""
_NUMBERS: dict[tuple, int] = {}
FACTORS = torch.tensor([
    [
        _NUMBERS.setdefault(part, len(_NUMBERS))
        for part in (
            (one.kind, one.what, one.window), ("colour", one.colour), *enumerate(one.anchor)
        )
    ]
    for one in _MEANINGS
])  # fmt: skip
"""(2484, 4): operation, colour, row and column of every action, numbered through."""


def decode(action: int) -> GridAction:
    """The meaning of an action id, 0..2483."""
    return _MEANINGS[action]


def apply(grid: np.ndarray, action: int) -> np.ndarray:
    """The canvas (size, size) int8 after an action; the argument stays as it is."""
    kind, anchor, colour, what, window = decode(action)
    shape = (grid >= 0).any(1).sum(), (grid >= 0).any(0).sum()
    after = grid.copy()
    area = after[: shape[0], : shape[1]]
    row, column = ((2 * a + 1) * n // (2 * SIDE) for a, n in zip(anchor, shape, strict=True))
    if kind == "paint":
        near = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
        area[{"cell": (row, column), "block": near, "row": row}[what]] = colour
    elif kind == "flood":
        area[_object_at(area, row, column)] = colour
    elif kind == "move":
        _move(area, row, column, DIRECTIONS[what])
    elif window == "grid":
        turned = SYMMETRIES[what](area).copy()
        after[:] = PAD
        after[: turned.shape[0], : turned.shape[1]] = turned
    else:
        side = min(WINDOWS[window], *shape)
        top = min(max(0, row - side // 2), shape[0] - side)
        left = min(max(0, column - side // 2), shape[1] - side)
        part = area[top : top + side, left : left + side]
        part[:] = SYMMETRIES[what](part).copy()
    return after


def _object_at(area: np.ndarray, row: int, column: int) -> np.ndarray:
    """(h, w) bool: the 4-connected cells of the colour at that cell."""
    parts, _ = label(area == area[row, column])
    return parts == parts[row, column]


def _move(area: np.ndarray, row: int, column: int, step: tuple[int, int]) -> None:
    colour, old = area[row, column], _object_at(area, row, column)
    places = np.argwhere(old) + step
    if colour == BACKGROUND or (places < 0).any() or (places >= area.shape).any():
        return
    rows, columns = places.T
    if (old[rows, columns] | (area[rows, columns] == BACKGROUND)).all():
        area[old] = BACKGROUND
        area[rows, columns] = colour


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


def random_action(grid: np.ndarray, rng: np.random.Generator) -> int:
    """A kind, then an action of it, both uniform; drawn again, 5 times, while nothing changes."""
    for _ in range(5):
        kind = int(rng.integers(len(KINDS)))
        action = int(rng.integers(FIRST[kind], FIRST[kind + 1]))
        if not (apply(grid, action) == grid).all():
            break
    return action


def facts(grids: Tensor) -> Tensor:
    """Metadata of canvases (N, size, size) -> (N, 5) int64, columns as in FACTS."""
    valid = grids >= 0
    counts = torch.stack([(grids == colour).sum((1, 2)) for colour in range(COLOURS)], 1)  # (N, 11)
    present = counts > 0
    # The colour itself, below any count's weight, settles ties towards the lower one.
    colours = torch.arange(COLOURS, device=grids.device)
    most = (counts * COLOURS - colours).argmax(1)
    rare = (counts * COLOURS + colours).masked_fill(~present, torch.iinfo(torch.int64).max)
    shape = valid.any(2).sum(1), valid.any(1).sum(1)
    return torch.stack([*shape, most, rare.argmin(1), present.sum(1)], 1)
