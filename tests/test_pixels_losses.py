"""The regularisers against formulas and known inputs, and who learns from which loss (F3, F9)."""

import numpy as np
import pytest
import torch
from tiny_pixels import fresh, seeded, tiny_batch, under, white

from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.pixels.checks import gradient_norms
from hjepa_lib.pixels.losses import BarlowTwins, DinoCentring, VICReg


def draw(rows=256, dim=8, seed=0):
    return torch.randn(rows, dim, generator=seeded(seed))


@pytest.mark.parametrize("clamp", [False, True])
def test_vicreg_equals_a_reference_in_numpy(clamp):
    """LOSS-2, stds on both sides of the hinge; a gentle clamp changes nothing."""
    config = AuxiliaryConfig(sim=0.7, std=1.3, cov=0.4, clamp=clamp)
    widths = torch.linspace(0.2, 1.5, 8)
    views = widths * draw(seed=1), widths * (0.8 * draw(seed=2) + 0.4 * draw(seed=1))
    one, two = (view.double().numpy() for view in views)
    wanted = {"sim": ((one - two) ** 2).mean(), "std": 0.0, "cov": 0.0}
    for z in (one, two):
        wanted["std"] += np.maximum(1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4), 0).mean() / 2
        c = np.cov(z.T)
        wanted["cov"] += (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / z.shape[1] / 2
    total, terms = VICReg(config, 8)(*views)
    assert {key: term.item() for key, term in terms.items()} == pytest.approx(wanted, rel=1e-4)
    weighted = sum(getattr(config, key) * value for key, value in wanted.items())
    assert total.item() == pytest.approx(weighted, rel=1e-4)
    collapsed = VICReg(config, 8)(torch.ones(32, 8))[1]
    assert collapsed["std"] == pytest.approx(0.99, abs=1e-6) and collapsed["cov"] == 0


def test_one_view_has_no_similarity_term():
    loss, z = VICReg(AuxiliaryConfig(), 8), 0.3 * draw()
    (one, terms), (both, _) = loss(z), loss(z, z)
    assert terms["sim"] == 0 and one == pytest.approx(both.item(), rel=1e-6)


def test_the_clamps_of_the_seed_are_off_by_default():
    """(+) With them, large latents lose their gradient."""
    z = (1e3 * draw()).requires_grad_()
    assert VICReg(AuxiliaryConfig(clamp=True), 8)(z)[1]["cov"] <= 100
    total, terms = VICReg(AuxiliaryConfig(), 8)(z)
    assert terms["cov"] > 1e5
    assert torch.autograd.grad(total, z)[0].abs().max() > 0


def test_barlow_twins_of_known_inputs():
    """LOSS-3: about 0 for orthogonal dimensions, D (D - 1) lambda for D copies of one."""
    loss, z = BarlowTwins(AuxiliaryConfig(), 8), torch.from_numpy(white(64, 8)).float()
    assert loss(z)[0] == loss(z, z)[0] == pytest.approx(0, abs=1e-6)
    copies = draw(64, 1).expand(-1, 8)
    assert loss(copies)[0].item() == pytest.approx(0.0051 * 8 * 7, rel=1e-3)
    one, two = draw(seed=1), draw(seed=1) + 0.5 * draw(seed=2)
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (one.numpy(), two.numpy()))
    c = a.T @ b / len(a)
    wanted = np.sum((np.diag(c) - 1) ** 2) + 0.1 * (np.sum(c**2) - np.sum(np.diag(c) ** 2))
    found, _ = BarlowTwins(AuxiliaryConfig(barlow_lambda=0.1, barlow_scale=3.0), 8)(one, two)
    assert found.item() == pytest.approx(3 * wanted, rel=1e-4)


def test_the_centre_moves_in_training_and_freezes_in_evaluation():
    """LOSS-4: starts at 0, c <- 0.9 c + 0.1 mean, summed squared distance before the move."""
    loss, z = DinoCentring(AuxiliaryConfig(), 8), draw() + 2
    mean = z.mean(dim=0)
    assert loss(z)[0].item() == pytest.approx(mean.square().sum().item(), rel=1e-5)
    assert torch.allclose(loss.centre, 0.1 * mean)
    loss(z)
    assert torch.allclose(loss.centre, 0.19 * mean)
    loss.eval()
    assert loss(z, z)[0] == loss(z)[0]
    assert torch.allclose(loss.centre, 0.19 * mean)
    assert torch.equal(loss.state_dict()["centre"], loss.centre)  # stored with the weights


@pytest.mark.parametrize(
    ("mode", "own"),
    [("default", {"kind": kind}) for kind in ("vicreg", "barlow_twins", "dino")]
    + [("vjepa2", {"kind": "vicreg", "projector": True}), ("none", {"kind": "dino"})],
)
def test_encoder_predictor_and_action_embedding_learn_whatever_the_auxiliary_loss(mode, own):
    """F3: in the seed predictor and action embedding got nothing as soon as VICReg was on."""
    model = fresh("jepa", jepa__target=mode, **under("auxiliary", **own))
    found = gradient_norms(model, tiny_batch())
    wanted = {"encoder", "predictor", "action"} | ({"regulariser"} if len(own) > 1 else set())
    assert {name for name, norm in found.items() if norm > 0} == wanted


@pytest.mark.parametrize(("name", "kind"), [("enc_dec", "dino"), ("enc_dec_jepa", "vicreg")])
def test_the_switch_for_encoder_decoders_acts(name, kind):
    """LOSS-5: `use_for_enc_dec` was ignored in the seed."""
    (plain, own), (whole, terms) = (
        fresh(name, auxiliary__kind=kind, auxiliary__use_for_enc_dec=used).loss(tiny_batch())
        for used in (False, True)
    )
    assert set(own) == {"prediction"} < set(terms) and whole > plain


def test_the_loss_is_its_named_terms():
    """LOSS-1, LOSS-5: prediction + weight * (sim + std + cov with their coefficients)."""
    model = fresh("jepa", **under("auxiliary", weight=0.5, sim=0.7, std=1.3, cov=0.4))
    loss, t = model.loss(tiny_batch())
    total = 0.7 * t["vicreg_sim"] + 1.3 * t["vicreg_std"] + 0.4 * t["vicreg_cov"]
    assert t["vicreg_total"] == pytest.approx(total, rel=1e-5)
    assert t["vicreg_weighted"] == pytest.approx(0.5 * total, rel=1e-5)
    assert loss.item() == pytest.approx(t["prediction"] + 0.5 * total, rel=1e-5)


def test_the_auxiliary_loss_is_computed_in_full_precision():
    """Under bf16 autocast a covariance would keep two digits."""
    model, batch = fresh("jepa", auxiliary__kind="dino"), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(batch)
        value = fresh("jepa").loss(batch)[1]["vicreg_cov"]
    assert model.regulariser.centre.dtype == torch.float32
    assert value != torch.tensor(value).bfloat16().item()
