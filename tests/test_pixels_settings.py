"""Settings below `pixels` act: stages, collection, budgets, early stopping, cadences of logs."""

import dataclasses

import pytest
import torch
from tiny import digest
from tiny_pixels import (
    SHAPES,
    TINY_GRID,
    collected,
    skilled,
    tiny_config,
    tiny_pixels,
    tiny_transitions,
    tiny_workspace,
)

from hjepa_lib.config import profile
from hjepa_lib.config.pixels import EpochsConfig, Stage1Config, Stage2Config
from hjepa_lib.grids.stages import grid_stages
from hjepa_lib.pixels import stages as pixelstages
from hjepa_lib.pixels import training
from hjepa_lib.pixels.collect import acquire, collect
from hjepa_lib.pixels.models import VJepa2, build_pixel_model
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, encode_states
from hjepa_lib.training.loop import Fit

# Models of a few weights have gradients of any size, and the loop says so.
pytestmark = pytest.mark.filterwarnings("ignore:the gradient norm is")

TWO_STAGES = {
    "encoder__kind": "vit", "vjepa2__stage1__optim__updates": 2,
    "vjepa2__stage2__optim__updates": 2,
}  # fmt: skip
STAGE1_CHANGES = {
    "mask": 0.7, "width": 12,
    "patch": 8, "depth": 2, "loss": "mse", "patch_loss": 0.5, "ema_decay": 0.5,
    "hidden": (8,), "mask_token": "projected",
}  # fmt: skip
STAGE2_CHANGES = {
    "depth": 2, "heads": 1, "head_dim": 8, "mlp_dim": 24, "dropout": 0.5, "teacher_forcing": 0.1,
    "teacher_forcing_ratio": 0.1, "rollout_steps": 4, "output": "latent",
}  # fmt: skip


def trained(module, data, optim):
    """Losses and weights of two updates."""
    fit = training.fit(module, data, None, optim, seed=0)
    return [report.loss for report in fit], digest(module)


def stage1_print(config):
    torch.manual_seed(0)
    model = MaskedPrediction(config, SHAPES)
    return trained(model, tiny_transitions(), config.vjepa2.stage1.optim)


def stage2_print(config):
    """On the latents of an encoder as it was drawn."""
    torch.manual_seed(0)
    model = VJepa2(config, SHAPES)
    windows = encode_states(model, tiny_transitions(), config.data.sequence)
    return trained(model.world.requires_grad_(True), windows, config.vjepa2.stage2.optim)


COLLECTION_CHANGES = {
    "environment__id": "hjepa/Push-v0", "environment__image_size": 20,
    "environment__grayscale": False, "environment__stack": 2, "environment__frame_skip": 1,
    "environment__max_steps": 9, "data__episodes": 4, "data__transitions": 30,
    "data__validation_split": 0.5,
}  # fmt: skip
SHORT = {"data__episodes": 5}


def data_print(config):
    """What is collected, and how it is cut."""
    data = collect(config, 0)
    parts = data.split(config.data.validation_split, 0)
    return data.sha256, data.state_shape, [len(part) for part in parts]


STAGES = (
    (stage1_print, tiny_pixels, TWO_STAGES, "vjepa2__stage1__", STAGE1_CHANGES),
    (stage2_print, tiny_pixels, TWO_STAGES, "vjepa2__stage2__", STAGE2_CHANGES),
    (stage2_print, tiny_pixels, TWO_STAGES, "data__", {"sequence": 7}),
    (data_print, collected, SHORT, "", COLLECTION_CHANGES),
)
ACTING = [
    pytest.param(outcome, make, base, {section + field: value}, id=section + field)
    for outcome, make, base, section, changes in STAGES
    for field, value in changes.items()
]


@pytest.mark.parametrize(("outcome", "make", "base", "change"), ACTING)
def test_every_setting_acts(outcome, make, base, change):
    """F9, VJ-2 to VJ-11, ENV-1 to ENV-7, DATA-1, DATA-4, DATA-10 (windows of `data.sequence`).

    PPO's `action_repeat`: tests/test_pixels_ppo.py.
    """
    assert outcome(make(**base | change)) != outcome(make(**base))


def test_no_setting_of_a_stage_is_left_out():
    for kind, changes in ((Stage1Config, STAGE1_CHANGES), (Stage2Config, STAGE2_CHANGES)):
        named = {item.name for item in dataclasses.fields(kind)} - {"read"}  # test_pixels_vjepa2.py
        assert named == changes.keys() | {"optim", "checkpoint"}


def test_a_loaded_data_set_names_every_setting_that_it_overrules(tmp_path):
    """DATA-6: limits, frame skip, action repeat and PPO's settings; equal ones are not named."""
    path = str(tmp_path / "data")
    made = skilled()
    data = collect(collected(**SHORT), 0)
    stored = {"method": "ppo", "max_steps": 12, "frame_skip": 0, "action_repeat": 2}
    data.meta |= stored | {"ppo": dataclasses.asdict(made.ppo) | {"n_envs": 3}}
    data.save(tmp_path / "data")

    def notes(**changes):
        return acquire(skilled(data__path=path, **changes), 0).meta["notes"]

    assert notes() == notes(ppo__n_envs=7) == [f"loaded from {path}"]
    for key, found in {
        "environment__action_repeat": "action_repeat=2", "ppo__action_repeat": "action_repeat=2",
        "ppo__steps": "ppo.steps=128", "ppo__n_steps": "ppo.n_steps=64",
        "environment__max_steps": "max_steps=12",
    }.items():  # fmt: skip
        (_, note) = notes(**{key: 4})
        assert note == f"{path} was collected with {found}, the setting 4 has no effect"
    # Whoever does not ask for PPO hears of the repeat alone.
    (_, note) = notes(data__method="random", ppo__steps=9, ppo__action_repeat=3)
    assert "action_repeat=2, the setting 3" in note


