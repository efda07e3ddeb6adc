"""Stages of seed 004 (buffer; JEPA with its twin), its result rows and tuning table."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import Config, from_dict, to_dict
from hjepa_lib.config.fields import names_in
from hjepa_lib.config.optim import EpochsConfig
from hjepa_lib.config.pixels import GridConfig
from hjepa_lib.data.trajectories import Parts, three_parts
from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.files import plain, read_json, write_json
from hjepa_lib.grids import buffer, measures
from hjepa_lib.grids.models import KINDS, GridModel, build_grid_model
from hjepa_lib.grids.world import FACTS
from hjepa_lib.models.checkpoint import load_module, save_module
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.runs.keys import Stage, made_of
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.stages import exhaust
from hjepa_lib.runs.workspace import Workspace, log_row
from hjepa_lib.training.loop import (
    Fit,
    Report,
    Task,
    ValidateFn,
    draw_batch,
    step_generator,
)
from hjepa_lib.training.probes import collapse

LOGS = {"jepa": "grid_s{}", "generative": "grid_twin_s{}"}
"""Names in metrics.jsonl of the models of a training seed."""
ENCODERS = (*KINDS, "random")
"""Whose latents are measured; `random` is a JEPA as it begins."""
BEST = "best_{}_model"
VALIDATION_ROWS = 256  # of `choice` in every validation, always the same ones
CHECKS = {"jepa": measures.validate_jepa, "generative": measures.validate_twin}
CHECKS["random"] = CHECKS["jepa"]
_DATA = ("path", "size", "episodes", "steps")
_MODELS = names_in(GridConfig, "pixels.grid", *_DATA, "log_every")


def grid_stages(config: Config) -> dict[str, Stage]:
    """{name: stage}: `grid_data`, and `grid_s{n}` of every training seed n."""
    path = config.pixels.grid.path
    files = (path,) if path else ()
    shaping = (*(f"pixels.grid.{name}" for name in _DATA), "pixels.data.validation_split")
    data = Stage("grid_data", make_data, shaping, folder="grid/data", files=files, recorded=True)
    names = [f"grid_s{n}" for n in range(config.pixels.seeds)]
    pairs = (
        Stage(name, partial(make_pair, n=n), _MODELS, (data,), 3, f"grid/s{n}", about=n)
        for n, name in enumerate(names)
    )
    return {stage.name: stage for stage in (data, *pairs)}


def make_data(ws: Workspace, folder: Path) -> None:
    """Play or load the buffer: buffer.npz, data.json."""
    config, seed = ws.config.pixels.grid, ws.config.seed
    data = buffer.load(config.path) if config.path else buffer.play(config, seed)
    parts = three_parts(data, ws.config.pixels.data.validation_split, seed)
    data.save(folder / "buffer.npz")
    facts = {"source": config.path or "built-in grid world", "seed": seed, "size": data.size}
    facts |= {"transitions": len(data), "episodes": len(np.unique(data.episode))}
    facts["split"] = dict(zip(Parts._fields, map(len, parts), strict=True))
    write_json(folder / "data.json", facts | {"sha256": data.sha256})


def load_data(ws: Workspace) -> Parts:
    """The parts of the data (train, choice, test)."""
    data = buffer.load(ws.obtain(grid_stages(ws.config)["grid_data"]) / "buffer.npz")
    return three_parts(data, ws.config.pixels.data.validation_split, ws.config.seed)


# --- JEPA and twin
def fit_grid(
    model: GridModel, train: buffer.GridBuffer, optim: EpochsConfig, validate: ValidateFn,
    **options: Any,
) -> Fit:  # fmt: skip
    """One of a pair; `model.seconds` is what its last update took."""
    model.seconds = math.nan

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        model.began = time.perf_counter()
        index = draw_batch(len(train), optim.batch, generator)
        return model.loss(train.batch(index).to(model.device))

    def after_update() -> None:
        model.after_update()
        model.seconds = time.perf_counter() - model.began

    settings = dataclasses.replace(optim.optim(len(train)), patience=0)
    return Fit(Task(model, loss_fn, validate, after_update), settings, skips=True, **options)


def train_pair(
    fits: dict[str, Fit], patience: int = 0, follow: Callable[[Fit], Iterator[Report]] = iter
) -> Iterator[tuple[str, Report]]:
    """Two fits in step: (kind, report) of every update; one that was interrupted catches up.

    With `patience` > 0 they end when BOTH have gone so many validations without improvement.
    """
    reports = {kind: follow(fit) for kind, fit in fits.items()}
    while True:
        level = len({fit.update for fit in fits.values()}) == 1
        if level and patience and all(fit.stale >= patience for fit in fits.values()):
            return
        kind = min(fits, key=lambda name: fits[name].update)
        report = next(reports[kind], None)
        if report is None:
            return
        yield kind, report


def make_pair(ws: Workspace, folder: Path, n: int) -> Iterator[Report]:
    """Both models until both have stalled: best weights, numbered ones every `checkpoint_every`."""
    config, own = ws.config.pixels.grid, ws.config.seed + n
    train, choice, _ = load_data(ws)
    rows = torch.randperm(len(choice), generator=step_generator(ws.config.seed, 0))
    held = choice.batch(rows[:VALIDATION_ROWS].sort().values)
    fits = {}
    for kind in KINDS:
        model = build_grid_model(kind, config, train.size, own).to(ws.device)
        options = {"folder": ws.resume(f"grid_s{n}", kind), "stage": LOGS[kind].format(n)}
        options |= {"seed": own, "precision": ws.precision}
        check = partial(CHECKS[kind], model, held)
        fits[kind] = fit_grid(model, train, config.optim, check, **options)

    def follow(fit: Fit) -> Iterator[Report]:
        def row(report: Report) -> dict[str, Any]:
            found = log_row(report, config.log_every)
            return found and {"seconds": fit.module.seconds, **found}

        return ws.follow(fit, fit.stage, row)

    for kind, report in train_pair(fits, config.optim.optim(len(train)).patience, follow):
        fit, row = fits[kind], {"step": report.update, **log_row(report, 1)}
        epoch = fit.config.validate_every
        if config.checkpoint_every and report.update % (config.checkpoint_every * epoch) == 0:
            _save(folder / f"{kind}_model_epoch{report.update // epoch:04d}", kind, fit.module, row)
        yield report
    for kind, fit in fits.items():
        records, best = ws.run.records(fit.stage), fit.best_loss
        spent = {"updates": max(row["step"] for row in records)}
        spent["seconds"] = float(np.nanmedian([row["seconds"] or math.nan for row in records]))
        fit.load_best()
        # Killed between checkpoint and log, a training has no line of its best.
        lost = {"step": fit.update, "validation_loss": best}
        row = next((row for row in records if row.get("validation_loss") == best), lost)
        _save(folder / BEST.format(kind), kind, fit.module, row, **spent)


def _save(path: Path, kind: str, model: GridModel, row: dict[str, Any], **facts: Any) -> None:
    mark = "validation_"
    found = {name.removeprefix(mark): row[name] for name in row if name.startswith(mark)}
    facts |= {"update": row["step"], "loss": found.get("loss"), "validation": found}
    config = to_dict(model.config)
    save_module(path, model, f"grid_{kind}", config=config, size=model.size, **facts)


def load_grid_model(ws: Workspace, kind: str, n: int) -> GridModel:
    """The frozen best model of a training seed, obtained if absent."""

    def build(meta: dict[str, Any]) -> GridModel:
        return build_grid_model(kind, from_dict(GridConfig, meta["config"]), meta["size"], 0)

    if kind == "random":
        size = load_data(ws).train.size
        model = build_grid_model("jepa", ws.config.pixels.grid, size, ws.config.seed + n)
    else:
        folder = ws.obtain(grid_stages(ws.config)[f"grid_s{n}"])
        model = load_module(folder / BEST.format(kind), f"grid_{kind}", build)
    return model.to(ws.device).eval().requires_grad_(False)


# --- results
def grid_results(ws: Workspace) -> list[dict[str, Any]]:
    """One row per encoder and training seed, left as a section; trains what lacks."""
    train, _, test = load_data(ws)
    stages, batch = grid_stages(ws.config), ws.config.pixels.grid.optim.batch
    digest = read_json(ws.obtain(stages["grid_data"]) / "data.json")["sha256"]
    held = test.sample(2000)
    sample = train.batch(torch.arange(min(batch, len(train)))).to(ws.device)
    rows = []
    for n in range(ws.config.pixels.seeds):
        own = ws.config.seed + n
        for _ in ws.make(stages[f"grid_s{n}"]):
            pass
        untrained = measures.imagined(load_grid_model(ws, "random", n), held)[0]
        for kind in ENCODERS:
            model = load_grid_model(ws, kind, n)
            row = {"model": kind, "seed": own, "data_sha256": digest, **CHECKS[kind](model, held)}
            del row["loss"]
            row |= collapse(measures.imagined(model, held)[0], untrained)
            row["held_out"] = len(held.action)
            row["fact_accuracy"] = measures.fact_accuracy(model, train, test)
            row |= measures.against_copying(model, train, test)
            if kind != "random":
                row |= {"weights": ws.weights([f"grid_s{n}"]), **_cost(ws, kind, n, model, sample)}
            rows.append(row)
    rows = plain(rows)
    leave_section(ws.run, "30-grid", section(rows))
    return rows


def section(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The comparison for the run's report and summary (GRID-10)."""
    table = measures.comparison(rows)
    cells = table.reset_index().to_numpy().tolist()
    lists = {
        "Paired by training seed, interval over seeds alone": measures.paired_sentences(rows),
        "Against copying and untrained, over seeds and episodes": measures.copying_sentences(rows),
    }
    return {
        "title": "Models of a grid world",
        "tables": [{"columns": ["Measure", *table.columns], "rows": cells}],
        "lists": lists,
        "data": {"rows": rows},
    }


