"""Transitions (s_t, a_t, r_t, s_{t+1}) of pixel environments, frames stored once.

A state is a stack of the last L frames, oldest first, the first frame of an episode repeated where
there is no older one: frames lie end to end, and stacks are gathered when a batch needs them. The
predicted image is the LAST frame of s_{t+1}. Everything stays uint8 until a model scales it (F14).
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
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.layers import Size, sides

KINDS = ("discrete", "continuous")
_FORMAT = "hjepa transitions"
_ARRAYS = {
    "frames": np.uint8, "now": np.int64, "after": np.int64, "origin": np.int64,
    "action": None, "reward": np.float32, "episode": np.int64,
}  # fmt: skip


class TransitionBatch(NamedTuple):
    """B transitions."""

    state: Tensor  # (B, L, C, H, W) uint8, oldest frame first
    action: Tensor  # (B,) int64 discrete, or (B, A) float32 continuous
    reward: Tensor  # (B,) float32
    next_state: Tensor  # (B, L, C, H, W) uint8

    def to(self, device: str | torch.device) -> TransitionBatch:
        """The same batch on `device`."""
        return TransitionBatch(*(part.to(device) for part in self))


class PixelShapes(NamedTuple):
    """What a model must know about its data; `Transitions` has the same attributes."""

    channels: int
    stack: int
    image_size: Size
    action_kind: str  # "discrete" or "continuous"
    action_dim: int  # number of actions, or of their components

    def pixels(self, state: Tensor) -> Tensor:
        """uint8 (B, L, C, Hpx, Wpx) -> float in [0, 1]; ValueError for another type or shape."""
        if state.dtype != torch.uint8:
            raise ValueError(f"states must be uint8 in [0, 255], got {state.dtype}")
        wanted = (self.stack, self.channels, *sides(self.image_size))
        if state.ndim != 5 or tuple(state.shape[1:]) != wanted:
            raise ValueError(f"states must be (B, L, C, H, W) = (B, {', '.join(map(str, wanted))}),"
                             f" got {tuple(state.shape)}")  # fmt: skip
        return scaled(state)


def scaled(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float in [0, 1], here and nowhere else (F14)."""
    return pixels.float() / 255


def shapes_of(data: Transitions | PixelShapes) -> PixelShapes:
    """What a model must know about `data`."""
    return PixelShapes(*(getattr(data, name) for name in PixelShapes._fields))


