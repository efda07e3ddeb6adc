"""Recorded frames in the files of the field: stable-worldmodel HDF5, OGBench npz, Minari.

    HDF5     pixels (N, H, W, C) or (N, C, H, W) uint8, action (N, A), ep_len (E,), ep_offset (E,)
    npz      observations (N, H, W, C) uint8, actions (N, A), terminals (N,), true at an end
    Minari   episodes of T + 1 observations and T actions

More columns (N, k) may hold the position. Frames come in pieces: such files fit no memory.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hjepa_lib import files
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.files import FileError

H5 = (".h5", ".hdf5")
MINARI = "minari:"
STATE = "state"
"""The column of a position that is given by bare numbers; `write_h5` writes it."""
_PIECE = 1 << 24  # bytes of frames at a time
_CHANNELS = (1, 2, 3)
_POSITION = re.compile(r"(?:(?P<name>[^\d:][^:]*)(?::|$))?(?P<columns>\d+(?:,\d+)*)?")

Pieces = Iterator[np.ndarray]


class Recording(NamedTuple):
    """E episodes of two states or more end to end, N states in all."""

    lengths: np.ndarray  # (E,) int64, states per episode
    actions: np.ndarray  # (N, A) float32; that of each last state is zero and leads nowhere
    positions: np.ndarray  # (N, P) float32 in the file's unit; P is 0 where none are named
    shape: tuple[int, int, int]  # (C, Hpx, Wpx) of a frame
    pieces: Callable[[], Pieces]  # all frames in order, (n, C, Hpx, Wpx) uint8 each


def is_recording(source: str) -> bool:
    """Whether a `data.source` is one that `read` knows; an npz with locations is PLDM's own."""
    if source.startswith(MINARI) or source.lower().endswith(H5):
        return True
    if not source.endswith(".npz") or not Path(source).is_file():
        return False
    names = _names(source)
    return "observations" in names and "locations" not in names


def read(source: str, position: str = "") -> Recording:
    """The recording in a file (.h5, .hdf5, .npz) or of "minari:ID"; FileError says what is wrong.

    `position` names a column and its components: "proprio:0,1", "0,1" of `state`, or a name alone
    for its first two.
    """
    if source.startswith(MINARI):
        return _read_minari(source, position)
    return (_read_h5 if source.lower().endswith(H5) else _read_npz)(source, position)


def extra(module: str, name: str) -> Any:
    """An optional package; FileError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FileError(f"{module} is not installed: pip install -e '.[{name}]'") from error


# --- what all forms share -----------------------------------------------------------------------
def _checked(
    source: str, lengths: np.ndarray, actions: np.ndarray, positions: np.ndarray,
    shape: tuple[int, ...], kind: np.dtype, pieces: Callable[[], Pieces],
) -> Recording:  # fmt: skip
    """`shape` and `kind` are those of all frames, and `pieces` has them, with the file's axes."""
    total, actions = int(lengths.sum()), actions[:, None] if actions.ndim == 1 else actions
    if not len(lengths) or lengths.min() < 2:
        raise FileError(f"{source}: an episode needs two states or more")
    if actions.dtype.kind != "f" or actions.ndim != 2:
        raise FileError(f"{source}: actions must be (N, A) real numbers, got {_told(actions)}")
    if not total == len(actions) == shape[0]:
        found = f"{total} states in episodes, {len(actions)} actions, {shape[0]} frames"
        raise FileError(f"{source}: frames do not match: {found}")
    last = len(shape) == 4 and shape[3] in _CHANNELS
    if kind != np.uint8 or not (last or (len(shape) == 4 and shape[1] in _CHANNELS)):
        wanted = "(N, H, W, C) uint8 with 1 to 3 channels"
        raise FileError(f"{source}: frames must be {wanted}, got {tuple(shape)} {kind}")
    actions = actions.astype(np.float32)
    actions[lengths.cumsum() - 1] = 0
    for name, rows in (("action", actions), ("position", positions)):
        if not (finite := np.isfinite(rows).all(1)).all():
            rule = "; only the last one of an episode may be NaN" if name == "action" else ""
            raise FileError(f"{source}: the {name} of row {finite.argmin()} is not finite{rule}")
    frame = (shape[3], *shape[1:3]) if last else tuple(shape[1:])

    def in_order() -> Pieces:
        for piece in pieces():
            yield np.moveaxis(piece, -1, 1) if last else piece

    return Recording(lengths, actions, positions, frame, in_order)


