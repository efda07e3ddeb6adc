"""The experiment file, read and checked; configs/study.yaml explains every key in its comments.

The settings of every unit of work are built while reading, so that whatever is wrong ends in one
sentence before any work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

from hjepa_lib.config import ConfigError, from_dict, leaves, read_yaml
from hjepa_lib.config.fields import Section
from hjepa_lib.evaluation import FLOORS
from hjepa_lib.files import inside
from hjepa_lib.runs.places import outputs_root, repository
from hjepa_lib.workbench import experiment as parts
from hjepa_lib.workbench.experiment import Experiment, Model

_KINDS = {
    "method": parts.PlannerCell,
    "notebooks": parts.NotebookCell,
    "call": parts.CallCell,
}

RENAMED = {"recipes": "models", "rows": "table", "profile": "base.profile", "notebooks": "cells"}
"""Sections of 0.1.0, and what they are now."""


class Sections(Section):
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
    own = isinstance(source, dict)
    path = "" if own else str(source)
    with _about(path or name):
        tree = source if own else read_yaml(source, "experiment file")
        tree = {key: value for key, value in _mapping(tree).items() if value is not None}
        for old in tree.keys() & RENAMED.keys():
            raise ConfigError(f"{old} is called {RENAMED[old]} now")
        file = from_dict(Sections, tree)
        name = parts.named(file.name or name or Path(path).stem)
        base = leaves(file.base)
        defaults = {"seeds": tree.get("seeds", [base.pop("seed", 0)])} | file.defaults
        if odd := set(defaults) - {item.name for item in dataclasses.fields(parts.PlannerCell)}:
            raise ConfigError(f"unknown key {min(odd)!r} in defaults")
        models = _models(file.models, [_axis(*pair) for pair in file.grid.items()])
        cells = [_cell(entry, defaults, {one.name for one in models}) for entry in file.cells]
        if not cells:
            raise ConfigError("cells must be a list with at least one cell")
        folder = folder or outputs_root() / name
        table = Path(file.table or folder / "results.csv")
        table = table if table.is_absolute() else inside(repository(), str(table))
        found = Experiment(name, path, table, base, models, cells, folder)
        _check(found)
    return found


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


def _models(named: dict[str, Any], axes: list[list[tuple]]) -> list[Model]:
    """The named models (one without a name, if there is none), each once per point of the grid."""
    models: dict[str, Model] = {}
    for name, entry in named.items():
        with _about(f"model {name!r}"):
            given = {
                "parent" if key == "from" else key: one for key, one in _mapping(entry).items()
            }
            model = from_dict(Model, {"name": parts.named(str(name)), **given})
            settings = leaves(model.settings)
            if odd := {"seed", "profile"} & set(settings):
                raise ConfigError(f"it sets {min(odd)}, which belongs to the file")
            if model.parent and model.parent not in models:
                raise ConfigError(f"it is from {model.parent!r}, which no model above it is named")
            if model.parent:
                settings = models[model.parent].settings | settings
            models[name] = dataclasses.replace(model, settings=settings)
    found = []
    for model, point in itertools.product(models.values() or [Model("")], itertools.product(*axes)):
        settings = dict(model.settings)
        for *_, own in point:
            settings |= own
        swept = {axis: label for axis, label, _ in point}
        found.append(dataclasses.replace(model, settings=settings, swept=swept))
    return found


def _axis(axis: str, node: Any) -> list[tuple[str, Any, dict[str, Any]]]:
    """(axis, value or label, settings) of one entry of the grid."""
    if isinstance(node, list) and node:
        return [(axis, value, {axis: value}) for value in node]
    with _about(axis):
        if not isinstance(node, dict) or not node:
            raise ConfigError(
                f"it must be a list with at least one value, or labels with settings, got {node!r}"
            )
        columns = (kind.__dataclass_fields__ for kind in _KINDS.values())
        if "." in parts.named(axis) or any(axis in known for known in columns):
            raise ConfigError("labelled choices need a name that is no setting and no column")
        return [(axis, label, leaves(_mapping(own))) for label, own in node.items()]


def _cell(entry: Any, defaults: dict[str, Any], models: set[str]) -> parts.Cell:
    kinds = [kind for kind in _KINDS if kind in _mapping(entry)]
    name = "notebooks" if "notebooks" in kinds else str(entry.get("call", "")).split(":")[-1]
    name = str(entry.get("name", name))
    with _about(f"cell {name!r}"):
        if len(kinds) != 1:
            raise ConfigError("it needs one of method, notebooks and call")
        kind = _KINDS[kinds[0]]
        kept = {key: defaults[key] for key in kind.__dataclass_fields__ if key in defaults}
        floor = entry.get("method") in FLOORS
        if floor:  # defaults meant for the others: there is nothing to train
            kept.pop("model", None)
            kept.pop("cost", None)
        cell = from_dict(kind, {"group": name, **kept, **entry, "name": name})
        if cell.model not in models and (cell.model or (cell.method and not floor)):
            raise ConfigError(f"it asks for the unknown model {cell.model!r}")
    return cell


def _check(found: Experiment) -> None:
    """ConfigError, naming model or cell, unless every unit can be built and has its stages."""
    names = [cell.name for cell in found.cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"it names the cell {twice[0]!r} twice")
    for model in found.models:
        with _about(f"model {model.title!r}"):
            found.config(model)
    for cell in found.cells:
        with _about(f"cell {cell.name!r}"):
            units = found.units(cell)
            if len({tuple(unit.key.items()) for unit in units}) < len(units):
                raise ConfigError("it describes the same row twice")
            for unit in units if cell.method else ():
                if "l2" in unit.case.stages and unit.trained.level2.disable_l2:
                    raise ConfigError("it plans with a level 2 that its model disables")
                if "l3" in unit.case.stages and not unit.trained.level3.enabled:
                    raise ConfigError("it plans with a level 3: its model needs level3.enabled")
