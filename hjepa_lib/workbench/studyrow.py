"""What a study is made of: recipes (trainings), cells (evaluations), and rows (one result each).

A cell is one planner on one set of trials; with its seeds, budgets and grid values it is a block of
rows, and a row is the unit of work.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hjepa_lib.config import Config, PlanningConfig, flatten, leaves
from hjepa_lib.evaluation import Case, protocol_cap
from hjepa_lib.planning import THREE_LEVELS, scale_samples
from hjepa_lib.worlds.trials import load_trials

FLOORS = ("random", "random-persistent", "oracle")
STAGES = ("data", "l1", "distance", "l2", "l3")


@dataclass(frozen=True)
class Recipe:
    """One training; `settings` already hold those of the recipe named by `parent`."""

    name: str
    minutes: float
    settings: dict[str, Any]
    parent: str = ""


@dataclass(frozen=True)
class Cell:
    """One planner on one set of trials; `minutes` are those of one seed, all its rows."""

    name: str
    minutes: float
    method: str
    recipe: str = ""
    group: str = ""
    cost: str = "none"
    seeds: tuple[int, ...] = (0, 1, 2)
    trials: int = 500
    protocol: str = "p1"
    dynamics: str = "bounce"
    split: str = "test"
    steps: int = 200
    budgets: tuple[float, ...] = (1.0,)
    planning: dict[str, Any] = field(default_factory=dict)
    control: str = "none"
    grid: dict[str, list] = field(default_factory=dict)


class Row(NamedTuple):
    """One row to make: everything that tells it apart, and what shapes it."""

    cell: Cell
    seed: int
    budget: float
    point: tuple[tuple[str, Any], ...]  # the values of the cell's grid
    config: Config

    @property
    def key(self) -> tuple[str, str, str, str]:
        """(cell, seed, budget, grid) as text, as it stands in the table."""
        grid = "+".join(f"{key}={value}" for key, value in self.point)
        return self.cell.name, str(self.seed), str(self.budget), grid

    @property
    def planning(self) -> PlanningConfig:
        """The planner's settings with cost, budget and the protocol's action cap."""
        planning = scale_samples(self.config.planning, self.budget)
        cap = protocol_cap(self.cell.protocol, planning.action_cap)
        cost = planning.cost if self.cell.cost == "none" else self.cell.cost
        return dataclasses.replace(planning, action_cap=cap, cost=cost)

    @property
    def case(self) -> Case:
        """What is played."""
        cell = self.cell
        return Case.of(
            self.config, cell.method, cell.cost, budget=self.budget, dynamics=cell.dynamics
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the row's planner needs."""
        if self.cell.method in FLOORS:
            return ()
        if self.cell.method == THREE_LEVELS:
            return STAGES
        if self.cell.method == "l1+l2":
            return STAGES[:4]
        return STAGES[:3] if self.cell.cost == "distance" else STAGES[:2]

    def identity(self) -> dict[str, Any]:
        """Columns that must agree before a stored row is taken as this one."""
        cell = self.cell
        found = {name: getattr(cell, name) for name in ("method", "cost", "protocol", "dynamics")}
        found |= {"split": cell.split, "n": cell.trials, "planner.steps": cell.steps}
        found["trials_hash"] = _trials_hash(cell.protocol, cell.split)
        planner = {"action_cap": self.planning.action_cap}
        if cell.method not in FLOORS:
            planner = dataclasses.asdict(self.planning)
            planner.pop("hierarchy" if cell.method == "flat" else "flat")
            if cell.method != THREE_LEVELS:
                planner.pop("level3")
        return found | {f"planner.{key}": value for key, value in leaves(planner).items()}

    def training(self) -> dict[str, Any]:
        """Every setting that shaped the models used, dotted; {} for floors and ceiling."""
        sections = sections_of(self.stages, self.config)
        return {
            key: value
            for key, value in flatten(self.config).items()
            if key.split(".")[0] in sections
        }


@functools.cache
def _trials_hash(protocol: str, split: str) -> str:
    return load_trials(protocol, split, 1).sha256


def sections_of(stages: tuple[str, ...], config: Config) -> set[str]:
    """Config sections that shape these stages (a joint level 1 is shaped by level 2's)."""
    found = {"data"} if "data" in stages else set()
    if "l1" in stages:
        found |= {"level1", "level2"} if _joint(config) else {"level1"}
        if config.level1.refine_updates:  # on as many trajectories as the head is trained on
            found.add("distance")
    if "distance" in stages:
        found.add("distance")
    if "l2" in stages:
        found |= {"data", "level1", "distance", "level2"}
    if "l3" in stages:
        found.add("level3")
    return found


def _joint(config: Config) -> bool:
    return config.level2.train == "joint" and not config.level2.disable_l2


def agreeing_stages(one: Config, two: Config, stages: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `stages` whose settings are the same in both configs, up to the first that is not
    (`distance` is allowed to differ under level 1, not under level 2)."""
    needs = {stage: STAGES[: i + 1] for i, stage in enumerate(STAGES)}
    left, right = flatten(one), flatten(two)
    found = []
    for stage in stages:
        sections = sections_of(needs[stage], one) | sections_of(needs[stage], two)
        keys = [key for key in left if key.split(".")[0] in sections]
        if all(left[key] == right[key] for key in keys) and one.seed == two.seed:
            found.append(stage)
    return tuple(found)
