"""The grid file of a study: which trainings, which evaluations, in order of priority.

Reading the file builds the config of every row, so that an unknown recipe, setting or method is
refused in one sentence before any work. The comments of configs/study.yaml say what may be written.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hjepa_lib.config import Config, ConfigError, profile, read_yaml
from hjepa_lib.planning.agent import METHODS, THREE_LEVELS
from hjepa_lib.runs.places import repository
from hjepa_lib.workbench.studyrow import FLOORS, Cell, Recipe, Row

COSTS = ("latent", "distance")
DYNAMICS = ("bounce", "blocked", "slide")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SECTIONS = ("name", "rows", "profile", "defaults", "recipes", "cells")
_NO_RECIPE = "floors"


@dataclass(frozen=True)
class Grid:
    """A checked grid file."""

    name: str
    path: str
    table: Path
    profile: str
    recipes: dict[str, Recipe]
    cells: list[Cell]

    def config(self, recipe: str, seed: int) -> Config:
        """Settings of one training; of a run for floors alone with recipe ""."""
        # Floors and ceiling have no model, so there is no precision to measure.
        settings = self.recipes[recipe].settings if recipe else {"precision": "fp32"}
        return profile(self.profile, seed).override(settings)

    def run_name(self, recipe: str, seed: int) -> str:
        """Name of the run's folder below `outputs/<name>`."""
        return f"{recipe or _NO_RECIPE}-s{seed}"

    def rows(self, cell: Cell) -> list[Row]:
        """All rows of a cell, seed by seed."""
        found = []
        for seed in cell.seeds:
            base = self.config(cell.recipe, seed).override(
                {
                    "evaluation.protocol": cell.protocol,
                    "evaluation.split": cell.split,
                    "evaluation.trials": cell.trials,
                    "evaluation.steps": cell.steps,
                    "evaluation.budgets": list(cell.budgets),
                    "planning.hierarchy.control": cell.control,
                }
            )
            for values in itertools.product(*cell.grid.values()):
                point = dict(zip(cell.grid, values, strict=True))
                changed = {f"planning.{key}": v for key, v in (cell.planning | point).items()}
                config = base.override(changed)
                found += [
                    Row(cell, seed, budget, tuple(point.items()), config)
                    for budget in config.evaluation.budgets
                ]
        return found

    def select(self, only: str = "", seeds: tuple[int, ...] = ()) -> list[Cell]:
        """Cells whose name or group matches one of the comma-separated globs, with these seeds."""
        globs = [text.strip() for text in only.split(",") if text.strip()]
        for text in globs:
            if not any(_matches(cell, text) for cell in self.cells):
                raise ConfigError(f"no cell of {self.path} matches {text!r}")
        chosen = []
        for cell in self.cells:
            if globs and not any(_matches(cell, text) for text in globs):
                continue
            kept = tuple(seed for seed in cell.seeds if not seeds or seed in seeds)
            if kept:
                chosen.append(dataclasses.replace(cell, seeds=kept))
        return chosen


def _matches(cell: Cell, text: str) -> bool:
    return fnmatch.fnmatchcase(cell.name, text) or fnmatch.fnmatchcase(cell.group, text)


def read_grid(path: Path) -> Grid:
    """Parse and check a grid file; ConfigError in one sentence."""
    tree = _load(path)
    recipes: dict[str, Recipe] = {}
    for name, entry in _mapping(tree.get("recipes", {}), "recipes", path).items():
        recipes[name] = _recipe(str(name), entry, recipes, path)
    defaults = _mapping(tree.get("defaults", {}), "defaults", path)
    entries = tree.get("cells")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"cells in {path} must be a list with at least one cell")
    name = str(tree.get("name") or path.stem)
    table = repository() / str(tree.get("rows") or f"outputs/gallery/{name}.csv")
    cells = [_cell(entry, defaults, recipes, path) for entry in entries]
    grid = Grid(name, str(path), table, str(tree.get("profile", "laptop")), recipes, cells)
    _check(grid)
    return grid


def _load(path: Path) -> dict[str, Any]:
    tree = _mapping(read_yaml(path, "grid file"), "the file", path)
    for key in tree:
        if key not in _SECTIONS:
            raise ConfigError(f"unknown section {key!r} in {path}; known: {', '.join(_SECTIONS)}")
    return tree


def _mapping(node: Any, what: str, path: Path) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ConfigError(f"{what} in {path} must be a mapping, got {node!r}")
    return node


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ConfigError(f"{what} must be a number of minutes, got {value!r}")
    return float(value)


