"""A masked vision transformer as level 1 of the planner on Two Rooms: a row beside the floors.

The same `Jepa` class, losses, distance head and flat planner as everywhere; only `level1.encoder`
and `level1.predictor` differ, and the encoder is pre-trained with hidden patches first. It is
trained with a short budget in a run of its own, `<run>-variants/transformer`, so the settings and
stages of the run that asks for it stay as they are.
"""

from __future__ import annotations

from typing import Any

from hjepa_lib import compare, scoring, stages, variants
from hjepa_lib.config import Config
from hjepa_lib.evaluation.results import load_result, result_row
from hjepa_lib.files import write_json
from hjepa_lib.workspace import Workspace

NAME = "transformer"
LABEL = "flat, transformer level 1"
MODEL: dict[str, Any] = {
    "level1.encoder": "vit",
    "level1.width": 64,
    "level1.predictor": "transformer",
    "level1.hidden": 64,
    "level1.rollout": 8,
    "level1.optim.batch": 16,  # more updates in the same time
    "level1.pretrain_mask": 0.4,
    "precision": "fp32",  # such narrow matrix products gain nothing from bf16
}
TRAJECTORIES = 1_200  # encoded for the distance head: a transformer encodes slowly
FLOORS = ("random", "oracle")
COST = "distance"


def settings(config: Config, updates: int) -> Config:
    """The transformer's settings: at most `updates` updates, twice as many of the distance head."""
    budget = variants.budget(config, updates)
    changes = {key: value for key, value in budget.items() if not key.startswith("level2")}
    changes["distance.trajectories"] = min(TRAJECTORIES, config.distance.trajectories)
    changes["level1.pretrain_updates"] = max(1, changes["level1.optim.updates"] // 5)
    return config.override(MODEL | changes)


def train(ws: Workspace, updates: int, say=print) -> Workspace:
    """The run of the transformer: opened or resumed, and trained (data, level 1, distance head)."""
    config = settings(ws.config, updates).override({"device": ws.device})
    side = compare.open_run(variants.folder_of(ws), NAME, config)
    compare.train(side, ("l1", "distance"), say)
    return side


def plan(side: Workspace, split: str | None = None) -> list[dict[str, Any]]:
    """Rows of random, oracle and the transformer's flat planner on the protocol's trials."""
    rows = []
    for method in FLOORS:
        path = scoring.evaluate(side, None, method, split=split)
        rows.append(result_row(load_result(path)))
    agent = stages.load_agent_parts(side)
    path = scoring.evaluate(side, agent, "flat", COST, split=split, pictures=False)
    return [rows[0], result_row(load_result(path)) | {"method": LABEL}, rows[1]]


def planning_stage(ws: Workspace, updates: int, say=print) -> list[dict[str, Any]]:
    """Stage `pixel_planning`: train, plan, store the rows as `pixels/planning/planning.json`."""
    side = train(ws, updates, say)
    rows = plan(side)
    with ws.run.stage("pixel_planning", folder="pixels/planning") as folder:
        write_json(folder / "planning.json", rows)
    return rows
