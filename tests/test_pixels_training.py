"""The guarded loop, the training of pixel models, their stages, logs, files and pictures."""

import dataclasses
import json
import math
import warnings

import pytest
import torch
from tiny import digest
from tiny_pixels import (
    TINY,
    tiny_config,
    tiny_pixels,
    tiny_transitions,
    tiny_workspace,
    with_section,
)
from torch import nn

from hjepa_lib.config import OptimConfig, profile
from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import MODELS, EpochsConfig
from hjepa_lib.files import FileError, read_json
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels import auxiliaryrunner, pixelresults
from hjepa_lib.pixels import collect as pixeldata
from hjepa_lib.pixels import figures_reconstructions as reconstructions
from hjepa_lib.pixels import stages as pixelstages
from hjepa_lib.pixels.frames import frame_errors, mean_frame
from hjepa_lib.pixels.pixellog import model_log
from hjepa_lib.pixels.registry import FILES, build_pixel_model, fill_model, load_model, save_model
from hjepa_lib.pixels.training import budget, fit_pixels
from hjepa_lib.pixels.transitions import shapes_of
from hjepa_lib.pixels.vjepa2 import MaskedPrediction
from hjepa_lib.training.loop import Fit, Report, Task, TrainingError, learning_rate

TRAINED = ("enc_dec", "enc_dec_jepa", "jepa")


