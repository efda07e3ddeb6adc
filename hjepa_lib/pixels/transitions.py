"""Transitions (s_t, a_t, r_t, s_{t+1}) of pixel environments, frames stored once.

A state is a stack of the last L frames, oldest first, the first frame of an episode repeated where
there is no older one. Storing stacks would take 2 L times the memory; so frames lie end to end,
episode by episode, and stacks are gathered by index when a batch needs them. The predicted image
of a transition is the LAST frame of s_{t+1}. Everything stays uint8 until a model scales it (F14).
The file form is a folder of .npy files plus meta.json, written last, with the checksum.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib import files
from hjepa_lib.files import WorkbookError

KINDS = ("discrete", "continuous")
_ARRAYS = {
    "frames": np.uint8, "now": np.int64, "after": np.int64, "origin": np.int64,
    "action": None, "reward": np.float32, "episode": np.int64,
}  # fmt: skip


class DataError(WorkbookError):
    """Transitions have a wrong shape, are not finite, or cannot be cut as asked."""


class TransitionBatch(NamedTuple):
    """B transitions, or (B, T) of them from `Transitions.sequence`."""

    state: Tensor  # (B, L, C, H, W) uint8, oldest frame first
    action: Tensor  # (B,) int64 discrete, or (B, A) float32 continuous
    reward: Tensor  # (B,) float32
    next_state: Tensor  # (B, L, C, H, W) uint8

    def to(self, device: str | torch.device) -> TransitionBatch:
        """The same batch on `device`."""
        return TransitionBatch(*(part.to(device) for part in self))


def check_state(state: Tensor | np.ndarray, shape: tuple[int, ...]) -> None:
    """DataError unless `state` is (..., L, C, H, W) with the given last four lengths (DATA-7)."""
    if tuple(state.shape[-4:]) != tuple(shape):
        raise DataError(f"a state must be (L, C, H, W) = {tuple(shape)}, got {tuple(state.shape)}")


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
        if self.frames.ndim != 4 or self.frames.dtype != torch.uint8 or len(self.frames) < 2:
            raise DataError(
                "frames must be (F, C, H, W) uint8 with F of at least 2, "
                f"got {tuple(self.frames.shape)} {self.frames.dtype}"
            )
        if self.stack < 1:
            raise DataError(f"a stack has at least one frame, got {self.stack}")
        rows = len(self.reward)
        for name in ("now", "after", "origin", "action", "episode"):
            if len(getattr(self, name)) != rows or rows == 0:
                raise DataError(f"{name} has {len(getattr(self, name))} rows, reward has {rows}")
        self._check_index()
        self._check_actions()
        if not bool(torch.isfinite(self.reward).all()):
            raise DataError("a reward is NaN or infinite")

    def _check_index(self) -> None:
        order = (self.origin >= 0) & (self.origin <= self.now) & (self.now < self.after)
        inside = bool((order & (self.after < len(self.frames))).all())
        same = self.episode[1:] == self.episode[:-1]
        joined = (self.now[1:] == self.after[:-1]) & (self.origin[1:] == self.origin[:-1])
        apart = (self.origin[1:] > self.after[:-1]) & (self.now[1:] == self.origin[1:])
        blocks = len(self.episode.unique_consecutive()) == len(self.episodes)
        if not (inside and blocks and bool(torch.where(same, joined, apart).all())):
            raise DataError("the rows of an episode must follow each other in frames of its own")

    def _check_actions(self) -> None:
        discrete = self.action_kind == KINDS[0]
        shape, kind = ((), torch.int64) if discrete else ((self.action_dim,), torch.float32)
        if self.action_kind not in KINDS or self.action.dtype != kind:
            raise DataError(f"{self.action_kind} actions cannot be {self.action.dtype}")
        if tuple(self.action.shape[1:]) != shape:
            raise DataError(
                f"an action must have shape {shape}, got {tuple(self.action.shape[1:])}"
            )
        if discrete and not bool(((self.action >= 0) & (self.action < self.action_dim)).all()):
            raise DataError(f"an action lies outside 0..{self.action_dim - 1}")
        if not discrete and not bool(torch.isfinite(self.action).all()):
            raise DataError("an action is NaN or infinite")

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
        index = torch.maximum(newest[:, None] + steps, origin[:, None])  # (B, L)
        return self.frames[index]

    def windows(self, length: int, stride: int = 1) -> Tensor:
        """First rows (W,) int64 of windows of `length` transitions inside one episode (F6).

        n - length + 1 per episode of n transitions at stride 1; the stride counts from the
        episode's first row. DataError when no episode is long enough.
        """
        if length < 1 or stride < 1:
            raise DataError(f"length and stride must be at least 1, got {length} and {stride}")
        _, rank, count = self.episode.unique_consecutive(return_inverse=True, return_counts=True)
        place = torch.arange(len(self)) - (count.cumsum(0) - count)[rank]  # row within its episode
        fits = (place + length <= count[rank]) & (place % stride == 0)
        if not bool(fits.any()):
            raise DataError(
                f"no episode has {length} transitions, the longest has {int(count.max())}"
            )
        return fits.nonzero()[:, 0]

    def sequence(self, first: Tensor, length: int) -> TransitionBatch:
        """Windows starting at rows `first` (B,), every field (B, T, ...)."""
        rows = first[:, None] + torch.arange(length)  # (B, T)
        if bool((rows[:, -1] >= len(self)).any()) or bool(
            (self.episode[rows[:, -1]] != self.episode[first]).any()
        ):
            raise DataError(f"a window of {length} transitions would cross the end of an episode")
        flat = self.batch(rows.flatten())
        return TransitionBatch(*(part.unflatten(0, tuple(rows.shape)) for part in flat))

    # --- cutting ------------------------------------------------------------------------------
    def split(self, fraction: float, seed: int) -> tuple[Transitions, Transitions]:
        """(train, validation) by whole episodes, shuffled with `seed` (DATA-4, F13)."""
        train, validation = self.split_episodes(fraction, seed)
        return self.select(train), self.select(validation)

    def split_episodes(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Episode ids of the two parts, ascending; at least one on each side.

        DataError when there is only one episode or `fraction` lies outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise DataError(f"the validation share must lie in (0, 1), got {fraction}")
        episodes = self.episodes
        if len(episodes) < 2:
            raise DataError("one episode alone cannot be split: collect more or shorter episodes")
        held = min(max(round(fraction * len(episodes)), 1), len(episodes) - 1)
        order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed))
        return episodes[order[held:]].sort().values, episodes[order[:held]].sort().values

    def select(self, episodes: Tensor) -> Transitions:
        """The transitions of these episode ids, in the order of the file, and their frames."""
        rows = torch.isin(self.episode, episodes).nonzero()[:, 0]
        if len(rows) == 0:
            raise DataError("none of these episodes is in the data")
        ids, first = self.episode[rows].unique_consecutive(return_inverse=True)
        kept, shift, total = [], torch.empty(len(ids), dtype=torch.int64), 0
        for number in range(len(ids)):
            inside = rows[first == number]
            low, high = int(self.origin[inside[0]]), int(self.after[inside[-1]]) + 1
            kept.append(self.frames[low:high])
            shift[number], total = total - low, total + high - low
        moved = {
            name: getattr(self, name)[rows] + shift[first] for name in ("now", "after", "origin")
        }
        return replace(
            self, frames=torch.cat(kept), action=self.action[rows], reward=self.reward[rows],
            episode=self.episode[rows], meta=dict(self.meta), **moved,
        )  # fmt: skip

    # --- files --------------------------------------------------------------------------------
    @cached_property
    def sha256(self) -> str:
        """SHA-256 over all arrays and what gives them meaning: equal data, equal hash."""
        digest = hashlib.sha256(f"{self.action_kind},{self.action_dim},{self.stack}".encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name).numpy()).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write the folder form; meta.json comes last and makes the folder complete."""
        folder = Path(folder)
        (folder / "meta.json").unlink(missing_ok=True)  # incomplete from here on
        for name in _ARRAYS:
            files.save_npy(folder / f"{name}.npy", getattr(self, name).numpy())
        own = {
            "action_kind": self.action_kind, "action_dim": self.action_dim, "stack": self.stack,
            "sha256": self.sha256,
        }  # fmt: skip
        files.write_json(folder / "meta.json", {"format": "hjepa transitions", **self.meta, **own})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Transitions:
        """Read what `save` wrote; FileError when it is missing, damaged, or something else."""
        folder = Path(folder)
        meta = files.read_json(folder / "meta.json")
        if not isinstance(meta, dict) or meta.pop("format", None) != "hjepa transitions":
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
