"""What a run says about its V-JEPA 2 style models: evaluations, stored or anew, and verdicts."""

from __future__ import annotations

from typing import Any

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.files import read_json
from hjepa_lib.pixels import grades as scores
from hjepa_lib.pixels import two_stages as stages
from hjepa_lib.pixels.collect import make_transitions
from hjepa_lib.pixels.models import VJepa2
from hjepa_lib.pixels.registry import load_model
from hjepa_lib.pixels.vjepa2 import LatentWindows, MaskedPrediction, encode_states
from hjepa_lib.runs.workspace import Workspace


def load_stage1(ws: Workspace, seed: int) -> MaskedPrediction:
    """Stage 1 alone, frozen, on the run's device; trained here if absent."""
    for _ in stages.train_stage1(ws, seed):
        pass
    return load_model(stages.checkpoint(ws, 1, seed), "stage1").to(ws.device)


def latent_windows(ws: Workspace, model: VJepa2) -> tuple[LatentWindows, LatentWindows]:
    """Frozen latents of the training and the validation part."""
    length = ws.config.pixels.data.sequence
    train, validation = (encode_states(model, p, length) for p in make_transitions(ws))
    return train, validation


def measure(ws: Workspace, stage: int, seed: int) -> dict[str, Any]:
    """Evaluate the stored weights of a stage anew; ConfigError when it is not trained."""
    _require_trained(ws, stage, seed)
    config = ws.config.pixels
    if stage == 1:
        return scores.evaluate_stage1(load_stage1(ws, seed), *make_transitions(ws), config)
    model = stages.load_vjepa2(ws, seed)
    return scores.evaluate_stage2(model.world, *latent_windows(ws, model), config)


def stored(ws: Workspace, stage: int, seed: int) -> dict[str, Any]:
    """The evaluation that the training stage wrote."""
    _require_trained(ws, stage, seed)
    return read_json(ws.run.path / stages.folder_of(seed) / stages.EVALUATION[stage])


def criteria(
    ws: Workspace, stage: int, seed: int, result: dict[str, Any]
) -> list[scores.Criterion]:
    """Success criteria of an evaluation, with the run's validation losses and epochs."""
    rows = ws.run.records(stages.stage_name(stage, seed))
    losses = [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]
    if stage == 1:
        return scores.stage1_criteria(result, losses)
    facts = read_json(stages.checkpoint(ws, 2, seed).with_suffix(".json"))
    return scores.stage2_criteria(result, losses, facts["epochs"], facts["patience"])


def _require_trained(ws: Workspace, stage: int, seed: int) -> None:
    if not ws.run.done(stages.stage_name(stage, seed)):
        raise ConfigError(
            f"run {ws.run.name!r} has no stage {stage} of training seed {seed}: train it first"
        )
