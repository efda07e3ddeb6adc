"""Frames of the two-room world, 65 x 65 x (dot, walls), uint8.

Dot: floor(255 exp(-d^2 / (2 * 1.3^2))), not clipped at walls. Walls: 255 on columns wall_x - 1 ..
wall_x + 1 except the door rows, and on the lines 4 and 60 over the whole image.
"""

import math

import torch
from torch import Tensor

from hjepa_lib.worlds.layout import CHANNELS, DOOR_HALF, DOT_STD, HIGH, LOW, SIZE, Layout


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
