"""A masked vision transformer as level 1 of the planner on Two Rooms, beside a convolutional one.

The same `Jepa` class, losses, distance head and flat planner as everywhere; only `level1.encoder`
and `level1.predictor` differ, and the transformer is pre-trained with hidden patches first. The
convolutional level 1 beside it has the same data, batches and number of level-1 updates (what the
pre-training took is added), so the two differ in network and objective alone. Both are trained with
a short budget in runs of their own, `<run>-variants/<name>`: the settings and stages of the run
that asks for them stay as they are.
"""

from __future__ import annotations

from typing import Any

from hjepa_lib.config import Config
from hjepa_lib.evaluation.results import Case
from hjepa_lib.files import write_json
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.workbench import compare, variants

LABELS = {
    "transformer": "flat, transformer level 1",
    "convolutional": "flat, convolutional level 1",
}
SHARED: dict[str, Any] = {
    "level1.rollout": 8,
    "level1.optim.batch": 16,  # more updates in the same time
    "precision": "fp32",  # such narrow matrix products gain nothing from bf16
}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {
        "level1.encoder": "vit",
        "level1.width": 64,
        "level1.predictor": "transformer",
        "level1.hidden": 64,
        "level1.pretrain_mask": 0.4,
    },
    "convolutional": {},  # that of notebook 02
}
TRAJECTORIES = 1_200  # encoded for the distance head: a transformer encodes slowly
FLOORS = ("random", "oracle")
COST = "distance"


def settings(config: Config, name: str, updates: int) -> Config:
    """Settings of one model: at most `updates` updates, twice as many of the distance head.

    The transformer's pre-training takes a fifth on top; the other one gets it as ordinary updates.
    """
    budget = variants.budget(config, updates)
    changes = {key: value for key, value in budget.items() if not key.startswith("level2")}
    changes["distance.trajectories"] = min(TRAJECTORIES, config.distance.trajectories)
    extra = max(1, changes["level1.optim.updates"] // 5)
    if "level1.pretrain_mask" in MODELS[name]:
        changes["level1.pretrain_updates"] = extra
    else:
        changes["level1.optim.updates"] += extra
    return config.override(SHARED | MODELS[name] | changes)


def train(ws: Workspace, name: str, updates: int, say=print) -> Workspace:
    """The run of one model: opened or resumed, and trained (data, level 1, distance head)."""
    config = settings(ws.config, name, updates).override({"device": ws.device})
    side = compare.open_run(variants.folder_of(ws), name, config)
    compare.train(side, ("l1", "distance"), say)
    return side


def plan(sides: dict[str, Workspace], split: str = "") -> list[dict[str, Any]]:
    """Rows of random, each model's flat planner and oracle, on the protocol's trials."""
    rows = []
    for name, side in sides.items():
        agent = stages.load_agent_parts(side)
        case = Case.of(side.config, "flat", COST, split=split)
        rows.append(scoring.play(side, agent, case, pictures=False).row | {"method": LABELS[name]})
    floors = [Case.of(side.config, method, split=split) for method in FLOORS]
    low, high = (scoring.play(side, None, case).row for case in floors)
    return [low, *rows, high]


def planning_stage(ws: Workspace, updates: int, say=print) -> list[dict[str, Any]]:
    """Stage `pixel_planning`: train, plan, store the rows as `pixels/planning/planning.json`."""
    rows = plan({name: train(ws, name, updates, say) for name in MODELS})
    with ws.run.stage("pixel_planning", folder="pixels/planning") as folder:
        write_json(folder / "planning.json", rows)
    title = "A transformer or convolutions as level 1, on Two Rooms"
    leave_section(ws.run, "40-planning", {"title": title, "results": rows, "data": rows})
    return rows