def check_state(state: Tensor | np.ndarray, shape: tuple[int, ...]) -> None:
    """WorkbookError unless `state` is (..., L, C, H, W) of the given last four lengths (DATA-7)."""
    found, wanted = tuple(state.shape), tuple(shape)
    if found[-4:] != wanted:
        raise WorkbookError(f"a state must be (L, C, H, W) = {wanted}, got {found}")


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

    def __post_init__(self) -> None:
        for sentence in self._faults():
            raise WorkbookError(sentence)

    def _faults(self) -> Iterator[str]:
        """What is wrong, the first sentence first; later ones may rest on earlier ones."""
        if self.frames.ndim != 4 or self.frames.dtype != torch.uint8 or len(self.frames) < 2:
            found = f"{tuple(self.frames.shape)} {self.frames.dtype}"
            yield f"frames must be (F, C, H, W) uint8 with F of at least 2, got {found}"
        if self.stack < 1:
            yield f"a stack has at least one frame, got {self.stack}"
        for name in ("now", "after", "origin", "action", "episode"):
            if len(getattr(self, name)) != len(self) or len(self) == 0:
                yield f"{name} has {len(getattr(self, name))} rows, reward has {len(self)}"
        order = (self.origin >= 0) & (self.origin <= self.now) & (self.now < self.after)
        inside = bool((order & (self.after < len(self.frames))).all())
        same = self.episode[1:] == self.episode[:-1]
        joined = (self.now[1:] == self.after[:-1]) & (self.origin[1:] == self.origin[:-1])
        apart = (self.origin[1:] > self.after[:-1]) & (self.now[1:] == self.origin[1:])
        blocks = len(self.episode.unique_consecutive()) == len(self.episodes)
        if not (inside and blocks and bool(torch.where(same, joined, apart).all())):
            yield "the rows of an episode must follow each other in frames of its own"
        discrete = self.action_kind == KINDS[0]
        shape, kind = ((), torch.int64) if discrete else ((self.action_dim,), torch.float32)
        if self.action_kind not in KINDS or self.action.dtype != kind:
            yield f"{self.action_kind} actions cannot be {self.action.dtype}"
        if tuple(self.action.shape[1:]) != shape:
            yield f"an action must have shape {shape}, got {tuple(self.action.shape[1:])}"
        if discrete and not bool(((self.action >= 0) & (self.action < self.action_dim)).all()):
            yield f"an action lies outside 0..{self.action_dim - 1}"
        if not bool(torch.isfinite(self.action).all()):
            yield "an action is NaN or infinite"
        if not bool(torch.isfinite(self.reward).all()):
            yield "a reward is NaN or infinite"

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def channels(self) -> int:
        return self.frames.shape[1]

    @property
    def image_size(self) -> int:
        return self.frames.shape[-1]

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(L, C, H, W)."""
        return (self.stack, *self.frames.shape[1:])

    @property
    def episodes(self) -> Tensor:  # (E,) int64
        """Episode ids in ascending order."""
        return self.episode.unique()

    # --- reading ------------------------------------------------------------------------------
    def __getitem__(self, rows: Tensor) -> TransitionBatch:
        return self.batch(rows)

    def batch(self, index: Tensor) -> TransitionBatch:
        """The transitions `index` (B,); stacks never reach into another episode."""
        return TransitionBatch(
            self._states(self.now[index], self.origin[index]),
            self.action[index],
            self.reward[index],
            self._states(self.after[index], self.origin[index]),
        )

    def _states(self, newest: Tensor, origin: Tensor) -> Tensor:
        steps = torch.arange(1 - self.stack, 1)
        return self.frames[torch.maximum(newest[:, None] + steps, origin[:, None])]

    def windows(self, length: int) -> Tensor:
        """First rows (W,) of all windows of `length` transitions inside one episode (F6, DATA-10).

        WorkbookError when no episode is long enough.
        """
        _, rank, count = self.episode.unique_consecutive(return_inverse=True, return_counts=True)
        left = count.cumsum(0)[rank] - torch.arange(len(self))  # rows to the end of the episode
        if not bool((left >= length).any()):
            raise WorkbookError(
                f"no episode has {length} transitions, the longest has {int(count.max())}"
            )
        return (left >= length).nonzero()[:, 0]

    # --- cutting ------------------------------------------------------------------------------
    def split(self, fraction: float, seed: int) -> tuple[Transitions, Transitions]:
        """(train, validation) by whole episodes, shuffled with `seed` (DATA-4, F13)."""
        train, validation = self.split_episodes(fraction, seed)
        return self.select(train), self.select(validation)

    def split_episodes(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Episode ids of the two parts, ascending; at least one on each side.

        WorkbookError when there is only one episode or `fraction` lies outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise WorkbookError(f"the validation share must lie in (0, 1), got {fraction}")
        episodes = self.episodes
        if len(episodes) < 2:
            raise WorkbookError("one episode alone cannot be split: collect more, or shorter ones")
        held = min(max(round(fraction * len(episodes)), 1), len(episodes) - 1)
        order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed))
        return episodes[order[held:]].sort().values, episodes[order[:held]].sort().values

    def select(self, episodes: Tensor) -> Transitions:
        """The transitions of these episode ids, in the order of the file, and their frames."""
        rows = torch.isin(self.episode, episodes)
        if not bool(rows.any()):
            raise WorkbookError("none of these episodes is in the data")
        begins = self.now == self.origin  # the first row of each episode
        owner = torch.bucketize(torch.arange(len(self.frames)), self.origin[begins], right=True) - 1
        kept = torch.isin(self.episode[begins], episodes)[owner]  # (F,)
        place = kept.cumsum(0) - 1
        moved = {name: place[getattr(self, name)[rows]] for name in ("now", "after", "origin")}
        own = {name: getattr(self, name)[rows] for name in ("action", "reward", "episode")}
        return replace(self, frames=self.frames[kept], meta=dict(self.meta), **moved, **own)

    # --- files --------------------------------------------------------------------------------
    @cached_property
    def sha256(self) -> str:
        """SHA-256 over all arrays and what gives them meaning: equal data, equal hash."""
        digest = hashlib.sha256(f"{self.action_kind},{self.action_dim},{self.stack}".encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name).numpy()).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write an .npy file per array; meta.json comes last and makes the folder complete."""
        folder = Path(folder)
        (folder / "meta.json").unlink(missing_ok=True)  # incomplete from here on
        for name in _ARRAYS:
            files.save_npy(folder / f"{name}.npy", getattr(self, name).numpy())
        own = {name: getattr(self, name) for name in ("action_kind", "action_dim", "stack")}
        own |= {"format": _FORMAT, "sha256": self.sha256}
        files.write_json(folder / "meta.json", {**self.meta, **own})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Transitions:
        """Read what `save` wrote; FileError when it is missing, damaged, or something else."""
        folder = Path(folder)
        meta = files.read_json(folder / "meta.json")
        if not isinstance(meta, dict) or meta.pop("format", None) != _FORMAT:
            raise files.FileError(f"{folder} holds no transitions: meta.json is of another kind")
        arrays = {}
        for name, kind in _ARRAYS.items():
            array = files.load_npy(folder / f"{name}.npy")
            if kind is not None and array.dtype != kind:
                raise files.FileError(f"{folder / name}.npy holds {array.dtype} numbers")
            arrays[name] = torch.from_numpy(array)
        try:
            own = {name: meta.pop(name) for name in ("action_kind", "action_dim", "stack")}
            stored = meta.pop("sha256")
            loaded = cls(**arrays, **own, meta=meta)
        except (KeyError, TypeError, ValueError) as error:
            raise files.FileError(f"{folder} holds no usable transitions: {error}") from error
        if loaded.sha256 != stored:
            raise files.FileError(f"{folder} does not match the SHA-256 in its meta.json")
        return loaded
