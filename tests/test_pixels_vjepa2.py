"""The V-JEPA 2 style model of seed 002: requirements VJ-1 to VJ-14 and defects F4, F5, F7."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hjepa_lib.config import ConfigError, profile
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.models.layers import count_parameters, draw_masks
from hjepa_lib.pixels.models import VJepa2
from hjepa_lib.pixels.registry import FILES, build_pixel_model
from hjepa_lib.pixels.transitions import PixelShapes, Transitions, scaled, shapes_of
from hjepa_lib.pixels.vjepa2 import (
    MaskedPrediction,
    MaskedViT,
    WorldModel,
    encode_states,
    fit_stage1,
    fit_stage2,
    rollout_start,
    stage2_loss,
    window_loss,
)
from hjepa_lib.training.loop import TrainingError, step_generator

TINY = {
    "pixels.encoder.latent_dim": 16, "pixels.encoder.heads": 2, "pixels.encoder.head_dim": 8,
    "pixels.encoder.mlp_dim": 32, "pixels.action_dim": 8, "pixels.data.sequence": 6,
    "pixels.vjepa2.stage1.patch": 4, "pixels.vjepa2.stage1.depth": 2,
    "pixels.vjepa2.stage1.hidden": [16], "pixels.vjepa2.stage1.optim.batch": 8,
    "pixels.vjepa2.stage1.optim.updates": 6, "pixels.vjepa2.stage1.optim.lr": 1e-3,
    "pixels.vjepa2.stage2.depth": 2, "pixels.vjepa2.stage2.heads": 2,
    "pixels.vjepa2.stage2.head_dim": 8, "pixels.vjepa2.stage2.mlp_dim": 32,
    "pixels.vjepa2.stage2.rollout_steps": 3, "pixels.vjepa2.stage2.optim.batch": 8,
    "pixels.vjepa2.stage2.optim.updates": 6, "pixels.vjepa2.stage2.optim.lr": 1e-3,
}  # fmt: skip
STAGE1, STAGE2 = FILES["stage1"], FILES["vjepa2"]
ATARI = PixelShapes(channels=1, stack=4, image_size=64, action_kind="discrete", action_dim=4)


def settings(**changes) -> PixelsConfig:
    """The tiny settings with `pixels.` settings replaced; dots are written __."""
    changes = {f"pixels.{key.replace('__', '.')}": value for key, value in changes.items()}
    return profile("smoke").override(TINY | changes).pixels


def numbered(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_data(episodes: int = 6, steps: int = 14, seed: int = 0) -> Transitions:
    """A bright square that actions 0..3 move over a 16 px image, two frames in a stack."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.randint(4, (episodes, steps), generator=generator)
    frames = torch.zeros(episodes, steps + 1, 1, 16, 16, dtype=torch.uint8)
    place = torch.randint(13, (episodes, 2), generator=generator)
    for t in range(steps + 1):
        for e in range(episodes):
            y, x = place[e].tolist()
            frames[e, t, 0, y : y + 4, x : x + 4] = 255
            if t < steps:
                move = ((0, 2), (0, -2), (2, 0), (-2, 0))[action[e, t]]
                place[e] = (place[e] + torch.tensor(move)).clamp(0, 12)
    first = (torch.arange(episodes) * (steps + 1))[:, None]
    now = (first + torch.arange(steps)).flatten()
    rows = episodes * steps
    return Transitions(
        frames.flatten(0, 1), now, now + 1, first.expand(-1, steps).flatten(), action.flatten(),
        torch.zeros(rows), torch.arange(episodes).repeat_interleave(steps), "discrete", 4, 2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> tuple[Transitions, Transitions]:
    return make_data().split(0.34, 0)


@pytest.fixture
def config() -> PixelsConfig:
    return settings()


def stage1_model(config: PixelsConfig, data: Transitions, seed: int = 0) -> MaskedPrediction:
    torch.manual_seed(seed)
    return MaskedPrediction(config, shapes_of(data))


def world_model(config: PixelsConfig, data: Transitions, seed: int = 0) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(config, shapes_of(data))


def random_window(count: int = 3, steps: int = 6, dim: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, steps + 1, dim, generator=generator)
    return z[:, :-1], torch.randint(4, (count, steps), generator=generator), z[:, 1:]


# --- VJ-6, VJ-8: sizes ------------------------------------------------------------------------
def test_parameter_counts_are_the_seeds():
    stage1 = MaskedPrediction(PixelsConfig(), ATARI)
    assert sum(p.numel() for p in stage1.parameters()) == 1_196_096
    assert count_parameters(stage1) == 647_488
    assert count_parameters(WorldModel(PixelsConfig(), ATARI)) == 1_200_736


# --- VJ-1, VJ-2: input and masks --------------------------------------------------------------
def test_a_stack_becomes_one_latent(config, data):
    encoder = MaskedViT(PixelsConfig(), ATARI)
    assert encoder.patches == 64 and encoder.embed.project.in_channels == 4
    assert encoder(torch.zeros(2, 4, 1, 64, 64)).shape == (2, 64)
    smaller = settings(vjepa2__stage1__patch=8)
    assert MaskedViT(smaller, shapes_of(data[0])).patches == 4
    with pytest.raises(ConfigError, match="do not divide into 5 px patches"):
        MaskedViT(settings(vjepa2__stage1__patch=5), shapes_of(data[0]))
    with pytest.raises(ValueError, match="states must be"):
        stage1_model(config, data[0]).encode(torch.zeros(2, 4, 1, 16, 16, dtype=torch.uint8))


def test_pixels_are_scaled_inside(config, data):
    encoder = stage1_model(config, data[0])
    seen = []
    encoder.online.embed.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    encoder.encode(torch.full((1, 2, 1, 16, 16), 255, dtype=torch.uint8))
    assert seen[0].min() == seen[0].max() == 1.0
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode(torch.full((1, 2, 1, 16, 16), 255.0))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.29, 0.4, 0.75, 0.95])
@pytest.mark.parametrize("patches", [16, 64, 100])
def test_masks_are_exact_per_sample_and_differ(ratio, patches):
    masks = draw_masks(50, patches, ratio, torch.Generator().manual_seed(0))
    expected = int(f"{patches * round(100 * ratio) // 100}")
    assert (masks.sum(dim=1) == expected).all()
    if expected:
        assert len(masks.unique(dim=0)) > 10
        assert masks.float().mean(dim=0).min() > 0  # every place is hidden at some time


