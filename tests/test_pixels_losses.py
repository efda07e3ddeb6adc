"""The regularisers against formulas and known inputs, and who learns from which loss (F3, F9)."""

import numpy as np
import pytest
import torch
from tiny_pixels import SHAPES, tiny_batch, tiny_pixels, with_section

from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.pixels.losses import (
    BarlowTwins,
    DinoCentring,
    VICReg,
    build_regulariser,
    regularisation_terms,
)
from hjepa_lib.pixels.registry import build_pixel_model

KINDS = ("vicreg", "barlow_twins", "dino")


def draw(rows=256, dim=8, seed=0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def white(rows=64, dim=8):
    """Exactly zero mean, unit variance and no covariance."""
    z = draw(rows, dim).double()
    z = z - z.mean(dim=0)
    u, _, v = torch.linalg.svd(z, full_matrices=False)
    return (u @ v * (rows - 1) ** 0.5).float()


# --- VICReg -----------------------------------------------------------------------------------
def test_collapsed_white_and_correlated_batches():
    """LOSS-2: std near 1 and near 0, cov near 0 and clearly above it."""
    collapsed = regularisation_terms(torch.ones(32, 8))
    assert collapsed.std == pytest.approx(0.99, abs=1e-6)  # 1 - sqrt(eps), eps 1e-4
    assert collapsed.cov == 0
    spread = regularisation_terms(white())
    assert spread.std == pytest.approx(0, abs=1e-4) and spread.cov == pytest.approx(0, abs=1e-9)
    assert regularisation_terms(draw()[:, :1].expand(-1, 8)).cov > 5


def reference(one, two, config):
    """VICReg in plain NumPy, from the formula of the module's docstring."""
    found = {"sim": ((one - two) ** 2).mean(), "std": 0.0, "cov": 0.0}
    for z in (one, two):
        deviation = np.sqrt(z.var(axis=0, ddof=1) + 1e-4)
        found["std"] += np.maximum(1 - deviation, 0).mean() / 2
        c = np.cov(z.T)
        found["cov"] += (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / z.shape[1] / 2
    return found, sum(getattr(config, key) * value for key, value in found.items())


def test_vicreg_equals_a_reference():
    config = AuxiliaryConfig(sim=0.7, std=1.3, cov=0.4)
    one, two = 0.5 * draw(seed=1), 0.4 * draw(seed=2) + 0.2 * draw(seed=1)
    result = VICReg(config, 8)(one, two)
    terms, total = reference(one.double().numpy(), two.double().numpy(), config)
    for key, value in terms.items():
        assert result.terms[key].item() == pytest.approx(value, rel=1e-4), key
    assert result.total.item() == pytest.approx(total, rel=1e-4)


def test_one_view_has_no_similarity_term():
    z = 0.3 * draw()
    one, both = VICReg(AuxiliaryConfig(), 8)(z), VICReg(AuxiliaryConfig(), 8)(z, z)
    assert one.terms["sim"] == 0
    assert one.total == pytest.approx(both.total.item(), rel=1e-6)
    terms = regularisation_terms(z)
    assert one.terms["std"] == terms.std and one.terms["cov"] == terms.cov


def test_the_clamps_of_the_seed_are_off_by_default():
    """(+) With them, large latents lose their gradient."""
    z = (1e3 * draw()).requires_grad_()
    clamped = VICReg(AuxiliaryConfig(clamp=True), 8)(z)
    assert clamped.terms["cov"] <= 100
    free = VICReg(AuxiliaryConfig(), 8)(z)
    assert free.terms["cov"] > 1e5
    (gradient,) = torch.autograd.grad(free.total, z)
    assert gradient.abs().max() > 0
    assert not AuxiliaryConfig().clamp


def test_a_gentle_clamp_changes_nothing():
    z = 0.3 * draw()
    clamped, free = (VICReg(AuxiliaryConfig(clamp=c), 8)(z, z + 0.1).total for c in (True, False))
    assert clamped.item() == pytest.approx(free.item(), rel=1e-5)


# --- Barlow Twins and DINO ----------------------------------------------------------------------
def test_barlow_twins_of_orthogonal_and_of_redundant_dimensions():
    """LOSS-3: about 0 for orthogonal input; D (D - 1) lambda for D copies of one dimension."""
    loss = BarlowTwins(AuxiliaryConfig())
    assert loss(white()).total == pytest.approx(0, abs=1e-6)
    assert loss(white(), white()).total == pytest.approx(0, abs=1e-6)
    copies = draw(64, 1).expand(-1, 8)
    assert loss(copies).total.item() == pytest.approx(0.0051 * 8 * 7, rel=1e-3)
    assert loss(white(), -white()).terms["invariance"].item() == pytest.approx(4 * 8, rel=1e-3)


def test_barlow_twins_equals_a_reference_and_is_scaled():
    one, two = draw(seed=1), draw(seed=1) + 0.5 * draw(seed=2)
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (one.numpy(), two.numpy()))
    c = a.T @ b / len(a)
    off = np.sum(c**2) - np.sum(np.diag(c) ** 2)
    wanted = np.sum((np.diag(c) - 1) ** 2) + 0.1 * off
    found = BarlowTwins(AuxiliaryConfig(barlow_lambda=0.1, barlow_scale=3.0))(one, two).total
    assert found.item() == pytest.approx(3 * wanted, rel=1e-4)


def test_the_centre_moves_in_training_and_freezes_in_evaluation():
    """LOSS-4: starts at 0, c <- 0.9 c + 0.1 mean, summed squared distance before the move."""
    loss, z = DinoCentring(AuxiliaryConfig(), 8), draw() + 2
    mean = z.mean(dim=0)
    assert loss.centre.abs().max() == 0
    assert loss(z).total.item() == pytest.approx(mean.square().sum().item(), rel=1e-5)
    assert torch.allclose(loss.centre, 0.1 * mean)
    loss(z)
    assert torch.allclose(loss.centre, 0.19 * mean)
    loss.eval()
    loss(z)
    assert torch.allclose(loss.centre, 0.19 * mean)
    two = loss(z, z)
    assert two.total == loss(z).total
    for wrong in (torch.zeros(4, 7), torch.zeros(8), torch.zeros(2, 4, 8)):
        with pytest.raises(ValueError, match=r"latents must be \(B, 8\)"):
            loss(wrong)


def test_the_centre_is_stored_with_the_weights():
    one, two = DinoCentring(AuxiliaryConfig(), 8), DinoCentring(AuxiliaryConfig(), 8)
    one(draw() + 1)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.centre, two.centre) and one.centre.abs().max() > 0


