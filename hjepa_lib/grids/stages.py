"""Stages of seed 004: buffer, JEPA with its generative twin, goal-conditioned reward, result rows.

    grid_data                      grid/data/       buffer.npz, data.json
    grid_s{seed}, grid_twin_s{seed}  grid/s{seed}/    best_jepa_model.*, best_generative_model.*
    grid_reward_s{seed}            grid/s{seed}/reward/

`{seed}` counts training seeds 0, 1, ...; the weights and batches follow from `config.seed + seed`,
the data from `config.seed` alone. The two models train side by side, so their stages end together.
Of each there are `best_*_model.safetensors` (online encoder, target, action encoder, transition,
decoder), `.json` (settings, validation) and `.optimiser.pt` (AdamW's state at that update, read
with `weights_only`); numbered copies every `checkpoint_every` epochs. Result rows: gridresults.py.
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hjepa_lib.config import from_dict, to_dict
from hjepa_lib.config.grids import GridConfig
from hjepa_lib.evaluation.statistics import unestimable
from hjepa_lib.files import FileError, read_json, save_npz, write_atomic, write_json
from hjepa_lib.grids import buffer as grid_buffers
from hjepa_lib.grids import measures
from hjepa_lib.grids.buffer import GridBuffer
from hjepa_lib.grids.models import GridModel, build_grid_model
from hjepa_lib.grids.reward import GoalReward, build_reward
from hjepa_lib.grids.train import PairFit, Update, fit_grid, fit_reward, predict_reward
from hjepa_lib.grids.train import reward_rows as frozen_rows
from hjepa_lib.models.checkpoint import fingerprint, load_weights, save_weights
from hjepa_lib.runs.workspace import Workspace, log_row
from hjepa_lib.training.loop import Fit, Report, step_generator

KINDS = ("jepa", "generative")
STAGES = {"jepa": "grid_s{}", "generative": "grid_twin_s{}"}
ENCODERS = (*KINDS, "random")
"""Frozen encoders that a reward head is trained on; `random` is an untrained JEPA."""
BEST = "best_{}_model"
VALIDATION_ROWS = 256  # held-out transitions of every validation, always the same ones


# --- data -------------------------------------------------------------------------------------
def make_grid_data(ws: Workspace) -> tuple[GridBuffer, GridBuffer]:
    """(train, validation) by episode; stage `grid_data` plays or loads the buffer."""
    config, seed = ws.config.pixels.grid, ws.config.seed
    fraction = ws.config.pixels.data.validation_split
    if not ws.run.done("grid_data"):
        with ws.run.stage("grid_data", folder="grid/data") as folder:
            path = config.path
            data = grid_buffers.load(path) if path else grid_buffers.play(config, seed)
            parts = data.split(fraction, seed)
            data.save(folder / "buffer.npz")
            facts = {"source": path or "built-in grid world", "seed": seed, "size": data.size}
            facts |= {"transitions": len(data), "episodes": data.episodes, "sha256": data.sha256}
            facts["split"] = dict(zip(("train", "validation"), map(len, parts), strict=True))
            write_json(folder / "data.json", facts)
    data = grid_buffers.load(ws.run.path / "grid/data/buffer.npz")
    return data.split(fraction, seed)


# --- JEPA and twin ----------------------------------------------------------------------------
def train_grid_stage(ws: Workspace, seed: int) -> Iterator[Update]:
    """Stages `grid_s{seed}` and `grid_twin_s{seed}`: both models, until both have stalled."""
    names = {kind: STAGES[kind].format(seed) for kind in KINDS}
    if all(ws.run.done(name) for name in names.values()):
        return
    config = ws.config.pixels.grid
    train, validation = make_grid_data(ws)
    resume = ws.run.folder(f"resume/grid_s{seed}")
    pair = _pair(ws, seed, train, validation, resume)
    folder = f"grid/s{seed}"
    stage = ws.run.stage
    # Two manifest entries, one folder: the inner stage lists its files before JEPA's are there.
    with stage(names["jepa"], folder, ("grid_data",)) as target:
        with stage(names["generative"], folder, ("grid_data",)):
            yield from _follow(ws, pair, names, resume, config)
            _move(resume / "generative", target)
        _move(resume / "jepa", target)
    shutil.rmtree(resume)


def _pair(
    ws: Workspace, seed: int, train: GridBuffer, validation: GridBuffer, resume: Path
) -> PairFit:
    config, own = ws.config.pixels.grid, ws.config.seed + seed
    rows = torch.randperm(len(validation), generator=step_generator(ws.config.seed, 0))
    held = validation.batch(rows[:VALIDATION_ROWS].sort().values)
    check = {"jepa": measures.validate_jepa, "generative": measures.validate_twin}
    fits = {}
    for kind in KINDS:
        model = build_grid_model(kind, config, train.size, own).to(ws.device)
        fits[kind] = fit_grid(
            model, train, config.optim, lambda kind=kind, model=model: check[kind](model, held),
            seed=own, precision=ws.precision, folder=resume / kind,
        )  # fmt: skip
    # A budget of updates is spent whole; patience belongs to budgets in epochs.
    return PairFit(fits, 0 if config.optim.updates else config.optim.patience)


def _follow(
    ws: Workspace, pair: PairFit, names: dict[str, str], resume: Path, config: GridConfig
) -> Iterator[Update]:
    """Iterate the pair: log, keep the best and the numbered checkpoints."""
    for kind, name in names.items():
        ws.run.metrics.rewind(name, pair.fits[kind].update)
        _heal(resume / kind, kind, pair.fits[kind])
    epoch = pair.fits["jepa"].config.validate_every
    for done in pair:
        report, fit = done.report, pair.fits[done.kind]
        if report.update % config.log_every == 0 or report.validation:
            ws.run.log(_row(names[done.kind], done, epoch))
        if done.improved:
            _save(resume / done.kind, BEST.format(done.kind), fit, report.validation)
        every = config.checkpoint_every * epoch
        if every and report.update % every == 0:
            number = f"{done.kind}_model_epoch{report.update // epoch:04d}"
            _save(resume / done.kind, number, fit, report.validation)
        yield done


def _row(stage: str, done: Update, epoch: int) -> dict[str, Any]:
    """One line of metrics.jsonl with the keys of GRID-7 and GRID-8."""
    report = done.report
    row = {"stage": stage, "step": report.update, "epoch": report.update / epoch}
    row |= {"train/loss": report.loss, "train/learning_rate": report.lr}
    row |= {"train/grad_norm": report.grad_norm, "train/skipped": report.skipped}
    row |= {f"train/{name}": value for name, value in report.terms.items()}
    row["train/steps_per_second"] = 1 / max(done.seconds, 1e-9)
    return row | {f"val/{name}": value for name, value in report.validation.items()}


def _heal(folder: Path, kind: str, fit: Fit) -> None:
    """Write the best checkpoint if the process was killed just before it could."""
    path = folder / f"{BEST.format(kind)}.json"
    if fit.best and not (path.exists() and read_json(path)["loss"] == fit.best_loss):
        _save(folder, BEST.format(kind), fit, {"loss": fit.best_loss})


def _save(folder: Path, name: str, fit: Fit, validation: dict[str, float]) -> None:
    """Weights, JSON and optimiser state of the model as it is now."""
    model = fit.module
    save_weights(folder / f"{name}.safetensors", model)
    meta = {"kind": model.name, "config": to_dict(model.config), "size": model.size}
    meta |= {"update": fit.update, "loss": validation.get("loss"), "validation": validation}
    stream = io.BytesIO()
    torch.save(fit.optimiser.state_dict(), stream)
    write_atomic(folder / f"{name}.optimiser.pt", stream.getvalue())
    write_json(folder / f"{name}.json", meta)  # last: it says that the others are there


def _move(source: Path, target: Path) -> None:
    """The checkpoints, without the resume state of the training loop."""
    for path in sorted(source.glob("*_model*")):
        shutil.copyfile(path, target / path.name)


def load_grid_model(ws: Workspace, kind: str, seed: int) -> GridModel:
    """The frozen best model of a training seed; trains it if absent. `random` is untrained."""
    if kind == "random":
        train, _ = make_grid_data(ws)
        model = build_grid_model("jepa", ws.config.pixels.grid, train.size, ws.config.seed + seed)
    else:
        for _ in train_grid_stage(ws, seed):
            pass
        model = read_grid_model(ws.run.path / f"grid/s{seed}", kind)
    return model.to(ws.device).eval().requires_grad_(False)


def read_grid_model(folder: Path, kind: str, name: str = "") -> GridModel:
    """A model from its own JSON and safetensors, in eval mode on the CPU."""
    name = name or BEST.format(kind)
    meta = read_json(folder / f"{name}.json")
    if not isinstance(meta, dict) or meta.get("kind") not in ("grid_jepa", "grid_twin"):
        raise FileError(f"{folder / name}.json does not describe a grid model")
    model = build_grid_model(kind, from_dict(GridConfig, meta["config"]), meta["size"], 0)
    load_weights(folder / f"{name}.safetensors", model)
    return model.eval()


def load_optimiser(path: Path) -> dict[str, Any]:
    """AdamW's state dictionary, tensors and numbers only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FileError(f"{path} is no optimiser state") from error