# --- the guarded loop (TRAIN-3) -----------------------------------------------------------------
class Toy(nn.Module):
    """A vector driven to zero, with a running average that a lost update must not touch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))


def toy(factors=(), validate=None, folder=None, after=None, **optim):
    """Loss = factor * |w|^2, the factor of update k from `factors` (1 beyond them)."""
    module = Toy()

    def loss_fn(generator):
        factor = factors[fit.update] if fit.update < len(factors) else 1.0
        module.seen += factor
        return factor * module.weight.square().sum(), {}

    settings = {"updates": 6, "lr": 0.1, "validate_every": 1, "schedule": "constant"}
    settings |= {"non_finite": "skip"} | optim
    task = Task(module, loss_fn, validate, after)
    fit = Fit(task, OptimConfig(**settings), seed=0, folder=folder)
    return module, fit


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(bad):
    """TRAIN-3: weights, buffers and EMA unchanged, counter 1, and training goes on."""
    calls = []
    module, fit = toy([1.0, bad], after=lambda: calls.append(1))
    steps = iter(fit)
    next(steps)
    before = digest(module, fit.optimiser.state_dict()["state"][0]["exp_avg"])
    report = next(steps)
    assert (report.update, report.skipped, fit.skipped) == (2, 1, 1)
    assert digest(module, fit.optimiser.state_dict()["state"][0]["exp_avg"]) == before
    assert [report.skipped for report in steps] == [1] * 4
    assert len(calls) == 5 and digest(module) != before


def test_a_gradient_that_is_not_finite_is_skipped_too():
    module, fit = toy()
    fit.task.loss = lambda generator: (module.weight.mul(0).abs().sqrt().sum(), {})
    assert next(iter(fit)).skipped == 1
    assert torch.equal(module.weight, torch.ones(3))


def test_a_training_that_only_skips_ends_with_a_sentence():
    _, fit = toy([math.nan] * 100, updates=100)
    with pytest.raises(TrainingError, match="50 updates in a row"):
        list(fit)


def test_a_huge_loss_fails_and_a_large_gradient_warns_once():
    """(+) The seed divided losses above 1e6 by 1000 and went on."""
    with pytest.raises(TrainingError, match=r"the loss is 3e\+06 at update 1"):
        list(toy([1e6])[1])
    with pytest.warns(UserWarning, match="the gradient norm is") as caught:
        list(toy([100.0] * 6)[1])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(toy()[1])
        list(toy([100.0] * 6, non_finite="fail")[1])
    assert next(iter(toy([1e6], non_finite="fail")[1])).loss > 1e6


# --- schedules and early stopping -----------------------------------------------------------------
def rates(losses, **optim):
    """Learning rates of a toy fit whose validation losses are `losses`."""
    values = iter(losses)
    _, fit = toy(validate=lambda: {"loss": next(values)}, updates=len(losses), **optim)
    return [report.lr for report in fit]


def test_constant_and_step_schedules():
    assert rates([1.0] * 4) == [0.1] * 4
    step = rates([1.0] * 7, schedule="step", decay_every=3)
    assert step == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025])
    assert rates([1.0] * 7, schedule="step", decay_every=1, min_lr=0.04)[-1] == 0.04
    config = OptimConfig(updates=10, lr=0.5, schedule="step", decay_every=5)
    assert [learning_rate(k, config) for k in (0, 4, 5, 9)] == [0.5, 0.5, 0.25, 0.25]


def test_plateau_halves_after_validations_without_progress():
    """VJ-5: factor 0.5, never below min_lr; a fall by more than delta starts the count again."""
    falling = rates([1.0, 0.9, 0.8, 0.7], schedule="plateau", plateau_patience=2)
    assert falling == [0.1] * 4
    stalled = rates([1.0] * 7, schedule="plateau", plateau_patience=2)
    assert stalled == pytest.approx([0.1] * 4 + [0.05] * 3)  # as torch's ReduceLROnPlateau
    assert rates([1.0] * 7, schedule="plateau", plateau_patience=1, min_lr=0.03)[-1] == 0.03
    small = [1.0, 0.99, 0.98, 0.97, 0.96]
    assert rates(small, schedule="plateau", delta=0.1)[-1] == 0.05
    assert rates(small, schedule="plateau", delta=0.001)[-1] == 0.1


def stopping(losses, **optim):
    values = iter(losses)
    module, fit = toy(validate=lambda: {"loss": next(values)}, updates=len(losses), **optim)
    return module, fit, [report.update for report in fit][-1]


def test_early_stopping_on_fake_loss_sequences():
    """TRAIN-4: patience counts validations that are not better by delta; the best is kept."""
    losses = [1.0, 0.5, 0.6, 0.6, 0.6, 0.1]
    assert stopping(losses, patience=3)[2] == 5
    assert stopping(losses, patience=0)[2] == 6
    slow = [1.0, 0.9995, 0.999, 0.9985, 0.998, 0.9975]  # 0.001 below the first only at the fourth
    assert stopping(slow, patience=3, delta=0.001)[2] == 6
    assert stopping(slow, patience=2, delta=0.001)[2] == 3
    module, fit, _ = stopping(slow, patience=2, delta=0.001)
    assert fit.best_loss == 0.999  # a small fall is still the best so far
    last = module.weight.clone()
    fit.load_best()
    assert torch.equal(module.weight, last)


def test_resuming_keeps_schedule_patience_and_skip_counter(tmp_path):
    """TRAIN-7: an interrupted fit ends as an uninterrupted one, bit for bit."""
    losses = [1.0, 1.0, 1.0, 0.9999, 0.9, 0.95, 0.95, 0.95]
    factors = [1.0, math.nan, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0]
    options = {"schedule": "plateau", "delta": 0.01, "patience": 4, "updates": 8}

    def start(folder=None):
        return toy(factors, validate=lambda: {"loss": losses[one[1].update - 1]}, folder=folder,
                   **options)  # fmt: skip

    one = start()
    whole = list(one[1])
    for stop in range(1, len(whole)):
        one = start(tmp_path / str(stop))
        for _, _ in zip(range(stop), one[1], strict=False):
            pass
        one = start(tmp_path / str(stop))
        assert one[1].update == stop
        assert repr(list(one[1])) == repr(whole[stop:])  # NaN equals NaN as text
    assert whole[-1].skipped == 2 and whole[-1].lr < 0.1


# --- training of the models -------------------------------------------------------------------
def train(name, folder=None, data=None, seed=0, **changes):
    config = tiny_pixels(**changes)
    data = data or tiny_transitions()
    torch.manual_seed(seed)
    model = build_pixel_model(name, config, data)
    parts = data.split(0.3, 0)
    fit = fit_pixels(model, *parts, config.optim, seed=seed, folder=folder)
    return model, fit


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("enc_dec", {}),
        ("enc_dec_jepa", {"jepa__predictor": "transformer"}),
        ("enc_dec", {"auxiliary__use_for_enc_dec": True, "auxiliary__projector": True}),
        ("jepa", {"jepa__target": "vjepa2", "auxiliary__projector": True}),
        ("jepa", {"jepa__target": "none", "jepa__predictor": "transformer"}),
        ("jepa", {"encoder__kind": "vit", "jepa__target": "vjepa2"}),
    ],
    ids=str,
)
def test_every_trainable_tensor_is_optimised_and_learns(name, changes):
    """F1, F9, TRAIN-2: encoder, predictor, decoder, action embedding and projector."""
    model, fit = train(name, **changes)
    optimised = {id(p) for group in fit.optimiser.param_groups for p in group["params"]}
    next(iter(fit))
    for key, p in model.named_parameters():
        assert p.requires_grad == (id(p) in optimised), key
        assert p.requires_grad != key.startswith("target_encoder"), key
        if p.requires_grad:
            assert p.grad is not None and p.grad.abs().max() > 0, key


def test_the_optimiser_and_budget_are_those_of_the_settings():
    """TRAIN-2: AdamW, betas .9/.999, rate, decay and clip; 20 epochs where no updates are set."""
    _, fit = train("jepa")
    group = fit.optimiser.param_groups[0]
    assert isinstance(fit.optimiser, torch.optim.AdamW)
    assert (group["betas"], group["weight_decay"], fit.config.clip) == ((0.9, 0.999), 1e-5, 1.0)
    assert next(iter(fit)).lr == 1e-3  # the laptop's few updates; the seeds' rate is that of `full`
    full = profile("full").pixels.optim
    assert full.lr == 3e-4
    assert (full.epochs, full.batch, full.patience, full.delta) == (20, 32, 3, 0.001)
    assert budget(full, 3200).updates == 2000 and budget(full, 3200).patience == 3


def test_a_fixed_number_of_updates_is_spent_whole():
    """Rule 1: all models get the same number of updates, so nothing may stop one of them early."""
    assert budget(EpochsConfig(updates=7), 320).patience == 0
    losses = [r.validation for r in train("jepa", optim__lr=0.0)[1]]  # its patience is 3
    assert len(losses) == 6


EPOCHS_CHANGES = {
    "epochs": ({"updates": 0, "epochs": 1}, 2), "updates": ({}, 3), "batch": ({}, 4),
    "lr": ({}, 1e-2), "weight_decay": ({}, 0.5), "clip": ({}, 1e-3),
    "schedule": ({"updates": 0, "epochs": 22, "patience": 0, "batch": 40}, "step"),
    "patience": ({"updates": 0, "epochs": 4, "batch": 40, "lr": 0.0}, 1),
    "delta": ({"updates": 0, "epochs": 4, "batch": 40, "patience": 1}, 1e3),
    "plateau_patience": ({"batch": 40, "schedule": "plateau", "delta": 1e3}, 1),
    "min_lr": ({"batch": 40, "schedule": "plateau", "delta": 1e3}, 8e-4),
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(EpochsConfig)])
def test_every_training_setting_acts(field):
    base, value = EPOCHS_CHANGES[field]

    def outcome(**changes):
        changes = {f"optim__{key}": item for key, item in (base | changes).items()}
        model, fit = train("jepa", encoder__cnn_filters=2, **changes)
        return [report.lr for report in fit], digest(model)

    assert outcome(**{field: value}) != outcome()


@pytest.mark.parametrize("name", TRAINED)
def test_two_runs_are_equal_and_a_resumed_one_as_well(name, tmp_path):
    """TRAIN-7: dropout included, whatever the global generator did meanwhile."""
    changes = {"encoder__kind": "vit", "optim__batch": 13}  # validated every 3 updates
    one, fit = train(name, **changes)
    reports = list(fit)
    two, fit = train(name, **changes)
    torch.manual_seed(99)
    assert list(fit) == reports and digest(two) == digest(one)
    _, fit = train(name, tmp_path, **changes)
    for _, _ in zip(range(4), fit, strict=False):
        pass
    again, fit = train(name, tmp_path, **changes)
    assert fit.update == 3
    torch.manual_seed(98)
    assert list(fit) == reports[3:] and digest(again) == digest(one)


def test_every_model_sees_the_same_batches(monkeypatch):
    """Rule 1 of the comparison: the k-th batch is a function of (seed, k) alone."""
    data, seen = tiny_transitions(), {}
    whole = type(data).batch

    def spy(self, index):
        seen.setdefault(name, []).append(index.tolist())
        return whole(self, index)

    monkeypatch.setattr(type(data), "batch", spy)
    for name in TRAINED:
        list(train(name, data=data)[1])
    assert seen["enc_dec"] == seen["enc_dec_jepa"] == seen["jepa"]


def test_jepa_learns_to_predict_and_keeps_its_spread():
    _, fit = train("jepa", optim__updates=60, optim__lr=3e-3, encoder__kind="mlp")
    reports = list(fit)
    assert reports[-1].terms["vicreg_std"] < 0.5
    assert reports[-1].loss < 0.8 * reports[0].loss


def test_continuous_actions_train():
    _, fit = train("enc_dec_jepa", data=tiny_transitions(continuous=True))
    assert all(math.isfinite(report.loss) for report in fit)


def test_frame_errors_next_to_baselines_that_need_no_model():
    """The perfect prediction has error 0; a still scene makes copying perfect."""
    data = tiny_transitions()
    perfect = frame_errors(
        lambda batch: batch.next_state[:, -1] / 255, data, mean_frame(data), "cpu"
    )
    assert perfect.mse == 0 < perfect.copy_last_mse
    assert 0 < perfect.changed_share < 1 and perfect.mean_frame_mse > 0
    still = dataclasses.replace(data, frames=data.frames[:1].repeat(len(data.frames), 1, 1, 1))
    found = frame_errors(lambda batch: torch.ones(()), still, mean_frame(still), "cpu")
    assert found.copy_last_mse == found.changed_share == 0 < found.mse
    assert found.mean_frame_mse == pytest.approx(0, abs=1e-10)


# --- stages -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    """A run with the three models and JEPA's decoder trained."""
    workspace = tiny_workspace(
        tmp_path_factory.mktemp("outputs"),
        tiny_config(auxiliary__use_for_enc_dec=True, optim__updates=10),
    )
    for name in TRAINED:
        list(pixelstages.train_model_stage(workspace, name, 0))
    list(pixelstages.train_decoder_stage(workspace, "jepa", 0))
    return workspace


