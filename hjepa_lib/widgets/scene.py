"""One task of the inspector: start, goal, wall and door, checked before anything is played."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds.layout import DOOR_RANGE, HIGH, LOW, WALL_RANGE, Layout
from hjepa_lib.worlds.rendering import render_walls
from hjepa_lib.worlds.trials import Trials, content_hash
from hjepa_lib.worlds.two_rooms import inside, sample_start_goal


class SceneError(WorkbookError):
    """A start, goal, wall or door that cannot be played; the message is for the reader."""


class Scene(NamedTuple):
    """Places in px, (x, y) with y down."""

    start: tuple[float, float]
    goal: tuple[float, float]
    wall_x: int
    door_y: int

    @property
    def layout(self) -> Layout:
        """The one room of this scene."""
        return Layout.of([[self.wall_x, self.door_y]])

    @property
    def room(self) -> np.ndarray:
        """Its rendered walls (Hpx, Wpx), the background of every figure."""
        return render_walls(self.layout)[0].numpy()


def scene_of(trials: Trials, trial: int) -> Scene:
    """One of the stored trials as a scene; SceneError when there is no such trial."""
    if not 0 <= trial < trials.count:
        raise SceneError(f"{trials.name} has trials 0 to {trials.count - 1}, {trial} was asked for")
    wall_x, door_y = trials.layout.pairs()[trial].tolist()
    places = (tuple(column[trial].tolist()) for column in (trials.start, trials.goal))
    return Scene(*places, round(wall_x), round(door_y))


def checked_scene(scene: Scene) -> Scene:
    """`scene` itself; SceneError in one sentence when the dot cannot be where it says."""
    for name, value, (low, high) in (
        ("wall", scene.wall_x, WALL_RANGE),
        ("door", scene.door_y, DOOR_RANGE),
    ):
        if not low <= value <= high:
            raise SceneError(f"the {name} is at {value}, but must be between {low} and {high} px")
    for name, place in (("start", scene.start), ("goal", scene.goal)):
        where = f"the {name} ({place[0]:g}, {place[1]:g})"
        if not all(math.isfinite(value) and LOW < value < HIGH for value in place):
            raise SceneError(
                f"{where} is outside the rooms: x and y must be between {LOW:g} and {HIGH:g} px"
            )
        if not bool(inside(torch.tensor([place]), scene.layout)):
            raise SceneError(
                f"{where} is in the wall: move it left or right of x = {scene.wall_x}, "
                f"or into the door around y = {scene.door_y}"
            )
    return scene


def trials_of(scene: Scene, companions: int = 0, seed: int = 0, row: int = 0) -> Trials:
    """The scene, followed by `companions` random tasks in the same room.

    `row` is the scene's number in a trial file: it meets the noise that it meets there.
    """
    checked_scene(scene)
    count = 1 + companions
    layout = Layout.of([[scene.wall_x, scene.door_y]] * count)
    start, goal = sample_start_goal(layout, "medium", torch.Generator().manual_seed(seed))
    start[0], goal[0] = _tensor(scene.start), _tensor(scene.goal)
    rows = tuple(range(row, row + count))
    return Trials(start, goal, layout, "scene", content_hash(start, goal, layout), rows=rows)


def _tensor(place: tuple[float, float]) -> Tensor:
    return torch.tensor(place, dtype=torch.float32)
