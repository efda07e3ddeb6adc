"""Stages of the representation report: measure every model and seed, then compare.

Stage `measures_{model}_s{seed}` holds one row of the comparison: facts from the training stages,
scores on the validation part, MET-1, and errors per block of it for paired claims. Whatever is
missing (models, reward heads, state decoders) is trained first. `make_comparison` puts the rows
together as `pixels/comparison.csv` and `pixels/comparison.json`; it is made anew from the rows each
time, and refuses a mixed set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hjepa_lib.config import to_dict
from hjepa_lib.evaluation.statistics import unestimable
from hjepa_lib.files import load_npz, read_json, save_npz, sha256, write_atomic, write_json
from hjepa_lib.pixels import comparison, headstages
from hjepa_lib.pixels import measures as representation
from hjepa_lib.pixels import stages as pixelstages
from hjepa_lib.pixels.claims import by_block
from hjepa_lib.pixels.footprint import update_megabytes
from hjepa_lib.pixels.frames import frame_errors, mean_frame
from hjepa_lib.pixels.pixelrows import (
    COMPARED,
    NOT_APPLICABLE,
    NOT_ESTIMABLE,
    UNTRAINED,
    Row,
    check_row,
)
from hjepa_lib.pixels.registry import matched_counts
from hjepa_lib.pixels.rewards import MEAN_REWARD, score
from hjepa_lib.pixels.tables import comparison_section
from hjepa_lib.pixels.training import CHUNK, budget, next_latent
from hjepa_lib.pixels.transitions import Transitions, scaled
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace

FILES = ("comparison.csv", "comparison.json")


# --- training what is missing -------------------------------------------------------------------
def train_missing(ws: Workspace) -> Iterator[str]:
    """Train every model, head and decoder that this run lacks; yields a stage's name per update."""
    for stage, _ in pixelstages.train_comparison(ws, headstages.train_heads_stage):
        yield stage


# --- rows -------------------------------------------------------------------------------------
def measure_row(ws: Workspace, name: str, seed: int) -> Row:
    """The row of model `name`, training seed number `seed` (0, 1, ...); measured once."""
    stage = f"measures_{name}_s{seed}"
    if not ws.run.done(stage):
        heads = headstages.find_heads(ws, name, seed)
        decoder = None
        if name in pixelstages.DECODED:
            decoder = pixelstages.load_decoder(ws, name, seed)
        model = pixelstages.load_model(ws, name, seed)
        train, validation = pixelstages.make_transitions(ws)
        made = (f"{part}{name}_s{seed}" for part in ("", "heads_", "decoder_"))
        needs = ("pixel_data", *made)
        folder = f"{pixelstages.model_folder(name, seed)}/measures"
        with ws.run.stage(stage, folder=folder, reads=needs) as target:
            row = _measure(ws, name, seed, model, decoder, heads, (train, validation))
            check_row(row)
            save_npz(target / "errors.npz", **row.errors)
            write_json(target / "row.json", {"facts": row.facts, "scores": row.scores})
    return load_row(ws.run.path / pixelstages.model_folder(name, seed) / "measures")


def load_row(folder: Path) -> Row:
    """A row that `measure_row` stored."""
    stored = read_json(folder / "row.json")
    return Row(stored["facts"], stored["scores"], load_npz(folder / "errors.npz"))


