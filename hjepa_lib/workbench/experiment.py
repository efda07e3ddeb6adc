"""What an experiment is made of: models, cells (what is done with each of them), units of work.

Nothing here computes or needs torch: settings, names and keys say what a stored row must agree in.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hjepa_lib.config import Config, ConfigError, flatten, leaves, profile
from hjepa_lib.config.fields import Float, Int, Section
from hjepa_lib.evaluation import FLOORS, LEARNED, Case
from hjepa_lib.files import sha256
from hjepa_lib.runs import notebooks
from hjepa_lib.runs.keys import closure, core_stages, shaping


class Model(Section):
    """One training: settings on top of the file's base, with those of the model it is from."""

    name: str  # "" in a file without models
    settings: dict = field(default_factory=dict)
    minutes: Float[0:1e9] = 0.0  # of one seed
    parent: str = ""
    swept: dict = field(default_factory=dict)  # values or labels of the file's grid

    @property
    def title(self) -> str:
        """ "base", or "horizon=48" of a grid: what tables and folders call it."""
        parts = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in self.swept.items()]
        return "-".join(filter(None, [self.name, *parts]))


class Cell(Section):
    """What is done with a model: a planner on stored trials, notebooks, or a function."""

    name: str
    model: str = ""
    group: str = ""
    seeds: tuple[Int[0 : 2**31 - 1], ...] = (0, 1, 2)
    minutes: Float[0:1e9] = 0.0  # of one seed, all its units
    method: Literal[("", *LEARNED, *FLOORS)] = ""
    cost: Literal["none", "latent", "distance"] = "none"
    protocol: str = "p1"
    dynamics: Literal["bounce", "blocked", "slide"] = "bounce"
    split: str = "test"
    trials: int = 500
    steps: int = 200
    budgets: tuple[float, ...] = (1.0,)
    control: str = "none"
    planning: dict = field(default_factory=dict)  # settings below `planning.`
    grid: dict = field(default_factory=dict)  # the same with a list each
    latency: bool = False  # also one episode alone
    folder: str = ""  # of the results in the run; "" is study/<name>
    notebooks: str = ""
    call: str = ""  # module:function(workspace, settings) -> rows
    settings: dict = field(default_factory=dict)  # what the function is given


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
    trained: Config  # what the model is trained with
    config: Config  # the same with the cell's planner and trials
    budget: float = 1.0
    point: tuple[tuple[str, Any], ...] = ()

    @property
    def seed(self) -> int:
        return self.trained.seed

    @property
    def key(self) -> dict[str, str]:
        """The columns that name the unit in a table, as text."""
        found = {"cell": self.cell.name, "model": self.model.title, "seed": str(self.seed)}
        if self.cell.method:
            grid = "+".join(f"{name}={value}" for name, value in self.point)
            found |= {"budget": str(self.budget), "grid": grid}
        return found

    @functools.cached_property
    def case(self) -> Case | None:
        """What a planner's cell plays."""
        cell = self.cell
        if not cell.method:
            return None
        return Case.of(
            self.config, cell.method, cell.cost, budget=self.budget, dynamics=cell.dynamics
        )

    @functools.cached_property
    def run_name(self) -> str:
        """Folder of the model's run below the experiment's."""
        return run_name(self.model.title, self.trained)

    def identity(self) -> dict[str, Any]:
        """Columns that must agree before a stored row is taken as this one."""
        cell = self.cell
        if cell.notebooks:
            paths = notebooks.select_notebooks(cell.notebooks)
            return {"notebooks": "+".join(f"{one.stem}:{sha256(one)[:12]}" for one in paths)}
        if cell.call:
            return {"call": cell.call, **{f"call.{k}": v for k, v in cell.settings.items()}}
        return leaves(self.case.header)

    def training(self) -> dict[str, Any]:
        """Every setting that shaped the models used, dotted; {} for floors and ceiling."""
        if self.cell.method:
            return _shaped_by(dataclasses.replace(self.trained, seed=0), self.case.stages)
        apart = ("seed", "device", "tracker", "tracking")
        found = flatten(self.trained)
        return {name: value for name, value in found.items() if name.split(".")[0] not in apart}


