"""Published trajectories (PLDM, arXiv 2502.14819): download, checks, loader of their format."""

import os
import tarfile
from pathlib import Path

import numpy as np
import torch

from hjepa_lib import files
from hjepa_lib.config import ConfigError, DataConfig, names_world
from hjepa_lib.data import readers
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Record, Trajectories
from hjepa_lib.worlds.base import find_world, try_out
from hjepa_lib.worlds.layout import FIXED, SIZE

FILE_ID = "1NwR-ui-akIgR2xcoJHYiHjOk9U5bYCa0"  # at Google Drive, about 535 MB
ARCHIVE = "wall_data.tar.gz"
_WHOLE = "a whole tar archive"
MEMBERS = {
    "good": "good_quality_data_no_images.npz",
    "short17": "len_17_no_images.npz",
    "short33": "len_33_no_images.npz",
    "short65": "len_65_no_images.npz",
}
"""Recipe -> file in the archive; the other recipes were not released under known names."""
CONNECT_SECONDS, READ_SECONDS, RETRIES = 10, 60, 3


class NoNetwork(files.FileError):
    """The server cannot be reached."""


def fetch(path: Path) -> None:
    """The archive to `path`, going on where a cut download ended; else FileError."""
    import gdown  # slow to import and needed by this one function only
    import requests

    try:
        gdown.download(
            id=FILE_ID, output=str(path), use_cookies=False, resume=True, retries=RETRIES,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
        )  # fmt: skip
    except (OSError, ValueError, gdown.DownloadError) as error:
        away = isinstance(error, (requests.ConnectionError, requests.Timeout))
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = NoNetwork if away else files.FileError
        raise kind(f"download of {path.name} failed: {reason}") from error


def download() -> Path:
    """The archive in the cache, downloaded unless it is there; `FileError` when it is not whole.

    No checksum is published: its own is recorded as `<name>.sha256.json` and verified from then on.
    """
    path = files.cache() / ARCHIVE
    part = path.with_name(f"{ARCHIVE}.part")
    with files.exclusive(path):  # of two runs one downloads
        if path.exists():
            _verify(path)
            return path
        fetch(part)
        try:
            _verify(part)
        except files.FileError:
            part.unlink(missing_ok=True)
            raise
        os.replace(part, path)
    return path


def _verify(path: Path) -> None:
    """FileError for other content than recorded, or what cannot be read to its end."""
    record, found = path.with_name(f"{ARCHIVE}.sha256.json"), files.sha256(path)
    if record.exists():
        if files.read_json(record).get("sha256") != found:
            raise files.FileError(f"{path.name} does not match the SHA-256 recorded in {record}")
        return
    with files.told(path, _WHOLE), tarfile.open(path) as archive:
        for item in archive:
            stream = archive.extractfile(item)
            while stream is not None and stream.read(1 << 20):
                pass
    files.write_json(record, {"file_id": FILE_ID, "bytes": path.stat().st_size, "sha256": found})


def extract(path: Path, member: str) -> Path:
    """The file called `member`, in any folder of the archive, beside it; or `FileError`."""
    target = path.with_name(member)
    if target.exists():
        return target
    with files.told(path, _WHOLE), tarfile.open(path) as archive:
        for item in archive:
            if item.isfile() and Path(item.name).name == member:
                return files.write_atomic(target, archive.extractfile(item).read())
    raise files.FileError(f"{path} holds no file called {member}")


