"""Copy a run to Google Drive, or to any mounted folder: a Colab machine forgets its disk.

`find_drive` is called by the first library call of a notebook, so that a missing mount is reported
in the first second and not after the training; `copy_run` at the notebook's end.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from pathlib import Path

from hjepa_lib.config import ConfigError
from hjepa_lib.files import FileError, read_json
from hjepa_lib.runs.run import Run, RunError

COLAB_MOUNT = "/content/drive"
FOLDER = "hjepa"
"""Runs are copied to `<drive>/hjepa/<run>/`."""
_PASSING = (".tmp", ".running.ipynb")  # files at work


def find_drive(wanted: bool) -> Path | None:
    """The mounted Drive, or None unless `wanted`; ConfigError when it is not there.

    It is the folder HJEPA_DRIVE, else Colab's `MyDrive`, which is mounted now if need be (Colab
    asks for permission).
    """
    if not isinstance(wanted, bool):
        raise ConfigError(f"drive must be True or False, got {wanted!r}")
    if not wanted:
        return None
    root = Path(os.environ.get("HJEPA_DRIVE") or f"{COLAB_MOUNT}/MyDrive")
    if not root.is_dir() and "google.colab" in sys.modules:
        with contextlib.suppress(Exception):  # refused or cancelled: reported below
            importlib.import_module("google.colab.drive").mount(COLAB_MOUNT)
    if not root.is_dir():
        raise ConfigError(
            f"drive=True needs a mounted Drive, and {root} does not exist; "
            "mount it, or name another folder in HJEPA_DRIVE"
        )
    return root


def copy_run(run: Run, drive: Path) -> Path:
    """Copy the run folder to `<drive>/hjepa/<run>/`, the manifest last; returns that folder.

    Files that are there already are skipped, and nothing is deleted. RunError when another run of
    the same name is there, FileError when a file cannot be written.
    """
    run.reload()
    target = drive / FOLDER / run.name
    marker = target / "manifest.json"
    if marker.is_file() and read_json(marker).get("created") != run.manifest.get("created"):
        raise RunError(f"{target} holds another run of that name, which is left as it is")
    files = [path for path in sorted(run.path.rglob("*")) if path.is_file()]
    files = [path for path in files if not path.name.endswith(_PASSING)]
    files.sort(key=lambda path: path == run.path / "manifest.json")  # stable: the manifest is last
    for path in files:
        _copy(path, target / path.relative_to(run.path))
    return target


def _copy(source: Path, target: Path) -> None:
    try:
        if target.is_file():
            old, new = target.stat(), source.stat()
            if old.st_size == new.st_size and old.st_mtime >= new.st_mtime:
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(target.name + ".tmp")
        shutil.copyfile(source, building)
        os.replace(building, target)
    except OSError as error:
        raise FileError(f"cannot copy to {target}: {error.strerror or error}") from error
