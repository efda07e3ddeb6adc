"""Transitions (s_t, a_t, r_t, s_{t+1}) of pixel environments, frames stored once, as uint8 (F14).

A state is a stack of the last L frames, oldest first; where there is no older one the first of the
episode is repeated. Predicted is the LAST frame of s_{t+1}.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib import files
from hjepa_lib.data.trajectories import divide
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.layers import Size, sides

_FORMAT = "hjepa transitions"
_ARRAYS = ("frames", "now", "after", "origin", "action", "reward", "episode", "position")
_OWN = ("action_kind", "action_dim", "stack")


class TransitionBatch(NamedTuple):
    """B transitions."""

    state: Tensor  # (B, L, C, H, W) uint8
    action: Tensor  # (B,) int64 discrete, or (B, A) float32 continuous
    reward: Tensor  # (B,) float32
    next_state: Tensor  # (B, L, C, H, W) uint8

    def to(self, device: str | torch.device) -> TransitionBatch:
        """The same batch on `device`."""
        return TransitionBatch(*(part.to(device) for part in self))


class PixelShapes(NamedTuple):
    """What a model must know about its data."""

    channels: int
    stack: int
    image_size: Size
    action_kind: str  # "discrete" or "continuous"
    action_dim: int  # number of actions, or of their components

    def pixels(self, state: Tensor) -> Tensor:
        """uint8 (B, L, C, Hpx, Wpx) -> float in [0, 1]; ValueError for another type or shape."""
        wanted = (len(state), self.stack, self.channels, *sides(self.image_size))
        if state.dtype != torch.uint8 or state.shape != wanted:
            raise ValueError(f"states must be uint8 {wanted}, got {state.dtype} {(*state.shape,)}")
        return scaled(state)


def scaled(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float in [0, 1], here and nowhere else (F14)."""
    return pixels.float() / 255


def shapes_of(data: Transitions | PixelShapes) -> PixelShapes:
    """What a model must know about `data`."""
    if isinstance(data, PixelShapes):
        return data
    _, channels, _, size = data.frames.shape
    return PixelShapes(channels, data.stack, size, data.action_kind, data.action_dim)


