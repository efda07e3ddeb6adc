"""Trajectories as states and actions; frames are drawn on demand, or were recorded."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib import files
from hjepa_lib.worlds.base import World, find_world
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import TwoRooms

_ARRAYS = {"positions": np.float32, "actions": np.float32, "lengths": np.int64, "layout": np.int16}


def divide(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending indices of a training part and of a random `fraction`, one at least."""
    held = min(max(round(fraction * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


class Parts(NamedTuple):
    """Whole episodes each; what chooses weights never scores them (X4)."""

    train: Any
    choice: Any
    test: Any


def three_parts(data: Any, fraction: float, seed: int) -> Parts:
    """Of `data.split`: that `fraction` is the test, an eighth of the rest chooses weights."""
    rest, test = data.split(fraction, seed)
    return Parts(*rest.split(1 / 8, seed), test)


class Record(NamedTuple):
    """Recorded frames of states."""

    store: np.ndarray  # (N, C, Hpx, Wpx) uint8, memory-mapped
    rows: Tensor  # (...) int64, where in it the frames of the states are

    def take(self, index: Tensor | slice) -> Record:
        """Those of some states."""
        return self._replace(rows=self.rows[index])

    def frames(self, device: torch.device | str = "cpu") -> Tensor:
        """(..., C, Hpx, Wpx) uint8, read now."""
        return torch.from_numpy(self.store[self.rows.numpy()]).to(device)

    def pieces(self) -> Iterator[np.ndarray]:
        """All in order, some hundred at a time."""
        yield from (self.store[part.numpy()] for part in self.rows.split(256))

    @classmethod
    def write(cls, path: Path, pieces: Iterable[np.ndarray], shape: tuple[int, ...]) -> Record:
        """The first frames of `pieces` as a new .npy file of `shape` (M, C, Hpx, Wpx).

        FileError without room for them.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        needed, free = math.prod(shape) / 1e9, shutil.disk_usage(path.parent).free / 1e9
        if needed > free:
            told = f"{shape[0]:,} frames need {needed:.1f} GB, {path.parent} has {free:.1f} GB left"
            raise files.FileError(f"{told}: set data.transitions")
        done = 0
        with files.replacing(path) as temporary:
            store = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for piece in pieces:
                part = piece[: shape[0] - done]
                store[done : done + len(part)] = part
                done += len(part)
                if done == shape[0]:
                    break
            store.flush()
        return cls(files.load_npy(path), torch.arange(shape[0]))


class Unplayed(World):
    """Of a recording that names no world: nothing steps or draws it."""


@dataclass
class Trajectories:
    """R trajectories laid end to end, of two states or more each; M states in all.

    `actions[i]` leads from state i to state i + 1; that of a last state is 0 and leads nowhere.
    """

    positions: Tensor  # (M, N) float32: the world's states, in Two Rooms x and y, px
    actions: Tensor  # (M, A) float32, px
    lengths: Tensor  # (R,) int64, states per trajectory
    layout: Tensor  # (R, 2) int16, wall_x and door_y px, or what it means in the world
    meta: dict[str, Any] = field(default_factory=dict)
    record: Record | None = None  # frames that nobody has to draw

    @property
    def count(self) -> int:
        """R."""
        return len(self.lengths)

    @property
    def transitions(self) -> int:
        """Triples of state, action, next state."""
        return len(self.positions) - self.count

    @property
    def starts(self) -> Tensor:
        """(R,) int64, index of each trajectory's first state."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def world(self) -> type[World]:
        """What draws the frames, or plays on with recorded ones."""
        source, recorded = self.meta.get("source", ""), self.record is not None
        world = find_world(self.meta.get("world", "") if recorded else source)
        return world or (Unplayed if recorded else TwoRooms)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(C, Hpx, Wpx)."""
        return self.world.observed() if self.record is None else self.record.store.shape[1:]

    def frames(self, states: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """(k, C, Hpx, Wpx) uint8 of the states number `states` (k,)."""
        if self.record is not None:
            return self.record.take(states).frames(device)
        layout = self.layouts(self.row_of(states))
        return self.world(layout.to(device)).render(self.positions[states].to(device))

    def row_of(self, states: Tensor) -> Tensor:
        """(k,) the trajectories of the states number `states` (k,)."""
        return torch.searchsorted(self.lengths.cumsum(0), states.contiguous(), right=True)

    def layouts(self, index: Tensor | slice = slice(None)) -> Layout:
        """One row for each of the trajectories `index`."""
        return Layout.of(self.layout[index])

    def one(self, index: int) -> tuple[Tensor, Tensor]:
        """States (L, N) and actions (L - 1, A) of one trajectory."""
        start, length = int(self.starts[index]), int(self.lengths[index])
        return self.positions[start : start + length], self.actions[start : start + length - 1]

    def select(self, index: Tensor) -> Trajectories:
        """The trajectories `index` (k,), in this order."""
        lengths = self.lengths[index]
        shift = self.starts[index] - (lengths.cumsum(0) - lengths)
        rows = shift.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
        parts = self.positions[rows], self.actions[rows], lengths, self.layout[index]
        return Trajectories(*parts, dict(self.meta), self.record and self.record.take(rows))

    def first(self, transitions: int) -> Trajectories:
        """As many, or all: whole trajectories and a cut last one."""
        steps = self.lengths - 1
        kept = torch.minimum(transitions - (steps.cumsum(0) - steps), steps)
        lengths = kept[kept > 0] + 1
        states, count = int(lengths.sum()), len(lengths)
        actions = self.actions[:states].clone()
        actions[-1] = 0
        parts = self.positions[:states], actions, lengths, self.layout[:count], dict(self.meta)
        return Trajectories(*parts, self.record and self.record.take(slice(states)))

    def split(self, val_fraction: float, seed: int) -> tuple[Trajectories, Trajectories | None]:
        """(train, validation) of whole trajectories; None where the fraction is 0 or R is 1."""
        if val_fraction == 0 or self.count == 1:
            return self, None
        train, validation = divide(self.count, val_fraction, seed)
        return self.select(train), self.select(validation)

    def hash(self) -> str:
        """SHA-256 over all arrays, not meta."""
        digest = hashlib.sha256()
        for name, kind in _ARRAYS.items():
            digest.update(np.ascontiguousarray(getattr(self, name).numpy(), kind).tobytes())
        for piece in self.record.pieces() if self.record else ():
            digest.update(piece.tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write .npy files, then meta.json, which makes the folder complete."""
        folder = Path(folder)
        (folder / "meta.json").unlink(missing_ok=True)  # incomplete from here on
        arrays = {name: getattr(self, name).numpy() for name in _ARRAYS}
        for name, array in arrays.items():
            files.save_npy(folder / f"{name}.npy", array.astype(_ARRAYS[name], copy=False))
        if self.record is not None:
            (store, rows), path = self.record, folder / "frames.npy"
            there = Path(getattr(store, "filename", "")) == path.resolve()
            if not (there and torch.equal(rows, torch.arange(len(store)))):
                shape = (len(rows), *store.shape[1:])
                store = Record.write(path, self.record.pieces(), shape).store
            arrays["frames"] = store
        sizes = {name: list(array.shape) for name, array in arrays.items()}
        extra = {"transitions": self.transitions, "hash": self.hash(), "sizes": sizes}
        files.write_json(folder / "meta.json", {**self.meta, **extra})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Trajectories:
        """A folder written by `save`, memory-mapped; `FileError` when incomplete."""
        folder = Path(folder)
        meta = files.read_json(folder / "meta.json")
        sizes = meta.get("sizes") if isinstance(meta, dict) else None
        if not isinstance(sizes, dict):
            raise files.FileError(f"{folder / 'meta.json'} describes no trajectories")
        arrays = {}
        for name, kind in (_ARRAYS | ({"frames": np.uint8} if "frames" in sizes else {})).items():
            array = files.load_npy(folder / f"{name}.npy")
            if list(array.shape) != sizes.get(name) or array.dtype != kind:
                raise files.FileError(f"{folder / name}.npy does not have the size in meta.json")
            arrays[name] = array
        store, rows = arrays.pop("frames", None), torch.arange(len(arrays["positions"]))
        record = None if store is None else Record(store, rows)
        arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(**arrays, meta=meta, record=record)
