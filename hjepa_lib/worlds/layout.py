"""Geometry and frames of the two-room world (PLDM, arXiv 2502.14819), and who trains on what.

Frames are uint8. Dot: floor(255 exp(-d^2 / (2 * 1.3^2))), not clipped at walls. Walls: 255 on
columns wall_x - 1 .. wall_x + 1 except the door rows, and on the lines 4 and 60 over the whole
image.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.files import one_of

SIZE = 65  # image height and width, px
CHANNELS = 2  # the dot, the walls
LOW, HIGH = 4.0, 60.0  # border lines, px: the playable square is LOW < x, y < HIGH
WALL_HALF = 1.0  # px from the wall's middle to its faces
DOOR_HALF = 4.0  # px from the door's middle to its lips
DOT_STD = 1.3  # standard deviation of the drawn dot, px
FIXED = (32, 10)  # wall_x, door_y of PLDM's fixed layout
WALL_RANGE, DOOR_RANGE = (20, 44), (10, 54)  # inclusive, of the 25 x 45 random layouts


class Layout(NamedTuple):
    """One vertical wall per row, its column `wall_x` (B,) and its door's row `door_y` (B,), px."""

    wall_x: Tensor
    door_y: Tensor
    half = WALL_HALF  # of the wall, px; no field

    @property
    def left(self) -> Tensor:
        """x (B,) of the wall's left face."""
        return self.wall_x - self.half

    @property
    def right(self) -> Tensor:
        """x (B,) of its right face."""
        return self.wall_x + self.half

    @property
    def top(self) -> Tensor:
        """y (B,) of the upper door lip (the smaller y)."""
        return self.door_y - DOOR_HALF

    @property
    def bottom(self) -> Tensor:
        """y (B,) of the lower one."""
        return self.door_y + DOOR_HALF

    @property
    def batch(self) -> int:
        """B (`len` of a NamedTuple would count its fields)."""
        return self.wall_x.shape[0]

    def to(self, device: torch.device | str) -> "Layout":
        """The same layouts on another device."""
        return self._replace(wall_x=self.wall_x.to(device), door_y=self.door_y.to(device))

    def index(self, i: Tensor | slice | list[int]) -> "Layout":
        """Rows `i`."""
        return self._replace(wall_x=self.wall_x[i], door_y=self.door_y[i])

    def pairs(self) -> Tensor:
        """(B, 2) float32: wall_x, door_y."""
        return torch.stack((self.wall_x, self.door_y), -1)

    def numbers(self) -> Tensor:
        """(B,) from 0, equal for equal layouts."""
        return self.pairs().unique(dim=0, return_inverse=True)[1]

    @staticmethod
    def fixed(batch: int = 1) -> "Layout":
        """`batch` copies of PLDM's fixed layout."""
        return Layout.of([FIXED] * batch)

    @staticmethod
    def of(pairs: np.ndarray | Tensor | list) -> "Layout":
        """From rows wall_x, door_y: (B, 2) of any number type."""
        return Layout(*torch.as_tensor(pairs, dtype=torch.float32).T.contiguous())


def all_layouts() -> np.ndarray:
    """(1125, 2) int16, rows wall_x, door_y, wall_x slowest."""
    walls, doors = (np.arange(low, high + 1) for low, high in (WALL_RANGE, DOOR_RANGE))
    return np.stack(np.meshgrid(walls, doors, indexing="ij"), -1).reshape(-1, 2).astype(np.int16)


def layout_lists() -> dict[str, np.ndarray]:
    """{"train": (900, 2), "validation": (112, 2), "test": (113, 2)} int16, disjoint.

    Permuted by NumPy's legacy generator, whose stream is frozen for all versions.
    """
    shuffled = all_layouts()[np.random.RandomState(0).permutation(1125)]
    return dict(zip(("train", "validation", "test"), np.split(shuffled, (900, 1012)), strict=True))


