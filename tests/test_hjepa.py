"""Both levels together: time grid, the three ways level 2 acts on level 1, the joint loss."""

import pytest
import torch
from tiny import make_level2, seeded, tiny_config, tiny_normaliser

from hjepa_lib.config import Config, LossConfig
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.level2 import HJepa
from hjepa_lib.models.objectives import loss_terms, weighted_sum
from hjepa_lib.models.stochastic import kl_loss
from hjepa_lib.worlds.rendering import render


def hjepa_of(seed=0, **changes) -> tuple[HJepa, Config]:
    config = tiny_config(level2__train="joint", **changes)
    torch.manual_seed(seed)
    return HJepa(config, tiny_normaliser()), config


def batch_of(data, states, batch=3, seed=0):
    found = Windows(data, states).sample(batch, seeded(seed))
    return render(found.positions, found.layout), found.actions


def test_sixteen_frames_make_four_macro_states():
    """Architectures 2: frames 0, 4, 8, 12; three macro steps; the last three actions are unused."""
    level2 = make_level2(tiny_config(level2__actions="concat"))
    steps = torch.arange(16.0)
    latents = steps[None, :, None].expand(2, 16, 16)
    actions = steps[None, :15, None].expand(2, 15, 2)
    rollout, observed = level2.observe(latents, actions, seeded())
    assert rollout.encodings[0, :, 0].tolist() == [0, 4, 8, 12]
    assert rollout.targets is rollout.encodings
    chunks = rollout.actions[0].reshape(3, 4, 2)
    assert chunks[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert observed.z.shape == (2, 3, 4)
    assert rollout.predictions.shape == (1, 2, 4, 16)

    changed = actions.clone()
    changed[:, 12:] += 1
    assert torch.equal(level2.observe(latents, changed, seeded())[1].z, observed.z)
    changed[:, 11] += 1
    assert not torch.equal(level2.observe(latents, changed, seeded())[1].z, observed.z)


def test_conditioning_reaches_the_state_also_one_step_at_a_time(data):
    """F11: another z changes every predicted state, in a roll-out and in single `predict` calls."""
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
        latent = level1.predict(latent, actions[:, step], context=context[:, step])
        torch.testing.assert_close(latent, rolled[:, step + 1])
    frames, actions = batch_of(data, 9)
    layer.weight.data.zero_(), layer.bias.data.zero_()
    plain = model(frames, actions, seeded()).level1.predictions
    layer.bias.data.fill_(1.0)
    assert (model(frames, actions, seeded()).level1.predictions != plain)[:, :, 1:].any(-1).all()


def test_feedback_corrects_the_state_at_every_macro_boundary():
    """F11: an MLP of the last four states is added to the state that the predictor is fed."""
    model, _ = hjepa_of(level2__feedback=True)
    level1, level2 = model.level1, model.level2
    start, actions = torch.randn(2, 16), torch.randn(2, 9, 2)
    rolled = level1.rollout(start, actions, feedback=level2.feedback)
    states = [start]
    for step in range(9):
        latent = states[-1]
        if step in (4, 8):
            latent = latent + level2.correct(torch.cat(states[-4:], -1))
        states.append(level1.predict(latent, actions[:, step]))
    torch.testing.assert_close(rolled, torch.stack(states, 1))
    plain = level1.rollout(start, actions)
    assert torch.equal(rolled[:, :5], plain[:, :5])
    assert (rolled != plain)[:, 5:].any(-1).all()


@pytest.mark.parametrize("option", ["conditioning", "feedback"])
def test_hooks_get_gradient_from_the_prediction_loss_alone(option, data):
    """F10, F11: nothing cancels; the hook AND the predictor learn from the similarity term."""
    model, _ = hjepa_of(**{f"level2__{option}": True})
    rollout = model(*batch_of(data, 9), seeded()).level1
    loss_terms(rollout, LossConfig(form="pldm"), None)["sim"].backward()
    hook = model.level2.condition if option == "conditioning" else model.level2.correct
    for module in (hook, model.level1.predictors, model.level1.encoder):
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("steps", [0, 4])
def test_joint_loss_is_the_documented_sum(steps, data):
    """L1 terms + L2 terms + lambda KL + weight * sub-goal consistency, which pulls on both levels.

    F5: level 1 may roll out fewer steps than the window; the shared macro steps are compared.
    """
    model, config = hjepa_of(
        level2__subgoal=0.7, level2__kl=1.3, level2__loss__idm=0.4, level2__loss__std=0.2,
        level1__rollout=steps,
    )  # fmt: skip
    rollout = model(*batch_of(data, 11), seeded())
    assert torch.equal(rollout.level2.encodings, rollout.level1.encodings[:, ::4])
    assert rollout.level1.encodings.shape[1] == 9  # whole macro steps only, whatever is predicted
    assert rollout.level1.predictions.shape == (1, 3, 1 + (steps or 8), 16)
    total, named = model.loss(rollout)
    one = loss_terms(rollout.level1, config.level1.loss, model.level1.idm)
    two = loss_terms(rollout.level2, config.level2.loss, model.level2.idm)
    kl = kl_loss(rollout.observed.posterior, rollout.observed.prior, 0.0, 0.0)
    # entry 0 of both is the given start: one or two macro steps differ
    shared = 1 if steps else 2
    ours = rollout.level1.predictions[0, :, [4, 8][:shared]]
    gap = ours - rollout.level2.predictions[0, :, [1, 2][:shared]]
    subgoal = gap.square().sum() / ((1 + shared) * 3 * 16)
    wanted = weighted_sum(one, config.level1.loss) + weighted_sum(two, config.level2.loss)
    torch.testing.assert_close(total, wanted + 1.3 * kl + 0.7 * subgoal)
    torch.testing.assert_close(named["subgoal"], subgoal)
    torch.testing.assert_close(named["l2/kl"], kl)
    assert {f"l1/{name}" for name in one} < named.keys()
    weighted = {"l2/sim", "l2/std", "l2/idm", "l2/kl"}  # the others are not computed
    assert {name for name in named if name.startswith("l2/")} == weighted
    named["subgoal"].backward()
    for module in (model.level1.predictors, model.level2.decoder):
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())