# --- reward -----------------------------------------------------------------------------------
def train_reward_stage(ws: Workspace, seed: int) -> Iterator[Report]:
    """Stage `grid_reward_s{seed}`: one goal-conditioned head per frozen encoder, same start."""
    stage = f"grid_reward_s{seed}"
    if ws.run.done(stage):
        return
    train, validation = make_grid_data(ws)
    models = {kind: load_grid_model(ws, kind, seed) for kind in ENCODERS}
    optim, own = ws.config.pixels.grid.reward_optim, ws.config.seed + seed
    resume = ws.run.folder(f"resume/{stage}")
    needs = (
        "grid_data",
        *(name.format(seed) for name in STAGES.values()),
    )
    scores, arrays = {}, {"true": validation.reward}
    with ws.run.stage(stage, folder=f"grid/s{seed}/reward", reads=needs) as folder:
        for kind, model in models.items():
            before = fingerprint(model)
            seen, held = frozen_rows(model, train), frozen_rows(model, validation)
            head = build_reward(seen.latents, own).to(ws.device)
            fit = fit_reward(head, seen, held, optim, seed=own, folder=resume / kind)
            row = partial(log_row, every=ws.config.pixels.grid.log_every)
            yield from ws.follow(fit, f"{stage}_{kind}", row)
            fit.load_best()
            head.eval().requires_grad_(False)
            save_weights(folder / f"{kind}.safetensors", head)
            arrays[kind] = predict_reward(head, held.latents).numpy()
            dreamt = torch.stack([held.latents[:, 0], held.imagined, held.latents[:, 2]], dim=1)
            arrays[f"{kind}_imagined"] = predict_reward(head, dreamt).numpy()
            still = torch.stack([held.latents[:, i] for i in (0, 0, 2)], dim=1)
            arrays[f"{kind}_copy"] = predict_reward(head, still).numpy()
            if fingerprint(model) != before:
                raise FileError(f"training the reward changed the frozen {kind} encoder")
        arrays["mean"] = np.full_like(validation.reward, train.reward.mean())
        note = unestimable(train.reward, validation.reward)
        for name in [name for name in arrays if name != "true"]:
            scores[name] = measures.reward_report(arrays[name], validation.reward)
            if note:
                scores[name] |= {"r2": math.nan, "note": note}
        save_npz(folder / "predictions.npz", **arrays)
        facts = {"kind": "grid_reward", "latent_dim": head.latent_dim, "scores": scores}
        write_json(folder / "reward.json", facts)
    shutil.rmtree(resume)


def load_reward(ws: Workspace, kind: str, seed: int) -> GoalReward:
    """The head trained on the encoder `kind`, frozen; trains it if absent."""
    for _ in train_reward_stage(ws, seed):
        pass
    folder = ws.run.path / f"grid/s{seed}/reward"
    head = GoalReward(read_json(folder / "reward.json")["latent_dim"])
    load_weights(folder / f"{kind}.safetensors", head)
    return head.to(ws.device).eval().requires_grad_(False)
