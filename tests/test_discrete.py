"""Discrete level-2 latents: distributions in closed form, gradients, planning, storage."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from tiny import digest, loose_config, make_agent, make_job, make_level2, seeded, tiny_config

from hjepa_lib.config import ConfigError
from hjepa_lib.evaluation.openloop import draw_windows, level2_errors
from hjepa_lib.models import checkpoint
from hjepa_lib.models.level2 import kl_divergence, kl_loss
from hjepa_lib.models.stochastic import COMMIT, UNIFORM, Categorical, Rounded
from hjepa_lib.planning.agent import load_agent
from hjepa_lib.training import level2 as level2_training

KINDS = ("categorical", "fsq")
METHODS = ("mppi", "cem", "gradient")
DRAWS = 40_000


def level2_of(latent, **changes):
    return make_level2(loose_config(level2__latent=latent, **changes))


def categorical(seed, shape=(5, 4, 3)):
    return Categorical(torch.randn(shape, generator=seeded(seed)).log_softmax(-1).requires_grad_())


def rounded(mean, std, top):
    mean, std, top = (torch.as_tensor(part).float() for part in (mean, std, top))
    return Rounded(mean, std.expand_as(mean), top.expand_as(mean))


def masses(mean, std, top):
    """(top + 1,) probability of each level: the normal's mass between the midpoints."""
    edges = np.concatenate([[-np.inf], np.arange(top) + 0.5, [np.inf]])
    return np.diff(norm.cdf(edges, mean, std))


# --- categorical ------------------------------------------------------------------------------
def test_categorical_kl_equals_the_reference_and_is_zero_for_equal_ones():
    q, p = categorical(0), categorical(1)
    reference = torch.distributions.Categorical
    wanted = torch.distributions.kl_divergence(
        reference(logits=q.logp), reference(logits=p.logp)
    )  # (5, 4): one number per group
    torch.testing.assert_close(kl_divergence(q, p), wanted)
    assert kl_divergence(q, q).abs().max() < 1e-6
    assert (kl_divergence(q, p) >= 0).all()


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_free_nats_and_balance_serve_categoricals_too(balance):
    plain_q, plain_p = categorical(0), categorical(1)
    plain = kl_divergence(plain_q, plain_p).mean()
    plain.backward()
    q, p = categorical(0), categorical(1)
    split = kl_loss(q, p, 0.0, balance)
    split.backward()
    torch.testing.assert_close(split, plain)
    to_prior, to_posterior = (balance, 1 - balance) if balance else (1, 1)
    torch.testing.assert_close(p.logp.grad, to_prior * plain_p.logp.grad)
    torch.testing.assert_close(q.logp.grad, to_posterior * plain_q.logp.grad)
    assert kl_loss(q, p, 50.0, balance) == 50


def test_every_class_keeps_its_share_of_the_uniform_mix():
    kind = level2_of("categorical", level2__classes=4).rssm.kind
    found = kind.prior(torch.tensor([[50.0, 0, 0, 0] * 4])).logp.exp()
    assert found.shape == (1, 4, 4)
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 4))
    wanted = torch.tensor([1 - UNIFORM + UNIFORM / 4, *[UNIFORM / 4] * 3])
    torch.testing.assert_close(found[0, 0], wanted)


def test_categorical_draws_are_exact_samples_of_normal_noise():
    """Standard normal noise becomes Gumbel noise: classes come out as often as they should."""
    distribution = Categorical(torch.tensor([[0.6, 0.3, 0.09, 0.01], [0.25] * 4]).log())
    many = Categorical(distribution.logp.expand(DRAWS, 2, 4))
    z = many.draw(torch.randn(DRAWS, 8, generator=seeded())).unflatten(-1, (2, 4))
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()
    share = distribution.logp.exp()
    error = (share * (1 - share) / DRAWS).sqrt()
    assert ((z.mean(0) - share).abs() < 4 * error).all()
    assert torch.equal(distribution.draw(None)[:4], torch.tensor([1.0, 0, 0, 0]))
    far = distribution.draw(torch.tensor([-99.0, 0, 0, 99.0, 1e6, -1e6, 0, 0]))
    assert torch.equal(far, torch.tensor([0.0, 0, 0, 1, 1, 0, 0, 0]))


