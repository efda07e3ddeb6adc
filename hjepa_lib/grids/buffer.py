"""Replay buffers of the grid world: .npz, .pt (weights only) and .h5, never pickles (GRID-12)."""

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
_TYPES = dict.fromkeys(CANVASES, np.int8)
_TYPES |= {"action": np.int64, "reward": np.float32, "done": np.bool_}
REQUIRED = tuple(_TYPES)
"""What must be in a file; the other columns follow from it and are checked where given."""
_TYPES |= {"transition_type": np.int8}
_TYPES |= dict.fromkeys(("episode", "step_distance", "metadata", "next_metadata"), np.int64)


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
    """N checked transitions in the order played; from `GridBuffer.of`, `load` or `play`."""

    state: np.ndarray  # (N, S, S) int8, see world.py
    next_state: np.ndarray  # (N, S, S) int8
    target_state: np.ndarray  # (N, S, S) int8
    action: np.ndarray  # (N,) 0..2483
    reward: np.ndarray  # (N,) float32, rise of the similarity to the target
    done: np.ndarray  # (N,) bool, last transition of its episode
    transition_type: np.ndarray  # (N,) index into world.KINDS
    episode: np.ndarray  # (N,)
    step_distance: np.ndarray  # (N,) recorded steps from the state to the target
    metadata: np.ndarray  # (N, 5) world.FACTS of the state
    next_metadata: np.ndarray  # (N, 5)

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
            _refuse_rows(wrong, f"{source}: {name} of row {{}} does not fit the transition")
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
        found = {name: torch.from_numpy(getattr(self, name)[rows]) for name in GridBatch._fields}
        return GridBatch(**found | {name: found[name].long() for name in CANVASES})

    def sample(self, most: int) -> GridBatch:
        """At most so many transitions, spread evenly, always the same ones."""
        return self.batch(torch.linspace(0, len(self) - 1, min(len(self), most)).long())

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
        path, arrays, stream = Path(path), vars(self), io.BytesIO()
        if path.suffix == ".npz":
            return save_npz(path, **arrays)
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
    readers = {".npz": load_npz, ".pt": _read_pt}
    return GridBuffer.of(readers.get(path.suffix, _read_h5)(path), str(path))


def play(config: GridConfig, seed: int) -> GridBuffer:
    """`config.episodes` random episodes of `config.steps` transitions in the built-in world.

    What an episode ends in is its target, so every target can be reached.
    """
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
    if path.suffix in (".pkl", ".pickle"):
        raise FileError(
            f"{path} is a pickle, which can run any code when it is opened: "
            "store its arrays as .npz or .pt instead"
        )
    if path.suffix not in (".npz", ".pt", ".h5", ".hdf5"):
        raise FileError(f"{path} is no replay buffer: the known kinds are .npz, .pt and .h5")


def _read_pt(path: Path) -> dict[str, np.ndarray]:
    data = io.BytesIO(read_bytes(path))
    try:
        content = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with paragraphs of advice
        raise FileError(f"{path} is damaged, or holds more than tensors") from error
    if not isinstance(content, dict) or not all(torch.is_tensor(x) for x in content.values()):
        raise FileError(f"{path} must hold a dictionary of tensors")
    half = (torch.bfloat16, torch.float16)  # NumPy does not know the first
    tensors = {str(name): x.float() if x.dtype in half else x for name, x in content.items()}
    return {name: x.numpy() for name, x in tensors.items()}


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    h5py, data = _h5py(path), io.BytesIO(read_bytes(path))
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
        raise FileError(f"{source}: {name} holds values that are no {typed.dtype.name}")
    return typed


def _check(fields: dict[str, np.ndarray], source: str) -> None:
    """Fields, shapes and ranges; padding only outside a rectangle at the top left."""
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
    line, last = np.arange(shape[1]), world.ACTIONS - 1
    if len(wrong := fields["action"][(fields["action"] < 0) | (fields["action"] > last)]):
        raise FileError(f"{source}: action {wrong[0]} is outside 0..{last}")
    for name in CANVASES:
        grids, where = fields[name], f"{source}: {name}"
        if grids.min() < world.PAD or grids.max() >= world.COLOURS:
            raise FileError(f"{where} holds colours outside {world.PAD}..{world.COLOURS - 1}")
        valid = grids >= 0
        height, width = valid.any(2).sum(1), valid.any(1).sum(1)
        rows, columns = line < height[:, None], line < width[:, None]  # (N, S)
        wrong = (valid != rows[:, :, None] & columns[:, None]).any((1, 2)) | (height == 0)
        _refuse_rows(wrong, f"{where} of row {{}} is no rectangle in the top left corner")


def _refuse_rows(wrong: np.ndarray, sentence: str) -> None:
    """FileError naming the first wrong row, if there is one."""
    if wrong.any():
        raise FileError(sentence.format(np.nonzero(wrong.reshape(len(wrong), -1).any(1))[0][0]))


def _derive(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    done, count = fields["done"], np.arange(len(fields["done"]))
    episode = fields.get("episode")
    if episode is None or episode.shape != done.shape:
        episode = np.cumsum(done) - done  # finished episodes before the row
    ends = count[done | (np.append(episode[1:], -1) != episode)]
    return {
        "transition_type": world.kind_of(fields["action"]),
        "episode": episode,
        "step_distance": ends[np.searchsorted(ends, count)] - count + 1,
        "metadata": world.facts(torch.from_numpy(fields["state"])).numpy(),
        "next_metadata": world.facts(torch.from_numpy(fields["next_state"])).numpy(),
    }
