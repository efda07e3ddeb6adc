"""Which version of the code this is; standard library only, so that a bare Python can ask."""

from __future__ import annotations

import contextlib
import json
import subprocess
from importlib import metadata
from pathlib import Path


def revision(root: Path | None = None) -> str:
    """Git commit of the folder `root` ("-dirty" with local changes), or the next best thing.

    Without git that is the text of a VERSION file (written by colab_pack.sh), then the commit that
    pip installed from a URL, then "unknown".
    """
    root = root or Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            commit = _git(root, "rev-parse", "HEAD")
            return commit + ("-dirty" if _changed(root) else "")
    with contextlib.suppress(OSError):
        if text := (root / "VERSION").read_text().strip():
            return text
    return _installed_commit() or "unknown"


def _changed(root: Path) -> bool:
    """Whether a file differs from the commit.

    In a fresh clone git compares contents, and the filter that strips notebooks would start a
    Python for each of them: 20 seconds in all, every time. Committed notebooks are stripped, so
    they are compared as they are.
    """
    # The gallery is written by the very study that asks: it changes no result.
    status = ("status", "--porcelain", "--", ".", ":!outputs/gallery")
    return bool(_git(root, "-c", "filter.nbstripout.clean=cat", *status))


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def _installed_commit() -> str:
    """What pip wrote down when it installed from a repository (PEP 610), else ""."""
    with contextlib.suppress(metadata.PackageNotFoundError, ValueError, AttributeError):
        text = metadata.distribution("hjepa-lib").read_text("direct_url.json") or "{}"
        return json.loads(text).get("vcs_info", {}).get("commit_id", "")
    return ""