# --- finite scalar quantisation ---------------------------------------------------------------
@pytest.mark.parametrize(("mean", "std", "top"), [(1.3, 0.7, 4), (0.0, 0.1, 1), (6.9, 2.5, 7)])
def test_fsq_prior_is_a_rounded_normal(mean, std, top):
    """-log p of every code equals the normal's mass around it; draws come out that often."""
    codes = rounded(torch.arange(top + 1.0), 0.0, top)
    found = kl_divergence(codes, rounded(torch.full((top + 1,), mean), std, top))
    np.testing.assert_allclose((-found).exp().numpy(), masses(mean, std, top), atol=1e-6)
    many = rounded(torch.full((DRAWS,), mean), std, top)
    z = many.draw(torch.randn(DRAWS, generator=seeded()))
    drawn = torch.bincount(((z + 1) / 2 * top).round().long(), minlength=top + 1) / DRAWS
    share = masses(mean, std, top)
    assert (np.abs(drawn.numpy() - share) <= 4 * np.sqrt(share * (1 - share) / DRAWS) + 1e-6).all()


def test_fsq_kl_is_zero_when_the_prior_is_sure_of_the_code():
    codes = rounded([0.0, 2.0, 4.0], 0.0, 4)
    assert kl_divergence(codes, rounded([0.0, 2.0, 4.0], 0.05, 4)).abs().max() < 1e-6
    wrong = rounded(torch.tensor([4.0, 0.0, 0.0]).requires_grad_(), 1e-6, 4)
    found = kl_divergence(codes, wrong)
    assert (found > 1e6).all()
    found.sum().backward()
    assert torch.isfinite(found).all()


def test_fsq_levels_repeat_over_the_dimensions_and_bound_the_code():
    kind = level2_of("fsq", level2__levels=[3, 2]).rssm.kind
    assert kind.top.tolist() == [2, 1, 2, 1]
    raw = 10 * torch.randn(500, 4, generator=seeded())
    z = kind.posterior(raw).draw(torch.randn(500, 4))  # a code has no spread
    assert torch.equal(z, kind.posterior(raw).draw(None))
    assert [sorted(set(column.tolist())) for column in z.T] == [[-1, 0, 1], [-1, 1]] * 2
    prior = kind.prior(10 * torch.randn(500, 8, generator=seeded()))
    assert (prior.std >= 0.1).all()
    assert ((prior.mean >= 0) & (prior.mean <= kind.top)).all()
    assert prior.draw(100 * torch.randn(500, 4)).abs().max() <= 1


def test_rounding_is_straight_through():
    """The gradient of a draw is that of the same draw without rounding, for mean and noise."""
    mean, noise = torch.tensor([1.3, 2.2, 0.4]), torch.tensor([0.5, -0.2, 0.1])
    mean.requires_grad_(), noise.requires_grad_()
    weight = torch.tensor([1.0, -2.0, 3.0])
    (rounded(mean, 0.5, 4).draw(noise) * weight).sum().backward()
    torch.testing.assert_close(mean.grad, weight * 2 / 4)
    torch.testing.assert_close(noise.grad, weight * 2 / 4 * 0.5)


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_code_and_prior_pull_on_each_other(balance):
    """The value is -log p(code); the code follows the normal's density weakly; shares as above."""

    def pair():
        place, mean = torch.tensor([1.1, 2.9]), torch.tensor([2.0, 2.5])
        place.requires_grad_(), mean.requires_grad_()
        return rounded(place, 0.0, 4), rounded(mean, 0.6, 4)

    q, p = pair()
    kl_divergence(q, p).mean().backward()
    assert (p.mean.grad * torch.tensor([1, -1]) > 0).all()  # towards the codes 1 and 3
    wanted = COMMIT * (q.mean - p.mean).detach() / 0.6**2 / 2
    torch.testing.assert_close(q.mean.grad, wanted)
    split_q, split_p = pair()
    loss = kl_loss(split_q, split_p, 0.0, balance)
    torch.testing.assert_close(loss, kl_divergence(q, p).mean())
    loss.backward()
    to_prior, to_posterior = (balance, 1 - balance) if balance else (1, 1)
    torch.testing.assert_close(split_p.mean.grad, to_prior * p.mean.grad)
    torch.testing.assert_close(split_q.mean.grad, to_posterior * q.mean.grad)


