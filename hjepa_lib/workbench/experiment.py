"""What an experiment is made of: models, cells (what is done with each of them), units of work.

Nothing here computes: settings, names and keys say what a stored row must agree in. Only a wing's
function is imported, with torch, to say which stages shape its rows.
"""

import contextlib
import fnmatch
import functools
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hjepa_lib.config import Config, ConfigError, flatten, leaves, names_world
from hjepa_lib.config.fields import Int, Section
from hjepa_lib.evaluation import CLONED, FLOORS, LEARNED, Case
from hjepa_lib.files import sha256
from hjepa_lib.runs import notebooks
from hjepa_lib.runs.keys import Stage, closure, core_stages, outside, shaping
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run


class Model(NamedTuple):
    """One training of every seed."""

    name: str  # "" in a file without models
    root: str  # the oldest model it is from: units of one root and seed share trainings
    swept: dict[str, Any]  # values or labels of the file's grid
    config: Config  # of seed 0

    @property
    def title(self) -> str:
        """ "base", or "horizon=48" of a grid: what tables and folders call it."""
        parts = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in self.swept.items()]
        return "-".join(filter(None, [self.name, *parts]))


class Cell(Section):
    """What is done with a model."""

    method = notebooks = call = ""  # each kind has one of them
    budgets, grid = (1.0,), {}  # a planner may have more

    name: str
    model: str = ""
    group: str = ""
    seeds: tuple[Int[0 : 2**31 - 1], ...] = (0, 1, 2)

    def planned(self, config: Config, point: dict[str, Any]) -> Config:
        """A model's settings with the planner and the trials of one point of the grid."""
        return config


class NotebookCell(Cell):
    """Chapters run headless, such as "01-05"."""

    notebooks: str = ""


class CallCell(Cell):
    """A function (workspace, settings) -> rows, named module:function."""

    call: str = ""
    settings: dict = field(default_factory=dict)

    def refused(self) -> Iterator[tuple[bool, str]]:
        wrong = not re.fullmatch(r"[\w.]+:\w+", self.call)
        yield wrong, f"call must be module:function, got {self.call!r}"

    @property
    def function(self) -> Callable[..., Any]:
        """What `call` names."""
        module, _, name = self.call.partition(":")
        return getattr(importlib.import_module(module), name)


class PlannerCell(Cell):
    """A planner, policy, floor or ceiling on stored trials."""

    method: Literal[(*LEARNED, *CLONED, *FLOORS)] = "flat"
    cost: Literal["none", "latent", "distance", "graph"] = "none"
    protocol: str = ""  # "" is the model's `evaluation.protocol`
    dynamics: Literal["bounce", "blocked", "slide"] = "bounce"
    split: str = "test"
    trials: int = 500  # 0: the model's
    budgets: tuple[float, ...] = (1.0,)
    planning: dict = field(default_factory=dict)  # settings below `planning.`
    grid: dict = field(default_factory=dict)  # the same with a list each
    latency: bool = False  # also one episode alone
    folder: str = ""  # of the results in the run; "" is study/<name>

    def refused(self) -> Iterator[tuple[bool, str]]:
        wrong = (self.cost == "none") != (self.method not in LEARNED)
        yield wrong, f"cost={self.cost} does not go with method={self.method}"
        for key, values in self.grid.items():
            wrong = not isinstance(values, list) or not values
            yield wrong, f"{key} in its grid must be a list, got {values!r}"
        wrong = "cost" in {*self.planning, *self.grid}
        yield wrong, "it sets planning.cost; use its own key of the cell instead"

    def planned(self, config: Config, point: dict[str, Any]) -> Config:
        """See `Cell`."""
        changes = {f"evaluation.{name}": getattr(self, name) for name in ("split", "budgets")}
        for name in ("protocol", "trials"):  # or the model's
            changes |= {f"evaluation.{name}": value} if (value := getattr(self, name)) else {}
        changes |= {f"planning.{name}": value for name, value in (self.planning | point).items()}
        return config.override(changes)


def run_name(title: str, config: Config) -> str:
    """Folder of a model's run: readable, and another one for other settings."""
    settings = repr(sorted(flatten(config).items())).encode()
    readable = re.sub(r"[^A-Za-z0-9._=+-]+", "_", title or "default")[:60]
    return f"{readable}-s{config.seed}-{sha256(settings)[:8]}"


