"""Small trainings beside a run: data sizes, model sizes, epochs, designs of level 2, encoders."""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.config import Config, ConfigError, PlanningConfig
from hjepa_lib.data.published import acquire
from hjepa_lib.data.recipes import SIZES
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.horizons import RESAMPLES
from hjepa_lib.evaluation.openloop import draw_windows, long_walks, open_loop
from hjepa_lib.evaluation.statistics import Interval, bootstrap, bootstrap_difference, mcnemar
from hjepa_lib.files import read_json
from hjepa_lib.planning.agent import Agent
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.keys import core_stages, is_joint
from hjepa_lib.runs.workspace import Workspace, open_run
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.workbench.experiment import run_name

BASE = 20_312
"""Transitions of every variant whose group is about something else."""
STEPS = 48
"""Open-loop steps at which variants are compared, or as many as there are: far beyond training."""
_WHOLE = 5_078  # transitions: below it a validation share would be a large part of the data
PAIRS: dict[str, dict[str, Any]] = {
    "small": {"level1.width": 16, "level1.latent_dim": 64, "level1.hidden": 128},
    "large": {"level1.width": 64, "level1.latent_dim": 256, "level1.hidden": 512},
}
JOINT: dict[str, dict[str, Any]] = {
    "joint": {},
    "joint-conditioned": {"level2.conditioning": True},
    "joint-feedback": {"level2.feedback": True},
}
LATENTS = ("gaussian", "categorical")
_TRANSFORMER: dict[str, Any] = {
    "level1.encoder": "vit",
    "level1.width": 64,
    "level1.predictor": "transformer",
    "level1.hidden": 64,
    "level1.pretrain_mask": 0.4,
}


# --- what to train
def budget(config: Config, updates: int) -> dict[str, Any]:
    """At most `updates` updates of level 1, so many refining, twice as many of the other two."""
    wanted = {"level1": updates, "distance": 2 * updates}
    wanted |= {} if config.level2.disable_l2 else {"level2": 2 * updates}
    found = {
        f"{part}.optim.updates": min(count, getattr(config, part).optim.updates)
        for part, count in wanted.items()
    }
    found |= {"level1.refine_updates": min(updates, config.level1.refine_updates)}
    return found | {"level3.enabled": False}


def size(config: Config, transitions: int, updates: int) -> dict[str, Any]:
    """Settings of level 1 on fewer data. The smallest sets keep no validation share."""
    changes = budget(config, updates) | {"data.transitions": transitions}
    return changes | ({"data.val_fraction": 0.0} if transitions < _WHOLE else {})


def designs(config: Config, updates: int) -> dict[str, dict[str, Any]]:
    """{name: settings}: `size-N`; on `BASE` transitions a smaller and a larger model, and both
    levels at once, in batches of as many frames as level 1 alone; other latents of level 2."""
    level1, level2 = config.level1, config.level2
    base, states = size(config, BASE, updates), level2.macro_steps * level2.step_skip + 1
    batch = max(2, round(level1.optim.batch * level1.window / states))
    both = base | {"level2.train": "joint", "level1.optim.batch": batch}
    both.pop("level2.optim.updates", None)  # counted with level 1's
    second = {"level2.optim.updates": min(2 * updates, level2.optim.updates)}
    second["level3.enabled"] = False
    return {
        **{f"size-{count}": size(config, count, updates) for count in SIZES},
        **{f"model-{name}": base | changes for name, changes in PAIRS.items()},
        **{name: both | changes for name, changes in JOINT.items()},
        **{f"latent-{kind}": second | {"level2.latent": kind} for kind in LATENTS},
    }


def with_epochs(config: Config, epochs: int) -> dict[str, int]:
    """Updates for exactly `epochs` passes over the windows of each level (PL4)."""
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    with tempfile.TemporaryDirectory() as folder:  # of the frames of a recording
        data = acquire(config.data, config.seed, Path(folder))
    lengths = data.split(config.data.val_fraction, config.seed)[0].lengths
    level2, joint = config.level2, is_joint(config)
    macro = level2.macro_steps * level2.step_skip + 1  # states of a level-2 window
    parts = {"level1": (lengths, macro if joint else config.level1.window)}
    if not (joint or level2.disable_l2):  # level 2 reads these latents only
        parts["level2"] = (lengths[: config.distance.trajectories], macro)
    found = {}
    for name, (stored, states) in parts.items():
        windows = int((stored - states + 1).clamp_min(0).sum())
        updates = round(epochs * windows / getattr(config, name).optim.batch)
        found[f"{name}.optim.updates"] = max(1, updates)
    return found


def epochs(config: Config, count: int, updates: int) -> dict[str, Any]:
    """`count` passes of level 1 over the windows of 5,078 transitions; the head as ever."""
    passes = with_epochs(config.override({"data.transitions": _WHOLE}), count)
    name = "level1.optim.updates"
    return size(config, _WHOLE, updates) | {name: passes[name]}