def _recipe(name: str, entry: Any, known: dict[str, Recipe], path: Path) -> Recipe:
    where = f"recipe {name!r} in {path}"
    entry = _mapping(entry, where, path)
    for key in entry:
        if key not in ("minutes", "settings", "from"):
            raise ConfigError(f"unknown key {key!r} in {where}; known: minutes, settings, from")
    if not _NAME.fullmatch(name) or name == _NO_RECIPE:
        raise ConfigError(f"{where} needs another name: letters, digits and . _ + - only")
    parent = entry.get("from", "")
    if parent and parent not in known:
        raise ConfigError(f"{where} is from {parent!r}, which no recipe above it is named")
    inherited = known[parent].settings if parent else {}
    settings = inherited | _mapping(entry.get("settings") or {}, f"settings of {where}", path)
    for key in settings:
        if key.split(".")[0] in ("planning", "evaluation", "seed", "profile"):
            raise ConfigError(f"{where} sets {key}, which belongs to the cells, not to a training")
    return Recipe(name, _number(entry.get("minutes"), f"minutes of {where}"), settings, parent)


def _cell(entry: Any, defaults: dict, recipes: dict[str, Recipe], path: Path) -> Cell:
    entry = defaults | _mapping(entry, "a cell", path)
    name = str(entry.get("name", ""))
    where = f"cell {name!r} in {path}"
    known = [item.name for item in dataclasses.fields(Cell)]
    for key in entry:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {where}; known: {', '.join(known)}")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a cell in {path} needs a name of letters, digits and . _ + -")
    for key in ("method", "minutes"):
        if key not in entry:
            raise ConfigError(f"{where} lacks {key!r}")
    entry = {**entry, "minutes": _number(entry["minutes"], f"minutes of {where}")}
    for key in ("seeds", "budgets"):
        if key in entry:
            if not isinstance(entry[key], list) or not entry[key]:
                raise ConfigError(f"{key} of {where} must be a list, got {entry[key]!r}")
            entry[key] = tuple(entry[key])
    for key in ("planning", "grid"):
        entry[key] = _mapping(entry.get(key) or {}, f"{key} of {where}", path)
    for key, values in entry["grid"].items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{key} in the grid of {where} must be a list, got {values!r}")
    method, cost = entry["method"], entry.get("cost", "none")
    if method in FLOORS:
        entry["recipe"] = ""  # a default meant for the others: there is nothing to train
    recipe = entry.get("recipe", "")
    methods = (*METHODS, THREE_LEVELS, *FLOORS)
    if method not in methods:
        raise ConfigError(f"method of {where} must be one of {', '.join(methods)}; got {method!r}")
    wanted = ("none",) if method in FLOORS else COSTS
    if cost not in wanted:
        raise ConfigError(f"cost of {where} must be {' or '.join(wanted)}, got {cost!r}")
    if recipe not in recipes and not (method in FLOORS and recipe == ""):
        raise ConfigError(f"{where} asks for the unknown recipe {recipe!r}")
    for key in {**entry["planning"], **entry["grid"]}:
        if key in ("cost", "hierarchy.control"):
            raise ConfigError(f"{where} sets planning.{key}; use its own key of the cell instead")
    if entry.get("dynamics", "bounce") not in DYNAMICS:
        raise ConfigError(f"dynamics of {where} must be one of {', '.join(DYNAMICS)}")
    return Cell(**{**entry, "group": str(entry.get("group") or name)})


def _check(grid: Grid) -> None:
    """ConfigError, naming the cell, unless every row's config and planner can be built."""
    if not _NAME.fullmatch(grid.name):
        raise ConfigError(f"name of {grid.path} must be letters, digits and . _ + -")
    names = [cell.name for cell in grid.cells]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{grid.path} names the cell {name!r} twice")
    for recipe in grid.recipes.values():
        _named(f"recipe {recipe.name!r} in {grid.path}", lambda r=recipe: grid.config(r.name, 0))
    for cell in grid.cells:
        where = f"cell {cell.name!r} in {grid.path}"
        rows = _named(where, lambda cell=cell: grid.rows(cell))
        keys = [row.key for row in rows]
        if len(set(keys)) < len(keys):
            raise ConfigError(f"{where} describes the same row twice")
        _named(where, rows[0].identity)
        config = rows[0].config
        if "l2" in rows[0].stages and config.level2.disable_l2:
            raise ConfigError(f"{where} plans with a level 2 that its recipe disables")
        if "l3" in rows[0].stages and not config.level3.enabled:
            raise ConfigError(f"{where} plans with a level 3, so its recipe needs level3.enabled")


def _named(where: str, build: Any) -> Any:
    try:
        return build()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
