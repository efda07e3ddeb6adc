"""The two stages of the V-JEPA 2 style model: how they are made and measured.

Every error has its trivial baseline beside it (a constant latent in stage 1, the last latent in
stage 2), since an L1 error on raw latents goes to 0 when all states get the same latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hjepa_lib.config import ConfigError
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.files import FileError, read_json, write_json
from hjepa_lib.models.layers import count_parameters, draw_masks
from hjepa_lib.pixels import registry
from hjepa_lib.pixels.grades import (
    Criterion,
    collapse,
    spread,
    stage1_criteria,
    stage2_criteria,
)
from hjepa_lib.pixels.makers import PixelLog, facts_of, fresh_model, options_of
from hjepa_lib.pixels.models import VJepa2
from hjepa_lib.pixels.stages import RESULT, STAGE1, find, make_transitions, seconds_of
from hjepa_lib.pixels.transitions import Transitions, shapes_of
from hjepa_lib.pixels.vjepa2 import (
    MaskedPrediction,
    WorldModel,
    encode_states,
    fit_stage1,
    fit_stage2,
    window_loss,
)
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Fit, Report

STAGES = {1: STAGE1, 2: "vjepa2_s{}"}
NAMES = {1: "stage1", 2: "vjepa2"}
"""What registry.py calls the model of a stage."""
FINAL = "vjepa2_world_model_final"
"""Weights after the last update of stage 2, beside the best ones."""
EVALUATION = "evaluation.json"
RATIOS = (0.25, 0.5, 0.75)
BATCHES, HELD_OUT, ROLLOUT = 5, 256, 8


# --- making -----------------------------------------------------------------------------------
def make_stage1(ws: Workspace, folder: Path, number: int) -> Iterator[Report]:
    """Masked pre-training, or the weights of `vjepa2.stage1.checkpoint`; and their evaluation."""
    config, stage = ws.config.pixels, STAGES[1].format(number)
    train, validation = make_transitions(ws)
    if source := config.vjepa2.stage1.checkpoint:
        facts = about(Path(source), 1, train) | {"loaded": True}
        model = registry.load_model(Path(source), NAMES[1]).to(ws.device)
    else:
        model = fresh_model(ws, NAMES[1], number, train)
        fit = fit_stage1(model, train, validation, config, **options_of(ws, stage, number))
        yield from ws.follow(fit, stage, PixelLog("stage1", "stage1", fit, config.log_every))
        facts = _facts(ws, number, fit, model, len(train))
        fit.save(resume_path(folder / registry.FILES[NAMES[1]]))
        fit.load_best()
    registry.save_model(folder, model.eval().requires_grad_(False), **facts)
    write_json(folder / EVALUATION, evaluate_stage1(model, train, validation))


def make_stage2(ws: Workspace, folder: Path, number: int) -> Iterator[Report]:
    """The world model on latents that the frozen encoder makes once.

    With `vjepa2.stage2.checkpoint` the encoder and everything else come from that file, and
    training goes on up to this run's number of updates.
    """
    config, stage = ws.config.pixels, STAGES[2].format(number)
    train, _ = make_transitions(ws)
    model = fresh_model(ws, NAMES[2], number, train)
    source = config.vjepa2.stage2.checkpoint
    path = Path(source) if source else find(ws, STAGES[1].format(number))
    first = about(path, 2 if source else 1, train)
    found = registry.load_model(path, NAMES[2 if source else 1])
    if source:  # the data that either of its stages has seen
        seen = {part.get("data_sha256", "") for part in (first, first["stage1"])}
        known = "" if "" in seen else " ".join(sorted(seen))
        first = first["stage1"] | {"loaded": True, "data_sha256": known}
    try:
        model.encoder.load_state_dict((found.encoder if source else found.online).state_dict())
    except RuntimeError as error:
        raise ConfigError(
            "the checkpoint's encoder has another size than pixels.encoder and "
            "pixels.vjepa2.stage1 ask for"
        ) from error
    world = model.world.requires_grad_(True)
    windows = latent_windows(ws, model)
    fit = fit_stage2(world, *windows, config, **options_of(ws, stage, number))
    if source and fit.update == 0:
        fit.resume(resume_path(path), same_settings=False)
    yield from ws.follow(fit, stage, PixelLog("stage2", "stage2", fit, config.log_every))
    loaded = first["loaded"]
    facts = _facts(ws, number, fit, model, len(windows[0])) | {
        "stage1": first,
        "updates": first["updates"] + fit.update,
        "stage_updates": [first["updates"], fit.update],
        # Stage 1 has the other models' batches; weights from a file saw batches unknown here.
        "batches_sha256": "" if loaded else first["batches_sha256"],
        "loaded": loaded,
        "loaded_data_sha256": first.get("data_sha256", "") if loaded else "",
        "early_stopping": fit.config.patience > 0 or first["early_stopping"],
        "earlier_seconds": 0.0 if source else seconds_of(ws, STAGE1.format(number)),
    }
    registry.save_model(folder, model, FINAL, **facts)
    fit.save(resume_path(folder / registry.FILES[NAMES[2]]))
    fit.load_best()
    model.requires_grad_(False)
    registry.save_model(folder, model, **facts)
    write_json(folder / EVALUATION, evaluate_stage2(world, *windows, config))
    write_json(folder / RESULT, facts)


def about(path: Path, stage: int, train: Transitions) -> dict[str, Any]:
    """What a checkpoint says of its training; FileError when it is none for these images."""
    meta = registry.about_model(path, NAMES[stage])
    here = shapes_of(train)._asdict()
    for key, value in meta["shapes"].items():
        if here[key] != value:
            raise FileError(f"{path} was trained with {key}={value}, this data has {here[key]}")
    return {key: meta[key] for key in meta if key not in ("kind", "config", "shapes")}


def resume_path(path: Path) -> Path:
    """State to go on from, beside the weights `path`."""
    return path.with_name(f"resume_{path.stem}.pt")


def _facts(ws: Workspace, number: int, fit: Fit, model: nn.Module, rows: int) -> dict[str, Any]:
    """What a checkpoint says about its training; `epochs` are passes through `rows`."""
    every = sum(p.numel() for p in model.parameters())
    return facts_of(ws, "vjepa2", number, fit) | {
        "epochs": fit.update * fit.config.batch / rows,
        "halvings": fit.halvings,
        "patience": fit.config.patience,
        "parameters": {"total": every, "trained": count_parameters(fit.module)},
    }


# --- measuring --------------------------------------------------------------------------------
def stored_evaluation(ws: Workspace, stage: int, number: int) -> dict[str, Any]:
    """The evaluation that a stage left; ConfigError when it is not trained."""
    return read_json(_trained(ws, stage, number) / EVALUATION)


def evaluate(ws: Workspace, stage: int, number: int) -> dict[str, Any]:
    """The stored weights of a stage measured anew, on the workspace's device."""
    model = registry.load_model(_trained(ws, stage, number), NAMES[stage]).to(ws.device)
    if stage == 1:
        return evaluate_stage1(model, *make_transitions(ws))
    return evaluate_stage2(model.world, *latent_windows(ws, model), ws.config.pixels)