@pytest.mark.parametrize("kind", ["latent", "projected"])
def test_only_hidden_patches_change(kind, data):
    config = settings(vjepa2__stage1__mask_token=kind)
    encoder = MaskedViT(config, shapes_of(data[0])).eval()
    state = scaled(data[0].batch(torch.arange(5)).state)
    mask = draw_masks(5, encoder.patches, 0.4, torch.Generator().manual_seed(0))
    plain, masked = encoder.tokens(state), encoder.tokens(state, mask)
    assert torch.equal(plain[~mask], masked[~mask])
    token = encoder.project(encoder.token) + encoder.embed.position
    assert torch.allclose(masked[mask], token.expand(5, -1, -1)[mask])
    assert encoder.token.numel() == (64 if kind == "projected" else 16)
    assert not torch.allclose(encoder(state), encoder(state, mask))
    grown = sum(p.numel() for p in encoder.parameters())
    base = sum(p.numel() for p in MaskedViT(settings(), shapes_of(data[0])).parameters())
    assert (grown == base) == (kind == "latent")


def test_mask_token_starts_small():
    tokens = torch.cat([MaskedViT(settings(), ATARI._replace(image_size=16)).token.detach()
                        for _ in range(20)])  # fmt: skip
    assert 0.015 < tokens.std() < 0.025


def test_positions_are_added_once(config, data):
    """F8: swapping two patches and their positions leaves the latent as it was."""
    encoder = MaskedViT(config, shapes_of(data[0])).eval()
    state = scaled(data[0].batch(torch.arange(4)).state)
    before = encoder(state)
    left, right = state[..., :4, :4].clone(), state[..., :4, 4:8].clone()
    state[..., :4, :4], state[..., :4, 4:8] = right, left
    moved = copy.deepcopy(encoder)
    with torch.no_grad():
        moved.embed.position[[0, 1]] = moved.embed.position[[1, 0]]
    assert torch.allclose(moved(state), before, atol=1e-5)
    with torch.no_grad():
        encoder.embed.position[:, 0] += 1.0
    assert not torch.allclose(
        encoder(scaled(data[0].batch(torch.arange(4)).state)), before, atol=1e-3
    )


