"""Reward heads on frozen latents (MOD-11, MOD-12)."""

import dataclasses

import pytest
import torch
from torch import nn

from hjepa_lib.config.pixels import EpochsConfig, RewardConfig
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels import heads
from hjepa_lib.pixels.heads import Features, RewardHead
from hjepa_lib.pixels.training import CHUNK
from hjepa_lib.pixels.transitions import TransitionBatch

# Stand-ins have small odd weights, and the loop says so.
pytestmark = pytest.mark.filterwarnings("ignore:the gradient norm is")
TINY = RewardConfig(hidden=16, layers=2, optim=EpochsConfig(updates=30, batch=16, delta=0.0))


class Data:
    """Stand-in for Transitions: the reward is a number written into the state's pixels."""

    def __init__(self, rows: int = 96, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.state = torch.randint(0, 256, (rows, 4, 1, 8, 8), generator=generator).byte()
        self.action = torch.randint(0, 3, (rows,), generator=generator)
        self.reward = self.state.float().mean((1, 2, 3, 4)) / 255 + self.action
        self.called = 0

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, index):
        self.called += len(index)
        return TransitionBatch(
            self.state[index], self.action[index], self.reward[index], self.state[index]
        )


class Base(nn.Module):
    """Stand-in for a world model, with dropout that must stay off and trainable weights."""

    def __init__(self, ahead: bool = True, dim: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, dim), nn.Dropout(0.5))
            self.action = nn.Embedding(3, 4)
        self.ahead = ahead

    def encode(self, state):
        return self.net(state.float() / 255)

    def imagine(self, latent, action):
        return latent + 1 if self.ahead else None


def trained(base: nn.Module, config: RewardConfig = TINY) -> dict:
    """{kind: (initial weights' hash, trained head, what it predicts of held-out rewards)}."""
    train, held_out = (heads.encode(base, Data(seed=number)) for number in (0, 1))
    found = {}
    for kind in heads.HEADS:
        work = heads.fit_head(kind, train, config, 0)
        if work is not None:
            initial = fingerprint(work.module.net)
            list(work)
            work.load_best()
            found[kind] = initial, work.module, work.module.eval()(held_out.inputs(kind)).detach()
    return found


# --- the module -------------------------------------------------------------------------------
def test_input_sizes_are_those_of_the_seeds():
    """LARP reads the imagined latent, its twin the present one in its place."""
    z, a = torch.zeros(2, 64), torch.ones(2, 32)
    features = Features(z, a, z + 7, torch.zeros(2))
    plain, ahead, copy = (features.inputs(kind) for kind in heads.HEADS)
    assert torch.equal(plain, torch.cat([z, a], 1))
    assert torch.equal(ahead, torch.cat([z, z + 7, a], 1))
    assert torch.equal(copy, torch.cat([z, z, a], 1))
    assert features._replace(imagined=None).inputs("larp") is None
    head = RewardHead(RewardConfig(), 96)
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
    head, generator = RewardHead(TINY, 3).eval(), torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 3, generator=generator) * torch.tensor([1e-2, 100.0, 0.0]) + 5
    head.standardise(inputs)
    scaled = (inputs - head.centre) / head.deviation
    assert torch.allclose(scaled.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(scaled.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3)
    assert torch.equal(head(inputs), head.net(scaled).squeeze(-1))


# --- training ---------------------------------------------------------------------------------
def test_features_are_encoded_once_deterministically_and_the_base_stays():
    base, data = Base().train(), Data(rows=CHUNK + 40)
    before = fingerprint(base)
    first, second = heads.encode(base, data), heads.encode(base, data)
    assert data.called == 2 * len(data) == 2 * len(first.latent)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two) and not one.requires_grad  # dropout is off (F4)
    trained(base)
    assert fingerprint(base) == before and all(p.grad is None for p in base.parameters())


def test_without_an_imagined_latent_larp_is_not_applicable_and_nothing_crashes():
    """Every model's heads start equal, whatever other heads there are."""
    first, second = trained(Base()), trained(Base(ahead=False))
    assert set(second) == {"reward_mlp"} and set(first) == set(heads.HEADS)
    assert first["reward_mlp"][0] == second["reward_mlp"][0]
    assert torch.equal(first["reward_mlp"][2], second["reward_mlp"][2])
    assert first["larp"][0] == first["larp_copy"][0]
    assert (first["larp"][1].width, first["reward_mlp"][1].width) == (14, 9)


def test_training_repeats_and_learns_a_readable_reward():
    config = RewardConfig(hidden=32, layers=2, optim=EpochsConfig(updates=90, batch=32, lr=1e-2))
    first = trained(Base(), config)["reward_mlp"][2]
    torch.manual_seed(6)
    assert torch.equal(first, trained(Base(), config)["reward_mlp"][2])
    reward = Data(seed=1).reward
    assert float((first - reward).square().mean()) < 0.3 * float(reward.var())


def test_a_head_spends_its_budget_and_sees_batches_of_training_rows_alone():
    """Section 0: heads share their budget; the last eighth of the training rows validates."""
    optim = EpochsConfig(updates=12, batch=16, lr=0.0, patience=1)
    config = dataclasses.replace(TINY, hidden=8, optim=optim, standardise=False)
    z, rewards = torch.randn(80, 4), torch.randn(80)
    work = heads.fit_head("larp", Features(z, z[:, :2], z + 1, rewards), config, 0)
    *_, last = work
    assert last.update == 12
    inputs = torch.cat([z, z + 1, z[:, :2]], 1)[70:]
    error = (work.module.eval()(inputs) - rewards[70:]).square().mean().item()
    assert last.validation["loss"] == pytest.approx(error, rel=1e-5)


@pytest.fixture(scope="module")
def plain():
    return trained(Base())


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": 8}, {"layers": 1}, {"activation": "tanh"}, {"activation": "leaky"},
        {"activation": "sigmoid"}, {"dropout": 0.5}, {"standardise": False},
    ],
)  # fmt: skip
def test_every_setting_of_a_head_changes_what_it_predicts(change, plain):
    """Beside `optim`: tests/test_pixels_settings.py."""
    other = trained(Base(), dataclasses.replace(TINY, **change))
    assert not torch.equal(plain["larp"][2], other["larp"][2])
