"""Replay buffers of the grid world: .npz, .pt (weights only) and .h5, never pickles (GRID-12).

A buffer holds N transitions in the order they were played, every array with N rows:

    state, next_state, target_state   (N, S, S) int8   canvases, see worlds/grid_world.py
    action                            (N,) int64       0..2483
    reward                            (N,) float32     rise of the similarity to the target
    done                              (N,) bool        last transition of its episode
    transition_type                   (N,) int8        0..3: paint, flood, move, symmetry
    episode                           (N,) int64
    step_distance                     (N,) int64       recorded steps from the state to the target
    metadata, next_metadata           (N, 5) int64     height, width, most, least, count

The first six must be in a file; the others follow from them and are checked where they are given.
Built-in episodes take what they ended in as their target, so that every target can be reached.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config.grids import GridConfig
from hjepa_lib.files import FileError, load_npz, read_bytes, save_npz, sha256, write_atomic
from hjepa_lib.grids import world

CANVASES = ("state", "next_state", "target_state")
REQUIRED = (*CANVASES, "action", "reward", "done")
_TYPES = {"state": np.int8, "next_state": np.int8, "target_state": np.int8, "action": np.int64}
_TYPES |= {"reward": np.float32, "done": np.bool_, "transition_type": np.int8}
_TYPES |= dict.fromkeys(("episode", "step_distance", "metadata", "next_metadata"), np.int64)
_PICKLES = (".pkl", ".pickle")
_H5 = (".h5", ".hdf5")


class GridBatch(NamedTuple):
    """B transitions; canvases are int64, padding -1."""

    state: Tensor  # (B, S, S)
    action: Tensor  # (B,)
    next_state: Tensor  # (B, S, S)
    target_state: Tensor  # (B, S, S)
    reward: Tensor  # (B,) float32

    def to(self, device: torch.device | str) -> GridBatch:
        return GridBatch(*(field.to(device) for field in self))


@dataclasses.dataclass(frozen=True)
class GridBuffer:
    """Checked transitions; build one with `GridBuffer.of`, `load` or `play`."""

    state: np.ndarray
    next_state: np.ndarray
    target_state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    transition_type: np.ndarray
    episode: np.ndarray
    step_distance: np.ndarray
    metadata: np.ndarray
    next_metadata: np.ndarray

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], source: str = "the buffer") -> GridBuffer:
        """Check the arrays and derive what is absent; FileError if they are wrong."""
        fields = {name: _typed(arrays, name, source) for name in _TYPES if name in arrays}
        _check(fields, source)
        for name, values in _derive(fields).items():
            given = fields.setdefault(name, values)
            if given.shape != values.shape:
                raise FileError(f"{source}: {name} must be {values.shape}, got {given.shape}")
            # Episodes may have any numbers, and a shorter way to the target may be known.
            wrong = given < 0 if name in ("episode", "step_distance") else given != values
            if wrong.any():
                row = int(np.nonzero(wrong.reshape(len(wrong), -1).any(1))[0][0])
                raise FileError(f"{source}: {name} of row {row} does not fit the transition")
        return cls(**fields)

    def __len__(self) -> int:
        return len(self.action)

    @property
    def size(self) -> int:
        """Cells per side of the canvas."""
        return self.state.shape[1]

    @property
    def episodes(self) -> int:
        return len(np.unique(self.episode))

    @property
    def sha256(self) -> str:
        """Of everything that must be in a file."""
        return sha256(b"".join(getattr(self, name).tobytes() for name in REQUIRED))

    def batch(self, index: Tensor) -> GridBatch:
        """Transitions number `index` (B,)."""
        rows = index.numpy()
        canvases = [torch.from_numpy(getattr(self, name)[rows]).long() for name in CANVASES]
        state, following, target = canvases
        action, reward = torch.from_numpy(self.action[rows]), torch.from_numpy(self.reward[rows])
        return GridBatch(state, action, following, target, reward)

    def select(self, rows: np.ndarray) -> GridBuffer:
        """The transitions of a mask or of indices."""
        return GridBuffer(**{name: values[rows] for name, values in vars(self).items()})

    def split(self, fraction: float, seed: int) -> tuple[GridBuffer, GridBuffer]:
        """(train, validation): `fraction` of the episodes, at least one, validates (F13)."""
        episodes = np.unique(self.episode)
        if len(episodes) < 2:
            raise FileError("a buffer needs two episodes or more: one of them validates")
        order = np.random.default_rng(seed).permutation(episodes)
        held = order[: min(len(order) - 1, max(1, round(fraction * len(order))))]
        validation = np.isin(self.episode, held)
        return self.select(~validation), self.select(validation)

    def save(self, path: Path) -> Path:
        """Write .npz, .pt or .h5, by the name's ending."""
        path, arrays = Path(path), vars(self)
        if path.suffix == ".npz":
            return save_npz(path, **arrays)
        stream = io.BytesIO()
        if path.suffix == ".pt":
            torch.save({name: torch.from_numpy(values) for name, values in arrays.items()}, stream)
        else:
            _refuse(path)
            with _h5py(path).File(stream, "w") as file:
                for name, values in arrays.items():
                    file.create_dataset(name, data=values)
        return write_atomic(path, stream.getvalue())


def load(path: str | Path) -> GridBuffer:
    """A buffer from disk; FileError, one sentence, for anything else."""
    path = Path(path)
    _refuse(path)
    if path.suffix == ".npz":
        arrays = load_npz(path)
    else:
        data = io.BytesIO(read_bytes(path))
        arrays = _read_pt(path, data) if path.suffix == ".pt" else _read_h5(path, data)
    return GridBuffer.of(arrays, str(path))


