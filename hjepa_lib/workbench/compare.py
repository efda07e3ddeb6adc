"""Flat against hierarchical planning: an experiment of two models, one table (seed 000, section D).

The flat side (l1) trains level 1 and its distance head, the hierarchical one (l2) level 2 on it;
random and oracle stand beside them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from hjepa_lib.config import Config, ConfigError, differences, leaves, load_yaml, read_yaml
from hjepa_lib.evaluation.results import Result, load_result
from hjepa_lib.files import write_atomic
from hjepa_lib.runs import machine, notebooks, score
from hjepa_lib.runs.keys import core_stages, is_joint
from hjepa_lib.runs.places import RunError, outputs_root
from hjepa_lib.runs.remote import push_file
from hjepa_lib.runs.report import verdict
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.workbench import CONFIGS
from hjepa_lib.workbench.engine import run_experiment
from hjepa_lib.workbench.rows import flat_row
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.workbench.variants import with_epochs

if TYPE_CHECKING:
    from hjepa_lib.workbench.command import CompareCommand

CSV = "tworooms_compare.csv"
METHODS = {"l1": "flat", "l2": "l1+l2"}
SHARED = ("profile", "device", "precision", "planning.cost", "evaluation")
"""Settings in which both sides must agree; so must what shapes the trainings that they share."""


def compare(asked: "CompareCommand", say: Callable[..., None] = print) -> int:
    """Train and evaluate the sides `asked` for, print and write the table; returns 0.

    First comes the verdict on the pair that was tuned alike (Q5).
    """
    machine.set_up()
    seed, name = asked.seed, f"compare-s{asked.seed}"
    folder = Path(asked.output_root or outputs_root() / name).expanduser().resolve()
    given = {"l1": asked.config_l1, "l2": asked.config_l2}
    sides = [side for side in METHODS if asked.mode in (side, "both") or given[side]]
    paths = {side: given[side] or CONFIGS / f"tworooms_{side}.yaml" for side in sides}
    configs = {side: load_yaml(path).override({"seed": seed}) for side, path in paths.items()}
    check(configs, asked.l2_from_scratch)
    models, cells = {}, []
    for side, config in configs.items():
        settings = leaves(read_yaml(paths[side], "config file") or {})
        settings = {key: one for key, one in settings.items() if key not in ("profile", "seed")}
        settings |= {} if asked.epochs is None else with_epochs(config, asked.epochs)
        model = "l2-scratch" if side == "l2" and asked.l2_from_scratch else side
        models[model] = {"settings": settings}
        if asked.mode in (side, "both"):
            asks = config.evaluation
            shared = {"split": asks.split, "trials": asks.trials, "latency": asks.latency}
            shared |= {"model": model, "folder": "results"}
            floors = [{"name": f"{side}-{one}", "method": one} for one in ("random", "oracle")]
            planner = {"name": side, "method": METHODS[side], "cost": config.planning.cost}
            cells += [shared | cell for cell in (*floors, planner)]
    tree = {"base": {"profile": config.profile}, "seeds": [seed], "models": models, "cells": cells}
    experiment = read_experiment(tree, name, folder)
    for one in run_experiment(experiment, say=say):
        if one.error:
            raise RunError(f"{one.item.cell.name}: {one.error}")
    runs, results = {}, {}
    for unit in experiment.units:
        run = runs[unit.cell.method] = Run.at(folder / unit.run_name)
        results[unit.cell.method] = load_result(run.path / f"results/{unit.case.name}.npz")
    if set(METHODS.values()) <= set(runs):
        # Level 2 from scratch stands on another level 1 than flat does.
        pair = [] if asked.l2_from_scratch else score.tuned_pair(runs["l1+l2"].config)
        tuned = [
            score.find_results(Workspace("compare", runs[case.method]), [case], "tuned")[0]
            for case in pair
        ]
        if tuned:
            say(verdict("flat as validation trials chose it", *tuned))
        say(verdict("as configured", *(results[method] for method in METHODS.values())))
    for run in {run.name: run for run in runs.values()}.values():
        notebooks.finish(run, say)
    table = side_by_side(results)
    say(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    for side, method in METHODS.items():
        if method not in results:
            say(f"{side} has no result yet: run with --mode {side}")
    table = table.reindex(columns=["metric", *METHODS])
    say(f"table: {push_file(write_atomic(folder / CSV, table.to_csv(index=False)))}")
    return 0


def check(configs: dict[str, Config], l2_from_scratch: bool) -> None:
    """ConfigError unless the configs of l1, l2 or both describe one fair comparison on P1."""
    for side, config in configs.items():
        second, joint, problem = side == "l2", is_joint(config), ""
        if config.evaluation.protocol != "p1":
            problem = "evaluation.protocol: the comparison is on p1"
        elif second and config.level2.disable_l2:
            problem = "level2.disable_l2=true: there is nothing to compare"
        elif joint and not second:
            problem = "level2.train=joint: set level2.disable_l2=true there"
        elif joint and not l2_from_scratch:
            problem = "level2.train=joint: add --l2_from_scratch or set level2.train=frozen"
        if problem:
            raise ConfigError(f"config_{side} sets {problem}")
    trained = ("data", "distance") if l2_from_scratch else ("data", "l1", "distance")
    stages = core_stages(next(iter(configs.values())))
    shared = (*SHARED, *(one for name in trained for one in stages[name].settings))
    for key, (one, two) in differences(*configs.values()).items() if len(configs) == 2 else ():
        if f"{key}.".startswith(tuple(f"{name}." for name in shared)):
            raise ConfigError(
                f"config_l1 and config_l2 must agree on {key}, they have {one!r} and {two!r}"
            )


def side_by_side(results: dict[str, Result]) -> pd.DataFrame:
    """Results by method as a line per number: metric, l1 (flat), l2 (L1+L2), floors by their names;
    ci95_low and ci95_high are Wilson's."""
    sides = {method: side for side, method in METHODS.items()}
    columns = {
        sides.get(method, method): {
            name: value
            for name, value in flat_row(result.row).items()
            if "." not in name and name not in ("budget", "seed") and not isinstance(value, str)
        }
        for method, result in results.items()
    }
    return pd.DataFrame(columns, dtype=float).rename_axis("metric").reset_index()
