"""The experiment file, read and checked; configs/study.yaml explains every key in its comments.

The settings of every unit of work are built while reading, so that whatever is wrong ends in one
sentence before any work.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hjepa_lib.config import ConfigError, from_dict, leaves, read_yaml
from hjepa_lib.evaluation import FLOORS
from hjepa_lib.files import inside
from hjepa_lib.runs.places import outputs_root, repository
from hjepa_lib.workbench.experiment import Cell, Experiment, Model

SECTIONS = ("name", "table", "base", "models", "grid", "seeds", "defaults", "cells")
_RENAMED = {"recipes": "models", "rows": "table", "profile": "base.profile", "notebooks": "cells"}
_GENERAL = ("name", "model", "group", "seeds", "minutes")
_APART = {"notebooks": (), "call": ("settings",)}
_PLANNER = [item.name for item in dataclasses.fields(Cell)]
_PLANNER = [name for name in _PLANNER if name not in (*_GENERAL, *_APART, "settings")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_CALL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def read_experiment(
    source: Path | str | dict[str, Any], name: str = "", folder: Path | None = None
) -> Experiment:
    """Parse and check a file, or a dictionary of the same form; ConfigError in one sentence.

    `folder` holds its runs, `outputs/<name>` if not given.
    """
    own = isinstance(source, dict)
    where = name if own else str(source)
    tree = _mapping(source if own else read_yaml(source, "experiment file"), where or "the file")
    for section in tree:
        if section in _RENAMED:
            raise ConfigError(f"{section} in {where} is called {_RENAMED[section]} now")
        if section not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise ConfigError(f"unknown section {section!r} in {where}; known: {known}")
    name = str(tree.get("name") or name or Path(where).stem)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name of {where} must be letters, digits and . _ + -, got {name!r}")
    base = leaves(_mapping(tree.get("base") or {}, f"base of {where}"))
    defaults = {"seeds": tree.get("seeds", [base.pop("seed", 0)])}
    defaults |= _mapping(tree.get("defaults") or {}, f"defaults of {where}")
    models = list(_models(tree.get("models") or {}, tree.get("grid") or {}, where))
    entries = tree.get("cells")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"cells in {where} must be a list with at least one cell")
    cells = [_cell(entry, defaults, {one.name for one in models}, where) for entry in entries]
    folder = folder or outputs_root() / name
    table = Path(str(tree.get("table") or folder / "results.csv"))
    table = table if table.is_absolute() else inside(repository(), str(table))
    found = Experiment(name, "" if own else where, table, base, models, cells, folder)
    _check(found, where)
    return found


def _mapping(node: Any, what: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ConfigError(f"{what} must be a mapping, got {node!r}")
    return node


def _models(named: Any, grid: Any, where: str) -> list[Model]:
    """The named models (one without a name, if there is none), each once per point of the grid."""
    models: dict[str, Model] = {}
    for name, entry in _mapping(named, f"models of {where}").items():
        what = f"model {name!r} in {where}"
        entry = _mapping(entry, what)
        if not _NAME.fullmatch(str(name)):
            raise ConfigError(f"{what} needs another name: letters, digits and . _ + - only")
        if entry.get("from", name) not in (name, *models):
            raise ConfigError(f"{what} is from {entry['from']!r}, which no model above it is named")
        own = leaves(_mapping(entry.get("settings") or {}, f"settings of {what}"))
        if odd := {"seed", "profile"} & set(own):
            raise ConfigError(f"{what} sets {min(odd)}, which belongs to the file")
        parent = entry.get("from", "")
        given = {key: value for key, value in entry.items() if key not in ("from", "settings")}
        given |= {"name": name, "parent": parent}
        given["settings"] = (models[parent].settings if parent else {}) | own
        models[name] = _named(what, lambda given=given: from_dict(Model, given))
    axes = [_axis(axis, node, where) for axis, node in _mapping(grid, f"grid of {where}").items()]
    points, found = list(itertools.product(*axes)), []
    for model, chosen in itertools.product(models.values() or [Model("")], points):
        settings = model.settings | {key: value for *_, own in chosen for key, value in own.items()}
        swept = {axis: label for axis, label, _ in chosen}
        found.append(dataclasses.replace(model, settings=settings, swept=swept))
    return found


def _axis(axis: str, node: Any, where: str) -> list[tuple[str, Any, dict[str, Any]]]:
    """(axis, value or label, settings) of one entry of the grid."""
    if isinstance(node, list) and node:
        return [(axis, value, {axis: value}) for value in node]
    if not isinstance(node, dict) or not node:
        raise ConfigError(
            f"{axis} in {where} must be a list with at least one value, or labels with settings, "
            f"got {node!r}"
        )
    if not _NAME.fullmatch(axis) or "." in axis or axis in Cell.__dataclass_fields__:
        raise ConfigError(
            f"{axis} in {where} has labelled choices, so it needs a name that is no setting and no "
            "column of the table"
        )
    return [(axis, label, leaves(_mapping(own, f"{axis} {label}"))) for label, own in node.items()]


def _cell(entry: Any, defaults: dict[str, Any], models: set[str], where: str) -> Cell:
    given = _mapping(entry, f"a cell of {where}")
    kinds = [kind for kind in ("method", *_APART) if kind in given]
    name = str(given.get("name") or given.get("notebooks" if "notebooks" in given else "call", ""))
    name = "notebooks" if "notebooks" in given and "name" not in given else name.split(":")[-1]
    what = f"cell {name!r} in {where}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a cell in {where} needs a name of letters, digits and . _ + -")
    if len(kinds) != 1:
        raise ConfigError(f"{what} needs one of method, notebooks and call")
    known = [*_GENERAL, *(_APART.get(kinds[0], _PLANNER)), kinds[0]]
    for word in (*given, *(word for word in defaults if word not in _PLANNER)):
        if word not in known:
            raise ConfigError(f"unknown key {word!r} in {what}; known: {', '.join(known)}")
    kept = {word: value for word, value in defaults.items() if word in known}
    floor = given.get("method") in FLOORS
    if floor:  # defaults meant for the others: there is nothing to train
        kept.pop("model", None)
        kept.pop("cost", None)
    full = {"group": name, **kept, **given, "name": name}
    cell = _named(what, lambda: from_dict(Cell, full))
    if cell.method and (cell.cost == "none") != floor:
        wanted = "none" if floor else "latent or distance"
        raise ConfigError(f"cost of {what} must be {wanted}, got {cell.cost!r}")
    for key, values in cell.grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{key} in the grid of {what} must be a list, got {values!r}")
    for key in {**cell.planning, **cell.grid}:
        if key in ("cost", "hierarchy.control"):
            raise ConfigError(f"{what} sets planning.{key}; use its own key of the cell instead")
    if cell.call and not _CALL.fullmatch(cell.call):
        raise ConfigError(f"call of {what} must be module:function, got {cell.call!r}")
    if cell.model not in models and (cell.model or (cell.method and not floor)):
        raise ConfigError(f"{what} asks for the unknown model {cell.model!r}")
    return cell


def _check(found: Experiment, where: str) -> None:
    """ConfigError, naming model or cell, unless every unit can be built and has its stages."""
    names = [cell.name for cell in found.cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{where} names the cell {twice[0]!r} twice")
    for model in found.models:
        _named(f"model {model.title!r} in {where}", lambda model=model: found.config(model))
    for cell in found.cells:
        what = f"cell {cell.name!r} in {where}"
        units = _named(what, lambda cell=cell: found.units(cell))
        keys = {tuple(unit.key.items()) for unit in units}
        if len(keys) < len(units) or not units:
            raise ConfigError(f"{what} describes {'the same row twice' if units else 'no row'}")
        for unit in units if cell.method else ():
            stages = _named(what, lambda unit=unit: unit.case).stages
            if "l2" in stages and unit.trained.level2.disable_l2:
                raise ConfigError(f"{what} plans with a level 2 that its model disables")
            if "l3" in stages and not unit.trained.level3.enabled:
                raise ConfigError(f"{what} plans with a level 3: its model needs level3.enabled")


def _named(where: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
