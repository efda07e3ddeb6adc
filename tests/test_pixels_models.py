"""Encoders, decoder, action embedding and the pixel world models: shapes, gradients, settings."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import digest
from tiny_pixels import (
    ACTIONS,
    SHAPES,
    SIDE,
    STACK,
    tiny_batch,
    tiny_pixels,
    tiny_transitions,
    with_section,
)
from torch import nn

from hjepa_lib.config import profile
from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import (
    AuxiliaryConfig,
    DecoderConfig,
    PixelEncoderConfig,
    PixelJepaConfig,
)
from hjepa_lib.models.layers import Transformer, count_parameters
from hjepa_lib.pixels import figures
from hjepa_lib.pixels.models import ActionEmbedding
from hjepa_lib.pixels.networks import (
    PatchDecoder,
    build_pixel_encoder,
    initialise,
    parameter_counts,
)
from hjepa_lib.pixels.registry import build_pixel_model, matched_counts
from hjepa_lib.pixels.transitions import PixelShapes, shapes_of

TRAINED = ("enc_dec", "enc_dec_jepa", "jepa")
KINDS = ("vit", "cnn", "mlp")


def build(name, shapes=SHAPES, **changes):
    torch.manual_seed(0)
    return build_pixel_model(name, tiny_pixels(**changes), shapes)


# --- encoders ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_field_switches_the_encoder(kind, channels):
    """MOD-1: every encoder maps a stack to (B, D), at the default width of 64."""
    config = PixelEncoderConfig(kind=kind, depth=1, temporal_depth=1, cnn_filters=4, mlp_hidden=8)
    encoder = build_pixel_encoder(config, PixelShapes(channels, 4, 16, "discrete", 4))
    assert encoder(torch.rand(2, 4, channels, 16, 16)).shape == (2, 64)


def test_an_unknown_encoder_or_model_is_one_sentence():
    config = PixelEncoderConfig()
    object.__setattr__(config, "kind", "resnet")
    with pytest.raises(ConfigError, match="unknown encoder 'resnet'; known: vit, cnn, mlp"):
        build_pixel_encoder(config, SHAPES)
    with pytest.raises(ConfigError, match="kind must be one of"):
        PixelEncoderConfig(kind="resnet")
    with pytest.raises(ConfigError, match="unknown model 'gan'"):
        build_pixel_model("gan", tiny_pixels(), SHAPES)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("temporal", [0, 2])
def test_vit_shapes(pool, temporal):
    """MOD-2: pooling and depth of the temporal transformer, and rectangular frames."""
    config = tiny_pixels(
        encoder__kind="vit", encoder__pool=pool, encoder__temporal_depth=temporal
    ).encoder
    encoder = build_pixel_encoder(config, SHAPES._replace(image_size=(16, 24)))
    assert encoder(torch.rand(2, STACK, 1, 16, 24)).shape == (2, 8)


def test_an_image_that_does_not_divide_into_patches_is_refused():
    config = tiny_pixels(encoder__kind="vit", encoder__patch=5).encoder
    with pytest.raises(ConfigError, match="16 x 16 px do not divide into 5 px patches"):
        build_pixel_encoder(config, SHAPES)
    with pytest.raises(ConfigError, match="do not divide into 5 px patches"):
        PatchDecoder(tiny_pixels(decoder__patch=5).decoder, 8, SHAPES)


def vit():
    torch.manual_seed(0)
    encoder = build_pixel_encoder(tiny_pixels(encoder__kind="vit").encoder, SHAPES).eval()
    initialise(encoder)
    return encoder


def test_positions_are_added_once_and_to_their_own_tokens():
    """F8: what enters the first block is CLS, then projected patch plus its own position."""
    encoder, seen = vit(), []
    encoder.spatial.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    frame = torch.rand(1, 1, SIDE, SIDE)
    with torch.no_grad():
        encoder.frames(frame)
        patches = frame.unfold(2, 4, 4).unfold(3, 4, 4).reshape(1, 16, 16)  # row by row
        weight = encoder.patches.project.weight.flatten(1)
        wanted = patches @ weight.T + encoder.patches.project.bias + encoder.patches.position
    assert torch.allclose(seen[0][:, 1:], wanted, atol=1e-5)
    assert torch.equal(seen[0][0, 0], encoder.cls)


@pytest.mark.parametrize("where", ["patches", "frames"])
def test_without_positions_order_is_invisible_and_with_them_it_is_not(where):
    """F8, the permutation test: patches of a frame, and frames of a stack."""
    encoder = vit()
    stack = torch.rand(1, STACK, 1, SIDE, SIDE)
    if where == "frames":
        shuffled, position = stack.flip(1), encoder.frame_position
    else:
        shuffled, position = stack.roll(4, dims=-1), encoder.patches.position  # whole patches
    with torch.no_grad():
        assert not torch.allclose(encoder(stack), encoder(shuffled), atol=1e-6)
        position.zero_()
        assert torch.allclose(encoder(stack), encoder(shuffled), atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (15, 17)])
@pytest.mark.parametrize("hidden", [0, 10])
def test_cnn_takes_square_and_rectangular_inputs(size, hidden):
    """MOD-3: filters double, sides halve (rounded up), an optional hidden layer."""
    config = tiny_pixels(encoder__cnn_hidden=hidden).encoder
    encoder = build_pixel_encoder(config, SHAPES._replace(image_size=size))
    assert encoder(torch.rand(2, STACK, 1, *size)).shape == (2, 8)
    convs = [layer for layer in encoder.convs if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convs] == [4, 8, 16]
    assert {layer.stride for layer in convs} == {(2, 2)}
    linear = [layer for layer in encoder.head if isinstance(layer, nn.Linear)]
    assert len(linear) == 1 + (hidden > 0)


def test_an_mlp_without_layers_is_linear():
    """MOD-4: f(x + y) - f(0) = (f(x) - f(0)) + (f(y) - f(0)); with layers it is not."""
    for layers, linear in ((0, True), (2, False)):
        config = tiny_pixels(encoder__kind="mlp", encoder__mlp_layers=layers).encoder
        encoder = build_pixel_encoder(config, SHAPES)
        x, y = torch.randn(2, 1, STACK, 1, SIDE, SIDE)
        with torch.no_grad():
            zero = encoder(torch.zeros_like(x))
            gap = encoder(x + y) - encoder(x) - encoder(y) + zero
        assert (gap.abs().max() < 1e-5) == linear


def test_causal_attention_sees_no_future():
    torch.manual_seed(0)
    model, x = Transformer(8, 2, 2, 4, 16), torch.randn(1, 5, 8, requires_grad=True)
    model(x, causal=True)[0, 2].sum().backward()
    assert x.grad[0, 3:].abs().max() == 0
    assert x.grad[0, :3].abs().min() > 0


# --- action embedding -------------------------------------------------------------------------
def test_action_embedding_of_both_kinds():
    """MOD-5: table or linear map, 32 wide by default; out of range and wrong types raise."""
    table, linear = ActionEmbedding("discrete", 4, 32), ActionEmbedding("continuous", 2, 32)
    assert table(torch.tensor([0, 3])).shape == linear(torch.zeros(2, 2)).shape == (2, 32)
    assert isinstance(table.table, nn.Embedding)
    assert isinstance(linear.table, nn.Linear)
    for action in ([4], [-1]):
        with pytest.raises(ValueError, match=r"actions must lie in 0\.\.3"):
            table(torch.tensor(action))
    with pytest.raises(ValueError, match="whole numbers"):
        table(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="must have 2 components"):
        linear(torch.zeros(2, 3))


# --- the interface of every model ---------------------------------------------------------------
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", [*TRAINED, "random"])
def test_every_model_answers_the_same_questions(name, continuous):
    """Shapes of encode, imagine, predict_frame, embed_action; determinism in eval mode (F4)."""
    data = tiny_transitions(continuous=continuous)
    model = build(name, data).eval()
    batch = data[torch.arange(5)]
    latent = model.encode(batch.state)
    assert (model.name, model.latent_dim) == (name, 8)
    assert latent.shape == (5, 8) and torch.equal(latent, model.encode(batch.state))
    assert model.embed_action(batch.action).shape == (5, 6)
    imagined = model.imagine(latent, batch.action)
    frame = model.predict_frame(batch.state, batch.action)
    if name in ("enc_dec", "random"):  # F9: reported as not applicable, not a crash
        assert imagined is None
    else:
        assert imagined.shape == (5, 8)
    assert (frame is None) == (name in ("jepa", "random"))
    if frame is not None:
        assert frame.shape == (5, 1, SIDE, SIDE)
    if name != "random":
        loss, terms = model.loss(batch)
        assert loss.ndim == 0 and all(isinstance(value, float) for value in terms.values())
        model.after_update()


def test_the_random_baseline_is_frozen_and_shares_its_encoder_with_every_model():
    """One seed, one first encoder: models differ by what they learn, not by where they start."""
    encoders = {name: digest(build(name).encoder) for name in (*TRAINED, "random")}
    assert len(set(encoders.values())) == 1
    random = build("random")
    assert not any(p.requires_grad for p in random.parameters())
    with pytest.raises(ConfigError, match="never trained"):
        random.loss(tiny_batch())


def test_pixels_are_scaled_to_one_inside_the_model():
    """F14: the encoder sees [0, 1]; floats, or a wrong shape, are refused with both shapes."""
    model, seen = build("jepa"), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    state = torch.zeros(2, STACK, 1, SIDE, SIDE, dtype=torch.uint8)
    state[0] = 255
    model.encode_online(state)
    assert seen[0][0].min() == seen[0][0].max() == 1 and seen[0][1].max() == 0
    with pytest.raises(ValueError, match="must be uint8"):
        model.encode(state.float())
    with pytest.raises(ValueError, match=r"\(B, 3, 1, 16, 16\), got \(2, 3, 1, 16, 15\)"):
        model.encode(state[..., :-1])


# --- decoder ----------------------------------------------------------------------------------
def test_decoder_shapes_and_patches_in_their_places():
    """MOD-6: (B, C, H, W) with one query per patch, each drawing its own patch alone."""
    torch.manual_seed(0)
    config = tiny_pixels().decoder
    decoder = PatchDecoder(config, 8, SHAPES._replace(channels=3, image_size=(16, 24))).eval()
    latent = torch.randn(2, 8)
    assert decoder(latent).shape == (2, 3, 16, 24)
    assert decoder.query.shape[0] == 4 * 6
    with torch.no_grad():
        for layer in (decoder.query, *decoder.blocks.parameters()):
            layer.zero_()  # tokens stay what the queries are
        decoder.pixels.bias.zero_()
        decoder.query[7] = torch.randn(config.dim)  # row 1, column 1 of 6
        image = decoder(latent)[0]
    patches = image.unfold(1, 4, 4).unfold(2, 4, 4).std(dim=(0, 3, 4))
    assert patches.flatten().argmax() == 7 and (patches.flatten() > 1e-6).sum() == 1


def test_the_decoder_uses_its_input_and_every_weight_learns():
    torch.manual_seed(0)
    decoder = PatchDecoder(tiny_pixels().decoder, 8, SHAPES)
    initialise(decoder)
    latent = torch.randn(4, 8, requires_grad=True)
    (decoder(latent) - torch.rand(4, 1, 16, 16)).square().mean().backward()
    assert latent.grad.abs().min() > 0
    assert all(p.grad.abs().max() > 1e-9 for p in decoder.parameters())


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_on_a_toy_batch(name, kind):
    """MOD-6 (also `standard`, which crashed in the seed), MOD-7, MOD-8."""
    model = build(name, encoder__kind=kind, decoder__dropout=0.0, encoder__dropout=0.0)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batch, losses = tiny_batch(), []
    for _ in range(25):
        loss, _ = model.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_update()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# --- JEPA -------------------------------------------------------------------------------------
def test_the_ema_follows_its_formula_over_several_updates():
    """MOD-8: theta_target = d theta_target + (1 - d) theta after each update."""
    model = build("jepa", jepa__ema_decay=0.9)
    target = [p.clone() for p in model.target_encoder.parameters()]
    for step in range(3):
        with torch.no_grad():
            for p in model.encoder.parameters():
                p.add_(0.1 * (step + 1))
        model.after_update()
        pairs = zip(target, model.encoder.parameters(), strict=True)
        target = [0.9 * slow + 0.1 * fast for slow, fast in pairs]
        for wanted, found in zip(target, model.target_encoder.parameters(), strict=True):
            assert torch.allclose(wanted, found, atol=1e-6)
    assert model.weight_difference() > 0


@pytest.mark.parametrize("mode", ["default", "vjepa2", "none"])
def test_who_gets_gradient_in_each_target_mode(mode):
    """MOD-9: from the prediction error alone, and from the whole loss."""
    model = build("jepa", jepa__target=mode)
    batch = tiny_batch()
    step = model(batch.state, batch.action, batch.next_state)
    assert not step.target.requires_grad
    assert (step.online_next is None) == (mode == "vjepa2")
    assert (model.target_encoder is None) == (mode == "none")
    (step.prediction - step.target).square().mean().backward()
    reached = {
        part: any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
        for part, module in model.named_children()
        if part in ("encoder", "predictor", "action", "target_encoder")
    }
    assert reached.pop("predictor") and reached.pop("action")
    assert not reached.pop("target_encoder", False)
    assert reached.pop("encoder") == (mode != "default")
    assert not reached


def test_the_target_mode_decides_which_encoder_is_used():
    """The predictor's own input encoder answers `encode`, so imagining continues what it knows."""
    batch = tiny_batch()
    for mode in ("default", "vjepa2"):
        model = build("jepa", jepa__target=mode).eval()
        with torch.no_grad():
            for p in model.encoder.parameters():
                p.add_(0.05)
        online, target = model.encode_online(batch.state), model.encode_target(batch.state)
        assert not torch.allclose(online, target)
        assert torch.equal(model.encode(batch.state), target if mode == "default" else online)
        step = model(batch.state, batch.action, batch.next_state)
        start = model.encode(batch.state)
        assert torch.allclose(step.prediction, model.imagine(start, batch.action))


