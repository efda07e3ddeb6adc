"""The engine: what an experiment file asks for and its table lacks is trained, played and added.

Every model and seed is an ordinary run, `outputs/<experiment>/<model>-s<seed>-<digest>`. The same
command goes on wherever another one ended.
"""

import functools
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from hjepa_lib.figures import style
from hjepa_lib.figures.success import success_against
from hjepa_lib.files import WorkbookError, exclusive, first_line, write_atomic
from hjepa_lib.runs import machine, notebooks, report, score, stages
from hjepa_lib.runs.places import RunError, repository
from hjepa_lib.runs.remote import push_files
from hjepa_lib.runs.workspace import Workspace, open_run
from hjepa_lib.workbench.experiment import Experiment, Unit
from hjepa_lib.workbench.pool import HERE, Ended, Work, run_all
from hjepa_lib.workbench.rows import pooled, row_of
from hjepa_lib.workbench.table import Table

_say = functools.partial(print, flush=True)
_ORPHAN_SECONDS = 3.0  # a kernel looks once a second whether its parent still lives


def run_experiment(
    experiment: Experiment,
    units: list[Unit] | None = None,
    work: Work = HERE,
    say: Callable[..., None] = _say,
) -> list[Ended]:
    """Do every unit that the table lacks, and write plots of what was swept; how units ended.

    RunError before any work when a stored row was made with other settings, unless `work.redo`.
    """
    work.check()
    table, folder = Table(experiment.table, experiment.profile), experiment.folder
    units = experiment.units if units is None else units
    todo = []
    for unit in units:
        found = table.mismatch(unit)
        if found and not work.redo:
            # compare, which has no file, has no --redo either
            instead = ", or replace the row with --redo" * bool(experiment.path)
            raise RunError(
                f"row {unit.title} of {table.path} was made with {found}; choose another name or "
                f"folder{instead}"
            )
        todo += [] if found == "" else [unit]
    say(f"{experiment.name}: {len(units)} rows, {len(units) - len(todo)} done before")
    _prepare(experiment, todo, work.yes)
    folder.mkdir(parents=True, exist_ok=True)
    if work.engine == "joblib" and work.jobs == 1:
        outcomes = do_units(experiment, work.threads, todo)
    else:
        outcomes = _side_by_side(experiment, work, todo)
    ended: list[Ended] = []
    for one in outcomes:
        ended.append(one)
        unit, _, error = one
        told, to = error or "ok", {"file": sys.stderr} if error else {}
        if unit.case and not error:
            table.reload()
            (row,) = table.of(unit)
            told = f"{100 * float(row['success_rate']):.1f} % of {row['n']}, {row['minutes']} min"
        say(f"{len(ended)}/{len(todo)} {unit.title}: {told}", **to)
    if table.path.is_file() and table.path.parent == folder:
        swept = dict.fromkeys(name for unit in units for name in unit.model.swept)
        write_figures(table.path, list(swept))
    push_files(folder)
    return ended


def _prepare(experiment: Experiment, todo: list[Unit], yes: bool) -> None:
    """What is refused before any work."""
    if todo:  # all of one profile, all notebooks the same
        names = next((one.cell.notebooks for one in todo if one.cell.notebooks), "")
        paths = notebooks.select_notebooks(names) if names else []
        notebooks.prepare(todo[0].trained, paths, yes)
    table, root = experiment.table, repository()
    committed = table.parent != experiment.folder and table.is_relative_to(root)
    if todo and committed and machine.revision(root).endswith("-dirty"):  # I10
        raise RunError(f"{table} is committed, and so must be the code that its rows name: commit")


def _side_by_side(experiment: Experiment, work: Work, todo: list[Unit]) -> Iterator[Ended]:
    """All units of one family of models and one seed in one process: none is trained twice."""
    threads = work.threads or (None if work.scheduler else work.share)
    families: dict[tuple, list[Unit]] = {}
    for unit in todo:
        family = (unit.model.root, str(unit.model.swept), unit.seed)
        families.setdefault(family, []).append(unit)
    do = functools.partial(_do_all, replace(experiment, units=[]), threads)
    for one in run_all(do, list(families.values()), work):
        yield from one.value or [Ended(unit, None, one.error) for unit in one.item]


def _do_all(experiment: Experiment, threads: int | None, units: list[Unit]) -> list[Ended]:
    return list(do_units(experiment, threads, units))


def do_units(experiment: Experiment, threads: int | None, units: list[Unit]) -> Iterator[Ended]:
    """Units one after the other; after a failure the others of that run are given up."""
    if not experiment.folder.is_dir():
        why = f"this worker does not see {experiment.folder}"
        yield from (Ended(one, None, why) for one in units)
        return
    machine.set_up(threads)
    lost = set()
    for unit in units:
        error = "given up" if unit.run_name in lost else _do(experiment, threads, unit)
        lost |= {unit.run_name} if error else set()
        yield Ended(unit, None, error)


