"""Four rooms whose doors may be closed, and distractors that are only seen.

After `swm/FourRoomDistractors` of H-JEPA (224 px, here divided by 3.45), with doors anywhere in
their walls. Doors in their order: upper and lower in the upright wall, left and right in the other.
"""

import functools
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from hjepa_lib.worlds.base import trial_noise
from hjepa_lib.worlds.boxes import BoxWorld, around
from hjepa_lib.worlds.layout import HIGH, LOW, SIZE, paint, pick_layouts

MIDDLE, HALF = 32, 1.5  # px: both walls have the pixels 31 to 33
DOOR_HALF = 4.5  # px: openings are 9 px wide
FIRST, PLACES = 10, 17  # a door's centre lies 10 to 26 px from the frame's nearer edge
CLOSED = 0.5  # chance of each door, one after the other, while the rooms stay connected
MOST = 5  # distractors: 0 to 5
SPEED = 2.5 / 3.45  # px: the dot's longest step and every step of a distractor
LIFE = 35  # mean steps (Poisson) after which a distractor appears elsewhere
DIM = 0.6  # brightness of a distractor in units of the dot's
AWAY = -20.0  # x and y of a distractor that is not there, px: outside the frame
WAY = 75 * SPEED  # px: tasks are about so long
MARGIN = 2.6  # px between walls and the ends of tasks
SIZES = {"train": 900, "validation": 100, "test": 200}
_CANDIDATES = 16  # of a task, of which the one nearest to WAY is kept
_BESIDE = torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]])  # rooms at each door, in reading order
_LIVES = torch.from_numpy(poisson.ppf((np.arange(4096) + 0.5) / 4096, LIFE)).int()  # quantiles


def encode(doors: np.ndarray, closed: np.ndarray, distractors: np.ndarray) -> np.ndarray:
    """Layouts (K, 2) int16 of places (K, 4), closed door (K,), 4: none, and distractors (K,)."""
    one, two = (doors[:, place] * PLACES + doors[:, place + 1] for place in (0, 2))
    return np.stack((closed * PLACES**2 + one, distractors * PLACES**2 + two), -1).astype(np.int16)


