import pytest
import torch
from tiny import loose_config, make_level2, seeded, tiny_config, tiny_normaliser
from torch.nn import functional as F

from hjepa_lib.data.windows import Windows
from hjepa_lib.models.level2 import HJepa
from hjepa_lib.models.objectives import loss_terms, weighted_sum
from hjepa_lib.models.stochastic import UNIFORM, Categorical, Gaussian
from hjepa_lib.worlds.layout import render

KINDS = ("gaussian", "categorical")
ACTIONS = ("none", "concat", "only", "learned")
DRAWS = 40_000


def level2_of(latent="gaussian", actions="none", **changes):
    return make_level2(loose_config(level2__latent=latent, level2__actions=actions, **changes))


def inputs(batch=3):
    """Latents (B, 13, 16) and normalised actions (B, 12, 2) of three macro steps."""
    latents = torch.randn(batch, 13, 16, generator=seeded(5))
    return latents, torch.randn(batch, 12, 2, generator=seeded(6))


def gaussian(seed):
    mean, std = torch.randn(2, 5, 4, generator=seeded(seed))
    return Gaussian(mean.requires_grad_(), 0.1 + std.abs())


def categorical(seed):
    raw = torch.randn(5, 4, 3, generator=seeded(seed))
    return Categorical(raw.log_softmax(-1).requires_grad_())


@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (gaussian, lambda one: torch.distributions.Normal(*one)),
        (categorical, lambda one: torch.distributions.Categorical(logits=one.logp)),
    ],
)
def test_kl_equals_the_reference_and_is_zero_for_equal_ones(make, reference):
    q, p = make(0), make(1)
    wanted = torch.distributions.kl_divergence(reference(q), reference(p))
    torch.testing.assert_close(q.nats(p), wanted, atol=1e-6, rtol=1e-5)
    assert q.nats(q).abs().max() < 1e-6


def test_every_class_keeps_its_share_of_the_uniform_mix():
    kind = level2_of("categorical", level2__classes=4).kind
    found = kind.read(torch.tensor([[50.0, 0, 0, 0] * 4])).logp.exp()
    assert found.shape == (1, 4, 4)
    wanted = torch.tensor([1 - UNIFORM + UNIFORM / 4, *[UNIFORM / 4] * 3])
    torch.testing.assert_close(found[0, 0], wanted)


