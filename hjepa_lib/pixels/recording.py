"""Plays an environment with a policy and keeps the transitions (DATA-3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.pixels.transitions import DataError, Transitions, check_state
from hjepa_lib.pixels.worlds import FrameSkip, Policy, describe_actions, stack_frames


@dataclass
class Recorder:
    """Takes states and decisions one by one; every frame is stored once."""

    space: gymnasium.Space
    state_shape: tuple[int, ...]  # (L, C, H, W)
    frames: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)  # see Transitions
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    episodes: int = 0

    def begin(self, state: np.ndarray) -> None:
        """First state of the next episode."""
        self._keep(state)
        self._origin = self._now = len(self.frames) - 1
        self.episodes += 1

    def add(self, action: Any, reward: float, states: list[np.ndarray]) -> None:
        """One decision and the states that followed it, the last one being s_{t+1}."""
        if not math.isfinite(reward):
            raise DataError(f"the environment returned the reward {reward}")
        for state in states:
            self._keep(state)
        after = len(self.frames) - 1
        self.rows.append((self._now, after, self._origin, self.episodes - 1))
        self._now = after
        self.actions.append(action)
        self.rewards.append(reward)

    def _keep(self, state: np.ndarray) -> None:
        check_state(state, self.state_shape)
        self.frames.append(np.array(state[-1]))

    def finish(self, stack: int) -> Transitions:
        """Everything taken so far."""
        size, kind = describe_actions(self.space)
        if isinstance(self.space, spaces.Discrete):  # stored from 0, wherever the space starts
            action = torch.from_numpy(np.array(self.actions, np.int64) - int(self.space.start))
        else:
            action = torch.from_numpy(np.array(self.actions, np.float32))
        now, after, origin, episode = torch.tensor(self.rows).T.contiguous()
        return Transitions(
            frames=torch.from_numpy(np.stack(self.frames)), now=now, after=after, origin=origin,
            action=action, reward=torch.tensor(self.rewards), episode=episode,
            action_kind=kind, action_dim=size, stack=stack,
        )  # fmt: skip


def record(
    env: gymnasium.Env,
    policy: Policy,
    config: PixelsConfig,
    seed: int,
    frame_skip: int | None = None,
    meta: dict[str, Any] | None = None,
) -> Transitions:
    """Play `env` (frames (C, H, W)) with `policy` (of states (L, C, H, W)); closes `env`.

    Ends after the configured number of episodes or transitions; ConfigError when that leaves
    fewer than two episodes, because validation needs one of its own.
    """
    seen, limit = config.environment, config.data.transitions or math.inf
    skip = seen.frame_skip if frame_skip is None else frame_skip
    recorder = Recorder(env.action_space, (seen.stack, *env.observation_space.shape))
    played = FrameSkip(stack_frames(env, seen.stack), skip, policy)
    try:
        while recorder.episodes < config.data.episodes and len(recorder.rewards) < limit:
            # One seed for the whole data set: later resets go on with the generator of the first.
            state, _ = played.reset(seed=None if recorder.episodes else seed)
            recorder.begin(state)
            done = False
            while not done and len(recorder.rewards) < limit:
                action = policy(state)
                state, reward, terminated, truncated, info = played.step(action)
                recorder.add(action, reward, [*info["passed"], state])
                done = terminated or truncated
    finally:
        played.close()
    if recorder.episodes < 2:
        raise ConfigError(
            f"{limit} transitions of {seen.id} are a single episode, which leaves none to validate "
            "on: raise pixels.data.transitions or lower pixels.environment.max_steps"
        )
    data = recorder.finish(seen.stack)
    data.meta = _describe(data, config, seed) | {"frame_skip": skip} | (meta or {})
    return data


def _describe(data: Transitions, config: PixelsConfig, seed: int) -> dict[str, Any]:
    """What a data file says about itself (DATA-5)."""
    return {
        "environment": config.environment.id,
        "method": "random",
        "collected_seed": seed,
        "transitions": len(data),
        "image_size": data.image_size,
        "grayscale": config.environment.grayscale,
        "max_steps": config.environment.max_steps,
        "action_repeat": 1,
        "ppo": None,
        **describe_split(data, config, seed),
    }


def describe_split(data: Transitions, config: PixelsConfig, seed: int) -> dict[str, Any]:
    """How a run of this seed cuts the data, wherever they come from."""
    fraction = config.data.validation_split
    train, validation = data.split_episodes(fraction, seed)
    held = int(torch.isin(data.episode, validation).sum())
    return {
        "seed": seed,
        "episodes": len(train) + len(validation),
        "validation_split": fraction,
        "train_transitions": len(data) - held,
        "validation_transitions": held,
        "validation_episodes": validation.tolist(),
    }