# --- F4: frozen means deterministic and unmasked ----------------------------------------------
def test_frozen_encoder_is_deterministic_unmasked_and_stays_so(config, data):
    torch.manual_seed(0)
    model = VJepa2(config, shapes_of(data[0]))
    state = data[0].batch(torch.arange(6)).state
    first = model.encode(state)
    assert torch.equal(model.train().encode(state), first)  # a head's training calls train()
    assert not model.training and not any(module.training for module in model.modules())
    model.encoder.token.fill_(1e3)  # what a mask left on would show
    assert torch.equal(model.encode(state), first)
    changed = state.clone()
    for row in range(0, 16, 4):  # every single patch counts
        for column in range(0, 16, 4):
            changed.copy_(state)
            changed[..., row : row + 4, column : column + 4] ^= 255
            assert (model.encode(changed) - first).abs().amax(dim=1).min() > 0


def test_latents_for_stage_2_are_frozen(config, data):
    model = stage1_model(config, data[0]).train()
    first, second = (encode_states(model, data[0], 6) for _ in range(2))
    for one, two in zip(first.tensors, second.tensors, strict=True):
        assert torch.equal(one, two) and not one.requires_grad
    rows = data[0].windows(6)
    batch = data[0].batch(rows[:3] + 2)
    window = first[torch.arange(3)]
    assert torch.allclose(window[2][:, 2], model.encode(batch.next_state), atol=1e-5)
    assert [tuple(part.shape) for part in window] == [(3, 6, 16), (3, 6), (3, 6, 16)]
    rows = rows[:, None] + torch.arange(6)
    assert (data[0].episode[rows] == data[0].episode[rows[:, :1]]).all()  # F6
    # z_{t+1} of a step opens the next one.
    assert torch.allclose(window[0][:, 1:], window[2][:, :-1], atol=1e-6)


# --- VJ-3, VJ-4: target, predictor, losses ----------------------------------------------------
def test_target_is_an_average_without_gradient(data):
    model = stage1_model(settings(vjepa2__stage1__ema_decay=0.9), data[0]).train()
    assert not any(p.requires_grad for p in model.target.parameters())
    assert not model.target.training and model.online.training
    slow = [p.clone() for p in model.target.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for p in model.online.parameters():
                p.add_(torch.randn_like(p))
        slow = [0.9 * s + 0.1 * p.detach()
                for s, p in zip(slow, model.online.parameters(), strict=True)]  # fmt: skip
        model.after_update()
    for expected, p in zip(slow, model.target.parameters(), strict=True):
        assert torch.allclose(p, expected, atol=1e-6)
    mask = draw_masks(4, 16, 0.4, torch.Generator().manual_seed(0))
    model.loss(data[0].batch(torch.arange(4)).state, mask)[0].backward()
    assert all(p.grad is None for p in model.target.parameters())
    learned = dict(model.named_parameters())
    for part in ("online.token", "online.embed.project.weight", "predictor.0.weight"):
        assert learned[part].grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["l1", "mse", "smooth_l1"])
def test_loss_types(kind, data):
    model = stage1_model(settings(vjepa2__stage1__loss=kind), data[0]).eval()
    state, mask = data[0].batch(torch.arange(4)).state, draw_masks(4, 16, 0.4, numbered(0))
    prediction, target = model.predict(state, mask)
    gap = (prediction - target).abs()
    small = 0.5 * gap.square()
    formulas = {"l1": gap, "mse": gap.square(), "smooth_l1": torch.where(gap < 1, small, gap - 0.5)}
    assert torch.allclose(model.loss(state, mask)[0], formulas[kind].mean(), atol=1e-6)


def test_patch_loss_is_over_hidden_patches_only(data):
    weight = 0.7
    model = stage1_model(settings(vjepa2__stage1__patch_loss=weight), data[0]).eval()
    plain = stage1_model(settings(), data[0]).eval()
    state, mask = data[0].batch(torch.arange(4)).state, draw_masks(4, 16, 0.4, numbered(0))
    loss, terms = model.loss(state, mask)
    assert terms["latent"] == pytest.approx(plain.loss(state, mask)[0].item(), abs=1e-5)
    pixels = scaled(state)
    named = model.predictor(model.online(pixels, mask, patches=True))[:, 1:]
    errors = (named - model.target(pixels, patches=True)[:, 1:]).abs().mean(dim=-1)
    assert terms["patches"] == pytest.approx(errors[mask].mean().item(), abs=1e-5)
    assert loss.item() == pytest.approx(terms["latent"] + weight * terms["patches"], abs=1e-5)
    assert torch.isfinite(model.loss(state, torch.zeros_like(mask))[0])  # mask ratio 0


