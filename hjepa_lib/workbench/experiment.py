"""What an experiment is made of: models, cells (what is done with each of them), units of work.

Nothing here computes or needs torch: settings, names and keys say what a stored row must agree in.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hjepa_lib.config import Config, ConfigError, flatten, leaves, profile
from hjepa_lib.config.fields import Float, Int, Section
from hjepa_lib.evaluation import FLOORS, LEARNED, Case
from hjepa_lib.files import sha256
from hjepa_lib.runs import notebooks
from hjepa_lib.runs.keys import closure, core_stages, shaping

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_CALL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def named(name: str) -> str:
    """`name`; ConfigError unless an experiment, a model or a cell may be called so."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a name must be letters, digits and . _ + -, got {name!r}")
    return name


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
    """What is done with a model; one of the three kinds below."""

    method = notebooks = call = ""  # which kind it is

    name: str
    model: str = ""
    group: str = ""
    seeds: tuple[Int[0 : 2**31 - 1], ...] = (0, 1, 2)
    minutes: Float[0:1e9] = 0.0  # of one seed, all its units

    def __post_init__(self) -> None:
        super().__post_init__()
        named(self.name)


class PlannerCell(Cell):
    """A planner, floor or ceiling on stored trials."""

    method: Literal[(*LEARNED, *FLOORS)] = "flat"
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

    def refused(self) -> Iterator[tuple[bool, str]]:
        wrong = (self.cost == "none") != (self.method in FLOORS)
        yield wrong, f"cost={self.cost} does not go with method={self.method}"
        for key, values in self.grid.items():
            wrong = not isinstance(values, list) or not values
            yield wrong, f"{key} in its grid must be a list, got {values!r}"
        for key in ("cost", "hierarchy.control"):
            wrong = key in {*self.planning, *self.grid}
            yield wrong, f"it sets planning.{key}; use its own key of the cell instead"


class NotebookCell(Cell):
    """Chapters run headless, such as "01-05"."""

    notebooks: str = ""


class CallCell(Cell):
    """A function (workspace, settings) -> rows, named module:function."""

    call: str = ""
    settings: dict = field(default_factory=dict)

    def refused(self) -> Iterator[tuple[bool, str]]:
        yield not _CALL.fullmatch(self.call), f"call must be module:function, got {self.call!r}"


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

    @property
    def title(self) -> str:
        """The key in words."""
        return " ".join(filter(None, self.key.values()))

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

    def units(self, *cells: Cell) -> list[Unit]:
        """All units of some cells, model by model and seed by seed."""
        for cell in cells:
            if (cell.name, cell.seeds) not in self._made:
                self._made[cell.name, cell.seeds] = list(self._units(cell))
        return [one for cell in cells for one in self._made[cell.name, cell.seeds]]

    def _units(self, cell: Cell) -> Iterator[Unit]:
        grid = cell.grid if cell.method else {}
        points = [tuple(zip(grid, one, strict=True)) for one in itertools.product(*grid.values())]
        for model in self.models_of(cell):
            trained = self.config(model)
            configs = [self._planned(trained, cell, dict(point)) for point in points]
            for seed in cell.seeds:
                own = dataclasses.replace(trained, seed=seed)
                for point, config in zip(points, configs, strict=True):
                    planned = dataclasses.replace(config, seed=seed)
                    for budget in cell.budgets if cell.method else (1.0,):
                        yield Unit(cell, model, own, planned, budget, point)

    def _planned(self, trained: Config, cell: Cell, point: dict[str, Any]) -> Config:
        if not cell.method:
            return trained
        names = ("protocol", "split", "trials", "steps", "budgets")
        changes = {f"evaluation.{name}": getattr(cell, name) for name in names}
        changes |= {f"planning.{name}": value for name, value in (cell.planning | point).items()}
        changes |= {"planning.hierarchy.control": cell.control} if cell.control != "none" else {}
        return trained.override(changes)

    def runs(self) -> list[tuple[dict[str, Any], Path]]:
        """What was swept, and the run's folder, of every model and seed."""
        return [(one.model.swept, self.folder / one.run_name) for one in self.units(*self.cells)]

    def root_of(self, model: Model) -> str:
        """The oldest model that this one is from: units of one root and seed share trainings."""
        parents = {one.name: one.parent for one in self.models}
        name = model.name
        while parents.get(name):
            name = parents[name]
        return name

    def select(self, only: str = "", seeds: tuple[int, ...] = ()) -> list[Cell]:
        """Cells whose name or group matches one of the comma-separated globs, with these seeds."""
        found = {}
        for text in filter(None, map(str.strip, (only or "*").split(","))):
            found[text] = [
                cell
                for cell in self.cells
                if any(fnmatch.fnmatchcase(name, text) for name in (cell.name, cell.group))
            ]
            if not found[text]:
                raise ConfigError(f"no cell of {self.path or self.name} matches {text!r}")
        chosen = [cell for cell in self.cells if any(cell in cells for cells in found.values())]
        kept = [tuple(one for one in cell.seeds if not seeds or one in seeds) for cell in chosen]
        pairs = zip(chosen, kept, strict=True)
        return [dataclasses.replace(cell, seeds=left) for cell, left in pairs if left]
