"""The stages of the pixel comparison: transitions, the world models, and their state decoders.

Stage `pixel_data` holds the transitions; `{model}_s{seed}` one trained model, seed = 0, 1, ...
being training seed `config.seed + seed`; `decoder_{model}_s{seed}` the decoder of a frozen one.
Whatever a stage needs and this run lacks is made first. As everywhere, a training stage is a
generator of reports, and yields nothing when it is done. `train_comparison` is the order of it all
(TRAIN-1).
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_lib.config import ConfigError
from hjepa_lib.config.pixels import MODELS
from hjepa_lib.files import FileError, read_json, write_json
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels.collect import load_transitions, make_transitions, split
from hjepa_lib.pixels.models import PixelJepa, PixelModel
from hjepa_lib.pixels.networks import PatchDecoder, initialise
from hjepa_lib.pixels.pixellog import decoder_log, model_log
from hjepa_lib.pixels.pixelresults import (
    drawing,
    follow,
    frame_predictor,
    frame_scores,
    result_row,
    weight_counts,
)
from hjepa_lib.pixels.pixelrows import UNTRAINED
from hjepa_lib.pixels.registry import build_pixel_model, fill_model, save_decoder, save_model
from hjepa_lib.pixels.registry import load_decoder as load_stored_decoder
from hjepa_lib.pixels.registry import load_model as load_stored
from hjepa_lib.pixels.training import decoder_data, fit_decoder, fit_pixels, next_latent
from hjepa_lib.pixels.transitions import shapes_of
from hjepa_lib.pixels.two_stages import load_vjepa2, train_vjepa2_stage
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report

KINDS = {"enc_dec": "std_enc_dec", "enc_dec_jepa": "enc_dec_jepa_style", "jepa": "jepa"}
"""What `pixels.loading.kind` calls a model (TRAIN-6)."""
DECODED = ("jepa", "vjepa2")
"""Models without a decoder of their own."""
Train = Callable[[Workspace, str, int], Iterator[Report]]


def stage_name(name: str, seed: int) -> str:
    return f"{name}_s{seed}"


def model_folder(name: str, seed: int) -> str:
    return f"pixels/{name}/s{seed}"


# --- models -----------------------------------------------------------------------------------
def train_model_stage(ws: Workspace, name: str, seed: int) -> Iterator[Report]:
    """Train model `name` with training seed number `seed`; the best weights are stored."""
    if name == "vjepa2":
        yield from train_vjepa2_stage(ws, seed)
        return
    stage = stage_name(name, seed)
    if ws.run.done(stage):
        return
    data = load_transitions(ws)
    parts = split(ws, data)
    model = fresh_model(ws, name, seed, parts[0])
    predict = frame_predictor(model)
    loaded, skip = start_from_file(ws, model)
    row: dict[str, Any] = {"loaded": loaded, "skipped_training": skip}
    with ws.run.stage(stage, folder=model_folder(name, seed), reads=("pixel_data",)) as folder:
        begin = time.perf_counter()
        resume = ws.run.folder(f"resume/{stage}")
        fit = fit_pixels(
            model, *parts, ws.config.pixels.optim_of(name), seed=ws.config.seed + seed,
            precision=ws.precision, folder=resume,
        )  # fmt: skip
        if not skip:
            draw = drawing(ws, name, seed, parts[1], predict) if predict else None
            yield from follow(ws, stage, fit, model_log(model, fit), draw)
            fit.load_best()
        seconds = time.perf_counter() - begin
        row["parameters"] = weight_counts(model)
        model.eval().requires_grad_(False)
        save_model(folder, model)
        row |= result_row(ws, name, seed, parts, fit, seconds, data.sha256)
        if loaded:
            row["batches_sha256"] = ""  # other batches made these weights, alone or before these
        if predict is not None:
            row["frames"] = frame_scores(ws, predict, parts)
        write_json(folder / "result.json", row)
    shutil.rmtree(resume, ignore_errors=True)


def fresh_model(ws: Workspace, name: str, seed: int, data: Any) -> nn.Module:
    """Model `name` as training seed number `seed` begins with it."""
    torch.manual_seed(ws.config.seed + seed)  # before any weight is drawn (EB5)
    return build_pixel_model(name, ws.config.pixels, data).to(ws.device)


def start_from_file(ws: Workspace, model: PixelModel) -> tuple[bool, bool]:
    """Load `pixels.loading` into the model it names: (loaded, its training is to be skipped).

    A file that does not load is warned about and trained without, except for a frozen JEPA, which
    must not be trained: ConfigError.
    """
    loading = ws.config.pixels.loading
    frozen = isinstance(model, PixelJepa) and ws.config.pixels.jepa.frozen
    loaded = False
    if loading.path and loading.kind == KINDS[model.name]:
        try:
            fill_model(Path(loading.path), model)
            loaded = True
        except FileError as error:
            if not frozen:
                warnings.warn(f"{error}; {model.name} is trained from its start", stacklevel=2)
    if frozen and not loaded:
        raise ConfigError(
            "pixels.jepa.frozen needs weights that load: set pixels.loading.path to a trained JEPA"
        )
    return loaded, loaded and (loading.skip_training or frozen)


def load_model(ws: Workspace, name: str, seed: int) -> nn.Module:
    """The trained model, frozen and in eval mode on the run's device; trained here if absent.

    `random` is the untrained baseline with the encoder that all models of this seed began with,
    `random_vit` that of `vjepa2`.
    """
    if name in UNTRAINED:
        data, _ = make_transitions(ws)
        with torch.random.fork_rng(devices=[]):
            return fresh_model(ws, name, seed, data).eval()
    for _ in train_model_stage(ws, name, seed):
        pass
    if name == "vjepa2":
        return load_vjepa2(ws, seed)
    return load_stored(ws.run.path / model_folder(name, seed), name).to(ws.device)


def loaded_weights(ws: Workspace, name: str, seed: int) -> bool:
    """Whether a model of this run began with weights from a file, trained further or not."""
    if name in UNTRAINED:
        return False
    result = read_json(ws.run.path / model_folder(name, seed) / "result.json")
    return bool(result.get("loaded", result.get("skipped_training", False)))


# --- state decoders (MOD-10) ------------------------------------------------------------------
def train_decoder_stage(ws: Workspace, name: str, seed: int) -> Iterator[Report]:
    """Train a decoder on the frozen model's latents of s_{t+1}; the model's weights stay."""
    stage = f"decoder_{name}_s{seed}"
    if ws.run.done(stage):
        return
    data = load_transitions(ws)
    parts, config = split(ws, data), ws.config.pixels.decoder
    model = load_model(ws, name, seed)
    if config.source == "predictor" and name in ("enc_dec", *UNTRAINED):
        raise ConfigError(f"{name} imagines no latent that a decoder could read")
    before = fingerprint(model)
    needs = (
        "pixel_data",
        stage_name(name, seed),
    )
    with ws.run.stage(stage, folder=model_folder(name, seed), reads=needs) as folder:
        begin = time.perf_counter()
        resume = ws.run.folder(f"resume/{stage}")
        read = [decoder_data(model, part, config.source, ws.device) for part in parts]
        decoder = fresh_decoder(ws, model.latent_dim, seed, data)
        row: dict[str, Any] = {"source": config.source, "parameters": weight_counts(decoder)}
        fit = fit_decoder(
            decoder, *read, config.optim, seed=ws.config.seed + seed, precision=ws.precision,
            folder=resume,
        )  # fmt: skip

        def predict(batch: Any) -> Tensor:
            return decoder(next_latent(model, batch, config.source))

        draw = drawing(ws, name, seed, parts[1], predict)
        yield from follow(ws, stage, fit, decoder_log(name, fit, ws.config.pixels.log_every), draw)
        fit.load_best()
        seconds = time.perf_counter() - begin
        decoder.eval().requires_grad_(False)
        if fingerprint(model) != before:
            raise ConfigError(f"training the decoder changed the weights of {name}")
        save_decoder(folder, decoder, model)
        row |= result_row(ws, name, seed, parts, fit, seconds, data.sha256)
        row["frames"] = frame_scores(ws, predict, parts)
        write_json(folder / "decoder_result.json", row)
    shutil.rmtree(resume, ignore_errors=True)


def fresh_decoder(ws: Workspace, latent_dim: int, seed: int, data: Any) -> PatchDecoder:
    """Every model's decoder starts from the same weights."""
    torch.manual_seed(ws.config.seed + seed)
    config = ws.config.pixels.decoder
    decoder = PatchDecoder(config, latent_dim, shapes_of(data))
    initialise(decoder)
    return decoder.to(ws.device)