@pytest.mark.parametrize("name", TRAINED)
def test_a_stored_model_gives_equal_outputs(ws, name):
    """TRAIN-5: by its documented name, frozen, in eval mode; a finished stage yields nothing."""
    folder = ws.run.path / f"pixels/{name}/s0"
    assert (folder / f"{FILES[name]}.safetensors").is_file()
    model = pixelstages.load_model(ws, name, 0)
    again = pixelstages.load_model(ws, name, 0)
    batch = tiny_transitions().batch(torch.arange(4))
    assert torch.equal(model.encode(batch.state), again.encode(batch.state))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert list(pixelstages.train_model_stage(ws, name, 0)) == []
    assert not (ws.run.path / f"resume/{name}_s0").exists()
    torch.manual_seed(0)
    other = build_pixel_model(name, ws.config.pixels, batch_shapes())
    fill_model(folder, other)
    assert torch.equal(other.eval().encode(batch.state), model.encode(batch.state))


def batch_shapes():
    return tiny_transitions()


def test_the_names_of_the_seed_are_kept(ws):
    found = {path.name for path in (ws.run.path / "pixels").rglob("*.safetensors")}
    assert found == {f"best_{n}.safetensors" for n in ("encoder_decoder", "jepa", "jepa_decoder")}


def test_a_foreign_or_damaged_file_is_one_sentence(ws, tmp_path):
    folder = ws.run.path / "pixels/enc_dec/s0"
    with pytest.raises(FileError, match="does not describe a pixel enc_dec_jepa"):
        load_model(folder, "enc_dec_jepa")
    with pytest.raises(FileError, match="cannot read"):
        load_model(folder, "jepa")
    (tmp_path / "best_jepa.json").write_text('{"kind": "level1"}')
    with pytest.raises(FileError, match="does not describe a pixel jepa model"):
        load_model(tmp_path, "jepa")


