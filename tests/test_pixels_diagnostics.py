"""Each warning rule fires on a tensor crafted for it and stays silent on a healthy one (MET-4)."""

import math

import pytest
import torch
from tiny_pixels import SHAPES, tiny_batch, tiny_pixels
from torch import nn

from hjepa_lib.figures.style import FigureError
from hjepa_lib.pixels import figures as models
from hjepa_lib.pixels.diagnostics import (
    LIMITS,
    check_alignment,
    check_curve,
    check_gradients,
    check_latents,
    check_projector,
    check_relu,
    check_terms,
    collapse_ratio,
    diagnose,
    gradient_norms,
    health,
    max_correlation,
    weighted_terms,
)
from hjepa_lib.pixels.measures import latent_errors
from hjepa_lib.pixels.models import build_pixel_model

HEALTHY = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))


def rules(findings):
    return {finding.rule for finding in findings}


def latents(**change):
    """A healthy batch with one property spoilt."""
    z = HEALTHY.clone()
    for name, value in change.items():
        if name == "dead":
            z[:, :value] = 1.0
        elif name == "scale":
            z = z * value
        elif name == "shift":
            z = z + value
        elif name == "copy":
            z[:, 1] = z[:, 0] * value
    return z


class Part(nn.Module):
    """One trained part whose gradient has the given norm."""

    def __init__(self, norm):
        super().__init__()
        self.layer = nn.Linear(4, 1, bias=False)
        if norm is not None:
            self.layer.weight.grad = torch.full((1, 4), norm / 2)


FIRES = {
    "dominant_term": lambda: check_terms({"prediction": 0.1, "sim": 0.9}),
    "vanished_term": lambda: check_terms({"prediction": 0.5, "sim": 0.5, "vicreg_cov": 1e-7}),
    "large_projector": lambda: check_projector(nn.Linear(2, 2).requires_grad_(False).apply(
        lambda layer: layer.weight.fill_(101))),
    "dead_relu": lambda: check_relu(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])),
    "dead_features": lambda: check_latents(latents(dead=2)),
    "saturated": lambda: check_latents(latents(shift=11.0)),
    "correlated": lambda: check_latents(latents(copy=-1.0)),
    "small_spread": lambda: check_latents(latents(scale=0.005)),
    "large_norm": lambda: check_latents(latents(scale=40.0)),
    "small_gradient": lambda: check_gradients(Part(1e-7)),
    "large_gradient": lambda: check_gradients(Part(11.0)),
    "plateau": lambda: check_curve([1.0] * 5 + [0.5] * 20),
    "aligned": lambda: check_alignment(HEALTHY, HEALTHY + 0.01),
    "collapsed": lambda: check_latents(latents(dead=9)),
}  # fmt: skip


@pytest.mark.parametrize("rule", LIMITS)
def test_every_rule_fires(rule):
    found = [finding for finding in FIRES[rule]() if finding.rule == rule]
    assert found and found[0].limit == LIMITS[rule]
    assert rule in str(found[0])


def test_nothing_fires_on_healthy_input():
    assert check_latents(HEALTHY) == []
    assert check_terms({"prediction": 0.4, "vicreg_std": 0.3, "vicreg_cov": 0.3}) == []
    assert check_projector(nn.Linear(4, 4)) == [] == check_projector(nn.Identity())
    assert check_relu(HEALTHY.relu()) == []
    assert check_gradients(Part(1.0)) == []
    assert check_curve([1 / n for n in range(1, 40)]) == []
    assert check_curve([0.5] * 19) == []
    assert check_alignment(HEALTHY, HEALTHY.flip(0)) == []


def test_a_nan_fires_and_a_missing_gradient_counts_as_zero():
    assert "saturated" in rules(check_latents(torch.full((8, 4), math.nan)))
    assert rules(check_gradients(Part(None))) == {"small_gradient"}


def test_collapse_ratio_and_correlation_of_known_matrices():
    z = HEALTHY.clone()
    z[:, :4] *= 0.01  # variance 1e-4
    assert collapse_ratio(z) == 0.25
    assert max_correlation(torch.zeros(8, 4)) == 0
    x = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    assert max_correlation(x) == pytest.approx(1)


