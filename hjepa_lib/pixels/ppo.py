"""A skilled policy: Stable-Baselines3 PPO trained on the pixels that the world models see (DATA-2).

It reads the stacks merged into channels and acts stochastically while collecting. A repeat of its
actions above 1 switches frame skip off. Everything runs on the CPU.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import torch

from hjepa_lib.config.fields import ConfigError, to_dict
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.pixels.env import Policy, make_env, merge_stack, stack_frames
from hjepa_lib.runs.machine import usable_cores

_SMALLEST_CNN = 36  # side of the smallest picture that CnnPolicy's convolutions can take, px


@contextlib.contextmanager
def skilled_policy(config: PixelsConfig, seed: int) -> Iterator[tuple[Policy, dict[str, Any]]]:
    """(policy of states (L, C, H, W), what its data say about it).

    Equal seeds, equal policies; inside the block torch's global generator draws their actions.
    """
    notes: list[str] = []
    repeat = repeat_of(config)
    if config.environment.frame_skip and repeat > 1:
        notes.append(f"actions are repeated {repeat} times, so frame skip is off")
    # Stable-Baselines3 seeds the global generators; afterwards they are where they were.
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            model, envs = train_policy(config, seed, notes)
            widen_policy(model, config.ppo.log_std_noise, notes)

            def policy(state: np.ndarray) -> Any:
                merged = np.asarray(state).reshape(model.observation_space.shape)
                action, _ = model.predict(merged, deterministic=False)
                return action if action.ndim else int(action)

            yield policy, {
                "method": "ppo", "action_repeat": max(repeat, 1), "notes": notes,
                "ppo": {**to_dict(config.ppo), "n_envs": envs},
            }  # fmt: skip
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def repeat_of(config: PixelsConfig) -> int:
    """How often PPO's actions are repeated: the environment's setting, else PPO's own."""
    return config.environment.action_repeat or config.ppo.action_repeat


def train_policy(config: PixelsConfig, seed: int, notes: list[str]) -> tuple[Any, int]:
    """A trained PPO model and the number of environments it used; what happened is in `notes`.

    ConfigError when Stable-Baselines3 is absent or the pictures are too small for the policy.
    """
    baselines = import_baselines()
    ppo = config.ppo
    if ppo.policy == "CnnPolicy" and config.environment.image_size < _SMALLEST_CNN:
        raise ConfigError(
            f"CnnPolicy needs pictures of at least {_SMALLEST_CNN} px, "
            f"pixels.environment.image_size is {config.environment.image_size}: use MlpPolicy"
        )
    envs = make_training_envs(config, seed, notes)
    try:
        count = envs.num_envs
        # No roll-out longer than the whole training, no batch larger than a roll-out.
        steps = min(ppo.n_steps, max(2, ppo.steps // count))
        model = baselines.PPO(
            ppo.policy, envs, learning_rate=ppo.learning_rate, n_steps=steps,
            batch_size=min(ppo.batch, steps * count), n_epochs=ppo.epochs, gamma=ppo.gamma,
            gae_lambda=ppo.gae_lambda, clip_range=ppo.clip_range, seed=seed, device="cpu",
        )  # fmt: skip
        model.learn(ppo.steps)
        scores = [episode["r"] for episode in model.ep_info_buffer]
        if scores:
            notes.append(f"mean return of PPO's last {len(scores)} episodes: {np.mean(scores):.3g}")
        return model, count
    finally:
        envs.close()


def import_baselines() -> ModuleType:
    """The package stable_baselines3; ConfigError when it is not installed."""
    try:
        import stable_baselines3
    except ImportError as error:
        raise ConfigError(
            "PPO data need stable-baselines3, which is not installed: pip install stable-baselines3"
        ) from error
    return stable_baselines3


def make_training_env(config: PixelsConfig) -> gymnasium.Env:
    """One environment as PPO sees it: states (L * C, H, W) uint8, actions repeated."""
    env = make_env(config.environment, action_repeat=repeat_of(config))
    return merge_stack(stack_frames(env, config.environment.stack))


def make_training_envs(config: PixelsConfig, seed: int, notes: list[str]) -> Any:
    """Seeded environments side by side, at most one per CPU; in processes where that works."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    make_training_env(config).close()  # what is wrong with the settings is said here, in one place
    count = min(config.ppo.n_envs, usable_cores())
    if count < config.ppo.n_envs:
        notes.append(f"{count} environments instead of {config.ppo.n_envs}: one per CPU")
    make = partial(make_vec_env, partial(make_training_env, config), count, seed)
    if count > 1:
        try:
            return make(vec_env_cls=SubprocVecEnv)
        except (OSError, EOFError, RuntimeError, AssertionError) as error:  # sandboxes, daemons
            reason = " ".join(str(error).split()) or type(error).__name__
            notes.append(f"environments run in this process, parallel ones failed: {reason}")
    return make()


def widen_policy(model: Any, noise: float, notes: list[str]) -> None:
    """Raise the log standard deviations of a continuous policy by `noise`."""
    if not noise:
        return
    if not hasattr(model.policy, "log_std"):
        notes.append("pixels.ppo.log_std_noise has no effect: the actions are discrete")
        return
    with torch.no_grad():
        model.policy.log_std += noise
