"""The two-room world as a Gymnasium environment, `hjepa/TwoRooms-v0`: one row of `TwoRooms`.

Every random number follows from the seed of `reset`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds.layout import CHANNELS, DOOR_RANGE, SIZE, WALL_RANGE, Layout, layout_set
from hjepa_lib.worlds.two_rooms import NOISE, TwoRooms, inside, sample_start_goal, step

_SCALE = 4
_RANGES = {"wall_x": WALL_RANGE, "door_y": DOOR_RANGE}
_OPTIONS = ("start", "goal", *_RANGES)


class TwoRoomsEnv(gymnasium.Env):
    """Reach the goal in the other room. Observation (65, 65, 2) uint8: dot, walls.

    Action: displacement (dx, dy) in px, not clipped. Reward 1 when the goal is reached, else 0; the
    episode then terminates unless `stop_at_goal` is False. `info` holds position, goal (x, y) px,
    wall_x, door_y, distance (px) and success.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        layouts: str = "fixed",
        level: str = "medium",
        dynamics: str = "bounce",
        noise: float = NOISE,
        stop_at_goal: bool = True,
        render_mode: str | None = None,
    ) -> None:
        """`layouts`: a name known to `layout_set`; `noise` px (0 switches it off)."""
        if render_mode not in (None, "rgb_array"):
            raise WorkbookError(f"render_mode must be None or rgb_array, got {render_mode!r}")
        limit = TwoRooms.action_cap
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, CHANNELS), np.uint8)
        self.action_space = spaces.Box(-limit, limit, (2,), np.float32)
        self.render_mode, self.level, self.stop_at_goal = render_mode, level, stop_at_goal
        self._layouts, self._generator = layout_set(layouts), torch.Generator()
        self._world = TwoRooms(Layout.fixed(), dynamics, noise)
        self._goal = sample_start_goal(self._world.layout, level, self._generator)[1]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New episode; `options` may fix "start", "goal" (x, y px), "wall_x" and "door_y".

        WorkbookError for unknown options and for places inside a wall.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name not in _OPTIONS:
                raise WorkbookError(f"unknown reset option {name!r}; known: {', '.join(_OPTIONS)}")
        # The torch generator follows Gymnasium's, so one seed rules layout, start, goal and noise.
        self._generator.manual_seed(int(self.np_random.integers(2**62)))
        drawn = self._layouts[int(self.np_random.integers(len(self._layouts)))]
        pair = [options.get(name, value) for name, value in zip(_RANGES, drawn, strict=True)]
        for value, (name, (low, high)) in zip(pair, _RANGES.items(), strict=True):
            if int(value) != value or not low <= value <= high:
                raise WorkbookError(f"{name} must be an integer in [{low}, {high}], got {value!r}")
        layout = self._world.layout = Layout.of([pair])
        places = []
        drawn = sample_start_goal(layout, self.level, self._generator)
        for name, place in zip(("start", "goal"), drawn, strict=True):
            if (given := options.get(name)) is not None:
                place = torch.as_tensor(np.asarray(given, np.float32))[None]
                if place.shape != (1, 2) or not inside(place, layout):
                    raise WorkbookError(f"{name} must be (x, y) px of a free place, got {given!r}")
            places.append(place)
        self._world.reset(places[0])
        self._goal = places[1]
        return self._frame(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by `action` (2,) px; WorkbookError for a wrong shape or a non-finite value."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise WorkbookError(f"action must be two finite numbers (dx, dy) in px, got {action!r}")
        world, row = self._world, torch.from_numpy(action)[None]
        world.position = step(
            world.position, row, world.layout, world.dynamics, self._generator, world.noise
        )
        info = self._info()
        reached = info["success"]
        return self._frame(), float(reached), reached and self.stop_at_goal, False, info

    def _frame(self, position: torch.Tensor | None = None) -> np.ndarray:  # (Hpx, Wpx, C)
        return np.ascontiguousarray(self._world.render(position)[0].permute(1, 2, 0).numpy())

    def goal_frame(self) -> np.ndarray:
        """The observation (65, 65, 2) uint8 with the dot at the goal."""
        return self._frame(self._goal)

    def _info(self) -> dict[str, Any]:
        position, layout = self._world.position, self._world.layout
        distance = float((position - self._goal).norm())
        return {
            "position": position[0].numpy().copy(),
            "goal": self._goal[0].numpy().copy(),
            "wall_x": float(layout.wall_x[0]),
            "door_y": float(layout.door_y[0]),
            "distance": distance,
            "success": distance < TwoRooms.radius,
        }

    def render(self) -> np.ndarray | None:
        """RGB picture (260, 260, 3) uint8: walls grey, dot blue, goal red."""
        if self.render_mode is None:
            return None
        dot, walls = np.moveaxis(self._frame(), -1, 0)
        goal = self.goal_frame()[..., 0]
        light = 255 - (walls // 2).astype(np.int16)  # (Hpx, Wpx), white floor
        image = np.stack((light - dot, light - np.maximum(dot, goal), light - goal), -1)
        return image.clip(0, 255).astype(np.uint8).repeat(_SCALE, 0).repeat(_SCALE, 1)
