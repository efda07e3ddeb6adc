"""Flat against hierarchical planning: one command, two runs, one table (seed 000, section D).

The flat side (l1) trains level 1 and its distance head; the hierarchical side (l2) takes over data,
level 1 and head as they are and trains level 2 on top, or, with `l2_from_scratch`, trains a level 1
of its own. Both plan with the same cost on the same trials of protocol P1, with random and oracle
beside them. Both are ordinary run folders, so running again resumes what is unfinished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from hjepa_lib.config import Config, ConfigError, differences, load_yaml
from hjepa_lib.data.published import acquire
from hjepa_lib.evaluation.results import Case, Result, load_result
from hjepa_lib.evaluation.statistics import mcnemar
from hjepa_lib.files import write_atomic
from hjepa_lib.runs import machine, stages
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs.notebooks import describe
from hjepa_lib.runs.places import RunError, outputs_root
from hjepa_lib.runs.remote import push_file
from hjepa_lib.runs.report import FIELDS
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

CSV = "tworooms_compare.csv"
METHODS = {"l1": "flat", "l2": "l1+l2"}
FLOORS = ("random", "oracle")
PROTOCOL = "p1"
SHARED = ("device", "precision", "data", "distance", "planning.cost", "evaluation")
"""Settings in which both sides must agree; so must `level1` when l2 takes over l1's."""
Say = Callable[..., None]


def compare(
    config_l1: Path,
    config_l2: Path,
    output_root: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    mode: str = "both",
    l2_from_scratch: bool = False,
    say: Say = print,
) -> int:
    """Train and evaluate the sides of `mode` (l1, l2, both), print and write the table; returns 0.

    Runs and `tworooms_compare.csv` go to `output_root` (default `<outputs>/compare-s<seed>`).
    `epochs` replaces the updates of both levels by that many passes over their training windows;
    the distance head, part of the cost, keeps its own. ConfigError and RunError, one sentence each.
    """
    machine.set_up()
    folder = Path(output_root or outputs_root() / f"compare-s{seed}").expanduser().resolve()
    configs = [load_yaml(path).override({"seed": seed}) for path in (config_l1, config_l2)]
    check(*configs, l2_from_scratch)
    if epochs is not None:
        configs = [with_epochs(config, epochs, folder) for config in configs]
    names = {"l1": f"l1-s{seed}", "l2": f"l2{'-scratch' * l2_from_scratch}-s{seed}"}
    if mode != "l2":
        flat = open_run(folder, names["l1"], configs[0])
        train(flat, ("l1", "distance"), say)
        evaluate(flat, "l1", say)
    if mode != "l1":
        if l2_from_scratch:
            two = open_run(folder, names["l2"], configs[1])
            train(two, ("l1", "distance"), say)
        else:
            two = hand_over(folder, names, configs, say)
        train(two, ("l2",), say)
        evaluate(two, "l2", say)
    report(folder, names, configs[0].planning.cost, say)
    return 0


# --- settings ---------------------------------------------------------------------------------
def check(l1: Config, l2: Config, l2_from_scratch: bool) -> None:
    """ConfigError unless the two configs describe one fair comparison on P1."""
    for side, config in (("config_l1", l1), ("config_l2", l2)):
        if config.evaluation.protocol != PROTOCOL:
            raise ConfigError(
                f"{side} sets evaluation.protocol={config.evaluation.protocol}; "
                f"the comparison is defined on {PROTOCOL}"
            )
    if l1.level2.train == "joint" and not l1.level2.disable_l2:
        raise ConfigError("config_l1 trains level 2 jointly; set level2.disable_l2=true there")
    if l2.level2.disable_l2:
        raise ConfigError("config_l2 sets level2.disable_l2=true, so it has no level 2 to compare")
    if l2.level2.train == "joint" and not l2_from_scratch:
        raise ConfigError(
            "config_l2 sets level2.train=joint, which trains a level 1 of its own; "
            "add --l2_from_scratch or set level2.train=frozen"
        )
    shared = SHARED if l2_from_scratch else (*SHARED, "level1")
    for key, (one, two) in differences(l1, l2).items():
        if key.startswith(tuple(f"{name}." for name in shared)) or key in shared:
            raise ConfigError(
                f"config_l1 and config_l2 must agree on {key}, they have {one!r} and {two!r}"
            )


