"""A vision transformer and a transformer predictor as level 1: same class, same stages, a plan."""

import json

import pytest
import torch
from tiny import (
    digest,
    loose_config,
    make_agent,
    make_job,
    make_level1,
    seeded,
    tiny_config,
    tiny_data,
)

from hjepa_lib.config import Config, ConfigError, differences
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.checkpoint import load_level1
from hjepa_lib.models.encoders import build_encoder
from hjepa_lib.runs import stages
from hjepa_lib.runs.report import build_summary
from hjepa_lib.runs.run import Run
from hjepa_lib.training import masked
from hjepa_lib.training.loop import Fit
from hjepa_lib.workbench import variants

VIT = {"level1__encoder": "vit", "level1__predictor": "transformer", "level1__hidden": 16}
MASKED = VIT | {"level1__pretrain_mask": 0.4, "level1__pretrain_updates": 4}


def frames_of(*lead, seed=0):
    return torch.randint(0, 256, (*lead, 2, 65, 65), dtype=torch.uint8, generator=seeded(seed))


# --- the encoder ------------------------------------------------------------------------------
def test_shapes_and_every_weight_is_used():
    model = make_level1(tiny_config(**VIT))
    rollout = model(frames_of(3, 4), torch.randn(3, 3, 2))
    assert rollout.encodings.shape == (3, 4, 16) and rollout.predictions.shape == (1, 3, 4, 16)
    assert model.encoder.patches.count == 25
    rollout.predictions.square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in unused if not name.startswith("idm")] == []


def test_patches_must_divide_the_image():
    with pytest.raises(ValueError, match="65 x 65 px do not divide into 8 px patches"):
        build_encoder("vit", 2, 65, 16, 8, patch=8)


def test_positions_are_added_once_at_the_true_place():
    """F8: blocks treat tokens alike, so swapping patches together with positions swaps tokens."""
    encoder = make_level1(tiny_config(**VIT)).eval().encoder
    torch.nn.init.normal_(encoder.patches.position)
    pixels = torch.randn(1, 2, 65, 65, generator=seeded())
    swapped = pixels.clone()
    swapped[..., :13, :13], swapped[..., :13, 13:26] = (
        pixels[..., :13, 13:26], pixels[..., :13, :13],
    )  # fmt: skip
    order = torch.arange(25)
    order[[0, 1]] = order[[1, 0]]
    before = encoder.patches(pixels)
    assert not torch.allclose(before[:, order], encoder.patches(swapped), atol=1e-3)
    tokens = encoder.blocks(before)
    with torch.no_grad():
        encoder.patches.position.copy_(encoder.patches.position[order])
    assert torch.allclose(before[:, order], encoder.patches(swapped), atol=1e-5)
    assert torch.allclose(tokens[:, order], encoder.blocks(encoder.patches(swapped)), atol=1e-5)


def test_hidden_patches_cannot_be_seen_and_visible_ones_can():
    model = make_level1(tiny_config(**VIT)).eval()
    token = torch.ones(8)
    hidden = torch.zeros(1, 25, dtype=torch.bool)
    hidden[0, 3] = True  # rows 0..12, columns 39..51
    plain = frames_of(1)

    def latent(frames, mask):
        return model.encode(frames, lambda x: model.encoder(x, mask, token))

    there, elsewhere = plain.clone(), plain.clone()
    there[..., :13, 39:52] = 0
    elsewhere[..., :13, 13:26] = 0
    assert torch.equal(latent(plain, hidden), latent(there, hidden))
    assert not torch.equal(latent(plain, hidden), latent(elsewhere, hidden))
    assert torch.equal(latent(plain, torch.zeros_like(hidden)), model.encode(plain))


def test_encoding_is_deterministic_and_never_masked_in_use():
    """F4: masks are arguments of pre-training, not a state of the encoder."""
    model = make_level1(tiny_config(**MASKED))
    frames = frames_of(5)
    assert torch.equal(model.train().encode(frames), model.eval().encode(frames))


# --- masked pre-training ------------------------------------------------------------------------
def pretraining(config, folder=None):
    model = make_level1(config)
    windows = [Windows(part, config.level1.window) for part in tiny_data().split(0.2, 0)]
    return model, masked.pretrain_level1(model, *windows, config.level1, seed=0, folder=folder)


def test_pretraining_moves_the_encoder_only_and_reports_collapse():
    model, fit = pretraining(tiny_config(**MASKED))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reports = list(fit)
    assert len(reports) == 4
    changed = {
        name.split(".")[0] for name, v in model.state_dict().items() if (v != before[name]).any()
    }
    assert changed == {"encoder"}
    assert reports[-1].validation.keys() == {"masked_l1", "latent_std", "effective_rank"}
    whole = fit.module
    coverage = {id(p) for group in fit.optimiser.param_groups for p in group["params"]}
    trainable = {id(p) for p in whole.parameters() if p.requires_grad}
    assert coverage == trainable and {id(p) for p in whole.slow.parameters()}.isdisjoint(coverage)


def test_slow_copy_follows_its_formula_and_share_acts():
    model, fit = pretraining(tiny_config(**MASKED))
    slow = [p.clone() for p in fit.module.slow.parameters()]
    next(iter(fit))
    fast = list(model.encoder.parameters())
    for old, new, now in zip(slow, fit.module.slow.parameters(), fast, strict=True):
        assert torch.allclose(new, 0.996 * old + 0.004 * now, atol=1e-7)
    losses = {
        share: [
            r.loss for r in pretraining(tiny_config(**MASKED | {"level1__pretrain_mask": share}))[1]
        ]
        for share in (0.4, 0.8)
    }
    assert losses[0.4] != losses[0.8]


