"""Geometry of the two-room world: sizes, wall layouts, and who may train on which layout.

A layout is a vertical wall (centre column `wall_x`) with one door (centre row `door_y`), as in
PLDM (arXiv 2502.14819). Peers evaluate on the layouts they train on; here the 1,125 layouts are
split once into disjoint train, validation and test lists (stored in layouts.json with hashes),
and an "excluded rectangle" split holds out walls AND doors of chosen ranges.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib import files

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

_LISTS = Path(__file__).with_name("layouts.json")
_COUNTS = {"train": 900, "validation": 112, "test": 113}


class Layout(NamedTuple):
    """One wall per row: `wall_x` (B,) and `door_y` (B,), float32 px."""

    wall_x: Tensor
    door_y: Tensor

    @property
    def left(self) -> Tensor:  # (B,)
        """x of the wall's left face, px."""
        return self.wall_x - WALL_HALF

    @property
    def right(self) -> Tensor:  # (B,)
        """x of the wall's right face, px."""
        return self.wall_x + WALL_HALF

    @property
    def top(self) -> Tensor:  # (B,)
        """y of the upper door lip, px (the smaller y)."""
        return self.door_y - DOOR_HALF

    @property
    def bottom(self) -> Tensor:  # (B,)
        """y of the lower door lip, px."""
        return self.door_y + DOOR_HALF

    @property
    def batch(self) -> int:
        """Number of rows B (`len` of a NamedTuple would count its fields)."""
        return self.wall_x.shape[0]

    def to(self, device: torch.device | str) -> Layout:
        """The same layouts on another device."""
        return Layout(self.wall_x.to(device), self.door_y.to(device))

    def index(self, i: Tensor | slice | list[int]) -> Layout:
        """Rows `i` (any tensor index that keeps the dimension)."""
        return Layout(self.wall_x[i], self.door_y[i])

    def pairs(self) -> Tensor:  # (B, 2)
        """Columns (wall_x, door_y), float32."""
        return torch.stack((self.wall_x, self.door_y), -1)

    def numbers(self) -> Tensor:  # (B,)
        """Equal numbers for equal layouts, from 0."""
        return self.pairs().unique(dim=0, return_inverse=True)[1]

    @staticmethod
    def fixed(batch: int = 1, device: torch.device | str = "cpu") -> Layout:
        """`batch` copies of PLDM's fixed layout."""
        return Layout.of(np.tile(np.array([FIXED]), (batch, 1)), device)

    @staticmethod
    def of(pairs: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Layout:
        """From rows (wall_x, door_y): (B, 2) of any number type."""
        pairs = torch.as_tensor(pairs).to(device=device, dtype=torch.float32)
        return Layout(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


def all_layouts() -> np.ndarray:
    """All 1,125 layouts (wall_x, door_y), (1125, 2) int16, wall_x slowest."""
    walls = np.arange(WALL_RANGE[0], WALL_RANGE[1] + 1)
    doors = np.arange(DOOR_RANGE[0], DOOR_RANGE[1] + 1)
    grid = np.stack(np.meshgrid(walls, doors, indexing="ij"), -1)
    return grid.reshape(-1, 2).astype(np.int16)


def split_layouts() -> dict[str, np.ndarray]:
    """The lists computed anew: `all_layouts` permuted by seed 0, then cut 900 / 112 / 113.

    NumPy's legacy generator is used because its stream is frozen for all later versions.
    """
    shuffled = all_layouts()[np.random.RandomState(0).permutation(len(all_layouts()))]
    ends = np.cumsum(list(_COUNTS.values()))[:-1]
    return dict(zip(_COUNTS, np.split(shuffled, ends), strict=True))


def list_hash(pairs: np.ndarray) -> str:
    """SHA-256 of a layout list, as little-endian int16 rows."""
    return files.sha256(np.ascontiguousarray(pairs, dtype="<i2").tobytes())


def write_lists(path: str | Path = _LISTS) -> Path:
    """Write the stored form of `split_layouts` (rows plus one hash per list)."""
    lists = split_layouts()
    content = {name: {"sha256": list_hash(rows), "rows": rows} for name, rows in lists.items()}
    return files.write_json(path, content)


@functools.cache
def _stored_lists() -> dict[str, np.ndarray]:
    stored = files.read_json(_LISTS)
    lists = {name: np.array(stored[name]["rows"], dtype=np.int16) for name in _COUNTS}
    for name, rows in lists.items():
        if list_hash(rows) != stored[name]["sha256"]:
            raise files.FileError(f"layout list {name} in {_LISTS} does not match its SHA-256")
        rows.setflags(write=False)
    return lists


def layout_lists() -> dict[str, np.ndarray]:
    """Stored lists {"train": (900, 2), "validation": (112, 2), "test": (113, 2)} int16."""
    return dict(_stored_lists())


def _parse_range(text: str, name: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    if not match or int(match[1]) > int(match[2]):
        raise files.WorkbookError(f'{name} must be "min-max" in px with min <= max, got {text!r}')
    return int(match[1]), int(match[2])


def rectangle_split(exclude_wall: str, exclude_door: str) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) layouts, both (n, 2) int16.

    A layout is held out only if its wall AND its door lie in the excluded inclusive ranges
    "min-max". Both ranges must be given, or both empty (nothing held out).
    """
    if not exclude_wall and not exclude_door:
        return all_layouts(), np.zeros((0, 2), np.int16)
    if not exclude_wall or not exclude_door:
        raise files.WorkbookError("exclude_wall and exclude_door must both be set or both be empty")
    wall_low, wall_high = _parse_range(exclude_wall, "exclude_wall")
    door_low, door_high = _parse_range(exclude_door, "exclude_door")
    wall, door = all_layouts().T
    out = (wall >= wall_low) & (wall <= wall_high) & (door >= door_low) & (door <= door_high)
    if out.all():
        raise files.WorkbookError("exclude_wall and exclude_door leave no layout to train on")
    return all_layouts()[~out], all_layouts()[out]


def layout_set(name: str, exclude_wall: str = "", exclude_door: str = "") -> np.ndarray:
    """Layouts (K, 2) int16 by name.

    `fixed`; `random` or `train` (900), `validation` (112), `test` (113), `all` (1,125);
    `rectangle` / `rectangle_heldout`: outside / inside the excluded ranges.
    """
    if name == "fixed":
        return np.array([FIXED], dtype=np.int16)
    if name == "all":
        return all_layouts()
    if name in ("rectangle", "rectangle_heldout"):
        rows = rectangle_split(exclude_wall, exclude_door)[name == "rectangle_heldout"]
        if len(rows) == 0:
            raise files.WorkbookError(f"layout set {name} is empty for these excluded ranges")
        return rows
    lists = layout_lists()
    if name == "random":
        return lists["train"]
    if name not in lists:
        raise files.WorkbookError(
            f"layouts must be one of fixed, random, train, validation, test, all, rectangle, "
            f"rectangle_heldout; got {name!r}"
        )
    return lists[name]
