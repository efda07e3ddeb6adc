"""The stages of the V-JEPA 2 style model, for training seeds 0, 1, ... of a run.

`vjepa2_stage1_s{seed}` is masked pre-training, `vjepa2_s{seed}` the world model on its frozen
encoder; both write to `pixels/vjepa2/s{seed}`. As everywhere, a training stage is a generator of
reports and yields nothing when it is done. Stage 1 may come from a checkpoint instead, and stage 2
may go on where another run's ended (`resume_path`): such a result says `loaded`, carries
no hash of batches, and nothing is claimed from it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hjepa_lib.config import from_dict
from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.files import FileError, write_json
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.pixels import collect as pixeldata
from hjepa_lib.pixels import grades as scores
from hjepa_lib.pixels.models import VJepa2
from hjepa_lib.pixels.registry import FILES, about_model, load_model, save_model
from hjepa_lib.pixels.transitions import Transitions, shapes_of
from hjepa_lib.pixels.vjepa2 import (
    MaskedPrediction,
    MaskedViT,
    encode_states,
    fit_stage1,
    fit_stage2,
)
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.batches import batches_sha256
from hjepa_lib.training.loop import Fit, Report

NAMES = {1: "stage1", 2: "vjepa2"}
FINAL = "vjepa2_world_model_final"
"""Weights after the last update of stage 2, beside the best ones."""
EVALUATION = {1: "stage1_evaluation.json", 2: "stage2_evaluation.json"}


def stage_name(stage: int, seed: int) -> str:
    """Name in the manifest of stage 1 or 2."""
    return f"vjepa2_stage1_s{seed}" if stage == 1 else f"vjepa2_s{seed}"


def folder_of(seed: int) -> str:
    return f"pixels/vjepa2/s{seed}"


def checkpoint(ws: Workspace, stage: int, seed: int) -> Path:
    """Where the best weights of a stage lie."""
    return ws.run.path / folder_of(seed) / f"{FILES[NAMES[stage]]}.safetensors"


def resume_path(path: Path) -> Path:
    """State to go on from, beside the weights `path`."""
    return path.with_name(f"resume_{path.stem}.pt")


def train_vjepa2_stage(ws: Workspace, seed: int) -> Iterator[Report]:
    """Both stages in turn."""
    yield from train_stage1(ws, seed)
    yield from train_stage2(ws, seed)


# --- stage 1 ----------------------------------------------------------------------------------
def train_stage1(ws: Workspace, seed: int) -> Iterator[Report]:
    """Masked pre-training; stores the best weights, the state to go on, and the evaluation."""
    name = stage_name(1, seed)
    if ws.run.done(name) or ws.run.done(stage_name(2, seed)):
        return
    train, validation = pixeldata.make_transitions(ws)
    config, number = ws.config.pixels, ws.config.seed + seed
    torch.manual_seed(number)  # before any weight is drawn (EB5)
    model = MaskedPrediction(config, shapes_of(train)).to(ws.device)
    resume = ws.run.folder(f"resume/{name}")
    with ws.run.stage(name, folder=folder_of(seed), reads=("pixel_data",)) as folder:
        begin = time.perf_counter()
        fit = fit_stage1(
            model, train, validation, config, seed=number, precision=ws.precision, folder=resume
        )
        yield from _follow(ws, name, fit, "stage1", len(train))
        facts = _facts(fit, time.perf_counter() - begin, len(train))
        facts["data_sha256"] = pixeldata.load_transitions(ws).sha256
        facts["parameters"] = {
            "total": sum(p.numel() for p in model.parameters()),
            "trainable": count_parameters(model),
        }
        fit.save(resume_path(folder / FILES["stage1"]))
        fit.load_best()
        model.eval().requires_grad_(False)
        save_model(folder, model, **facts)
        write_json(folder / EVALUATION[1], scores.evaluate_stage1(model, train, validation, config))
    shutil.rmtree(resume)


def adopt_stage1(ws: Workspace, seed: int, path: Path) -> None:
    """Take stage 1 from the checkpoint `path` instead of training it; FileError if it is none."""
    name = stage_name(1, seed)
    if ws.run.done(name):
        raise ConfigError(f"run {ws.run.name!r} has a stage 1 of its own: drop the checkpoint")
    path = Path(path)
    if not path.is_file():
        raise FileError(
            f"stage 2 needs stage 1's checkpoint, and {path} does not exist: train stage 1 first, "
            "or name another file"
        )
    model = load_model(path, "stage1")
    meta = about_model(path, "stage1")
    train, validation = pixeldata.make_transitions(ws)
    _require_same_images(meta, path, train)
    with ws.run.stage(name, folder=folder_of(seed), reads=("pixel_data",)) as folder:
        shutil.copyfile(path, folder / f"{FILES['stage1']}.safetensors")
        write_json(folder / f"{FILES['stage1']}.json", meta | {"loaded": True})
        config = from_dict(PixelsConfig, meta["config"])
        result = scores.evaluate_stage1(model.to(ws.device), train, validation, config)
        write_json(folder / EVALUATION[1], result)
    ws.run.note(name, f"from {path}")


# --- stage 2 ----------------------------------------------------------------------------------
def train_stage2(ws: Workspace, seed: int, resume_from: Path | None = None) -> Iterator[Report]:
    """The world model on latents that the frozen encoder makes once.

    With `resume_from` the encoder and everything else come from that checkpoint of stage 2, and
    training goes on up to this run's number of updates.
    """
    name = stage_name(2, seed)
    if ws.run.done(name):
        return
    train, validation = pixeldata.make_transitions(ws)
    config, number = ws.config.pixels, ws.config.seed + seed
    torch.manual_seed(number)
    model = VJepa2(config, shapes_of(train)).to(ws.device)
    earlier = None
    if resume_from is None:
        path = checkpoint(ws, 1, seed)
        first = _about_stage1(about_model(path, "stage1"))
        _copy_encoder(load_model(path, "stage1").online, model)
    else:
        earlier = _earlier(resume_from, train)
        first = _about_earlier(about_model(resume_from, "vjepa2"))
        _copy_encoder(earlier.encoder, model)
    world = model.world.requires_grad_(True)
    needs = (
        "pixel_data",
        stage_name(1, seed),
    )
    resume = ws.run.folder(f"resume/{name}")
    with ws.run.stage(name, folder=folder_of(seed), reads=needs) as folder:
        begin = time.perf_counter()
        length = config.data.sequence
        parts = [encode_states(model, part, length) for part in (train, validation)]
        fit = fit_stage2(world, *parts, config, seed=number, precision=ws.precision, folder=resume)
        if earlier is not None and fit.update == 0:
            fit.resume(resume_path(resume_from), same_settings=False)
        yield from _follow(ws, name, fit, "stage2", len(parts[0].first))
        facts = _facts(fit, time.perf_counter() - begin, len(parts[0].first))
        facts |= {"stage1": first, "data_sha256": pixeldata.load_transitions(ws).sha256}
        save_model(folder, model, FINAL, **facts)
        fit.save(resume_path(folder / FILES["vjepa2"]))
        fit.load_best()
        model.requires_grad_(False)
        world.eval()
        save_model(folder, model, **facts)
        write_json(folder / EVALUATION[2], scores.evaluate_stage2(world, *parts, config))
        write_json(folder / "result.json", _result(ws, seed, model, (train, validation), facts))
    shutil.rmtree(resume)


def _earlier(path: Path, train: Transitions) -> VJepa2:
    if not Path(path).is_file():
        raise FileError(f"stage 2 cannot go on from {path}: it does not exist")
    model = load_model(path, "vjepa2")
    _require_same_images(about_model(path, "vjepa2"), path, train)
    return model


def _about_stage1(meta: dict[str, Any]) -> dict[str, Any]:
    """What stage 2's files keep of stage 1's description."""
    kept = ("updates", "epochs", "best_loss", "skipped", "batch", "seconds", "parameters")
    loaded = {"loaded": meta.get("loaded", False), "data_sha256": meta.get("data_sha256", "")}
    return {key: meta[key] for key in kept} | loaded


def _about_earlier(meta: dict[str, Any]) -> dict[str, Any]:
    """The same of a stage 2 that goes on elsewhere, with the data that either stage has seen."""
    seen = {part.get("data_sha256", "") for part in (meta, meta["stage1"])}
    known = "" if "" in seen else " ".join(sorted(seen))
    return meta["stage1"] | {"loaded": True, "data_sha256": known}


def _require_same_images(meta: dict[str, Any], path: Path, train: Transitions) -> None:
    here = shapes_of(train)._asdict()
    for key, value in meta["shapes"].items():
        if here[key] != value:
            raise FileError(f"{path} was trained with {key}={value}, this data has {here[key]}")


def _copy_encoder(encoder: MaskedViT, model: VJepa2) -> None:
    """ConfigError when the settings ask for another size than the trained encoder has."""
    try:
        model.encoder.load_state_dict(encoder.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            "the checkpoint's encoder has another size than pixels.encoder and "
            "pixels.vjepa2.stage1 ask for"
        ) from error


# --- using it ---------------------------------------------------------------------------------
def load_vjepa2(ws: Workspace, seed: int) -> VJepa2:
    """The model with its best weights, frozen, on the run's device; trained here if absent."""
    for _ in train_vjepa2_stage(ws, seed):
        pass
    return load_model(checkpoint(ws, 2, seed), "vjepa2").to(ws.device)


