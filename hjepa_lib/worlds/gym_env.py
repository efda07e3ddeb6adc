"""The two-room world as a Gymnasium environment, `hjepa/TwoRooms-v0`.

Same dynamics and frames as the batched simulator, for one episode. Differs from the peers: frames
are declared as what they are (uint8, 0..255), `reset` takes a given start, goal and layout, every
random number follows from the seed, and the noise can be switched off.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from hjepa_lib.worlds.layout import (
    CHANNELS,
    DOOR_RANGE,
    SIZE,
    WALL_RANGE,
    Layout,
    layout_set,
)
from hjepa_lib.worlds.rendering import render
from hjepa_lib.worlds.two_rooms import DYNAMICS, LEVELS, NOISE, inside, sample_start_goal, step

ACTION_LIMIT = 2.45
"""Bound per axis of the declared action box, px; larger actions are not clipped."""
SUCCESS_PX = math.sqrt(2)
"""Protocol P1: solved within this Euclidean distance of the goal."""
_SCALE = 4
_OPTIONS = ("start", "goal", "wall_x", "door_y")


class TwoRoomsEnv(gymnasium.Env):
    """Reach the goal in the other room. Observation (65, 65, 2) uint8: dot, walls.

    Action: displacement (dx, dy) in px. Reward 1 when the goal is reached, else 0; the episode
    then terminates unless `stop_at_goal` is False. `info` holds position, goal (x, y) px, wall_x,
    door_y, distance (px) and success.
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
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}; got {level!r}")
        if dynamics not in DYNAMICS:
            raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}; got {dynamics!r}")
        if not noise >= 0:
            raise ValueError(f"noise must be at least 0 px, got {noise!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or rgb_array, got {render_mode!r}")
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, CHANNELS), np.uint8)
        self.action_space = spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, (2,), np.float32)
        self.render_mode, self.level, self.dynamics = render_mode, level, dynamics
        self.noise, self.stop_at_goal = noise, stop_at_goal
        self._layouts = layout_set(layouts)
        self._layout = Layout.fixed()
        self._position = self._goal = torch.full((1, 2), float("nan"))
        self._generator = torch.Generator()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New episode; `options` may fix "start", "goal" (x, y px), "wall_x" and "door_y".

        Raises `ValueError` for unknown options and for places inside a wall.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"unknown reset option {unknown[0]!r}; known: {', '.join(_OPTIONS)}")
        # The torch generator follows Gymnasium's, so one seed rules layout, start, goal and noise.
        self._generator.manual_seed(int(self.np_random.integers(2**62)))
        drawn = self._layouts[int(self.np_random.integers(len(self._layouts)))]
        wall = _in_range(options.get("wall_x", drawn[0]), WALL_RANGE, "wall_x")
        door = _in_range(options.get("door_y", drawn[1]), DOOR_RANGE, "door_y")
        self._layout = Layout.of(np.array([[wall, door]]))
        start, goal = sample_start_goal(self._layout, self.level, self._generator)
        self._position = self._place(options.get("start"), start, "start")
        self._goal = self._place(options.get("goal"), goal, "goal")
        return self._frame(), self._info()

    def _place(self, given: Any, drawn: torch.Tensor, name: str) -> torch.Tensor:  # (1, 2)
        if given is None:
            return drawn
        place = np.asarray(given, dtype=np.float32)
        if place.shape != (2,):
            raise ValueError(f"{name} must be (x, y) in px, got {given!r}")
        place = torch.from_numpy(place)[None]
        if not bool(inside(place, self._layout)):
            raise ValueError(
                f"{name} {tuple(place[0].tolist())} lies in a wall or outside the rooms"
            )
        return place

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by `action` (2,) px; raises `ValueError` for a wrong shape or a non-finite value."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action must be two finite numbers (dx, dy) in px, got {action!r}")
        self._position = step(
            self._position, torch.from_numpy(action)[None], self._layout, self.dynamics,
            self._generator, self.noise,
        )  # fmt: skip
        info = self._info()
        reached = info["success"]
        return self._frame(), float(reached), reached and self.stop_at_goal, False, info

    def _frame(self, position: torch.Tensor | None = None) -> np.ndarray:  # (Hpx, Wpx, C)
        frame = render(self._position if position is None else position, self._layout)[0]
        return np.ascontiguousarray(frame.permute(1, 2, 0).numpy())

    def goal_frame(self) -> np.ndarray:
        """The observation (65, 65, 2) uint8 with the dot at the goal."""
        return self._frame(self._goal)

    def _info(self) -> dict[str, Any]:
        distance = float((self._position - self._goal).norm())
        return {
            "position": self._position[0].numpy().copy(),
            "goal": self._goal[0].numpy().copy(),
            "wall_x": float(self._layout.wall_x[0]),
            "door_y": float(self._layout.door_y[0]),
            "distance": distance,
            "success": distance < SUCCESS_PX,
        }

    def render(self) -> np.ndarray | None:
        """RGB picture (260, 260, 3) uint8: walls grey, dot blue, goal red."""
        if self.render_mode is None:
            return None
        dot, walls = self._frame()[..., 0], self._frame()[..., 1]
        goal = self.goal_frame()[..., 0]
        light = 255 - np.maximum(walls // 2, 0).astype(np.int16)  # (Hpx, Wpx), white floor
        red, blue = light - dot, light - goal
        image = np.stack((red, light - np.maximum(dot, goal), blue), -1).clip(0, 255)
        return image.astype(np.uint8).repeat(_SCALE, 0).repeat(_SCALE, 1)


def _in_range(value: Any, limits: tuple[int, int], name: str) -> int:
    if int(value) != value or not limits[0] <= value <= limits[1]:
        raise ValueError(f"{name} must be an integer in [{limits[0]}, {limits[1]}], got {value!r}")
    return int(value)
