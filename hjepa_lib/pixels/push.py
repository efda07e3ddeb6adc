"""Push: Drift's control, `hjepa/Push-v0`; the reward depends on state and action only.

Picture, actions and stochastic moves are those of `hjepa/Drift-v0`, and so is what there is to
imagine. Only the reward differs:

    r = u(a) . (target - p) / |target - p|        (0 for stay, and on the target itself)

with p the position BEFORE the step: the share of the move that was meant for the target, in
[-1, 1]. Gusts do not enter, so a look ahead has nothing to add to state and action.
"""

from __future__ import annotations

import numpy as np

from hjepa_lib.pixels.drift import ACTIONS, DriftEnv


def reward(position: np.ndarray, target: np.ndarray, action: np.ndarray) -> np.ndarray:
    """u(a) . (target - p) / |target - p| of positions (..., 2) px and actions (...,): (...)."""
    way = np.asarray(target, float) - np.asarray(position, float)
    distance = np.linalg.norm(way, axis=-1)
    along = (ACTIONS[np.asarray(action)] * way).sum(-1)
    return along / np.where(distance > 0, distance, 1.0)


class PushEnv(DriftEnv):
    """Drift with the control reward."""

    def _reward(self, before: np.ndarray, action: int) -> float:
        return float(reward(before, self._target, action))
