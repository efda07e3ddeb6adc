"""Result rows of the grid models, and the table of a tuning sweep over them (GRID-10, GRID-11).

A row is one encoder (JEPA, generative twin, untrained) of one training seed, with the hashes of its
data and first batch; all its numbers are measured. The sweep `configs/grid_jepa_tuning.yaml` runs
notebook 14 once per setting; `tuning_table` gathers the rows of its finished cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.files import FileError, read_json, write_atomic, write_json
from hjepa_lib.grids import measures
from hjepa_lib.grids.buffer import GridBatch, GridBuffer
from hjepa_lib.grids.models import GridModel, build_grid_model
from hjepa_lib.grids.stages import (
    BEST,
    ENCODERS,
    STAGES,
    load_grid_model,
    make_grid_data,
    train_grid_stage,
    train_reward_stage,
)
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import batches_sha256

ROWS = "grid/results.json"
MOST_ROWS = 2000  # held-out transitions of the last validation


def grid_results(ws: Workspace) -> list[dict[str, Any]]:
    """One row per encoder and training seed, written to `grid/results.json`; trains what lacks."""
    train, validation = make_grid_data(ws)
    optim = ws.config.pixels.grid.optim
    sha256 = read_json(ws.run.path / "grid/data/data.json")["sha256"]
    sample = train.batch(torch.arange(min(optim.batch, len(train))))
    rows = []
    for seed in range(ws.config.pixels.seeds):
        for _ in train_reward_stage(ws, seed):
            pass
        own = ws.config.seed + seed
        scores = read_json(ws.run.path / f"grid/s{seed}/reward/reward.json")["scores"]
        for kind in ENCODERS:
            model = load_grid_model(ws, kind, seed)
            row = {"model": kind, "seed": own, "data_sha256": sha256}
            row["batches_sha256"] = batches_sha256(len(train), optim.batch, own)
            row |= _quality(model, kind, validation)
            row["fact_accuracy"] = measures.fact_accuracy(model, train, validation)
            for name, field in (("", "reward"), ("_imagined", "imagined"), ("_copy", "copy")):
                row[f"{field}_r2"] = scores[kind + name]["r2"]
                row[f"{field}_mse"] = scores[kind + name]["mse"]
            row["mean_reward_mse"] = scores["mean"]["mse"]
            rows.append(row | _cost(ws, model, kind, seed, sample))
    write_json(ws.run.path / ROWS, rows)
    rows = read_json(ws.run.path / ROWS)
    leave_section(ws.run, "30-grid", section(rows))
    return rows


def section(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The measured comparison of the grid models for the run's report and summary (GRID-10)."""
    table = measures.comparison(rows)
    shown = table.astype(object).where(table.notna(), "–")
    cells = shown.reset_index().to_numpy().tolist()
    pairs = measures.paired_sentences(rows)
    return {
        "title": "Models of a grid world",
        "tables": [{"columns": ["Measure", *table.columns], "rows": cells}],
        "lists": {"Paired by training seed, interval over seeds alone": pairs} if pairs else {},
        "data": {"rows": rows},
    }


def train_all(ws: Workspace, say: Callable[..., None]) -> str:
    """All training seeds with a few lines on the way; returns the comparison as text."""
    for seed in range(ws.config.pixels.seeds):
        for done in train_grid_stage(ws, seed):
            report = done.report
            if report.validation:
                say(
                    f"seed {ws.config.seed + seed}, {done.kind} {report.update}/{report.updates}: "
                    f"validation {report.validation['loss']:.4g}"
                )
        for kind in STAGES:
            say(f"{ws.run.path / f'grid/s{seed}' / BEST.format(kind)}.safetensors")
    rows = grid_results(ws)
    say(f"results: {ws.run.path / ROWS}")
    return measures.comparison(rows).to_string()


def _quality(model: GridModel, kind: str, validation: GridBuffer) -> dict[str, Any]:
    """Validation of the best weights on held-out transitions; latents of every encoder."""
    rows = torch.linspace(0, len(validation) - 1, min(len(validation), MOST_ROWS)).long()
    batch = validation.batch(rows)
    check = measures.validate_twin if kind == "generative" else measures.validate_jepa
    report = {key: value for key, value in check(model, batch).items() if key != "loss"}
    return report | {"collapsed": measures.collapsed(report), "held_out": len(batch.action)}


def _cost(
    ws: Workspace, model: GridModel, kind: str, seed: int, sample: GridBatch
) -> dict[str, Any]:
    """Parameters, memory and time; an untrained encoder has cost nothing."""
    if kind == "random":
        return {}
    fresh = build_grid_model(kind, model.config, model.size, 0).to(ws.device)
    batch = sample.to(ws.device)
    records = ws.run.records(STAGES[kind].format(seed))
    seconds = 1 / float(np.median([row["train/steps_per_second"] for row in records]))
    updates = max(row["step"] for row in records)
    cells = model.size**2 + len(measures.FACTS)
    return {
        "parameters": count_parameters(fresh),
        "outputs": model.latent_dim if kind == "jepa" else cells,
        "memory_mb": update_bytes(fresh, lambda: fresh.loss(batch)[0]) / 1e6,
        "ms_per_update": 1000 * seconds,
        "updates": updates,
        "train_seconds": seconds * updates,
    }


# --- tuning -----------------------------------------------------------------------------------
def tuning_table(runs: Iterable[tuple[dict[str, Any], Path]], folder: Path) -> pd.DataFrame:
    """Mean over seeds per setting and encoder; FileError when no run has finished.

    `runs` are swept values with the run's folder each, all below `folder`.
    """
    rows = []
    for values, run in runs:
        swept = {key: str(value) for key, value in values.items()}
        rows += [swept | row for row in read_json(run / ROWS)] if (run / ROWS).is_file() else []
    if not rows:
        raise FileError(f"no run of the sweep {folder.name!r} has finished in {folder.parent}")
    table = pd.DataFrame(rows)
    shown = (*measures.MEASURES, "jepa_cosine_sim", "error", "collapsed")
    shown = [name for name in shown if name in table]
    groups = table.groupby([*swept, "model"], sort=False)
    found = groups[shown].mean().rename(columns={"collapsed": "collapse_rate"})
    found["seeds"] = groups["seed"].nunique()
    return found.reset_index()


def write_tuning_table(runs: Iterable[tuple[dict[str, Any], Path]], folder: Path) -> Path:
    """`grid_results.csv` beside the runs."""
    return write_atomic(folder / "grid_results.csv", tuning_table(runs, folder).to_csv(index=False))
