"""Where runs live and how they are called."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import Any

from hjepa_lib.config import Config
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import remote

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*(/[A-Za-z0-9][A-Za-z0-9._=+-]*)?")
_RESERVED = ("latest", "gallery", "pretrained")


class RunError(WorkbookError):
    """A run folder is missing, exists already, or does not fit what was asked for."""


def repository() -> Path:
    """The folder with `notebooks/` and `outputs/`; the working directory if installed alone."""
    parent = Path(__file__).resolve().parents[2]
    return parent if (parent / "notebooks").is_dir() else Path.cwd()


def outputs_root() -> Path:
    """Where all runs live: the environment variable HJEPA_OUTPUTS, else `outputs/`.

    For a URL such as s3://bucket/prefix it is the local folder that remote.py keeps in step.
    """
    place = os.environ.get("HJEPA_OUTPUTS") or str(repository() / "outputs")
    if remote.is_remote(place):
        return remote.local_root(place)
    return Path(place).expanduser().resolve()


def pretrained_folder() -> Path:
    """The committed small run: in the outputs root, else in the repository's own `outputs/`."""
    local = outputs_root() / "pretrained"
    return local if (local / "manifest.json").exists() else repository() / "outputs" / "pretrained"


def new_name(config: Config) -> str:
    """ "laptop-s0-20261105-142233": sortable by time within a profile."""
    return f"{config.profile}-s{config.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def tracked_name(prefix: str, manifest: dict[str, Any]) -> str:
    """What a tracker calls a run: its own name, or "<prefix>-YYYYMMDD-HHMMSS" from its start."""
    if not prefix:
        return manifest["name"]
    return f"{prefix}-{datetime.datetime.fromisoformat(manifest['created']):%Y%m%d-%H%M%S}"


def list_runs(root: Path | None = None) -> list[str]:
    """Names of all runs below the outputs root, cells as "experiment/cell", oldest first."""
    root = root or outputs_root()
    found = [*root.glob("*/manifest.json"), *root.glob("*/*/manifest.json")]
    names = [
        path.parent.relative_to(root).as_posix() for path in sorted(found, key=os.path.getmtime)
    ]
    return [name for name in names if _NAME.fullmatch(name) and name.split("/")[0] not in _RESERVED]


def checked(name: str) -> str:
    """`name`; RunError unless a run may be called so."""
    if not _NAME.fullmatch(name) or name.split("/")[0] in _RESERVED:
        raise RunError(
            f"{name!r} is no run name: use letters, digits and . _ = + - (at most one slash), "
            f"and none of {', '.join(_RESERVED)}"
        )
    return name