def with_epochs(config: Config, epochs: int, folder: Path) -> Config:
    """The config with updates for exactly `epochs` passes over the windows of each level (PL4)."""
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    data = acquire(config.data, config.seed, folder / ".downloads")
    lengths = data.split(config.data.val_fraction, config.seed)[0].lengths
    level1, level2 = config.level1, config.level2
    macro = level2.macro_steps * level2.step_skip + 1  # states of a level-2 window
    joint = level2.train == "joint" and not level2.disable_l2
    stored = lengths[: config.distance.trajectories]  # level 2 reads these latents only

    def updates(lengths: Any, states: int, batch: int) -> int:
        windows = int((lengths - states + 1).clamp_min(0).sum())
        return max(1, round(epochs * windows / batch))

    first = updates(lengths, macro if joint else level1.window, level1.optim.batch)
    second = updates(stored, macro, level2.optim.batch)
    changes = {"level1.optim.updates": first, "level2.optim.updates": second}
    return config.override(changes, strict=False)


# --- runs -------------------------------------------------------------------------------------
def open_run(folder: Path, name: str, config: Config, like: Run | None = None) -> Workspace:
    """A new run (as measured for `like`), or the one made before with the same settings.

    RunError names the first setting that is another.
    """
    if not Run.exists(name, folder):
        return Workspace("compare", Run.create(name, config, folder, like))
    run = Run.open(name, folder)
    for key, (stored, wanted) in differences(run.config, config).items():
        raise RunError(
            f"{run.path} was made with {key}={stored!r}, not {wanted!r}; "
            "choose another --output_root or drop that setting"
        )
    return Workspace("compare", run)


def hand_over(folder: Path, names: dict[str, str], configs: list[Config], say: Say) -> Workspace:
    """The l2 run with data, level 1 and head of the l1 run, and its device and precision."""
    if not Run.exists(names["l1"], folder):
        raise RunError(
            f"{folder} holds no trained level 1 for seed {configs[0].seed}; "
            "run with --mode l1 or both first, or add --l2_from_scratch"
        )
    source = open_run(folder, names["l1"], configs[0]).run
    missing = [stage for stage in ("data", "l1", "distance") if not source.done(stage)]
    if missing:
        raise RunError(
            f"stage {missing[0]!r} of {source.path} is not complete; run with --mode l1 or both"
        )
    two = open_run(folder, names["l2"], configs[1], source)
    for stage in ("data", "l1", "distance"):
        two.run.adopt(source, stage)
    say(f"{names['l2']:<16} level 1 taken over from {source.name}")
    return two


_LABELS = {"l1": "level 1", "distance": "distance head", "l2": "level 2"}


def train(ws: Workspace, wanted: tuple[str, ...], say: Say) -> None:
    """Train the stages that are not done yet; one line per validation and per stage."""
    for stage in wanted:
        label = _LABELS[stage]
        if ws.run.done(stage):
            say(f"{ws.run.name:<16} {label} done before")
            continue
        start = time.perf_counter()
        for row in stages.train(ws, stage):
            if row.validation:
                at = f"update {row.update} of {row.updates}, loss {row.loss:.4f}"
                say(f"{ws.run.name:<16} {label}: {at}")
        spent = describe((time.perf_counter() - start) / 60)
        say(f"{ws.run.name:<16} {label} trained in {spent}")


def evaluate(ws: Workspace, side: str, say: Say) -> None:
    """The side's planner, its floor and its ceiling; then summary.json and report.html."""
    for method in FLOORS:
        scoring.play(ws, None, Case.of(ws.config, method))
    agent = stages.load_agent_parts(ws) if side == "l1" else stages.load_trained(ws)
    scoring.play(ws, agent, Case.of(ws.config, METHODS[side], ws.config.planning.cost))
    runner.finish(ws.run, say)


