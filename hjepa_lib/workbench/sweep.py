"""A grid of runs, here or on a cluster: `outputs/<study>/<cell>/`, one tidy table, and plots.

A grid file holds `base` (profile and settings), `grid`, `seeds` and `notebooks`. An entry of `grid`
is a dotted setting with a list of values, or a name of your own with labelled choices of several
settings that change together (`horizon: {24: {planning.flat.horizon: 24, ...}, ...}`). Every cell
is one headless run in a process of its own with its share of the cores (engines.py); a cell that
fails is reported and the rest finish. On resume, finished cells are skipped.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas.api.types import is_object_dtype

from hjepa_lib.config import Config, ConfigError, flatten, leaves, profile, read_yaml
from hjepa_lib.figures import style
from hjepa_lib.figures.success import success_against
from hjepa_lib.files import WorkbookError, exclusive, read_json, sha256, write_atomic, write_json
from hjepa_lib.runs import machine
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.places import RunError, outputs_root
from hjepa_lib.runs.remote import push_files
from hjepa_lib.runs.report import FIELDS, check_summary
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import engines
from hjepa_lib.workbench.rows import pooled

_SECTIONS = ("name", "base", "grid", "seeds", "notebooks")
_COLUMNS = ("cell", "profile", "ci95_low", "ci95_high", *FIELDS)
_ORPHAN_SECONDS = 3.0  # a kernel looks once a second whether its parent still lives


class Cell(NamedTuple):
    """One run of a study."""

    name: str  # "<study>/<readable part>-<hash of the settings>"
    config: Config
    swept: dict[str, Any]  # the grid's values or labels, and the seed


@dataclass(frozen=True)
class Study:
    """A checked grid file."""

    name: str
    cells: list[Cell]
    notebooks: str


class _Choice(NamedTuple):
    """One value of one axis of the grid."""

    shown: tuple[str, Any]  # column and entry of the table
    settings: dict[str, Any]


class Outcome(NamedTuple):
    """How one cell ended; `error` is empty when it succeeded."""

    name: str
    error: str


def read_study(path: Path) -> Study:
    """Parse and check a grid file; every cell's config is built, so errors come before any work."""
    tree = read_yaml(path, "grid file")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping with {', '.join(_SECTIONS)}")
    for key in tree:
        if key not in _SECTIONS:
            raise ConfigError(f"unknown section {key!r} in {path}; known: {', '.join(_SECTIONS)}")
    base = _leaves(tree.get("base") or {})
    axes = [_axis(key, values, path) for key, values in (tree.get("grid") or {}).items()]
    seeds = tree.get("seeds", [base.pop("seed", 0)])
    _axis("seeds", seeds, path)
    name = str(tree.get("name") or path.stem)
    cells = []
    for chosen in itertools.product(*axes):
        swept = dict(choice.shown for choice in chosen)
        settings = {key: value for choice in chosen for key, value in choice.settings.items()}
        for seed in seeds:
            config = profile(base.get("profile", "laptop")).override(
                {**base, **settings, "seed": seed}
            )
            cells.append(Cell(_cell_name(name, swept, config), config, {**swept, "seed": seed}))
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} describes the same run twice")
    return Study(name, cells, str(tree.get("notebooks", "01-05")))


def _axis(key: str, values: Any, path: Path) -> list[_Choice]:
    """The choices of one entry of the grid: a list of values, or labels with their settings."""
    if isinstance(values, list) and values:
        return [_Choice((key, value), {key: value}) for value in values]
    if not isinstance(values, dict) or not values:
        raise ConfigError(
            f"{key} in {path} must be a list with at least one value, or labels with settings, "
            f"got {values!r}"
        )
    if "." in key or key in _COLUMNS:
        raise ConfigError(
            f"{key} in {path} has labelled choices, so it needs a name that is no setting and no "
            "column of the table"
        )
    return [_Choice((key, label), _leaves(node)) for label, node in values.items()]