def test_categorical_draws_are_exact_samples_of_normal_noise():
    distribution = Categorical(torch.tensor([[0.6, 0.3, 0.09, 0.01], [0.25] * 4]).log())
    many = Categorical(distribution.logp.expand(DRAWS, 2, 4))
    z = many.draw(torch.randn(DRAWS, 8, generator=seeded())).unflatten(-1, (2, 4))
    assert ((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all()
    share = distribution.logp.exp()
    assert ((z.mean(0) - share).abs() < 4 * (share * (1 - share) / DRAWS).sqrt()).all()
    assert torch.equal(distribution.draw(None)[:4], torch.tensor([1.0, 0, 0, 0]))
    far = distribution.draw(torch.tensor([-99.0, 0, 0, 99.0, 1e6, -1e6, 0, 0]))
    assert torch.equal(far, torch.tensor([0.0, 0, 0, 1, 1, 0, 0, 0]))


def test_std_has_a_lower_bound():
    """Architectures 2: std = softplus(raw) + min_std."""
    raw = torch.tensor([[0.5, -1.0, 0.0, 2.0, -80.0, -3.0, 0.0, 4.0]])
    found = level2_of(level2__min_std=0.25).kind.read(raw)
    assert torch.equal(found.mean, raw[:, :4])
    torch.testing.assert_close(found.std, F.softplus(raw[:, 4:]) + 0.25)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize(
    ("latent", "state"), [("gaussian", 0), ("gaussian", 24), ("categorical", 0)]
)
def test_verbs_equal_a_loop_by_hand(latent, state, actions):
    """F5."""
    model = level2_of(latent, actions, level2__state_dim=state, level2__classes=3)
    width = 12 if latent == "categorical" else 4
    latents, steps = inputs()
    chunks, macro_latents = steps.unflatten(1, (3, 4)), latents[:, ::4]
    noise = torch.randn(3, 3, width, generator=seeded(2))
    more = torch.randn(3, 3, 18, generator=seeded(8)).split([16, 2], -1)
    given = (torch.cat(parts, 1) for parts in zip((latents, steps), more, strict=True))
    rollout, observed = model.observe(*given, seeded(7))
    assert torch.equal(rollout.encodings, macro_latents)
    assert torch.equal(rollout.actions, chunks.flatten(2))
    assert torch.equal(rollout.predictions[0], observed.predictions)
    torch.testing.assert_close(observed.predictions[:, 0], latents[:, 0])
    imagined = model.imagine(latents[:, 0], 3, model.macro(chunks), noise)
    mode = model.imagine(latents[:, 0], 3, model.macro(chunks))
    generator = seeded(7)
    for looks_ahead, found, found_z in (
        (True, observed.predictions[:, 1:], observed.z),
        (False, imagined.predictions, imagined.z),
        (False, mode.predictions, mode.z),
    ):
        h, z = model.project(latents[:, 0]), torch.zeros(3, width)
        for i in range(3):
            macro = chunks[:, i].flatten(1)  # the actions of one macro step, side by side
            macro = model.macro_encoder(macro) if actions == "learned" else macro
            parts = {"none": [z], "only": [macro]}.get(actions, [z, macro])
            h = model.cell(torch.cat(parts, -1), h)
            prior = model.kind.read(model.prior_head(h))
            z = prior.draw(None if found is mode.predictions else noise[:, i])
            if looks_ahead:
                raw = model.posterior_head(torch.cat([macro_latents[:, i + 1], h], -1))
                posterior = model.kind.read(raw)
                z = posterior.draw(torch.randn(3, width, generator=generator))
                mine, theirs = [*prior, *posterior], [*observed.prior, *observed.posterior]
                for one, other in zip(mine, theirs, strict=True):
                    torch.testing.assert_close(one, other[:, i], atol=1e-5, rtol=1e-4)
            predicted = model.decoder(torch.cat([h, z], -1))
            torch.testing.assert_close(found_z[:, i], z, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found[:, i], predicted, atol=1e-5, rtol=1e-4)


def test_learned_codes_are_bounded():
    macro = level2_of(actions="learned").macro(inputs()[1].unflatten(1, (3, 4)))
    assert macro.shape == (3, 3, 3) and macro.mean(-1).abs().max() < 1e-5
    assert macro.square().mean(-1).max() <= 1 + 1e-5


@pytest.mark.parametrize("latent", KINDS)
def test_gradient_reaches_the_posterior_and_the_kl_the_prior(latent):
    """F1, F3."""
    model = level2_of(latent, level2__kl=1.0, level2__loss__sim=0.0)
    rollout, observed = model.observe(*inputs(6), seeded())
    (observed.predictions - rollout.encodings).square().mean().backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for p in model.posterior_head.parameters())
    assert model.prior_head.weight.grad is None
    total, terms = model.loss(rollout, observed)
    assert terms.keys() == {"kl"}  # what has no weight is not computed
    assert torch.equal(total, terms["kl"])
    total.backward()
    assert (model.prior_head.weight.grad != 0).any(-1).all()


def hjepa_of(**changes):
    config = tiny_config(level2__train="joint", **changes)
    torch.manual_seed(0)
    return HJepa(config, tiny_normaliser()), config


def batch_of(data, states):
    found = Windows(data, states).sample(3, seeded())
    return render(found.positions, found.layout), found.actions


def test_conditioning_reaches_the_state_also_one_step_at_a_time(data):
    """F11."""
    model, _ = hjepa_of(level2__conditioning=True)
    level1 = model.level1
    start, actions = torch.randn(2, 16), torch.randn(2, 4, 2)
    z = torch.randn(2, 1, 4)
    context, other = model.level2.context(z), model.level2.context(z + 1)
    layer = model.level2.condition
    wanted = (z[:, 0] @ layer.weight.T + layer.bias)[:, None].expand(2, 4, 2)
    torch.testing.assert_close(context, wanted)  # repeated over the macro step
    rolled = level1.rollout(start, actions, context=context)
    assert (rolled != level1.rollout(start, actions, context=other))[:, 1:].any(-1).all()
    latent = start
    for step in range(4):
        one = slice(step, step + 1)
        latent = level1.rollout(latent, actions[:, one], context=context[:, one])[:, 1]
        torch.testing.assert_close(latent, rolled[:, step + 1])
    frames, actions = batch_of(data, 9)
    layer.weight.data.zero_(), layer.bias.data.zero_()
    plain = model(frames, actions, seeded())[0].predictions
    layer.bias.data.fill_(1.0)
    assert (model(frames, actions, seeded())[0].predictions != plain)[:, :, 1:].any(-1).all()


def test_feedback_corrects_the_state_at_every_macro_boundary():
    """F11."""
    model, _ = hjepa_of(level2__feedback=True)
    level1, level2 = model.level1, model.level2
    start, actions = torch.randn(2, 16), torch.randn(2, 9, 2)
    rolled = level1.rollout(start, actions, feedback=level2.feedback)
    states = [start]
    for step in range(9):
        latent = states[-1]
        if step in (4, 8):
            latent = latent + level2.correct(torch.cat(states[-4:], -1))
        states.append(level1.rollout(latent, actions[:, [step]])[:, 1])
    torch.testing.assert_close(rolled, torch.stack(states, 1))
    plain = level1.rollout(start, actions)
    assert torch.equal(rolled[:, :5], plain[:, :5])
    assert (rolled != plain)[:, 5:].any(-1).all()


@pytest.mark.parametrize("steps", [0, 4])
def test_joint_loss_is_the_documented_sum(steps, data):
    """F5."""
    model, config = hjepa_of(
        level2__kl=1.3, level2__loss__idm=0.4, level2__loss__std=0.2, level1__rollout=steps
    )
    one, two, observed = model(*batch_of(data, 11), seeded())
    assert torch.equal(two.encodings, one.encodings[:, ::4])
    assert one.encodings.shape[1] == 9  # whole macro steps only, whatever is predicted
    assert one.predictions.shape == (1, 3, 1 + (steps or 8), 16)
    total, named = model.loss(one, two, observed)
    terms = loss_terms(one, config.level1.loss, model.level1.idm)
    terms2 = loss_terms(two, config.level2.loss, model.level2.idm)
    kl = observed.posterior.nats(observed.prior).mean()
    wanted = weighted_sum(terms, config.level1.loss) + weighted_sum(terms2, config.level2.loss)
    torch.testing.assert_close(total, wanted + 1.3 * kl)
    torch.testing.assert_close(named["l2/kl"], kl)