# --- VJ-8, F5: causality ----------------------------------------------------------------------
def test_world_model_is_causal(config, data):
    world = world_model(config, data[0]).eval()
    z, action, _ = random_window()
    z.requires_grad_()
    predictions = world(z, action)
    assert predictions.shape == z.shape
    for t in range(6):
        (grad,) = torch.autograd.grad(predictions[:, t].sum(), z, retain_graph=True)
        assert (grad[:, t + 1 :] == 0).all() and (grad[:, : t + 1].abs().sum(dim=(0, 2)) > 0).all()
    later = action.clone()
    later[:, 4] = (later[:, 4] + 1) % 4
    changed = world(z, later)
    assert torch.allclose(changed[:, :4], predictions[:, :4], atol=1e-6)
    assert (changed[:, 4] - predictions[:, 4]).abs().max() > 1e-4  # the action reaches its own step


def test_predicting_the_change_starts_from_copying(data):
    """The option beyond the seed: the same size, and at first exactly copy-last."""
    config = settings(vjepa2__stage2__output="change")
    world = world_model(config, data[0]).eval()
    z, action, _ = random_window()
    assert torch.equal(world(z, action), z)
    assert count_parameters(world) == count_parameters(world_model(settings(), data[0]))


# --- VJ-9: roll-out ---------------------------------------------------------------------------
def test_rollout_equals_a_manual_loop(config, data):
    world = world_model(config, data[0]).eval()
    z, action, _ = random_window()
    for given in (1, 3):
        inputs = z[:, :given]
        for t in range(given, 7):
            inputs = torch.cat([inputs, world(inputs, action[:, :t])[:, -1:]], dim=1)
        start = z[:, 0] if given == 1 else z[:, :given]
        rolled = world.rollout(start, action, 7 - given)
        assert torch.allclose(rolled, inputs[:, given:], atol=1e-5)
    with pytest.raises(ConfigError, match="windows of 6 steps, not of 7"):
        world.rollout(z[:, 0], torch.zeros(3, 9, dtype=torch.long), 8)


