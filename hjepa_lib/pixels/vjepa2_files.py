"""Checkpoints of the two-stage model: safetensors weights, JSON beside them, state to resume from.

    best_stage1_model         online encoder, target encoder, predictor (lowest validation loss)
    best_stage2_model         encoder and world model (lowest validation loss)
    vjepa2_world_model_final  encoder and world model after the last update

`resume_<name>.pt` holds weights, optimiser and schedule of the last update for going on; it is read
with torch's weights-only loader, so nothing is ever unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hjepa_lib.config import from_dict, to_dict
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.files import FileError, read_json, write_json
from hjepa_lib.models.checkpoint import load_weights, save_weights
from hjepa_lib.pixels.models import VJepa2
from hjepa_lib.pixels.transitions import PixelShapes
from hjepa_lib.pixels.vjepa2 import MaskedPrediction
from hjepa_lib.training.loop import Fit, TrainingError

STAGE1, STAGE2, FINAL = "best_stage1_model", "best_stage2_model", "vjepa2_world_model_final"
SUFFIX = ".safetensors"
KIND = "vjepa2"


def save_checkpoint(
    folder: Path,
    name: str,
    module: nn.Module,
    config: PixelsConfig,
    shapes: PixelShapes,
    stage: int,
    facts: dict[str, Any],
) -> Path:
    """Write weights and description; `facts` are epoch, update, best loss and the like."""
    path = folder / f"{name}{SUFFIX}"
    save_weights(path, module)
    meta = {"kind": KIND, "stage": stage, "config": to_dict(config), "shapes": shapes._asdict()}
    write_json(path.with_suffix(".json"), meta | facts)
    return path


def describe_checkpoint(path: Path, stage: int) -> dict[str, Any]:
    """The JSON beside `path`; FileError unless it is a checkpoint of this stage."""
    meta = read_json(Path(path).with_suffix(".json"))
    if not isinstance(meta, dict) or meta.get("kind") != KIND or meta.get("stage") != stage:
        raise FileError(f"{path} is no checkpoint of stage {stage} of the V-JEPA 2 style model")
    return meta


def load_stage1(path: Path) -> MaskedPrediction:
    """Stage 1, frozen and in eval mode on the CPU."""
    return _load(path, 1, MaskedPrediction)


def load_stage2(path: Path) -> VJepa2:
    """Encoder and world model, frozen and in eval mode on the CPU."""
    return _load(path, 2, VJepa2)


def _load(path: Path, stage: int, kind: type[nn.Module]) -> Any:
    meta = describe_checkpoint(path, stage)
    shapes = PixelShapes(**meta["shapes"])
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten at once
        module = kind(from_dict(PixelsConfig, meta["config"]), shapes)
    load_weights(Path(path), module)
    return module.eval().requires_grad_(False)


# --- going on with a training ------------------------------------------------------------------
def resume_path(path: Path) -> Path:
    return Path(path).with_name(f"resume_{Path(path).stem}.pt")


def save_resume(path: Path, fit: Fit) -> None:
    """What the fit needs to go on, beside the checkpoint `path` with its best weights."""
    fit.save(resume_path(path))


def resume_fit(path: Path, fit: Fit) -> None:
    """Put a fit where the one of the checkpoint `path` ended.

    The settings may differ, for example by more updates. FileError when it does not fit.
    """
    try:
        fit.resume(resume_path(path), same_settings=False)
    except TrainingError as error:
        raise FileError(f"{path} cannot be resumed from: {error}") from error
