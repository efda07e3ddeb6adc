"""Level 2's recurrent state-space model: distributions, verbs, time grid, macro-actions."""

import pytest
import torch
from tiny import make_level2, seeded, tiny_config
from torch.nn import functional as F

from hjepa_lib.models.level2 import State, kl_divergence, kl_loss
from hjepa_lib.models.stochastic import Gaussian

ACTIONS = ("none", "concat", "only", "learned")


def rssm_of(actions="none", **changes):
    config = tiny_config(level2__actions=actions, **changes)
    return make_level2(config).rssm


def inputs(batch=3, states=4, seed=5):
    """Latents (B, T2, 16) and normalised actions (B, T2-1, 4, 2)."""
    latents = torch.randn(batch, states, 16, generator=seeded(seed))
    return latents, torch.randn(batch, states - 1, 4, 2, generator=seeded(seed + 1))


def gaussian(seed, shape=(5, 4)):
    generator = seeded(seed)
    mean = torch.randn(shape, generator=generator)
    return Gaussian(mean.requires_grad_(), (0.1 + torch.rand(shape, generator=generator)))


# --- KL ---------------------------------------------------------------------------------------
def test_kl_equals_the_reference_and_is_zero_for_equal_normals():
    q, p = gaussian(0), gaussian(1)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(*q), normal(*p))
    torch.testing.assert_close(kl_divergence(q, p), wanted, atol=1e-6, rtol=1e-5)
    assert kl_divergence(q, q).abs().max() < 1e-6
    assert (kl_divergence(q, p) >= 0).all()
    torch.testing.assert_close(kl_loss(q, p, 0.0, 0.0), wanted.mean())


def test_free_nats_are_a_floor_without_gradient():
    """Below the floor, per sample and averaged over dims, the KL is `free_nats`, without pull."""
    q, p = gaussian(0), gaussian(1)
    per_sample = kl_divergence(q, p).mean(-1).detach()
    floor = per_sample.median().item()
    loss = kl_loss(q, p, floor, 0.0)
    torch.testing.assert_close(loss, per_sample.clamp(min=floor).mean())
    loss.backward()
    free = per_sample < floor
    assert free.any()
    assert (~free).any()
    assert (q.mean.grad[free] == 0).all()
    assert (q.mean.grad[~free] != 0).all()


@pytest.mark.parametrize("balance", [0.3, 0.8, 1.0])
def test_kl_balance_splits_the_gradient_and_keeps_the_value(balance):
    """b of the gradient goes to the prior, 1 - b to the posterior; the number stays the KL."""
    plain_q, plain_p = gaussian(0), gaussian(1)
    plain = kl_loss(plain_q, plain_p, 0.0, 0.0)
    plain.backward()
    q, p = gaussian(0), gaussian(1)
    split = kl_loss(q, p, 0.0, balance)
    split.backward()
    torch.testing.assert_close(split, plain)
    torch.testing.assert_close(p.mean.grad, balance * plain_p.mean.grad)
    torch.testing.assert_close(q.mean.grad, (1 - balance) * plain_q.mean.grad)


def test_std_has_a_lower_bound():
    """Architectures 2: std = softplus(raw) + min_std, never below."""
    rssm = rssm_of(level2__min_std=0.25)
    raw = torch.tensor([[0.5, -1.0, 0.0, 2.0, -80.0, -3.0, 0.0, 4.0]])
    found = rssm.kind.prior(raw)
    assert torch.equal(found.mean, raw[:, :4])
    torch.testing.assert_close(found.std, F.softplus(raw[:, 4:]) + 0.25)
    latents, _ = inputs()
    observed = rssm.observe(50 * latents, None, seeded())
    assert (observed.prior.std >= 0.25).all()
    assert (observed.posterior.std >= 0.25).all()


# --- verbs ------------------------------------------------------------------------------------
def manual_gru(cell, x, h):
    gates_x, gates_h = x @ cell.weight_ih.T + cell.bias_ih, h @ cell.weight_hh.T + cell.bias_hh
    (rx, ux, nx), (rh, uh, nh) = gates_x.chunk(3, -1), gates_h.chunk(3, -1)
    reset, update = torch.sigmoid(rx + rh), torch.sigmoid(ux + uh)
    return (1 - update) * torch.tanh(nx + reset * nh) + update * h


def manual_mlp(net, x):
    for layer in net:
        x = x @ layer.weight.T + layer.bias if isinstance(layer, torch.nn.Linear) else x.relu()
    return x


def manual_macro(rssm, actions):
    """(B, step_skip, A) -> what the cell is fed besides z."""
    flat = actions.reshape(len(actions), -1)
    if rssm.config.actions != "learned":
        return flat
    code = manual_mlp(rssm.macro_encoder[0], flat)
    return F.layer_norm(code, code.shape[-1:], *rssm.macro_encoder[1].parameters())


