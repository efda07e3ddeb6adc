"""Frames of the two-room world, 65 x 65 x (dot, walls), uint8.

Dot: floor(255 exp(-d^2 / (2 * 1.3^2))), not clipped at walls. Walls: 255 on columns wall_x - 1 ..
wall_x + 1 except the door rows, and on the lines 4 and 60 over the whole image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa_lib.worlds.layout import CHANNELS, DOOR_HALF, DOT_STD, HIGH, LOW, SIZE, WALL_HALF, Layout

_RADIUS, _PATCH = 4, 9  # px of the dot that can be non-zero
_VARIANCE2 = 2 * DOT_STD**2


def render_walls(layout: Layout) -> Tensor:
    """Wall channel (B, 65, 65) uint8 of each layout."""
    pixel = torch.arange(SIZE, device=layout.wall_x.device, dtype=torch.float32)
    column = (pixel - layout.wall_x[:, None]).abs() <= WALL_HALF  # (B, Wpx)
    closed = (pixel - layout.door_y[:, None]).abs() > DOOR_HALF  # (B, Hpx)
    border = (pixel == LOW) | (pixel == HIGH)  # (Hpx,) and (Wpx,)
    wall = closed[:, :, None] & column[:, None, :]  # (B, Hpx, Wpx)
    return (wall | border[:, None] | border[None, :]).to(torch.uint8) * 255


def render(position: Tensor, layout: Layout) -> Tensor:
    """Frames (B, ..., 2, 65, 65) uint8 of positions (B, ..., 2) px; one layout per row, or one.

    Equals `render_reference`, but computes only the 9 x 9 pixels that can be non-zero.
    """
    return paint(position, render_walls(layout.to(position.device)))


def paint(position: Tensor, walls: Tensor) -> Tensor:
    """Frames (B, ..., 2, Hpx, Wpx) uint8 of dots (B, ..., 2) px over walls (B or 1, Hpx, Wpx)."""
    rows, frames, (height, width) = position.shape[0], position[..., 0].numel(), walls.shape[1:]
    image = torch.stack((torch.zeros_like(walls), walls), 1).reshape(len(walls), 1, -1)
    image = image.expand(rows, frames // max(rows, 1), -1).reshape(frames, -1).contiguous()
    flat = position.reshape(-1, 2).to(torch.float32)
    corner = (flat + 0.5).floor().to(torch.int64) - _RADIUS  # (F, 2)
    last = torch.tensor([width - _PATCH, height - _PATCH], device=flat.device)
    corner = torch.minimum(corner.clamp(min=0), last)
    pixel = corner[:, :, None] + torch.arange(_PATCH, device=flat.device)  # (F, 2, 9)
    square = (pixel - flat[:, :, None]).square_()  # (F, 2, 9)
    value = square[:, 1, :, None] + square[:, 0, None, :]  # (F, 9, 9)
    value = value.div_(-_VARIANCE2).exp_().mul_(255).to(torch.uint8)
    where = pixel[:, 1, :, None] * width + pixel[:, 0, None, :]  # (F, 9, 9)
    image.scatter_(1, where.reshape(frames, -1), value.reshape(frames, -1))
    return image.reshape(*position.shape[:-1], CHANNELS, height, width)


def render_reference(position: Tensor, layout: Layout) -> Tensor:
    """The direct formula over all pixels: (B, ..., 2) -> (B, ..., 2, 65, 65) uint8."""
    pixel = torch.arange(SIZE, device=position.device, dtype=torch.float32)
    x, y = position[..., 0, None, None], position[..., 1, None, None]
    squared = (pixel[None, :] - x) ** 2 + (pixel[:, None] - y) ** 2  # (B, ..., Hpx, Wpx)
    dot = (255 * torch.exp(-squared / _VARIANCE2)).to(torch.uint8)
    walls = render_walls(layout.to(position.device))
    walls = walls.reshape(layout.batch, *[1] * (position.ndim - 2), SIZE, SIZE).expand_as(dot)
    return torch.stack((dot, walls), dim=-3)
