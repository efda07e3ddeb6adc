"""Maps of OGBench's PointMaze: its environment, cells and places, teleporters."""

import functools
import os
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from hjepa_lib.files import WorkbookError, extra

MAZES = {"medium": (8, 8), "large": (9, 12), "giant": (12, 16), "teleport": (9, 12)}
"""Cells down and across of every map, the border's included."""
UNIT, ORIGIN = 2.0, 11.5  # px a unit of the environment, and px of its (0, 0), of cell (1, 1)
CELL = 8  # px; cell (i, j), i down, covers the pixels from 8 j and 8 i on


@functools.cache
def environment(maze: str) -> Any:
    """OGBench's environment, one for all dots of a maze; whoever steps sets its data and goal.

    WorkbookError without the package, or with another map in it.
    """
    os.environ.setdefault("MUJOCO_GL", "disabled")  # nothing is drawn with it
    extra("ogbench")  # registers its environments
    env = gymnasium.make(f"pointmaze-{maze}-v0", terminate_at_goal=False).unwrapped
    if env.maze_map.shape != MAZES[maze]:
        raise WorkbookError(f"this ogbench has another {maze} maze than its version 1.2")
    return env


def teleporters(maze: str, end: str, kind: str = "xys") -> np.ndarray:
    """(n, 2) units, or cells (`ijs`), of entrances (`in`) or exits (`out`), if any."""
    info = environment(maze)._teleport_info or {}
    return np.reshape(info.get(f"teleport_{end}_{kind}", ()), (-1, 2))


@functools.cache
def closed_cells(maze: str, entrances: bool = False) -> np.ndarray:
    """(H, W) bool: closed cells of the map, `entrances` of teleporters with them."""
    found = environment(maze).maze_map == 1
    if entrances:
        found[tuple(teleporters(maze, "in", "ijs").astype(int).T)] = True
    return found


@functools.cache
def next_cell(maze: str, cell: tuple[int, int], goal: tuple[int, int]) -> np.ndarray:
    """The place (2,), units, that the environment's own oracle walks to from a cell."""
    env = environment(maze)
    return env.get_oracle_subgoal(env.ij_to_xy(cell), env.ij_to_xy(goal))[0]


def turns(maze: str) -> np.ndarray:
    """Open cells (n, 2) but those of straight corridors: goals of `navigate`."""
    closed = closed_cells(maze)
    up, down, left, right = (np.roll(closed, shift, axis) for axis in (0, 1) for shift in (1, -1))
    corridor = left & right & ~up & ~down | up & down & ~left & ~right
    return np.argwhere(~closed & ~corridor)


@functools.cache
def discs(maze: str) -> Tensor | None:
    """(Hpx, Wpx) uint8 of the teleporters, None where there are none."""
    sides = [CELL * side for side in MAZES[maze]]
    found, (down, across) = np.zeros(sides, np.uint8), np.indices(sides)
    for end, radius, light in (("out", 1.0, 128), ("in", 1.5, 255)):
        for x, y in UNIT * teleporters(maze, end) + ORIGIN:
            found[np.hypot(across - x, down - y) <= UNIT * radius] = light
    return torch.from_numpy(found) if found.any() else None


def centre_of(cell: np.ndarray) -> np.ndarray:
    """Places (..., 2), units, of cells (..., 2)."""
    return 4.0 * (cell[..., ::-1] - 1)


def to_px(place: np.ndarray) -> Tensor:
    return torch.from_numpy(UNIT * place + ORIGIN).float()


def to_units(position: Tensor) -> np.ndarray:
    return (position.double().numpy() - ORIGIN) / UNIT
