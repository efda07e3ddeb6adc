"""The two-room world as a Gymnasium environment, `hjepa/TwoRooms-v0`: one row of `TwoRooms`."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds.layout import CHANNELS, SIZE, Layout, layout_set
from hjepa_lib.worlds.two_rooms import TwoRooms, inside


class TwoRoomsEnv(gymnasium.Env):
    """Reach the goal in the other room. Observation (65, 65, 2) uint8: dot, walls.

    Action: displacement (dx, dy) in px, not clipped. Reward 1 at the goal, which ends the episode,
    else 0. `info`: position, goal (x, y), wall_x, door_y, distance, all px, and success.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, layouts: str = "fixed", dynamics: str = "bounce", render_mode: str | None = None
    ) -> None:
        """`layouts`: a name known to `layout_set`."""
        if render_mode not in (None, "rgb_array"):
            raise WorkbookError(f"render_mode must be None or rgb_array, got {render_mode!r}")
        limit = TwoRooms.action_cap
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, CHANNELS), np.uint8)
        self.action_space = spaces.Box(-limit, limit, (2,), np.float32)
        self.render_mode, self._world = render_mode, TwoRooms(Layout.fixed(), dynamics)
        self._layouts, self._generator = layout_set(layouts), torch.Generator()
        self._world.generator = self._generator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """`options` may fix free places "start" and "goal", (x, y) px; WorkbookError for others."""
        super().reset(seed=seed)
        # The torch generator follows Gymnasium's, so one seed rules layout, start, goal and noise.
        self._generator.manual_seed(int(self.np_random.integers(2**62)))
        row = int(self.np_random.integers(len(self._layouts)))
        layout = self._world.layout = Layout.of(self._layouts[[row]])
        start, goal = self._world.sample_start_goal(self._generator)
        places = {"start": start, "goal": goal}
        for name, given in (options or {}).items():
            if name not in places:
                raise WorkbookError(f"unknown reset option {name!r}; known: {', '.join(places)}")
            place = places[name] = torch.as_tensor(np.asarray(given, np.float32))[None]
            if place.shape != (1, 2) or not inside(place, layout):
                raise WorkbookError(f"{name} must be (x, y) px of a free place, got {given!r}")
        self._world.reset(places["start"])
        self._goal = places["goal"]
        return self._frame(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by `action` (2,) px; WorkbookError for other shapes and non-finite values."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise WorkbookError(f"action must be two finite numbers (dx, dy) in px, got {action!r}")
        self._world.step(torch.from_numpy(action)[None])
        info = self._info()
        return self._frame(), float(info["success"]), info["success"], False, info

    def _frame(self, position: torch.Tensor | None = None) -> np.ndarray:  # (Hpx, Wpx, C)
        return np.ascontiguousarray(self._world.render(position)[0].permute(1, 2, 0).numpy())

    def goal_frame(self) -> np.ndarray:
        """(65, 65, 2) uint8, the dot at the goal."""
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
        return image.clip(0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)