def test_the_mode_none_predicts_the_online_latent_with_gradient_stopped():
    model = build("jepa", jepa__target="none").eval()
    batch = tiny_batch()
    step = model(batch.state, batch.action, batch.next_state)
    assert torch.equal(step.target, step.online_next)
    before = digest(model)
    model.after_update()
    assert digest(model) == before


def test_the_default_mode_needs_an_auxiliary_loss():
    """Its encoder would otherwise never get gradient and stay random without a word."""
    for changes in ({"auxiliary__kind": "none"}, {"auxiliary__use_for_jepa": False},
                    {"auxiliary__weight": 0.0}):  # fmt: skip
        with pytest.raises(ConfigError, match="through the auxiliary loss alone"):
            build("jepa", **changes)
        build("jepa", jepa__target="vjepa2", **changes)


def test_the_target_encoder_drops_nothing_out_while_training():
    model = build("jepa", encoder__kind="mlp", encoder__mlp_dropout=0.5).train()
    state = tiny_batch().state
    assert torch.equal(model.encode_target(state), model.encode_target(state))
    assert not torch.equal(model.encode_online(state), model.encode_online(state))


# --- counts and first weights -----------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("predictor", ["mlp", "transformer"])
def test_the_twin_matches_jepa_with_its_decoder_within_two_percent(kind, predictor):
    """MOD-7, at the laptop profile's sizes and with a projector, which counts for neither."""
    config = with_section(profile("laptop").pixels, "encoder", kind=kind)
    config = with_section(config, "jepa", predictor=predictor)
    config = with_section(config, "auxiliary", projector=True)
    twin, jepa = matched_counts(config, PixelShapes(1, 4, 64, "discrete", 4)).values()
    assert twin == pytest.approx(jepa, rel=0.02)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_parts_sum_to_the_total(name, kind):
    """MOD-13."""
    model = build(name, encoder__kind=kind, auxiliary__projector=True)
    parts = parameter_counts(model)
    assert sum(parts.values()) == count_parameters(model) and min(parts.values()) > 0
    assert "target_encoder" not in parts