def test_result_rows_say_what_makes_them_comparable(ws):
    """Rule 1 and MET-2: data, batches, updates, counts, time, and baselines next to the score."""
    rows = [read_json(ws.run.path / f"pixels/{name}/s0/result.json") for name in TRAINED]
    for key in ("data_sha256", "batches_sha256", "updates", "transitions", "seed"):
        assert len({json.dumps(row[key]) for row in rows}) == 1, key
    assert rows[0]["data_sha256"] == tiny_transitions().sha256 and rows[0]["updates"] == 10
    for row in rows:
        parts = row["parameters"]
        total = sum(v for k, v in parts.items() if k not in ("total", "stored"))
        assert total == parts["total"] <= parts["stored"] and row["seconds"] > 0
        assert row["skipped"] == 0 and not row["skipped_training"]
    assert set(rows[0]["frames"]) >= {"mse", "copy_last_mse", "mean_frame_mse"}
    assert "frames" not in rows[2]


LOG2 = {"Prediction_Loss", "VICReg_Sim_Loss", "VICReg_Std_Loss", "VICReg_Cov_Loss",
        "VICReg_Total_Loss", "Total_Loss"}  # fmt: skip


@pytest.mark.parametrize(("name", "prefix"), [("enc_dec", "StdEncDec"), ("jepa", "JEPA")])
def test_the_log_has_the_keys_of_the_seed(ws, name, prefix):
    """LOG-2, one key one writer (the log itself refuses a second value)."""
    records = ws.run.records(f"{name}_s0")
    keys = {key for row in records for key in row}
    wanted = {f"{prefix}/train/{key}" for key in LOG2 | {"Learning_Rate", "step"}}
    wanted |= {f"{prefix}/{part}/{key}" for part in ("train_epoch_avg", "val") for key in LOG2}
    wanted |= {f"{prefix}/val/VICReg_Weighted_Loss", "epoch"}
    wanted |= {"JEPA/train/Encoder_Weight_Diff_MSE"} if name == "jepa" else set()
    assert wanted <= keys
    last = records[-1]
    assert last["step"] == 10 and last["epoch"] == len([r for r in records if "epoch" in r])
    assert last[f"{prefix}/train/step"] == 10
    if name == "jepa":
        gap = [row["JEPA/train/Encoder_Weight_Diff_MSE"] for row in records if "epoch" in row]
        assert 0 < gap[0] < gap[-1]


