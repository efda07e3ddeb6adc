"""Geometry of the two-room world (PLDM, arXiv 2502.14819), and who may train on which layout."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.files import WorkbookError, one_of

SIZE = 65
"""Image height and width, px."""
CHANNELS = 2
"""Channel 0 the dot, channel 1 the walls."""
LOW, HIGH = 4.0, 60.0
"""Border lines, px: the playable square is LOW < x, y < HIGH."""
WALL_HALF = 1.0
"""The wall's faces lie at wall_x - 1 and wall_x + 1, px."""
DOOR_HALF = 4.0
"""The opening is [door_y - 4, door_y + 4], px."""
DOT_STD = 1.3
"""Standard deviation of the drawn dot, px."""
FIXED = (32, 10)
"""wall_x, door_y of PLDM's fixed layout."""
WALL_RANGE, DOOR_RANGE = (20, 44), (10, 54)
"""Inclusive integer ranges of the 25 x 45 random layouts."""


class Layout(NamedTuple):
    """One vertical wall per row, its column `wall_x` (B,) and its door's row `door_y` (B,), px."""

    wall_x: Tensor
    door_y: Tensor
    half = WALL_HALF  # of the wall, px; no field

    @property
    def left(self) -> Tensor:
        """x (B,) of the wall's left face, px."""
        return self.wall_x - self.half

    @property
    def right(self) -> Tensor:
        """x (B,) of the wall's right face, px."""
        return self.wall_x + self.half

    @property
    def top(self) -> Tensor:
        """y (B,) of the upper door lip, px (the smaller y)."""
        return self.door_y - DOOR_HALF

    @property
    def bottom(self) -> Tensor:
        """y (B,) of the lower door lip, px."""
        return self.door_y + DOOR_HALF

    @property
    def batch(self) -> int:
        """Number of rows B (`len` of a NamedTuple would count its fields)."""
        return self.wall_x.shape[0]

    def to(self, device: torch.device | str) -> "Layout":
        """The same layouts on another device."""
        return self._replace(wall_x=self.wall_x.to(device), door_y=self.door_y.to(device))

    def index(self, i: Tensor | slice | list[int]) -> "Layout":
        """Rows `i` (any tensor index that keeps the dimension)."""
        return self._replace(wall_x=self.wall_x[i], door_y=self.door_y[i])

    def pairs(self) -> Tensor:
        """Columns (wall_x, door_y): (B, 2) float32."""
        return torch.stack((self.wall_x, self.door_y), -1)

    def numbers(self) -> Tensor:
        """(B,) equal numbers for equal layouts, from 0."""
        return self.pairs().unique(dim=0, return_inverse=True)[1]

    @staticmethod
    def fixed(batch: int = 1) -> "Layout":
        """`batch` copies of PLDM's fixed layout."""
        return Layout.of([FIXED] * batch)

    @staticmethod
    def of(pairs: np.ndarray | Tensor | list) -> "Layout":
        """From rows (wall_x, door_y): (B, 2) of any number type."""
        return Layout(*torch.as_tensor(pairs, dtype=torch.float32).T.contiguous())


def all_layouts() -> np.ndarray:
    """All 1,125 layouts (wall_x, door_y), (1125, 2) int16, wall_x slowest."""
    walls, doors = (np.arange(low, high + 1) for low, high in (WALL_RANGE, DOOR_RANGE))
    return np.stack(np.meshgrid(walls, doors, indexing="ij"), -1).reshape(-1, 2).astype(np.int16)


def layout_lists() -> dict[str, np.ndarray]:
    """{"train": (900, 2), "validation": (112, 2), "test": (113, 2)} int16, disjoint.

    `all_layouts` permuted by NumPy's legacy generator, whose stream is frozen for all versions.
    """
    shuffled = all_layouts()[np.random.RandomState(0).permutation(1125)]
    return dict(zip(("train", "validation", "test"), np.split(shuffled, (900, 1012)), strict=True))


def pick_layouts(
    name: str, fixed: np.ndarray, lists: Mapping[str, np.ndarray], **others: np.ndarray
) -> np.ndarray:
    """One of the sets of a world, by its name in `data.layouts` or a split; WorkbookError."""
    sets = {"fixed": fixed, "random": lists["train"], "many": lists["train"], **lists, **others}
    one_of("layouts", name, sets)
    return sets[name]


def layout_set(name: str, exclude_wall: str = "", exclude_door: str = "") -> np.ndarray:
    """Layouts (K, 2) int16 by name; WorkbookError for another name.

    `fixed`; `random`, `many` or `train` (900), `validation` (112), `test` (113), `all` (1,125);
    `rectangle`: all but those whose wall AND door lie in the inclusive ranges "min-max", px.
    """
    every, fixed = all_layouts(), np.array([FIXED], np.int16)
    found = pick_layouts(name, fixed, layout_lists(), all=every, rectangle=every)
    ranges = {"exclude_wall": exclude_wall, "exclude_door": exclude_door}
    if name != "rectangle" or not any(ranges.values()):
        return found
    out = np.full(len(every), True)
    for (setting, text), values in zip(ranges.items(), every.T, strict=True):
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
        if not match or int(match[1]) > int(match[2]):
            raise WorkbookError(f'{setting} must be "min-max" in px with min <= max, got {text!r}')
        out &= (values >= int(match[1])) & (values <= int(match[2]))
    if out.all():
        raise WorkbookError(f"exclude_wall={exclude_wall}, exclude_door={exclude_door} leave none")
    return every[~out]
