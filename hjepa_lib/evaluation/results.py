"""Result files: one per case played, read back as one row each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import Outcome
from hjepa_lib.evaluation.metrics import Episodes, TrialMetrics, per_trial, summarise
from hjepa_lib.files import FileError, load_npz, save_npz
from hjepa_lib.worlds.trials import Trials

_OLD_KEY = ("method", "cost", "protocol", "layouts", "dynamics", "budget")


def to_episodes(outcome: Outcome, trials: Trials) -> Episodes:
    """The metrics' view of an outcome; the plan end comes from the longest planned level."""
    seen = outcome.diagnostics
    end = np.full((trials.count, 2), np.nan)
    reach = 0
    if "plan_xy" in seen:
        end, reach = seen["plan_xy"][:, 0, -1], seen["plan_xy"].shape[2]
    for level in ("macro", "macro3"):
        if f"{level}_xy" in seen:
            macro = seen[f"{level}_xy"]  # (B, R, H2, 2)
            end, reach = macro[:, 0, -1], macro.shape[2] * int(seen[f"{level}_stride"])
    return Episodes(
        outcome.positions,
        trials.goal.numpy(),
        trials.layout.wall_x.numpy(),
        trials.layout.door_y.numpy(),
        outcome.oracle,
        end,
        reach,
    )


def save_result(folder: Path, case: Case, outcome: Outcome, header: dict[str, Any]) -> Path:
    """Write one npz: what happened, per-trial metrics, planning diagnostics, and a JSON header."""
    episodes = to_episodes(outcome, case.tasks)
    columns = per_trial(episodes, case.protocol)._asdict()
    header = case.header | {"case": case.digest, "plan_reach": episodes.plan_reach} | header
    return save_npz(
        Path(folder) / f"{case.name}.npz",
        header=np.array(json.dumps(header)),
        positions=outcome.positions.astype(np.float32),
        actions=outcome.actions.astype(np.float32),
        goal=case.tasks.goal.numpy(),
        layout=case.tasks.layout.pairs().numpy(),
        oracle=outcome.oracle,
        plan_end=episodes.plan_end,
        **{f"trial_{name}": value for name, value in columns.items()},
        **{f"plan_{name}": value.astype(np.float32) for name, value in outcome.diagnostics.items()},
    )


class Result(NamedTuple):
    """One result file, read back."""

    header: dict[str, Any]  # the case, and where the numbers come from
    arrays: dict[str, np.ndarray]

    @property
    def success(self) -> np.ndarray:
        """(n,) 0 or 1, by the protocol's own definition."""
        return self.arrays["trial_success"]

    @property
    def row(self) -> dict[str, Any]:
        """One flat entry of `summary.json`: the header beside means of the per-trial columns."""
        header = {key: value for key, value in self.header.items() if key != "plan_reach"}
        columns = {name: self.arrays[f"trial_{name}"] for name in TrialMetrics._fields}
        return header | summarise(columns)


def load_result(path: Path) -> Result:
    """FileError when the file is no result of this library."""
    arrays = load_npz(path)
    if "header" not in arrays or "positions" not in arrays:
        raise FileError(f"{path} is no result file: it has no header or no positions")
    header = json.loads(str(arrays.pop("header")))
    if "key" in header:  # made before a file's name held its whole case
        header |= dict(zip(_OLD_KEY, header.pop("key"), strict=True))
        header |= {"n": len(arrays["positions"]), "split": "", "world": "", "case": Path(path).stem}
    return Result(header, arrays)


def load_results(folder: Path) -> list[Result]:
    """All results of a folder, in the order of their names."""
    return [load_result(path) for path in sorted(Path(folder).glob("*.npz"))]


def collect(folder: Path) -> list[dict[str, Any]]:
    """Every result of a folder as a row."""
    return [result.row for result in load_results(folder)]
