"""Every loss term against a formula written independently, in NumPy and float64."""

import numpy as np
import pytest
import torch
from tiny import seeded
from torch import nn

from hjepa_lib.config import LossConfig
from hjepa_lib.models import objectives
from hjepa_lib.models.level1 import Rollout

TERMS = ("sim", "std", "std_t", "cov", "sim_t", "idm")


def rollout_of(steps=5):
    """Two members, seven windows, six dimensions."""
    generator = seeded()

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    encodings, targets = normal(7, steps, 6) * 0.4, normal(7, steps, 6)
    return Rollout(encodings, normal(2, 7, steps, 6), targets, normal(7, steps - 1, 2))


def head_of(dim=6):
    torch.manual_seed(3)
    return nn.Linear(2 * dim, 2)


def terms_of(rollout, form, head, static=0):
    return objectives.loss_terms(rollout, LossConfig(form=form), head, static)


def by_hand(rollout, form, head):
    """The table in objectives.py with explicit loops over the axes that each term pools."""
    z = rollout.encodings.double().numpy()
    predicted, targets = rollout.predictions.double().numpy(), rollout.targets.double().numpy()
    actions = rollout.actions.double().numpy()
    batch, steps, dim = z.shape
    ahead = range(1, predicted.shape[2])
    sim = np.mean(
        [(predicted[k, b, t] - targets[b, t]) ** 2 for k in range(len(predicted))
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
    """PL13: terms named with the axes they pool; a short roll-out meets the first targets."""
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
    moving = rollout._replace(encodings=rollout.encodings[..., 2:])
    rest, whole = by_hand(moving, form, head_of(4)), by_hand(rollout, form, head)
    wanted = rest | {name: whole[name] for name in ("sim", "idm")}
    assert {name: term.item() for name, term in found.items()} == pytest.approx(wanted, abs=1e-6)


def test_a_static_part_of_one_layout_is_its_spread():
    part, layouts = torch.randn(7, 5, 2, generator=seeded()), torch.zeros(7, dtype=torch.long)
    wanted = part.flatten(0, 1).var(0, correction=0).mean()
    torch.testing.assert_close(objectives.layout_identity(part, layouts), wanted)


def test_one_component_has_no_covariance():
    assert objectives.covariance(torch.randn(9, 1, generator=seeded())) == 0


@pytest.mark.parametrize("form", ["pldm", "eb_jepa"])
def test_collapsed_latents(form):
    """No similarity or covariance loss, the largest variance loss, and a finite gradient."""
    same = torch.full((7, 5, 6), 0.25, requires_grad=True)
    terms = terms_of(Rollout(same, same[None], same, torch.zeros(7, 4, 2)), form, None)
    assert terms["sim"] == terms["cov"] == terms["sim_t"] == terms["idm"] == 0
    for name in ("std", "std_t"):
        assert terms[name].item() == pytest.approx(0.99, abs=1e-6)  # 1 - sqrt(1e-4)
    objectives.weighted_sum(terms, LossConfig(std_t=1.0)).backward()
    assert torch.isfinite(same.grad).all()


def test_windows_too_short_for_a_variance_over_time():
    """Two states leave one predicted state, whose variance is undefined: the term is 0, not NaN."""
    terms = terms_of(rollout_of(steps=2), "pldm", head_of())
    assert terms["std_t"] == 0
    assert all(torch.isfinite(value) for value in terms.values())


def test_weighted_sum_is_linear_in_every_coefficient():
    """PL7: each of the six coefficients multiplies its own term."""
    terms = terms_of(rollout_of(), "eb_jepa", head_of())
    every = LossConfig(sim=1, std=2, std_t=3, cov=4, sim_t=5, idm=6)
    wanted = sum(i * terms[name].item() for i, name in enumerate(TERMS, start=1))
    assert objectives.weighted_sum(terms, every).item() == pytest.approx(wanted, rel=1e-6)
