"""How the stages of stages.py are made, and what their trainings log."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hjepa_lib.config import ConfigError, to_dict
from hjepa_lib.evaluation.statistics import unestimable
from hjepa_lib.files import FileError, WorkbookError, save_npz, write_json
from hjepa_lib.models.checkpoint import fingerprint, save_module, tensors
from hjepa_lib.pixels import registry
from hjepa_lib.pixels.collect import acquire
from hjepa_lib.pixels.compare import MEAN_REWARD, UNTRAINED, score
from hjepa_lib.pixels.heads import encode, train_heads
from hjepa_lib.pixels.measures import frame_scores
from hjepa_lib.pixels.networks import PatchDecoder, initialise, parameter_counts
from hjepa_lib.pixels.stages import RESULT, load_model, load_transitions, make_transitions
from hjepa_lib.pixels.training import decoder_data, fit_decoder, fit_pixels, next_latent, passes
from hjepa_lib.pixels.transitions import scaled, shapes_of
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Fit, Report, batches_sha256

KINDS = {"enc_dec": "std_enc_dec", "enc_dec_jepa": "enc_dec_jepa_style", "jepa": "jepa"}
"""What `pixels.loading.kind` calls a model (TRAIN-6)."""
PICTURES = {
    "enc_dec": "encoder_decoder", "enc_dec_jepa": "encoder_decoder_jepa_style",
    "jepa": "jepa_decoder", "vjepa2": "vjepa2_decoder",
}  # fmt: skip
"""Folders below `decoder_plots/`; the first seed's models are drawn."""
KEPT = ("reward_mlp", "larp")
"""Heads whose weights are stored; baselines leave their predictions only."""
Predict = Callable[[Any], Tensor]
"""A batch of transitions -> next frames (B, C, H, W)."""


# --- data and models --------------------------------------------------------------------------
def make_data(ws: Workspace, folder: Path) -> None:
    """Transitions, collected or loaded."""
    data = acquire(ws.config.pixels, ws.config.seed)
    data.save(folder)
    if notes := data.meta.get("notes"):
        ws.run.note("pixel_data", notes)


def fresh_model(ws: Workspace, name: str, number: int, data: Any) -> Any:
    """Model `name` as training seed number `number` begins with it."""
    torch.manual_seed(ws.config.seed + number)  # before any weight is drawn (EB5)
    return registry.build_pixel_model(name, ws.config.pixels, data).to(ws.device)


def options_of(ws: Workspace, stage: str, number: int) -> dict[str, Any]:
    """How every fit of a stage runs: seed, precision, where it resumes from."""
    options = {"seed": ws.config.seed + number, "precision": ws.precision, "stage": stage}
    return options | {"folder": ws.resume(stage)}


def facts_of(ws: Workspace, name: str, number: int, fit: Fit | None = None) -> dict[str, Any]:
    """What makes a result comparable with others (rule 1); without a fit nothing was trained."""
    parts, seed = make_transitions(ws), ws.config.seed + number
    facts = {
        "model": name,
        "seed": seed,
        "environment": ws.config.pixels.environment.id,
        "data_sha256": load_transitions(ws).sha256,
        "batches_sha256": "",
        "transitions": dict(zip(("training", "validation"), map(len, parts), strict=True)),
        "updates": 0,
        "loaded": False,
    }
    if fit is None:
        return facts
    return facts | {
        "updates": fit.update,
        "skipped": fit.skipped,
        "best_loss": fit.best_loss,
        "batches_sha256": batches_sha256(len(parts[0]), fit.config.batch, seed),
        "early_stopping": fit.config.patience > 0,
    }


def weight_counts(model: nn.Module) -> dict[str, int]:
    """Trained weights by part, their total, and all stored numbers (an EMA copy included).

    To be asked before the model is frozen.
    """
    parts = parameter_counts(model)
    stored = sum(value.numel() for value in tensors(model).values())
    return parts | {"total": sum(parts.values()), "stored": stored}


