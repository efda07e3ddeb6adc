"""Where runs live and how they are called."""

import datetime
import os
import re
from pathlib import Path

from hjepa_lib.config import Config
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import remote

_PART = r"[A-Za-z0-9][A-Za-z0-9._=+-]*"
_PRETRAINED = r"pretrained(?:-\w+)?"
_NAME = re.compile(rf"(?!(?:latest|gallery|{_PRETRAINED})(?:/|$)){_PART}(?:/{_PART})?")


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
    return remote.local_root(place) if "://" in place else Path(place).expanduser().resolve()


def pretrained_runs() -> dict[str, Path]:
    """The committed small runs by name: `pretrained`, and `pretrained-maze` of another world.

    Those in the outputs root, else those in the repository's own `outputs/`.
    """
    found = {"pretrained": repository() / "outputs" / "pretrained"}
    for root in (repository() / "outputs", outputs_root()):
        for path in sorted(root.glob("pretrained*/manifest.json")):
            found |= {path.parent.name: path.parent}
    return {name: path for name, path in found.items() if re.fullmatch(_PRETRAINED, name)}


def new_name(config: Config) -> str:
    """ "laptop-s0-20261105-142233": sortable by time within a profile."""
    return f"{config.profile}-s{config.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def list_runs(root: Path | None = None) -> list[str]:
    """Names of all runs below the outputs root, cells as "experiment/cell", oldest first."""
    root = root or outputs_root()
    found = [*root.glob("*/manifest.json"), *root.glob("*/*/manifest.json")]
    folders = [path.parent for path in sorted(found, key=os.path.getmtime)]
    return [*filter(_NAME.fullmatch, (path.relative_to(root).as_posix() for path in folders))]


def checked(name: str) -> str:
    """`name`; RunError unless a run may be called so."""
    if not _NAME.fullmatch(name):
        raise RunError(
            f"{name!r} is no run name: use letters, digits and . _ = + - (at most one slash), "
            "and none of latest, gallery, pretrained, pretrained-..."
        )
    return name
