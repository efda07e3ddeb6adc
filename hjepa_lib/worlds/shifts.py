"""Two Rooms as no training has seen it: the four shifts of protocol P3 (after CLEAR-LeWM)."""

from hjepa_lib.worlds.layout import DOT_STD, Layout
from hjepa_lib.worlds.two_rooms import TwoRooms


class ThickWall(Layout):
    """A wall of 5 px instead of 3, drawn and in the way."""

    half = 2.0


SHIFTS = {
    "large_dot": {"dot_std": 1.3 * DOT_STD},
    "small_dot": {"dot_std": 0.7 * DOT_STD},
    "dim": {"bright": 0.7 * 255},
    "thick_wall": {"rooms": ThickWall},
    "weak": {"scale": 0.8},
}
"""What is another in the world `p3_NAME`; a weak action moves 0.8 of its length."""
_WORLDS = {
    f"p3_{name}": type(f"TwoRooms_{name}", (TwoRooms,), changes) for name, changes in SHIFTS.items()
}


def shifted(protocol: str) -> type[TwoRooms]:
    """The two-room world of a protocol, the usual one unless it is shifted."""
    return _WORLDS.get(protocol, TwoRooms)
