"""Flat against hierarchical planning: an experiment of two models, one table (seed 000, section D).

The flat side (l1) trains level 1 and its distance head, the hierarchical one (l2) level 2 on the
same or, with `l2_from_scratch`, on a level 1 of its own. Both plan with the same cost on the same
trials of protocol P1, with random and oracle beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from hjepa_lib.config import Config, ConfigError, differences, leaves, load_yaml, read_yaml
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.results import Result, load_result
from hjepa_lib.evaluation.statistics import mcnemar
from hjepa_lib.files import write_atomic
from hjepa_lib.runs import machine
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.places import RunError, outputs_root
from hjepa_lib.runs.remote import push_file
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import CONFIGS
from hjepa_lib.workbench.engine import run_experiment
from hjepa_lib.workbench.experiment import Experiment
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.workbench.variants import with_epochs

CSV = "tworooms_compare.csv"
METHODS = {"l1": "flat", "l2": "l1+l2"}
FLOORS = ("random", "oracle")
SHARED = ("device", "precision", "data", "distance", "planning.cost", "evaluation")
"""Settings in which both sides must agree; so must `level1` when l2 takes over l1's."""
Say = Callable[..., None]


def compare(
    config_l1: Path | None = None,
    config_l2: Path | None = None,
    output_root: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    mode: str = "both",
    l2_from_scratch: bool = False,
    say: Say = print,
) -> int:
    """Train and evaluate the sides of `mode` (l1, l2, both), print and write the table; returns 0.

    Without a file a side has the shipped one. Runs and `tworooms_compare.csv` go to `output_root`
    (default `<outputs>/compare-s<seed>`). `epochs` replaces the updates of both levels by that many
    passes over their training windows; the distance head, part of the cost, keeps its own.
    """
    machine.set_up()
    folder = Path(output_root or outputs_root() / f"compare-s{seed}").expanduser().resolve()
    given = {"l1": config_l1, "l2": config_l2}
    sides = [side for side in METHODS if mode in (side, "both") or given[side]]
    paths = {side: given[side] or CONFIGS / f"tworooms_{side}.yaml" for side in sides}
    configs = {side: load_yaml(path).override({"seed": seed}) for side, path in paths.items()}
    check(configs, l2_from_scratch)
    models = {}
    for side, path in paths.items():
        settings = leaves(read_yaml(path, "config file") or {})
        settings.pop("profile", None)
        settings.pop("seed", None)
        more = {} if epochs is None else with_epochs(configs[side], epochs, folder)
        name = "l2-scratch" if side == "l2" and l2_from_scratch else side
        models[name] = {"settings": settings | more}
    tree = {
        "base": {"profile": next(iter(configs.values())).profile},
        "seeds": [seed],
        "models": models,
        "cells": [
            cell
            for (side, config), model in zip(configs.items(), models, strict=True)
            for cell in _cells(side, model, config)
            if mode in (side, "both")
        ],
    }
    experiment = read_experiment(tree, f"compare-s{seed}", folder)
    failed = [one for one in run_experiment(experiment, say=say) if one.error]
    if failed:
        raise RunError(f"{failed[0].unit.cell.name}: {failed[0].error}")
    for name in {unit.run_name for cell in experiment.cells for unit in experiment.units(cell)}:
        runner.finish(Run.at(folder / name), say)
    report(experiment, say)
    return 0


def _cells(side: str, model: str, config: Config) -> Iterator[dict[str, Any]]:
    """The side's planner with its floor and its ceiling."""
    evaluation = config.evaluation
    shared = {name: getattr(evaluation, name) for name in ("protocol", "split", "trials", "steps")}
    shared |= {"model": model, "folder": "results", "latency": evaluation.latency}
    for method in FLOORS:
        yield shared | {"name": f"{side}-{method}", "method": method}
    yield shared | {"name": side, "method": METHODS[side], "cost": config.planning.cost}


def check(configs: dict[str, Config], l2_from_scratch: bool) -> None:
    """ConfigError unless the configs of l1, l2 or both describe one fair comparison on P1."""
    for side, config in configs.items():
        protocol = config.evaluation.protocol
        if protocol != "p1":
            raise ConfigError(
                f"config_{side} sets evaluation.protocol={protocol}; the comparison is one on p1"
            )
    l1, l2 = configs.get("l1"), configs.get("l2")
    if l1 and l1.level2.train == "joint" and not l1.level2.disable_l2:
        raise ConfigError("config_l1 trains level 2 jointly; set level2.disable_l2=true there")
    if l2 and l2.level2.disable_l2:
        raise ConfigError("config_l2 sets level2.disable_l2=true, so it has no level 2 to compare")
    if l2 and l2.level2.train == "joint" and not l2_from_scratch:
        raise ConfigError(
            "config_l2 sets level2.train=joint, which trains a level 1 of its own; "
            "add --l2_from_scratch or set level2.train=frozen"
        )
    shared = ("profile", *SHARED) if l2_from_scratch else ("profile", *SHARED, "level1")
    for key, (one, two) in differences(l1, l2).items() if l1 and l2 else ():
        if key in shared or key.startswith(tuple(f"{name}." for name in shared)):
            raise ConfigError(
                f"config_l1 and config_l2 must agree on {key}, they have {one!r} and {two!r}"
            )


