"""The experiment file, read and checked; configs/study.yaml explains every key in its comments.

The settings of every unit of work are built while reading, so that whatever is wrong ends in one
sentence before any work.
"""

import contextlib
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import field, replace
from itertools import product
from pathlib import Path
from typing import Any

from hjepa_lib.config import Config, ConfigError, from_dict, leaves, profile, read_yaml
from hjepa_lib.config.fields import Section
from hjepa_lib.evaluation import CLONED, FLOORS, LEARNED
from hjepa_lib.files import inside
from hjepa_lib.runs.places import outputs_root, repository
from hjepa_lib.workbench.experiment import (
    CallCell,
    Cell,
    Experiment,
    Model,
    NotebookCell,
    PlannerCell,
    Unit,
)

RENAMED = {"recipes": "models", "rows": "table", "profile": "base.profile", "notebooks": "cells"}
"""Sections of 0.1.0, and what they are now."""
_KINDS = {"method": PlannerCell, "notebooks": NotebookCell, "call": CallCell}


class _File(Section):
    """What a file may hold."""

    name: str = ""
    table: str = ""
    base: dict = field(default_factory=dict)
    models: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    defaults: dict = field(default_factory=dict)
    cells: list = field(default_factory=list)


def read_experiment(
    source: Path | str | dict[str, Any], name: str = "", folder: Path | None = None
) -> Experiment:
    """Parse and check a file, or a dictionary of the same form; ConfigError in one sentence.

    `folder` holds its runs, `outputs/<name>` if not given.
    """
    path = "" if isinstance(source, dict) else str(source)
    with _about(path or name):
        tree = read_yaml(source, "experiment file") if path else source
        tree = {key: value for key, value in _mapping(tree).items() if value is not None}
        for old in tree.keys() & RENAMED.keys():
            raise ConfigError(f"{old} is called {RENAMED[old]} now")
        file = from_dict(_File, tree)
        name = _named(file.name or name or Path(path).stem)
        base = leaves(file.base)
        defaults = {"seeds": tree.get("seeds", [base.pop("seed", 0)])} | file.defaults
        if odd := set(defaults) - set(PlannerCell.__dataclass_fields__):
            raise ConfigError(f"unknown key {min(odd)!r} in defaults")
        start = profile(base.pop("profile", "laptop"))
        models = _models(file, start, base)
        units: list[Unit] = []
        for entry in file.cells:
            cell = _cell(entry, defaults, {one.name for one in models})
            chosen = [one for one in models if fnmatch.fnmatch(one.name, cell.model or "*")]
            if cell.method in FLOORS and not cell.model:  # nor is there a precision to measure
                chosen = [Model("", "", {}, start.override(base | {"precision": "fp32"}))]
            with _about(f"cell {cell.name!r}"):
                if cell.name in {unit.cell.name for unit in units}:
                    raise ConfigError("it is named twice")
                units += _units(cell, chosen)
        if not units:
            raise ConfigError("cells must be a list with at least one cell")
        folder = folder or outputs_root() / name
        table = Path(file.table or folder / "results.csv")
        table = table if table.is_absolute() else inside(repository(), str(table))
    return Experiment(name, path, start.profile, table, folder, units)


@contextlib.contextmanager
def _about(what: str) -> Iterator[None]:
    """ConfigErrors inside begin with `what` they are about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error


def _mapping(node: Any) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ConfigError(f"this must be a mapping, got {node!r}")
    return node


def _named(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ConfigError(f"a name must be letters, digits and . _ + -, got {name!r}")
    return name


def _models(file: _File, start: Config, base: dict[str, Any]) -> list[Model]:
    """The named models (one without a name, if there is none), each once per point of the grid."""
    settings, roots = {"": {}}, {"": ""}
    for name, entry in file.models.items():
        with _about(f"model {name!r}"):
            entry = {"from": "", "settings": {}} | _mapping(entry)
            for odd in entry.keys() - {"from", "settings"}:
                raise ConfigError(f"unknown key {odd!r}")
            parent, own = str(entry["from"]), leaves(_mapping(entry["settings"]))
            for odd in {"seed", "profile"} & own.keys():
                raise ConfigError(f"it sets {odd}, which belongs to the file")
            if parent not in settings:
                raise ConfigError(f"it is from {parent!r}, which no model above it is named")
            name = _named(str(name))
            settings[name], roots[name] = settings[parent] | own, roots[parent] or name
    axes = [_axis(*pair) for pair in file.grid.items()]
    found = []
    for name, point in product(map(str, file.models) if file.models else [""], product(*axes)):
        swept, changes = {}, base | settings[name]
        for label, own in point:
            swept |= label
            changes |= own
        model = Model(name, roots[name], swept, start)
        with _about(f"model {model.title!r}"):
            found.append(model._replace(config=start.override(changes)))
    return found


def _axis(axis: str, node: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """({axis: value or label}, settings) of each choice of one entry of the grid."""
    if isinstance(node, list) and node:
        return [({axis: value}, {axis: value}) for value in node]
    with _about(axis):
        if not isinstance(node, dict) or not node:
            raise ConfigError(
                f"it must be a list with at least one value, or labels with settings, got {node!r}"
            )
        if "." in _named(axis) or axis in PlannerCell.__dataclass_fields__:
            raise ConfigError("labelled choices need a name that is no setting and no column")
        return [({axis: label}, leaves(_mapping(own))) for label, own in node.items()]


def _cell(entry: Any, defaults: dict[str, Any], models: set[str]) -> Cell:
    kinds = [kind for kind in _KINDS if kind in _mapping(entry)]
    usual = "notebooks" if "notebooks" in kinds else str(entry.get("call", "")).split(":")[-1]
    name = str(entry.get("name", usual))
    with _about(f"cell {name!r}"):
        if len(kinds) != 1:
            raise ConfigError("it needs one of method, notebooks and call")
        kind = _KINDS[kinds[0]]
        known = set(kind.__dataclass_fields__)
        if entry.get("method") in FLOORS:  # those are meant for planners that are trained
            known -= {"model", "cost"}
        if entry.get("method") in CLONED:
            known -= {"cost"}
        kept = {key: defaults[key] for key in known & defaults.keys()}
        cell = from_dict(kind, {"group": name, **kept, **entry, "name": _named(name)})
        named = cell.model or cell.method in (*LEARNED, *CLONED)
        if named and not fnmatch.filter(models, cell.model):
            raise ConfigError(f"it asks for the unknown model {cell.model!r}")
    return cell


def _units(cell: Cell, models: list[Model]) -> list[Unit]:
    """The units of a cell; ConfigError unless each is another one and has its stages."""
    points = [dict(zip(cell.grid, one, strict=True)) for one in product(*cell.grid.values())]
    units: list[Unit] = []
    for model in models:
        configs = [cell.planned(model.config, one) for one in points]
        for seed in cell.seeds:
            for point, config in zip(points, configs, strict=True):
                own = replace(config, seed=seed)
                units += [Unit(cell, model, own, budget, point) for budget in cell.budgets]
    if len({tuple(unit.key.items()) for unit in units}) < len(units):
        raise ConfigError("it describes the same row twice")
    for unit in units:
        stages = unit.case.stages if unit.case else ()
        if "l2" in stages and unit.trained.level2.disable_l2:
            raise ConfigError("it plans with a level 2 that its model disables")
        if "l3" in stages and not unit.trained.level3.enabled:
            raise ConfigError("it plans with a level 3: its model needs level3.enabled")
    return units
