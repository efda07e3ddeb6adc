"""A study: trainings and evaluations named by a grid file, one committed row per result.

Rows go to one CSV as they finish, and the settings of every training beside it, so a study can be
interrupted at any time and resumes from the committed table on any machine. A stored row is taken
only if everything that shaped it is what the grid asks for now; otherwise the study stops and names
the difference. Trainings are ordinary runs in `outputs/<study>/<recipe>-s<seed>`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, NamedTuple

from joblib.externals.loky import ProcessPoolExecutor

from hjepa_lib.config import Config, PlanningConfig, differences, leaves, to_dict
from hjepa_lib.evaluation.results import Case
from hjepa_lib.planning.agent import Agent, load_agent
from hjepa_lib.runs import machine, stages
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs.places import RunError, outputs_root, repository
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.workbench.rows import row_of
from hjepa_lib.workbench.studyfile import Grid
from hjepa_lib.workbench.studyrow import STAGES, Cell, Row, agreeing_stages, sections_of
from hjepa_lib.workbench.studytable import KEY, Table, digest

Say = Callable[..., None]


def run_study(
    grid: Grid, cells: list[Cell], *, jobs: int = 1, redo: bool = False, say: Say = print
) -> int:
    """Make every missing row; returns the number of rows that failed.

    RunError before any work when a stored row was made with other settings and `redo` is not set.
    `redo` also drops rows of these cells that the grid file does not ask for any more. With `jobs`
    above 1, seeds run in processes of their own; only this process writes the table.
    """
    if jobs < 1:
        raise RunError(f"jobs must be at least 1, got {jobs}")
    table = Table(grid.table)
    rows = [row for cell in cells for row in grid.rows(cell)]
    for row in rows:
        if (found := table.mismatch(row)) and not redo:
            raise RunError(
                f"row {row.key} of {table.path} was made with {found}; "
                "give the cell another name, or replace the row with --redo"
            )
    if redo and (dropped := _drop_others(grid, table, {cell.name for cell in cells})):
        say(f"study {grid.name}: {dropped} rows dropped that the grid does not ask for", flush=True)
    todo = [row for row in rows if not table.has(row)]
    say(f"study {grid.name}: {len(rows)} rows, {len(rows) - len(todo)} done before", flush=True)
    origin = {"revision": machine.revision(repository())}
    failed, done = 0, len(rows) - len(todo)
    for row, found, error in _results(grid, todo, jobs, say):
        name = " ".join(filter(None, row.key))
        if error:
            failed += 1
            say(f"failed: {name}: {error}", file=sys.stderr, flush=True)
            continue
        table.add({**found, **origin}, row.training())
        done += 1
        rate, minutes = found["success_rate"], found["minutes"]
        say(
            f"{done}/{len(rows)} {name}: {100 * rate:.1f} % of {found['n']}, {minutes:.1f} min",
            flush=True,
        )
    return failed


def _drop_others(grid: Grid, table: Table, names: set[str]) -> int:
    """Drop rows of these cells that the grid file has no place for, of whatever seed was asked."""
    whole = [cell for cell in grid.cells if cell.name in names]
    return table.drop_others(names, {row.key for cell in whole for row in grid.rows(cell)})


class Done(NamedTuple):
    """How one row ended; `error` is empty when it succeeded."""

    row: Row
    found: dict[str, Any]
    error: str


def _results(grid: Grid, todo: list[Row], jobs: int, say: Say) -> Iterator[Done]:
    """Rows as they finish. One row of a seed at a time, so that no training is made twice; after a
    failure the other rows of that recipe and seed are given up."""
    lost: set[tuple[str, int]] = set()

    def after(done: Done) -> Done:
        if done.error:
            lost.add((done.row.cell.recipe, done.row.seed))
        return done

    def given_up(row: Row) -> bool:
        return (row.cell.recipe, row.seed) in lost

    if jobs == 1:
        machine.set_up()
        for row in todo:
            yield Done(row, {}, "given up") if given_up(row) else after(_work(grid, row, say))
        return
    waiting, running = list(todo), {}
    threads = max(1, machine.usable_cores() // jobs)
    pool = ProcessPoolExecutor(jobs, initializer=machine.set_up, initargs=(threads,))
    try:
        while waiting or running:
            busy = {row.seed for row in running.values()}
            for row in list(waiting):
                if len(running) == jobs:
                    break
                if given_up(row):
                    waiting.remove(row)
                    yield Done(row, {}, "given up")
                elif row.seed not in busy:
                    waiting.remove(row)
                    busy.add(row.seed)
                    running[pool.submit(_work, grid, row, print)] = row
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                running.pop(future)
                yield after(future.result())
    finally:
        pool.shutdown(wait=bool(not running), kill_workers=bool(running))


def _work(grid: Grid, row: Row, say: Say) -> Done:
    """Train what is missing, evaluate, build the row; every error becomes text."""
    try:
        return Done(row, make_row(grid, row, say), "")
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()
        return Done(row, {}, (str(error) or type(error).__name__).splitlines()[0])


def make_row(grid: Grid, row: Row, say: Say = print) -> dict[str, Any]:
    """One finished row of the table, without its revision."""
    cell = row.cell
    ws = trained_workspace(grid, cell.recipe, row.seed, row.stages, say)
    ws.config = row.config  # planning and trials are the cell's, not the run's
    folder = f"study/{cell.name}"
    result = scoring.play(ws, _agent(ws, row), row.case, folder, pictures=False)
    played = ws.run.manifest["stages"][f"{folder}/{row.case.name}"]
    about = {"cell": cell.name, "group": cell.group, "recipe": cell.recipe}
    found = row_of(result, **about, control=cell.control)
    found |= dict(zip(KEY, row.key, strict=True))
    for stage, section in (("l2", "level2"), ("l3", "level3")):
        if stage in row.stages:
            found |= leaves(to_dict(getattr(row.config, section)), f"{section}.")
    versions = machine.versions()
    return found | {
        "training": digest(row.training()),
        "command": f"python -m hjepa_lib study {grid.path} --only {cell.name}",
        "processor": versions.get("gpu", versions["processor"]),
        "cores": versions["cores"],
        "precision": ws.precision,
        "minutes": round(played["seconds"] / 60, 3),
    }


def play(
    ws: Workspace,
    agent: Agent | None,
    cell: str,
    method: str,
    cost: str = "none",
    *,
    split: str,
    trials: int,
    planning: PlanningConfig | None = None,
    budget: float = 1.0,
    **about: Any,
) -> dict[str, Any]:
    """One planner on stored trials in the run of a notebook, as a row like those of a study.

    It is a stage of the run in `study/<cell>`, so it is played once. `about` are further columns,
    such as the swept value.
    """
    case = Case.of(
        ws.config, method, cost, planning=planning, budget=budget, split=split, trials=trials
    )
    result = scoring.play(ws, agent, case, f"study/{cell}", pictures=False)
    return row_of(result, cell=cell, group=cell, recipe="", grid="") | about


def _agent(ws: Workspace, row: Row) -> Agent | None:
    """The models that the row plans with, from this run alone; None for floors and ceiling."""
    if not row.stages:
        return None
    path = ws.run.path
    l2, l3 = (path / stage if stage in row.stages else None for stage in ("l2", "l3"))
    return load_agent(path / "l1", l2, row.planning, row.seed, ws.precision, ws.device, l3)


def trained_workspace(
    grid: Grid, recipe: str, seed: int, wanted: tuple[str, ...], say: Say = print
) -> Workspace:
    """The run of a recipe and seed with the stages `wanted` finished: taken over or trained."""
    config = grid.config(recipe, seed)
    parent = grid.recipes[recipe].parent if recipe else ""
    source = None
    shared: tuple[str, ...] = ()
    if parent:
        shared = agreeing_stages(config, grid.config(parent, seed), wanted)
        source = trained_workspace(grid, parent, seed, shared, say).run
    run = _open_run(grid, recipe, seed, config, wanted, source)
    for stage in shared:
        run.adopt(source, stage)
    ws = Workspace("study", run)
    for stage in (stage for stage in STAGES if stage in wanted and stage not in shared):
        if not run.done(stage):
            _train(ws, stage, say)
    return ws


def _train(ws: Workspace, stage: str, say: Say) -> None:
    if stage == "data":
        stages.make_data(ws)
        return
    for report in stages.train(ws, stage):
        if report.validation:
            at = f"update {report.update} of {report.updates}, loss {report.loss:.4f}"
            say(f"  {ws.run.name} {stage}: {at}", flush=True)


def _open_run(
    grid: Grid, recipe: str, seed: int, config: Config, wanted: tuple[str, ...], source: Run | None
) -> Run:
    """The recipe's run; RunError when other settings shape its stages `wanted`."""
    root, name = outputs_root() / grid.name, grid.run_name(recipe, seed)
    if not Run.exists(name, root):
        return Run.create(name, config, root, source)
    run = Run.open(name, root)
    shaping = sections_of(wanted, config)
    for key, (stored, asked) in differences(run.config, config).items():
        if key.split(".")[0] in shaping:
            raise RunError(
                f"{run.path} was made with {key}={stored!r}, not {asked!r}; "
                "give the recipe another name"
            )
    return run
