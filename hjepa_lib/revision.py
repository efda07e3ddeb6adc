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
    root = root or Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            commit = _git(root, "rev-parse", "HEAD")
            # The gallery is written by the very study that asks: it changes no result.
            changed = _git(root, "status", "--porcelain", "--", ".", ":!outputs/gallery")
            return commit + ("-dirty" if changed else "")
    with contextlib.suppress(OSError):
        if text := (root / "VERSION").read_text().strip():
            return text
    return _installed_commit() or "unknown"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _installed_commit() -> str:
    """What pip wrote down when it installed from a repository (PEP 610), else ""."""
    with contextlib.suppress(metadata.PackageNotFoundError, ValueError, AttributeError):
        text = metadata.distribution("hjepa-lib").read_text("direct_url.json") or "{}"
        return json.loads(text).get("vcs_info", {}).get("commit_id", "")
    return ""