def encoders(config: Config, updates: int) -> dict[str, dict[str, Any]]:
    """{name: settings} of a transformer, and of notebook 02's convolutions beside it.

    Data, batches and number of updates are the same: the transformer's pre-training takes a fifth
    on top, the other one gets it as ordinary updates.
    """
    base = budget(config, updates) | {
        "level1.rollout": 8,
        "level1.optim.batch": 16,  # more updates in the same time
        "precision": "fp32",  # such narrow matrix products gain nothing from bf16
        "distance.trajectories": min(1_200, config.distance.trajectories),  # it encodes slowly
    }
    base.pop("level2.optim.updates", None)
    count = base["level1.optim.updates"]
    extra = max(1, count // 5)
    return {
        "transformer": base | _TRANSFORMER | {"level1.pretrain_updates": extra},
        "convolutional": base | {"level1.optim.updates": count + extra},
    }


def train(
    ws: Workspace,
    name: str,
    changes: dict[str, Any],
    wanted: tuple[str, ...] = ("l1", "distance"),
) -> Workspace:
    """The variant of a run with the stages `wanted` finished: those of the run, or trained."""
    config = ws.config.override(changes)
    beside = f"{ws.run.path.name}-variants/{run_name(name, config)}"
    side = open_run(beside, config, ws.run.path.parent)
    for stage in wanted:
        side.obtain(core_stages(config)[stage])
    return side


# --- measuring
class Measured(NamedTuple):
    """One variant: what it is, its open-loop errors by level, its results."""

    name: str
    about: dict[str, Any]
    errors: dict[str, np.ndarray]  # (n,) px after the same number of steps, same windows for all
    rows: list[dict[str, Any]]  # result rows with the outcomes (n,) under "solved"

    def interval(self, level: str) -> Interval:
        """Median error of a level in px with its 95 % interval over windows."""
        return bootstrap(self.errors[level], np.median, RESAMPLES)


def measure(
    side: Workspace,
    methods: tuple[str, ...],
    trials: int,
    windows: int,
    planning: PlanningConfig | None = None,
    name: str = "",
) -> Measured:
    """Open-loop errors after `STEPS` steps at most on held-out walks; all methods with both costs.

    `planning` replaces the planner's settings, and `name` then tells its results apart.
    """
    agent = stages.load_trained(side, () if "l1+l2" in methods else stages.FLAT)
    walks = long_walks(side.config.data, STEPS + 1, windows, side.config.seed)
    store = LatentStore(agent.level1, walks, windows, side.precision)
    ahead = min(STEPS, int(store.lengths.max()) - 1)
    curves = open_loop(agent, draw_windows(store, ahead, windows))
    rows = [
        score(side, agent, method, cost, trials, name or "plain", planning)
        for method in methods
        for cost in scoring.COSTS
    ]
    made = side.run.manifest["stages"]
    seconds = sum(made[stage]["seconds"] for stage in ("l1", "distance", "l2") if stage in made)
    about = {
        "steps ahead": ahead,
        "transitions": side.config.data.transitions,
        "updates": side.config.level1.optim.updates,
        "parameters": scoring.count_all(agent.level1),
        "seconds": round(seconds, 1),
        "probe_px": read_json(side.run.path / "l1" / "quality.json")["probe_px_encoder"],
    }
    label = name or re.sub(r"-s\d+-\w{8}$", "", side.run.path.name)
    errors = {level: curve.errors[:, -1] for level, curve in curves.items()}
    return Measured(label, about, errors, rows)


def score(
    ws: Workspace,
    agent: Agent,
    method: str,
    cost: str,
    trials: int,
    folder: str,
    planning: PlanningConfig | None = None,
) -> dict[str, Any]:
    """One result on validation trials as a row, with its outcomes (n,) under `solved`."""
    case = Case.of(ws.config, method, cost, planning=planning, split="validation", trials=trials)
    result = scoring.play(ws, agent, case, f"collapse/{folder}")
    return result.row | {"solved": result.success}


def inserted(planning: PlanningConfig) -> PlanningConfig:
    """Insertion without sub-goals: level 1 always aims at the goal, level 2 acts by its hooks."""
    hierarchy = dataclasses.replace(planning.hierarchy, near=1e9)  # every goal is near
    return dataclasses.replace(planning, hierarchy=hierarchy)


def versus(first: Measured, second: Measured) -> list[dict[str, Any]]:
    """What tells two variants apart (second minus first), a row per shared level and planner.

    Decided are median errors (px) whose paired interval excludes 0, and McNemar's p < .05.
    """
    found = []
    for level in first.errors.keys() & second.errors.keys() - {"stand still"}:
        errors = (second.errors[level], first.errors[level])
        gap = bootstrap_difference(*errors, np.median, RESAMPLES)
        found.append((f"{level}, px", gap, -gap.estimate, gap.low > 0 or gap.high < 0))
    solved, other = (
        {f"success, {row['method']}, {row['cost']}": row["solved"] for row in one.rows}
        for one in (first, second)
    )
    for what in solved.keys() & other.keys():
        gap = bootstrap_difference(other[what], solved[what])
        clear = mcnemar(solved[what], other[what]).p_value < 0.05
        found.append((what, gap, gap.estimate, clear))
    rows = []
    for what, gap, gain, clear in sorted(found):
        better = "second better" if gain > 0 else "first better"
        row = {"first": first.name, "second": second.name, "measure": what}
        row |= {"difference": gap.estimate, "low": gap.low, "high": gap.high}
        rows.append(row | {"verdict": better if clear else "undecided"})
    return rows