def test_the_log_of_the_decoder_has_the_keys_of_the_seed(ws):
    """LOG-3."""
    keys = {key for row in ws.run.records("decoder_jepa_s0") for key in row}
    for part in ("train", "val", "train_epoch_avg"):
        assert f"JEPA_Decoder/{part}/total_loss" in keys
        assert f"JEPA_Decoder/{part}/loss_mse_reconstruction" in keys


def test_epoch_averages_leave_out_skipped_updates():
    model, fit = train("jepa")
    log = model_log(model, fit)
    terms = {"prediction": 1.0}
    log.record(Report(1, 4, 2.0, terms, 0.1, 1.0, {}))
    log.record(Report(2, 4, math.nan, {"prediction": math.nan}, 0.1, math.nan, {}, 1))
    row = log.record(Report(3, 4, 4.0, terms, 0.1, 1.0, {"loss": 5.0}, 1))
    assert row["JEPA/train_epoch_avg/Total_Loss"] == 3.0 and row["skipped"] == 1


def test_pictures_of_every_epoch_are_in_the_run_folder(ws):
    """FIG-1: five samples an epoch, the same number for every model, nothing shared cleared."""
    for folder in ("encoder_decoder", "encoder_decoder_jepa_style", "jepa_decoder"):
        found = {p.name for p in (ws.run.path / "decoder_plots" / folder).iterdir()}
        epochs = {int(name.split("_")[1]) for name in found}
        assert found == {f"epoch_{e}_sample_{n}_comparison.png" for e in epochs for n in range(5)}
        assert min(epochs) == 1