def make_model(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """An encoder-decoder or a JEPA with its best weights, or an encoder as it was drawn."""
    (train, validation), stage = make_transitions(ws), f"{name}_s{number}"
    model, config = fresh_model(ws, name, number, train), ws.config.pixels
    if name in UNTRAINED:
        result = facts_of(ws, name, number) | {"parameters": {"total": 0}}
    else:
        loaded, skip = start_from_file(ws, model)
        fit = fit_pixels(
            model, train, validation, config.optim_of(name), **options_of(ws, stage, number)
        )
        predict = frame_predictor(model)
        if not skip:
            log = PixelLog("model", PREFIXES[name], fit, config.log_every, model)
            yield from _drawn(ws, name, number, predict, fit, ws.follow(fit, stage, log))
            fit.load_best()
        result = facts_of(ws, name, number, fit) | {"parameters": weight_counts(model)}
        result |= {"loaded": loaded, "skipped_training": skip}
        if loaded:
            result["batches_sha256"] = ""  # other batches made these weights, alone or before
        if predict is not None:
            result["frames"] = frame_scores(predict, train, validation, ws.device)
    registry.save_model(folder, model.eval().requires_grad_(False))
    write_json(folder / RESULT, result)


def start_from_file(ws: Workspace, model: Any) -> tuple[bool, bool]:
    """Load `pixels.loading` into the model it names: (loaded, its training is to be skipped).

    A file that does not load is warned about and trained without, except for a frozen JEPA, which
    must not be trained: ConfigError.
    """
    loading = ws.config.pixels.loading
    frozen = model.name == "jepa" and ws.config.pixels.jepa.frozen
    loaded = False
    if loading.path and loading.kind == KINDS[model.name]:
        try:
            registry.fill_model(Path(loading.path), model)
            loaded = True
        except FileError as error:
            if not frozen:
                warnings.warn(f"{error}; {model.name} is trained from its start", stacklevel=2)
    if frozen and not loaded:
        raise ConfigError(
            "pixels.jepa.frozen needs weights that load: set pixels.loading.path to a trained JEPA"
        )
    return loaded, loaded and (loading.skip_training or frozen)


def frame_predictor(model: Any) -> Predict | None:
    """What a model with a decoder of its own draws."""
    if not hasattr(model, "decoder"):
        return None
    return lambda batch: model.predict_frame(batch.state, batch.action)


def _drawn(
    ws: Workspace, name: str, number: int, predict: Predict | None, fit: Fit,
    reports: Iterator[Report],
) -> Iterator[Report]:  # fmt: skip
    """The reports, with five pictures after each epoch (FIG-1) of the first seed's models."""
    from hjepa_lib.pixels import figures  # matplotlib, only where pictures are made

    _, data = make_transitions(ws)
    for report in reports:
        if report.validation and predict is not None and number == 0:
            epoch = passes(report.update, fit.config.validate_every)
            batch = data[figures.sample_rows(len(data), epoch)].to(ws.device)
            with torch.no_grad():
                frames = predict(batch)
            shown = scaled(batch.state), scaled(batch.next_state[:, -1]), frames
            folder = ws.run.folder(f"decoder_plots/{PICTURES[name]}")
            figures.write_comparisons(folder, epoch, *shown)
        yield report


# --- state decoders (MOD-10) and reward heads (MOD-11, MOD-12) ----------------------------------
def make_decoder(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """A decoder of the frozen model's latents of s_{t+1}; all models' start from equal weights."""
    parts, stage, config = make_transitions(ws), f"decoder_{name}_s{number}", ws.config.pixels
    model, source = load_model(ws, name, number), config.decoder.source
    read = [decoder_data(model, part, source, ws.device) for part in parts]
    torch.manual_seed(ws.config.seed + number)
    decoder = PatchDecoder(config.decoder, model.latent_dim, shapes_of(parts[0]))
    initialise(decoder)
    decoder.to(ws.device)
    counts = weight_counts(decoder)
    fit = fit_decoder(decoder, *read, config.decoder.optim, **options_of(ws, stage, number))

    def predict(batch: Any) -> Tensor:
        return decoder(next_latent(model, batch, source))

    log = PixelLog("decoder", PREFIXES[f"decoder_{name}"], fit, config.log_every)
    yield from _drawn(ws, name, number, predict, fit, ws.follow(fit, stage, log))
    fit.load_best()
    registry.save_decoder(folder, decoder.eval().requires_grad_(False), model)
    result = facts_of(ws, name, number, fit) | {"source": source, "parameters": counts}
    write_json(folder / RESULT, result | {"frames": frame_scores(predict, *parts, ws.device)})


def make_heads(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """Reward heads on the frozen model: weights, predictions of held-out rewards, scores."""
    config, parts = ws.config.pixels.reward, make_transitions(ws)
    model = load_model(ws, name, number)
    base = fingerprint(model)

    def follow(fit: Fit, kind: str) -> Iterator[Report]:
        keys = "reward_mlp" if kind == "reward_mlp" else "larp"
        log = PixelLog(keys, f"{kind}/{name}", fit, config.log_every)
        return ws.follow(fit, f"heads_{name}_s{number}_{kind}", log)

    features = [encode(model, part, ws.device) for part in parts]
    seed = ws.config.seed + number
    trained = yield from train_heads(*features, config, seed=seed, follow=follow)
    if fingerprint(model) != base:
        raise WorkbookError(f"training the reward heads changed the weights of {name}")
    for kind in KEPT:
        if (head := trained[kind].head) is not None:
            meta = {"config": to_dict(config), "width": head.width}
            save_module(folder / kind, head, "reward head", **meta)
    seen, true = (part.reward.cpu().numpy() for part in parts)
    cell = {"reward": true, "episode": parts[1].episode.cpu().numpy()}
    cell |= {MEAN_REWARD: np.full_like(true, seen.mean())}
    cell |= {k: one.predicted.cpu().numpy() for k, one in trained.items() if one.head is not None}
    save_npz(folder / "predictions.npz", **cell)
    note = unestimable(seen, true)
    heads = {kind: dict(one.facts) for kind, one in trained.items()}
    heads[MEAN_REWARD] = {"status": "ok"}
    for kind in heads.keys() & cell.keys():
        heads[kind] |= score(cell[kind], true, note)._asdict()
    facts = facts_of(ws, name, number) | {"base_sha256": base, "note": note, "heads": heads}
    facts["nonzero"] = {
        key: int(np.count_nonzero(one)) for key, one in (("training", seen), ("validation", true))
    }
    write_json(folder / "scores.json", facts)


# --- what is logged ---------------------------------------------------------------------------
PREFIXES = {
    "enc_dec": "StdEncDec", "enc_dec_jepa": "EncDecJepaStyle", "jepa": "JEPA",
    "decoder_jepa": "JEPA_Decoder", "decoder_vjepa2": "VJEPA2_Decoder",
}  # fmt: skip
_AUXILIARIES = {"vicreg": "VICReg", "barlow_twins": "BarlowTwins", "dino": "DINO"}
_PARTS = ("sim", "std", "cov", "invariance", "redundancy", "centre", "total", "weighted")
_MODEL = {"loss": "Total_Loss", "prediction": "Prediction_Loss"} | {
    f"{kind}_{part}": f"{title}_{part.capitalize()}_Loss"
    for kind, title in _AUXILIARIES.items()
    for part in _PARTS
}
_DECODER = {"loss": "total_loss", "mse_reconstruction": "loss_mse_reconstruction"}
_PACE = {"lr": "Learning_Rate", "step": "step"}
_STAGE = {"loss": "train_loss", "lr": "learning_rate", "epochs": "epoch"}
_LARP = {"loss": "train/loss_step", "step": "train/step", "inner": "epoch_inner",
         "share": "epoch_progress_main"}  # fmt: skip


def _below(place: str, names: dict[str, str]) -> dict[str, str]:
    return {term: f"{place}/{name}" for term, name in names.items()}


KEYS: dict[str, tuple[dict[str, str], ...]] = {
    "model": (_below("train", _MODEL | _PACE | {"weights": "Encoder_Weight_Diff_MSE"}),
              _below("train_epoch_avg", _MODEL), _below("val", _MODEL)),
    "decoder": (_below("train", _DECODER | _PACE), _below("train_epoch_avg", _DECODER),
                _below("val", _DECODER)),
    "stage1": (_STAGE, {}, {"loss": "val_loss"}),
    "stage2": (_STAGE | {"teacher_forcing": "teacher_forcing_loss", "rollout": "rollout_loss"},
               {}, {"loss": "val_loss"}),
    "reward_mlp": ({"loss": "train/Loss", "lr": "train/Learning_Rate"},
                   {"loss": "train_epoch_avg/Loss", "epoch": "epoch"},
                   {"loss": "val_epoch_avg/Loss"}),
    "larp": (_LARP, {"loss": "train_epoch_avg/loss", "epoch": "epoch"},
             {"loss": "val_epoch_avg/loss"}),
}  # fmt: skip
"""LOG-2, LOG-3: what is trained -> {term: key} of a step, of an epoch's means, of a validation."""


class PixelLog:
    """Turns the reports of one fit into records: the `row` of `Workspace.follow`.

    A step is logged every `every` updates, an epoch with its validation; `step` counts updates and
    `epoch` passes, a cut one included. The plain keys that all trainings share stand beside.
    """

    def __init__(
        self, kind: str, prefix: str, fit: Fit, every: int, model: nn.Module | None = None
    ) -> None:
        self.keys, self.prefix, self.every, self.model = KEYS[kind], prefix, every, model
        self.epoch = fit.config.validate_every
        self.sums: dict[str, float] = {}
        self.count = 0

    def __call__(self, report: Report) -> dict[str, Any]:
        """The record of this update; {} when there is nothing to log."""
        terms = report.terms | {"loss": report.loss}
        if all(map(math.isfinite, (*terms.values(), report.grad_norm))):  # else it was skipped
            self.count += 1
            self.sums = {key: self.sums.get(key, 0.0) + value for key, value in terms.items()}
        if report.update % self.every and report.update > 1 and not report.validation:
            return {}
        update, epoch = report.update, passes(report.update, self.epoch)
        row = {"lr": report.lr, "grad_norm": report.grad_norm, "skipped": report.skipped, **terms}
        pace = {"lr": report.lr, "step": update, "epochs": update / self.epoch}
        pace["inner"] = (update % self.epoch or self.epoch) / self.epoch
        pace["share"] = update / report.updates
        if hasattr(self.model, "weight_difference"):
            pace["weights"] = self.model.weight_difference()
        row |= self._named(0, terms | pace)
        if report.validation:
            means = {key: total / self.count for key, total in self.sums.items()}
            row |= self._named(1, means | {"epoch": epoch}) | self._named(2, report.validation)
            row |= {f"validation_{key}": value for key, value in report.validation.items()}
            row["epoch"] = epoch
            self.sums, self.count = {}, 0
        return row

    def _named(self, place: int, values: dict[str, float]) -> dict[str, float]:
        named = self.keys[place].items()
        return {f"{self.prefix}/{name}": values[key] for key, name in named if key in values}
