"""A bright dot that actions move, and a target: in the wind, in a calm, before a noisy screen.

    p' = clip(p + 4 u(a) + w, 6, 57)        px, y down; u(a): stay, left, right, up, down
    Calm, NoisyTV: w = 0, r = 1 where |p' - target| < 8, else 0
    Drift: w a gust, with probability 1/2 normal, 6 px per axis, r = 1 - |p' - target| / 32

Without gusts all that moves follows from the action: the least error is 0. NoisyTV draws the dots
on grey and new noise in each frame, 0, 25 or 75 % of the frame's variance. Importing this registers
all ids.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

CALM_ID, DRIFT_ID = "hjepa/Calm-v0", "hjepa/Drift-v0"
NOISY_IDS = {0.0: "hjepa/NoisyTV0-v0", 0.25: "hjepa/NoisyTV25-v0", 0.75: "hjepa/NoisyTV-v0"}
"""By the noise's share of the variance; 0 is the control."""
SIZE = 64  # pixels per side
LOW, HIGH = 6.0, 57.0  # range of positions, px: a dot is always wholly visible
STEP = 4.0  # length of a move, px
GUST_SHARE, GUST = 0.5, 6.0  # share of steps with a gust; its deviation per axis, px
SCALE = 32.0  # distance that costs one unit of Drift's reward, px
NEAR = 8.0  # distance below which Calm pays, px
GREY, CONTRAST = 80.0, 0.6  # floor of NoisyTV, and how bright its dots are on it
WAYS = 256  # futures that a mean place is of
OBJECT_VARIANCE = 81.0  # of a pixel of NoisyTV without noise over states, mean over pixels
ACTIONS = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)], dtype=np.float64)
"""Direction (x, y) of each action."""


def reward(after: np.ndarray, target: np.ndarray, gust_share: float) -> np.ndarray:
    """Of next positions (..., 2) px, (...)."""
    left = np.linalg.norm(after - target, axis=-1)
    return 1 - left / SCALE if gust_share else (left < NEAR) * 1.0


def draw(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The picture (64, 64) uint8: two round dots, the target's darker and below."""
    pixel = np.arange(SIZE)
    layers = []
    for (x, y), brightness in ((position, 255.0), (target, 110.0)):
        squared = (pixel[:, None] - y) ** 2 + (pixel[None, :] - x) ** 2  # (Hpx, Wpx)
        layers.append(brightness * np.exp(-squared / 8))  # radius 2 px
    return np.maximum(*layers).astype(np.uint8)


class WindEnv(gymnasium.Env):
    """Observation (64, 64, 1) uint8, five actions; never terminates. `info`: position, target."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)

    def __init__(
        self, gust_share: float = GUST_SHARE, noise: float | None = None,
        render_mode: str | None = None,
    ) -> None:  # fmt: skip
        """`noise`: its share of a pixel's variance in [0, 1), before a grey floor; None: neither"""
        self.gust_share, self.noise = gust_share, noise
        self.render_mode, self._static = render_mode, np.random.default_rng(0)
        self.action_space = spaces.Discrete(len(ACTIONS))
        self._position = self._target = np.full(2, (LOW + HIGH) / 2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New start and target, both uniform over the field."""
        super().reset(seed=seed)
        if seed is not None:  # of its own: with or without noise the dot goes the same way
            self._static = np.random.default_rng(seed)
        self._position, self._target = self.np_random.uniform(LOW, HIGH, (2, 2))
        return self._seen()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One move and one gust. ValueError for an action outside 0..4."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be a whole number in 0..4, got {action!r}")
        self._position = _move(self.gust_share, self._position, action, (), self.np_random)
        value = float(reward(self._position, self._target, self.gust_share))
        frame, info = self._seen()
        return frame, value, False, False, info

    def render(self) -> np.ndarray:
        """The picture as RGB (64, 64, 3) uint8."""
        return self._seen()[0].repeat(3, 2)

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        info = {"position": self._position.copy(), "target": self._target.copy()}
        frame = draw(self._position, self._target)
        if self.noise is not None:
            spread = np.sqrt(OBJECT_VARIANCE * self.noise / (1 - self.noise))
            frame = GREY + CONTRAST * frame + self._static.normal(0, spread, frame.shape)
            frame = frame.round().clip(0, 255).astype(np.uint8)
        return frame[..., None], info


_WORLDS: dict[str, dict[str, float]] = {
    CALM_ID: {"gust_share": 0.0}, DRIFT_ID: {"gust_share": GUST_SHARE},
    **{name: {"gust_share": 0.0, "noise": share} for share, name in NOISY_IDS.items()},
}  # fmt: skip


def ceilings(name: str, samples: int = 5_000) -> dict[str, float]:
    """What the best model of one of these worlds reaches, over uniform states and actions.

    R2 of the reward by functions of state and action (`full`) and of the state alone
    (`action blind`): 1 - E[Var(r | ...)] / Var(r); `px`: root mean squared distance from the next
    place that remains. {} for another environment.
    """
    if name not in _WORLDS:
        return {}
    rng, share = np.random.default_rng(0), _WORLDS[name]["gust_share"]
    start, target = rng.uniform(LOW, HIGH, (2, samples, 1, 1, 2))
    action = np.arange(len(ACTIONS))[None, :, None]
    after = _move(share, start, action, (samples, len(ACTIONS), 32), rng)
    paid = reward(after, target, share)
    left = paid.var(axis=2, ddof=1).mean(), paid.reshape(samples, -1).var(axis=1, ddof=1).mean()
    full, blind = (float(1 - one / paid.var()) for one in left)
    px = float(np.sqrt(after.var(axis=2, ddof=1).sum(-1).mean()))
    return {"full": full, "action blind": blind, "px": px}


def foresee(name: str, place: np.ndarray, action: np.ndarray) -> np.ndarray | None:
    """(W, 2) px and (W, K) actions -> (W, K, 2), the mean place after each: the best to be said in
    these worlds. None for another environment."""
    if name not in _WORLDS:
        return None
    rng, share, found = np.random.default_rng(0), _WORLDS[name]["gust_share"], []
    shape = len(place), WAYS if share else 1
    place = np.broadcast_to(place[:, None], (*shape, 2))
    for taken in action.T:
        place = _move(share, place, taken[:, None], shape, rng)
        found.append(place.mean(1))
    return np.stack(found, 1)


def _move(
    gust_share: float, place: np.ndarray, action: Any, shape: tuple[int, ...],
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """(*shape, 2) px after actions, each with a gust of its own."""
    gust = rng.normal(0, GUST, (*shape, 2))
    gust *= rng.random((*shape, 1)) < gust_share
    return np.clip(place + STEP * ACTIONS[action] + gust, LOW, HIGH)


for _id, _settings in _WORLDS.items():
    gymnasium.register(_id, WindEnv, max_episode_steps=50, kwargs=_settings)
