"""First cell of every notebook; standard library only: it runs before anything is installed."""

import importlib
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DRIVE = Path("/content/drive/MyDrive")
EXTRAS = {"06": "widgets", "10": "rl", "11": "rl", "12": "rl", "13": "rl", "15": "rl", "16": "h5"}


def set_up(notebook: str) -> None:
    """Install the library and the chapter's extras where this is Colab; print what was found.

    A mounted Google Drive becomes the outputs root, so that runs outlive the session and resume.
    """
    root, extra = Path(__file__).resolve().parents[2], EXTRAS.get(notebook[:2], "")
    if "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ:
        if extra or not _version():
            keep = root / ".keep.txt"  # so pip stops rather than replace what Colab brings
            kept = ("torch", "numpy", "matplotlib")
            keep.write_text("".join(f"{name}=={version(name)}\n" for name in kept))
            target = f"{root}[{extra}]" if extra else str(root)
            command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(keep), "-e", target]
            subprocess.run(command, check=True)
            importlib.invalidate_caches()
        if DRIVE.is_dir():
            os.environ.setdefault("HJEPA_OUTPUTS", f"file://{DRIVE}/hjepa")
    print(f"hjepa-lib {_version() or '(not installed)'} in {root}, torch {version('torch')}")
    print(f"runs go to {os.environ.get('HJEPA_OUTPUTS') or root / 'outputs'}")


def _version() -> str:
    try:
        return version("hjepa-lib")
    except PackageNotFoundError:
        return ""
