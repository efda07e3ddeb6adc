"""Playing an environment for its transitions (DATA-1 to DATA-3), and the rules for loading them.

PPO is Stable-Baselines3's, trained on the CPU on stacks merged into channels.
"""

import contextlib
import math
import multiprocessing
import random
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import ReshapeObservation

from hjepa_lib.config.fields import ConfigError, leaves, to_dict
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.files import WorkbookError, extra
from hjepa_lib.pixels.env import FrameSkip, Policy, describe_actions, make_env, stack_frames
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.machine import usable_cores

BREAKOUT_RAM = (72, 99, 101)  # paddle x, ball x, ball y (AtariARI, arXiv 1906.08226)
_SMALLEST_CNN = 36  # side of the smallest picture that CnnPolicy's convolutions can take, px


def acquire(config: PixelsConfig, seed: int) -> Transitions:
    """The transitions a run works on (DATA-6); `meta["notes"]` says what was decided.

    Collected where the path is "", missing (a warning) or of another environment; it is never
    written to. ConfigError for a file not from PPO where that is wanted, WorkbookError for another
    picture shape, FileError for damage.
    """
    path, wanted, why = config.data.path, config.environment.id, ""
    if path and not Path(path).exists():
        why = f"{path} does not exist"
        warnings.warn(f"{why}, so the data were collected anew", stacklevel=2)
    elif path:
        stored = Transitions.load(path)
        found = stored.meta.get("environment")
        if found == wanted:
            return _accept(stored, config)
        why = f"{path} is a data set of another environment, {found} instead of {wanted}"
    data = collect(config, seed)
    notes = [f"{why}, so the data were collected anew"] if why else []
    data.meta["notes"] = [*notes, *data.meta.get("notes", [])]
    return data


def _accept(stored: Transitions, config: PixelsConfig) -> Transitions:
    seen, path, method = config.environment, config.data.path, stored.meta.get("method")
    if config.data.method == "ppo" and method != "ppo":
        raise ConfigError(
            f"{path} was collected by the method {method!r}, but "
            "pixels.data.method=ppo asks for PPO data: drop the path or the method"
        )
    stored = replace(stored, stack=seen.stack)  # stacks are made on reading, any length fits
    shape = (seen.stack, 1 if seen.grayscale else 3, seen.image_size, seen.image_size)
    if stored.state_shape != shape:
        raise WorkbookError(
            f"a state must be (L, C, H, W) = {shape}, got {stored.state_shape} in {path}"
        )
    # Settings that shaped the stored data and shape them no more.
    own: dict[str, Any] = {"max_steps": seen.max_steps, "frame_skip": seen.frame_skip}
    if method == "ppo":
        own["action_repeat"] = max(config.ppo.action_repeat, 1)
    if config.data.method == "ppo":
        own["ppo"] = to_dict(config.ppo) | {"action_repeat": None, "n_envs": None}
    found = leaves(stored.meta)
    stored.meta["notes"] = [f"loaded from {path}"] + [
        f"{path} was collected with {name}={found.get(name)}, the setting {value} has no effect"
        for name, value in leaves(own).items()
        if value not in (None, found.get(name))
    ]
    return stored


def collect(config: PixelsConfig, seed: int) -> Transitions:
    """New transitions, by uniform actions (DATA-1) or PPO; equal seeds, equal data."""
    seen = config.environment
    if config.data.method == "random":
        env = make_env(seen)
        env.action_space.seed(seed)
        return record(env, lambda _: env.action_space.sample(), config, seed)
    repeat, notes = config.ppo.action_repeat, []
    if seen.frame_skip and repeat > 1:
        notes.append(f"actions are repeated {repeat} times, so frame skip is off")
    with contextlib.ExitStack() as undo:  # Stable-Baselines3 seeds all global generators
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state())
        undo.enter_context(torch.random.fork_rng(devices=[]))
        model, count = train_policy(config, seed, notes)

        def policy(state: np.ndarray) -> Any:
            merged = np.asarray(state).reshape(model.observation_space.shape)
            action, _ = model.predict(merged, deterministic=False)
            return action if action.ndim else int(action)

        skip = 0 if repeat > 1 else seen.frame_skip
        data = record(make_env(seen, action_repeat=repeat), policy, config, seed, skip)
    ppo = to_dict(config.ppo) | {"n_envs": count}
    data.meta |= {"method": "ppo", "action_repeat": max(repeat, 1), "ppo": ppo, "notes": notes}
    return data