@dataclass
class Transitions:
    """M transitions over F frames; rows of an episode are in order and next to each other."""

    frames: Tensor  # (F, C, H, W) uint8
    now: Tensor  # (M,) int64, frame of s_t
    after: Tensor  # (M,) int64, frame of s_{t+1}
    origin: Tensor  # (M,) int64, first frame of the episode
    action: Tensor  # (M,) int64 or (M, A) float32
    reward: Tensor  # (M,) float32
    episode: Tensor  # (M,) int64
    action_kind: str
    action_dim: int  # number of actions, or of numbers per action
    stack: int  # L
    meta: dict[str, Any] = field(default_factory=dict)
    position: Tensor | None = None  # (F, P) float32, px; None where the environment tells none

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(L, C, H, W)."""
        return (self.stack, *self.frames.shape[1:])

    @property
    def episodes(self) -> Tensor:  # (E,) int64
        """Episode ids in ascending order."""
        return self.episode.unique()

    @property
    def lengths(self) -> Tensor:  # (E,) int64
        """Transitions of each episode, in the order of the file."""
        return self.episode.unique_consecutive(return_counts=True)[1]

    @property
    def world(self) -> str:
        """The environment; "" where its steps had more actions than the rows have."""
        single = (self.meta.get("action_repeat", 1), self.meta.get("frame_skip", 0)) == (1, 0)
        return str(self.meta.get("environment")) if single else ""

    def __getitem__(self, rows: Tensor) -> TransitionBatch:
        """The transitions `rows` (B,); stacks never reach into another episode."""
        steps, origin = torch.arange(1 - self.stack, 1), self.origin[rows, None]
        state, after = (
            self.frames[torch.maximum(newest[rows, None] + steps, origin)]
            for newest in (self.now, self.after)
        )
        return TransitionBatch(state, self.action[rows], self.reward[rows], after)

    batch = __getitem__

    def windows(self, length: int) -> Tensor:
        """First rows (W,) of all windows of `length` transitions of one episode (F6, DATA-10).

        WorkbookError when there is none.
        """
        count = self.lengths
        left = count.cumsum(0).repeat_interleave(count) - torch.arange(len(self))  # rows to the end
        if (most := int(count.max())) < length:
            raise WorkbookError(f"no episode has {length} transitions, the longest has {most}")
        return (left >= length).nonzero()[:, 0]

    def split(self, fraction: float, seed: int) -> tuple[Transitions, Transitions]:
        """(train, validation) of one episode or more each, shuffled with `seed` (DATA-4, F13).

        WorkbookError when there is one alone.
        """
        episodes = self.episodes
        if len(episodes) < 2:
            raise WorkbookError("one episode alone cannot be split: collect more, or shorter ones")
        train, validation = divide(len(episodes), fraction, seed)
        return self.select(episodes[train]), self.select(episodes[validation])

    def select(self, episodes: Tensor) -> Transitions:
        """The transitions of these episode ids, in the order of the file, and their frames."""
        rows = torch.isin(self.episode, episodes)
        begins = self.now == self.origin  # the first row of each episode
        owner = torch.bucketize(torch.arange(len(self.frames)), self.origin[begins], right=True) - 1
        kept = torch.isin(self.episode[begins], episodes)[owner]  # (F,)
        place = kept.cumsum(0) - 1
        own = {
            name: array[kept if name in ("frames", "position") else rows]
            for name, array in self._arrays().items()
        }
        own |= {name: place[own[name]] for name in ("now", "after", "origin")}
        return replace(self, meta=dict(self.meta), **own)

    def _arrays(self) -> dict[str, Tensor]:
        return {name: one for name in _ARRAYS if (one := getattr(self, name)) is not None}

    @cached_property
    def mean_frame(self) -> Tensor:
        """(C, Hpx, Wpx) in [0, 1]."""
        total = sum(part.double().sum(dim=0) for part in self.frames.split(1_000))
        return (total / len(self.frames) / 255).float()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over all arrays and what gives them meaning: equal data, equal hash."""
        digest = hashlib.sha256(f"{self.action_kind},{self.action_dim},{self.stack}".encode())
        for array in self._arrays().values():
            digest.update(np.ascontiguousarray(array.numpy()).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write an .npy file per array; meta.json comes last and makes the folder complete."""
        folder = Path(folder)
        for name in ("meta.json", "position.npy"):  # incomplete from here on
            (folder / name).unlink(missing_ok=True)
        for name, array in self._arrays().items():
            files.save_npy(folder / f"{name}.npy", array.numpy())
        own = {name: getattr(self, name) for name in (*_OWN, "sha256")}
        files.write_json(folder / "meta.json", {**self.meta, **own, "format": _FORMAT})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Transitions:
        """Read what `save` wrote; FileError when it is missing, damaged, or something else."""
        folder = Path(folder)
        meta = files.read_json(folder / "meta.json")
        if not isinstance(meta, dict) or meta.pop("format", None) != _FORMAT:
            raise files.FileError(f"{folder} holds no transitions: meta.json is of another kind")
        if not isinstance(meta.get("ppo") or {}, dict):
            raise files.FileError(f"{folder} holds no usable transitions: 'ppo' is no mapping")
        names = _ARRAYS if (folder / "position.npy").is_file() else _ARRAYS[:-1]
        arrays = {name: files.load_npy(folder / f"{name}.npy") for name in names}
        stored, own = meta.pop("sha256", ""), {name: meta.pop(name, 0) for name in _OWN}
        for wrong, sentence in _checks(arrays, **own):
            if wrong:
                raise files.FileError(f"{folder} holds no usable transitions: {sentence}")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        loaded = cls(**tensors, **own, meta=meta)
        if loaded.sha256 != stored:
            raise files.FileError(f"{folder} does not match the SHA-256 in its meta.json")
        return loaded


def _checks(
    arrays: dict[str, np.ndarray], action_kind: Any, action_dim: Any, stack: Any
) -> Iterator[tuple[bool, str]]:
    """(is wrong, sentence) of a stored data set; each rests on those before it."""
    whole = all(isinstance(number, int) and number > 0 for number in (action_dim, stack))
    yield (
        not whole or action_kind not in ("discrete", "continuous"),
        f"{action_kind!r} actions of size {action_dim!r} in stacks of {stack!r} are unknown",
    )
    frames, now, after, origin, action, reward, episode, *told = arrays.values()
    yield frames.ndim != 4, f"frames must be (F, C, H, W), got {frames.shape}"
    rows, discrete = (reward.size,), action_kind == "discrete"
    forms = {"frames": (frames.shape, "uint8"), "reward": (rows, "float32")}
    if not discrete:
        forms["action"] = (*rows, action_dim), "float32"
    for place in told:
        forms["position"] = (len(frames), (*place.shape, 1)[1]), "float32"
    for name, array in arrays.items():
        shape, kind = forms.get(name, (rows, "int64"))
        yield (
            array.shape != shape or array.dtype != kind or not array.size,
            f"{name} must be {shape} {kind} and not empty, got {array.shape} {array.dtype}",
        )
    new = np.r_[True, episode[1:] != episode[:-1]]  # the first row of each episode
    last, same = np.r_[-1, after[:-1]], np.r_[-1, origin[:-1]]
    follows = np.where(new, (now == origin) & (origin > last), (now == last) & (origin == same))
    inside = (now < after) & (after < len(frames))
    yield (
        not (follows & inside).all() or new.sum() != len(np.unique(episode)),
        "the rows of an episode must follow each other in frames of its own",
    )
    outside = discrete and (action.min() < 0 or action.max() >= action_dim)
    yield outside, f"an action lies outside 0..{action_dim - 1}"
    told = [("a position", one) for one in told]
    for name, numbers in (("an action", action), ("a reward", reward), *told):
        yield not np.isfinite(numbers).all(), f"{name} is NaN or infinite"
