"""The V-JEPA 2 style model of seed 002: VJ-1 to VJ-14."""

import numpy as np
import pytest
import torch
from tiny import digest, ema_follows, refused
from tiny_pixels import (
    TINY_COMMAND,
    random_window,
    seeded,
    tiny_config,
    tiny_pixels,
    tiny_transitions,
    tiny_workspace,
    under,
)
from tiny_pixels import two_stages_model as make
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hjepa_lib.__main__ import main
from hjepa_lib.config import ConfigError, profile
from hjepa_lib.files import FileError
from hjepa_lib.models.layers import count_parameters, draw_masks
from hjepa_lib.pixels import stages, two_stages
from hjepa_lib.pixels.models import FILES, VJepa2, about_model, fit_scale, load_model
from hjepa_lib.pixels.networks import brightest
from hjepa_lib.pixels.training import fit
from hjepa_lib.pixels.transitions import PixelShapes, scaled
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, WorldModel, encode_states
from hjepa_lib.pixels.worlds import DRIFT_ID
from hjepa_lib.runs.places import list_runs
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

ATARI = PixelShapes(channels=1, stack=4, image_size=64, action_kind="discrete", action_dim=4)


@pytest.fixture(scope="module")
def data():
    return tiny_transitions(6, 14).split(0.34, 0)


@pytest.fixture
def batch(data):
    return data[0].batch(torch.arange(5))


@pytest.fixture
def world():
    return make(WorldModel).eval()


def test_parameter_counts_are_the_seeds():
    """VJ-1, VJ-6, VJ-8; but for a last norm of 2 * 64, and a class token's position of 64."""
    full = profile("full").pixels
    stage1 = MaskedPrediction(full, ATARI)
    assert sum(p.numel() for p in stage1.parameters()) == 1_196_096 + 2 * 64
    assert count_parameters(stage1) == 647_488 + 64
    assert count_parameters(WorldModel(full, ATARI)) == 1_200_736
    patches = stage1.online.vit.patches
    assert patches.count == 64 and patches.project.in_channels == 4
    assert stage1.online(torch.zeros(2, 4, 1, 64, 64)).shape == (2, 64)
    for message, changes in (
        ("read=cls needs a width", {"read": "cls", "width": 8}),
        ("latent_dim=16 is more than the 12", {"width": 12, "patch": 16}),
    ):
        refused(ConfigError, message, make, MaskedPrediction, **under("vjepa2.stage1", **changes))


@pytest.mark.parametrize(
    ("patches", "ratio"), [(16, 0.0), (16, 0.25), (100, 0.29), (100, 0.4), (16, 0.75), (16, 0.95)]
)
def test_masks_are_exact_per_sample_and_differ(patches, ratio):
    """VJ-2."""
    masks = draw_masks(50, patches, ratio, seeded(0))
    expected = patches * round(100 * ratio) // 100
    assert (masks.sum(dim=1) == expected).all()
    if expected:
        assert len(masks.unique(dim=0)) > 10
        assert masks.float().mean(dim=0).min() > 0  # every place is hidden at some time


def test_only_hidden_patches_change(batch):
    encoder = make(MaskedPrediction).eval().online
    state, vit = scaled(batch.state), encoder.vit
    mask = draw_masks(5, vit.patches.count, 0.4, seeded(0))
    plain, masked = (vit.patches(state.flatten(1, 2), one, vit.token) for one in (None, mask))
    assert torch.equal(plain[~mask], masked[~mask])
    assert torch.allclose(masked[mask], (vit.token + vit.patches.position).expand(5, -1, -1)[mask])
    assert not torch.allclose(encoder.tokens(state), encoder.tokens(state, mask))


def test_frozen_encoder_is_deterministic_unmasked_and_stays_so(batch):
    """F4."""
    model, state = make(VJepa2), batch.state
    first = model.encode(state)
    assert torch.equal(model.train().encode(state), first)  # a head's training calls train()
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    model.encoder.vit.token.fill_(1e3)  # what a mask left on would show
    assert torch.equal(model.encode(state), first)
    for row in range(0, 16, 4):  # every single patch counts
        for column in range(0, 16, 4):
            changed = state.clone()
            changed[..., row : row + 4, column : column + 4] ^= 255
            assert (model.encode(changed) - first).abs().amax(dim=1).min() > 0


