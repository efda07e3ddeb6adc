"""Reward heads on frozen latents (MOD-11, MOD-12), their scores and figures, and the study."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import EpochsConfig, RewardConfig
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels import heads
from hjepa_lib.pixels import heads as models
from hjepa_lib.pixels.heads import RewardHead, build_head, head_inputs
from hjepa_lib.pixels.transitions import TransitionBatch
from hjepa_lib.training.loop import draw_batch, step_generator

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
        self.sha256, self.called = f"data{seed}", 0

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
            self.table = nn.Embedding(3, 4)
        self.ahead = ahead

    def encode(self, state):
        return self.net(state.float() / 255)

    def imagine(self, latent, action):
        return latent + 1 if self.ahead else None

    def embed_action(self, action):
        return self.table(action)


def trained(base: nn.Module, config: RewardConfig = TINY, seed: int = 0) -> dict:
    parts = [heads.encode(base, Data(seed=number)) for number in (0, 1)]
    work = heads.train_heads(*parts, config, seed=seed)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


# --- the module -------------------------------------------------------------------------------
def test_input_sizes_are_those_of_the_seeds():
    config, (z, a) = RewardConfig(), (torch.zeros(2, 64), torch.zeros(2, 32))
    assert head_inputs(z, a).shape == (2, 96)
    assert head_inputs(z, a, z).shape == (2, 160)
    plain, ahead = build_head(config, 96, 0), build_head(config, 160, 0)
    assert plain(head_inputs(z, a)).shape == (2,)
    linear = [layer for layer in plain.net if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [512, 512, 512, 1]
    drops = [layer.p for layer in plain.net if isinstance(layer, nn.Dropout)]
    assert drops == [0.2] * 3
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in plain.net)
    with pytest.raises(WorkbookError, match="reads 96 numbers per row, got 160"):
        plain(head_inputs(z, a, z))
    with pytest.raises(WorkbookError, match="differ in number: 2, 3"):
        head_inputs(z, torch.zeros(3, 32))
    assert ahead.width == 160


@pytest.mark.parametrize("name", ["relu", "leaky", "tanh", "sigmoid"])
def test_every_activation_acts(name):
    config = RewardConfig(hidden=8, layers=1, activation=name, dropout=0.0)
    head, other = build_head(config, 6, 0), build_head(RewardConfig(hidden=8, layers=1), 6, 0)
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    assert isinstance(head.net[1], models.ACTIVATIONS[name])
    assert torch.equal(head(inputs), other.eval()(inputs)) == (name == "relu")


def test_unknown_activation_is_refused():
    with pytest.raises(ConfigError, match="activation must be one of relu, leaky, tanh, sigmoid"):
        RewardConfig(activation="swish")


def test_initial_weights_depend_on_seed_and_width_alone():
    torch.manual_seed(1)
    first = build_head(TINY, 9, 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, other, wide = build_head(TINY, 9, 0), build_head(TINY, 9, 1), build_head(TINY, 14, 0)
    assert fingerprint(first) == fingerprint(second) != fingerprint(other)
    assert torch.equal(first.net[3].weight, wide.net[3].weight)  # hidden layers of MLP and LARP
    assert torch.equal(state, torch.get_rng_state())


def test_a_head_scales_its_inputs_and_leaves_constant_ones_alone():
    head = RewardHead(TINY, 3).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 3, generator=generator) * torch.tensor([1e-2, 100.0, 0.0])
    head.standardise(inputs)
    scaled = (inputs - head.centre) / head.deviation
    assert torch.allclose(scaled.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)
    before = head(inputs)
    twin = RewardHead(TINY, 3).eval()
    twin.load_state_dict(head.state_dict() | {"deviation": head.deviation * 10})
    assert not torch.allclose(before, twin(inputs))


def test_no_gradient_reaches_what_a_head_reads():
    z, a = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    head = RewardHead(TINY, 15)
    inputs = head_inputs(z, a, z * 2)
    assert not inputs.requires_grad
    head(torch.cat([z, a, z], -1)).sum().backward()
    assert z.grad is None and a.grad is None


# --- training ---------------------------------------------------------------------------------
def test_features_are_encoded_once_deterministically_and_the_base_stays():
    base, data = Base().train(), Data()
    before = fingerprint(base)
    first, second = heads.encode(base, data, batch=40), heads.encode(base, data)
    assert data.called == 2 * len(data)
    for one, two in zip(first, second, strict=True):
        assert torch.allclose(one, two, atol=1e-6) and not one.requires_grad  # dropout is off (F4)
    assert base.training  # as it was
    trained(base)
    assert fingerprint(base) == before


def test_encode_refuses_latents_that_are_not_finite():
    base = Base()
    with torch.no_grad():
        base.net[1].bias.fill_(math.nan)
    with pytest.raises(WorkbookError, match="hold NaN or infinity"):
        heads.encode(base, Data())


def test_without_an_imagined_latent_larp_is_not_applicable_and_nothing_crashes():
    result = trained(Base(ahead=False))
    assert result["larp"].head is None and "not applicable" in result["larp"].facts["status"]
    assert result["larp_copy"].head is None
    assert result["reward_mlp"].facts["status"] == "ok"


def test_every_models_heads_start_equal_and_see_equal_batches():
    first, second = trained(Base()), trained(Base(ahead=False))
    mine, other = first["reward_mlp"].facts, second["reward_mlp"].facts
    assert mine["initial_sha256"] == other["initial_sha256"]
    assert mine["batches_sha256"] == other["batches_sha256"]
    assert mine["batches_sha256"] != heads.batches_sha256(96, 16, 1)
    assert first["larp"].facts["initial_sha256"] == first["larp_copy"].facts["initial_sha256"]
    assert first["larp"].facts["inputs"] == 14 and mine["inputs"] == 9
    # The third head changes nothing in the first: each has its own noise.
    assert torch.equal(first["reward_mlp"].predicted, second["reward_mlp"].predicted)


def test_training_repeats_and_learns_a_readable_reward():
    config = RewardConfig(hidden=32, layers=2, optim=EpochsConfig(updates=90, batch=32, lr=1e-2))
    torch.manual_seed(5)
    first = trained(Base(), config)["reward_mlp"]
    torch.manual_seed(6)
    assert torch.equal(first.predicted, trained(Base(), config)["reward_mlp"].predicted)
    reward = Data(seed=1).reward
    assert float((first.predicted - reward).square().mean()) < 0.3 * float(reward.var())


def test_standardising_can_be_switched_off():
    base = Base()
    with torch.no_grad():
        base.table.weight.mul_(0.01)
    on = trained(base)["reward_mlp"].head
    off = trained(base, RewardConfig(hidden=16, layers=2, standardise=False, optim=TINY.optim))
    off = off["reward_mlp"].head
    assert float(on.deviation.max()) != 1 and bool((off.deviation == 1).all())


def test_larp_reads_the_imagined_latent_and_its_twin_the_present_one():
    z, a = torch.zeros(2, 5), torch.ones(2, 4)
    features = heads.Features(z, a, z + 7, torch.zeros(2))
    assert bool((heads.select_inputs(features, "larp")[:, 5:10] == 7).all())
    assert bool((heads.select_inputs(features, "larp_copy")[:, 5:10] == 0).all())
    assert heads.select_inputs(features, "reward_mlp").shape == (2, 9)
    assert heads.select_inputs(features._replace(imagined=None), "larp") is None


def test_batches_are_a_function_of_seed_and_update():
    one = draw_batch(90, 16, step_generator(1, 7))
    assert torch.equal(one, draw_batch(90, 16, step_generator(1, 7)))
    assert not torch.equal(one, draw_batch(90, 16, step_generator(1, 8)))


def test_a_head_spends_its_budget_and_the_held_out_part_chooses_nothing():
    """Section 0: heads share their budget; weights are chosen on training rows alone."""
    config = dataclasses.replace(
        RewardConfig(), hidden=8, optim=EpochsConfig(updates=12, batch=16, lr=0.0, patience=1)
    )
    features = [
        heads.Features(torch.randn(80, 4), torch.randn(80, 2), torch.randn(80, 4), torch.randn(80))
        for _ in range(2)
    ]

    def run(held_out):
        work = heads.train_heads(features[0], held_out, config, seed=0)
        losses = []
        try:
            while True:
                report = next(work)
                losses.append(report.validation.get("loss"))
        except StopIteration as stop:
            return stop.value, losses

    trained, losses = run(features[1])
    assert {one.facts["updates"] for one in trained.values()} == {12}
    scaled = features[1]._replace(reward=100 * features[1].reward)
    assert run(scaled)[1] == losses  # what the loop validates on is not the held-out part


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
    standard = trained(Base())["larp"].predicted
    changed = trained(Base(), dataclasses.replace(TINY, **change))["larp"].predicted
    assert not torch.equal(standard, changed)