def record(
    env: gymnasium.Env, policy: Policy, config: PixelsConfig, seed: int,
    frame_skip: int | None = None,
) -> Transitions:  # fmt: skip
    """Play `env` (frames (C, H, W)) with `policy` (of states (L, C, H, W)); closes `env`.

    Ends after the configured number of episodes or transitions.
    """
    seen, limit = config.environment, config.data.transitions or math.inf
    skip = seen.frame_skip if frame_skip is None else frame_skip
    # Every frame once; rows of (now, after, origin, episode), see Transitions.
    frames, rows, actions, rewards, places, episodes = [], [], [], [], [], 0
    with contextlib.closing(FrameSkip(stack_frames(env, seen.stack), skip, policy)) as played:
        while episodes < config.data.episodes and len(rows) < limit:
            # One seed for the whole data set: later resets go on with the generator of the first.
            state, info = played.reset(seed=None if episodes else seed)
            origin, done = len(frames), False
            frames.append(state[-1].copy())
            places.append(place_of(env, info))
            while not done and len(rows) < limit:
                action, now = policy(state), len(frames) - 1
                state, reward, terminated, truncated, info = played.step(action)
                if not math.isfinite(reward):
                    raise WorkbookError(f"the environment returned the reward {reward}")
                frames += [one[-1].copy() for one in (*info["passed"], state)]
                places += [place_of(env, info)] * (1 + len(info["passed"]))
                rows.append((now, len(frames) - 1, origin, episodes))
                actions.append(action)
                rewards.append(reward)
                done = terminated or truncated
            episodes += 1
    size, kind = describe_actions(env.action_space)
    taken = np.array(actions, np.int64 if kind == "discrete" else np.float32)
    if kind == "discrete":  # stored from 0, wherever the space starts
        taken -= int(env.action_space.start)
    now, after, origin, episode = torch.tensor(rows).T.contiguous()
    told = np.array(places, np.float32)
    data = Transitions(
        torch.from_numpy(np.stack(frames)), now, after, origin, torch.from_numpy(taken),
        torch.tensor(rewards), episode, kind, size, seen.stack,
        position=torch.from_numpy(told) if told.size else None,
    )  # fmt: skip
    data.meta = {
        "environment": seen.id, "method": "random", "collected_seed": seed,
        "transitions": len(data), "image_size": data.frames.shape[-1], "grayscale": seen.grayscale,
        "max_steps": seen.max_steps, "action_repeat": 1, "ppo": None, "frame_skip": skip,
        "episodes": episodes,
    }  # fmt: skip
    return data


def place_of(env: gymnasium.Env, info: dict[str, Any]) -> np.ndarray:
    """Where things are, px: `info["position"]`, in Breakout paddle x, ball x, ball y; else empty.

    That of a frame between decisions is never asked for: it gets that of the decision's end.
    """
    if "position" in info:
        return np.asarray(info["position"], np.float32).ravel()
    console = getattr(env.unwrapped, "ale", None)  # other Breakouts have none
    if console is not None and "Breakout" in env.unwrapped.spec.id:
        return console.getRAM()[list(BREAKOUT_RAM)].astype(np.float32)
    return np.empty(0, np.float32)


def train_policy(config: PixelsConfig, seed: int, notes: list[str]) -> tuple[Any, int]:
    """A PPO model (DATA-2), the number of its environments; what happened goes to `notes`."""
    stable_baselines3 = extra("stable_baselines3")
    ppo = config.ppo
    large = config.environment.image_size >= _SMALLEST_CNN
    with contextlib.closing(make_training_envs(config, seed, notes)) as envs:
        count = envs.num_envs
        # No roll-out is longer than the training, no batch larger than a roll-out.
        steps = min(ppo.n_steps, max(2, ppo.steps // count))
        model = stable_baselines3.PPO(
            "CnnPolicy" if large else "MlpPolicy", envs, n_steps=steps,
            batch_size=min(32, steps * count), n_epochs=5, seed=seed, device="cpu",
        )  # fmt: skip
        model.learn(ppo.steps)
        scores = [episode["r"] for episode in model.ep_info_buffer]
        if scores:
            notes.append(f"mean return of PPO's last {len(scores)} episodes: {np.mean(scores):.3g}")
    return model, count


def make_training_env(config: PixelsConfig) -> gymnasium.Env:
    """One environment as PPO sees it: states (L * C, H, W) uint8, actions repeated."""
    seen = config.environment
    env = stack_frames(make_env(seen, action_repeat=config.ppo.action_repeat), seen.stack)
    length, channels, height, width = env.observation_space.shape
    return ReshapeObservation(env, (length * channels, height, width))


def make_training_envs(config: PixelsConfig, seed: int, notes: list[str]) -> Any:
    """Seeded environments in processes, at most one per CPU; in this one, if it is the only one
    or Dask's, which may start none."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    make_training_env(config).close()  # what is wrong with the settings is said here
    count = min(config.ppo.n_envs, usable_cores())
    if count < config.ppo.n_envs:
        notes.append(f"{count} environments instead of {config.ppo.n_envs}: one per CPU")
    apart = count > 1 and not multiprocessing.current_process().daemon
    kind = SubprocVecEnv if apart else None
    return make_vec_env(partial(make_training_env, config), count, seed, vec_env_cls=kind)
