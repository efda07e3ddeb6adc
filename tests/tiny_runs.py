"""What a run is made of: stages, notebooks, results as in its summary (not a test module)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.readme import NUMBERS
from hjepa_lib.runs.report import REQUIRED
from hjepa_lib.runs.run import Run

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
"""The environment of a git that knows nothing of a hook that may run the tests."""
PARAMETERS = 'profile: str = "laptop"\nrun: str = ""\nseed: int = 0\noverrides: str = ""'


def git(folder: Path, *command: str) -> str:
    """What git says in `folder`."""
    named = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *command]
    done = subprocess.run(named, cwd=folder, check=True, env=CLEAN, capture_output=True, text=True)
    return done.stdout.strip()


def fill(run: Run, stage: str, text: str = "x", **options: Any) -> None:
    """Make a stage of one file."""
    with run.stage(stage, **options) as folder:
        (folder / f"{stage}.txt").write_text(text)


def write(
    folder: Path,
    name: str,
    *sources: str,
    parameters: str = PARAMETERS,
    tags: Sequence[str] = ("parameters",),
) -> Path:
    """A notebook with a parameters cell and one cell per source."""
    head = nbformat.v4.new_code_cell(parameters)
    head.metadata.tags = list(tags)
    cells = [head, *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def result(
    method: str = "flat",
    cost: str = "distance",
    successes: int = 97,
    n: int = 100,
    **changes: Any,
) -> dict[str, Any]:
    """A valid entry of a summary."""
    entry: dict[str, Any] = dict.fromkeys([*REQUIRED, *NUMBERS], 0.5)
    entry |= {"method": method, "cost": cost, "protocol": "p1", "layouts": "fixed"}
    entry |= {"dynamics": "bounce", "budget": 1.0, "n": n, "successes": successes}
    entry |= {"success_rate": successes / n, "ci95": list(wilson(successes, n)), "split": "test"}
    entry |= {"planner": {"horizon": 8}, "data": {"recipe": "good"}, "weights": {}}
    return entry | changes


def floors() -> list[dict[str, Any]]:
    return [result("random", "none", 7), result("oracle", "none", 100)]