def test_health_runs_from_collapse_to_white_noise_and_looks_at_the_last_five():
    wide = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1))
    assert health([wide]) > 0.95
    collapsed = torch.ones(64, 32) + 1e-9 * torch.randn(64, 32)
    assert health([collapsed] * 2) < 0.4
    assert health([collapsed] * 9 + [wide] * 5) == health([wide])
    with pytest.raises(ValueError, match="at least one batch"):
        health([])


@pytest.mark.parametrize("name", ["enc_dec", "enc_dec_jepa", "jepa"])
def test_a_model_is_diagnosed_without_being_changed(name):
    torch.manual_seed(0)
    model = build_pixel_model(name, tiny_pixels(), SHAPES).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = diagnose(model, tiny_batch(), losses=[0.5] * 20)
    assert "plateau" in rules(found)
    assert len({(f.rule, f.where) for f in found}) == len(found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_a_collapsed_model_is_diagnosed():
    """F13: cosine to the target is 1 under collapse, so the spread must be reported beside it."""
    torch.manual_seed(0)
    model = build_pixel_model("jepa", tiny_pixels(), SHAPES)
    with torch.no_grad():
        for encoder in (model.encoder, model.target_encoder):
            encoder.head[-1].weight.zero_()
            encoder.head[-1].bias.fill_(1.0)
        model.predictor.net[-1].weight.zero_()
        model.predictor.net[-1].bias.fill_(1.0)
    found = rules(diagnose(model, tiny_batch()))
    assert {"aligned", "collapsed", "dead_features", "small_spread"} <= found


def test_dead_relus_of_a_model_are_named():
    torch.manual_seed(0)
    model = build_pixel_model("enc_dec", tiny_pixels(), SHAPES)
    with torch.no_grad():
        model.encoder.convs[0].bias.fill_(-100.0)
    found = [f for f in diagnose(model, tiny_batch()) if f.rule == "dead_relu"]
    assert "encoder.convs.1" in {f.where for f in found}


@pytest.mark.parametrize("kind", ["vicreg", "barlow_twins", "dino"])
def test_the_weighted_terms_are_the_loss(kind):
    torch.manual_seed(0)
    config = tiny_pixels(auxiliary__kind=kind, auxiliary__weight=0.3)
    model = build_pixel_model("jepa", config, SHAPES)
    loss, terms = model.loss(tiny_batch())
    assert sum(weighted_terms(model, terms).values()) == pytest.approx(loss.item(), rel=1e-5)


# --- variants and their figures -------------------------------------------------------------------
def test_gradient_norms_show_who_learns():
    torch.manual_seed(0)
    model = build_pixel_model("jepa", tiny_pixels(), SHAPES)
    norms = gradient_norms(model, tiny_batch())
    assert set(norms) == {"encoder", "action", "predictor"} and min(norms.values()) > 0
    model.requires_grad_(False)
    model.predictor.requires_grad_(True)
    assert set(gradient_norms(model, tiny_batch())) == {"predictor"}


def test_relative_latent_errors_of_a_perfect_and_a_lazy_model():
    """1 is what always guessing the mean costs; standing still is its own baseline."""
    torch.manual_seed(0)
    model = build_pixel_model("jepa", tiny_pixels(jepa__target="none"), SHAPES).eval()
    batch = tiny_batch(40)
    target = model.encode(batch.next_state)
    model.imagine = lambda latent, action: target
    assert latent_errors(model, batch).predicted == 0
    model.imagine = lambda latent, action: target.mean(dim=0).expand_as(target)
    found = latent_errors(model, batch)
    assert found.predicted == pytest.approx(1) and found.stay > 0
    random = build_pixel_model("random", tiny_pixels(), SHAPES).eval()
    assert math.isnan(latent_errors(random, batch).predicted)


def test_figures_of_training_and_gradient():
    rows = [{"step": s, "loss": 1 / s, "validation_loss": 2 / s} for s in (1, 2, 3)]
    assert len(models.training_curves({"jepa": [rows, rows], "enc_dec": [rows]}).axes) == 2
    with pytest.raises(FigureError, match="jepa have no validation loss"):
        models.training_curves({"jepa": [[{"step": 1, "loss": 1.0}]]})
    figure = models.gradient_flow({"a": {"encoder": 0.0, "predictor": 1.5}, "b": {"encoder": 2.0}})
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["none", "1.5", "2", ""]
