"""Reward heads on frozen latents (MOD-11, MOD-12), their scores and figures, and the study."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_lib.config import profile
from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import EpochsConfig, RewardConfig
from hjepa_lib.evaluation.statistics import Interval, unestimable
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels import figures_rewards as figures
from hjepa_lib.pixels import heads, headstages, lookahead, rewards
from hjepa_lib.pixels import heads as models
from hjepa_lib.pixels import stages as pixelstages
from hjepa_lib.pixels.heads import HeadError, RewardHead, build_head, head_inputs
from hjepa_lib.pixels.training import fit_pixels
from hjepa_lib.pixels.transitions import TransitionBatch
from hjepa_lib.runs import workspace
from hjepa_lib.training.batches import draw_batch
from hjepa_lib.training.loop import Report, step_generator

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

    def batch(self, index):
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
    with pytest.raises(HeadError, match="reads 96 numbers per row, got 160"):
        plain(head_inputs(z, a, z))
    with pytest.raises(HeadError, match="differ in number: 2, 3"):
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
    with pytest.raises(HeadError, match="hold NaN or infinity"):
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


def test_log_keys():
    def report(update: int, validation: dict) -> Report:
        return Report(update, 200, 0.5, {}, 1e-3, 1.0, validation)

    log = heads.HeadLog("reward_mlp", "jepa", 50, 100)
    assert log.record(report(50, {"loss": 2.0})) == {
        "reward_mlp/jepa/train_epoch_avg/Loss": 0.5,
        "reward_mlp/jepa/val_epoch_avg/Loss": 2.0,
        "reward_mlp/jepa/epoch": 1,
    }
    assert log.record(report(51, {})) == {}
    assert log.record(report(100, {})) == {
        "reward_mlp/jepa/train/Loss": 0.5,
        "reward_mlp/jepa/train/Learning_Rate": 1e-3,
    }
    row = heads.HeadLog("larp", "jepa", 50, 100).record(report(100, {"loss": 2.0}))
    assert {key.removeprefix("larp/jepa/") for key in row} == {
        "train/loss_step", "train/step", "train_epoch_avg/loss", "val_epoch_avg/loss",
        "epoch", "epoch_inner", "epoch_progress_main",
    }  # fmt: skip
    assert row["larp/jepa/epoch"] == 2 and row["larp/jepa/epoch_progress_main"] == 0.5


def test_batches_are_a_function_of_seed_and_update():
    one = draw_batch(90, 16, step_generator(1, 7))
    assert torch.equal(one, draw_batch(90, 16, step_generator(1, 7)))
    assert not torch.equal(one, draw_batch(90, 16, step_generator(1, 8)))


# --- scores -----------------------------------------------------------------------------------
def cells(shift: float, seeds: int = 5, n: int = 200) -> list[dict]:
    """LARP's squared errors are smaller than the reward MLP's by about `shift`."""
    reward = np.random.default_rng(0).normal(size=n)
    found = []
    for seed in range(seeds):
        noise = np.random.default_rng(seed + 1).normal(0, 0.1, (4, n))
        found.append(
            {
                "reward": reward,
                "episode": np.arange(n) // 10,
                "reward_mlp": reward + math.sqrt(shift) + noise[0],
                "larp": reward + noise[1],
                "larp_copy": reward + math.sqrt(shift) + noise[2],
                "mean_reward": np.full(n, 0.3),
            }
        )
    return found


def test_scores_and_r2_of_known_predictions():
    reward = np.array([0.0, 1.0, 2.0, 3.0])
    assert rewards.score(reward, reward) == (0.0, 1.0, "")
    mean = rewards.score(np.full(4, 1.5), reward)
    assert mean.mse == pytest.approx(1.25) and mean.r2 == pytest.approx(0)
    with pytest.raises(rewards.RewardError, match=r"must be \(n,\)"):
        rewards.score(reward[:3], reward)
    with pytest.raises(rewards.RewardError, match="NaN"):
        rewards.score(reward * math.nan, reward)


def test_r2_is_not_estimable_from_few_rewards():
    dense, sparse = np.ones(100) + np.arange(100), np.zeros(100)
    sparse[:49] = 1
    assert unestimable(dense, dense) == ""
    note = unestimable(dense, sparse)
    assert note == "not estimable: 49 non-zero rewards in the validation part"
    assert "training part" in unestimable(sparse, dense)
    assert "equal" in unestimable(dense, np.ones(100))
    scored = rewards.score(np.zeros(100), sparse, note)
    assert scored.r2 is None and scored.mse == pytest.approx(0.49)
    assert "not estimable" in figures.box_text(scored)
    sparse[49] = 1
    assert unestimable(dense, sparse) == ""


def test_look_ahead_is_paired_and_has_an_interval():
    gain = rewards.difference(cells(0.5), "larp", "reward_mlp")
    assert gain.low < gain.estimate < gain.high < 0
    assert gain.estimate == pytest.approx(-0.5, abs=0.05)
    assert rewards.verdict(gain) == "look-ahead helps"
    none = rewards.difference(cells(0.0), "larp", "reward_mlp")
    assert none.low < 0 < none.high and rewards.verdict(none) == "within noise"
    assert rewards.verdict(Interval(1, 0.5, 2)) == "look-ahead hurts"
    assert rewards.verdict(None) == "not applicable"


def test_intervals_know_that_neighbouring_transitions_resemble_each_other():
    """A difference that is one draw per episode must not look like one draw per transition."""
    found = cells(0.0, seeds=3)
    shared = np.repeat(np.random.default_rng(9).normal(0, 0.3, 20), 10)  # the same for all seeds
    for cell in found:
        cell["larp"] = cell["reward"] + np.sqrt(np.abs(shared))
        cell["reward_mlp"] = cell["reward"].copy()
    wide = rewards.difference(found, "larp", "reward_mlp")
    for cell in found:
        cell["episode"] = np.arange(200)
    narrow = rewards.difference(found, "larp", "reward_mlp")
    assert wide.estimate == pytest.approx(narrow.estimate)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


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
                _, report = next(work)
                losses.append(report.validation.get("loss"))
        except StopIteration as stop:
            return stop.value, losses

    trained, losses = run(features[1])
    assert {one.facts["updates"] for one in trained.values()} == {12}
    scaled = features[1]._replace(reward=100 * features[1].reward)
    assert run(scaled)[1] == losses  # what the loop validates on is not the held-out part


def test_only_equal_transitions_can_be_paired():
    odd = cells(0.1)
    odd[3]["reward"] = odd[3]["reward"] + 1
    with pytest.raises(rewards.RewardError, match="different transitions"):
        rewards.difference(odd, "larp", "reward_mlp")
    with pytest.raises(rewards.RewardError, match="two models were scored on different"):
        rewards.difference(cells(0.1), "larp", "larp", cells(0.1, n=150))


def test_comparison_has_every_baseline_and_leaves_out_what_a_model_lacks(monkeypatch):
    monkeypatch.setattr(rewards, "RESAMPLES", 100)
    plain = [{k: v for k, v in cell.items() if "larp" not in k} for cell in cells(0.5)]
    rows = rewards.comparison({"jepa": cells(0.0), "enc_dec": plain, "random": plain}, "")
    by_name = {row["model"]: row for row in rows}
    jepa = by_name["jepa"]
    assert set(jepa["heads"]) == {"reward_mlp", "larp", "larp_copy", "mean_reward"}
    assert jepa["heads"]["larp"]["seeds"] == 5 and jepa["heads"]["larp"]["transitions"] == 200
    assert jepa["over_mean"].high < 0 and jepa["over_random"].high < 0
    assert jepa["over_copy"] is not None
    assert by_name["enc_dec"]["look_ahead"] is None and by_name["enc_dec"]["heads"]["larp"] == {}
    assert by_name["random"]["over_random"] is None
    models = {"vjepa2": cells(0.0), "random": plain, "random_vit": cells(0.5)}
    other = {row["model"]: row for row in rewards.comparison(models, "")}
    own = rewards.difference(cells(0.0), "reward_mlp", "reward_mlp", cells(0.5))
    assert other["vjepa2"]["over_random"] == own  # its encoder is another network than `random`'s
    assert other["random_vit"]["over_random"] is None
    del models["random_vit"]
    assert rewards.comparison(models, "")[0]["over_random"] is None
    read = rewards.table(rows)
    assert read.loc["enc_dec", "LARP R2"] == read.loc["enc_dec", "LARP MSE"] == "not applicable"
    assert read.loc["jepa", "n"] == "5 seeds x 200"
    assert read.loc["jepa", "LARP - reward MLP"].endswith("]")
    note = "not estimable: too few"
    blind = rewards.comparison({"jepa": cells(0.0)}, note)[0]["heads"]["larp"]
    assert blind["r2"] is None and blind["note"] == note and blind["mse"] > 0
    blind = rewards.table(rewards.comparison({"jepa": cells(0.0)}, note))
    assert blind.loc["jepa", "LARP R2"] == "not estimable"


# --- figures ----------------------------------------------------------------------------------
def test_scatter_files_show_the_diagonal_and_the_score(tmp_path):
    reward = np.linspace(0, 1, 40)
    part = (reward, reward**2, rewards.score(reward**2, reward))
    paths = figures.save_scatters(tmp_path, "larp", {"jepa": part})
    assert paths == [tmp_path / "larp_plots/jepa.png"] and paths[0].stat().st_size > 1000
    figure = figures.reward_scatter({"JEPA": part})
    axis = figure.axes[0]
    assert any("R²" in text.get_text() for text in axis.texts)
    line = axis.lines[0]
    assert list(line.get_xdata()) == list(line.get_ydata())
    paths = figures.save_scatters(tmp_path, "reward_mlp", {"enc_dec": part})
    assert paths[0].parent.name == "reward_plots"


def test_gain_figure_draws_one_interval_per_model_with_an_imagined_latent(monkeypatch):
    monkeypatch.setattr(rewards, "RESAMPLES", 100)
    plain = [{k: v for k, v in cell.items() if "larp" not in k} for cell in cells(0.5)]
    rows = rewards.comparison({"jepa": cells(0.5), "random": plain}, "")
    figure = figures.look_ahead_gain({"drift": rows, "push": rows})
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["JEPA"] and len(figure.axes) == 2
    alone = figures.look_ahead_gain({"drift": rows})  # one panel is narrower than its legend's line
    alone.canvas.draw()
    place = alone.legends[0].get_window_extent()
    assert place.x0 >= 0 and place.x1 <= alone.bbox.width
    with pytest.raises(figures.FigureError, match="no model has an imagined latent"):
        figures.look_ahead_gain({"drift": rows[1:]})


# --- stages -----------------------------------------------------------------------------------
SMALL = (
    "device=cpu,precision=fp32,pixels.data.transitions=60,pixels.data.episodes=6,"
    "pixels.environment.max_steps=10,pixels.environment.image_size=16,pixels.encoder.kind=mlp,"
    "pixels.encoder.mlp_hidden=8,pixels.encoder.mlp_layers=1,pixels.encoder.latent_dim=8,"
    "pixels.encoder.heads=1,pixels.encoder.head_dim=8,pixels.decoder.dim=8,pixels.decoder.heads=1,"
    "pixels.decoder.mlp_dim=8,pixels.optim.updates=2,pixels.optim.batch=8,"
    "pixels.vjepa2.stage1.optim.updates=1,pixels.vjepa2.stage2.optim.updates=1,"
    "pixels.vjepa2.stage1.optim.batch=4,pixels.vjepa2.stage2.optim.batch=4,"
    "pixels.vjepa2.stage2.heads=1,pixels.vjepa2.stage2.head_dim=8,pixels.vjepa2.stage2.mlp_dim=8,"
    "pixels.reward.hidden=8,pixels.reward.layers=1,pixels.reward.optim.updates=4,"
    "pixels.reward.optim.batch=8,pixels.reward.seeds=1,pixels.reward.study_transitions=100"
)


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield workspace.start("13_test", "smoke", "heads", 0, SMALL)


def test_heads_stage_scores_every_model_and_leaves_it_unchanged(ws):
    before = {
        name: fingerprint(pixelstages.load_model(ws, name, 0)) for name in ("enc_dec", "jepa")
    }
    facts, found = {}, {}
    for name in ("enc_dec", "jepa", "random", "random_vit"):
        reports = list(headstages.train_heads_stage(ws, name, 0))
        assert len(reports) == (12 if name == "jepa" else 4)
        assert list(headstages.train_heads_stage(ws, name, 0)) == []  # done
        ws.run.verify(headstages.stage_name(name, 0))
        found[name], facts[name] = headstages.load_cell(headstages.find_heads(ws, name, 0))
    for name, was in before.items():
        assert fingerprint(pixelstages.load_model(ws, name, 0)) == was == facts[name]["base_sha256"]
    assert {fact["data_sha256"] for fact in facts.values()} == {
        pixelstages.load_transitions(ws).sha256
    }
    for key in ("initial_sha256", "batches_sha256"):
        assert len({fact["heads"]["reward_mlp"][key] for fact in facts.values()}) == 1
    assert "not applicable" in facts["enc_dec"]["heads"]["larp"]["status"]
    assert "larp" in found["jepa"] and "larp" not in found["enc_dec"]
    assert "reward_mlp" in found["random_vit"] and "larp" not in found["random_vit"]
    assert facts["random_vit"]["base_sha256"] != facts["random"]["base_sha256"]
    reward = pixelstages.make_transitions(ws)[1].reward.numpy()
    assert all(np.array_equal(cell["reward"], reward) for cell in found.values())
    assert facts["jepa"]["note"].startswith("not estimable") == (np.count_nonzero(reward) < 50)
    assert (ws.run.path / "pixels/jepa/s0/heads/larp.safetensors").is_file()


def test_stored_heads_predict_what_was_scored(ws):
    loaded = headstages.load_heads(ws, "jepa", 0)
    assert set(loaded) == {"reward_mlp", "larp"}
    cell, _ = headstages.load_cell(headstages.find_heads(ws, "jepa", 0))
    validation = pixelstages.make_transitions(ws)[1]
    features = heads.encode(pixelstages.load_model(ws, "jepa", 0), validation)
    for kind, head in loaded.items():
        predicted = head(heads.select_inputs(features, kind)).numpy()
        assert np.allclose(predicted, cell[kind], atol=1e-5)
    assert set(headstages.load_heads(ws, "enc_dec", 0)) == {"reward_mlp"}


def test_heads_are_logged_with_their_own_keys(ws):
    rows = ws.run.records("heads_jepa_s0")
    keys = {key for row in rows for key in row}
    for key in ("reward_mlp/jepa/val_epoch_avg/Loss", "larp/jepa/val_epoch_avg/loss"):
        assert key in keys
    assert all(
        math.isfinite(value) for row in rows for value in row.values() if value != row["stage"]
    )


def test_a_changed_base_weight_is_an_error(ws, monkeypatch, tmp_path):
    model = pixelstages.load_model(ws, "jepa", 0)
    parts = pixelstages.make_transitions(ws)

    def vandal(*_, **__):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return {}
        yield

    monkeypatch.setattr(headstages, "train_heads", vandal)
    work = headstages.score_model(ws, model, "jepa", parts, "x", tmp_path, {"seed": 0})
    with pytest.raises(HeadError, match="changed the weights of jepa"):
        list(work)
    assert not list(tmp_path.iterdir())


def test_study_has_its_own_data_and_leaves_the_run_alone(ws, monkeypatch):
    monkeypatch.setattr(rewards, "RESAMPLES", 50)
    pixelstages.make_transitions(ws)
    data = ws.run.manifest["stages"]["pixel_data"]
    for _ in lookahead.train_study(ws):
        pass
    assert list(lookahead.train_study(ws)) == []  # all done
    rows = lookahead.study_rows(ws)
    assert set(rows) == {"drift", "push"}
    for found in rows.values():
        by_name = {row["model"]: row for row in found}
        assert set(by_name) == set(lookahead.STUDIED)
        assert by_name["random"]["look_ahead"] is None
        for name in ("enc_dec_jepa", "jepa", "vjepa2"):
            assert by_name[name]["look_ahead"].low <= by_name[name]["look_ahead"].high
            assert (by_name[name]["over_random"] is None) == (name == "vjepa2")
    ws.run.verify("pixel_data")
    assert ws.run.manifest["stages"]["pixel_data"] == data
    assert not ws.run.done("vjepa2_s0")  # the study trains models of its own
    hashes, bases = {}, {}
    for world in lookahead.WORLDS:
        folders = [ws.run.path / f"pixels/study/{name}/s0" / world for name in lookahead.STUDIED]
        facts = [headstages.load_cell(folder)[1] for folder in folders]
        hashes[world] = {fact["data_sha256"] for fact in facts}
        bases[world] = [fact["base_sha256"] for fact in facts]
    assert len(hashes["drift"]) == len(hashes["push"]) == 1 and hashes["drift"] != hashes["push"]
    assert bases["drift"] == bases["push"]  # the reward alone differs
    study = copy.copy(ws)
    study.config = lookahead.study_config(ws.config, "drift")
    parts = lookahead.study_parts(ws)["drift"]
    model = pixelstages.fresh_model(study, "jepa", 0, parts[0])
    fit = fit_pixels(model, *parts, study.config.pixels.optim, seed=0, precision="fp32")
    assert len(list(fit)) == 2
    fit.load_best()
    assert fingerprint(model) == bases["drift"][lookahead.STUDIED.index("jepa")]


def test_study_worlds_share_everything_but_the_reward(ws, monkeypatch):
    (drift, _), (push, _) = lookahead.study_parts(ws).values()
    assert torch.equal(drift.frames, push.frames) and torch.equal(drift.action, push.action)
    assert not torch.equal(drift.reward, push.reward)
    whole = lookahead.study_data

    def foreign(ws, world):
        data = whole(ws, world)
        return data if world == "drift" else dataclasses.replace(data, action=data.action.flip(0))

    monkeypatch.setattr(lookahead, "study_data", foreign)
    with pytest.raises(ConfigError, match="no longer share their pictures and actions: action"):
        lookahead.study_parts(ws)


def test_study_budget_is_cut_and_never_raised():
    config = profile("laptop").override("pixels.optim.updates=90,pixels.environment.id=x/Other-v0")
    study = lookahead.study_config(config, "push")
    assert study.pixels.environment.id == "hjepa/Push-v0"
    assert study.pixels.optim.updates == 90
    assert study.pixels.vjepa2.stage1.optim.updates == config.pixels.reward.study_updates
    assert study.pixels.data.transitions == config.pixels.reward.study_transitions
    free = lookahead.study_config(config.override("pixels.reward.study_updates=0"), "push")
    assert free.pixels.vjepa2.stage1.optim.updates == config.pixels.vjepa2.stage1.optim.updates
    full = lookahead.study_config(profile("full"), "drift")
    assert full.pixels.optim.updates == 0  # counted in epochs


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
