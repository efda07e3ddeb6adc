"""Result files: one per case played, read back as one row each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.metrics import MEANS, Episodes, per_trial, summarise
from hjepa_lib.files import FileError, load_npz, save_npz


def save_result(folder: Path, case: Case, episodes: Episodes, header: dict[str, Any]) -> Path:
    """One npz: what happened, per-trial metrics, what the planner saw, and a JSON header."""
    stored = {name: getattr(episodes, name) for name in ("goal", "layout", "oracle", "lost")}
    stored |= {name: getattr(episodes, name).astype("f4") for name in ("positions", "actions")}
    if episodes.states is not None:
        stored["states"] = episodes.states.astype("f4")
    columns = per_trial(episodes, case.protocol)
    stored |= {f"trial_{name}": column for name, column in columns.items()}
    stored |= {f"plan_{name}": value.astype("f4") for name, value in episodes.seen.items()}
    header = np.array(json.dumps(case.header | {"case": case.digest} | header))
    return save_npz(Path(folder) / f"{case.name}.npz", header=header, **stored)


class Result(NamedTuple):
    """One result file."""

    header: dict[str, Any]  # the case, and where the numbers come from
    arrays: dict[str, np.ndarray]

    @property
    def success(self) -> np.ndarray:
        """(n,) 0 or 1, by the protocol."""
        return self.arrays["trial_success"]

    @property
    def row(self) -> dict[str, Any]:
        """The header beside means of the per-trial columns."""
        # An earlier version had fewer columns.
        columns = dict.fromkeys(MEANS.values(), np.full(len(self.success), np.nan))
        names = [name for name in self.arrays if name.startswith("trial_")]
        columns |= {name.removeprefix("trial_"): self.arrays[name] for name in names}
        return self.header | summarise(columns)


def load_result(path: Path) -> Result:
    """FileError when the file is no result of this library."""
    arrays = load_npz(path)
    if "header" not in arrays or "positions" not in arrays:
        raise FileError(f"{path} is no result file: it has no header or no positions")
    header = json.loads(str(arrays.pop("header")))
    if "method" not in header:
        raise FileError(f"{path} is a result of an earlier version: play it again")
    return Result(header, arrays)


def load_results(folder: Path) -> list[Result]:
    """All results of a folder, in the order of their names."""
    return [load_result(path) for path in sorted(Path(folder).glob("*.npz"))]


def collect(folder: Path) -> list[dict[str, Any]]:
    """Every result of a folder as a row."""
    return [result.row for result in load_results(folder)]