# --- table ------------------------------------------------------------------------------------
def table(run_path: Path, cost: str | None = None) -> pd.DataFrame:
    """Columns metric, l1 (flat), l2 (L1+L2) of one run folder; cost: default the config's own.

    Undefined values are NaN. RunError when one of the two results is missing.
    """
    run = Run.at(Path(run_path))
    cost = cost or run.config.planning.cost
    found = {}
    for side, method in METHODS.items():
        found[side] = find_result(run, Case.of(run.config, method, cost))
        if found[side] is None:
            raise RunError(
                f"run {run.name!r} has no result of method {method!r} with cost {cost!r} "
                f"on {run.config.evaluation.protocol}; evaluate it first (notebook 04)"
            )
    return side_by_side(found)


def find_result(run: Run, case: Case) -> Result | None:
    """The result of a case, or None when it was not played in this run."""
    stage = f"results/{case.name}"
    return load_result(run.path / f"{stage}.npz") if run.done(stage) else None


def side_by_side(results: dict[str, Result | None]) -> pd.DataFrame:
    """One line per number of the sides' results, then the exact McNemar test; NaN for no side."""
    columns = {side: numbers(results.get(side)) for side in METHODS}
    one, two = (results.get(side) for side in METHODS)
    if one is not None and two is not None:
        for what in ("trials_hash", "data", "n"):
            if one.header[what] != two.header[what]:
                raise RunError(
                    f"the two results differ in {what}: {one.header[what]} and {two.header[what]}"
                )
        test = mcnemar(one.success, two.success)
        columns["l1"] |= {"solved_only_here": test.only_first, "mcnemar_p": test.p_value}
        columns["l2"] |= {"solved_only_here": test.only_second, "mcnemar_p": test.p_value}
    frame = pd.DataFrame(columns, index=list(columns["l1"] or columns["l2"]), dtype=float)
    return frame.rename_axis("metric").reset_index()


def numbers(result: Result | None) -> dict[str, float | None]:
    """Every measured number of a result; {} for no result."""
    row, found = {} if result is None else result.row, {}
    for name, value in row.items():
        if name == "ci95":
            found |= dict(zip(("ci95_low", "ci95_high"), value, strict=True))
        elif name not in ("budget", "seed") and (value is None or isinstance(value, (int, float))):
            found[name] = value
    return found


def report(experiment: Experiment, say: Say) -> None:
    """Print l1 and l2 with floor and ceiling, and write the CSV."""
    found = {}
    for cell in experiment.cells:
        (unit,) = experiment.units(cell)
        run = Run.at(experiment.folder / unit.run_name)
        found.setdefault(cell.name.removeprefix("l1-").removeprefix("l2-"), (run, unit.case))
    results = {name: find_result(*where) for name, where in found.items()}
    frame = side_by_side(results)
    text = frame.set_index("metric")
    for method in FLOORS:
        text[method] = pd.Series(numbers(results[method]), dtype=float)
    say(text.to_string(float_format=lambda value: f"{value:.4g}", na_rep=""))
    for side, method in METHODS.items():
        result = results.get(side)
        if result is None:
            say(f"{side} has no result yet: run with --mode {side}")
            continue
        row = text[side]
        say(
            f"{side} ({method}, cost {result.header['cost']}): {row['successes']:.0f} of "
            f"{row['n']:.0f} solved, rate {row['success_rate']:.3f}, Wilson 95 % "
            f"[{row['ci95_low']:.3f}, {row['ci95_high']:.3f}]"
        )
    if "mcnemar_p" in text.index:
        only, spent = text.loc["solved_only_here"], text.loc["flops_per_step"] / 1e6
        say(
            f"solved by l1 only: {only['l1']:.0f}, by l2 only: {only['l2']:.0f}; exact McNemar p = "
            f"{text.loc['mcnemar_p', 'l1']:.3g}; {spent['l1']:.0f} MFLOP per step for l1, "
            f"{spent['l2']:.0f} for l2"
        )
    path = write_atomic(experiment.folder / CSV, frame.to_csv(index=False))
    say(f"table: {push_file(path)}")
