"""Small trained variants beside a run: data sizes, model sizes, epochs and designs of level 2.

A variant is an ordinary run folder `<run>-variants/<name>-u<updates>` with the settings of its run
except for the ones named here, so it resumes like any run and none is ever deleted; its updates are
in its name because two notebooks train on the same data for different times. All of a group
get the same number of updates, so that a small data set is seen more often and not trained less.
Results are played on validation trials: variants are looked at, nothing is chosen on test trials.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.config import Config, PlanningConfig
from hjepa_lib.evaluation.collapse import RESAMPLES, long_walks, open_loop, whole_windows
from hjepa_lib.evaluation.results import Case
from hjepa_lib.evaluation.statistics import (
    Interval,
    bootstrap,
    bootstrap_difference,
    mcnemar,
    wilson,
)
from hjepa_lib.files import read_json
from hjepa_lib.planning.agent import Agent
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.places import repository
from hjepa_lib.runs.score import COSTS, count_all
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.workbench import compare
from hjepa_lib.workbench.rows import check_rows, load_rows, split_finished

BASE = 20_312
"""Transitions of every variant whose group is about something else."""
STEPS = 48
"""Open-loop steps at which variants are compared: far beyond what any of them is trained on."""
EPOCHS_AT = 5_078
EPOCHS = (5, 25, 75, 200, 1000)
PAIRS: dict[str, dict[str, Any]] = {
    "small": {"level1.width": 16, "level1.latent_dim": 64, "level1.hidden": 128},
    "large": {"level1.width": 64, "level1.latent_dim": 256, "level1.hidden": 512},
}
JOINT: dict[str, dict[str, Any]] = {
    "joint": {},
    "joint-conditioned": {"level2.conditioning": True},
    "joint-feedback": {"level2.feedback": True},
}
EVERYWHERE = 1e9
"""`hierarchy.near` of a planner for which every goal is near."""
LATENTS = ("gaussian", "categorical", "fsq")
_WHOLE = 5_078  # below it a validation share would be a large part of the data
_TABLE = "outputs/gallery/study.csv"


class Variant(NamedTuple):
    """One training beside a run."""

    name: str  # of its folder: what it is, then -u and the updates asked for
    changes: dict[str, Any]  # dotted settings
    stages: tuple[str, ...] = ("l1", "distance")


# --- what to train ----------------------------------------------------------------------------
def budget(config: Config, updates: int) -> dict[str, Any]:
    """At most `updates` updates of level 1, so many refining, twice as many of the other two."""
    wanted = {"level1": updates, "distance": 2 * updates, "level2": 2 * updates}
    found = {
        f"{part}.optim.updates": min(count, getattr(config, part).optim.updates)
        for part, count in wanted.items()
    }
    return found | {"level1.refine_updates": min(updates, config.level1.refine_updates)}


def size(config: Config, transitions: int, updates: int) -> Variant:
    """Level 1 and its head on fewer data. The smallest sets keep no validation share."""
    changes = budget(config, updates) | {"data.transitions": transitions}
    if transitions < _WHOLE:
        changes["data.val_fraction"] = 0.0
    return Variant(f"size-{transitions}-u{updates}", changes)


def pair(config: Config, name: str, updates: int) -> Variant:
    """A smaller or larger level 1 on `BASE` transitions."""
    return Variant(f"model-{name}-u{updates}", size(config, BASE, updates).changes | PAIRS[name])


def epochs(config: Config, count: int, updates: int, folder: Path) -> Variant:
    """`count` passes of level 1 over the windows of `EPOCHS_AT` transitions; the head as ever."""
    small = config.override({"data.transitions": EPOCHS_AT})
    passes = compare.with_epochs(small, count, folder).level1.optim.updates
    changes = size(config, EPOCHS_AT, updates).changes | {"level1.optim.updates": passes}
    return Variant(f"epochs-{count}-u{updates}", changes)


def frozen(config: Config, updates: int) -> Variant:
    """Both levels one after the other, on `BASE` transitions: what `joint` is compared with."""
    changes = size(config, BASE, updates).changes
    return Variant(f"size-{BASE}-u{updates}", changes, ("l1", "distance", "l2"))


def joint(config: Config, name: str, updates: int) -> Variant:
    """Both levels at once, in batches that hold as many frames as those of level 1 alone."""
    level1, level2 = config.level1, config.level2
    states = level2.macro_steps * level2.step_skip + 1
    changes = size(config, BASE, updates).changes | {"level2.train": "joint"} | JOINT[name]
    changes["level1.optim.batch"] = max(2, round(level1.optim.batch * level1.window / states))
    return Variant(f"{name}-u{updates}", changes, ("l1", "distance", "l2"))


def latent(base: Workspace, kind: str, updates: int) -> Variant:
    """Another kind of level-2 latent on the trained level 1 of `base`."""
    count = min(2 * updates, base.config.level2.optim.updates)
    changes = {"level2.latent": kind, "level2.optim.updates": count}
    return Variant(f"latent-{kind}-u{updates}", changes, ("l2",))


# --- training ---------------------------------------------------------------------------------
def folder_of(ws: Workspace) -> Path:
    """Where the variants of a run live: beside it, because a run holds no other run."""
    return ws.run.path.with_name(f"{ws.run.path.name}-variants")


def train(ws: Workspace, variant: Variant, base: Workspace | None = None, say=print) -> Workspace:
    """The finished variant of `ws`: opened or resumed, and trained.

    `base` has finished stages that the variant takes over instead of making them, and the settings
    that its changes go on top of (default: those of `ws`). RunError when a folder of that name was
    made with other settings.
    """
    config = (base or ws).config.override(variant.changes)
    side = compare.open_run(folder_of(ws), variant.name, config, ws.run)
    if base is not None:
        for stage in ("data", "l1", "distance"):
            side.run.adopt(base.run, stage)
    compare.train(side, variant.stages, say)
    return side


def trained_base(ws: Workspace, spare: Workspace) -> Workspace:
    """The run itself if it made its own level 1, else the variant `spare`."""
    own = all(ws.run.done(stage) for stage in ("data", "l1", "distance"))
    return ws if own else spare


# --- measuring --------------------------------------------------------------------------------
class Measured(NamedTuple):
    """One variant: what it is, its open-loop errors by level, its results."""

    name: str
    about: dict[str, Any]
    errors: dict[str, np.ndarray]  # (n,) px after the same number of steps, same windows for all
    rows: list[dict[str, Any]]  # result rows with the outcomes (n,) under "solved"

    def interval(self, level: str) -> Interval:
        """Median error of a level in px with its 95 % interval over windows."""
        return bootstrap(self.errors[level], np.median, "trials", RESAMPLES)


def measure(
    side: Workspace,
    methods: tuple[str, ...],
    trials: int,
    steps: int,
    windows: int,
    planning: PlanningConfig | None = None,
    name: str = "",
) -> Measured:
    """Open-loop errors after `steps` steps on held-out walks, and every method with both costs.

    `planning` replaces the planner's settings, and `name` then tells its results apart.
    """
    trained = side.run.done("l2") and "l1+l2" in methods
    agent = stages.load_trained(side) if trained else stages.load_agent_parts(side)
    walks = long_walks(side.config.data, steps + 1, windows, side.config.seed)
    batch = whole_windows(LatentStore(agent.level1, walks, windows, side.precision))
    errors = {level: curve.errors[:, -1] for level, curve in open_loop(agent, batch).items()}
    rows = [
        score(side, agent, method, cost, trials, name or "plain", planning)
        for method in methods
        for cost in COSTS
    ]
    label = name or re.sub(r"-u\d+$", "", side.run.name)
    return Measured(label, _about(side, agent), errors, rows)


def score(
    ws: Workspace,
    agent: Agent,
    method: str,
    cost: str,
    trials: int,
    folder: str,
    planning: PlanningConfig | None = None,
) -> dict[str, Any]:
    """One result on validation trials as a row, with its outcomes (n,) under `solved`.

    It is a stage of the run in `collapse/<folder>`, so it is played once.
    """
    case = Case.of(ws.config, method, cost, planning=planning, split="validation", trials=trials)
    result = scoring.play(ws, agent, case, f"collapse/{folder}", pictures=False)
    return result.row | {"solved": result.success}


def inserted(planning: PlanningConfig) -> PlanningConfig:
    """Insertion without sub-goals: level 1 always aims at the goal, level 2 acts by its hooks."""
    hierarchy = dataclasses.replace(planning.hierarchy, near=EVERYWHERE)
    return dataclasses.replace(planning, hierarchy=hierarchy)


def _about(side: Workspace, agent: Agent) -> dict[str, Any]:
    made = side.run.manifest["stages"]
    quality = read_json(side.run.path / "l1" / "quality.json")
    return {
        "transitions": side.config.data.transitions,
        "updates": side.config.level1.optim.updates,
        "parameters": count_all(agent.level1),
        "seconds": round(sum(made[n]["seconds"] for n in ("l1", "distance", "l2") if n in made), 1),
        "probe_px": quality["probe_px_encoder"],
    }


def versus(first: Measured, second: Measured) -> list[dict[str, Any]]:
    """What tells two variants apart, a row per shared level and per shared planner.

    Errors (px): the paired bootstrap interval of the difference of the medians must exclude 0.
    Success: exact McNemar test, p < .05. Everything else is undecided. `difference` is second minus
    first.
    """
    found = []
    for level in first.errors.keys() & second.errors.keys() - {"stand still"}:
        gap = bootstrap_difference(
            second.errors[level], first.errors[level], np.median, "trials", RESAMPLES
        )
        better = "second better" if gap.estimate < 0 else "first better"
        clear = gap.low > 0 or gap.high < 0
        found.append(_verdict(first, second, f"{level}, px", gap, better if clear else ""))
    for one, two in itertools.product(first.rows, second.rows):
        if row_key(one) != row_key(two):
            continue
        gap = bootstrap_difference(two["solved"], one["solved"], redraw="trials")
        p = mcnemar(one["solved"], two["solved"]).p_value
        better = "second better" if gap.estimate > 0 else "first better"
        what = f"success, {one['method']}, {one['cost']}"
        found.append(_verdict(first, second, what, gap, better if p < 0.05 else ""))
    return sorted(found, key=lambda row: row["measure"])


def row_key(row: dict[str, Any]) -> tuple[str, str]:
    """(method, cost)."""
    return row["method"], row["cost"]


def _verdict(
    first: Measured, second: Measured, what: str, gap: Interval, better: str
) -> dict[str, Any]:
    row = {"first": first.name, "second": second.name, "measure": what}
    row |= {"difference": gap.estimate, "low": gap.low, "high": gap.high}
    return row | {"verdict": better or "undecided"}


# --- committed rows ---------------------------------------------------------------------------
def committed(group: str, setting: str, path: Path | None = None) -> list[tuple[float, dict]]:
    """Pairs (value of a setting, row) of one group of the committed study; none without a study.

    `setting` is a column of the table, such as planner.flat.horizon, or a setting of the training,
    such as data.transitions. Finished points on test trials only, seeds pooled: successes and
    trials add up. RowsError when points have other trials or settings are mixed within one.
    """
    path = path or repository() / _TABLE
    if not path.is_file():
        return []
    table = load_rows(path)
    found, _ = split_finished(table[(table["group"] == group) & (table["split"] == "test")])
    if found.empty:
        return []
    check_rows(found)
    known = path.with_name(f"{path.stem}_trainings.json")
    settings = read_json(known) if known.is_file() else {}
    if setting not in found:
        values = [settings.get(name, {}).get(setting) for name in found["training"]]
        found = found.assign(**{setting: values})
    pairs = []
    for (method, cost, value), rows in found.groupby(["method", "cost", setting]):
        successes, n = int(rows["successes"].sum()), int(rows["n"].sum())
        row = {"method": method, "cost": cost, "n": n, "success_rate": successes / n}
        pairs.append((float(value), row | {"ci95": wilson(successes, n)}))
    return pairs