def test_the_option_needs_a_vit():
    with pytest.raises(ConfigError, match=r"level1\.pretrain_mask needs level1\.encoder=vit"):
        Config().override("level1.pretrain_mask=0.4")


def test_defaults_draw_the_same_weights_as_before():
    """New settings at their defaults change no number that is drawn, and nothing is pre-trained."""
    config = tiny_config()
    assert not config.level1.pretrain_mask
    assert digest(make_level1(config)) == digest(
        make_level1(loose_config(level1__patch=5, level1__depth=3, level1__heads=2))
    )


def test_training_starts_from_the_pretrained_encoder_and_resumes_to_the_same(
    workspace_of, tmp_path
):
    config = tiny_config(**MASKED)

    def quit_after(ws, stage, count):
        rows = stages.train(ws, "l1")
        for _ in range(count):
            next(rows)
        rows.close()

    whole = workspace_of(config, "whole")
    reports = list(stages.train(whole, "l1"))
    assert len(reports) == 8  # four masked updates and four of level 1
    broken = workspace_of(config, "broken")
    quit_after(broken, "l1_pretrain", 2)
    quit_after(broken, "l1", 6)
    list(stages.train(broken, "l1"))
    weights = [(ws.run.path / "l1" / "model.safetensors").read_bytes() for ws in (whole, broken)]
    assert weights[0] == weights[1]
    plain = workspace_of(tiny_config(**VIT), "plain")
    list(stages.train(plain, "l1"))
    assert (plain.run.path / "l1" / "model.safetensors").read_bytes() != weights[0]
    stored = {row["stage"] for row in whole.run.records()}
    assert stored == {"l1_pretrain", "l1"}
    assert not (whole.run.path / "resume" / "l1_pretrain").exists()


def test_an_ema_target_starts_from_the_pretrained_encoder(workspace_of, monkeypatch):
    seen = {}

    def spy(self):
        if hasattr(self.module, "target_encoder"):
            pairs = zip(
                self.module.encoder.parameters(), self.module.target_encoder.parameters(),
                strict=True,
            )  # fmt: skip
            seen["equal"] = all(torch.equal(a, b) for a, b in pairs)
            raise KeyboardInterrupt
        return original(self)

    original = Fit.__iter__
    monkeypatch.setattr(Fit, "__iter__", spy)
    ws = workspace_of(tiny_config(**MASKED, level1__target="ema"))
    with pytest.raises(KeyboardInterrupt):
        list(stages.train(ws, "l1"))
    assert seen["equal"]


# --- training and planning ----------------------------------------------------------------------
def test_losses_fall_and_weights_survive_a_checkpoint(workspace_of):
    job = make_job("level1", tiny_config(**VIT, level1__optim__updates=20))
    losses = [report.loss for report in job.fit]
    assert sum(losses[-5:]) < sum(losses[:5])
    ws = workspace_of(tiny_config(**VIT))
    list(stages.train(ws, "l1"))
    model, _ = load_level1(ws.run.path / "l1")
    assert model.config.encoder == "vit" and model.config.predictor == "transformer"


def test_it_plans_through_the_same_interface():
    agent = make_agent(tiny_config(**VIT))
    frame, goal = frames_of(2).numpy()
    actions, plan = agent.plan(frame, goal)
    assert actions.shape == (2, 2) and torch.isfinite(plan.actions).all()
    member = agent.level1.predictors[0]
    state, action = torch.randn(6, 16), torch.randn(6, 2)
    assert not torch.allclose(member(state, action), member(state, -action))
    joined = member(state, action)
    alone = torch.cat([member(state[i : i + 1], action[i : i + 1]) for i in range(6)])
    assert torch.allclose(joined, alone, atol=1e-6)  # candidates do not see each other


def test_the_row_stands_between_its_floors(workspace_of):
    config = tiny_config(evaluation__trials=3, evaluation__steps=6, evaluation__latency=False)
    ws = workspace_of(config)
    rows = variants.encoder_stage(ws, 4)
    assert [row["method"] for row in rows] == ["random", *variants.LABELS.values(), "oracle"]
    for row in rows:
        assert row["n"] == 3 and row["ci95"][0] <= row["success_rate"] <= row["ci95"][1]
    build_summary(ws.run, rows)
    assert json.loads((ws.run.path / "pixels/planning/planning.json").read_text())
    beside = ws.run.path.with_name("run-variants")
    side, twin = (Run.at(next(beside.glob(f"{one}-s0-*"))).config for one in variants.ENCODERS)
    assert side.level1.encoder == "vit" and side.level1.pretrain_updates == 1
    assert (twin.level1.encoder, twin.level1.predictor) == ("fast", ws.config.level1.predictor)
    # The same number of updates on the same data and batches: only networks and objective differ.
    assert side.level1.optim.updates + 1 == twin.level1.optim.updates
    assert {key for key in differences(side, twin) if not key.startswith("level1.")} == set()
    assert side.level1.optim.batch == twin.level1.optim.batch
    assert ws.config.level1.encoder == "fast" and not ws.run.done("l1")
    assert variants.encoder_stage(ws, 4) == rows  # nothing is trained or played twice