def _cost(
    ws: Workspace, kind: str, n: int, model: GridModel, sample: buffer.GridBatch
) -> dict[str, Any]:
    fresh = build_grid_model(kind, model.config, model.size, 0).to(ws.device)
    folder = ws.run.stage_folder(f"grid_s{n}")
    spent = read_json(folder / f"{BEST.format(kind)}.json")
    return {
        "parameters": count_parameters(fresh),
        "outputs": model.latent_dim if kind == "jepa" else model.size**2 + len(FACTS),
        "memory_mb": update_bytes(fresh, lambda: fresh.loss(sample)[0]) / 1e6,
        "ms_per_update": 1000 * spent["seconds"],
        "updates": spent["updates"],
        "train_seconds": spent["seconds"] * spent["updates"],
    }


def train_all(ws: Workspace) -> None:
    """All stages, then the comparison, with a few printed lines."""
    for name, stage in grid_stages(ws.config).items():
        exhaust(ws.make(stage), name)
    print(*sorted(ws.run.path.glob("grid/s*/best_*.safetensors")), sep="\n")
    print(measures.comparison(grid_results(ws)).to_string())


@made_of(grid_stages)
def score_grids(ws: Workspace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What `MEASURES` has of each encoder, with cosine, error and collapse: a cell's rows."""
    shown = (*measures.MEASURES, "jepa_cosine_sim", "error", "collapsed")
    return [
        {"learner": row["model"]} | {name: row[name] for name in shown if name in row}
        for row in grid_results(ws)
    ]
