"""What is played and what is stored: a `Case`, its result file, and one row per result.

P1 (PLDM wall_medium): fixed layout, cap 1.8365 px, success at any step within sqrt(2) px.
P2 (EB-JEPA): a layout per trial, cap 2.45 px (other caps may be reported beside it), success within
4.5 px after the last step. EB-JEPA's opening zero action leaves the dot where it is and is not
counted there, so it is not simulated here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.config import Config, ConfigError, PlanningConfig, flatten
from hjepa_lib.evaluation.episodes import Outcome
from hjepa_lib.evaluation.metrics import Episodes, TrialMetrics, per_trial, summarise
from hjepa_lib.files import FileError, load_npz, save_npz, sha256
from hjepa_lib.planning.agent import METHODS, P1_CAP, THREE_LEVELS, scale_samples
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.trials import Trials, load_trials, own_trials

P2_CAP = 2.45  # px
LAYOUTS = {"p1": "fixed", "p2_seen": "train", "p2_heldout": "heldout"}
LEARNED = (*METHODS, THREE_LEVELS)
_OLD_KEY = ("method", "cost", "protocol", "layouts", "dynamics", "budget")


def protocol_cap(protocol: str, wanted: float) -> float:
    """The action cap in px: the protocol's own for 0; P1 allows no other (ConfigError)."""
    own = P1_CAP if protocol == "p1" else P2_CAP
    if protocol == "p1" and wanted not in (0, own):
        raise ConfigError(f"protocol p1 fixes planning.action_cap={own}, got {wanted}")
    return wanted or own


def find_trials(config: Config, split: str, n: int) -> Trials:
    """The protocol's committed trials, or those that an own world draws."""
    world, protocol = find_world(config.data.source), config.evaluation.protocol
    if world is None:
        return load_trials(protocol, split, n)
    if protocol == "p2_heldout":
        raise ConfigError("an own world has one layout, so evaluation.protocol=p2_heldout is out")
    return own_trials(world, split, n)


@dataclass(frozen=True)
class Case:
    """One method as it is played: with the weights, everything that shapes its result."""

    method: str  # random, random-persistent, oracle, flat, l1+l2, l1+l2+l3
    cost: str  # latent or distance, "none" for floors and ceiling
    planning: PlanningConfig  # as played: cap, cost and budget are already in it
    tasks: Trials  # the first n rows of the file that `tasks.sha256` names
    protocol: str
    split: str
    world: str  # data.source
    dynamics: str
    steps: int
    budget: float  # factor on the samples of every level
    seed: int

    @classmethod
    def of(
        cls,
        config: Config,
        method: str,
        cost: str = "none",
        *,
        planning: PlanningConfig | None = None,
        budget: float = 1.0,
        dynamics: str = "bounce",
        split: str = "",
        trials: int = 0,
    ) -> Case:
        """The case that a run's settings describe; what is given replaces them."""
        evaluation, planning = config.evaluation, planning or config.planning
        split = split or evaluation.split
        planned = dataclasses.replace(
            scale_samples(planning, budget),
            action_cap=protocol_cap(evaluation.protocol, planning.action_cap),
            cost=planning.cost if cost == "none" else cost,
        )
        return cls(
            method, cost, planned, find_trials(config, split, trials or evaluation.trials),
            evaluation.protocol, split, config.data.source, dynamics, evaluation.steps,
            float(budget), config.seed,
        )  # fmt: skip

    @property
    def learned(self) -> bool:
        """True for a planner with a world model, False for floors and ceiling."""
        return self.method in LEARNED

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that shapes the plans, dotted; what does not act is left out."""
        fixed = {"action_cap": self.planning.action_cap, "steps": self.steps}
        if not self.learned:
            return fixed
        unused = ("hierarchy." if self.method == "flat" else "flat.",)
        unused += () if self.method == THREE_LEVELS else ("level3.",)
        leaves = flatten(self.planning).items()
        used = {key: value for key, value in leaves if not key.startswith(unused)}
        return fixed | {"seed": self.seed} | used

    @property
    def header(self) -> dict[str, Any]:
        """The case as the columns of a row."""
        return {
            "method": self.method,
            "cost": self.cost,
            "protocol": self.protocol,
            "layouts": LAYOUTS[self.protocol],
            "dynamics": self.dynamics,
            "budget": self.budget,
            "split": self.split,
            "n": self.tasks.count,
            "trials_hash": self.tasks.sha256,
            "world": self.world,
            "seed": self.seed,
            "planner": self.settings,
        }

    @property
    def digest(self) -> str:
        """Equal for equal cases alone: another question, another file (I8)."""
        return sha256(json.dumps(self.header, sort_keys=True).encode())[:10]

    @property
    def name(self) -> str:
        """Readable, and unlike that of any other case."""
        parts = (self.method, self.cost, self.protocol, f"{self.split}{self.tasks.count}")
        return "__".join((*parts, self.dynamics, f"x{self.budget:g}", self.digest))


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
