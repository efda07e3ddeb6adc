"""Any Gymnasium environment as pixels: uint8 frames (C, H, W).

Channels come first or last. Two of them are layers of objects (dot, walls), layer k at brightness
1 / k; the alpha of (H, W, 4) is dropped; (4, H, W) is a stack of grey frames, of which the newest
counts. An environment that insists on a display runs under `xvfb-run -a`.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, TimeLimit
from torch.nn.functional import interpolate

import hjepa_lib.pixels.worlds
import hjepa_lib.worlds  # noqa: F401  registers the two rooms
from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import EnvironmentConfig
from hjepa_lib.files import first_line

Policy = Callable[[Any], Any]
"""Observation -> action."""
_MODES: tuple[dict[str, Any], ...] = ({"render_mode": "rgb_array"}, {"render_mode": None}, {})
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R 601
_SMALLEST = 8  # observations with a side below this many numbers are no pictures
_WIDEST = 1e6  # a declared range above this is no range of brightness


def open_env(env_id: str) -> gymnasium.Env:
    """The bare environment, with the first of `_MODES` that it accepts (ENV-1), or ConfigError."""
    atari = env_id.startswith("ALE/")
    for mode in _MODES:
        try:
            if atari:
                import ale_py  # registers its environments

                ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
            return gymnasium.make(env_id, **mode)
        except Exception as error:  # whatever a foreign constructor raises on a refused mode
            failure = error
    hint = ": pip install ale-py" if atari and isinstance(failure, ImportError) else ""
    raise ConfigError(f"{env_id} cannot be opened: {first_line(failure)}{hint}") from failure


def make_env(config: EnvironmentConfig, *, action_repeat: int = 0) -> gymnasium.Env:
    """An environment with observations (C, H, W) uint8, C = 1 or 3.

    Its limit counts repeated and skipped steps, too.
    """
    env = TimeLimit(open_env(config.id), config.max_steps)
    env = PixelObservation(env, config.image_size, config.grayscale)
    describe_actions(env.action_space)
    return FrameSkip(env, action_repeat - 1) if action_repeat > 1 else env


def describe_actions(space: spaces.Space) -> tuple[int, str]:
    """(n, "discrete") or (numbers per action, "continuous"); ConfigError for anything else."""
    if isinstance(space, spaces.Discrete):
        return int(space.n), "discrete"
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0], "continuous"
    raise ConfigError(f"actions must be Discrete or a flat Box, this environment has {space}")


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is (Hpx, Wpx), (Hpx, Wpx, C) or (C, Hpx, Wpx), C = 1 to 4."""
    if len(shape) == 3:
        if not _channels_last(shape) and not 1 <= shape[0] <= 4:
            return False
        shape = shape[:2] if _channels_last(shape) else shape[1:]
    return len(shape) == 2 and min(shape) >= _SMALLEST


def _channels_last(shape: tuple[int, ...]) -> bool:
    return 1 <= shape[2] <= 4


def to_frame(
    image: np.ndarray,
    size: int,
    grayscale: bool = True,
    declared: tuple[float, float] | None = None,
) -> np.ndarray:
    """A picture (see `is_picture`) as (1 or 3, size, size) uint8; `declared`: its black and white.

    Undeclared integers have 0..255, uint16 its whole range, floats [0, 1], or 0..255 where one is
    above 1. ValueError when it is no picture or not finite.
    """
    image = np.asarray(image)
    if not is_picture(image.shape):
        raise ValueError(f"a picture must be (H, W), (H, W, C) or (C, H, W), got {image.shape}")
    if image.ndim == 2:
        image = image[..., None]
    elif not _channels_last(image.shape):
        image = np.moveaxis(image[-1:] if len(image) == 4 else image, 0, -1)
    frame = torch.from_numpy(np.ascontiguousarray(_to_bytes(image, declared))).permute(2, 0, 1)
    if len(frame) == 2:
        frame = torch.maximum(frame[:1], frame[1:] // 2)
    elif len(frame) >= 3:
        frame = frame[:3]
        if grayscale:
            frame = (frame * _LUMA).sum(0, keepdim=True).round().to(torch.uint8)
    if not grayscale:
        frame = frame.expand(3, -1, -1)
    if frame.shape[1:] != (size, size):
        frame = interpolate(frame[None], (size, size), mode="bilinear", antialias=True)[0]
    return frame.contiguous().numpy()


def _to_bytes(image: np.ndarray, declared: tuple[float, float] | None) -> np.ndarray:
    if declared is None:
        declared = (0, 65_535 if image.dtype == np.uint16 else 255)
        if image.dtype == bool or np.issubdtype(image.dtype, np.floating):
            if image.min() < 0:
                raise ValueError("a picture holds numbers below 0, but no range is declared")
            declared = (0, 1 if image.max() <= 1 else 255)
    if image.dtype == np.uint8 and declared == (0, 255):
        return image
    if not np.isfinite(image).all():
        raise ValueError("a picture holds NaN or infinite values")
    return np.rint(np.interp(image, declared, (0, 255))).astype(np.uint8)


class PixelObservation(gymnasium.ObservationWrapper):
    """Observations as frames (C, H, W) uint8; `render()` stands in where they are no pictures."""

    def __init__(self, env: gymnasium.Env, size: int, grayscale: bool = True) -> None:
        super().__init__(env)
        self.size, self.grayscale, self.declared = size, grayscale, None
        space = env.observation_space
        self.renders = not (isinstance(space, spaces.Box) and is_picture(space.shape))
        if not self.renders:  # so that a dark frame in 0..255 is not blown up to white
            low, high = float(np.min(space.low)), float(np.max(space.high))
            self.declared = (low, high) if -_WIDEST < low < high < _WIDEST else None
        self.observation_space = spaces.Box(0, 255, (1 if grayscale else 3, size, size), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """The frame of the current state; ConfigError when there are no pixels to be had."""
        try:
            image = self._render() if self.renders else observation
            return to_frame(image, self.size, self.grayscale, self.declared)
        except ValueError as error:  # any other error of `to_frame` keeps its trace (C5)
            space = self.env.observation_space
            raise ConfigError(
                f"{self.unwrapped} has no pixels, observations are {space}: {first_line(error)}"
            ) from error

    def _render(self) -> Any:
        try:
            return self.env.render()
        except Exception as error:  # somebody else's code: no package, no display, no pictures
            raise ValueError(first_line(error)) from error


def stack_frames(env: gymnasium.Env, length: int) -> gymnasium.Env:
    """Observations (L, C, H, W), oldest first; the first frame is repeated on reset (ENV-5)."""
    return FrameStackObservation(env, length, padding_type="reset")


class FrameSkip(gymnasium.Wrapper):
    """`extra` more steps per decision: the same action (ENV-6), or new ones of `policy` (ENV-7).

    Rewards are summed and the last observation is returned; `info["passed"]` lists those between.
    """

    def __init__(self, env: gymnasium.Env, extra: int, policy: Policy | None = None) -> None:
        super().__init__(env)
        self.extra, self.policy = extra, policy

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Up to 1 + `extra` environment steps."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        total, passed = float(reward), []
        while len(passed) < self.extra and not (terminated or truncated):
            passed.append(observation)
            chosen = action if self.policy is None else self.policy(observation)
            observation, reward, terminated, truncated, info = self.env.step(chosen)
            total += float(reward)
        return observation, total, terminated, truncated, {**info, "passed": passed}
