import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    digest,
    frames_of,
    make_level1,
    make_level2,
    make_store,
    refused,
    seeded,
    tiny_config,
)
from torch import nn

import hjepa_lib
from hjepa_lib.config import ConfigError, Level1Config, LossConfig
from hjepa_lib.files import FileError
from hjepa_lib.models import checkpoint, objectives
from hjepa_lib.models.encoders import PREDICTORS, build_encoder
from hjepa_lib.models.layers import count_parameters, sides
from hjepa_lib.models.level1 import Jepa, Rollout
from hjepa_lib.pixels.networks import action_embedding
from hjepa_lib.pixels.transitions import PixelShapes

REFERENCE = Level1Config(encoder="impala", latent_dim=512, predictor="gru", idm_hidden=512)


def actions_of(batch, steps, seed=1):
    return torch.randn(batch, steps, 2, generator=seeded(seed))


def test_parameter_counts_of_the_reference_are_the_published_ones(normaliser):
    model = Jepa(REFERENCE, normaliser)
    encoder = model.encoder
    assert [count_parameters(encoder.stacks[i : i + 4]) for i in (0, 4, 8)] == [9584, 41632, 46240]
    assert count_parameters(encoder.head) == 1_327_616
    assert count_parameters(encoder) == 1_426_096
    assert count_parameters(model.predictors[0].cell) == 792_576
    assert count_parameters(model.idm) == 525_826
    assert count_parameters(model) == 2_218_672 + 525_826


def encoder_of(name, image_size=65, **changes):
    config = Level1Config(encoder=name, latent_dim=16, **({"width": 8} | changes))
    torch.manual_seed(0)
    return build_encoder(config, 2, image_size)


