"""The four models at equal seconds, trained in turn in one process (configs/pixel_seconds.yaml)."""

import time
from functools import partial
from typing import Any

import torch

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.compute import count
from hjepa_lib.files import read_json, write_json
from hjepa_lib.pixels import stages
from hjepa_lib.pixels.studies import score_models
from hjepa_lib.runs.keys import made_of
from hjepa_lib.runs.workspace import Workspace, open_run

TURN = 10
"""Updates of a model until it is another one's turn."""
_STAGES = {"vjepa2": {"vjepa2_stage1": "vjepa2.stage1.optim", "vjepa2": "vjepa2.stage2.optim"}}
"""Of a model with stages of its own: where their updates are set; they share its seconds."""


@made_of(stages.pixel_stages)
def score_seconds(ws: Workspace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `score_models` of models that train `settings["seconds"]` each.

    `seconds` are those of updates and validations, `teraflop` what the updates compute, of both
    stages of `vjepa2`. `pace` updates of each model, in turn, say how many fit.
    """
    names, wish = settings.get("models", MODELS), float(settings["seconds"])
    stages.find(ws, stages.DATA)
    path = ws.run.path / "pace.json"
    if not path.is_file():  # an interrupted study goes on with its own
        few = int(settings.get("pace", 250))
        spent = train_in_turn({name: _run(ws, name, few) for name in names})
        write_json(path, {name: spent[name]["seconds"] / (few - 2) for name in names})
    updates = {name: round(wish / one) for name, one in read_json(path).items()}
    runs = {name: _run(ws, name, updates[name]) for name in names}
    spent, rows = train_in_turn(runs), []
    for name, own in runs.items():
        (row,) = score_models(own, {"models": [name], "draw": False})
        flops = updates[name] * sum(spent[name]["flops"].values()) / 1e12
        rows.append(row | {"seconds": spent[name]["seconds"], "wish": wish, "teraflop": flops})
    return rows


def _parts(name: str) -> dict[str, str]:
    return _STAGES.get(name, {name: "optim"})


def _run(ws: Workspace, name: str, updates: int) -> Workspace:
    changes = {f"pixels.{section}.updates": updates for section in _parts(name).values()}
    here = ws.run.path
    own = f"{here.parent.name}/{here.name}.{name}.{updates}"
    return open_run(own, ws.config.override(changes), here.parent.parent)


def train_in_turn(runs: dict[str, Workspace]) -> dict[str, dict[str, Any]]:
    """Train each model in its run; what each spent: `seconds`, and `flops` of an update, forward
    and backward, of each stage."""
    work, spent = {}, {}
    for name, ws in runs.items():
        stages.find(ws, stages.DATA)
        work[name] = stages.train(ws, *(stages.name_of(part, 0) for part in _parts(name)))
        path = ws.run.path / "spent.json"
        spent[name] = read_json(path) if path.is_file() else {"seconds": 0.0, "flops": {}}
    while work:
        for name in [*work]:
            for _ in range(TURN):
                begun = time.perf_counter()
                report = next(work[name], None)
                if report is None:
                    del work[name]
                    break
                if report.update > 2:
                    spent[name]["seconds"] += time.perf_counter() - begun
                elif report.update == 1:  # what a stage begins with is no training
                    second = torch.enable_grad()(partial(next, work[name]))
                    spent[name]["flops"][report.stage] = count(second)
                if report.validation or report.update == 1:  # a killed fit goes on from here
                    write_json(runs[name].run.path / "spent.json", spent[name])
    return spent