def decode(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Door centres (K, 4) px along their walls, closed door and distractors (K,) of layouts."""
    places = np.stack((pairs // PLACES, pairs), -1).reshape(-1, 4) % PLACES + FIRST
    places[:, 1::2] = SIZE - 1 - places[:, 1::2]
    closed, distractors = (pairs // PLACES**2).T
    return places, closed, distractors


@functools.cache
def layout_lists() -> dict[str, np.ndarray]:
    """Layouts (K, 2) int16 of `SIZES`; no four door places are in two of them.

    NumPy's legacy generator: its stream is frozen.
    """
    random, count = np.random.RandomState(4), sum(SIZES.values())
    doors = random.randint(PLACES, size=(2 * count, 4))
    doors = doors[np.sort(np.unique(doors, axis=0, return_index=True)[1])][:count]
    # A second closed door would part the rooms: the first one to close, in random order, is alone.
    order, coins = random.rand(count, 4).argsort(1), random.rand(count, 4) < CLOSED
    closed = np.where(coins.any(1), order[np.arange(count), coins.argmax(1)], 4)
    pairs = encode(doors, closed, random.randint(MOST + 1, size=count))
    return dict(zip(SIZES, np.split(pairs, np.cumsum([*SIZES.values()])[:-1]), strict=True))


class FourRooms(BoxWorld):
    """A state is the dot's place, then those of 5 distractors, outside where there is none.

    They are in the dot's channel, walk straight through everything, and turn at the border.
    """

    action_cap = SPEED
    state_size = 2 + 2 * MOST
    max_steps = 210
    trials: ClassVar = {"validation": 100, "test": 200}

    @classmethod
    def layout_set(cls, name: str) -> np.ndarray:
        """(K, 2) int16; `fixed`: doors in the middle of their walls, the upper closed, 3 seen."""
        fixed = encode(np.full((1, 4), PLACES // 2), np.array([0]), np.array([3]))
        return pick_layouts(name, fixed, layout_lists())

    @classmethod
    def boxes_of(cls, row: tuple[int, int]) -> np.ndarray:
        """Boxes (M, 4) px of the walls, a closed door among them, and around."""
        (doors,), (closed,), _ = decode(np.array([row]))
        boxes = around(LOW + 0.5, HIGH - 0.5, HIGH - 0.5)
        for wall in (0, 1):
            opened = [doors[door] for door in (2 * wall, 2 * wall + 1) if door != closed]
            edges = [0.0, *(place + side for place in opened for side in (-DOOR_HALF, DOOR_HALF))]
            for begin, end in zip(edges[::2], [*edges[1::2], SIZE], strict=True):
                along, across = (begin, end), (MIDDLE - HALF, MIDDLE + HALF)
                (x0, x1), (y0, y1) = (along, across) if wall else (across, along)
                boxes.append((x0, y0, x1, y1))
        return np.array(boxes, np.float32)

    @classmethod
    def at_rest(cls, place: Tensor) -> Tensor:
        """States (..., 12) without any distractor."""
        away = place.new_full((*place.shape[:-1], cls.state_size - 2), AWAY)
        return torch.cat((place, away), -1)

    def sample_start_goal(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States (B, 12) of tasks through two doors at least, on ways of about 75 steps.

        From a room to the one diagonally opposite, or to the other side of a closed door.
        """
        n = self.layout.batch

        def uniform(*shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator)

        _, closed, distractors = map(torch.from_numpy, decode(self.layout.pairs().int().numpy()))
        first = (4 * uniform()).long()
        beside = _BESIDE[closed.clamp(max=3)]
        beside = torch.where(uniform()[:, None] < 0.5, beside, beside.flip(-1))
        around = (uniform() < 1 / 3) & (closed < 4)
        rooms = torch.where(around[:, None], beside, torch.stack((first, 3 - first), -1))
        far = torch.stack((rooms % 2, rooms // 2), -1) > 0  # (B, 2, 2): right, lower
        low = torch.where(far, MIDDLE + HALF, LOW + 0.5) + MARGIN
        high = torch.where(far, HIGH - 0.5, MIDDLE - HALF) - MARGIN
        places = low[:, None] + (high - low)[:, None] * uniform(_CANDIDATES, 2, 2)
        ends = [(self.at_rest(a), self.at_rest(b)) for a, b in places.permute(1, 2, 0, 3)]
        lengths = torch.stack([self.oracle_length(*pair) for pair in ends], 1)
        pick = (lengths - WAY).abs().argmin(1)
        there = (torch.arange(MOST) < distractors[:, None])[..., None]
        seen = torch.where(there, LOW + (HIGH - LOW) * uniform(2, MOST, 2).movedim(1, 0), AWAY)
        found = places[torch.arange(n), pick].unbind(1)
        return tuple(torch.cat((dot, s.flatten(1)), 1) for dot, s in zip(found, seen, strict=True))

    def reset(self, position: Tensor) -> Tensor:
        """Start at states (B, 12)."""
        super().reset(position)
        self.steps, self._others = 0, self.position[:, 2:].unflatten(1, (MOST, 2))
        _, self._move, self._left = self._drawn()
        return self.position

    def _drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """New places and steps (B, 5, 2) px and lives (B, 5) of distractors, of this step."""
        draw = trial_noise(self.seed, self.rows, self.steps, (MOST, 5)).to(self.device)
        share = torch.special.ndtr(draw[..., 2:])
        move = SPEED * draw[..., :2] / draw[..., :2].norm(dim=-1, keepdim=True)
        quantile = (len(_LIVES) * share[..., 2]).long().clamp(max=len(_LIVES) - 1)
        life = _LIVES.to(self.device)[quantile]
        return LOW + (HIGH - LOW) * share[..., :2], move, life

    def step(self, action: Tensor) -> Tensor:
        """Move the dot by `action` (B, 2) px."""
        dot = super().step(action)[:, :2]
        self.steps, here = self.steps + 1, self._others + self._move
        self._move = torch.where((here < LOW) | (here > HIGH), -self._move, self._move)
        place, move, life = self._drawn()
        self._left = self._left - 1
        ended = (self._left <= 0)[..., None]
        moved = torch.where(ended, place, self._others + self._move)
        self._move = torch.where(ended, move, self._move)
        self._left = torch.where(ended[..., 0], life, self._left)
        self._others = torch.where(self._others == AWAY, AWAY, moved)
        self.position = torch.cat((dot, self._others.flatten(1)), 1)
        return self.position

    def _frames(self, state: Tensor) -> Tensor:
        frames = paint(state[..., :2], self.walls)
        for other in state[..., 2:].unflatten(-1, (MOST, 2)).unbind(-2):
            dots = paint(other, self.walls, 255 * DIM)[..., 0, :, :]
            frames[..., 0, :, :] = torch.maximum(frames[..., 0, :, :], dots)
        return frames
