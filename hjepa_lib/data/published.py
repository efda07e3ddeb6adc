"""Published trajectories (PLDM, arXiv 2502.14819): download, checks, loader of their format.

The archive holds .npz files without images: flat actions (N, 2), locations (N, 2), terminals (N,).
No checksum is published: the SHA-256 is recorded once the whole archive could be read. Only without
a network generated data of the same recipe stand in, which is printed and stands in every row.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hjepa_lib import files
from hjepa_lib.config import ConfigError, DataConfig
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.layout import FIXED, SIZE

FILE_ID = "1NwR-ui-akIgR2xcoJHYiHjOk9U5bYCa0"
"""Google Drive id of the archive (about 535 MB)."""
ARCHIVE = "wall_data.tar.gz"
MEMBERS = {
    "good": "good_quality_data_no_images.npz",
    "short17": "len_17_no_images.npz",
    "short33": "len_33_no_images.npz",
    "short65": "len_65_no_images.npz",
}
"""Recipe -> file in the archive; the other recipes were not released under known names."""
CONNECT_SECONDS, READ_SECONDS, RETRIES = 10, 60, 3

Fetch = Callable[[str, Path], None]
"""Writes the file with a Google Drive id to a path, or raises `FileError`."""


class NoNetwork(files.FileError):
    """The server cannot be reached."""


def cache() -> Path:
    """Where downloads are kept for all runs: HJEPA_CACHE, or .cache/hjepa in the home folder."""
    return Path(os.environ.get("HJEPA_CACHE") or Path.home() / ".cache" / "hjepa")


def fetch_from_drive(file_id: str, path: Path) -> None:
    """Download with a progress bar, going on where a cut one ended; FileError with the reason."""
    import gdown  # slow to import and needed by this one function only
    import requests
    from tqdm import tqdm

    try:
        with tqdm(unit="B", unit_scale=True, desc=path.name) as bar:

            def progress(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(done - bar.n)

            gdown.download(
                id=file_id,
                output=str(path),
                quiet=True,
                use_cookies=False,
                progress=progress,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                resume=True,
                retries=RETRIES,
            )
    except (OSError, ValueError, gdown.DownloadError) as error:
        away = isinstance(error, (requests.ConnectionError, requests.Timeout))
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise (NoNetwork if away else files.FileError)(
            f"download of {path.name} failed: {reason}"
        ) from error


def download(file_id: str, path: str | Path, fetch: Fetch = fetch_from_drive) -> Path:
    """`path`, downloaded unless it is there; its SHA-256 is recorded first and verified later.

    The record lies beside the file as `<name>.sha256.json`; an unfinished download stays as
    `<name>.part`, and the next one goes on with it. Raises `FileError`.
    """
    path = Path(path)
    record = path.with_name(path.name + ".sha256.json")
    with files.exclusive(path):  # of two runs one downloads
        if not path.exists():
            part = path.with_name(path.name + ".part")
            fetch(file_id, part)
            try:
                _read_whole(part)
                _verify(part, record, file_id)
            except files.FileError:
                part.unlink(missing_ok=True)
                raise
            os.replace(part, path)
        elif not record.exists():
            _read_whole(path)
        _verify(path, record, file_id)
    return path


def _read_whole(path: Path) -> None:
    """FileError unless the archive can be read to its very end."""
    try:
        with tarfile.open(path) as tar:
            for item in tar:
                stream = tar.extractfile(item)
                while stream is not None and stream.read(1 << 20):
                    pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise files.FileError(f"{path.name} is no whole tar archive: {error}") from error


def _verify(path: Path, record: Path, file_id: str) -> None:
    found = files.sha256(path)
    if not record.exists():
        content = {"file_id": file_id, "bytes": path.stat().st_size, "sha256": found}
        files.write_json(record, content)
    elif files.read_json(record).get("sha256") != found:
        raise files.FileError(f"{path.name} does not match the SHA-256 recorded in {record}")


def extract(archive: str | Path, member: str, folder: str | Path) -> Path:
    """The regular file called `member` (in any folder of the archive) as `folder`/`member`.

    Only this one is unpacked, through tarfile's `data` filter. Raises `FileError`.
    """
    target = Path(folder) / member
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tarfile.open(archive) as tar,
            tempfile.TemporaryDirectory(prefix=".extract-", dir=folder) as scratch,
        ):
            for item in tar:
                if item.isfile() and Path(item.name).name == member:
                    tar.extract(item, scratch, filter="data")
                    os.replace(Path(scratch) / item.name.lstrip("/"), target)
                    return target
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise files.FileError(f"cannot unpack {member} from {archive}: {error}") from error
    raise files.FileError(f"{archive} holds no file called {member}")


def load_npz_trajectories(path: str | Path) -> Trajectories:
    """Trajectories of an .npz in the published format; frames in it, if any, are not read.

    The last state of a trajectory was not stored, so each has L states and L - 1 transitions for L
    rows, and the last action is dropped. Raises `FileError` naming what is wrong.
    """
    arrays = files.load_npz(path, ("actions", "locations", "terminals"))
    terminals = arrays["terminals"]
    if terminals.ndim != 1 or len(terminals) == 0:
        raise files.FileError(f"{path}: terminals must be (N,), got {terminals.shape}")
    for name in ("actions", "locations"):
        if arrays[name].shape != (len(terminals), 2):
            raise files.FileError(
                f"{path}: {name} must be ({len(terminals)}, 2), got {arrays[name].shape}"
            )
        if arrays[name].dtype.kind not in "fiu":
            raise files.FileError(f"{path}: {name} must be numbers, got {arrays[name].dtype}")
        if not np.isfinite(arrays[name]).all():
            raise files.FileError(f"{path}: {name} has values that are not finite")
    locations = arrays["locations"]
    if locations.min() < 0 or locations.max() > SIZE - 1:
        raise files.FileError(f"{path}: locations must lie in [0, {SIZE - 1}] px")
    length = _common_length(path, terminals)
    count = len(terminals) // length
    actions = torch.from_numpy(arrays["actions"].astype(np.float32)).reshape(count, length, 2)
    actions[:, -1] = 0  # where it led was not stored
    meta = {"source": str(path), "recipe": "published", "dynamics": "blocked", "noise_px": 0.0}
    meta |= {"layouts": "fixed", "sha256": files.sha256(path)}
    return Trajectories(
        torch.from_numpy(locations.astype(np.float32)),
        actions.reshape(-1, 2),
        torch.full((count,), length),
        torch.tensor([FIXED], dtype=torch.int16).repeat(count, 1),
        meta,
    )


def _common_length(path: str | Path, terminals: np.ndarray) -> int:
    """The one number of rows per trajectory; the first trajectory begins at row 0."""
    ends = np.nonzero(terminals)[0]
    if len(ends) == 0 or ends[-1] != len(terminals) - 1:
        raise files.FileError(f"{path}: the last row of terminals does not end a trajectory")
    lengths = np.unique(np.diff(ends, prepend=-1))
    if len(lengths) > 1:
        raise files.FileError(
            f"{path}: trajectories must have equal lengths, found {lengths[0]} to {lengths[-1]}"
        )
    if lengths[0] < 2:
        raise files.FileError(f"{path}: trajectories need at least 2 rows, found 1")
    return int(lengths[0])


def truncate(trajectories: Trajectories, transitions: int) -> Trajectories:
    """The first `transitions` transitions: whole trajectories plus one truncated last one."""
    if transitions >= trajectories.transitions:
        return trajectories
    ends = (trajectories.lengths - 1).cumsum(0)
    whole = int(torch.searchsorted(ends, transitions, right=True))
    rest = transitions - (int(ends[whole - 1]) if whole else 0)
    lengths = trajectories.lengths[: whole + (rest > 0)].clone()
    if rest:
        lengths[-1] = rest + 1
    states = int(lengths.sum())
    actions = trajectories.actions[:states].clone()
    actions[-1] = 0
    layout = trajectories.layout[: len(lengths)]
    return Trajectories(
        trajectories.positions[:states], actions, lengths, layout, dict(trajectories.meta)
    )


def acquire(
    config: DataConfig, seed: int, folder: str | Path | None = None, fetch: Fetch = fetch_from_drive
) -> Trajectories:
    """The data set that `config` describes; the published archive is kept in `folder` (`cache`).

    A file with fewer transitions than asked for is used whole; `meta` says what was asked and got.
    Without a network generated data stand in for published ones, as meta["fallback"] says; any
    other failure raises `FileError`.
    """
    if config.source == "generated" or find_world(config.source) is not None:
        return _generated(config, seed, config.source)
    if config.layouts != "fixed" or config.dynamics != "blocked":
        raise ConfigError("published data have data.layouts=fixed and data.dynamics=blocked only")
    if config.source != "published":
        return _cut(load_npz_trajectories(config.source), config, {})
    if config.recipe not in MEMBERS:
        raise ConfigError(
            f"data.recipe={config.recipe} was not published; there are {', '.join(MEMBERS)}"
        )
    folder = cache() if folder is None else Path(folder)
    try:
        archive = download(FILE_ID, folder / ARCHIVE, fetch)
    except NoNetwork as error:
        data = _generated(config, seed)
        data.meta["fallback"] = f"published data unavailable, generated instead: {error}"
        print(data.meta["fallback"])
        return data
    data = load_npz_trajectories(extract(archive, MEMBERS[config.recipe], folder))
    return _cut(data, config, {"source": "published", "recipe": config.recipe})


def _generated(config: DataConfig, seed: int, source: str = "generated") -> Trajectories:
    return generate(
        config.recipe,
        config.transitions,
        config.layouts,
        seed,
        config.dynamics,
        config.good_fraction,
        config.exclude_wall,
        config.exclude_door,
        source=source,
    )


def _cut(data: Trajectories, config: DataConfig, meta: dict[str, Any]) -> Trajectories:
    data = truncate(data, config.transitions)
    data.meta |= meta | {"transitions": data.transitions, "requested": config.transitions}
    return data