# --- inside the RSSM --------------------------------------------------------------------------
@pytest.mark.parametrize("latent", KINDS)
@pytest.mark.parametrize("actions", ["none", "concat", "only", "learned"])
def test_verbs_equal_a_manual_loop(latent, actions):
    """Posterior z in observe, prior z in imagine; z feeds the cell unless actions=only."""
    rssm = level2_of(latent, level2__actions=actions, level2__classes=3).rssm
    width = 12 if latent == "categorical" else 4
    assert rssm.z_width == width
    latents, chunks = torch.randn(3, 4, 16), torch.randn(3, 3, 4, 2)
    used = None if actions == "none" else chunks
    macros = rssm.macro(chunks)
    noise = torch.randn(3, 3, width)
    observed = rssm.observe(latents, used, seeded(7))
    imagined = rssm.imagine(rssm.initial(latents[:, 0]), 3, macros, noise)
    generator = seeded(7)
    for found, looks_ahead in ((observed.predictions[:, 1:], True), (imagined.predictions, False)):
        h, z = rssm.project(latents[:, 0]), torch.zeros(3, width)
        for i in range(3):
            parts = ([] if actions == "only" else [z]) + ([] if macros is None else [macros[:, i]])
            h = rssm.cell(torch.cat(parts, -1), h)
            prior = rssm.kind.prior(rssm.prior_head(h))
            z = prior.draw(noise[:, i])
            if looks_ahead:
                raw = rssm.posterior_head(torch.cat([latents[:, i + 1], h], -1))
                z = rssm.kind.posterior(raw).draw(torch.randn(3, width, generator=generator))
                for mine, theirs in zip(prior, observed.prior, strict=True):
                    torch.testing.assert_close(mine, theirs[:, i])
            torch.testing.assert_close(found[:, i], rssm.decoder(torch.cat([h, z], -1)))


@pytest.mark.parametrize("latent", KINDS)
def test_gradient_reaches_the_posterior_and_the_kl_the_prior(latent):
    """F1, F3: the prediction error alone trains the posterior, the KL trains the prior head."""
    rssm = level2_of(latent).rssm
    latents = torch.randn(6, 4, 16, generator=seeded(5))
    observed = rssm.observe(latents, None, seeded())
    (observed.predictions - latents).square().mean().backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for p in rssm.posterior_head.parameters())
    assert rssm.prior_head.weight.grad is None
    rssm.loss(observed).backward()
    assert (rssm.prior_head.weight.grad != 0).any(-1).all()


@pytest.mark.parametrize("latent", KINDS)
def test_training_changes_every_tensor_and_is_repeatable(latent, monkeypatch):
    """F1: all of level 2 is optimised; bits of a run depend on its seed only."""
    monkeypatch.setattr(level2_training, "VALIDATION_WINDOWS", 8)
    config = tiny_config(level2__latent=latent)
    prints = []
    for other in (1, 2):
        job = make_job("level2", config)
        before = {name: value.clone() for name, value in job.module.named_parameters()}
        torch.manual_seed(other)
        reports = list(job.fit)
        assert all(math.isfinite(r.loss) for r in reports)
        assert {"sim", "kl", "prior_sim"} <= reports[-1].validation.keys()
        for name, value in job.module.named_parameters():
            assert not torch.equal(value, before[name]), name
        prints.append(digest([r.loss for r in reports], job.whole))
    assert prints[0] == prints[1]


@pytest.mark.parametrize("latent", KINDS)
def test_imagined_moves_are_left_or_right_but_not_the_middle(latent):
    """Data jump by +v or -v at random: draws of the prior do so too, the code tells which.

    One dimension (two levels): several would share the choice and disagree when drawn.
    """
    rssm = level2_of(latent, level2__z_dim=1, level2__levels=[2]).rssm
    generator, way = seeded(1), torch.ones(16)
    optimiser = torch.optim.Adam(rssm.parameters(), lr=5e-3)

    def jumps(batch):
        side = 2.0 * torch.randint(2, (batch, 1, 1), generator=generator) - 1
        start = 0.3 * torch.randn(batch, 1, 16, generator=generator)
        return torch.cat([start, start + side * way], 1)  # (B, 2, D)

    for _ in range(200):
        latents = jumps(64)
        observed = rssm.observe(latents, None, generator)
        loss = (observed.predictions - latents).square().mean() + 0.02 * rssm.loss(observed)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    latents = jumps(500)
    noise = torch.randn(500, 1, rssm.z_width, generator=generator)
    with torch.no_grad():
        observed = rssm.observe(latents, None, generator)
        imagined = rssm.imagine(rssm.initial(latents[:, 0]), 1, None, noise).predictions[:, 0]
    error = (observed.predictions - latents)[:, 1].square().mean(-1)
    moved = ((imagined - latents[:, 0]) @ way / 16).abs()  # 1 for a clean jump, 0 for the middle
    assert error.mean() < 0.1
    assert (moved > 0.5).float().mean() > 0.9
    right = ((imagined - latents[:, 0]) @ way > 0).float().mean()
    assert 0.2 < right < 0.8