@pytest.mark.parametrize("name", ["impala", "fast", "keypoint", "vit"])
@pytest.mark.parametrize("size", [64, (65, 65), (40, 64)])
def test_encoders_take_any_image_size(name, size, normaliser):
    """PL10, F14."""
    patch = 5 if size == (65, 65) else 8
    config = dataclasses.replace(tiny_config().level1, encoder=name, patch=patch)
    model = Jepa(config, normaliser, size)
    frames = frames_of(2, 3, size=sides(size))
    latents = model.encode(frames)
    assert (latents.shape, latents.dtype) == ((2, 3, 16), torch.float32)
    pixels = (frames.float() - model.pixel_mean[:, None, None]) / model.pixel_std[:, None, None]
    wanted = model.encoder(pixels.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(latents, wanted, atol=1e-5, rtol=1e-5)


def test_keypoints_are_the_places_of_features():
    encoder = encoder_of("keypoint", width=4)
    maps = torch.full((1, 4, 17, 17), -50.0)
    cells = [(0, 0), (16, 0), (8, 8), (3, 12)]  # (column, row)
    for index, (column, row) in enumerate(cells):
        maps[0, index, row, column] = 50.0
    encoder.convs = nn.Identity()
    wanted = torch.tensor(cells) / 4.0 - 2
    torch.testing.assert_close(encoder.locate(maps)[0], wanted, atol=1e-5, rtol=0)


def test_keypoints_leave_the_static_part_to_convolutions_of_its_own():
    encoder = encoder_of("keypoint", static_dim=5)
    frame = torch.randn(3, 2, 65, 65)
    found = encoder(frame)
    assert torch.equal(found[:, :5], encoder.scene(frame))
    assert torch.equal(found[:, 5:], encoder.head(encoder.locate(frame).flatten(1)))
    assert encoder_of("keypoint").scene is None


def test_images_that_do_not_fit_are_one_clear_error(level1):
    """PL10, F14."""
    refused(ConfigError, "at least 16 px wide", encoder_of, "fast", image_size=8)
    refused(ConfigError, "do not divide into 8 px patches", encoder_of, "vit", patch=8)
    for frames, found in (
        (frames_of(1, 1, size=(64, 64)), r"uint8 \(2, 64, 64\)"),
        (frames_of(1, 1).float(), r"float32 \(2, 65, 65\)"),
    ):
        refused(
            ValueError, rf"uint8 in .* of \(2, 65, 65\), got torch.{found}", level1.encode, frames
        )


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_predictor_leaves_the_static_part_alone(name):
    config = Level1Config(predictor=name, latent_dim=16, hidden=8, static_dim=5)
    static = PREDICTORS[name](config, 2, nn.Identity())
    latent, action = torch.randn(7, 16), torch.randn(7, 2)
    after = static(latent, action)
    assert torch.equal(after[:, :5], latent[:, :5])
    assert (after[:, 5:] != latent[:, 5:]).all()
    # What tells one layout from another decides where the rest goes.
    other = torch.cat([latent[:, :5] + 1, latent[:, 5:]], 1)
    assert (static(other, action)[:, 5:] != after[:, 5:]).any()


def test_encoding_is_deterministic_in_every_mode(level1, monkeypatch):
    """F4."""
    frames = frames_of(4, 2)
    first = level1.eval().encode(frames)
    assert torch.equal(first, level1.encode(frames))
    assert torch.equal(first, level1.train().encode(frames))
    level1.eval()
    monkeypatch.setattr("hjepa_lib.models.level1.ENCODED", 3 * 2 * 65**2)
    store = make_store(level1, limit=1)
    whole = level1.encode(store.frames(torch.arange(len(store.latents))))
    torch.testing.assert_close(store.encode(), whole, atol=1e-5, rtol=1e-5)


def test_gru_predictor_shares_the_norm_and_mlp_predictor_adds_a_displacement(level1):
    """Architectures 1.1: h' = LN(GRU(a, h)), LN being the encoder's own."""
    model = make_level1(tiny_config(level1__encoder="impala", level1__predictor="gru"))
    (gru,), norm, (mlp,) = model.predictors, model.encoder.norm, level1.predictors
    assert gru.norm is norm and isinstance(norm, nn.LayerNorm)
    latent, action = torch.randn(3, 16), torch.randn(3, 2)
    torch.testing.assert_close(gru(latent, action), norm(gru.cell(action, latent)))
    wanted = latent + mlp.net(torch.cat([latent, action], -1))
    torch.testing.assert_close(mlp(latent, action), wanted)


@pytest.mark.parametrize("encoder", ["fast", "keypoint", "vit"])
def test_a_gru_reaches_the_scale_of_every_encoder(encoder):
    """Q8: its state lies in (-1, 1), the hinge wants a spread of 1: both have a norm."""
    model = make_level1(tiny_config(level1__encoder=encoder, level1__predictor="gru"))
    rollout = model(frames_of(8, 5), actions_of(8, 4))
    assert model.predictors[0].norm is model.encoder.norm
    for latents in (rollout.encodings, rollout.predictions):
        assert (latents.std(-1, correction=0) - 1).abs().max() < 0.01
    # The predictor can follow: latents twice as far apart.
    with torch.no_grad():
        model.encoder.norm.weight.mul_(2)
    assert model(frames_of(8, 5), actions_of(8, 4)).predictions[:, :, 1:].abs().max() > 2


@pytest.mark.parametrize("predictor", ["mlp", "gru"])
def test_rollouts_equal_a_manual_loop(predictor):
    """F5."""
    model = make_level1(tiny_config(level1__predictor=predictor, level1__predictors=2))
    frames, actions, context = frames_of(4, 6), actions_of(4, 5), actions_of(4, 5, 2)
    start = model.encode(frames[:, 0])  # only the start is encoded
    for member, predict in enumerate(model.predictors):
        rolled = model.rollout(start, actions, member, context=context)
        assert torch.equal(rolled[:, 0], start)
        latent = start
        for step in range(5):
            normal = (actions[:, step] - model.action_mean) / model.action_std
            latent = predict(latent, normal + context[:, step])
            torch.testing.assert_close(rolled[:, step + 1], latent)
    members = model.rollout_members(start, actions)
    for member in range(2):
        assert torch.equal(members[member], model.rollout(start, actions, member))
    assert not torch.allclose(members[0, :, 1:], members[1, :, 1:])
    torch.testing.assert_close(model(frames, actions).predictions, members, atol=1e-5, rtol=1e-5)


def test_the_similarity_gives_gradient_to_both_sides():
    """Architectures 1.2: no stop-gradient."""
    model = make_level1(tiny_config())
    rollout = model(frames_of(2, 4), actions_of(2, 3))
    fixed = rollout._replace(predictions=rollout.predictions.detach())
    terms_of(fixed, "pldm", None)["sim"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters())


VARIANTS = [
    {},
    {"level1__encoder": "impala", "level1__predictor": "gru"},
    {"level1__predictors": 3},
    {"level1__loss__idm": 0.0},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_checkpoint_round_trip_needs_no_training_code(changes, normaliser, tmp_path):
    """EB4, EB7, PL5, PL1, F1, HW3."""
    model = make_level1(tiny_config(**changes)).eval()
    checkpoint.save_part(tmp_path, model)
    torch.manual_seed(99)
    loaded = checkpoint.load_part(tmp_path, "level1")
    assert (loaded.normaliser, loaded.config) == (normaliser, model.config)
    assert not loaded.training
    frames, actions = frames_of(2, 4), actions_of(2, 3)
    for found, wanted in zip(loaded(frames, actions), model(frames, actions), strict=True):
        assert torch.equal(found, wanted)
    assert (model.idm is None) == ("level1__loss__idm" in changes)
    assert digest(loaded) == digest(model)


def test_compiling_renames_no_key_of_a_checkpoint():
    """PL16; the names of before are those of the committed runs, which load."""
    model = make_level1(tiny_config(level1__predictor="gru", level1__encoder="impala"))
    wanted = [*checkpoint.tensors(model)]
    for module in (model, model.encoder, model.predictors[0]):
        module.compile(backend="eager")  # in place: a wrapping torch.compile would add a prefix
    model.encode(frames_of(1, 1))
    assert [*checkpoint.tensors(model)] == wanted


def test_damaged_or_foreign_checkpoints_are_one_sentence(tmp_path):
    checkpoint.save_part(tmp_path, make_level1(tiny_config()))
    weights, meta = tmp_path / "model.safetensors", tmp_path / "model.json"
    whole, tree = weights.read_bytes(), json.loads(meta.read_text())

    def with_config(**changes):
        return tree | {"config": tree["config"] | changes}

    for found, message in (
        (with_config(latent_dim=17), "another config: .* has .*16.* there and .*17.* here"),
        (with_config(predictor="gru"), "another config: .* None there"),
        (with_config(widht=8), "unknown key 'widht'"),  # PL7
        ({key: tree[key] for key in tree if key != "normaliser"}, "does not say 'normaliser'"),
    ):
        meta.write_text(json.dumps(found))
        refused(FileError, message, checkpoint.load_part, tmp_path, "level1")
    meta.write_text(json.dumps(tree))
    refused(FileError, "does not describe a level2 model", checkpoint.load_macro, tmp_path)
    wider = make_level1(tiny_config(level1__hidden=17))
    before = digest(wider)
    refused(FileError, "made for another config", checkpoint.load_weights, weights, wider)
    assert digest(wider) == before  # not one tensor is overwritten
    weights.write_bytes(whole[: len(whole) // 2])
    refused(FileError, "is not a whole safetensors file", checkpoint.load_part, tmp_path, "level1")
    weights.unlink()
    refused(FileError, r"cannot read .*model", checkpoint.load_part, tmp_path, "level1")


def test_files_of_version_0_1_are_read(tmp_path):
    level1 = make_level1(tiny_config(level1__encoder="keypoint"))
    path = tmp_path / "model.safetensors"
    assert "encoder.places" not in checkpoint.tensors(level1)
    checkpoint.save_part(tmp_path, level1)
    save_file(load_file(path) | {"encoder.places": torch.zeros(3)}, path)
    loaded = checkpoint.load_part(tmp_path, "level1")
    assert torch.equal(loaded.encoder.places, level1.encoder.places)
    model = make_level2(tiny_config())
    checkpoint.TrainedMacro(model, {"latent": 1.0}, None).save(tmp_path)
    save_file({f"rssm.{name}": value for name, value in load_file(path).items()}, path)
    assert digest(checkpoint.load_macro(tmp_path).model) == digest(model)
    committed = Path(hjepa_lib.__file__).parents[1] / "outputs/pretrained/l1"
    for name in ("model.json", "probe.safetensors"):
        shutil.copy(committed / name, tmp_path)
    assert checkpoint.load_part(tmp_path, "probe").shape == (128, 256, 2)


def test_actions_are_embedded_by_a_table_or_a_linear_map():
    """MOD-5."""
    table = action_embedding(PixelShapes(3, 1, 8, "discrete", 4), 32)
    assert table(torch.tensor([[0, 3]])).shape == (1, 2, 32)
    for wrong in (4, -1):
        with pytest.raises(IndexError):
            table(torch.tensor([wrong]))
    line = action_embedding(PixelShapes(3, 1, 8, "continuous", 2), 32)
    one = torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(line(2 * one) - line(one), line(one) - line(0 * one))


TERMS = ("sim", "std", "std_t", "cov", "sim_t", "idm")


def rollout_of(steps=5):
    generator = seeded()

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Rollout(normal(7, steps, 6) * 0.4, normal(2, 7, steps, 6), normal(7, steps - 1, 2))


def head_of(dim=6):
    torch.manual_seed(3)
    return nn.Linear(2 * dim, 2)


def terms_of(rollout, form, head, static=0):
    return objectives.loss_terms(rollout, LossConfig(form=form), head, static)


def by_hand(rollout, form, head):
    """The table in objectives.py, with loops over the axes that a term pools."""
    z = rollout.encodings.double().numpy()
    predicted, actions = rollout.predictions.double().numpy(), rollout.actions.double().numpy()
    batch, steps, dim = z.shape
    ahead = range(1, predicted.shape[2])
    sim = np.mean(
        [(predicted[k, b, t] - z[b, t]) ** 2 for k in range(len(predicted))
         for b in range(batch) for t in ahead]
    )  # fmt: skip
    samples = z[:, 0] if form == "pldm" else z.reshape(-1, dim)
    variance = [np.sum((x - x.mean()) ** 2) / (len(x) - 1) for x in samples.T]
    std = np.mean([max(0.0, 1 - np.sqrt(v + 1e-4)) for v in variance])
    over_time = [z[b, 1:, d] for b in range(batch) for d in range(dim)]
    std_t = np.mean([max(0.0, 1 - np.sqrt(np.var(x, ddof=1) + 1e-4)) for x in over_time])
    c = np.cov(samples.T)
    cov = sum(c[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j) / (dim * (dim - 1))
    sim_t = np.mean([(z[b, t] - z[b, t - 1]) ** 2 for b in range(batch) for t in range(1, steps)])
    weight, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    idm = np.mean(
        [(weight @ np.concatenate([z[b, t], z[b, t + 1]]) + bias - actions[b, t]) ** 2
         for b in range(batch) for t in range(steps - 1)]
    )  # fmt: skip
    return dict(zip(TERMS, (sim, std, std_t, cov, sim_t, idm), strict=True))


@pytest.mark.parametrize("form", ["pldm", "eb_jepa"])
@pytest.mark.parametrize("steps", [5, 3])
def test_each_term_equals_its_formula(form, steps):
    """PL13."""
    rollout, head = rollout_of(), head_of()
    rollout = rollout._replace(predictions=rollout.predictions[:, :, :steps])
    found = {name: term.item() for name, term in terms_of(rollout, form, head).items()}
    assert found == pytest.approx(by_hand(rollout, form, head), abs=1e-6)


@pytest.mark.parametrize("form", ["pldm", "eb_jepa"])
def test_a_static_part_agrees_within_its_layout_and_spreads_over_layouts(form):
    rollout, head = rollout_of(), head_of()
    layouts = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = terms_of(rollout, form, head, 2)
    static = objectives.layout_identity(rollout.encodings[..., :2], layouts)
    z = rollout.encodings.double().numpy()
    rows = [np.flatnonzero(layouts.numpy() == one) for one in range(3)]
    means = np.stack([z[r, :, :2].reshape(-1, 2).mean(0) for r in rows])  # (G, S)
    gaps = [((z[r, :, :2] - m) ** 2).ravel() for r, m in zip(rows, means, strict=True)]
    std = np.maximum(0, 1 - np.sqrt(means.var(0, ddof=1) + 1e-4)).mean()
    cov = np.cov(means.T)[0, 1] ** 2  # the mean of both off-diagonal entries
    wanted = np.concatenate(gaps).mean() + std + cov
    assert static.item() == pytest.approx(wanted, abs=1e-6)
    moving = Rollout(rollout.encodings[..., 2:], rollout.predictions[..., 2:], rollout.actions)
    rest, whole = by_hand(moving, form, head_of(4)), by_hand(rollout, form, head)
    wanted = rest | {name: whole[name] for name in ("sim", "idm")}
    assert {name: term.item() for name, term in found.items()} == pytest.approx(wanted, abs=1e-6)


def test_a_static_part_of_one_layout_is_its_spread_and_one_component_has_no_covariance():
    part, layouts = torch.randn(7, 5, 2, generator=seeded()), torch.zeros(7, dtype=torch.long)
    wanted = part.flatten(0, 1).var(0, correction=0).mean()
    torch.testing.assert_close(objectives.layout_identity(part, layouts), wanted)

    assert objectives.covariance(torch.randn(9, 1, generator=seeded())) == 0


@pytest.mark.parametrize("form", ["pldm", "eb_jepa"])
def test_collapsed_latents_have_a_finite_gradient(form):
    same = torch.full((7, 5, 6), 0.25, requires_grad=True)
    terms = terms_of(Rollout(same, same[None], torch.zeros(7, 4, 2)), form, None)
    objectives.weighted_sum(terms, LossConfig(std_t=1.0)).backward()
    assert torch.isfinite(same.grad).all()


def test_windows_too_short_for_a_variance_over_time():
    terms = terms_of(rollout_of(steps=2), "pldm", head_of())
    assert terms["std_t"] == 0
    assert all(torch.isfinite(value) for value in terms.values())