def _do(experiment: Experiment, threads: int | None, unit: Unit) -> str:
    """Why the unit failed, or ""; the others go on. A bug shows its trace as well."""
    try:
        with exclusive(experiment.folder / unit.run_name):
            table = Table(experiment.table, experiment.profile)
            if not table.has(unit):  # another worker may have finished it
                table.add(unit, make_rows(experiment, unit, threads))
    except Exception as error:
        if not isinstance(error, (WorkbookError, OSError)):
            traceback.print_exc()
        return first_line(error)
    return ""


# --- one unit
def make_rows(
    experiment: Experiment, unit: Unit, threads: int | None = None
) -> list[dict[str, Any]]:
    """Train what is missing and do the unit: its rows, without the columns of its key."""
    folder, cell = experiment.folder, unit.cell
    ws = open_run(f"{folder.name}/{unit.run_name}", unit.trained, folder.parent)
    if unit.case:
        found = [_planned(ws, unit)]
    elif cell.call:
        found = cell.function(ws, dict(cell.settings))
    else:
        found = _executed(ws, unit, threads)
    versions = machine.versions()
    about = {"group": cell.group, "profile": unit.config.profile, **unit.model.swept}
    about |= unit.identity() | {"revision": machine.revision(repository())}
    file = experiment.path and f"python -m hjepa_lib experiment {experiment.path}"
    more = {
        "command": f"{file} --only {cell.name}" if file else "python -m hjepa_lib compare",
        "processor": versions.get("gpu", versions["processor"]),
        "cores": versions["cores"],
        "precision": ws.precision,
    }
    return [about | one | more for one in found or [{}]]


def _planned(ws: Workspace, unit: Unit) -> dict[str, Any]:
    case, cell = unit.case, unit.cell
    ws.config = unit.config  # planning and trials are the cell's, not the run's
    agent = stages.load_trained(ws, case.stages) if case.learned else None
    folder = cell.folder or f"study/{cell.name}"
    result = score.play(ws, agent, case, folder, latency=cell.latency)
    entry = ws.run.manifest["stages"][f"{folder}/{case.name}"]
    control = unit.config.planning.hierarchy.control
    row = row_of(result, control=control, minutes=round(entry["seconds"] / 60, 3))
    return row | {"revision": entry["revision"]}


def _executed(ws: Workspace, unit: Unit, threads: int | None) -> list[dict[str, Any]]:
    """Execute the notebooks in the run, and take its results."""
    run, paths = ws.run, notebooks.select_notebooks(unit.cell.notebooks)
    if any((run.path / "notebooks").glob("*.running.ipynb")):
        time.sleep(_ORPHAN_SECONDS)  # a killed process leaves its kernel behind for a moment

    def quiet(*_: Any, **__: Any) -> None:
        pass

    notebooks.run_notebooks(run, paths, resume=True, threads=threads, say=quiet)
    notebooks.finish(run, say=quiet)
    played = {name.rsplit("__", 1)[-1]: one for name, one in run.manifest["stages"].items()}
    return [
        row_of(one, revision=played.get(one.header.get("case"), run.manifest)["revision"])
        for one in report.played(run)
    ]


# --- figures
def write_figures(path: Path, swept: list[str]) -> None:
    """`success_by_<setting>.png` beside the table, of every swept setting with two values or more;
    all else that tells rows apart gets panels."""
    types = {"solved": str}  # digits alone are no number
    table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""], low_memory=False)
    if "solved" not in table:
        return
    table = table.dropna(subset="solved").astype({"n": int})
    seeds = table["seed"].nunique()
    varied = [name for name in swept if table[name].nunique(dropna=False) > 1]
    # A swept model is called by its values too: without them its name is that of all.
    table["model"] = table["model"].astype(str).str.replace(r"-?\w+=.*", "", regex=True)
    lines = table.groupby(["method", "cost", *varied], dropna=False)
    apart = ("model", "cell", "split", "budget", "grid")
    apart = [one for one in apart if one in table and lines[one].nunique(dropna=False).max() > 1]
    for key in (name for name in varied if table[name].nunique() > 1):
        others, groups = [name for name in (*varied, *apart) if name != key], {}
        by = [*others, "protocol", "dynamics"]
        for values, part in table.groupby(by, sort=False, dropna=False):
            pairs = zip(others, values, strict=False)
            words = [f"{_short(name)} {at}" for name, at in pairs if pd.notna(at)]
            panel = ", ".join([*words, *values[-2:]])
            groups[panel] = pooled(part, ["method", "cost", key])
        title = f"Success by {_short(key)}, {seeds} seed{'s' * (seeds > 1)}"
        figure = success_against(groups, key, _short(key), title=title)
        name = re.sub(r"[^A-Za-z0-9]+", "_", key.rsplit(".", 1)[-1])
        write_atomic(path.with_name(f"success_by_{name}.png"), style.png(figure))


def _short(key: str) -> str:
    return key.removeprefix("planning.").removeprefix("data.").replace("_", " ")