def _told(values: np.ndarray) -> str:
    return f"{values.shape} {values.dtype}"


def _positions(
    source: str, position: str, count: int, names: Iterable[str], column: Callable[[str], Any]
) -> np.ndarray:
    """(count, P) of the named components, P = 0 for ""; `column` reads one of `names`."""
    if not position:
        return np.zeros((count, 0), np.float32)
    match = _POSITION.fullmatch(position.replace(" ", ""))
    if not match:
        raise FileError(f"data.position must be like 0,1 or state:0,1 or state, got {position!r}")
    name, picked = match["name"] or STATE, [*map(int, (match["columns"] or "0,1").split(","))]
    if name not in (names := sorted(names)):
        known = ", ".join(names) or "none"
        raise FileError(f"{source} has no column {name!r} for data.position; it has: {known}")
    values = np.asarray(column(name))
    values = values[:, None] if values.ndim == 1 else values
    if values.shape[0] != count or values.ndim != 2 or values.dtype.kind not in "fiu":
        raise FileError(f"{source}: {name} must be ({count}, k) numbers, got {_told(values)}")
    if max(picked) >= values.shape[1]:
        raise FileError(f"{source}: {name} has no component {max(picked)}, got {_told(values)}")
    return values[:, picked].astype(np.float32)


def _rows(shape: tuple[int, ...]) -> int:
    """Frames of a piece."""
    return max(1, _PIECE // max(1, int(np.prod(shape[1:]))))


# --- HDF5 ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def _open_h5(path: str) -> Iterator[Any]:
    h5py = extra("h5py", "h5")
    with contextlib.suppress(ImportError):  # more compressions, where somebody has installed it
        importlib.import_module("hdf5plugin")
    with files.told(path), open(path, "rb"):
        pass
    if not h5py.is_hdf5(path):
        raise FileError(f"{path} is no HDF5 file")
    with files.told(path, "a whole HDF5 file"), h5py.File(path, "r") as file:
        yield file


def _read_h5(path: str, position: str) -> Recording:
    with _open_h5(path) as file:
        for name in ("pixels", "action", "ep_len", "ep_offset"):
            if name not in file:
                raise FileError(f"{path} lacks the column {name!r}; it has: {', '.join(file)}")
        lengths, offsets = (file[name][:].astype(np.int64) for name in ("ep_len", "ep_offset"))
        if not np.array_equal(offsets, lengths.cumsum() - lengths):
            raise FileError(f"{path}: episodes must follow one another, ep_offset says otherwise")
        pixels, count = file["pixels"], int(lengths.sum())
        names = {name for name, one in file.items() if one.shape[:1] == (count,)} - {"pixels"}
        positions = _positions(path, position, count, names, lambda name: file[name][:])
        action, shape, kind = file["action"][:], pixels.shape, pixels.dtype

    def pieces() -> Pieces:
        with _open_h5(path) as file:
            step = _rows(shape)
            for start in range(0, shape[0], step):
                yield file["pixels"][start : start + step]

    return _checked(path, lengths, action, positions, shape, kind, pieces)


def write_h5(path: str | Path, data: Trajectories) -> Path:
    """Write trajectories as stable-worldmodel HDF5: `read` finds in it what went in.

    States go to the column `state`, last actions are NaN. FileError where `path` exists.
    """
    h5py, path = extra("h5py", "h5"), Path(path)
    if path.exists():
        raise FileError(f"{path} exists: name another file")
    actions = data.actions.numpy().astype(np.float32)
    actions[data.lengths.cumsum(0).numpy() - 1] = np.nan
    total, (channels, *sides) = len(actions), data.frame_shape
    columns = {"action": actions, "ep_len": data.lengths.numpy(), "ep_offset": data.starts.numpy()}
    if data.positions.shape[1]:
        columns[STATE] = data.positions.numpy()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with files.told(path, doing="write"), h5py.File(temporary, "w") as file:
            for name, values in columns.items():
                file[name] = values
            shape = (total, *sides, channels)
            options = {"chunks": (min(total, 8), *shape[1:]), "compression": "gzip"}
            pixels = file.create_dataset("pixels", shape, np.uint8, **options, compression_opts=1)
            for rows in torch.arange(total).split(_rows(shape)):
                frames = data.frames(rows).movedim(1, -1).cpu().numpy()
                pixels[int(rows[0]) : int(rows[-1]) + 1] = frames
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# --- npz ----------------------------------------------------------------------------------------
def _names(path: str) -> list[str]:
    with files.told(path, "a whole .npz file"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextlib.contextmanager
def _member(path: str, name: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
    """(stream at the first row, shape, dtype) of an array, which may be compressed."""
    form = np.lib.format
    header = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    with (
        files.told(path, "a whole .npz file"),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{name}.npy") as stream,
    ):
        shape, fortran, kind = header[form.read_magic(stream)](stream)
        if fortran or kind.hasobject:
            raise FileError(f"{path}: {name} must be numbers in C order, got {kind}")
        yield stream, shape, kind


def _read_npz(path: str, position: str) -> Recording:
    found = files.load_npz(path, ("actions", "terminals"))
    with _member(path, "observations") as (_, shape, kind):
        pass
    ends = np.flatnonzero(found["terminals"])
    if not len(ends) or ends[-1] != len(found["terminals"]) - 1:
        raise FileError(f"{path}: terminals must end the last episode in the last row")
    names = {*_names(path)} - {"observations", "actions", "terminals"}
    count = len(found["terminals"])
    positions = _positions(path, position, count, names, lambda n: files.load_npz(path, (n,))[n])

    def pieces() -> Pieces:
        step = _rows(shape)
        with _member(path, "observations") as (stream, _, _):
            for start in range(0, shape[0], step):
                part = (min(step, shape[0] - start), *shape[1:])
                yield np.frombuffer(stream.read(int(np.prod(part))), np.uint8).reshape(part)

    lengths = np.diff(ends, prepend=-1)
    return _checked(path, lengths, found["actions"], positions, shape, kind, pieces)


# --- Minari -------------------------------------------------------------------------------------
def _read_minari(source: str, position: str) -> Recording:
    minari = extra("minari", "minari")
    with files.told(source, "a Minari data set"):
        data = minari.load_dataset(source.removeprefix(MINARI))

    def episodes() -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """(episode, its observations by name; a plain one is called observations)."""
        with files.told(source, "a whole Minari data set"):
            for one in data.iterate_episodes():
                seen = one.observations
                yield one, seen if isinstance(seen, dict) else {"observations": seen}

    def pictures(seen: dict[str, np.ndarray]) -> np.ndarray:
        return max(seen.values(), key=np.ndim)  # frames have the most axes

    lengths, actions, positions, shapes = [], [], [], []
    for one, seen in episodes():
        frames = pictures(seen)
        steps, taken = len(frames), np.asarray(one.actions)
        if taken.ndim not in (1, 2) or len(taken) != steps - 1:
            wanted = f"{steps} observations need {steps - 1} actions (T, A)"
            raise FileError(f"{source}: {wanted}, got {_told(taken)} in episode {one.id}")
        actions.append(np.concatenate([taken, np.zeros_like(taken[:1])]))
        names = {name for name, values in seen.items() if values is not frames}
        positions.append(_positions(source, position, steps, names, seen.__getitem__))
        lengths.append(steps)
        shapes.append((frames.shape[1:], frames.dtype))
    if len({*shapes}) != 1:
        raise FileError(
            f"{source}: its episodes must have frames of one shape, not {len({*shapes})}"
        )
    (shape, kind), total = shapes[0], sum(lengths)

    def pieces() -> Pieces:
        yield from (pictures(seen) for _, seen in episodes())

    parts = np.concatenate(actions), np.concatenate(positions)
    return _checked(source, np.array(lengths), *parts, (total, *shape), kind, pieces)
