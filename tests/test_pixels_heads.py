"""Reward heads on frozen latents (MOD-11, MOD-12)."""

import dataclasses

import pytest
import torch
from tiny_pixels import fresh, seeded, tiny_transitions
from torch import nn

from hjepa_lib.config import profile
from hjepa_lib.config.pixels import EpochsConfig, RewardConfig
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels import heads, training
from hjepa_lib.pixels.heads import Features, RewardHead
from hjepa_lib.pixels.transitions import Transitions

# Stand-ins have small odd weights, and the loop says so.
pytestmark = pytest.mark.filterwarnings("ignore:the gradient norm is")
TINY = RewardConfig(hidden=16, layers=2, optim=EpochsConfig(updates=30, batch=16, delta=0.0))


def features(rows=96, seed=0, ahead=True):
    """Latents, embedded actions, an imagined latent, and a reward that can be read from them."""
    z, a = (torch.randn(rows, width, generator=seeded(10 * seed + width)) for width in (5, 4))
    return Features(z, a, z + 1 if ahead else None, z[:, 0] + a.mean(1))


def trained(config=TINY, ahead=True, kinds=heads.HEADS):
    """{kind: (initial weights' hash, trained head, what it predicts of held-out rewards)}."""
    train, held_out, choice = (features(seed=number, ahead=ahead) for number in range(3))
    found = {}
    for kind in kinds:
        work = heads.fit_head(kind, train, choice, config, 0)
        if work is not None:
            initial = fingerprint(work.module.net)
            list(work)
            work.load_best()
            found[kind] = initial, work.module, work.module.eval()(held_out.inputs(kind)).detach()
    return found


@pytest.fixture(scope="module")
def first():
    return trained()


def test_input_sizes_are_those_of_the_seeds():
    """LARP reads the imagined latent, its twin the present one in its place."""
    z, a = torch.zeros(2, 64), torch.ones(2, 32)
    features = Features(z, a, z + 7, torch.zeros(2))
    plain, ahead, copy = (features.inputs(kind) for kind in heads.HEADS)
    assert torch.equal(plain, torch.cat([z, a], 1))
    assert torch.equal(ahead, torch.cat([z, z + 7, a], 1))
    assert torch.equal(copy, torch.cat([z, z, a], 1))
    assert features._replace(imagined=None).inputs("larp") is None
    head = RewardHead(profile("full").pixels.reward, 96)
    assert head(plain).shape == (2,)
    assert [one.out_features for one in head.net if isinstance(one, nn.Linear)] == [512] * 3 + [1]
    assert [one.p for one in head.net if isinstance(one, nn.Dropout)] == [0.2] * 3
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in head.net)


def test_initial_weights_depend_on_seed_and_width_alone():
    torch.manual_seed(1)
    first = RewardHead(TINY, 9, 0)
    second, other, wide = RewardHead(TINY, 9, 0), RewardHead(TINY, 9, 1), RewardHead(TINY, 14, 0)
    assert fingerprint(first) == fingerprint(second) != fingerprint(other)
    assert torch.equal(first.net[3].weight, wide.net[3].weight)  # hidden layers of MLP and LARP


def test_a_head_scales_its_inputs_and_leaves_constant_ones_alone():
    head = RewardHead(TINY, 3).eval()
    inputs = torch.randn(50, 3, generator=seeded(0)) * torch.tensor([1e-2, 100.0, 0.0]) + 5
    head.standardise(inputs)
    scaled = (inputs - head.centre) / head.deviation
    assert torch.allclose(scaled.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(scaled.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3)
    assert torch.equal(head(inputs), head.net(scaled).squeeze(-1))


def test_features_are_encoded_once_deterministically_and_the_base_stays(monkeypatch):
    data, seen, whole = tiny_transitions(), [], Transitions.__getitem__
    base = fresh("jepa", data, encoder__kind="mlp", encoder__mlp_dropout=0.5)
    monkeypatch.setattr(training, "CHUNK", 40)
    monkeypatch.setattr(Transitions, "__getitem__", lambda self, rows: seen.extend(rows.tolist())
                        or whole(self, rows))  # fmt: skip
    before = fingerprint(base)
    one, two = (heads.encode(base.train(), data) for _ in range(2))
    assert seen == 2 * list(range(len(data)))
    for mine, other in zip(one, two, strict=True):
        assert torch.equal(mine, other) and not mine.requires_grad  # dropout is off (F4)
    assert fingerprint(base) == before


def test_latents_that_are_no_numbers_are_refused():
    base = fresh("jepa")
    for weights in base.parameters():
        weights.data.fill_(torch.nan)
    with pytest.raises(WorkbookError, match="hold NaN or infinity"):
        heads.encode(base, tiny_transitions())


def test_without_an_imagined_latent_larp_is_not_applicable_and_nothing_crashes(first):
    """Every model's heads start equal, whatever other heads there are."""
    second = trained(ahead=False)
    assert set(second) == {"reward_mlp"} and set(first) == set(heads.HEADS)
    assert first["reward_mlp"][0] == second["reward_mlp"][0]
    assert torch.equal(first["reward_mlp"][2], second["reward_mlp"][2])
    assert first["larp"][0] == first["larp_copy"][0]
    assert (first["larp"][1].width, first["reward_mlp"][1].width) == (14, 9)


def test_training_repeats_and_learns_a_readable_reward():
    config = RewardConfig(hidden=32, layers=2, optim=EpochsConfig(updates=90, batch=32, lr=1e-2))
    found = trained(config, kinds=("reward_mlp",))["reward_mlp"][2]
    torch.manual_seed(6)
    assert torch.equal(found, trained(config, kinds=("reward_mlp",))["reward_mlp"][2])
    reward = features(seed=1).reward
    assert float((found - reward).square().mean()) < 0.3 * float(reward.var())


def test_a_head_spends_its_budget_and_sees_batches_of_training_rows_alone():
    """Section 0, X4: heads share their budget; a part of its own chooses their weights."""
    optim = EpochsConfig(updates=12, batch=16, lr=0.0, patience=1)
    config = dataclasses.replace(TINY, hidden=8, optim=optim, standardise=False)
    z, rewards = torch.randn(80, 4), torch.randn(80)
    whole = Features(z, z[:, :2], z + 1, rewards)
    parts = [whole.rows(rows) for rows in torch.arange(80).split([70, 10])]
    work = heads.fit_head("larp", *parts, config, 0)
    *_, last = work
    assert last.update == 12
    inputs = torch.cat([z, z + 1, z[:, :2]], 1)[70:]
    error = (work.module.eval()(inputs) - rewards[70:]).square().mean().item()
    assert last.validation["loss"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", 8), ("layers", 1), ("activation", "tanh"), ("activation", "leaky"),
     ("activation", "sigmoid"), ("dropout", 0.5), ("standardise", False)],
)  # fmt: skip
def test_every_setting_of_a_head_changes_what_it_predicts(field, value, first):
    """Beside `optim`: tests/test_pixels_settings.py."""
    other = trained(dataclasses.replace(TINY, **{field: value}), kinds=("larp",))
    assert not torch.equal(first["larp"][2], other["larp"][2])
