"""Collecting transitions from a Gymnasium environment, and the rules for loading them again.

`acquire` is what a run calls: it loads `pixels.data.path` where the rules allow it and collects
otherwise; what it decided is in `meta["notes"]`, one sentence each.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hjepa_lib.config.fields import ConfigError, to_dict
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.pixels.ppo import collect_ppo, repeat_of
from hjepa_lib.pixels.recording import describe_split, record
from hjepa_lib.pixels.transitions import Transitions, check_state
from hjepa_lib.pixels.worlds import make_env


# --- loading ----------------------------------------------------------------------------------
def acquire(config: PixelsConfig, seed: int) -> Transitions:
    """The transitions a run works on (DATA-6); `meta["notes"]` says what was decided.

    No path: collected. Path missing: a warning, collected. Another environment: a note, collected.
    PPO wanted but the file is not from PPO: ConfigError. Other picture shape: DataError naming
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
    seen, path = config.environment, config.data.path
    if config.data.method == "ppo" and stored.meta.get("method") != "ppo":
        raise ConfigError(
            f"{path} was collected by the method {stored.meta.get('method')!r}, but "
            "pixels.data.method=ppo asks for PPO data: drop the path or the method"
        )
    size = seen.image_size
    shape = (seen.stack, 1 if seen.grayscale else 3, size, size)
    stored = replace(stored, stack=seen.stack)  # stacks are made on reading, any length fits
    check_state(stored.batch(torch.tensor([0])).state[0], shape)
    notes = [f"loaded from {path}"]
    for name, wanted in _collection_settings(config, stored.meta).items():
        found = (stored.meta.get("ppo") or {}) if name.startswith("ppo.") else stored.meta
        found = found.get(name.removeprefix("ppo."))
        if found != wanted:
            notes.append(
                f"{path} was collected with {name}={found}, the setting {wanted} has no effect"
            )
    stored.meta |= {"notes": notes, **describe_split(stored, config, seed)}
    return stored


def _collection_settings(config: PixelsConfig, meta: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of the settings that shaped a stored data set and shape it no more."""
    seen = config.environment
    settings: dict[str, Any] = {"max_steps": seen.max_steps, "frame_skip": seen.frame_skip}
    if meta.get("method") == "ppo":
        settings["action_repeat"] = max(repeat_of(config), 1)
    if config.data.method == "ppo":
        # The repeat stands above; the number of environments is capped where a policy is trained.
        left = {"action_repeat", "n_envs"}
        own = {key: value for key, value in to_dict(config.ppo).items() if key not in left}
        settings |= {f"ppo.{key}": value for key, value in own.items()}
    return settings


# --- collecting -------------------------------------------------------------------------------
def collect(config: PixelsConfig, seed: int) -> Transitions:
    """New transitions by the configured method; equal seeds, equal data."""
    if config.data.method == "ppo":
        return collect_ppo(config, seed)
    return collect_random(config, seed)


def collect_random(config: PixelsConfig, seed: int) -> Transitions:
    """Uniform actions (DATA-1)."""
    env = make_env(config.environment)
    env.action_space.seed(seed)
    return record(env, lambda _: env.action_space.sample(), config, seed)
