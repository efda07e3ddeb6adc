"""Protocols, result files and the table: from an outcome to one validated row per method.

P1 (PLDM wall_medium): fixed layout, cap 1.8365 px, success at any step within sqrt(2) px.
P2 (EB-JEPA): a layout per trial, cap 2.45 px (other caps may be reported beside it), success within
4.5 px after the last step. EB-JEPA's opening zero action leaves the dot where it is and is not
counted there, so it is not simulated here. Each result is one npz whose name says what it is:
`<method>__<cost>__<protocol>__<layouts>__<dynamics>__<budget>.npz`, per-trial arrays and a JSON
header, so that the table is always computed from what really happened.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.config import ConfigError, PlanningConfig
from hjepa_lib.evaluation.episodes import LatentPolicy, Outcome
from hjepa_lib.evaluation.metrics import Episodes, per_trial, summarise
from hjepa_lib.files import FileError, load_npz, save_npz
from hjepa_lib.planning.agent import P1_CAP
from hjepa_lib.worlds.trials import Trials

P2_CAP = 2.45  # px
LAYOUTS = {"p1": "fixed", "p2_seen": "train", "p2_heldout": "heldout"}


class ResultKey(NamedTuple):
    """What tells two results of a run apart."""

    method: str
    cost: str
    protocol: str
    layouts: str
    dynamics: str
    budget: float

    @property
    def filename(self) -> str:
        return "__".join(str(part) for part in self) + ".npz"


def protocol_cap(protocol: str, wanted: float) -> float:
    """The action cap in px: the protocol's own for 0; P1 allows no other (ConfigError)."""
    own = P1_CAP if protocol == "p1" else P2_CAP
    if protocol == "p1" and wanted not in (0, own):
        raise ConfigError(f"protocol p1 fixes planning.action_cap={own}, got {wanted}")
    return wanted or own


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


def planner_settings(
    policy: LatentPolicy | None, planning: PlanningConfig, cap: float, steps: int
) -> dict[str, Any]:
    """Every setting that shaped the plans of one row, flat and JSON-ready."""
    if policy is None:
        return {"action_cap": cap, "steps": steps}
    used = dataclasses.asdict(planning)
    used.pop("hierarchy" if policy.planner.level2 is None else "flat")
    if len(policy.planner.commands) < 2:
        used.pop("level3")
    settings = {"action_cap": cap, "steps": steps, "seed": policy.planner.seed}
    return settings | flatten_dict(used) | {"action_cap": cap}


def flatten_dict(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten_dict(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat


def save_result(
    folder: Path, key: ResultKey, outcome: Outcome, trials: Trials, header: dict[str, Any]
) -> Path:
    """Write one npz: positions, per-trial metrics, planning diagnostics, JSON header."""
    episodes = to_episodes(outcome, trials)
    trial_metrics = per_trial(episodes, key.protocol)._asdict()
    header = {"key": list(key), "plan_reach": episodes.plan_reach, **header}
    return save_npz(
        Path(folder) / key.filename,
        header=np.array(json.dumps(header)),
        positions=outcome.positions.astype(np.float32),
        actions=outcome.actions.astype(np.float32),
        goal=trials.goal.numpy(),
        layout=trials.layout.pairs().numpy(),
        oracle=outcome.oracle,
        plan_end=episodes.plan_end,
        **{f"trial_{name}": value for name, value in trial_metrics.items()},
        **{f"plan_{name}": value.astype(np.float32) for name, value in outcome.diagnostics.items()},
    )


class Result(NamedTuple):
    """One result file, read back."""

    key: ResultKey
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def success(self) -> np.ndarray:
        """(n,) 0 or 1, by the protocol's own definition."""
        return self.arrays["trial_success"]


def load_result(path: Path) -> Result:
    """FileError when the file is no result of this library."""
    arrays = load_npz(path)
    if "header" not in arrays or "positions" not in arrays:
        raise FileError(f"{path} is no result file: it has no header or no positions")
    header = json.loads(str(arrays.pop("header")))
    return Result(ResultKey(*header.pop("key")), header, arrays)


def load_results(folder: Path) -> list[Result]:
    """All results of a folder, in the order of their names."""
    return [load_result(path) for path in sorted(Path(folder).glob("*.npz"))]


def result_row(result: Result) -> dict[str, Any]:
    """One flat entry of `summary.json` (schema: runs/summary.py)."""
    arrays, header = result.arrays, dict(result.header)
    episodes = Episodes(
        arrays["positions"],
        arrays["goal"],
        arrays["layout"][:, 0],
        arrays["layout"][:, 1],
        arrays["oracle"],
        arrays["plan_end"],
        header.pop("plan_reach"),
    )
    return {**result.key._asdict(), **summarise(episodes, result.key.protocol), **header}


def collect(folder: Path) -> list[dict[str, Any]]:
    """Every result of a folder as a row."""
    return [result_row(result) for result in load_results(folder)]