def test_every_model_is_drawn_on_the_same_samples(ws, monkeypatch):
    """FIG-1: the true frames in the pictures of two models are equal."""
    seen = []
    monkeypatch.setattr(reconstructions, "write_comparisons", lambda *parts: seen.append(parts[3]))
    _, validation = pixelstages.make_transitions(ws)
    for name in ("enc_dec", "enc_dec_jepa"):
        model = pixelstages.load_model(ws, name, 0)
        pixelresults.drawing(ws, name, 0, validation, pixelresults.frame_predictor(model))(2)
    assert torch.equal(*seen) and len(seen[0]) == 5
    assert pixelresults.drawing(ws, "enc_dec", 1, validation, None) is None


def test_the_random_baseline_is_built_from_the_seed(ws):
    one, two = (pixelstages.load_model(ws, "random", 0) for _ in range(2))
    assert digest(one) == digest(two) != digest(pixelstages.load_model(ws, "random", 1))
    start = pixelstages.fresh_model(ws, "jepa", 0, pixelstages.make_transitions(ws)[0])
    assert digest(one.encoder) == digest(start.encoder)


def test_the_two_stage_model_has_an_untrained_baseline_of_its_own(ws):
    """The very encoder that stage 1 of this seed begins with, frozen; nothing is imagined."""
    train = pixelstages.make_transitions(ws)[0]
    one, two = (pixelstages.load_model(ws, "random_vit", 0) for _ in range(2))
    assert digest(one) == digest(two) != digest(pixelstages.load_model(ws, "random_vit", 1))
    torch.manual_seed(ws.config.seed)  # as vjepa2stages.train_stage1 does
    first = MaskedPrediction(ws.config.pixels, shapes_of(train))
    assert digest(one.encoder) == digest(first.online)
    assert not any(p.requires_grad for p in one.parameters())
    batch = train.batch(torch.arange(3))
    latent = one.encode(batch.state)
    assert latent.shape == (3, one.latent_dim) and latent.std() > 0
    assert torch.equal(latent, one.train().eval().encode(batch.state))
    assert one.embed_action(batch.action).shape == (3, ws.config.pixels.action_dim)
    assert one.imagine(latent, batch.action) is None
    with pytest.raises(ConfigError, match="random_vit imagines no latent"):
        next(pixelstages.train_decoder_stage(ws, "random_vit", 0))


# --- decoder (MOD-10) -------------------------------------------------------------------------
def test_the_decoder_learns_and_leaves_the_model_alone(tmp_path):
    config = tiny_config(decoder__optim__updates=60, decoder__optim__lr=3e-3)
    ws = tiny_workspace(tmp_path, config)
    model = pixelstages.load_model(ws, "jepa", 0)
    before = fingerprint(model)
    reports = list(pixelstages.train_decoder_stage(ws, "jepa", 0))
    assert fingerprint(pixelstages.load_model(ws, "jepa", 0)) == before
    errors = [r.validation["mse_reconstruction"] for r in reports if r.validation]
    assert errors[-1] < min(0.9 * errors[0], 0.7 * reports[0].loss)
    result = read_json(ws.run.path / "pixels/jepa/s0/decoder_result.json")
    assert result["source"] == "predictor"
    assert result["frames"]["mse"] == pytest.approx(result["best_loss"], rel=1e-3)
    decoder = pixelstages.load_decoder(ws, "jepa", 0)
    batch = tiny_transitions().batch(torch.arange(3))
    frame = decoder(model.imagine(model.encode(batch.state), batch.action))
    assert frame.shape == (3, 1, 16, 16)


def test_what_the_decoder_reads_is_a_setting(tmp_path):
    """MOD-10: imagined, online and target latents differ, so do the decoders."""
    found = set()
    for source in ("predictor", "online", "target"):
        config = tiny_config(decoder__source=source, jepa__target="vjepa2", jepa__ema_decay=0.5)
        ws = tiny_workspace(tmp_path, config, source)
        list(pixelstages.train_decoder_stage(ws, "jepa", 0))
        found.add(digest(pixelstages.load_decoder(ws, "jepa", 0)))
    assert len(found) == 3


def test_a_model_that_imagines_nothing_has_no_decoder_of_imagined_latents(ws):
    with pytest.raises(ConfigError, match="enc_dec imagines no latent"):
        next(pixelstages.train_decoder_stage(ws, "enc_dec", 0))


