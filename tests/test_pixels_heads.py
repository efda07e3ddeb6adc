"""Reward heads on frozen latents (MOD-11, MOD-12)."""

import dataclasses

import pytest
import torch
from torch import nn

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import EpochsConfig, RewardConfig
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels import heads
from hjepa_lib.pixels.heads import ACTIVATIONS, Features, RewardHead
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


def finish(work):
    """(what the generator returns, its reports)."""
    reports = []
    while True:
        try:
            reports.append(next(work))
        except StopIteration as stop:
            return stop.value, reports


def trained(base: nn.Module, config: RewardConfig = TINY) -> dict:
    parts = [heads.encode(base, Data(seed=number)) for number in (0, 1)]
    return finish(heads.train_heads(*parts, config, seed=0))[0]


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


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_acts(name):
    config = RewardConfig(hidden=8, layers=1, activation=name, dropout=0.0)
    head, other = RewardHead(config, 6), RewardHead(RewardConfig(hidden=8, layers=1), 6)
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    assert isinstance(head.net[1], ACTIVATIONS[name])
    assert torch.equal(head(inputs), other.eval()(inputs)) == (name == "relu")
    with pytest.raises(ConfigError, match="activation must be one of relu, leaky, tanh, sigmoid"):
        RewardConfig(activation="swish")


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
    """Every model's heads start equal and see equal batches, whatever other heads there are."""
    first, second = trained(Base()), trained(Base(ahead=False))
    for kind in ("larp", "larp_copy"):
        assert second[kind].head is None and "not applicable" in second[kind].facts["status"]
    mine, other = first["reward_mlp"], second["reward_mlp"]
    assert mine.facts == other.facts and mine.facts["status"] == "ok"
    assert torch.equal(mine.predicted, other.predicted)  # each head has its own noise
    assert mine.facts["batches_sha256"] != heads.batches_sha256(96, 16, 1)
    assert first["larp"].facts["initial_sha256"] == first["larp_copy"].facts["initial_sha256"]
    assert first["larp"].facts["inputs"] == 14 and mine.facts["inputs"] == 9


def test_training_repeats_and_learns_a_readable_reward():
    config = RewardConfig(hidden=32, layers=2, optim=EpochsConfig(updates=90, batch=32, lr=1e-2))
    first = trained(Base(), config)["reward_mlp"]
    torch.manual_seed(6)
    assert torch.equal(first.predicted, trained(Base(), config)["reward_mlp"].predicted)
    reward = Data(seed=1).reward
    assert float((first.predicted - reward).square().mean()) < 0.3 * float(reward.var())


def test_a_head_spends_its_budget_and_the_held_out_part_chooses_nothing():
    """Section 0: heads share their budget; weights are chosen on training rows alone."""
    optim = EpochsConfig(updates=12, batch=16, lr=0.0, patience=1)
    config = dataclasses.replace(TINY, hidden=8, optim=optim)
    train, held_out = (
        Features(torch.randn(80, 4), torch.randn(80, 2), torch.randn(80, 4), torch.randn(80))
        for _ in range(2)
    )
    found = []
    for part in (held_out, held_out._replace(reward=100 * held_out.reward)):
        done, reports = finish(heads.train_heads(train, part, config, seed=0))
        assert {one.facts["updates"] for one in done.values()} == {12}
        found.append([report.validation.get("loss") for report in reports])
    assert found[0] == found[1]  # what the loop validates on is not the held-out part


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": 8}, {"layers": 1}, {"activation": "tanh"}, {"dropout": 0.5},
        {"standardise": False}, {"optim": EpochsConfig(updates=10, batch=16, delta=0.0)},
        {"optim": EpochsConfig(updates=30, batch=8, delta=0.0)},
        {"optim": EpochsConfig(updates=30, batch=16, lr=1e-2, delta=0.0)},
    ],
)  # fmt: skip
def test_every_setting_of_a_head_changes_what_it_predicts(change):
    one, other = (trained(Base(), config) for config in (TINY, dataclasses.replace(TINY, **change)))
    assert not torch.equal(one["larp"].predicted, other["larp"].predicted)