def pick_layouts(
    name: str, fixed: np.ndarray, lists: Mapping[str, np.ndarray], **others: np.ndarray
) -> np.ndarray:
    """A world's set by its name in `data.layouts` or a split; WorkbookError for another."""
    sets = {"fixed": fixed, "random": lists["train"], "many": lists["train"], **lists, **others}
    one_of("layouts", name, sets)
    return sets[name]


def layout_set(name: str) -> np.ndarray:
    """Layouts (K, 2) int16 of a name in `pick_layouts`, or `all`; WorkbookError for others."""
    return pick_layouts(name, np.array([FIXED], np.int16), layout_lists(), all=all_layouts())


def render_walls(layout: Layout) -> Tensor:
    """Wall channel (B, 65, 65) uint8 of each layout."""
    pixel = torch.arange(SIZE, device=layout.wall_x.device, dtype=torch.float32)
    column = (pixel - layout.wall_x[:, None]).abs() <= layout.half  # (B, Wpx)
    closed = (pixel - layout.door_y[:, None]).abs() > DOOR_HALF  # (B, Hpx)
    border = (pixel == LOW) | (pixel == HIGH)  # (Hpx,) and (Wpx,)
    wall = closed[:, :, None] & column[:, None, :]  # (B, Hpx, Wpx)
    return (wall | border[:, None] | border[None, :]).to(torch.uint8) * 255


def render(position: Tensor, layout: Layout, bright: float = 255.0, std: float = DOT_STD) -> Tensor:
    """Frames (B, ..., 2, 65, 65) uint8 of positions (B, ..., 2) px; one layout per row, or one.

    Equals `render_reference`, by the pixels that can be non-zero alone.
    """
    return paint(position, render_walls(layout.to(position.device)), bright, std)


def paint(position: Tensor, walls: Tensor, bright: float = 255.0, std: float = DOT_STD) -> Tensor:
    """Frames (B, ..., 2, Hpx, Wpx) uint8 of dots (B, ..., 2) px over walls (B or 1, Hpx, Wpx).

    `bright`: value of a dot's centre; `std`: its size, px.
    """
    radius = math.floor(std * math.sqrt(2 * math.log(255)) + 0.5)  # px that can be non-zero
    patch = 2 * radius + 1
    rows, frames, (height, width) = position.shape[0], position[..., 0].numel(), walls.shape[1:]
    image = torch.stack((torch.zeros_like(walls), walls), 1).reshape(len(walls), 1, -1)
    image = image.expand(rows, frames // max(rows, 1), -1).reshape(frames, -1).contiguous()
    flat = position.reshape(-1, 2).to(torch.float32)
    corner = (flat + 0.5).floor().to(torch.int64) - radius  # (F, 2)
    last = torch.tensor([width - patch, height - patch], device=flat.device)
    corner = torch.minimum(corner.clamp(min=0), last)
    pixel = corner[:, :, None] + torch.arange(patch, device=flat.device)  # (F, 2, P)
    square = (pixel - flat[:, :, None]).square_()  # (F, 2, P)
    value = square[:, 1, :, None] + square[:, 0, None, :]  # (F, P, P)
    value = value.div_(-2 * std**2).exp_().mul_(bright).to(torch.uint8)
    where = pixel[:, 1, :, None] * width + pixel[:, 0, None, :]  # (F, P, P)
    image.scatter_(1, where.reshape(frames, -1), value.reshape(frames, -1))
    return image.reshape(*position.shape[:-1], CHANNELS, height, width)


def render_reference(position: Tensor, layout: Layout) -> Tensor:
    """`render` by the direct formula over all pixels."""
    pixel = torch.arange(SIZE, device=position.device, dtype=torch.float32)
    x, y = position[..., 0, None, None], position[..., 1, None, None]
    squared = (pixel[None, :] - x) ** 2 + (pixel[:, None] - y) ** 2  # (B, ..., Hpx, Wpx)
    dot = (255 * torch.exp(-squared / (2 * DOT_STD**2))).to(torch.uint8)
    walls = render_walls(layout.to(position.device))
    walls = walls.reshape(layout.batch, *[1] * (position.ndim - 2), SIZE, SIZE).expand_as(dot)
    return torch.stack((dot, walls), dim=-3)