def test_first_weights_have_the_stated_statistics():
    """MOD-13: Kaiming, Xavier with gain 0.5 from 512 on, embeddings N(0, 0.01), norms 1 and 0."""
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {
            "conv": nn.Conv2d(16, 64, 3), "small": nn.Linear(256, 256), "large": nn.Linear(512, 64),
            "table": nn.Embedding(1000, 32), "norm": nn.LayerNorm(8),
        }
    )  # fmt: skip
    with torch.no_grad():
        layers["norm"].weight.fill_(3)
    initialise(layers)
    wanted = {"conv": (2 / (64 * 9)) ** 0.5, "small": (2 / 256) ** 0.5, "table": 0.01,
              "large": 0.5 * (2 / 576) ** 0.5}  # fmt: skip
    for name, std in wanted.items():
        assert layers[name].weight.std().item() == pytest.approx(std, rel=0.05), name
    assert all(layers[name].bias.abs().max() == 0 for name in ("conv", "small", "large", "norm"))
    assert layers["norm"].weight.min() == layers["norm"].weight.max() == 1
    decoder = build("enc_dec").decoder  # (+) queries differ, the first frame is nearly black
    assert decoder.query.std().item() == pytest.approx(1, rel=0.2)
    assert decoder.pixels.weight.std().item() == pytest.approx(0.01, rel=0.2)
    position = build("enc_dec", encoder__kind="vit").encoder.patches.position
    assert position.std().item() == pytest.approx(0.02, rel=0.2)