def load_npz_trajectories(path: str | Path) -> Trajectories:
    """Of an .npz with actions (N, 2), locations (N, 2) and terminals (N,); else `FileError`.

    Where a last action led was not stored: L rows are L - 1 transitions.
    """
    arrays = files.load_npz(path, ("actions", "locations", "terminals"))
    terminals = arrays.pop("terminals")
    for name, values in arrays.items():
        if values.shape != (*terminals.shape, 2) or values.ndim != 2 or not values.size:
            shapes = f"{values.shape} for terminals {terminals.shape}"
            raise files.FileError(f"{path}: {name} must be (N, 2), got {shapes}")
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise files.FileError(f"{path}: {name} must be finite numbers")
    locations = arrays["locations"]
    if locations.min() < 0 or locations.max() > SIZE - 1:
        raise files.FileError(f"{path}: locations must lie in [0, {SIZE - 1}] px")
    ends = np.nonzero(terminals)[0]
    lengths = np.unique(np.diff(ends, prepend=-1))
    if len(lengths) != 1 or lengths[0] < 2 or ends[-1] != len(terminals) - 1:
        raise files.FileError(
            f"{path}: terminals must end trajectories of one length of 2 rows or more, the last "
            f"one in the last row; found lengths {lengths.tolist()[:3]}"
        )
    positions, actions = (
        torch.from_numpy(arrays[name].astype(np.float32)) for name in ("locations", "actions")
    )
    actions[ends] = 0
    meta = {"source": str(path), "recipe": "published", "dynamics": "blocked", "noise_px": 0.0}
    meta |= {"layouts": "fixed", "sha256": files.sha256(path)}
    layout = torch.tensor([FIXED], dtype=torch.int16).repeat(len(ends), 1)
    lengths = torch.full((len(ends),), int(lengths[0]))
    return Trajectories(positions, actions, lengths, layout, meta)


def acquire(config: DataConfig, seed: int, folder: Path = Path()) -> Trajectories:
    """The data set that `config` describes; a file with too few transitions is used whole.

    Frames of a recording go to `folder`. Without a network generated data stand in for published
    ones, which is printed and in meta["fallback"]; any other failure raises `FileError`.
    """
    try_out(config.played)
    names = ("recipe", "transitions", "layouts", "dynamics")
    made = {name: getattr(config, name) for name in names} | {"seed": seed}
    recorded = readers.is_recording(config.source)
    if not recorded and (config.position or config.world):
        raise ConfigError(f"data.position and data.world are of recordings, not {config.source}")
    if not recorded and (config.source == "generated" or names_world(config.source)):
        return generate(**made, source=config.source)
    if config.layouts != "fixed" or config.dynamics != "blocked":
        raise ConfigError("data of a file have data.layouts=fixed and data.dynamics=blocked only")
    if recorded:
        return _recorded(config, folder)
    path, meta = config.source, {}
    if path == "published":
        if config.recipe not in MEMBERS:
            known = ", ".join(MEMBERS)
            raise ConfigError(f"data.recipe={config.recipe} was not published; there are {known}")
        try:
            path = extract(download(), MEMBERS[config.recipe])
        except NoNetwork as error:
            data = generate(**made)
            data.meta["fallback"] = f"published data unavailable, generated instead: {error}"
            print(data.meta["fallback"])
            return data
        meta = {"source": "published", "recipe": config.recipe}
    data = load_npz_trajectories(path).first(config.transitions)
    data.meta |= meta | {"transitions": data.transitions, "requested": config.transitions}
    return data


def _recorded(config: DataConfig, folder: Path) -> Trajectories:
    """A recording; positions are those of the world that plays on, where there is one.

    ConfigError when that world has other frames or actions.
    """
    found, world = readers.read(config.source, config.position), find_world(config.world)
    positions, actions = torch.from_numpy(found.positions), torch.from_numpy(found.actions)
    if world is not None:
        own, recorded = (*world.observed(), world.action_size), (*found.shape, actions.shape[1])
        if own != recorded or positions.shape[1] != 2:
            raise ConfigError(
                f"data.world={config.world} has (C, Hpx, Wpx, actions) {own}, the recording "
                f"{recorded}; data.position must name its x and y, it names {positions.shape[1]}"
            )
        positions = world.at_rest(positions)
    lengths = torch.from_numpy(found.lengths)
    layout = torch.zeros(len(lengths), 2, dtype=torch.int16)
    meta = {"source": config.source, "recipe": "recorded", "dynamics": "recorded"}
    meta |= {"world": config.world, "requested": config.transitions}
    data = Trajectories(positions, actions, lengths, layout, meta).first(config.transitions)
    shape = (len(data.positions), *found.shape)
    data.record = Record.write(folder / "frames.npy", found.pieces(), shape)
    data.meta["transitions"] = data.transitions
    return data