@dataclass(frozen=True)
class Unit:
    """What is done at once: a cell with one model, seed, budget and point of the cell's grid."""

    cell: Cell
    model: Model
    config: Config  # the model's with the seed, the cell's planner and trials
    budget: float = 1.0
    point: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def key(self) -> dict[str, str]:
        """The columns that name the unit in a table, as text."""
        found = {"cell": self.cell.name, "model": self.model.title, "seed": str(self.seed)}
        if self.cell.method:
            grid = "+".join(f"{name}={value}" for name, value in self.point.items())
            found |= {"budget": str(self.budget), "grid": grid}
        return found

    @property
    def title(self) -> str:
        """The key in words."""
        return " ".join(filter(None, self.key.values()))

    @functools.cached_property
    def trained(self) -> Config:
        """What the model is trained with."""
        return replace(self.model.config, seed=self.seed)

    @functools.cached_property
    def run_name(self) -> str:
        """Folder of the model's run below the experiment's."""
        return run_name(self.model.title, self.trained)

    @functools.cached_property
    def case(self) -> Case | None:
        """What a planner's cell plays."""
        cell = self.cell
        if not cell.method:
            return None
        options = {"budget": self.budget, "dynamics": cell.dynamics}
        return Case.of(self.config, cell.method, cell.cost, **options)

    def identity(self) -> dict[str, Any]:
        """Columns that must agree before a stored row is taken as this one."""
        if case := self.case:
            found = {"recipe.result": case.recipe} if case.recipe > 1 else {}
            return leaves(case.header) | found
        if self.cell.call:
            return leaves({"call": self.cell.call, "given": self.cell.settings})
        paths = notebooks.select_notebooks(self.cell.notebooks)
        return {"notebooks": "+".join(f"{one.stem}:{sha256(one)[:12]}" for one in paths)}

    def training(self) -> dict[str, Any]:
        """Every setting that shaped the models used, dotted; none for floors and ceiling.

        So do the files and runs that they name, and an own world's, by content and key (I1).
        """
        config, call = self.model.config, self.cell.call
        if re.match(r"hjepa_lib\.(pixels|grids)\.", call):  # nothing else shapes their models
            every, stages = flatten(config).items(), self.cell.function.stages(self.trained)
            found = {key: one for key, one in every if key.startswith(("pixels.", "precision"))}
            found |= {f"recipe.{one.name}": one.recipe for one in stages.values() if one.recipe > 1}
            return found | outside(stages.values(), _loaded)
        if self.case:
            found, names = _shaped_by(config, self.case.stages), self.case.stages
            if not names and names_world(self.case.world):  # an own one's file shapes floors, too
                names = ("data",)
        else:
            apart, names = ("seed", "device", "tracker", "tracking"), ("l1",)
            apart += ("pixels", "chapters") if call else ()  # which make no other row stale
            found = flatten(config)
            found = {key: one for key, one in found.items() if key.split(".")[0] not in apart}
        stages = core_stages(self.trained)
        return found | outside([stages[name] for name in names], _loaded)


def _loaded(stage: Stage) -> str:
    """The key that a stage has in the run it is loaded from; "" without that run."""
    with contextlib.suppress(RunError):  # the training will say it
        return Run.named(stage.load).key(stage.name)
    return ""


@functools.lru_cache(maxsize=256)
def _shaped_by(config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    stages, found = core_stages(config), {}
    for stage in (one for name in names for one in closure(stages[name])):
        found |= {} if stage.load else shaping(stage, config)  # the loaded run's, not ours
        found |= {f"recipe.{stage.name}": stage.recipe} if stage.recipe > 1 else {}
        found |= {"level1.load": stage.load} if stage.load else {}
    return found | ({"precision": config.precision} if found else {})


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    name: str
    path: str  # "" where it was not read from a file
    profile: str
    table: Path
    folder: Path  # where its runs are, and the table that no file names
    units: list[Unit]  # cell by cell, in each model by model and seed by seed

    def select(self, only: str = "", seeds: tuple[int, ...] = (), models: str = "") -> list[Unit]:
        """Units with these seeds, cells (by name or group) and models: globs, commas between."""
        chosen = self._matched(only, {x for u in self.units for x in (u.cell.name, u.cell.group)})
        titles = self._matched(models, {unit.model.title for unit in self.units})
        found = [one for one in self.units if chosen & {one.cell.name, one.cell.group}]
        found = [one for one in found if one.model.title in titles]
        return [one for one in found if not seeds or one.seed in seeds]

    def _matched(self, globs: str, names: set[str]) -> set[str]:
        chosen = set()
        for glob in filter(None, map(str.strip, (globs or "*").split(","))):
            matched = fnmatch.filter(names, glob)
            if not matched:
                raise ConfigError(f"nothing in {self.path or self.name} matches {glob!r}")
            chosen |= {*matched}
        return chosen
