"""How the stages of stages.py are made."""

import warnings
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hjepa_lib.config import to_dict
from hjepa_lib.config.pixels import EpochsConfig
from hjepa_lib.evaluation.statistics import unestimable
from hjepa_lib.figures.data import film
from hjepa_lib.files import FileError, save_npz, write_atomic, write_json
from hjepa_lib.models.checkpoint import fingerprint, save_module
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.pixels import figures, models, two_stages
from hjepa_lib.pixels.collect import acquire
from hjepa_lib.pixels.compare import MEAN_REWARD, UNTRAINED, score
from hjepa_lib.pixels.measures import Predict, transition_errors
from hjepa_lib.pixels.networks import PatchDecoder, initialise
from hjepa_lib.pixels.stages import (
    RESULT,
    find,
    fresh_model,
    load_model,
    load_transitions,
    make_transitions,
    name_of,
)
from hjepa_lib.pixels.training import HEADS, encode, fit, fit_head, in_chunks
from hjepa_lib.pixels.transitions import scaled, shapes_of
from hjepa_lib.runs.machine import one_thread
from hjepa_lib.runs.workspace import Workspace, log_row
from hjepa_lib.training.loop import Fit, Report, batches_sha256


def make_data(ws: Workspace, folder: Path) -> None:
    """Transitions, collected or loaded."""
    data = acquire(ws.config.pixels, ws.config.seed)
    data.save(folder)
    if notes := data.meta.get("notes"):
        ws.run.note("pixel_data", notes)


