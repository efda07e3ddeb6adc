"""What the stages of pixel models leave behind: log records, pictures, and a result row each.

A row holds what rule 1 of the comparison asks for (data, first batch, number of updates), counts of
weights, wall time, and for a model that draws its errors next to those of trivial predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_lib.models.checkpoint import tensors
from hjepa_lib.pixels.frames import frame_errors, mean_frame
from hjepa_lib.pixels.models import PixelModel
from hjepa_lib.pixels.networks import parameter_counts
from hjepa_lib.pixels.pixellog import PixelLog
from hjepa_lib.pixels.transitions import Transitions, scaled
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.batches import batches_sha256
from hjepa_lib.training.loop import Fit, Report

PICTURES = {
    "enc_dec": "encoder_decoder",
    "enc_dec_jepa": "encoder_decoder_jepa_style",
    "jepa": "jepa_decoder",
    "vjepa2": "vjepa2_decoder",
}
"""Folders below `decoder_plots/`; the first seed's models are drawn."""
Predict = Callable[[Any], Tensor]
Parts = tuple[Transitions, Transitions]


def follow(
    ws: Workspace, stage: str, fit: Fit, log: PixelLog, draw: Callable[[int], None] | None
) -> Iterator[Report]:
    """Iterate a fit, log it with the keys of LOG-2 and LOG-3, and draw after each epoch."""
    ws.run.metrics.rewind(stage, fit.update)
    for report in fit:
        row = log.record(report)
        if row:
            ws.run.log({"stage": stage, "step": report.update, **row})
        if report.validation and draw is not None:
            draw(log.epoch_of(report))
        yield report


def drawing(
    ws: Workspace, name: str, seed: int, data: Transitions, predict: Predict
) -> Callable[[int], None] | None:
    """Writes the pictures of an epoch (FIG-1); None beyond the first seed."""
    if seed:
        return None
    from hjepa_lib.pixels import (
        figures_reconstructions as reconstructions,  # matplotlib, only where pictures are made
    )

    folder = ws.run.folder(f"decoder_plots/{PICTURES.get(name, name)}")

    @torch.no_grad()
    def draw(epoch: int) -> None:
        batch = data.batch(reconstructions.sample_rows(len(data), epoch))
        frames = predict(batch.to(ws.device)).cpu()
        stacks, true = (scaled(part) for part in (batch.state, batch.next_state[:, -1]))
        reconstructions.write_comparisons(folder, epoch, stacks, true, frames)

    return draw


def frame_predictor(model: PixelModel) -> Predict | None:
    """Batch -> frames (B, C, H, W) of a model with a decoder of its own."""
    if model.name not in ("enc_dec", "enc_dec_jepa"):
        return None
    return lambda batch: model.predict_frame(batch.state, batch.action)


def frame_scores(ws: Workspace, predict: Predict, parts: Parts) -> dict[str, float]:
    """Errors on the validation part."""
    train, validation = parts
    return frame_errors(predict, validation, mean_frame(train), ws.device)._asdict()


def result_row(
    ws: Workspace, name: str, seed: int, parts: Parts, fit: Fit, seconds: float, data_sha256: str
) -> dict[str, Any]:
    """What makes a result comparable with others."""
    train, validation = parts
    number = ws.config.seed + seed
    return {
        "model": name,
        "seed": number,
        "data_sha256": data_sha256,
        "batches_sha256": batches_sha256(len(train), fit.config.batch, number),
        "transitions": {"training": len(train), "validation": len(validation)},
        "updates": fit.update,
        "skipped": fit.skipped,
        "best_loss": fit.best_loss,
        "seconds": round(seconds, 3),
    }


def weight_counts(model: nn.Module) -> dict[str, int]:
    """Trained weights by part, their total, and all stored numbers (an EMA copy included).

    To be asked before the model is frozen.
    """
    parts = parameter_counts(model)
    stored = sum(value.numel() for value in tensors(model).values())
    return parts | {"total": sum(parts.values()), "stored": stored}