def test_rollout_is_differentiable_through_its_own_predictions(config, data):
    world = world_model(config, data[0]).eval()
    z, action, _ = random_window()
    z = z[:, 0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(world.rollout(z, action, 4)[:, -1].sum(), z)
    assert grad.abs().sum() > 0


# --- VJ-10: the loss of stage 2 ---------------------------------------------------------------
def test_stage_2_loss_is_the_weighted_sum(config, data):
    world = world_model(config, data[0]).eval()
    now, action, then = random_window()
    stage = config.vjepa2.stage2
    total, terms = stage2_loss(world, now, action, then, stage)
    forced = F.l1_loss(world(now, action), then).item()
    rolled = F.l1_loss(world.rollout(now[:, :4], action, 3), then[:, 3:]).item()
    assert terms == {"teacher_forcing": pytest.approx(forced, abs=1e-5),
                     "rollout": pytest.approx(rolled, abs=1e-5)}  # fmt: skip
    assert total.item() == pytest.approx(0.7 * forced + 0.3 * rolled, abs=1e-5)


def test_every_setting_of_the_loss_acts(config, data):
    """F5: `rollout_steps` was unused."""
    world = world_model(config, data[0]).eval()
    window = random_window()

    def loss(seed: int | None = None, **changes) -> float:
        stage = dataclasses.replace(config.vjepa2.stage2, **changes)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return stage2_loss(world, *window, stage, generator)[0].item()

    values = [loss(rollout_steps=n) for n in range(1, 7)]
    assert np.isfinite(values).all() and len(set(values)) == 6
    assert loss(teacher_forcing=0.2) != loss()
    assert loss(0, teacher_forcing_ratio=1.0) == loss()
    assert len({loss(0, teacher_forcing_ratio=ratio) for ratio in (0.0, 0.5, 1.0)}) == 3
    with pytest.raises(ConfigError, match="rollout_steps=7 does not fit"):
        rollout_start(dataclasses.replace(config.vjepa2.stage2, rollout_steps=7), 6)


def test_rollout_gradient_runs_through_several_steps(config, data):
    """F5: with fed-back predictions the first step is taught by the error of the last alone."""
    world = world_model(config, data[0]).eval()
    now, action, _ = random_window()
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    world.out.register_forward_hook(keep)
    imagined = world.rollout(now[:, 0], action, 3)
    imagined[:, -1].square().sum().backward()
    assert len(kept) == 3
    assert all(output.grad.abs().max() > 0 for output in kept)


# --- VJ-5, VJ-11: training --------------------------------------------------------------------
def test_optimisers_cover_all_that_learns_and_follow_the_seed(data):
    config = PixelsConfig()
    for stage, updates in ((config.vjepa2.stage1, 10), (config.vjepa2.stage2, 30)):
        optim = stage.optim
        assert (optim.lr, optim.weight_decay, optim.clip) == (1e-4, 0.05, 1.0)
        assert (optim.schedule, optim.plateau_patience, optim.min_lr) == ("plateau", 2, 1e-6)
        assert (optim.epochs, optim.patience) == (updates, 3)
    tiny = settings()
    model = stage1_model(tiny, data[0])
    fit = fit_stage1(model, *data, tiny, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in fit:
        pass
    for key, value in model.state_dict().items():
        assert not torch.equal(value, before[key]), f"{key} did not learn"


def test_loss_falls_on_a_toy(data):
    config = settings(vjepa2__stage1__optim__updates=40, vjepa2__stage2__optim__updates=50)
    model = stage1_model(config, data[0])
    losses = [report.loss for report in fit_stage1(model, *data, config, seed=0)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    parts = [encode_states(model, part, 6) for part in data]
    world = world_model(config, data[0])
    before = window_loss(world, parts[0], config)["loss"]
    for _ in fit_stage2(world, *parts, config, seed=0):
        pass
    assert window_loss(world, parts[0], config)["loss"] < 0.6 * before


@pytest.mark.parametrize("stage", [1, 2])
def test_resume_reproduces_the_loss(stage, data, tmp_path):
    """Stopped after 4 of 8 updates and continued equals uninterrupted, also for another budget."""
    changes = {"vjepa2__stage1__optim__updates": 8, "vjepa2__stage2__optim__updates": 8}
    long, short = settings(**changes), settings(**dict.fromkeys(changes, 4))

    def begin(config: PixelsConfig):
        model = stage1_model(config, data[0])
        if stage == 1:
            return fit_stage1(model, *data, config, seed=0)
        parts = [encode_states(model, part, 6) for part in data]
        return fit_stage2(world_model(config, data[0]), *parts, config, seed=0)

    whole = [report.loss for report in begin(long)]
    first = begin(short)
    losses = [report.loss for report in first]
    path = tmp_path / "resume.pt"
    first.save(path)
    second = begin(long)
    with torch.no_grad():
        for p in second.module.parameters():
            p.zero_()
    second.resume(path, same_settings=False)
    losses += [report.loss for report in second]
    assert losses == pytest.approx(whole, rel=1e-6)
    path.write_bytes(b"no weights")
    with pytest.raises(TrainingError, match="is damaged"):
        begin(long).resume(path, same_settings=False)


def test_first_batch_is_the_one_of_all_models(config, data):
    """Rule 1: the indices are the first thing drawn from (seed, update)."""
    rows = []
    spy = copy.copy(data[0])
    spy.batch = lambda index: rows.append(index) or Transitions.batch(spy, index)
    next(iter(fit_stage1(stage1_model(config, data[0]), spy, None, config, seed=3)))
    expected = torch.randint(len(spy), (8,), generator=step_generator(3, 0))
    assert torch.equal(rows[0], expected)


# --- VJ-14: downstream ------------------------------------------------------------------------
def test_the_wrapped_model_answers_like_the_others(config, data):
    model = build_pixel_model("vjepa2", config, data[0])
    assert isinstance(model, VJepa2) and model.name == "vjepa2"
    assert not any(p.requires_grad for p in model.parameters())
    batch = data[0].batch(torch.arange(5))
    jepa = build_pixel_model("jepa", config, data[0])
    ours, theirs = (m(batch.state, batch.action, batch.next_state) for m in (model, jepa))
    assert [part.shape for part in ours] == [part.shape for part in theirs]
    assert torch.equal(ours.target, ours.online_next)
    assert torch.equal(model.imagine(model.encode(batch.state), batch.action), ours.prediction)
    assert model.embed_action(batch.action).shape == (5, 8)
    assert model.predict_frame(batch.state, batch.action) is None
    with pytest.raises(ConfigError, match="never trained"):
        model.loss(batch)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        model.embed_action(torch.tensor([4]))


def test_continuous_actions(config):
    shapes = PixelShapes(1, 2, 16, "continuous", 3)
    model = VJepa2(config, shapes)
    z, action = torch.randn(4, 16), torch.randn(4, 6, 3)
    assert model.imagine(z, action[:, 0]).shape == (4, 16)
    assert model.world.rollout(z, action, 6).shape == (4, 6, 16)