def test_shapes_come_from_transitions():
    assert shapes_of(tiny_transitions()) == SHAPES
    assert shapes_of(SHAPES) == SHAPES
    assert shapes_of(tiny_transitions(continuous=True)).action_dim == 2


# --- every setting acts (F9) --------------------------------------------------------------------
def signature(config, name):
    """Parameter counts, loss of three training updates and what is encoded and decoded after."""
    torch.manual_seed(0)
    try:
        model = build_pixel_model(name, config, SHAPES)
    except ConfigError as error:
        return str(error)
    batch = tiny_batch()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss, terms = model.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_update()
        losses.append((loss.item(), tuple(terms.items())))
    return parameter_counts(model), losses, digest(model)


VIT, CNN, MLP = ({"kind": kind} for kind in KINDS)
BASE = {"vit": VIT, "cnn": CNN, "mlp": MLP}
ENCODER_CHANGES = {
    "kind": (CNN, "mlp"), "latent_dim": (CNN, 12), "patch": (VIT, 8), "depth": (VIT, 2),
    "heads": (VIT, 1), "head_dim": (VIT, 8), "mlp_dim": (VIT, 24), "dropout": (VIT, 0.5),
    "embedding_dropout": (VIT, 0.5), "pool": (VIT, "mean"), "temporal_depth": (VIT, 2),
    "temporal_heads": (VIT, 4), "temporal_mlp": (VIT, 24), "temporal_dropout": (VIT, 0.5),
    "cnn_layers": (CNN, 2), "cnn_filters": (CNN, 6), "cnn_activation": (CNN, "gelu"),
    "cnn_hidden": (CNN, 5), "cnn_dropout": (CNN, 0.5), "mlp_hidden": (MLP, 20),
    "mlp_layers": (MLP, 1), "mlp_activation": (MLP, "gelu"), "mlp_dropout": (MLP, 0.5),
}  # fmt: skip
DECODER_CHANGES = {
    "patch": 8, "dim": 24, "depth": 2, "heads": 1, "head_dim": 4, "mlp_dim": 24, "dropout": 0.5,
}  # fmt: skip
PROJECTED = {"projector": True}
AUXILIARY_CHANGES = {
    "kind": ({}, "dino"), "weight": ({}, 0.5), "use_for_jepa": ({}, False), "sim": ({}, 0.5),
    "std": ({}, 0.5), "cov": ({}, 1.0), "projector": ({}, True), "clamp": ({}, True),
    "barlow_lambda": ({"kind": "barlow_twins"}, 0.5),
    "barlow_scale": ({"kind": "barlow_twins"}, 0.5), "dino_momentum": ({"kind": "dino"}, 0.5),
    "barlow_eps": ({"kind": "barlow_twins"}, 0.1), "eps": ({}, 0.1),
    "projector_dim": (PROJECTED, 24),
    "use_for_enc_dec": ({}, True),
}  # fmt: skip
JEPA_CHANGES = {
    "target": "vjepa2", "ema_decay": 0.5, "predictor": "transformer", "hidden": (16,),
    "dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PixelEncoderConfig)])
def test_every_encoder_setting_acts(field):
    base, value = ENCODER_CHANGES[field]
    start = with_section(tiny_pixels(), "encoder", **base)
    changed = with_section(start, "encoder", **{field: value})
    assert signature(changed, "enc_dec_jepa") != signature(start, "enc_dec_jepa")


@pytest.mark.parametrize(
    "field", sorted({f.name for f in dataclasses.fields(DecoderConfig)} - {"optim", "source"})
)
def test_every_decoder_setting_acts(field):
    """`source` and `optim` belong to the decoder's stage: tests/test_pixels_training.py."""
    changed = with_section(tiny_pixels(), "decoder", **{field: DECODER_CHANGES[field]})
    assert signature(changed, "enc_dec") != signature(tiny_pixels(), "enc_dec")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(AuxiliaryConfig)])
