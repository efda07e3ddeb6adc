"""Worlds to plan in: two rooms with a door, as a batched torch simulator and as a Gymnasium env.

Importing this package registers the Gymnasium ids `hjepa/TwoRooms-v0`, and `hjepa/Drift-v0` and
`hjepa/Push-v0`, the two pixel worlds with a published reward.
"""

import gymnasium

from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import TwoRooms

__all__ = ["DRIFT_ID", "ENV_ID", "PUSH_ID", "Layout", "TwoRooms", "World"]

ENV_ID, DRIFT_ID, PUSH_ID = "hjepa/TwoRooms-v0", "hjepa/Drift-v0", "hjepa/Push-v0"

for _id, _entry, _steps in (
    (ENV_ID, "hjepa_lib.worlds.gym_env:TwoRoomsEnv", 200),
    (DRIFT_ID, "hjepa_lib.pixels.drift:DriftEnv", 50),
    (PUSH_ID, "hjepa_lib.pixels.push:PushEnv", 50),
):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=_entry, max_episode_steps=_steps)
