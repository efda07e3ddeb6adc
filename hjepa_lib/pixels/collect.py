"""Playing an environment for its transitions (DATA-3), and the rules for loading them again.

`acquire` is what a run calls: it loads `pixels.data.path` where the rules allow it and collects
otherwise; what it decided is in `meta["notes"]`, one sentence each.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from hjepa_lib.config.fields import ConfigError, to_dict
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.files import WorkbookError
from hjepa_lib.pixels.env import FrameSkip, Policy, describe_actions, make_env, stack_frames
from hjepa_lib.pixels.ppo import repeat_of, skilled_policy
from hjepa_lib.pixels.transitions import Transitions, check_state


# --- the stage `pixel_data` -------------------------------------------------------------------
def acquire(config: PixelsConfig, seed: int) -> Transitions:
    """The transitions a run works on (DATA-6); `meta["notes"]` says what was decided.

    No path: collected. Path missing: a warning, collected. Another environment: a note, collected.
    PPO wanted but the file is not from PPO: ConfigError. Other picture shape: WorkbookError naming
    both. Damaged: FileError. Nothing is ever written to the path.
    """
    path, notes = config.data.path, []
    if path and not Path(path).exists():
        notes.append(f"{path} does not exist, so the data were collected anew")
        warnings.warn(notes[-1], stacklevel=2)
    elif path:
        stored = Transitions.load(path)
        found, wanted = stored.meta.get("environment"), config.environment.id
        if found == wanted:
            return _accept(stored, config, seed)
        notes.append(
            f"{path} is a data set of another environment, {found} instead of {wanted}, "
            "so the data were collected anew"
        )
    data = collect(config, seed)
    data.meta["notes"] = [*notes, *data.meta.get("notes", [])]
    return data


def _accept(stored: Transitions, config: PixelsConfig, seed: int) -> Transitions:
    """A loaded data set of the right environment, if its method and shape fit."""
    seen, path, method = config.environment, config.data.path, stored.meta.get("method")
    if config.data.method == "ppo" and method != "ppo":
        raise ConfigError(
            f"{path} was collected by the method {method!r}, but "
            "pixels.data.method=ppo asks for PPO data: drop the path or the method"
        )
    stored = replace(stored, stack=seen.stack)  # stacks are made on reading, any length fits
    shape = (seen.stack, 1 if seen.grayscale else 3, seen.image_size, seen.image_size)
    check_state(stored[torch.tensor([0])].state[0], shape)
    # Settings that shaped the stored data and shape them no more.
    settings: dict[str, Any] = {"max_steps": seen.max_steps, "frame_skip": seen.frame_skip}
    if method == "ppo":
        settings["action_repeat"] = max(repeat_of(config), 1)
    if config.data.method == "ppo":  # the number of environments is capped while training
        own = to_dict(config.ppo).items()
        settings |= {f"ppo.{k}": v for k, v in own if k not in ("action_repeat", "n_envs")}
    found = stored.meta | {f"ppo.{k}": v for k, v in (stored.meta.get("ppo") or {}).items()}
    stored.meta["notes"] = [f"loaded from {path}"] + [
        f"{path} was collected with {name}={found.get(name)}, the setting {wanted} has no effect"
        for name, wanted in settings.items()
        if found.get(name) != wanted
    ]
    stored.meta |= describe_split(stored, config, seed)
    return stored


# --- collecting -------------------------------------------------------------------------------
def collect(config: PixelsConfig, seed: int) -> Transitions:
    """New transitions, by uniform actions (DATA-1) or a trained policy; equal seeds, equal data."""
    seen = config.environment
    if config.data.method == "ppo":
        repeat = repeat_of(config)
        skip = 0 if repeat > 1 else seen.frame_skip
        with skilled_policy(config, seed) as (policy, meta):
            return record(make_env(seen, action_repeat=repeat), policy, config, seed, skip, meta)
    env = make_env(seen)
    env.action_space.seed(seed)
    return record(env, lambda _: env.action_space.sample(), config, seed)


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
    frames: list[np.ndarray] = []  # every frame is stored once
    rows: list[tuple[int, int, int, int]] = []  # now, after, origin, episode: see Transitions
    actions, rewards = [], []
    played = FrameSkip(stack_frames(env, seen.stack), skip, policy)

    def keep(state: np.ndarray) -> int:
        frames.append(np.array(state[-1]))
        return len(frames) - 1

    episodes = 0
    try:
        while episodes < config.data.episodes and len(rows) < limit:
            # One seed for the whole data set: later resets go on with the generator of the first.
            state, _ = played.reset(seed=None if episodes else seed)
            origin = now = keep(state)
            done = False
            while not done and len(rows) < limit:
                action = policy(state)
                state, reward, terminated, truncated, info = played.step(action)
                if not math.isfinite(reward):
                    raise WorkbookError(f"the environment returned the reward {reward}")
                after = [keep(one) for one in (*info["passed"], state)][-1]
                rows.append((now, after, origin, episodes))
                actions.append(action)
                rewards.append(reward)
                now, done = after, terminated or truncated
            episodes += 1
    finally:
        played.close()
    if episodes < 2:
        raise ConfigError(
            f"{limit} transitions of {seen.id} are a single episode, which leaves none to validate "
            "on: raise pixels.data.transitions or lower pixels.environment.max_steps"
        )
    size, kind = describe_actions(env.action_space)
    taken = np.array(actions, np.int64 if kind == "discrete" else np.float32)
    if kind == "discrete":  # stored from 0, wherever the space starts
        taken -= int(env.action_space.start)
    now, after, origin, episode = torch.tensor(rows).T.contiguous()
    data = Transitions(
        torch.from_numpy(np.stack(frames)), now, after, origin, torch.from_numpy(taken),
        torch.tensor(rewards), episode, kind, size, seen.stack,
    )  # fmt: skip
    data.meta = {
        "environment": seen.id, "method": "random", "collected_seed": seed,
        "transitions": len(data), "image_size": data.image_size, "grayscale": seen.grayscale,
        "max_steps": seen.max_steps, "action_repeat": 1, "ppo": None, "frame_skip": skip,
        **describe_split(data, config, seed), **(meta or {}),
    }  # fmt: skip
    return data


def describe_split(data: Transitions, config: PixelsConfig, seed: int) -> dict[str, Any]:
    """How a run of this seed cuts the data, wherever they come from (DATA-5)."""
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