def _measure(
    ws: Workspace,
    name: str,
    seed: int,
    model: nn.Module,
    decoder: nn.Module | None,
    heads: Path,
    parts: tuple[Transitions, Transitions],
) -> Row:
    train, validation = parts
    facts = _facts(ws, name, seed, parts)
    source = ws.config.pixels.decoder.source
    found = transition_errors(model, decoder, source, validation, ws.device)
    cell, rewards = headstages.load_cell(heads)
    for kind in ("reward_mlp", "larp", MEAN_REWARD):
        if kind in cell:
            found[kind] = np.square(cell[kind].astype(float) - cell["reward"])
    scores: dict[str, float | str] = {
        "parameters": facts.pop("parameters"),
        "updates": facts["updates"],
        "train_seconds": facts.pop("seconds"),
        "update_memory_mb": NOT_APPLICABLE
        if name in UNTRAINED
        else update_megabytes(name, ws.config.pixels, train),
        "latent_error": _ratio(found, "latent", "copy_last_latent"),
        "frame_mse": float(found["frame"].mean()) if "frame" in found else NOT_APPLICABLE,
        "frame_error": _ratio(found, "frame", "copy_last_frame"),
        **_reward_scores(rewards["heads"]),
    }
    rows = representation.pick(len(validation), seed=ws.config.seed)
    batch = validation.batch(rows).to(ws.device)
    sample = representation.Sample(batch.state, batch.next_state)
    met = representation.measure(model.encode, sample, seed=ws.config.seed)
    scores |= {key: NOT_ESTIMABLE if value != value else value for key, value in met.items()}
    episode = validation.episode.numpy()
    return Row(facts, scores, {k: by_block(v, episode) for k, v in found.items()})


def _facts(
    ws: Workspace, name: str, seed: int, parts: tuple[Transitions, Transitions]
) -> dict[str, Any]:
    """What the row is about, from the model's own result file; `UNTRAINED` have none."""
    train, validation = parts
    config = ws.config
    facts = {
        "model": name,
        "seed": config.seed + seed,
        "environment": config.pixels.environment.id,
        "data_sha256": pixelstages.load_transitions(ws).sha256,
        "settings_sha256": settings_sha256(ws),
        "batches_sha256": "",
        "training": len(train),
        "validation": len(validation),
        "episodes": len(validation.episodes),
        "updates": 0,
        "early_stopping": budget(config.pixels.optim, len(train)).patience > 0,
    }
    if name in UNTRAINED:
        return facts | {"parameters": 0, "seconds": 0.0}
    result = read_json(ws.run.path / pixelstages.model_folder(name, seed) / "result.json")
    taken = ("data_sha256", "batches_sha256", "updates", "seconds")
    found = {key: result[key] for key in taken}
    if "stage2_updates" in result:
        found["stage_updates"] = [result["updates"], result["stage2_updates"]]
        found["updates"] = sum(found["stage_updates"])
        stages = config.pixels.vjepa2.stage1, config.pixels.vjepa2.stage2
        budgets = [budget(stage.optim, len(train)) for stage in stages]
        found["early_stopping"] = any(one.patience > 0 for one in budgets)
    found["loaded"] = pixelstages.loaded_weights(ws, name, seed)
    if found["loaded"]:
        found["loaded_data"] = _origin(result, found["data_sha256"])
    return facts | found | {"parameters": result["parameters"]["total"]}


def _origin(result: dict[str, Any], here: str) -> str:
    """What loaded weights were trained on, as far as their file says."""
    there = result.get("loaded_data_sha256", "")
    if not there:
        return "unknown data"
    return "this data" if there == here else "other data"


def settings_sha256(ws: Workspace) -> str:
    """Hash of everything the models were told: rows of other settings are never mixed in."""
    told = {"pixels": to_dict(ws.config.pixels), "seed": ws.config.seed, "precision": ws.precision}
    return sha256(json.dumps(told, sort_keys=True).encode())


def _ratio(errors: dict[str, np.ndarray], kind: str, baseline: str) -> float | str:
    if kind not in errors:
        return NOT_APPLICABLE
    floor = float(errors[baseline].mean())
    return float(errors[kind].mean()) / floor if floor > 0 else NOT_ESTIMABLE


def _reward_scores(heads: dict[str, dict[str, Any]]) -> dict[str, float | str]:
    scores: dict[str, float | str] = {}
    for kind, prefix in (("reward_mlp", "reward"), ("larp", "larp")):
        head = heads[kind]
        if "mse" not in head:
            scores |= {f"{prefix}_mse": NOT_APPLICABLE, f"{prefix}_r2": NOT_APPLICABLE}
            continue
        r2 = NOT_ESTIMABLE if head["r2"] is None else head["r2"]
        scores |= {f"{prefix}_mse": head["mse"], f"{prefix}_r2": r2}
    floor = heads[MEAN_REWARD]["mse"]
    if isinstance(scores["larp_mse"], str):
        scores["larp_gain"] = NOT_APPLICABLE
    elif isinstance(scores["larp_r2"], str) or floor <= 0:
        scores["larp_gain"] = NOT_ESTIMABLE
    else:
        scores["larp_gain"] = (scores["reward_mse"] - scores["larp_mse"]) / floor
    return scores


