"""Stages of seed 004 (buffer, JEPA with its twin, rewards), its result rows and tuning table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hjepa_lib.config import Config, from_dict, to_dict
from hjepa_lib.config.grids import GridConfig
from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.evaluation.statistics import unestimable
from hjepa_lib.files import FileError, plain, read_json, save_npz, write_atomic, write_json
from hjepa_lib.grids import buffer, measures
from hjepa_lib.grids.models import KINDS, GridModel, build_grid_model, build_reward
from hjepa_lib.grids.train import fit_grid, fit_reward, predict_reward, reward_latents, train_pair
from hjepa_lib.grids.world import FACTS
from hjepa_lib.models.checkpoint import load_module, save_module
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.runs.keys import Stage
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.stages import exhaust
from hjepa_lib.runs.workspace import Workspace, log_row
from hjepa_lib.training.loop import Report, batches_sha256, step_generator

LOGS = {"jepa": "grid_s{}", "generative": "grid_twin_s{}"}
"""Names in metrics.jsonl of the two models of a training seed."""
ENCODERS = (*KINDS, "random")
"""Frozen encoders that a reward head is trained on; `random` is an untrained JEPA."""
BEST, ROWS = "best_{}_model", "grid/results.json"
VALIDATION_ROWS = 256  # held-out transitions of every validation, always the same ones
CHECKS = {"jepa": measures.validate_jepa, "generative": measures.validate_twin}
CHECKS["random"] = CHECKS["jepa"]
PATHS = {"reward": [0, 1, 2], "imagined": [0, 3, 2], "copy": [0, 0, 2]}
"""Which of the latents now, next, goal and imagined a reward is predicted from."""
_DATA = ("path", "size", "episodes", "steps")
_MODELS = tuple(
    f"pixels.grid.{field.name}"
    for field in dataclasses.fields(GridConfig)
    if field.name not in (*_DATA, "reward_optim", "log_every")
)


def grid_stages(config: Config) -> dict[str, Stage]:
    """{name: stage}: `grid_data`, and of every training seed n `grid_s{n}`, `grid_reward_s{n}`."""
    path = config.pixels.grid.path
    files = (path,) if path else ()
    shaping = (*(f"pixels.grid.{name}" for name in _DATA), "pixels.data.validation_split")
    data = Stage("grid_data", make_data, shaping, folder="grid/data", files=files, recorded=True)
    found = [data]
    for n in range(config.pixels.seeds):
        folder, make = f"grid/s{n}", partial(make_pair, n=n)
        pair = Stage(f"grid_s{n}", make, _MODELS, (data,), folder=folder, about=n)
        reward = Stage(
            f"grid_reward_s{n}", partial(make_rewards, n=n), ("pixels.grid.reward_optim",),
            (data, pair), folder=f"{folder}/reward", about=n,
        )  # fmt: skip
        found += [pair, reward]
    return {stage.name: stage for stage in found}


def make_data(ws: Workspace, folder: Path) -> None:
    """Play or load the buffer: buffer.npz, data.json."""
    config, seed = ws.config.pixels.grid, ws.config.seed
    data = buffer.load(config.path) if config.path else buffer.play(config, seed)
    parts = data.split(ws.config.pixels.data.validation_split, seed)
    data.save(folder / "buffer.npz")
    facts = {"source": config.path or "built-in grid world", "seed": seed, "size": data.size}
    facts |= {"transitions": len(data), "episodes": data.episodes, "sha256": data.sha256}
    facts["split"] = dict(zip(("train", "validation"), map(len, parts), strict=True))
    write_json(folder / "data.json", facts)


def load_data(ws: Workspace) -> tuple[buffer.GridBuffer, buffer.GridBuffer]:
    """(train, validation) by episode."""
    folder = ws.obtain(grid_stages(ws.config)["grid_data"])
    fraction = ws.config.pixels.data.validation_split
    return buffer.load(folder / "buffer.npz").split(fraction, ws.config.seed)


# --- JEPA and twin ----------------------------------------------------------------------------
def make_pair(ws: Workspace, folder: Path, n: int) -> Iterator[Report]:
    """Both models until both have stalled: best weights, numbered ones every `checkpoint_every`."""
    config, own = ws.config.pixels.grid, ws.config.seed + n
    train, validation = load_data(ws)
    rows = torch.randperm(len(validation), generator=step_generator(ws.config.seed, 0))
    held = validation.batch(rows[:VALIDATION_ROWS].sort().values)
    fits = {}
    for kind in KINDS:
        model = build_grid_model(kind, config, train.size, own).to(ws.device)
        fit = fits[kind] = fit_grid(
            model, train, config.optim, partial(CHECKS[kind], model, held), seed=own,
            precision=ws.precision, folder=ws.resume(f"grid_s{n}/{kind}"),
            stage=LOGS[kind].format(n),
        )  # fmt: skip
        ws.run.metrics.rewind(fit.stage, fit.update)
    for kind, report in train_pair(fits, config.optim.optim(len(train)).patience):
        model, epoch = fits[kind].module, fits[kind].config.validate_every
        row = _row(report, epoch, model.seconds)
        if report.update % config.log_every == 0 or report.validation:
            ws.run.log(row)
        if config.checkpoint_every and report.update % (config.checkpoint_every * epoch) == 0:
            _save(folder / f"{kind}_model_epoch{report.update // epoch:04d}", kind, model, row)
        yield report
    for kind, fit in fits.items():
        fit.load_best()
        rows = {row.get("val/loss"): row for row in reversed(ws.run.records(fit.stage))}
        # Killed between checkpoint and log, a training has no line of its best.
        lost = {"step": fit.update, "val/loss": fit.best_loss}
        _save(folder / BEST.format(kind), kind, fit.module, rows.get(fit.best_loss, lost))


def _row(report: Report, epoch: int, seconds: float) -> dict[str, Any]:
    """One line of metrics.jsonl with the keys of GRID-7 and GRID-8."""
    row = {"stage": report.stage, "step": report.update, "epoch": report.update / epoch}
    found = {"loss": report.loss, "learning_rate": report.lr, "grad_norm": report.grad_norm}
    found |= {"skipped": report.skipped, **report.terms, "steps_per_second": 1 / seconds}
    row |= {f"train/{name}": value for name, value in found.items()}
    return row | {f"val/{name}": value for name, value in report.validation.items()}


def _save(path: Path, kind: str, model: GridModel, row: dict[str, Any]) -> None:
    """`<path>.safetensors` and `.json`: settings, update and validation (a logged row)."""
    found = {name[4:]: value for name, value in row.items() if name.startswith("val/")}
    facts = {"update": row["step"], "loss": found.get("loss"), "validation": found}
    config = to_dict(model.config)
    save_module(path, model, f"grid_{kind}", config=config, size=model.size, **facts)


def load_grid_model(ws: Workspace, kind: str, n: int) -> GridModel:
    """The frozen best model of a training seed, obtained if absent. `random` is untrained."""
    if kind == "random":
        size = load_data(ws)[0].size
        model = build_grid_model("jepa", ws.config.pixels.grid, size, ws.config.seed + n)
    else:
        folder = ws.obtain(grid_stages(ws.config)[f"grid_s{n}"])
        model = read_grid_model(folder / BEST.format(kind), kind)
    return model.to(ws.device).eval().requires_grad_(False)


def read_grid_model(path: Path, kind: str) -> GridModel:
    """A model from `<path>.json` and `.safetensors`, frozen, on the CPU."""

    def build(meta: dict[str, Any]) -> GridModel:
        return build_grid_model(kind, from_dict(GridConfig, meta["config"]), meta["size"], 0)

    return load_module(path, f"grid_{kind}", build)


# --- reward -----------------------------------------------------------------------------------
def make_rewards(ws: Workspace, folder: Path, n: int) -> Iterator[Report]:
    """One goal-conditioned head per frozen encoder, same start; reward.json, predictions.npz."""
    config, own = ws.config.pixels.grid, ws.config.seed + n
    parts = load_data(ws)
    rewards = [torch.from_numpy(part.reward) for part in parts]
    true, arrays = parts[1].reward, {}
    for kind in ENCODERS:
        model = load_grid_model(ws, kind, n)
        latents = [reward_latents(model, part) for part in parts]
        train, validation = (
            (rows[:, PATHS["reward"]], reward)
            for rows, reward in zip(latents, rewards, strict=True)
        )
        head = build_reward(train[0], own).to(ws.device)
        stage = f"grid_reward_s{n}_{kind}"
        fit = fit_reward(
            head, train, validation, config.reward_optim, seed=own,
            folder=ws.resume(f"grid_reward_s{n}/{kind}"), stage=stage,
        )  # fmt: skip
        yield from ws.follow(fit, stage, partial(log_row, every=config.log_every))
        fit.load_best()
        head.eval().requires_grad_(False)
        save_module(folder / kind, head, "grid_reward", latent_dim=head.latent_dim)
        for name, path in PATHS.items():
            arrays[_score(kind, name)] = predict_reward(head, latents[1][:, path]).numpy()
    arrays["mean"] = np.full_like(true, parts[0].reward.mean())
    note = unestimable(parts[0].reward, true)
    unknown = {"r2": math.nan, "note": note} if note else {}
    scores = {
        name: measures.reward_report(values, true) | unknown for name, values in arrays.items()
    }
    save_npz(folder / "predictions.npz", true=true, **arrays)
    write_json(folder / "reward.json", {"scores": scores})


def _score(kind: str, path: str) -> str:
    """The name of a predictor in reward.json and predictions.npz."""
    return kind if path == "reward" else f"{kind}_{path}"


# --- results ----------------------------------------------------------------------------------
def grid_results(ws: Workspace) -> list[dict[str, Any]]:
    """One row per encoder and training seed, written to `grid/results.json`; trains what lacks."""
    train, validation = load_data(ws)
    stages, batch = grid_stages(ws.config), ws.config.pixels.grid.optim.batch
    facts = {"data_sha256": read_json(ws.obtain(stages["grid_data"]) / "data.json")["sha256"]}
    held = validation.sample(2000)
    sample = train.batch(torch.arange(min(batch, len(train)))).to(ws.device)
    rows = []
    for n in range(ws.config.pixels.seeds):
        own = ws.config.seed + n
        for name in (f"grid_s{n}", f"grid_reward_s{n}"):
            for _ in ws.make(stages[name]):
                pass
        scores = read_json(ws.obtain(stages[name]) / "reward.json")["scores"]
        facts["batches_sha256"] = batches_sha256(len(train), batch, own)
        for kind in ENCODERS:
            model = load_grid_model(ws, kind, n)
            row = {"model": kind, "seed": own, **facts, **CHECKS[kind](model, held)}
            del row["loss"]
            row |= {"collapsed": measures.collapsed(row), "held_out": len(held.action)}
            row["fact_accuracy"] = measures.fact_accuracy(model, train, validation)
            for path in PATHS:
                one = scores[_score(kind, path)]
                row |= {f"{path}_{part}": one[part] for part in ("r2", "mse")}
            row["mean_reward_mse"] = scores["mean"]["mse"]
            rows.append(row | ({} if kind == "random" else _cost(ws, kind, n, model, sample)))
    rows = plain(rows)
    write_json(ws.run.path / ROWS, rows)
    leave_section(ws.run, "30-grid", section(rows))
    return rows


def section(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The measured comparison of the grid models for the run's report and summary (GRID-10)."""
    table = measures.comparison(rows)
    cells = table.astype(object).where(table.notna(), "–").reset_index().to_numpy().tolist()
    pairs = measures.paired_sentences(rows)
    return {
        "title": "Models of a grid world",
        "tables": [{"columns": ["Measure", *table.columns], "rows": cells}],
        "lists": {"Paired by training seed, interval over seeds alone": pairs} if pairs else {},
        "data": {"rows": rows},
    }