def run_fit(
    ws: Workspace, name: str, number: int, module: Any, data: Any, optim: EpochsConfig,
    predict: Predict | None = None, most: int | None = None,
) -> Generator[Report, None, Fit]:  # fmt: skip
    """Train `module` on (training, validation) as `{name}_s{number}`, logged, to its best weights.

    Returns the fit. Of the first seed's models `predict(batch)` is drawn after each epoch (FIG-1).
    """
    stage = name_of(name, number)
    options = {"seed": ws.config.seed + number, "precision": ws.precision, "most": most}
    work = fit(module, *data, optim, stage=stage, folder=ws.resume(stage), **options)
    for report in ws.follow(work, stage, partial(log_row, every=ws.config.pixels.log_every)):
        if report.validation and predict is not None and number == 0:
            draw(ws, name, -(-report.update // work.config.validate_every), predict)
        yield report
    work.load_best()
    return work


@torch.no_grad()
def draw(ws: Workspace, name: str, epoch: int, predict: Predict) -> None:
    """Five test samples of `predict(batch)`, the same ones for every model (FIG-1)."""
    data = make_transitions(ws).test
    batch = data[figures.sample_rows(len(data), epoch)].to(ws.device)
    titles = [*figures.stack_names(batch.state.shape[1]), "true next", "predicted"]
    shown = zip(scaled(batch.state), scaled(batch.next_state), predict(batch), strict=True)
    folder = ws.run.folder(f"decoder_plots/{name}")
    for number, (stack, after, predicted) in enumerate(shown):
        path = folder / f"epoch_{epoch}_sample_{number}_comparison.png"
        write_atomic(path, film([*stack, after[-1], predicted], titles))


def facts_of(
    ws: Workspace, name: str, number: int, work: Fit | None = None, rows: int = 0
) -> dict[str, Any]:
    """What makes a result comparable with others (rule 1); `epochs` are passes through `rows`."""
    parts, seed = make_transitions(ws), ws.config.seed + number
    facts = {
        "model": name, "seed": seed, "environment": ws.config.pixels.environment.id,
        "data_sha256": load_transitions(ws).sha256, "batches_sha256": "", "updates": 0,
        "transitions": dict(zip(("training", "choice", "test"), map(len, parts), strict=True)),
        "skipped": 0, "loaded": False, "early_stopping": False,
    }  # fmt: skip
    if work is not None:
        facts |= {
            "batches_sha256": batches_sha256(len(parts[0]), work.config.batch, seed),
            "early_stopping": work.config.patience > 0, "best_loss": work.best_loss,
            "updates": work.update, "skipped": work.skipped,
        }  # fmt: skip
    if rows:
        facts["epochs"] = work.update * work.config.batch / rows
        facts["patience"] = work.config.patience
    return facts


def make_model(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """An encoder-decoder or a JEPA with its best weights, or an encoder as it was drawn."""
    parts, work = make_transitions(ws), None
    model = fresh_model(ws, name, number, parts[0])
    predict = getattr(model, "predict_frame", None)
    loaded = start_from_file(ws, model)
    if name not in UNTRAINED and not (loaded and ws.config.pixels.loading.skip_training):
        optim = ws.config.pixels.optim_of(name)
        work = yield from run_fit(ws, name, number, model, parts[:2], optim, predict)
    result = facts_of(ws, name, number, work)
    if loaded:  # other batches made these weights, alone or before
        result |= {"loaded": True, "batches_sha256": ""}
    _store(ws, folder, model, result, predict)


def _store(
    ws: Workspace, folder: Path, model: Any, result: dict[str, Any], predict: Predict | None,
    **base: Any,
) -> None:  # fmt: skip
    result["parameters"] = {"total": count_parameters(model)}
    models.save_model(folder, model.eval().requires_grad_(False), **base)
    if predict is not None:
        train, _, test = make_transitions(ws)
        found = transition_errors(train, test, ws.device, predict=predict)
        result["frames"] = {kind: float(errors.mean()) for kind, errors in found.items()}
    write_json(folder / RESULT, result)


def start_from_file(ws: Workspace, model: Any) -> bool:
    """Load `pixels.loading` into the model it names; whether that is this one, and worked.

    A file that does not load is warned about.
    """
    loading, name = ws.config.pixels.loading, model.name
    kinds = {"enc_dec": "std_enc_dec", "enc_dec_jepa": "enc_dec_jepa_style"}
    if loading.path and loading.kind == kinds.get(name, name):
        try:
            models.fill_model(Path(loading.path), model)
            return True
        except FileError as error:
            warnings.warn(f"{error}; {name} is trained from its start", stacklevel=2)
    return False


def make_decoder(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """A decoder of the frozen model's latents of s_{t+1}; all start from equal weights."""
    parts, config = make_transitions(ws), ws.config.pixels.decoder
    model = load_model(ws, name, number)

    def read(batch: Any) -> dict[str, Tensor]:
        if config.source == "predictor":
            latent = model.imagine(model.encode(batch.state), batch.action)
        else:
            encode = getattr(model, f"encode_{config.source}", model.encode)
            latent = encode(batch.next_state)
        return {"latent": latent, "frame": batch.next_state[:, -1]}

    def predict(batch: Any) -> Tensor:
        return decoder(read(batch)["latent"])

    data = [TensorDataset(*in_chunks(read, one, ws.device).values()) for one in parts[:2]]
    torch.manual_seed(ws.config.seed + number)
    decoder = PatchDecoder(config, model.latent_dim, shapes_of(parts[0]))
    initialise(decoder)
    models.fit_scale(decoder, parts.train)
    decoder.to(ws.device)
    work = yield from run_fit(ws, f"decoder_{name}", number, decoder, data, config.optim, predict)
    base = {"base": model.name, "input_dim": model.latent_dim}
    _store(ws, folder, decoder, facts_of(ws, name, number, work), predict, **base)


def make_heads(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """Reward heads on the frozen model, their predictions of test rewards, their scores."""
    config, parts = ws.config.pixels.reward, make_transitions(ws)
    model, stage = load_model(ws, name, number), name_of(name, number, "heads")
    train, choice, test = (encode(model, part) for part in parts)
    seen, true = (part.reward.numpy() for part in (parts.train, parts.test))
    note = unestimable(seen, true)
    cell = {MEAN_REWARD: np.full_like(true, seen.mean())}
    heads: dict[str, dict[str, Any]] = {MEAN_REWARD: {}}
    for kind in HEADS:
        work = fit_head(kind, train, choice, config, ws.config.seed + number)
        if work is None:
            heads[kind] = {}  # not applicable
            continue
        head, initial = work.module, fingerprint(work.module.net)
        with one_thread():
            yield from ws.follow(work, f"{stage}_{kind}", partial(log_row, every=config.log_every))
        work.load_best()
        cell[kind] = head.eval().requires_grad_(False)(test.inputs(kind)).cpu().numpy()
        heads[kind] = {"initial_sha256": initial, "updates": work.update}
        meta = {"config": to_dict(config), "width": head.width}
        save_module(folder / kind, head, "reward head", **meta)
    for kind, predicted in cell.items():
        heads[kind] |= score(predicted, true, note)
    save_npz(folder / "predictions.npz", reward=true, episode=parts.test.episode.numpy(), **cell)
    rewarded = {"training": np.count_nonzero(seen), "test": np.count_nonzero(true)}
    facts = {"note": note, "heads": heads, "nonzero": rewarded}
    write_json(folder / "scores.json", facts_of(ws, name, number) | facts)


def make_stage1(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """V-JEPA 2's masked pre-training, or the weights of a checkpoint, evaluated."""
    parts, stage = make_transitions(ws), ws.config.pixels.vjepa2.stage1
    model = fresh_model(ws, name, number, parts.train)
    if source := stage.checkpoint:
        facts = models.fill_model(Path(source), model) | {"loaded": True}
    else:
        work = yield from run_fit(
            ws, "vjepa2_stage1", number, model, parts[:2], stage.optim, most=two_stages.HELD_OUT
        )
        facts = facts_of(ws, "vjepa2", number, work, len(parts.train))
    models.save_model(folder, model.eval().requires_grad_(False), **facts)
    write_json(folder / two_stages.EVALUATION, two_stages.measure(ws, 1, number, model))


def make_stage2(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """V-JEPA 2's world model on latents that the frozen encoder makes once."""
    train, earlier = make_transitions(ws).train, name_of("vjepa2_stage1", number)
    model, path = fresh_model(ws, name, number, train), find(ws, earlier)
    first, given = models.about_model(path, "stage1"), models.load_model(path, "stage1")
    model.encoder.load_state_dict(given.online.state_dict())
    models.fit_scale(model, train, given.background)
    world, windows = model.world.requires_grad_(True), two_stages.latent_windows(ws, model)
    optim = ws.config.pixels.vjepa2.stage2.optim
    work = yield from run_fit(ws, name, number, world, windows[:2], optim, most=two_stages.HELD_OUT)
    updates = [first["updates"], work.update]
    facts = facts_of(ws, name, number, work, len(windows[0])) | {
        "parameters": {"total": sum(p.numel() for p in model.parameters())},
        "updates": sum(updates),
        "stage_updates": updates,
        # Stage 1 has the other models' batches; weights from a file saw batches unknown here.
        "batches_sha256": "" if first["loaded"] else first["batches_sha256"],
        "loaded": first["loaded"],
        "early_stopping": work.config.patience > 0 or first["early_stopping"],
        "earlier_seconds": ws.run.manifest["stages"][earlier]["seconds"],
    }
    models.save_model(folder, model.requires_grad_(False), **facts)
    write_json(folder / two_stages.EVALUATION, two_stages.measure(ws, 2, number, model))
    write_json(folder / RESULT, facts)