def test_every_auxiliary_setting_acts(field):
    base, value = AUXILIARY_CHANGES[field]
    start = with_section(tiny_pixels(), "auxiliary", **base)
    if field == "clamp":  # latents of random encoders are small: nothing reaches a clamp
        start = with_section(start, "encoder", kind="mlp", mlp_layers=0)
    changed = with_section(start, "auxiliary", **{field: value})
    name = "enc_dec" if field == "use_for_enc_dec" else "jepa"
    if field == "clamp":
        assert clamped(changed) != clamped(start)
    else:
        assert signature(changed, name) != signature(start, name)


def clamped(config):
    """Loss with an encoder whose latents are far outside +-10."""
    model = build_pixel_model("jepa", config, SHAPES)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.fill_(1.0)
        next(model.encoder.parameters())[::2] = -1.0
    return model.loss(tiny_batch())[1]


@pytest.mark.parametrize(
    "field", sorted({f.name for f in dataclasses.fields(PixelJepaConfig)} - {"frozen", "lr"})
)
def test_every_jepa_setting_acts(field):
    """`frozen` and `lr` belong to the stage: test_pixels_training.py, test_pixels_settings.py."""
    changed = with_section(tiny_pixels(), "jepa", **{field: JEPA_CHANGES[field]})
    assert signature(changed, "jepa") != signature(tiny_pixels(), "jepa")