def _cost(
    ws: Workspace, kind: str, n: int, model: GridModel, sample: buffer.GridBatch
) -> dict[str, Any]:
    """Parameters, memory and time; an untrained encoder has cost nothing."""
    fresh = build_grid_model(kind, model.config, model.size, 0).to(ws.device)
    records = ws.run.records(LOGS[kind].format(n))
    rates = [row["train/steps_per_second"] or math.nan for row in records]
    seconds = 1 / float(np.nanmedian(rates))
    updates = max(row["step"] for row in records)
    return {
        "parameters": count_parameters(fresh),
        "outputs": model.latent_dim if kind == "jepa" else model.size**2 + len(FACTS),
        "memory_mb": update_bytes(fresh, lambda: fresh.loss(sample)[0]) / 1e6,
        "ms_per_update": 1000 * seconds,
        "updates": updates,
        "train_seconds": seconds * updates,
    }


def train_all(ws: Workspace) -> None:
    """All stages with a few printed lines on the way; then the comparison."""
    for name, stage in grid_stages(ws.config).items():
        exhaust(ws.make(stage), name)
    print(*sorted(ws.run.path.glob("grid/s*/best_*.safetensors")), sep="\n")
    rows = grid_results(ws)
    print(f"results: {ws.run.path / ROWS}\n{measures.comparison(rows).to_string()}")


def write_tuning_table(runs: Iterable[tuple[dict[str, Any], Path]], folder: Path) -> Path:
    """`grid_results.csv` of a sweep in `folder`: mean over seeds per setting and encoder.

    `runs` are swept values with the run's folder each; unfinished ones are passed over. FileError
    when none has finished.
    """
    rows = []
    for values, run in runs:
        if (run / ROWS).is_file():
            swept = {name: str(value) for name, value in values.items()}
            rows += [swept | row for row in read_json(run / ROWS)]
    if not rows:
        raise FileError(f"no run of the sweep {folder.name!r} has finished in {folder.parent}")
    table = pd.DataFrame(rows)
    shown = (*measures.MEASURES, "jepa_cosine_sim", "error", "collapsed")
    groups = table.groupby([*swept, "model"], sort=False)
    found = groups[[column for column in shown if column in table]].mean()
    found = found.rename(columns={"collapsed": "collapse_rate"})
    found["seeds"] = groups["seed"].nunique()
    return write_atomic(folder / "grid_results.csv", found.reset_index().to_csv(index=False))