# --- table ------------------------------------------------------------------------------------
def table(run_path: Path, cost: str | None = None) -> pd.DataFrame:
    """Columns metric, l1 (flat), l2 (L1+L2) of one run folder; cost: default the config's own.

    Undefined values are NaN. RunError when one of the two results is missing.
    """
    run = Run.at(Path(run_path))
    cost, protocol = cost or run.config.planning.cost, run.config.evaluation.protocol
    found = {side: find_result(run, method, cost) for side, method in METHODS.items()}
    for side, result in found.items():
        if result is None:
            raise RunError(
                f"run {run.name!r} has no result of method {METHODS[side]!r} with cost {cost!r} "
                f"on {protocol}; evaluate it first (notebook 04)"
            )
    return side_by_side(found["l1"], found["l2"])


def find_result(run: Run, method: str, cost: str) -> Result | None:
    """The full-budget result on `bounce`, or None when that stage is not complete."""
    case = Case.of(run.config, method, cost)
    stage = f"results/{case.name}"
    return load_result(run.path / f"{stage}.npz") if run.done(stage) else None


def side_by_side(l1: Result | None, l2: Result | None) -> pd.DataFrame:
    """One row per number of summary.json, then the exact McNemar test; a missing side is NaN."""
    columns = {"l1": numbers(l1), "l2": numbers(l2)}
    if l1 is not None and l2 is not None:
        for key, one, two in (
            ("trials", l1.header["trials_hash"], l2.header["trials_hash"]),
            ("data", l1.header["data"]["hash"], l2.header["data"]["hash"]),
            ("number of trials", len(l1.success), len(l2.success)),
        ):
            if one != two:
                raise RunError(f"the two results differ in their {key}: {one} and {two}")
        test = mcnemar(l1.success, l2.success)
        columns["l1"] |= {"solved_only_here": test.only_first, "mcnemar_p": test.p_value}
        columns["l2"] |= {"solved_only_here": test.only_second, "mcnemar_p": test.p_value}
    frame = pd.DataFrame(columns, index=list(columns["l1"] or columns["l2"]), dtype=float)
    return frame.rename_axis("metric").reset_index()


def numbers(result: Result | None) -> dict[str, float | None]:
    """Every number of a result's row, in the order of the schema; {} for no result."""
    if result is None:
        return {}
    row, found = result.row, {}
    for name in FIELDS:
        if name == "ci95":
            found |= {"ci95_low": row[name][0], "ci95_high": row[name][1]}
        elif name not in ("budget", "seed") and not isinstance(row[name], (str, dict)):
            found[name] = row[name]
    return found


def report(folder: Path, names: dict[str, str], cost: str, say: Say) -> None:
    """Print l1 and l2 with floor and ceiling, and write the CSV."""
    runs = {
        side: Run.open(name, folder) for side, name in names.items() if Run.exists(name, folder)
    }
    found = {
        side: find_result(runs[side], method, cost) if side in runs else None
        for side, method in METHODS.items()
    }
    frame = side_by_side(found["l1"], found["l2"])
    text = frame.set_index("metric")
    for method in FLOORS:
        floor = numbers(find_result(next(iter(runs.values())), method, "none"))
        text[method] = pd.Series(floor, dtype=float)
    say(text.to_string(float_format=lambda value: f"{value:.4g}", na_rep=""))
    for side, result in found.items():
        if result is None:
            say(f"{side} has no result yet: run with --mode {side}")
            continue
        row = text[side]
        interval = f"[{row['ci95_low']:.3f}, {row['ci95_high']:.3f}]"
        say(
            f"{side} ({METHODS[side]}, cost {cost}): {row['successes']:.0f} of {row['n']:.0f} "
            f"solved, rate {row['success_rate']:.3f}, Wilson 95 % {interval}"
        )
    if None not in found.values():
        only = text.loc["solved_only_here"]
        say(
            f"solved by l1 only: {only['l1']:.0f}, by l2 only: {only['l2']:.0f}; "
            f"exact McNemar p = {text.loc['mcnemar_p', 'l1']:.3g}"
        )
    say(f"table: {push_file(write_atomic(folder / CSV, frame.to_csv(index=False)))}")