def test_latents_for_stage_2_are_frozen_windows_of_one_episode(data):
    """VJ-7, F6."""
    model = make(VJepa2)
    first, second = (encode_states(model, data[0], 6) for _ in range(2))
    for one, two in zip(first.tensors, second.tensors, strict=True):
        assert torch.equal(one, two) and not one.requires_grad
    now, action, then = first[torch.arange(3)]
    batch = data[0].batch(data[0].windows(6)[:3] + 2)
    assert torch.allclose(now[:, 2], model.encode(batch.state), atol=1e-5)
    assert torch.allclose(then[:, 2], model.encode(batch.next_state), atol=1e-5)
    assert torch.equal(action[:, 2], batch.action)


def test_target_is_an_average_without_gradient(batch):
    """VJ-3."""
    model = make(MaskedPrediction, vjepa2__stage1__ema_decay=0.9).train()
    assert not model.target.training and model.online.training
    assert ema_follows(model.target, model.online, 0.9, model.after_update)
    model.loss(batch, seeded(0))[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    assert all(p.grad.abs().sum() > 0 for p in (model.online.vit.token, model.predictor[0].weight))


@pytest.mark.parametrize(("weight", "ratio"), [(0.0, 0.4), (0.7, 0.4), (0.7, 0.0)])
def test_the_loss_is_over_latents_and_hidden_patches_only(weight, ratio, batch):
    """VJ-4, X9."""
    model = make(MaskedPrediction, **under("vjepa2.stage1", patch_loss=weight, mask=ratio)).eval()
    mask, pixels = draw_masks(5, 16, ratio, seeded(0)), scaled(batch.state)
    target = model.target.tokens(pixels)
    spread = {"dim": -1, "correction": 0, "keepdim": True}
    target = (target - target.mean(-1, keepdim=True)) / target.std(**spread)
    error = (model.predictor(model.online.tokens(pixels, mask)) - target).abs().mean(dim=-1)
    latent, hidden = error[:, 0].mean().item(), error[:, 1:][mask].mean().nan_to_num().item()
    loss, terms = model.loss(batch, seeded(0))
    wanted = {"latent": latent} | ({"patches": hidden} if weight and ratio else {})
    assert terms == pytest.approx(wanted, abs=1e-3)
    assert loss.item() == pytest.approx(latent + weight * hidden, abs=1e-3)


@pytest.mark.parametrize("read", ["tokens", "cls"])
def test_a_latent_is_read_centred_and_scaled_from_all_patches_or_the_class_token(read, data):
    """X9, X10."""
    model = make(VJepa2, vjepa2__stage1__read=read)
    fit_scale(model, data[0])
    pixels = model.pixels(data[0][torch.arange(len(data[0]))].state)
    raw, z = model.encoder.raw(pixels), model.encoder(pixels)
    assert raw.shape[1] == (16 * 16 if read == "tokens" else 16) and z.shape[1] == 16
    assert z.mean(0).abs().max() < 1e-3 and float(z.square().mean()) == pytest.approx(1, rel=0.02)
    if read == "tokens":  # turned and scaled, so distances are kept but for what is cut off
        spread, values = z.var(0), torch.linalg.svdvals(raw - raw.mean(0)).square()
        assert (spread.diff() <= 1e-4).all()
        wanted = float(values[:16].sum() / values[0])
        assert float(spread.sum() / spread.max()) == pytest.approx(wanted, rel=0.02)
    else:
        assert torch.allclose(z.std(0, correction=0), torch.ones(16), atol=1e-3)


def test_a_patch_that_half_a_picture_cannot_have_is_refused():
    odd = {"vjepa2__stage1__patch": 5, "encoder__places": 2}
    refused(ConfigError, "patch must be even", tiny_pixels, **odd)
    tiny_pixels(**odd, encoder__kind="cnn")


def test_beside_places_patches_are_cut_from_their_maps(data):
    model = make(VJepa2, encoder__kind="places")
    fit_scale(model, data[0])
    encoder, state = model.encoder, data[0].batch(torch.arange(40)).state
    maps = encoder.maps(model.pixels(state).flatten(1, 2))
    assert encoder.vit.patches.count == 16 and encoder.vit.patches.project.in_channels == 2
    z = model.encode(state)
    assert torch.allclose(z[:, :4], brightest(maps)) and z.shape == (40, 16)
    assert z[:, 4:].abs().mean() > 0.01
    stage1 = make(MaskedPrediction, encoder__kind="places")
    stage1.loss(data[0].batch(torch.arange(5)), seeded(0))[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in stage1.online.maps.parameters())


def test_world_model_is_causal(world):
    """VJ-8, F5."""
    z, action, _ = random_window(3)
    predictions = world(z.requires_grad_(), action)
    assert predictions.shape == z.shape
    for t in range(6):
        (grad,) = torch.autograd.grad(predictions[:, t].sum(), z, retain_graph=True)
        assert (grad[:, t + 1 :] == 0).all() and (grad[:, : t + 1].abs().sum(dim=(0, 2)) > 0).all()
    later = action.clone()
    later[:, 4] = (later[:, 4] + 1) % 4
    gap = (world(z, later) - predictions).abs().amax(dim=(0, 2))
    assert gap[:4].max() < 1e-6 and gap[4] > 1e-4  # the action reaches its own step


def test_predicting_the_change_starts_from_copying():
    """X2."""
    world, (z, action, _) = make(WorldModel, vjepa2__stage2__output="change"), random_window(3)
    assert torch.equal(world.eval()(z, action), z)
    assert count_parameters(world) == count_parameters(
        make(WorldModel, vjepa2__stage2__output="latent")
    )


@pytest.mark.parametrize("given", [1, 3])
def test_rollout_equals_a_manual_loop(given, world):
    """VJ-9."""
    z, action, _ = random_window(3)
    inputs = z[:, :given]
    for t in range(given, 7):
        inputs = torch.cat([inputs, world(inputs, action[:, :t])[:, -1:]], dim=1)
    rolled = world.rollout(z[:, :given], action, 7 - given)
    assert torch.allclose(rolled, inputs[:, given:], atol=1e-5)
    longer = z[:, :1], torch.cat([action, action], dim=1), 7
    refused(ConfigError, "has seen windows of 6 steps, not of 7", world.rollout, *longer)


def test_rollout_gradient_runs_through_several_steps(world):
    """F5."""
    (z, action, _), kept = random_window(3), []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    world.out.register_forward_hook(keep)
    start = z[:, :1].clone().requires_grad_()
    world.rollout(start, action, 3)[:, -1].square().sum().backward()
    assert len(kept) == 3 and start.grad.abs().sum() > 0
    assert all(output.grad.abs().max() > 0 for output in kept)


def test_stage_2_loss_is_the_weighted_sum(world):
    """VJ-10."""
    now, action, then = window = random_window(3)
    total, terms = world.loss(window)
    forced = F.l1_loss(world(now, action), then).item()
    rolled = F.l1_loss(world.rollout(now[:, :4], action, 3), then[:, 3:]).item()
    assert terms == pytest.approx({"teacher_forcing": forced, "rollout": rolled}, abs=1e-5)
    assert total.item() == pytest.approx(0.7 * forced + 0.3 * rolled, abs=1e-5)


def test_given_steps_are_drawn_in_training_alone():
    """F5."""

    def loss(train=False, **changes):
        world = make(WorldModel, **under("vjepa2.stage2", dropout=0.0, **changes))
        return world.train(train).loss(random_window(3), seeded(0))[0].item()

    assert loss(True, teacher_forcing_ratio=1.0) == loss(teacher_forcing_ratio=0.5) == loss()
    assert len({loss(True, teacher_forcing_ratio=ratio) for ratio in (0.0, 0.5, 1.0)}) == 3
    assert np.isfinite([loss(rollout_steps=n) for n in (1, 6)]).all()
    refused(ConfigError, "rollout_steps=7 does not fit", loss, rollout_steps=7)


@pytest.mark.parametrize("stage", [1, 2])
def test_every_tensor_of_a_stage_learns(stage, data):
    """F1, F3, F9."""
    changes = under(f"vjepa2.stage{stage}.optim", lr=1e-3, updates=8, weight_decay=0.0)
    config, parts = tiny_pixels(**changes).vjepa2, data
    model, optim = make(MaskedPrediction), config.stage1.optim
    if stage == 2:
        fit_scale(frozen := make(VJepa2), data[0])
        model, optim = make(WorldModel), config.stage2.optim
        parts = [encode_states(frozen, part, 6) for part in data]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    list(fit(model, *parts, optim, seed=0))
    for key, value in model.state_dict().items():
        fixed = key.endswith(("background", "centre", "basis"))  # told by the data, not learned
        assert torch.equal(value, before[key]) == fixed, key


@pytest.fixture
def parts(data):
    return data[0], *data


@pytest.fixture
def windows(parts):
    return [encode_states(make(VJepa2), part, 6) for part in parts]


@pytest.mark.parametrize(
    ("stage", "quantity", "value", "word"),
    [
        (1, "train", 0.0099, "excellent"), (1, "train", 0.01, "good"),
        (1, "validation", 0.06, "acceptable"), (2, "total", 0.5, "poor"),
        (2, "ratio", float("nan"), "poor"),
    ],
)  # fmt: skip
def test_grades(stage, quantity, value, word):
    result = dict.fromkeys(two_stages.GRADES[stage], 0.0) | {quantity: value}
    assert (quantity, value, word) in two_stages.graded(stage, result)
    expected = "1: 0.3-0.5, 5: 0.08-0.15, 10: 0.04-0.08"  # C13: stage 1 after some epochs
    assert two_stages.GRADES[1]["validation"].expected == expected


def test_a_collapsed_encoder_never_passes(parts):
    """It gives every state the same latent and names it perfectly."""
    model = make(MaskedPrediction)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    result = two_stages.evaluate_stage1(model, make(MaskedPrediction), *parts)
    assert two_stages.graded(1, result)[0][2] == "excellent"  # and worthless
    lines = two_stages.success(1, result, [0.01, 0.01])
    assert result["collapsed"] and lines[0].passed is False and not two_stages.passed(lines)


def test_a_world_model_that_predicts_one_point_never_passes():
    data, world = TensorDataset(*random_window(40)), make(WorldModel)
    with torch.no_grad():
        world.out.weight.zero_()
    world.change = False
    result = two_stages.evaluate_stage2(world, [data] * 3)
    assert "varying" in result["collapsed"]
    good = result | {"total": 0.2, "mean_l1": 0.0, "copy_last_l1": 1.0, "rollout": 9.0}
    lines = two_stages.success(2, good, [0.1], 40.0)
    assert [line.passed for line in lines] == [False] + [True] * 5
    assert not two_stages.passed(lines)


ALIVE = {"collapsed": "", "varying": 0.5, "effective_rank": 9.0}
GOOD = {
    1: ALIVE | {"train": 0.02, "ratio": 1.1, "validation": 0.03, "constant": 0.3},
    2: ALIVE | {"total": 0.2, "rollout": 0.3, "teacher_forcing": 0.15, "mean_l1": 0.15,
                "copy_last_l1": 0.2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "changes", "losses", "line"),
    [
        (1, {}, [0.1, 0.05, 0.05], None), (1, {"collapsed": "flat"}, [0.1], 0),
        (1, {"train": 0.05}, [0.1], 1), (1, {"ratio": 1.5}, [0.1], 2),
        (1, {"validation": 0.4}, [0.1], 3), (1, {}, [0.1, 0.05, 0.06], 4),
        (2, {}, [0.2], None), (2, {"collapsed": "flat"}, [0.2], 0), (2, {"total": 0.3}, [0.2], 1),
        (2, {"rollout": 0.1}, [0.2], 2), (2, {"mean_l1": 0.21}, [0.2], 3),
    ],
)  # fmt: skip
def test_success_of_good_numbers_and_each_failure(stage, changes, losses, line):
    lines = two_stages.success(stage, GOOD[stage] | changes, losses, 15.0)
    failed = [number for number, one in enumerate(lines) if not one.passed]
    assert failed == [line] * (line is not None) and two_stages.passed(lines) == (line is None)


def test_epochs_count_only_without_early_stopping():
    lines = [two_stages.success(2, GOOD[2], [0.2], 14.9, patience) for patience in (0, 3)]
    assert [one[-1].passed for one in lines] == [False, None]
    assert [two_stages.passed(one) for one in lines] == [False, True]
    assert two_stages.success(1, GOOD[1], [])[-1].passed is None


def test_evaluation_numbers(parts, windows):
    model, world = make(MaskedPrediction), make(WorldModel)
    first = make(MaskedPrediction, seed=1)
    result = two_stages.evaluate_stage1(model, first, *parts)
    assert list(result["masked_l1"]) == ["0.25", "0.5", "0.75"]
    assert len(set(result["masked_l1"].values())) == 3
    assert result == two_stages.evaluate_stage1(model, first, *parts)  # no dropout, same masks
    curve = two_stages.evaluate_stage2(world, windows)["per_step"]
    assert len(curve["model"]) == len(curve["copy_last"]) == 6  # 8, or the window's length
    now, action, then = windows[2].tensors
    step = (world(now[:, :1], action[:, :1])[:, 0] - then[:, 0]).abs().mean()
    assert curve["model"][0] == pytest.approx(step.item(), rel=1e-4)
    still = (now[:, 0] - then[:, 3]).abs().mean()
    assert curve["copy_last"][3] == pytest.approx(still.item(), rel=1e-4)


OPTIONS = TINY_COMMAND | {"pixels.environment.id": DRIFT_ID, "pixels.data.transitions": 120}


@pytest.fixture
def command(root, capsys):
    """`python -m hjepa_lib vjepa2 ...`: what is printed, or the error."""

    def call(*arguments, status=0):
        extra = ["--profile", "smoke", "--set", *(f"{k}={v}" for k, v in OPTIONS.items())]
        assert main(["vjepa2", *arguments, *extra * (arguments[0] == "train")]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return call


def test_commands_train_resume_and_evaluate(command, monkeypatch):
    """VJ-12."""
    out = command("train", "--stage", "1", "--name", "one")
    assert "has no stage 2" in command("evaluate", "--stage", "2", "--name", "one", status=2)
    path = next(line for line in out.splitlines() if line.startswith("checkpoint: "))[12:]
    given = ("train", "--stage", "2", "--name", "two", "--stage1-checkpoint")
    error = command(*given[:3], given[-1], "nowhere.safetensors", status=2)
    assert "nowhere.json" in error and error.count("\n") == 1
    assert list_runs() == ["one"]  # none for a file that is not there
    command(*given, path)  # another run's stage 1
    one, two = (Workspace("t", Run.open(name)) for name in ("one", "two"))
    first, second = (
        digest(load_model(ws.run.stage_folder("vjepa2_stage1_s0"), "stage1")) for ws in (one, two)
    )
    assert first == second
    out = command(*given, path, "--resume")
    assert "stage 2: done before" in out
    stored = [two_stages.stored_evaluation(two, stage, 0)["ratio"] for stage in (1, 2)]
    out = command("evaluate", "--name", "two")
    assert all(f"{ratio:9.4f}" in out for ratio in stored)
    assert out.count("not checked") == 1  # a stage 1 from a file has no curve
    assert "vjepa2_stage1_s0: taken from one" in command("train", "--stage", "2", "--name", "three")

    # Without --stage both stages and everything downstream, in this order.
    called, whole = [], two_stages.train

    def spy(ws, name):
        called.append(name)
        return iter(()) if name.startswith(("heads", "decoder")) else whole(ws, name)

    monkeypatch.setattr(two_stages, "train", spy)
    command("train", "--name", "one", "--resume")
    assert called == ["vjepa2_stage1_s0", "vjepa2_s0", "heads_vjepa2_s0", "decoder_vjepa2_s0"]


def test_stages_store_what_they_promise(pixel_run):
    ws = pixel_run
    first, second = (
        ws.run.stage_folder(stages.name_of(name, 0)) for name in two_stages.STAGES.values()
    )
    for path, name in ((first, "stage1"), (second, "vjepa2")):
        meta = about_model(path, name)
        assert meta["epochs"] > 0 and meta["best_loss"] > 0
    model = stages.load_model(ws, "vjepa2", 0)  # its encoder was frozen in stage 2
    assert digest(model.encoder.vit) == digest(load_model(first, "stage1").online.vit)
    result = stages.load_result(ws, "vjepa2_s0")
    assert not result["loaded"] and result["batches_sha256"]
    assert result["updates"] == 12 and result["stage_updates"] == [6, 6]


def test_a_foreign_stage_1_claims_nothing(pixel_run, tmp_path):
    path = str(pixel_run.run.stage_folder("vjepa2_stage1_s0") / f"{FILES['stage1']}.safetensors")
    given = {"vjepa2__stage1__checkpoint": path}
    ws = tiny_workspace(tmp_path, tiny_config(**given))
    list(stages.train(ws, "vjepa2_s0"))
    result = stages.load_result(ws, "vjepa2_s0")
    assert result["loaded"] and result["batches_sha256"] == ""
    wide = tiny_workspace(tmp_path, tiny_config(vjepa2__stage1__width=16, **given), "wide")
    refused(FileError, "was made for another config", list, stages.train(wide, "vjepa2_s0"))
