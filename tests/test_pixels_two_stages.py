"""The two stages in a run: grades and success (VJ-13), checkpoints and commands (VJ-5, VJ-12)."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny import digest
from tiny_pixels import (
    TINY_COMMAND,
    random_window,
    seeded,
    tiny_config,
    tiny_transitions,
    tiny_workspace,
)
from tiny_pixels import two_stages_model as make
from torch.utils.data import TensorDataset

from hjepa_lib.__main__ import main
from hjepa_lib.figures import style
from hjepa_lib.files import read_json
from hjepa_lib.models.layers import draw_masks
from hjepa_lib.pixels import command as vjepa2command
from hjepa_lib.pixels import figures, stages, two_stages
from hjepa_lib.pixels.models import FILES, VJepa2, about_model, load_model
from hjepa_lib.pixels.stages import load_result
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, WorldModel, encode_states
from hjepa_lib.pixels.worlds import DRIFT_ID
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace


@pytest.fixture(scope="module")
def data():
    train, test = tiny_transitions(6, 14).split(0.34, 0)
    return train, train, test


@pytest.fixture
def windows(data):
    return [encode_states(make(VJepa2), part, 6) for part in data]


@pytest.mark.parametrize(
    ("stage", "quantity", "value", "word"),
    [
        (1, "train", 0.0099, "excellent"), (1, "train", 0.01, "good"),
        (1, "validation", 0.06, "acceptable"), (2, "total", 0.5, "poor"),
        (2, "teacher_forcing", 0.07, "excellent"), (2, "rollout", 0.39, "good"),
        (1, "ratio", 1.99, "acceptable"), (2, "ratio", float("nan"), "poor"),
    ],
)  # fmt: skip
def test_grades(stage, quantity, value, word):
    result = dict.fromkeys(two_stages.GRADES[stage], 0.0) | {quantity: value}
    assert (quantity, value, word) in two_stages.graded(stage, result)
    expected = "1: 0.3-0.5, 5: 0.08-0.15, 10: 0.04-0.08"  # C13: stage 1 after some epochs
    assert two_stages.GRADES[1]["validation"].expected == expected


@pytest.mark.parametrize("size", [0.0, 1e-4])
def test_a_collapsed_encoder_never_passes(size, data):
    """It gives every state (nearly) the same latent and names it perfectly."""
    model = make(MaskedPrediction).eval()
    with torch.no_grad():
        for encoder in (model.online, model.target):
            encoder.vit.patches.project.weight.mul_(size)
            encoder.vit.patches.position.mul_(size)
            encoder.vit.token.mul_(size)
            encoder.vit.patches.project.bias.fill_(0.1)
        model.predictor[-1].weight.zero_()
        state = data[0][torch.arange(20)].state
        _, whole = model.predict(state, torch.zeros(20, 16, dtype=torch.bool))
        model.predictor[-1].bias.copy_(whole[:, 1:].flatten(0, 1).median(dim=0).values)
    result = two_stages.evaluate_stage1(model, make(MaskedPrediction), *data)
    assert result["train"] < 0.01  # excellent by the seed's grades, and worthless
    assert two_stages.graded(1, result)[0][2] == "excellent"
    lines = two_stages.success(1, result, [0.01, 0.01])
    assert result["collapsed"] and lines[0].passed is False and not two_stages.passed(lines)


def test_a_world_model_that_predicts_one_point_never_passes():
    """Good latents, collapsed predictions."""
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


def test_evaluation_numbers(data, windows):
    model, world = make(MaskedPrediction), make(WorldModel)
    first = make(MaskedPrediction, seed=1)
    result = two_stages.evaluate_stage1(model, first, *data)
    assert list(result["masked_l1"]) == ["0.25", "0.5", "0.75"]
    assert len(set(result["masked_l1"].values())) == 3
    assert result == two_stages.evaluate_stage1(model, first, *data)  # no dropout, same masks
    curve = two_stages.evaluate_stage2(world, windows)["per_step"]
    assert len(curve["model"]) == len(curve["copy_last"]) == 6  # 8, or the window's length
    now, action, then = windows[2].tensors
    step = (world(now[:, :1], action[:, :1])[:, 0] - then[:, 0]).abs().mean()
    assert curve["model"][0] == pytest.approx(step.item(), rel=1e-4)
    still = (now[:, 0] - then[:, 3]).abs().mean()
    assert curve["copy_last"][3] == pytest.approx(still.item(), rel=1e-4)


def test_figures_are_drawn(windows):
    true, imagined, actions = two_stages.example(make(WorldModel), windows[1], 5)
    assert true.shape == (6, 16) and imagined.shape == (5, 16)
    figure = figures.world_model_predictions(true.numpy(), imagined.numpy(), actions.numpy())
    drawn = figure.axes[2].lines[0].get_ydata()
    expected = (imagined - true[1:]).norm(dim=1).numpy()
    assert drawn[0] == 0 and np.allclose(drawn[1:], expected, atol=1e-5)
    hidden = draw_masks(2, 16, 0.4, seeded(0)).numpy()
    for one in (
        figure, figures.step_errors({"model": [1, 2], "copy_last": [2, 3]}, 4.0),
        figures.masks(np.zeros((16, 16)), hidden, 4),
    ):  # fmt: skip
        assert len(style.png(one)) > 3_000


OPTIONS = TINY_COMMAND | {"pixels.environment.id": DRIFT_ID, "pixels.data.transitions": 120}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`python -m hjepa_lib vjepa2 ...` in a fresh outputs folder: what is printed, or the error."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path))

    def call(*arguments, status=0, updates=6):
        options = OPTIONS | {"pixels.vjepa2.stage2.optim.updates": updates}
        extra = ["--profile", "smoke", "--set", *(f"{k}={v}" for k, v in options.items())]
        assert main(["vjepa2", *arguments, *extra * (arguments[0] == "train")]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return call


def test_stage_2_without_a_checkpoint_is_one_sentence(command, tmp_path):
    for arguments, message in (
        ((), "stage 2 needs a checkpoint"),
        (("--stage1-checkpoint", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        (("--stage2-checkpoint", "gone.safetensors"), "gone.safetensors does not exist"),
    ):
        error = command("train", "--stage", "2", *arguments, status=2)
        assert message in error and error.count("\n") == 1
    error = command("train", "--stage1-checkpoint", "x.safetensors", status=2)
    assert "add --stage 2" in error
    assert list(tmp_path.iterdir()) == []  # no run was made


def test_commands_train_resume_and_evaluate(command, tmp_path, monkeypatch):
    out = command("train", "--stage", "1", "--name", "one", "--tracking", "off")
    for text in ("stage 1 6/6", "varying", "effective rank", "validation / training"):
        assert text in out
    kept = tmp_path / "trained_models"
    assert {path.name for path in kept.iterdir()} == {
        "best_stage1_model.safetensors", "best_stage1_model.json", "resume_best_stage1_model.pt"
    }  # fmt: skip
    assert "has no stage 2" in command("evaluate", "--stage", "2", "--name", "one", status=2)
    out = command("train", "--stage", "2", "--name", "two")  # another run's stage 1
    assert "after 6 imagined steps" in out and "copy-last" in out
    one, two = (Workspace("t", Run.open(name)) for name in ("one", "two"))
    first, second = (
        (ws.run.stage_folder("vjepa2_stage1_s0") / f"{FILES['stage1']}.safetensors").read_bytes()
        for ws in (one, two)
    )
    assert first == second
    # Weights of another run: said so, without a hash of this run's batches, whatever their data.
    result, data = load_result(two, "vjepa2_s0"), stages.load_transitions(two).sha256
    assert result["loaded"] and result["batches_sha256"] == ""
    assert result["loaded_data_sha256"] == result["data_sha256"] == data
    out = command("train", "--stage", "2", "--name", "two", "--resume")
    assert "stage 2: done before" in out
    last = str(kept / "best_stage2_model.safetensors")
    going = ("train", "--stage", "2", "--stage2-checkpoint", last, "--name", "three")
    out = command(*going, updates=9)
    assert "stage 2 9/9" in out and "stage 2 6/9" not in out
    result = load_result(Workspace("t", Run.open("three")), "vjepa2_s0")
    assert result["loaded"] and result["batches_sha256"] == ""
    out = command("evaluate", "--name", "two")
    assert out.count("not checked") == 1  # an adopted stage 1 has no curve
    assert (tmp_path / "two/figures/world_model_predictions.png").is_file()

    # VJ-12: without --stage both stages and everything downstream, in this order.
    called, whole = [], vjepa2command.train

    def spy(ws, name):
        called.append(name)
        return iter(()) if name.startswith(("heads", "decoder")) else whole(ws, name)

    monkeypatch.setattr(vjepa2command, "train", spy)
    command("train", "--name", "one", "--resume")
    assert called == ["vjepa2_stage1_s0", "vjepa2_s0", "heads_vjepa2_s0", "decoder_vjepa2_s0"]


def test_stages_store_what_they_promise(pixel_run):
    ws = pixel_run
    first, second = (
        ws.run.stage_folder(stages.name_of(name, 0)) for name in two_stages.STAGES.values()
    )
    final = second / f"{two_stages.FINAL}.safetensors"
    for path, name in ((first, "stage1"), (second, "vjepa2"), (final, "vjepa2")):
        meta = about_model(path, name)
        assert meta["epochs"] > 0 and meta["best_loss"] > 0
    model = stages.load_model(ws, "vjepa2", 0)  # its encoder was frozen in stage 2
    encoders = (
        model.encoder,
        load_model(first, "stage1").online,
        load_model(final, "vjepa2").encoder,
    )
    assert len({digest(one.vit) for one in encoders}) == 1
    for stage in (1, 2):
        measured = two_stages.evaluate(ws, stage, 0)
        kept = two_stages.stored_evaluation(ws, stage, 0)
        assert measured["ratio"] == pytest.approx(kept["ratio"], rel=1e-4)
    result = load_result(ws, "vjepa2_s0")
    assert not result["loaded"] and result["batches_sha256"] and not result["loaded_data_sha256"]
    assert result["updates"] == 12 and result["stage_updates"] == [6, 6]
    assert result["parameters"]["total"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("known", ["f" * 64, ""])
def test_a_foreign_stage_1_claims_nothing(pixel_run, tmp_path, known):
    """Its data are compared by their hash; a file that does not say them is of unknown data."""
    shutil.copytree(pixel_run.run.stage_folder("vjepa2_stage1_s0"), tmp_path / "first")
    path = tmp_path / "first" / f"{FILES['stage1']}.safetensors"
    meta = read_json(path.with_suffix(".json"))
    assert meta.pop("data_sha256")
    meta |= {"data_sha256": known} if known else {}
    path.with_suffix(".json").write_text(json.dumps(meta))
    ws = tiny_workspace(tmp_path, tiny_config(vjepa2__stage1__checkpoint=str(path)))
    list(stages.train(ws, "vjepa2_s0"))
    result = load_result(ws, "vjepa2_s0")
    assert result["loaded"] and result["batches_sha256"] == ""
    assert result["loaded_data_sha256"] == known