@functools.lru_cache(maxsize=256)
def _shaped_by(config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    stages, found = core_stages(config), {}
    for stage in (one for name in names for one in closure(stages[name])):
        found |= shaping(stage, config)
        found |= {f"recipe.{stage.name}": stage.recipe} if stage.recipe > 1 else {}
        found |= {"level1.load": stage.load} if stage.load else {}
    return found | ({"precision": config.precision} if found else {})


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    name: str
    path: str  # "" where it was not read from a file
    table: Path
    base: dict[str, Any]
    models: list[Model]
    cells: list[Cell]
    folder: Path  # where its runs are, and the table that no file names

    @property
    def swept(self) -> list[str]:
        """Names of the file's grid."""
        return list(self.models[0].swept)

    @functools.cached_property
    def _made(self) -> dict[Any, Any]:
        return {}  # configs and units: built while reading, asked for again and again

    def config(self, model: Model) -> Config:
        """What a model is trained with, seed 0."""
        if model.title not in self._made:
            base = dict(self.base)
            start = profile(base.pop("profile", "laptop"))
            self._made[model.title] = start.override(base | model.settings)
        return self._made[model.title]

    def models_of(self, cell: Cell) -> list[Model]:
        """The models of a cell: those it names (each point of the file's grid), or all."""
        if cell.method in FLOORS and not cell.model:
            return [Model("", {"precision": "fp32"})]  # no model, no precision to measure
        return [one for one in self.models if cell.model in (one.name, "")]

    def units(self, cell: Cell) -> list[Unit]:
        """All units of a cell, model by model and seed by seed."""
        if (cell.name, cell.seeds) in self._made:
            return self._made[cell.name, cell.seeds]
        found = self._made[cell.name, cell.seeds] = []
        for model in self.models_of(cell):
            trained = self.config(model)
            values = itertools.product(*cell.grid.values())
            points = [tuple(zip(cell.grid, one, strict=True)) for one in values]
            configs = [self._planned(trained, cell, dict(point)) for point in points]
            for seed in cell.seeds:
                own = dataclasses.replace(trained, seed=seed)
                for point, config in zip(points, configs, strict=True):
                    config = dataclasses.replace(config, seed=seed)
                    budgets = config.evaluation.budgets if cell.method else (1.0,)
                    found += [Unit(cell, model, own, config, one, point) for one in budgets]
        return found

    def _planned(self, trained: Config, cell: Cell, point: dict[str, Any]) -> Config:
        if not cell.method:
            return trained
        changes = {f"evaluation.{name}": getattr(cell, name) for name in ("protocol", "split")}
        changes |= {f"evaluation.{name}": getattr(cell, name) for name in ("trials", "steps")}
        changes["evaluation.budgets"] = list(cell.budgets)
        changes |= {f"planning.{name}": value for name, value in (cell.planning | point).items()}
        changes |= {"planning.hierarchy.control": cell.control} if cell.control != "none" else {}
        return trained.override(changes)

    def runs(self) -> list[tuple[dict[str, Any], Path]]:
        """What was swept, and the run's folder, of every model and seed."""
        units = [unit for cell in self.cells for unit in self.units(cell)]
        return [(unit.model.swept, self.folder / unit.run_name) for unit in units]

    def root_of(self, model: Model) -> str:
        """The oldest model that this one is from: units of one root and seed share trainings."""
        parents = {one.name: one.parent for one in self.models}
        name = model.name
        while parents.get(name):
            name = parents[name]
        return name

    def select(self, only: str = "", seeds: tuple[int, ...] = ()) -> list[Cell]:
        """Cells whose name or group matches one of the comma-separated globs, with these seeds."""
        globs = [text.strip() for text in only.split(",") if text.strip()]
        for text in globs:
            if not any(_matches(cell, text) for cell in self.cells):
                raise ConfigError(f"no cell of {self.path or self.name} matches {text!r}")
        chosen = [
            cell for cell in self.cells if not globs or any(_matches(cell, one) for one in globs)
        ]
        kept = [tuple(one for one in cell.seeds if not seeds or one in seeds) for cell in chosen]
        pairs = zip(chosen, kept, strict=True)
        return [dataclasses.replace(cell, seeds=left) for cell, left in pairs if left]


def _matches(cell: Cell, text: str) -> bool:
    return fnmatch.fnmatchcase(cell.name, text) or fnmatch.fnmatchcase(cell.group, text)
