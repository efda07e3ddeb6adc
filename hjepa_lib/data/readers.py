"""Recorded frames in the files of the field: stable-worldmodel HDF5, OGBench npz, Minari.

    HDF5     pixels (N, H, W, C) or (N, C, H, W) uint8, action (N, A), ep_len (E,), ep_offset (E,)
    npz      observations (N, H, W, C) uint8, actions (N, A), terminals (N,), true at an end
    Minari   episodes of T + 1 observations and T actions

More columns (N, k) may hold the position. Frames come in pieces: they fit no memory.
"""

import contextlib
import importlib
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hjepa_lib import files
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.files import FileError

H5 = (".h5", ".hdf5")
MINARI = "minari:"
STATE = "state"  # the column of a position that is given by bare numbers; `write_h5` writes it
_PIECE = 1 << 24  # bytes of frames at a time
_CHANNELS = range(1, 17)  # a stack of frames has many
_POSITION = re.compile(r"(?P<name>[A-Za-z_][^:,]*)?(?:(?:^|:)(?P<x>\d+),(?P<y>\d+))?")

Pieces = Callable[[], Iterator[np.ndarray]]


class Recording(NamedTuple):
    """E episodes of two states or more end to end, N states in all."""

    lengths: np.ndarray  # (E,) int64, states per episode
    actions: np.ndarray  # (N, A) float32; that of each last state is zero and leads nowhere
    positions: np.ndarray  # (N, 2) float32 in the file's unit, (N, 0) where none is named
    shape: tuple[int, int, int]  # (C, Hpx, Wpx) of a frame
    pieces: Pieces  # all frames in order, (n, C, Hpx, Wpx) uint8 each


class _Found(NamedTuple):
    """The same before it is checked, with the file's own axes."""

    lengths: np.ndarray
    actions: np.ndarray
    columns: dict[str, Callable[[], np.ndarray]]
    shape: tuple[int, ...]  # of all frames
    kind: np.dtype
    pieces: Pieces


def is_recording(source: str) -> bool:
    """Whether `read` knows a `data.source`; an npz with locations is PLDM's own."""
    if source.startswith(MINARI) or source.lower().endswith(H5):
        return True
    if not source.endswith(".npz") or not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        names = archive.namelist()
    return "observations.npy" in names and "locations.npy" not in names


def read(source: str, position: str = "") -> Recording:
    """The recording in a file (.h5, .hdf5, .npz) or of "minari:ID"; FileError says what is wrong.

    `position` names x and y in a column: "proprio:0,1", "0,1" of `state`, or its name alone for
    the first two.
    """
    form = _minari if source.startswith(MINARI) else _npz
    form = _h5 if source.lower().endswith(H5) else form
    with files.told(source, "a whole recording"):
        found = form(source)
        positions = _positions(source, position, found)
    lengths, shape = np.asarray(found.lengths, np.int64), tuple(found.shape)
    total, actions = int(lengths.sum()), found.actions
    actions = actions[:, None] if actions.ndim == 1 else actions
    last = len(shape) == 4 and shape[3] in _CHANNELS
    if not len(lengths) or lengths.min() < 2:
        raise FileError(f"{source}: an episode needs two states or more")
    if actions.dtype.kind != "f" or actions.ndim != 2:
        raise FileError(f"{source}: actions must be (N, A) real numbers, got {_told(actions)}")
    if not total == len(actions) == shape[0]:
        said = f"{total} states in episodes, {len(actions)} actions, {shape[0]} frames"
        raise FileError(f"{source}: frames do not match: {said}")
    if found.kind != np.uint8 or not (last or (len(shape) == 4 and shape[1] in _CHANNELS)):
        wanted = "(N, H, W, C) uint8 with 1 to 16 channels"
        raise FileError(f"{source}: frames must be {wanted}, got {shape} {found.kind}")
    actions = actions.astype(np.float32)
    actions[lengths.cumsum() - 1] = 0
    for name, rows in (("action", actions), ("position", positions)):
        if not (finite := np.isfinite(rows).all(1)).all():
            rule = "; only the last one of an episode may be NaN" if name == "action" else ""
            raise FileError(f"{source}: the {name} of row {finite.argmin()} is not finite{rule}")

    def pieces() -> Iterator[np.ndarray]:
        with files.told(source, "a whole recording"):
            for piece in found.pieces():
                yield np.moveaxis(piece, -1, 1) if last else piece

    frame = (shape[3], *shape[1:3]) if last else shape[1:]
    return Recording(lengths, actions, positions, frame, pieces)