def test_switches_choose_the_loss():
    assert build_regulariser(AuxiliaryConfig(kind="none"), 8) is None
    assert build_regulariser(AuxiliaryConfig(weight=0.0), 8) is None
    kinds = [type(build_regulariser(AuxiliaryConfig(kind=kind), 8)) for kind in KINDS]
    assert kinds == [VICReg, BarlowTwins, DinoCentring]


# --- gradient flow ------------------------------------------------------------------------------
def norms(model, batch):
    """Gradient norm of each part after one backward pass."""
    model.zero_grad(set_to_none=True)
    model.loss(batch)[0].backward()
    return {
        name: sum(p.grad.square().sum().item() for p in part.parameters() if p.grad is not None)
        for name, part in model.named_children()
    }


def jepa(**changes):
    torch.manual_seed(0)
    return build_pixel_model("jepa", tiny_pixels(**changes), SHAPES)


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("mode", ["default", "vjepa2", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_encoder_predictor_and_action_embedding_learn_whatever_the_auxiliary_loss(
    kind, mode, projector
):
    """F3: in the seed predictor and action embedding got nothing as soon as VICReg was on."""
    own = {"auxiliary__projector": projector} if kind == "vicreg" else {}
    model = jepa(auxiliary__kind=kind, jepa__target=mode, **own)
    found = norms(model, tiny_batch())
    wanted = ["encoder", "predictor", "action"]
    wanted += ["regulariser"] if projector and kind == "vicreg" else []
    assert all(found[name] > 0 for name in wanted), found
    assert found.get("target_encoder", 0) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["enc_dec", "enc_dec_jepa"])
def test_the_switch_for_encoder_decoders_acts(name, kind):
    """LOSS-5: `use_for_enc_dec` was ignored in the seed."""
    terms = []
    for used in (False, True):
        torch.manual_seed(0)
        config = tiny_pixels(auxiliary__kind=kind, auxiliary__use_for_enc_dec=used)
        model = build_pixel_model(name, config, SHAPES)
        loss, parts = model.loss(tiny_batch())
        terms.append((loss.item(), set(parts)))
    assert terms[0][1] == {"prediction"} < terms[1][1]
    assert terms[1][0] > terms[0][0]


def test_a_small_weight_leaves_the_gradient_near_the_main_one_and_a_large_one_moves_it():
    """LOSS-5, by the angle between the encoder's gradients."""
    batch = tiny_batch()

    def gradient(**changes):
        model = jepa(jepa__target="vjepa2", **changes)
        model.loss(batch)[0].backward()
        return torch.cat([p.grad.flatten() for p in model.encoder.parameters()])

    main = gradient(auxiliary__kind="none")
    cosines = [
        torch.cosine_similarity(main, gradient(auxiliary__weight=weight), dim=0).item()
        for weight in (1e-4, 100.0)
    ]
    assert cosines[0] > 0.99 and cosines[1] < 0.9


def test_the_loss_is_its_named_terms():
    """LOSS-1: prediction + weight * (sim + std + cov with their coefficients)."""
    config = with_section(tiny_pixels(), "auxiliary", weight=0.5, sim=0.7, std=1.3, cov=0.4)
    torch.manual_seed(0)
    model = build_pixel_model("jepa", config, SHAPES)
    loss, t = model.loss(tiny_batch())
    total = 0.7 * t["vicreg_sim"] + 1.3 * t["vicreg_std"] + 0.4 * t["vicreg_cov"]
    assert t["vicreg_total"] == pytest.approx(total, rel=1e-5)
    assert loss.item() == pytest.approx(t["prediction"] + 0.5 * total, rel=1e-5)


def test_the_auxiliary_loss_is_computed_in_full_precision():
    """Under bf16 autocast a covariance would keep two digits."""
    model, batch = jepa(auxiliary__kind="dino"), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(batch)
    assert model.regulariser.centre.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        value = jepa().loss(batch)[1]["vicreg_cov"]
    assert value != torch.tensor(value).bfloat16().item()
