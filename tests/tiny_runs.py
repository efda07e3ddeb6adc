"""What a run is made of: notebooks, and results as its summary has them (not a test module)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.readme import NUMBERS
from hjepa_lib.runs.report import REQUIRED

PARAMETERS = 'profile: str = "laptop"\nrun: str = ""\nseed: int = 0\noverrides: str = ""'


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