def play(config: GridConfig, seed: int) -> GridBuffer:
    """`config.episodes` random episodes of `config.steps` transitions in the built-in world."""
    rows: dict[str, list] = {name: [] for name in REQUIRED}
    rng = np.random.default_rng(seed)
    for _ in range(config.episodes):
        grids, actions = [world.random_grid(config.size, rng)], []
        for _ in range(config.steps):
            actions.append(world.random_action(grids[-1], rng))
            grids.append(world.apply(grids[-1], actions[-1]))
        task = world.GridWorld(grids[0], grids[-1])
        rewards = [task.step(action)[1] for action in actions]
        ends = [False] * (config.steps - 1) + [True]
        columns = (grids[:-1], grids[1:], [grids[-1]] * config.steps, actions, rewards, ends)
        for name, values in zip(REQUIRED, columns, strict=True):
            rows[name] += values
    return GridBuffer.of({name: np.array(values) for name, values in rows.items()})


# --- reading and checking ---------------------------------------------------------------------
def _refuse(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise FileError(
            f"{path} is a pickle, which can run any code when it is opened: "
            "store its arrays as .npz or .pt instead"
        )
    if path.suffix not in (".npz", ".pt", *_H5):
        raise FileError(f"{path} is no replay buffer: the known kinds are .npz, .pt and .h5")


def _read_pt(path: Path, data: io.BytesIO) -> dict[str, np.ndarray]:
    try:
        content = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with paragraphs of advice
        raise FileError(f"{path} is damaged, or holds more than tensors") from error
    if not isinstance(content, dict) or not all(torch.is_tensor(x) for x in content.values()):
        raise FileError(f"{path} must hold a dictionary of tensors")
    half = (torch.bfloat16, torch.float16)  # NumPy does not know the first
    tensors = {str(name): x.float() if x.dtype in half else x for name, x in content.items()}
    return {name: x.numpy() for name, x in tensors.items()}


def _read_h5(path: Path, data: io.BytesIO) -> dict[str, np.ndarray]:
    h5py = _h5py(path)
    try:
        with h5py.File(data, "r") as file:
            return {name: file[name][()] for name in file if name in _TYPES}
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise FileError(f"{path} is not a whole HDF5 file of arrays") from error


def _h5py(path: Path):
    try:
        import h5py
    except ImportError as error:
        raise FileError(f"{path} needs the package h5py: pip install h5py") from error
    return h5py


def _typed(arrays: Mapping[str, np.ndarray], name: str, source: str) -> np.ndarray:
    """The array in the buffer's own type, unless that changes a value."""
    values = np.asarray(arrays[name])
    if values.dtype.kind not in "biuf":
        raise FileError(f"{source}: {name} does not hold numbers but {values.dtype}")
    if not np.isfinite(values).all():
        raise FileError(f"{source}: {name} holds values that are not finite")
    with np.errstate(invalid="ignore"):
        typed = values.astype(_TYPES[name])
    if name != "reward" and not np.array_equal(typed, values):
        kind = np.dtype(_TYPES[name]).name
        raise FileError(f"{source}: {name} holds values that are no {kind}")
    return typed


def _check(fields: dict[str, np.ndarray], source: str) -> None:
    for name in REQUIRED:
        if name not in fields:
            raise FileError(f"{source} has no field {name!r}; it is no replay buffer of grids")
    shape = fields["state"].shape
    if len(shape) != 3 or shape[0] == 0 or shape[1] != shape[2] or shape[1] > world.MOST:
        raise FileError(f"{source}: state must be (N, S, S) with S up to {world.MOST}, got {shape}")
    for name in REQUIRED:
        wanted = shape if name in CANVASES else shape[:1]
        if fields[name].shape != wanted:
            raise FileError(f"{source}: {name} must be {wanted}, got {fields[name].shape}")
    wrong = (fields["action"] < 0) | (fields["action"] >= world.ACTIONS)
    if wrong.any():
        raise FileError(
            f"{source}: action {fields['action'][wrong][0]} is outside 0..{world.ACTIONS - 1}"
        )
    for name in CANVASES:
        _check_canvases(fields[name], f"{source}: {name}")


def _check_canvases(grids: np.ndarray, where: str) -> None:
    """Colours in range, and padding only outside a rectangle at the top left."""
    if grids.min() < world.PAD or grids.max() >= world.COLOURS:
        raise FileError(f"{where} holds colours outside {world.PAD}..{world.COLOURS - 1}")
    valid = grids >= 0
    height, width = valid.any(2).sum(1), valid.any(1).sum(1)
    line = np.arange(grids.shape[1])
    rows, columns = line < height[:, None], line < width[:, None]  # (N, S)
    wrong = (valid != rows[:, :, None] & columns[:, None]).any((1, 2)) | (height == 0)
    if wrong.any():
        row = int(np.nonzero(wrong)[0][0])
        raise FileError(f"{where} of row {row} is no rectangle in the top left corner")


def _derive(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    done, count = fields["done"], np.arange(len(fields["done"]))
    episode = fields.get("episode")
    if episode is None or episode.shape != done.shape:
        episode = np.cumsum(done) - done  # finished episodes before the row
    last = done | (np.append(episode[1:], -1) != episode)
    ends = count[last]
    return {
        "transition_type": world.kind_of(fields["action"]),
        "episode": episode,
        "step_distance": ends[np.searchsorted(ends, count)] - count + 1,
        "metadata": world.facts(torch.from_numpy(fields["state"])).numpy(),
        "next_metadata": world.facts(torch.from_numpy(fields["next_state"])).numpy(),
    }