def _follow(ws: Workspace, name: str, fit: Fit, prefix: str, rows: int) -> Iterator[Report]:
    """Iterate a fit and log it with the keys of LOG-3 beside the house's plain ones."""
    ws.run.metrics.rewind(name, fit.update)
    every = ws.config.pixels.log_every
    for report in fit:
        if report.update % every == 0 or report.update == 1 or report.validation:
            row: dict[str, Any] = {"stage": name, "step": report.update, "lr": report.lr}
            row |= {"loss": report.loss, "grad_norm": report.grad_norm, "skipped": report.skipped}
            row |= report.terms
            row |= {f"{prefix}/train_loss": report.loss, f"{prefix}/learning_rate": report.lr}
            row[f"{prefix}/epoch"] = report.update * fit.config.batch / rows
            row |= {f"validation_{key}": value for key, value in report.validation.items()}
            if report.validation:
                row[f"{prefix}/val_loss"] = report.validation["loss"]
            for term in ("teacher_forcing", "rollout"):
                if term in report.terms:
                    row[f"{prefix}/{term}_loss"] = report.terms[term]
            ws.run.log(row)
        yield report


def _facts(fit: Fit, seconds: float, rows: int) -> dict[str, Any]:
    """What a checkpoint says about its training; `epochs` are passes through the training part."""
    config = fit.config
    return {
        "updates": fit.update,
        "epochs": fit.update * config.batch / rows,
        "best_loss": fit.best_loss,
        "skipped": fit.skipped,
        "halvings": fit.halvings,
        "patience": config.patience,
        "batch": config.batch,
        "seconds": round(seconds, 3),
    }