def latent_windows(ws: Workspace, model: VJepa2) -> list[TensorDataset]:
    """Frozen latents of the training and the validation part."""
    length = ws.config.pixels.data.sequence
    return [encode_states(model, part, length) for part in make_transitions(ws)]


def criteria(ws: Workspace, stage: int, number: int, result: dict[str, Any]) -> list[Criterion]:
    """Success criteria of an evaluation, with the run's validation losses and epochs."""
    rows = ws.run.records(STAGES[stage].format(number))
    losses = [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]
    if stage == 1:
        return stage1_criteria(result, losses)
    facts = registry.about_model(_trained(ws, stage, number), NAMES[2])
    return stage2_criteria(result, losses, facts["epochs"], facts["patience"])


def _trained(ws: Workspace, stage: int, number: int) -> Path:
    name = STAGES[stage].format(number)
    if not ws.run.done(name):
        raise ConfigError(
            f"run {ws.run.name!r} has no stage {stage} of training seed {number}: train it first"
        )
    return ws.run.stage_folder(name)


def _rows(count: int, most: int = HELD_OUT) -> Tensor:
    """At most `most` of `count` indices, evenly spread and always the same."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


@torch.no_grad()
def masked_latents(
    model: MaskedPrediction, data: Transitions, rows: Tensor, ratio: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Predicted and target latents (len(rows), D) with `ratio` of the patches hidden, eval mode."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for index in rows.split(64):
        mask = draw_masks(len(index), model.online.patches, ratio, generator).to(device)
        pairs.append(model.predict(data[index].state.to(device), mask))
    named, target = (torch.cat(part) for part in zip(*pairs, strict=True))
    return named, target


def evaluate_stage1(
    model: MaskedPrediction, train: Transitions, validation: Transitions
) -> dict[str, Any]:
    """L1 at three mask ratios over 5 batches, graded errors, and what collapse would show in.

    Training and validation are measured alike: best weights, eval mode, the same masks.
    """
    stage = model.stage
    few = _rows(len(validation), BATCHES * stage.optim.batch)
    ladder = {ratio: F.l1_loss(*masked_latents(model, validation, few, ratio)) for ratio in RATIOS}
    parts = [masked_latents(model, d, _rows(len(d)), stage.mask) for d in (train, validation)]
    errors = [F.l1_loss(*part).item() for part in parts]
    constant = parts[0][1].median(dim=0).values  # the constant with the lowest L1 error
    std, rank = spread(parts[1][1])
    return {
        "masked_l1": {str(ratio): value.item() for ratio, value in ladder.items()},
        "train": errors[0],
        "validation": errors[1],
        "ratio": errors[1] / errors[0] if errors[0] > 0 else math.inf,
        "constant": (parts[1][1] - constant).abs().mean().item(),
        "std": std,
        "effective_rank": rank,
        "collapsed": collapse(parts[1][1]),
    }


@torch.no_grad()
def rollout_errors(world: WorldModel, data: TensorDataset, rows: Tensor, steps: int) -> dict:
    """Mean L1 error after 1..steps imagined steps, (steps,) each: the model's, and copy-last's."""
    now, action, then = (part[:, :steps] for part in data[rows])
    imagined = world.eval().rollout(now[:, 0], action, steps)
    return {
        "model": (imagined - then).abs().mean(dim=(0, 2)).tolist(),
        "copy_last": (now[:, :1] - then).abs().mean(dim=(0, 2)).tolist(),
    }


@torch.no_grad()
def evaluate_stage2(
    world: WorldModel, train: TensorDataset, validation: TensorDataset, config: PixelsConfig
) -> dict[str, Any]:
    """Mean L1 over 5 batches, graded losses, errors of an 8-step roll-out against copy-last."""
    length = config.data.sequence
    few = _rows(len(validation), BATCHES * config.vjepa2.stage2.optim.batch)
    first, second = (window_loss(world, part, config) for part in (train, validation))
    now, action, then = validation[few]
    forced = world.eval()(now, action)
    latents, named = now[:, -1], forced[:, -1]  # one state per window: neighbours are alike
    std, rank = spread(latents)
    lost = collapse(named)
    return {
        "mean_l1": F.l1_loss(forced, then).item(),
        "copy_last_l1": F.l1_loss(now, then).item(),
        "total": second["loss"],
        "teacher_forcing": second["teacher_forcing"],
        "rollout": second["rollout"],
        "train_total": first["loss"],
        "ratio": second["loss"] / first["loss"] if first["loss"] > 0 else math.inf,
        "per_step": rollout_errors(world, validation, few, min(ROLLOUT, length)),
        "std": std,
        "effective_rank": rank,
        "predicted_std": spread(named)[0],
        "collapsed": collapse(latents) or (f"predicted {lost}" if lost else ""),
    }


class Example(NamedTuple):
    """One imagined future beside the encoded one."""

    true: Tensor  # (T + 1, D), the given start first
    imagined: Tensor  # (T, D)
    action: Tensor  # (T,) first number of the action embedding


@torch.no_grad()
def example(world: WorldModel, data: TensorDataset, steps: int) -> Example:
    """The roll-out over that window of `data` in which the latent moves farthest."""
    now, action, then = (part[:, :steps] for part in data.tensors)
    far = int((then[:, -1] - now[:, 0]).norm(dim=1).argmax())
    imagined = world.eval().rollout(now[far, None, 0], action[far, None], steps)[0]
    true = torch.cat([now[far, :1], then[far]])
    return Example(true.cpu(), imagined.cpu(), world.embedding(action[far])[:, 0].cpu())