def test_the_width_of_the_action_embedding_acts():
    assert build("jepa", action_dim=7).embed_action(torch.tensor([ACTIONS - 1])).shape == (1, 7)


# --- pictures ---------------------------------------------------------------------------------
def test_pictures_show_the_pixel_range_of_the_frames(tmp_path):
    """F14, the golden image: black is 0, white is 255, out-of-range predictions are clipped."""
    stacks = torch.zeros(1, STACK, 1, 8, 8)
    stacks[0, -1] = 0.5
    true, predicted = torch.ones(1, 1, 8, 8), torch.full((1, 1, 8, 8), -3.0)
    figures.write_comparisons(tmp_path, 2, stacks, true, predicted)
    image = np.asarray(Image.open(tmp_path / "epoch_2_sample_0_comparison.png"))
    middles = [image[24, 16 + i * 24, 0] for i in range(STACK + 2)]
    assert middles == [0, 0, 128, 255, 0]


def test_the_same_samples_are_drawn_for_every_model():
    """FIG-1: rows depend on the epoch and the number of rows, and on nothing else."""
    one = figures.sample_rows(100, 3)
    torch.manual_seed(99)
    assert torch.equal(one, figures.sample_rows(100, 3))
    assert len(set(one.tolist())) == figures.SAMPLES
    assert not torch.equal(one, figures.sample_rows(100, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINED)
def test_first_latents_fill_their_units(name, kind):
    """(+) Root mean square 1 on the data; the target encoder starts as a copy of that."""
    data = tiny_transitions()
    model = build(name, data, encoder__kind=kind).eval()
    z = model.encode(data[torch.arange(len(data))].state)
    assert z.square().mean().sqrt().item() == pytest.approx(1, rel=1e-3)
    still = dataclasses.replace(data, frames=torch.zeros_like(data.frames))
    black = build(name, still, encoder__kind=kind).eval()
    assert black.encode(still.batch(torch.arange(4)).state).isfinite().all()