def load_decoder(ws: Workspace, name: str, seed: int) -> nn.Module:
    """The frozen decoder (B, D) -> (B, C, H, W) of a model; trained here if absent."""
    for _ in train_decoder_stage(ws, name, seed):
        pass
    return load_stored_decoder(ws.run.path / model_folder(name, seed)).to(ws.device)


# --- the whole comparison ---------------------------------------------------------------------
def train_comparison(ws: Workspace, heads: Train | None = None) -> Iterator[tuple[str, Report]]:
    """(stage, report) of everything in the order of TRAIN-1, for each training seed.

    Data, then the models, each reloaded at its best for what follows: `heads` (the reward heads,
    see headstages.py) on every model and the untrained baselines, and decoders of the models that
    have none.
    """
    make_transitions(ws)
    for seed in range(ws.config.pixels.seeds):
        for name in MODELS:
            yield from _named(stage_name(name, seed), train_model_stage(ws, name, seed))
        if heads is not None:
            for name in (*MODELS, *UNTRAINED):
                yield from _named(f"heads_{name}_s{seed}", heads(ws, name, seed))
        for name in DECODED:
            yield from _named(f"decoder_{name}_s{seed}", train_decoder_stage(ws, name, seed))


def _named(stage: str, reports: Iterator[Report]) -> Iterator[tuple[str, Report]]:
    for report in reports:
        yield stage, report