def _positions(source: str, position: str, found: _Found) -> np.ndarray:
    if not position:
        return np.zeros((len(found.actions), 0), np.float32)
    match = _POSITION.fullmatch(position.replace(" ", ""))
    if not match:
        wanted = "two components, like state:0,1 or 0,1 or state"
        raise FileError(f"data.position must name {wanted}; got {position!r}")
    name, picked = match["name"] or STATE, [int(match["x"] or 0), int(match["y"] or 1)]
    if name not in found.columns:
        known = ", ".join(sorted(found.columns)) or "none"
        raise FileError(f"{source} has no column {name!r} for data.position; it has: {known}")
    values, count = np.asarray(found.columns[name]()), len(found.actions)
    fits = values.ndim == 2 and values.dtype.kind in "fiu" and len(values) == count
    if not fits or max(picked) >= values.shape[1]:
        wanted = f"({count}, {max(picked) + 1} or more) numbers"
        raise FileError(f"{source}: {name} must be {wanted}, got {_told(values)}")
    return values[:, picked].astype(np.float32)


def _told(values: np.ndarray) -> str:
    return f"{values.shape} {values.dtype}"


def _starts(shape: tuple[int, ...]) -> range:
    """First frames of the pieces."""
    return range(0, shape[0], max(1, _PIECE // max(1, int(np.prod(shape[1:])))))


def _h5(path: str) -> _Found:
    h5py = files.extra("h5py")
    with contextlib.suppress(ImportError):  # more compressions, where somebody has installed it
        importlib.import_module("hdf5plugin")
    with open(path, "rb"):
        if not h5py.is_hdf5(path):
            raise FileError(f"{path} is no HDF5 file")

    def rows(name: str, part: slice = slice(None)) -> np.ndarray:
        with h5py.File(path) as file:
            return file[name][part]

    with h5py.File(path) as file:
        shapes = {name: getattr(one, "shape", ()) for name, one in file.items()}
        for name in ("pixels", "action", "ep_len", "ep_offset"):
            if name not in shapes:
                raise FileError(f"{path} lacks the column {name!r}; it has: {', '.join(shapes)}")
        kind = file["pixels"].dtype
    lengths, shape = rows("ep_len").astype(np.int64), shapes.pop("pixels")
    if not np.array_equal(rows("ep_offset"), lengths.cumsum() - lengths):
        raise FileError(f"{path}: episodes must follow one another, ep_offset says otherwise")
    usual = (name for name, one in shapes.items() if one[:1] == shape[:1])
    columns = {name: lambda name=name: rows(name) for name in usual}
    starts = _starts(shape)

    def pieces() -> Iterator[np.ndarray]:
        return (rows("pixels", slice(start, start + starts.step)) for start in starts)

    return _Found(lengths, rows("action"), columns, shape, kind, pieces)


def write_h5(path: str | Path, data: Trajectories) -> Path:
    """Write trajectories as stable-worldmodel HDF5: `read` finds in it what went in.

    States go to the column `state`, last actions are NaN. FileError where `path` exists.
    """
    h5py, path = files.extra("h5py"), Path(path)
    if path.exists():
        raise FileError(f"{path} exists: name another file")
    actions = data.actions.numpy().astype(np.float32)
    actions[data.lengths.cumsum(0).numpy() - 1] = np.nan
    columns = {"action": actions, "ep_len": data.lengths.numpy(), "ep_offset": data.starts.numpy()}
    if data.positions.shape[1]:
        columns[STATE] = data.positions.numpy()
    channels, *sides = data.frame_shape
    shape = (len(actions), *sides, channels)
    form = {"chunks": (min(len(actions), 8), *shape[1:]), "compression": "gzip"}
    starts = _starts(shape)
    with files.replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, values in columns.items():
            file[name] = values
        pixels = file.create_dataset("pixels", shape, np.uint8, compression_opts=1, **form)
        for start in starts:
            part = slice(start, min(start + starts.step, len(actions)))
            frames = data.frames(torch.arange(part.start, part.stop))
            pixels[part] = frames.movedim(1, -1).cpu().numpy()
    return path


def _npz(path: str) -> _Found:
    @contextlib.contextmanager
    def opened() -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
        """(stream at the first frame, shape, dtype): it may be compressed, and is not kept."""
        form = np.lib.format
        header = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
        with zipfile.ZipFile(path) as archive, archive.open("observations.npy") as stream:
            shape, fortran, kind = header[form.read_magic(stream)](stream)
            if fortran or kind.hasobject:
                raise FileError(f"{path}: observations must be numbers in C order, got {kind}")
            yield stream, shape, kind

    with opened() as (_, shape, kind), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()} - {"observations"}
    found = files.load_npz(path, ("actions", "terminals"))
    ends = np.flatnonzero(found["terminals"])
    if not len(ends) or ends[-1] != len(found["terminals"]) - 1:
        raise FileError(f"{path}: terminals must end the last episode in the last row")

    def pieces() -> Iterator[np.ndarray]:
        starts = _starts(shape)
        with opened() as (stream, _, _):
            for start in starts:
                part = (min(starts.step, shape[0] - start), *shape[1:])
                yield np.frombuffer(stream.read(int(np.prod(part))), np.uint8).reshape(part)

    columns = {name: lambda name=name: files.load_npz(path, (name,))[name] for name in names}
    return _Found(np.diff(ends, prepend=-1), found["actions"], columns, shape, kind, pieces)


def _minari(source: str) -> _Found:
    data = files.extra("minari").load_dataset(source.removeprefix(MINARI))

    def episodes() -> Iterator[tuple[Any, dict[str, np.ndarray], str]]:
        """(episode, its observations by name, which of them are the frames)."""
        for one in data.iterate_episodes():
            seen = one.observations
            seen = seen if isinstance(seen, dict) else {"observations": seen}
            yield one, seen, max(seen, key=lambda name: np.ndim(seen[name]))

    actions, columns, shapes, lengths = [], {}, set(), []
    for one, seen, frames in episodes():
        steps, taken = len(seen[frames]), np.asarray(one.actions)
        if len(taken) != steps - 1:
            wanted = f"{steps} observations need {steps - 1} actions"
            raise FileError(f"{source}: {wanted}, got {len(taken)} in episode {one.id}")
        actions.append(np.concatenate([taken, np.zeros_like(taken[:1])]))
        lengths.append(steps)
        shapes.add((seen[frames].shape[1:], seen[frames].dtype))
        for name in {*seen} - {frames}:
            columns.setdefault(name, []).append(seen[name])
    if len(shapes) != 1:
        raise FileError(f"{source}: frames of all episodes must be alike, got {len(shapes)} shapes")
    ((shape, kind),) = shapes
    joined = {name: lambda parts=parts: np.concatenate(parts) for name, parts in columns.items()}
    rest = joined, (sum(lengths), *shape), kind
    pictures = lambda: (seen[frames] for _, seen, frames in episodes())  # noqa: E731
    return _Found(np.array(lengths), np.concatenate(actions), *rest, pictures)