@torch.no_grad()
def transition_errors(
    model: nn.Module,
    decoder: nn.Module | None,
    source: str,
    data: Transitions,
    device: torch.device | str,
) -> dict[str, np.ndarray]:
    """Squared errors (M,) per transition of `data`, and of the copies that know no model.

    `latent` and `copy_last_latent` are means over D in the space that the model predicts; both are
    absent for a model that does not imagine an encoding, and `frame` for one without any decoder.
    """
    model.eval()
    pieces: dict[str, list[Tensor]] = {}

    def keep(name: str, guess: Tensor, truth: Tensor) -> None:
        gap = (guess.float() - truth.float()).square().flatten(1).mean(1)
        pieces.setdefault(name, []).append(gap.double().cpu())

    for index in torch.arange(len(data)).split(CHUNK):
        batch = data.batch(index).to(device)
        imagined = model.imagine(model.encode(batch.state), batch.action)
        if imagined is not None and model.predicts_latents:
            truth = model.encode_target(batch.next_state)
            keep("latent", imagined, truth)
            keep("copy_last_latent", model.encode_target(batch.state), truth)
        before, after = scaled(batch.state[:, -1]), scaled(batch.next_state[:, -1])
        keep("copy_last_frame", before, after)
        frame = model.predict_frame(batch.state, batch.action)
        # A decoder that reads the true next state reconstructs, it foresees nothing.
        if frame is None and decoder is not None and source == "predictor":
            frame = decoder(next_latent(model, batch, source))
        if frame is not None:
            keep("frame", frame, after)
    return {name: torch.cat(parts).numpy() for name, parts in pieces.items()}


# --- table ------------------------------------------------------------------------------------
def make_comparison(ws: Workspace) -> dict[str, Any]:
    """Measure what is not measured, build the comparison, write its two files; returns it."""
    count = ws.config.pixels.seeds
    rows = [measure_row(ws, name, seed) for seed in range(count) for name in COMPARED]
    train, validation = pixelstages.make_transitions(ws)
    seeds = [ws.config.seed + seed for seed in range(count)]
    pairs = [matched_counts(ws.config.pixels, train)]
    found = comparison.build(rows, seeds, baselines(train, validation), pairs)
    folder = ws.run.folder("pixels")
    write_json(folder / "comparison.json", found)
    write_atomic(folder / "comparison.csv", comparison.tidy(found).to_csv(index=False))
    leave_section(ws.run, "20-pixels", comparison_section(found))
    ws.run.publish()
    return found


def baselines(train: Transitions, validation: Transitions) -> dict[str, float | str]:
    """Scores of guesses that need no model, in the units of their columns.

    `copy_last_latent` is 1 by the definition of `latent_error`; the mean is that of the training
    rewards, so its R2 on the validation part lies a little below 0.
    """
    mean = mean_frame(train)
    frames = frame_errors(lambda _: mean, validation, mean, "cpu")
    errors = {"copy_last_frame": frames.copy_last_mse, "mean_frame": frames.mse}
    rewards = [part.reward.numpy() for part in (train, validation)]
    guess = np.full_like(rewards[1], rewards[0].mean())
    found = score(guess, rewards[1], unestimable(*rewards))
    r2 = NOT_ESTIMABLE if found.r2 is None else found.r2
    return errors | {"copy_last_latent": 1.0, "mean_reward": found.mse, "mean_reward_r2": r2}


def read_comparison(run_path: Path) -> dict[str, Any] | None:
    """`pixels/comparison.json` of a run, or None."""
    path = Path(run_path) / "pixels/comparison.json"
    return read_json(path) if path.is_file() else None
