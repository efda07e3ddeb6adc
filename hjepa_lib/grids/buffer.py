"""Replay buffers of the grid world: .npz files, never unpickled (GRID-12)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config.pixels import GridConfig
from hjepa_lib.files import FileError, load_npz, save_npz, sha256
from hjepa_lib.grids import world

CANVASES = ("state", "next_state")
REQUIRED = (*CANVASES, "action", "done")
"""What must be in a file; `episode` is counted from `done` where absent."""
_TYPES = {"state": np.int8, "next_state": np.int8, "action": np.int64, "done": np.bool_}
_TYPES |= {"episode": np.int64}
CHUNK = 64  # canvases encoded at once outside training


class GridBatch(NamedTuple):
    """B transitions; canvases are int64, padding -1."""

    state: Tensor  # (B, S, S)
    action: Tensor  # (B,)
    next_state: Tensor  # (B, S, S)

    def to(self, device: torch.device | str) -> GridBatch:
        return GridBatch(*(field.to(device) for field in self))

    def pieces(self, device: torch.device | str) -> Iterator[GridBatch]:
        """The batch in chunks, on a device."""
        for rows in zip(*(field.split(CHUNK) for field in self), strict=True):
            yield GridBatch(*rows).to(device)


@dataclasses.dataclass(frozen=True)
class GridBuffer:
    """N transitions in the order played."""

    state: np.ndarray  # (N, S, S) int8, see world.py
    next_state: np.ndarray  # (N, S, S) int8
    action: np.ndarray  # (N,) 0..2483
    done: np.ndarray  # (N,) bool, last transition of its episode
    episode: np.ndarray  # (N,)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], source: str = "the buffer") -> GridBuffer:
        """Arrays in the buffer's own types; FileError where they are wrong."""
        for name in REQUIRED:
            if name not in arrays:
                raise FileError(f"{source} has no field {name!r}; it is no replay buffer of grids")
        fields = {
            name: _typed(np.asarray(arrays[name]), kind, f"{source}: {name}")
            for name, kind in _TYPES.items()
            if name in arrays
        }
        _check(fields, source)
        done = fields["done"]
        fields.setdefault("episode", np.cumsum(done) - done)  # finished episodes before the row
        return cls(**fields)

    def __len__(self) -> int:
        return len(self.action)

    @property
    def size(self) -> int:
        """Cells per side of the canvas."""
        return self.state.shape[1]

    @property
    def sha256(self) -> str:
        """Of everything that must be in a file."""
        return sha256(b"".join(getattr(self, name).tobytes() for name in REQUIRED))

    def batch(self, index: Tensor) -> GridBatch:
        """Transitions number `index` (B,)."""
        rows = index.numpy()
        found = (torch.from_numpy(getattr(self, name)[rows]) for name in GridBatch._fields)
        return GridBatch(*(field.long() for field in found))

    def sample(self, most: int) -> GridBatch:
        """At most so many transitions, spread evenly, always the same ones."""
        return self.batch(torch.linspace(0, len(self) - 1, min(len(self), most)).long())

    def select(self, rows: np.ndarray) -> GridBuffer:
        """The transitions of a mask or of indices."""
        return GridBuffer(*(values[rows] for values in vars(self).values()))

    def split(self, fraction: float, seed: int) -> tuple[GridBuffer, GridBuffer]:
        """(train, held out): a `fraction` of the episodes, one at least, is held out (F13)."""
        episodes = np.unique(self.episode)
        if len(episodes) < 2:
            raise FileError("a buffer needs three episodes or more: to train, choose and test")
        order = np.random.default_rng(seed).permutation(episodes)
        held = order[: min(len(order) - 1, max(1, round(fraction * len(order))))]
        out = np.isin(self.episode, held)
        return self.select(~out), self.select(out)

    def save(self, path: Path) -> Path:
        """Write the columns as .npz."""
        return save_npz(path, **vars(self))


def play(config: GridConfig, seed: int) -> GridBuffer:
    """Random episodes in the built-in world."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(config.episodes):
        grid = world.random_grid(config.size, rng)
        for step in range(config.steps):
            action = world.random_action(grid, rng)
            after = world.apply(grid, action)
            rows.append((grid, after, action, step == config.steps - 1))
            grid = after
    columns = map(np.array, zip(*rows, strict=True))
    return GridBuffer.of(dict(zip(REQUIRED, columns, strict=True)))


def load(path: str | Path) -> GridBuffer:
    """A buffer from an .npz file; FileError, one sentence, for anything else."""
    if Path(path).suffix != ".npz":
        raise FileError(f"{path} is no replay buffer of grids: those are .npz files of arrays")
    return GridBuffer.of(load_npz(path), str(path))


def _typed(values: np.ndarray, kind: type, where: str) -> np.ndarray:
    """The array in the buffer's own type, unless that changes a value."""
    if values.dtype.kind in "biuf" and np.isfinite(values).all():
        typed = values.astype(kind)
        if np.array_equal(typed, values):
            return typed
    raise FileError(f"{where} must hold {np.dtype(kind).name} numbers")


def _check(fields: dict[str, np.ndarray], source: str) -> None:
    """Shapes and ranges; padding only outside a rectangle at the top left."""
    shape, last = fields["state"].shape, world.ACTIONS - 1
    if len(shape) != 3 or 0 in shape or shape[1] != shape[2] or shape[1] > world.MOST:
        raise FileError(f"{source}: state must be (N, S, S) with S up to {world.MOST}, got {shape}")
    for name, values in fields.items():
        wanted = shape if name in CANVASES else shape[:1]
        if values.shape != wanted:
            raise FileError(f"{source}: {name} must be {wanted}, got {values.shape}")
    if fields["action"].min() < 0 or fields["action"].max() > last:
        raise FileError(f"{source}: there are actions outside 0..{last}")
    line = np.arange(shape[1])
    for name in CANVASES:
        grids, where = fields[name], f"{source}: {name}"
        if grids.min() < world.PAD or grids.max() >= world.COLOURS:
            raise FileError(f"{where} holds colours outside {world.PAD}..{world.COLOURS - 1}")
        valid = grids >= 0
        height, width = valid.any(2).sum(1), valid.any(1).sum(1)
        rows, columns = line < height[:, None], line < width[:, None]  # (N, S)
        wrong = (valid != rows[:, :, None] & columns[:, None]).any((1, 2)) | (height == 0)
        if wrong.any():
            raise FileError(f"{where} of row {wrong.argmax()} is no rectangle at the top left")