SECTIONS = ("optim", "decoder.optim", "reward.optim", "vjepa2.stage1.optim", "vjepa2.stage2.optim",
            "grid.optim")  # fmt: skip
"""Every section of the type EpochsConfig."""


def marked(number):
    """Values that no other section has."""
    return EpochsConfig(
        epochs=2, updates=7, batch=4 + number, lr=1e-4 * (number + 1), weight_decay=0.02,
        schedule="plateau", plateau_patience=1, min_lr=1e-7, clip=0.5, patience=1, delta=2e-3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """(sections asked for a budget, settings of all loops, workspace) of one tiny whole run."""
    asked, fitted = [], []
    optim, make = EpochsConfig.optim, Fit.__init__

    def ask(self, rows):
        asked.append((self, optim(self, rows)))
        return asked[-1][1]

    def fit(self, task, settings, **options):
        fitted.append(settings)
        make(self, task, settings, **options)

    changes = {f"pixels.{name}.{key}": value for number, name in enumerate(SECTIONS)
               for key, value in dataclasses.asdict(marked(number)).items()}  # fmt: skip
    grid = {f"pixels.grid.{key}": value for key, value in TINY_GRID.items()}
    logs = {"pixels.log_every": 2, "pixels.reward.log_every": 3, "pixels.grid.log_every": 2}
    config = tiny_config(**TWO_STAGES).override(grid | logs | changes, strict=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochsConfig, "optim", ask)
        patch.setattr(Fit, "__init__", fit)
        ws = tiny_workspace(tmp_path_factory.mktemp("reached"), config)
        list(pixelstages.train(ws, "decoder_jepa_s0", "heads_jepa_s0", "vjepa2_s0"))
        list(ws.make(grid_stages(ws.config)["grid_s0"]))
    return asked, fitted, ws


@pytest.mark.parametrize("number", range(len(SECTIONS)), ids=SECTIONS)
def test_every_section_of_a_budget_reaches_its_own_loop(number, reached):
    """F9: all twelve fields, whose effect test_pixels_training.py shows, in all six places."""
    asked, fitted, _ = reached
    budgets = [found for section, found in asked if section == marked(number)]
    assert budgets
    whole = {dataclasses.replace(found, patience=0) for found in budgets}  # updates are counted
    assert whole & set(fitted)


def test_default_budgets_are_the_seeds():
    """MOD-10, MOD-11, TRAIN-2: decoder, heads and main loop in the profile full."""
    full = profile("full").pixels
    for optim in (full.optim, full.decoder.optim, full.reward.optim):
        assert (optim.updates, optim.epochs, optim.lr) == (0, 20, 3e-4)
    assert (full.decoder.optim.patience, full.decoder.optim.delta) == (5, 0.001)
    assert (full.reward.optim.patience, full.reward.optim.delta) == (3, 0.0)
    assert full.optim_of("jepa") == full.optim


def test_jepa_stops_on_its_full_validation_loss():
    """TRAIN-4, F9: prediction + weight * auxiliary total on the validation part, no share of it."""
    config = tiny_pixels(auxiliary__weight=3.0, optim__updates=0, optim__epochs=2, optim__batch=16)
    train, validation = tiny_transitions().split(0.3, 0)
    torch.manual_seed(0)
    model = build_pixel_model("jepa", config, train)
    fit = training.fit(model, train, validation, config.optim, seed=0)
    checks = [report.validation for report in fit if report.validation]
    assert len(checks) == 2
    for found in checks:
        whole = found["prediction"] + 3.0 * found["vicreg_total"]
        assert found["loss"] == pytest.approx(whole, rel=1e-5)
        assert found["vicreg_total"] > 0 and found["loss"] > found["prediction"]
    assert fit.best_loss == min(found["loss"] for found in checks)
    model.eval()
    again = training.mean_loss(model, validation, config.optim.batch)
    assert checks[-1]["loss"] == pytest.approx(again["loss"], rel=1e-5)


def test_the_log_cadences_are_settings(reached):
    """TRAIN-2, MOD-11, GRID-5: 20, 100 and 10 updates by default; each acts where it says."""
    full = profile("full").pixels
    assert (full.log_every, full.reward.log_every, full.grid.log_every) == (20, 100, 10)
    for stage in ("jepa_s0", "decoder_jepa_s0", "vjepa2_stage1_s0", "heads_jepa_s0_reward_mlp",
                  "grid_s0"):  # fmt: skip
        every = 3 if "mlp" in stage else 2
        logged = {row["step"] for row in reached[2].run.records(stage) if "loss" in row}
        assert {*range(every, 7, every)} <= logged