# --- loading (TRAIN-6) ------------------------------------------------------------------------
def test_training_starts_from_a_loaded_file_and_may_be_skipped(ws, tmp_path):
    """Path and kind of another model: ignored. Good path: loaded, trained or skipped as asked."""
    path = str(ws.run.path / "pixels/jepa/s0")
    stored = digest(pixelstages.load_model(ws, "jepa", 0))
    for skip in (False, True):
        config = ws.config.override(
            {"pixels.loading.path": path, "pixels.loading.skip_training": skip}
        )
        other = tiny_workspace(tmp_path, config, f"skip{skip}")
        reports = list(pixelstages.train_model_stage(other, "jepa", 0))
        assert (reports == []) == skip
        assert (digest(pixelstages.load_model(other, "jepa", 0)) == stored) == skip
        assert list(pixelstages.train_model_stage(other, "enc_dec", 0))  # another kind
        result, plain = (
            read_json(other.run.path / f"pixels/{name}/s0/result.json")
            for name in ("jepa", "enc_dec")
        )
        assert result["skipped_training"] == skip
        # Trained further or not, other batches made these weights: no hash, and no claims.
        assert result["loaded"] and result["batches_sha256"] == ""
        assert not plain["loaded"] and plain["batches_sha256"]


def test_a_bad_path_is_warned_about_and_trained_without(tmp_path):
    config = tiny_config(loading__path="/nowhere", loading__skip_training=True)
    with pytest.warns(UserWarning, match="cannot read .*; jepa is trained from its start"):
        assert list(pixelstages.train_model_stage(tiny_workspace(tmp_path, config), "jepa", 0))


def test_a_frozen_jepa_is_loaded_and_never_trained(ws, tmp_path):
    path = str(ws.run.path / "pixels/jepa/s0/best_jepa.safetensors")
    frozen = ws.config.override({"pixels.jepa.frozen": True, "pixels.loading.path": path})
    one = tiny_workspace(tmp_path, frozen, "frozen")
    assert list(pixelstages.train_model_stage(one, "jepa", 0)) == []
    assert digest(pixelstages.load_model(one, "jepa", 0)) == digest(
        pixelstages.load_model(ws, "jepa", 0)
    )
    alone = tiny_workspace(tmp_path, tiny_config(jepa__frozen=True), "alone")
    with pytest.raises(ConfigError, match=r"jepa\.frozen needs weights that load"):
        list(pixelstages.train_model_stage(alone, "jepa", 0))


def test_a_model_of_other_sizes_does_not_load(ws):
    torch.manual_seed(0)
    config = with_section(ws.config.pixels, "encoder", latent_dim=9)
    model = build_pixel_model("jepa", config, tiny_transitions())
    with pytest.raises(FileError, match="was made for another config"):
        fill_model(ws.run.path / "pixels/jepa/s0", model)


def test_saving_and_filling_round_trip(tmp_path):
    torch.manual_seed(1)
    model = build_pixel_model("enc_dec", tiny_pixels(), tiny_transitions())
    save_model(tmp_path, model)
    assert digest(load_model(tmp_path, "enc_dec")) == digest(model)


# --- order of everything (TRAIN-1) ----------------------------------------------------------------
def test_the_order_of_the_comparison(tmp_path, monkeypatch):
    """Call trace: data, models in turn, then heads on all of them, then decoders."""
    trace = []

    def stub(kind):
        def run(ws, name, seed):
            trace.append((kind, name, seed))
            yield Report(1, 1, 0.0, {}, 0.0, 0.0, {})

        return run

    monkeypatch.setattr(pixelstages, "train_model_stage", stub("train"))
    monkeypatch.setattr(pixelstages, "train_decoder_stage", stub("decoder"))
    ws = tiny_workspace(tmp_path, tiny_config(seeds=2))
    names = [name for name, _ in pixelstages.train_comparison(ws, stub("heads"))]
    per_seed = [[("train", name, seed) for name in MODELS]
                + [("heads", name, seed) for name in (*MODELS, "random", "random_vit")]
                + [("decoder", name, seed) for name in ("jepa", "vjepa2")]
                for seed in (0, 1)]  # fmt: skip
    assert trace == per_seed[0] + per_seed[1]
    assert names[0] == "enc_dec_s0" and names[-1] == "decoder_vjepa2_s1"