def step_by_hand(rssm, h, z, macro):
    parts = [] if rssm.config.actions == "only" else [z]
    parts += [] if macro is None else [macro]
    h = manual_gru(rssm.cell, torch.cat(parts, -1), h)
    raw = h @ rssm.prior_head.weight.T + rssm.prior_head.bias
    return h, raw[:, :4], F.softplus(raw[:, 4:]) + rssm.config.min_std


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("state", [0, 24])
def test_observe_equals_a_manual_loop(actions, state):
    """h_0 = (projected) first encoding, z_0 = 0; posterior from [next encoding, h]."""
    rssm = rssm_of(actions, level2__state_dim=state)
    latents, chunks = inputs()
    observed = rssm.observe(latents, None if actions == "none" else chunks, seeded(7))
    generator = seeded(7)
    h, z = rssm.project(latents[:, 0]), torch.zeros(3, 4)
    assert h.shape == (3, state or 16)
    torch.testing.assert_close(observed.predictions[:, 0], latents[:, 0])
    for i in range(3):
        macro = None if actions == "none" else manual_macro(rssm, chunks[:, i])
        h, mean, std = step_by_hand(rssm, h, z, macro)
        raw = manual_mlp(rssm.posterior_head, torch.cat([latents[:, i + 1], h], -1))
        q_mean, q_std = raw[:, :4], F.softplus(raw[:, 4:]) + rssm.config.min_std
        z = q_mean + q_std * torch.randn(3, 4, generator=generator)
        predicted = manual_mlp(rssm.decoder, torch.cat([h, z], -1))
        for found, wanted in (
            (observed.prior.mean[:, i], mean),
            (observed.prior.std[:, i], std),
            (observed.posterior.mean[:, i], q_mean),
            (observed.posterior.std[:, i], q_std),
            (observed.z[:, i], z),
            (observed.predictions[:, i + 1], predicted),
        ):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("noisy", [False, True])
def test_imagine_equals_a_manual_loop(actions, noisy):
    """z = prior mean + prior std * standardised noise; without noise the mean."""
    rssm = rssm_of(actions)
    latents, chunks = inputs()
    macros = None if actions == "none" else rssm.macro(chunks)
    noise = torch.randn(3, 3, 4, generator=seeded(2)) if noisy else None
    imagined = rssm.imagine(rssm.initial(latents[:, 0]), 3, macros, noise)
    assert imagined.predictions.shape == (3, 3, 16)
    h, z = latents[:, 0], torch.zeros(3, 4)
    for i in range(3):
        macro = None if actions == "none" else manual_macro(rssm, chunks[:, i])
        h, mean, std = step_by_hand(rssm, h, z, macro)
        z = mean + std * noise[:, i] if noisy else mean
        predicted = manual_mlp(rssm.decoder, torch.cat([h, z], -1))
        torch.testing.assert_close(imagined.z[:, i], z, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(imagined.predictions[:, i], predicted, atol=1e-5, rtol=1e-4)


def test_imagine_wants_macro_actions_exactly_when_the_model_has_them():
    latents, chunks = inputs()
    without, with_them = rssm_of("none"), rssm_of("concat")
    with pytest.raises(ValueError, match="actions='concat' got macros=False"):
        with_them.imagine(with_them.initial(latents[:, 0]), 2)
    with pytest.raises(ValueError, match="actions='none' got macros=True"):
        without.imagine(without.initial(latents[:, 0]), 2, chunks.flatten(2))


@pytest.mark.parametrize(
    ("actions", "macro_dim", "fed"),
    [("none", 0, 4), ("concat", 8, 12), ("only", 8, 8), ("learned", 3, 7)],
)
def test_shapes_of_every_action_option(actions, macro_dim, fed):
    """PL15: none, concatenated (8-D for 4 steps of 2), actions only, learned (HWM)."""
    rssm = rssm_of(actions)
    _, chunks = inputs()
    assert rssm.macro_dim == macro_dim
    assert rssm.cell.input_size == fed
    macro = rssm.macro(chunks)
    assert (macro is None) == (macro_dim == 0)
    if macro is not None:
        assert macro.shape == (3, 3, macro_dim)
    if actions == "learned":  # LayerNorm: every code has mean 0 and mean square 1 (at most)
        assert macro.mean(-1).abs().max() < 1e-5
        assert macro.square().mean(-1).max() <= 1 + 1e-5
    if actions == "concat":
        assert torch.equal(macro, chunks.reshape(3, 3, 8))


def test_actions_only_keeps_the_state_deterministic():
    """ "only": z shapes the prediction but never the next state."""
    rssm = rssm_of("only")
    latents, chunks = inputs()
    state = rssm.initial(latents[:, 0])
    other = State(state.h, state.z + 3)
    macro = rssm.macro(chunks[:, 0])
    assert torch.equal(rssm.advance(state, macro)[0], rssm.advance(other, macro)[0])
    assert not torch.equal(rssm.decode(state), rssm.decode(other))
    free = rssm_of("concat")
    assert not torch.equal(free.advance(state, macro)[0], free.advance(other, macro)[0])


# --- gradients and randomness -----------------------------------------------------------------
def test_gradient_reaches_the_posterior_through_the_sample():
    """F1: z is reparameterised; the prediction error alone trains the posterior."""
    rssm = rssm_of()
    latents, _ = inputs()
    observed = rssm.observe(latents, None, seeded())
    (observed.predictions - latents).square().mean().backward()
    for parameter in rssm.posterior_head.parameters():
        assert parameter.grad.abs().sum() > 0
    assert rssm.prior_head.weight.grad is None  # the prior learns from the KL alone


def test_the_prior_never_sees_the_state_it_predicts():
    """F5: prior i depends on encodings up to i only; the posterior sees exactly one more."""
    rssm = rssm_of()
    latents, _ = inputs()
    latents.requires_grad_()
    observed = rssm.observe(latents, None, seeded())
    for i in range(3):
        for part, last in ((observed.prior, i), (observed.posterior, i + 1)):
            gradient = torch.autograd.grad(part.mean[:, i].sum(), latents, retain_graph=True)[0]
            used = gradient.abs().sum((0, 2)) > 0  # (T2,)
            assert used.tolist() == [t <= last for t in range(4)]


def test_randomness_comes_from_the_given_generator_only():
    rssm = rssm_of()
    latents, _ = inputs()
    torch.manual_seed(1)
    one = rssm.observe(latents, None, seeded(4))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two = rssm.observe(latents, None, seeded(4))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.z, two.z)
    assert not torch.equal(one.z, rssm.observe(latents, None, seeded(5)).z)