def _leaves(node: Any) -> dict[str, Any]:
    """Dotted leaves of nested sections; keys that are dotted already pass through."""
    if not isinstance(node, dict):
        raise ConfigError(f"base, or a label, must be a mapping of settings, got {node!r}")
    return leaves(node)


def _cell_name(study: str, swept: dict[str, Any], config: Config) -> str:
    parts = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in swept.items()]
    readable = re.sub(r"[^A-Za-z0-9._=+-]+", "_", "-".join([*parts, f"s{config.seed}"]))
    digest = sha256(repr(sorted(flatten(config).items())).encode())[:8]
    return f"{study}/{readable[:60]}-{digest}"


def run_study(
    study: Study,
    *,
    resume: bool = False,
    jobs: int = 1,
    yes: bool = False,
    engine: str = "joblib",
    scheduler: str = "",
    threads: int | None = None,
    say: runner.Say = print,
) -> tuple[Path, list[Outcome]]:
    """Run all cells, `jobs` at a time; returns the CSV's path and one outcome per cell.

    With a Dask `scheduler` its workers decide how many at a time; they must see this outputs folder
    and these notebooks under the same paths. `threads` per cell: the share of the local cores, or
    the worker's own, if empty. RunError when the study exists and `resume` is not set. The tables
    `results.csv` and `results.parquet` hold one row per result of every finished cell.
    """
    engines.check_engine(engine, jobs, scheduler)
    root = outputs_root()
    folder = root / study.name
    if folder.exists() and not resume:
        raise RunError(f"study {study.name!r} exists already; resume it or choose another name")
    notebooks = runner.select_notebooks(study.notebooks)
    todo = [cell for cell in study.cells if not is_finished(root / cell.name, notebooks)]
    done = len(study.cells) - len(todo)
    pace = f"on {scheduler}" if scheduler else f"{jobs} at a time"
    say(f"study {study.name}: {len(study.cells)} cells, {done} done before, {pace}; each:")
    if todo:
        runner.prepare(todo[0].config, notebooks, yes=yes, say=say)  # the notebooks are the same
    if threads is None and not scheduler:
        threads = max(1, machine.usable_cores() // jobs)
    folder.mkdir(parents=True, exist_ok=True)
    work = functools.partial(_run_cell, root=root, notebooks=notebooks, threads=threads)
    outcomes = {}
    for ended in engines.run_all(work, todo, engine=engine, jobs=jobs, scheduler=scheduler):
        outcome = ended.value or Outcome(ended.item.name, ended.error)
        outcomes[outcome.name] = outcome
        say(f"{len(outcomes)}/{len(todo)} {outcome.name}: {outcome.error or 'ok'}")
    ended = [outcomes.get(cell.name, Outcome(cell.name, "")) for cell in study.cells]
    return write_tables(study, root, notebooks, ended), ended


def write_tables(study: Study, root: Path, notebooks: list[Path], ended: list[Outcome]) -> Path:
    """`results.csv`, `results.parquet`, `study.json` and a plot per swept setting; the CSV's path.

    Computed from the finished cells on disk, so whatever ran twice is counted once.
    """
    folder = root / study.name
    finished = [cell for cell in study.cells if is_finished(root / cell.name, notebooks)]
    table = collect_table(root, finished)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomic(folder / "results.parquet", buffer.getvalue())
    failed = [{"cell": outcome.name, "error": outcome.error} for outcome in ended if outcome.error]
    write_json(folder / "study.json", {"name": study.name, "cells": len(ended), "failed": failed})
    swept = [key for key in study.cells[0].swept if key != "seed"]
    write_figures(table, swept, folder)
    path = write_atomic(folder / "results.csv", table.to_csv(index=False))
    push_files(folder)
    return path


def write_figures(table: pd.DataFrame, swept: list[str], folder: Path) -> list[Path]:
    """`success_by_<setting>.png` for every swept setting that took at least two values.

    Seeds are pooled, small dots are the single seeds. What else was swept, and the protocol and
    dynamics of the trials, get panels of their own, so nothing is averaged over settings.
    """
    paths = []
    for key in swept:
        if not len(table) or table[key].nunique() < 2:
            continue
        others = [name for name in swept if name != key and table[name].nunique(dropna=False) > 1]
        groups, singles = {}, {}
        for values, part in table.groupby([*others, "protocol", "dynamics"], sort=False):
            words = [f"{_short(name)} {at}" for name, at in zip(others, values, strict=False)]
            panel = ", ".join([*words, *values[-2:]])
            groups[panel] = pooled(part, ["method", "cost", key])
            singles[panel] = part.assign(rate=part["successes"] / part["n"])
        seeds = table["seed"].nunique()
        title = f"Success by {_short(key)}, {seeds} seed{'s' * (seeds > 1)}"
        several = singles if seeds > 1 else None
        figure = success_against(groups, key, _short(key), singles=several, title=title)
        name = re.sub(r"[^A-Za-z0-9]+", "_", key.rsplit(".", 1)[-1])
        paths.append(style.save(figure, folder / f"success_by_{name}.png"))
    return paths


def _short(key: str) -> str:
    return key.removeprefix("planning.").removeprefix("data.").replace("_", " ")


def _run_cell(cell: Cell, root: Path, notebooks: list[Path], threads: int | None) -> Outcome:
    """Run one cell in this process; every error becomes text, so that the other cells go on."""
    path = root / cell.name
    try:
        if not path.parent.is_dir() or not all(notebook.is_file() for notebook in notebooks):
            raise RunError(f"this worker does not see {path.parent} and {notebooks[0].parent}")
        with exclusive(path):
            _go_on(cell, root, notebooks, threads)
    except Exception as error:
        return Outcome(
            cell.name, str(error).splitlines()[0] if str(error) else type(error).__name__
        )
    return Outcome(cell.name, "")


def _go_on(cell: Cell, root: Path, notebooks: list[Path], threads: int | None) -> None:
    """Start the cell, or resume what another process left; nothing when that one finished it."""
    path = root / cell.name
    if is_finished(path, notebooks):
        return
    if Run.exists(cell.name, root):
        if any((path / "notebooks").glob("*.running.ipynb")):
            time.sleep(_ORPHAN_SECONDS)  # a killed process leaves its kernel behind for a moment
        run = Run.open(cell.name, root)
        run.require(cell.config)
    else:
        run = Run.create(cell.name, cell.config, root)
    runner.run_notebooks(run, notebooks, resume=True, threads=threads, say=_quiet)
    runner.finish(run, say=_quiet)


def _quiet(*_: Any, **__: Any) -> None:
    """A `print` that says nothing: lines of parallel cells would mix."""


def is_finished(path: Path, notebooks: list[Path]) -> bool:
    """True when all notebooks of the cell ended well and its summary follows the schema."""
    try:
        check_summary(read_json(path / "summary.json"))
        done = Run.at(path).manifest["notebooks"]
    except WorkbookError:
        return False
    return all(done.get(notebook.stem, {}).get("ok") for notebook in notebooks)


def collect_table(root: Path, cells: list[Cell]) -> pd.DataFrame:
    """One row per result of `cells`: cell, profile, swept settings, then every result field."""
    rows = []
    for cell in cells:
        for result in read_json(root / cell.name / "summary.json")["results"]:
            low, high = result.pop("ci95")
            row = {"cell": cell.name.split("/")[-1], "profile": cell.config.profile}
            row |= {key: _scalar(value) for key, value in cell.swept.items()}
            flat = {key: _scalar(value) for key, value in leaves(result).items()}
            rows.append(row | {"ci95_low": low, "ci95_high": high} | flat)
    table = pd.DataFrame(rows, columns=None if rows else _COLUMNS)
    for name in filter(lambda name: is_object_dtype(table[name]), table.columns):
        # One column of a Parquet file has one type; planners of different kinds share columns.
        if table[name].map(type).nunique() > 1:
            table[name] = table[name].map(lambda value: None if value is None else str(value))
    return table


def _scalar(value: Any) -> Any:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else value