def _result(
    ws: Workspace, seed: int, model: nn.Module, parts: tuple, facts: dict[str, Any]
) -> dict[str, Any]:
    """The row of the comparison: same keys as the other models', stage 2 apart (rule 1).

    Weights that came from a file saw batches that this run knows nothing of: no hash of them.
    """
    train, validation = parts
    number = ws.config.seed + seed
    first = facts["stage1"]
    counts = {
        "encoder": sum(p.numel() for p in model.encoder.parameters()),
        "world": sum(p.numel() for p in model.world.parameters()),
    }
    batches = batches_sha256(len(train), first["batch"], number)
    return {
        "model": "vjepa2",
        "seed": number,
        "data_sha256": pixeldata.load_transitions(ws).sha256,
        "batches_sha256": "" if first["loaded"] else batches,
        "loaded": first["loaded"],
        "loaded_data_sha256": first.get("data_sha256", "") if first["loaded"] else "",
        "transitions": {"training": len(train), "validation": len(validation)},
        "updates": first["updates"],
        "stage2_updates": facts["updates"],
        "skipped": first["skipped"] + facts["skipped"],
        "best_loss": facts["best_loss"],
        "seconds": round(first["seconds"] + facts["seconds"], 3),
        "parameters": counts | {"total": sum(counts.values()), "stored": sum(counts.values())},
        "stage1_parameters": first["parameters"],
    }
