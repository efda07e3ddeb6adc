"""Files that are either whole or absent: atomic writes, checked reads, SHA-256.

Every write goes to a temporary name in the target's own folder, is flushed to the disk and then
renamed, so an interrupted or failing write (full disk, kill) never leaves a half-written file
under the final name. Reads refuse pickled content. Every failure is one sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock


class WorkbookError(ValueError):
    """Base of every sentence meant for users; any other error is a fault and keeps its trace."""


class FileError(WorkbookError):
    """A file cannot be written, or is missing, truncated or not of the expected format."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write `data` (text is UTF-8) to `path`, creating parent folders; raises `FileError`."""
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C must not leave the temporary file behind either
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FileError(f"cannot write {path}: {error.strerror or error}") from error
        raise
    return path


@contextlib.contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the lock beside `path` while at work; waits for whoever holds it.

    The system drops the lock with the process, so a killed one never blocks the next. FileError
    where the file system knows no locks.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), poll_interval=0.1)
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        raise FileError(
            f"{path.parent} is on a file system without locks ({error}); "
            "set HJEPA_OUTPUTS to a local folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: str | Path, obj: Any) -> Path:
    """Write `obj` as indented JSON; NaN and infinities become null (JSON has neither)."""
    return write_atomic(path, json.dumps(plain(obj), indent=2, allow_nan=False) + "\n")


def plain(obj: Any) -> Any:
    """`obj` as JSON knows it: NumPy and torch values, tuples and paths turned, NaN null."""
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
    """The content of a JSON file; raises `FileError` when it is missing or damaged."""
    try:
        return json.loads(read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not valid JSON (truncated?): {error}") from error


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; raises `FileError` when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def save_npy(path: str | Path, array: np.ndarray) -> Path:
    """Write one array as .npy, atomically; such a file can be memory-mapped."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return write_atomic(path, buffer.getvalue())


@contextlib.contextmanager
def _whole(path: str | Path, kind: str) -> Iterator[None]:
    """FileError for a file that is missing, damaged or not of this kind."""
    if not Path(path).is_file():
        raise FileError(f"cannot read {path}: no such file")
    try:
        yield
    except FileError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is not a whole {kind} file: {error}") from error


def load_npy(path: str | Path) -> np.ndarray:
    """One .npy array, memory-mapped copy-on-write; raises `FileError`."""
    with _whole(path, ".npy"):
        return np.load(path, mmap_mode="c", allow_pickle=False)


def save_npz(path: str | Path, **arrays: np.ndarray) -> Path:
    """Write named arrays as one uncompressed .npz, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(array) for name, array in arrays.items()})
    return write_atomic(path, buffer.getvalue())


def load_npz(path: str | Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays `names` (default all) of an .npz file, in memory; the others are not read.

    Pickles are refused. Raises `FileError` for a missing or damaged file or a missing name.
    """
    with _whole(path, ".npz"):
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise FileError(f"{path} is not an .npz archive")
        with archive:
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


def sha256(source: str | Path | bytes) -> str:
    """Hexadecimal SHA-256 of bytes, or of a file's content; raises `FileError`."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with open(source, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror or error}") from error
