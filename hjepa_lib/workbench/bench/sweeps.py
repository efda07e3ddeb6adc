"""A sweep of smoke cells on one local worker and on two: the same cells, fresh each time."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import yaml

from hjepa_lib.workbench import sweep
from hjepa_lib.workbench.timing import BenchError


def sweep_times(cells: int = 8, jobs: tuple[int, ...] = (1, 2)) -> dict[str, float]:
    """Seconds by number of workers, and the ratio of the first to the last; prints as it goes."""
    seconds = {}
    before = os.environ.get("HJEPA_OUTPUTS")
    for count in jobs:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HJEPA_OUTPUTS"] = folder
            try:
                seconds[f"{count} workers"] = _time(Path(folder), cells, count)
            finally:
                os.environ.pop("HJEPA_OUTPUTS")
                if before is not None:
                    os.environ["HJEPA_OUTPUTS"] = before
        spent = seconds[f"{count} workers"]
        print(f"sweep of {cells} smoke cells, {count} at a time: {spent:.0f} s")
    times = list(seconds.values())
    print(f"ratio: {times[0] / times[-1]:.2f}x")
    return seconds | {"ratio": times[0] / times[-1]}


def _time(folder: Path, cells: int, jobs: int) -> float:
    grid = {"base": {"profile": "smoke"}, "seeds": list(range(cells)), "notebooks": "01-05"}
    (folder / "bench.yaml").write_text(yaml.safe_dump(grid))
    study = sweep.read_study(folder / "bench.yaml")
    start = time.perf_counter()
    _, outcomes = sweep.run_study(study, jobs=jobs, say=_quiet)
    seconds = time.perf_counter() - start
    for outcome in outcomes:
        if outcome.error:
            raise BenchError(f"{outcome.name} failed: {outcome.error}")
    return seconds


def _quiet(*_: object, **__: object) -> None:
    """A `print` that says nothing."""
