"""Worlds to plan in; importing this package registers the Gymnasium id `hjepa/TwoRooms-v0`."""

import gymnasium

from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import TwoRooms

__all__ = ["ENV_ID", "Layout", "TwoRooms", "World"]

ENV_ID = "hjepa/TwoRooms-v0"

gymnasium.register(ENV_ID, "hjepa_lib.worlds.gym_env:TwoRoomsEnv", max_episode_steps=200)