# --- the runner of auxiliary losses (MET-3) ----------------------------------------------------
ENTRIES = [
    {"name": "vicreg", "type": "vicreg", "params": {"cov": 0.04}},
    {"name": "barlow", "type": "barlow_twins"},
    {"name": "dino", "type": "dino", "params": {"dino_momentum": 0.5}},
]


def test_three_losses_run_into_their_own_folders_and_are_ranked(tmp_path, monkeypatch):
    config = profile("smoke").override(TINY | {"pixels.reward.optim.updates": 4})
    monkeypatch.setattr(pixeldata, "acquire", lambda *_: tiny_transitions())
    rows = auxiliaryrunner.run_losses(
        "losses", ENTRIES, config, {"pixels.optim.updates": 3}, root=tmp_path
    )
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows)
    assert {row["name"] for row in rows} == {"vicreg", "barlow", "dino"}
    for row in rows:
        assert row["status"] == "ok"
        values = [v for k, v in row.items() if k.startswith("downstream/")]
        assert len(values) == 2 and all(math.isfinite(v) for v in values)
        manifest = read_json(tmp_path / "losses" / row["name"] / "manifest.json")
        assert manifest["config"]["pixels"]["optim"]["updates"] == 3
        assert manifest["config"]["pixels"]["auxiliary"]["kind"] == row["type"]
    assert read_json(tmp_path / "losses/summary.json")["rows"] == json.loads(json.dumps(rows))
    text = (tmp_path / "losses/summary.txt").read_text().splitlines()
    assert len(text) == 4 and "downstream/reconstruction_mse" in text[0]
    again = auxiliaryrunner.run_losses(
        "losses", ENTRIES, config, {"pixels.optim.updates": 3}, root=tmp_path
    )
    assert again == rows


def test_rows_without_finite_numbers_are_ranked_last():
    """Published summaries of the seed's branch rank nothing but infinities and zeros."""
    rows = [
        {"name": "a", "type": "vicreg", "status": "ok", "downstream/x": 2.0, "downstream/y": 1},
        {"name": "b", "type": "vicreg", "status": "", "downstream/x": math.inf, "downstream/y": 0},
        {"name": "c", "type": "dino", "status": "failed"},
        {"name": "d", "type": "dino", "status": "ok", "downstream/x": 1.0, "downstream/y": 0.5},
    ]
    ranked = auxiliaryrunner.rank_rows(rows)
    assert [(row["name"], row["rank"]) for row in ranked] == [
        ("d", 1), ("a", 2), ("b", None), ("c", None)
    ]  # fmt: skip
    text = auxiliaryrunner.summary_text(ranked)
    assert "inf" not in text and "nan" not in text


def test_a_failing_loss_does_not_end_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pixeldata, "acquire", lambda *_: tiny_transitions())
    entries = [{"name": "none", "type": "none"}, ENTRIES[0]]
    rows = auxiliaryrunner.run_losses(
        "losses", entries, tiny_config(), root=tmp_path, downstream=lambda ws: {"downstream/x": 1.0}
    )
    assert [(row["name"], row["rank"]) for row in rows] == [("vicreg", 1), ("none", None)]
    assert "through the auxiliary loss alone" in rows[1]["status"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "list of auxiliary losses is empty"),
        ([{"name": "a"}], "is {name, type, params}"),
        ([{"name": "a", "type": "vicreg", "weight": 1}], "is {name, type, params}"),
        ([{"name": "a", "type": "gan"}], "kind must be one of"),
        ([{"name": "a", "type": "vicreg", "params": {"covv": 1}}], "unknown key 'covv'"),
        ([ENTRIES[0], ENTRIES[0]], "two auxiliary losses are called 'vicreg'"),
    ],
)
def test_a_wrong_list_is_one_sentence(entries, message):
    with pytest.raises(ConfigError, match=message):
        auxiliaryrunner.check_entries(entries)
