"""Files that are either whole or absent: atomic writes, checked reads, SHA-256.

Every failure is one sentence; nothing pickled is read.
"""

import contextlib
import hashlib
import importlib
import io
import json
import math
import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock


class WorkbookError(ValueError):
    """Base of every sentence meant for users; any other error is a fault and keeps its trace."""


class FileError(WorkbookError):
    """A file cannot be written, or is missing, truncated or not of the expected format."""


def one_of(what: str, given: object, known: Collection[str]) -> None:
    """WorkbookError unless what was `given` is known."""
    if given not in known:
        raise WorkbookError(f"{what} must be one of {', '.join(known)}; got {given!r}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def told(path: str | Path, kind: str = "", doing: str = "read") -> Iterator[None]:
    """What goes wrong with `path` inside becomes a FileError; content, where it has a `kind`."""
    try:
        yield
    except WorkbookError:
        raise
    except OSError as error:
        raise FileError(f"cannot {doing} {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged or foreign file makes its reader raise
        if not kind:
            raise
        raise FileError(f"{path} is not {kind}: {first_line(error)}") from error


_EXTRAS = {"h5py": "h5", "ogbench": "worlds", "distributed": "cluster", "papermill": "lab",
           "stable_baselines3": "rl"}  # fmt: skip


def extra(module: str) -> Any:
    """An optional package; FileError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = _EXTRAS.get(module, module)
        raise FileError(f"{module} is not installed: pip install -e '.[{name}]'") from error


def cache() -> Path:
    """Where downloads and copies of remote runs are kept: HJEPA_CACHE, or hjepa in ~/.cache."""
    place = os.environ.get("HJEPA_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(place or Path(home, "hjepa")).expanduser()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, creating parent folders; what is written there takes its
    place in the end: a full disk, a kill or Ctrl-C leaves the old file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with told(path, doing="write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write `data` (text is UTF-8) to `path` as in `replacing`, flushed to the disk."""
    path = Path(path)
    with replacing(path) as temporary, open(temporary, "xb") as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
        stream.flush()
        os.fsync(stream.fileno())
    return path


@contextlib.contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the lock beside `path`, waiting for whoever holds it; it ends with its process.

    FileError where that cannot be, as on a file system without locks.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock"), poll_interval=0.1).acquire()
    except (NotImplementedError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"cannot lock {path}: {reason}; if locks are unknown there, set HJEPA_OUTPUTS to a "
            "local folder"
        ) from error
    with held:
        yield


def write_json(path: str | Path, obj: Any) -> Path:
    """Write `plain(obj)` as indented JSON."""
    return write_atomic(path, json.dumps(plain(obj), indent=2, allow_nan=False) + "\n")


def plain(obj: Any) -> Any:
    """`obj` as JSON knows it: NumPy and torch values, tuples and paths turned, NaN, inf null."""
    if isinstance(obj, dict):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if hasattr(obj, "tolist"):
        return plain(obj.tolist())
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    return str(obj) if isinstance(obj, Path) else obj


def read_json(path: str | Path) -> Any:
    """The content of a JSON file."""
    with told(path, "valid JSON (truncated?)"):
        return json.loads(Path(path).read_bytes())


def read_bytes(path: str | Path) -> bytes:
    """The content of a file."""
    with told(path):
        return Path(path).read_bytes()


def save_npy(path: str | Path, array: np.ndarray) -> Path:
    """Write one array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return write_atomic(path, buffer.getvalue())


def load_npy(path: str | Path) -> np.ndarray:
    """One .npy array, memory-mapped copy-on-write."""
    with told(path, "a whole .npy file"):
        return np.lib.format.open_memmap(path, mode="c")


def save_npz(path: str | Path, **arrays: np.ndarray) -> Path:
    """Write named arrays as one uncompressed .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(array) for name, array in arrays.items()})
    return write_atomic(path, buffer.getvalue())


def load_npz(path: str | Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays `names` (default all) of an .npz file, in memory; the others are not read."""
    with told(path, "a whole .npz file"), np.lib.npyio.NpzFile(path) as archive:
        for name in names or ():
            if name not in archive.files:
                raise FileError(f"{path} has no array {name!r}")
        return {name: archive[name] for name in names or archive.files}


def inside(folder: Path, name: str) -> Path:
    """`folder / name`; FileError unless that stays in the folder: a manifest is foreign data."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise FileError(f"{name!r} is no file below {folder}")
    return folder / pure


def json_sha256(obj: Any) -> str:
    """Hexadecimal SHA-256 of an object's JSON, its keys sorted."""
    return sha256(json.dumps(obj, sort_keys=True).encode())


def sha256(source: str | Path | bytes) -> str:
    """Hexadecimal SHA-256 of bytes, or of a file's content."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with told(source), open(source, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