# --- planning and storage ---------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("latent", KINDS)
def test_level2_changes_the_executed_actions(latent, method):
    """F2: every optimiser searches the noise of the prior; the controls execute something else."""
    agent = make_agent(loose_config(level2__latent=latent, level2__classes=3))
    latents, goal = torch.randn(2, 6, 16, generator=seeded(3))
    top = dataclasses.replace(agent.planning.hierarchy.level2, method=method)
    plans = {}
    for control in ("none", "zero", "shuffle", "perturb"):
        hierarchy = dataclasses.replace(agent.planning.hierarchy, control=control, level2=top)
        planner = agent.planner("l1+l2", dataclasses.replace(agent.planning, hierarchy=hierarchy))
        plans[control] = planner.plan(latents, goal, 0)
    for control in ("zero", "shuffle", "perturb"):
        assert not torch.equal(plans[control].actions, plans["none"].actions), control
        assert not torch.equal(plans[control].subgoal, plans["none"].subgoal), control


@pytest.mark.parametrize("latent", KINDS)
def test_noise_reaches_more_than_one_code_within_the_default_box(latent):
    """Noise inside `planning.hierarchy.clip` names different z; no noise names the likeliest."""
    config = tiny_config(level2__latent=latent)
    level = make_agent(config).planner("l1+l2").level2
    start = torch.randn(1, 16, generator=seeded(1)).expand(200, 16)
    noise = level.project(torch.randn(200, 1, level.plan_dim, generator=seeded(2)))
    assert noise.abs().max() <= config.planning.hierarchy.clip
    z = level.imagine_states(start, noise).z[:, 0]
    assert len(z.unique(dim=0)) > 10
    mode = level.model.imagine(start[:1], 1).z[:, 0]
    assert torch.equal(level.imagine_states(start[:1], 0 * noise[:1]).z[:, 0], mode)


@pytest.mark.parametrize("latent", KINDS)
def test_a_reloaded_agent_plans_the_same(latent, tmp_path):
    """EB4, EB7: the checkpoint alone rebuilds the kind; another one is refused."""
    config = loose_config(level2__latent=latent, level2__levels=[3, 4])
    agent = make_agent(config)
    checkpoint.save_level1(tmp_path / "l1", agent.level1, agent.normaliser)
    checkpoint.save_probe(tmp_path / "l1", agent.probe)
    save = (agent.level2, agent.level1.latent_dim, agent.reach, agent.box)
    checkpoint.save_level2(tmp_path / "l2", *save)
    planning = dataclasses.replace(config.planning, cost="latent")
    agent = dataclasses.replace(agent, planning=planning)
    loaded = load_agent(tmp_path / "l1", tmp_path / "l2", planning, agent.seed, "fp32", "cpu")
    assert digest(loaded.level2) == digest(agent.level2)
    frames = torch.randint(0, 256, (2, 2, 65, 65), dtype=torch.uint8, generator=seeded())
    found, wanted = loaded.plan(*frames, "l1+l2")[0], agent.plan(*frames, "l1+l2")[0]
    np.testing.assert_array_equal(found, wanted)
    other = level2_of("gaussian")
    with pytest.raises(checkpoint.FileError, match="was made for another config"):
        checkpoint.load_weights(tmp_path / "l2" / "model.safetensors", other)


@pytest.mark.parametrize("latent", KINDS)
def test_open_loop_errors_and_conditioning_work(latent, store):
    """What reads z elsewhere has its width: conditioning, and the errors of both kinds of z."""
    config = tiny_config(
        level2__latent=latent, level2__train="joint", level2__conditioning=True
    )  # fmt: skip
    agent = make_agent(config)
    assert agent.level2.condition.in_features == agent.level2.rssm.z_width
    batch = draw_windows(store, 8, 10)
    steps, posterior, prior = level2_errors(agent.level2, agent.level1, agent.probe, batch)
    assert steps.tolist() == [4, 8]
    assert posterior.shape == prior.shape == (2, len(batch.positions))
    assert not np.array_equal(posterior, prior)
    latents, goal = torch.randn(2, 2, 16)
    assert torch.isfinite(agent.planner("l1+l2").plan(latents, goal, 0).actions).all()


def test_impossible_settings_are_refused():
    for override, message in (
        ("level2.latent=vq", "latent must be one of gaussian, categorical, fsq; got 'vq'"),
        ("level2.classes=1", r"classes must lie in \[2, inf\)"),
        ("level2.levels=5+1", r"levels must lie in \[2, 256\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config().override(override)
