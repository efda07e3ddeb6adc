import dataclasses
import functools
import itertools
import math
import re
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import digest
from tiny_pixels import (
    fresh,
    seeded,
    tiny_batch,
    tiny_config,
    tiny_pixels,
    tiny_transitions,
    tiny_workspace,
    under,
)
from torch import nn

from hjepa_lib.__main__ import main
from hjepa_lib.config import profile
from hjepa_lib.config.pixels import AuxiliaryConfig, EpochsConfig, RewardConfig
from hjepa_lib.files import read_json
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.pixels import figures, makers, stages, studies, tables, training
from hjepa_lib.pixels import measures as met
from hjepa_lib.pixels.training import (
    HEADS,
    DinoCentring,
    Features,
    RewardHead,
    barlow_twins,
    vicreg,
)
from hjepa_lib.pixels.transitions import Transitions


def draw(rows=256, dim=8, seed=0):
    return torch.randn(rows, dim, generator=seeded(seed))


def test_vicreg_equals_a_reference_in_numpy():
    """LOSS-2."""
    config = AuxiliaryConfig(sim=0.7, std=1.3, cov=0.4)
    widths = torch.linspace(0.2, 1.5, 8)
    views = widths * draw(seed=1), widths * (0.8 * draw(seed=2) + 0.4 * draw(seed=1))
    one, two = (view.double().numpy() for view in views)
    wanted = {"sim": ((one - two) ** 2).mean(), "std": 0.0, "cov": 0.0}
    for z in (one, two):
        wanted["std"] += np.maximum(1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4), 0).mean() / 2
        c = np.cov(z.T)
        wanted["cov"] += (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / z.shape[1] / 2
    total, terms = vicreg(config, *views)
    assert {key: term.item() for key, term in terms.items()} == pytest.approx(wanted, rel=1e-4)
    weighted = sum(getattr(config, key) * value for key, value in wanted.items())
    assert total.item() == pytest.approx(weighted, rel=1e-4)

    # One view has no similarity term.
    loss, z = functools.partial(vicreg, AuxiliaryConfig()), 0.3 * draw()
    (one, terms), (both, _) = loss(z), loss(z, z)
    assert terms["sim"] == 0 and one == pytest.approx(both.item(), rel=1e-6)


@pytest.mark.parametrize("own", [{}, {"barlow_lambda": 0.1}])
def test_barlow_twins_equals_a_reference_in_numpy(own):
    """LOSS-3."""
    weight = own.get("barlow_lambda", 0.0051)
    loss = functools.partial(barlow_twins, AuxiliaryConfig(**own))
    one, two = draw(seed=1), draw(seed=1) + 0.5 * draw(seed=2)
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (one.numpy(), two.numpy()))
    c = a.T @ b / len(a)
    wanted = np.sum((np.diag(c) - 1) ** 2) + weight * (np.sum(c**2) - np.sum(np.diag(c) ** 2))
    assert loss(one, two)[0].item() == pytest.approx(wanted, rel=1e-4)
    assert loss(one)[0] == loss(one, one)[0]


def test_the_centre_moves_in_training_and_freezes_in_evaluation():
    """LOSS-4."""
    loss, z = DinoCentring(8), draw() + 2
    mean = z.mean(dim=0)
    assert loss(z)[0].item() == pytest.approx(mean.square().sum().item(), rel=1e-5)
    assert torch.allclose(loss.centre, 0.1 * mean)
    loss(z)
    assert torch.allclose(loss.centre, 0.19 * mean)
    loss.eval()
    assert loss(z, z)[0] == loss(z)[0]
    assert torch.allclose(loss.centre, 0.19 * mean)
    assert torch.equal(loss.state_dict()["centre"], loss.centre)  # stored with the weights


def test_the_loss_is_its_named_terms():
    """LOSS-1, LOSS-5."""
    model = fresh("jepa", **under("auxiliary", weight=0.5, sim=0.7, std=1.3, cov=0.4))
    loss, t = model.loss(tiny_batch())
    total = 0.7 * t["vicreg_sim"] + 1.3 * t["vicreg_std"] + 0.4 * t["vicreg_cov"]
    assert t["vicreg_total"] == pytest.approx(total, rel=1e-5)
    assert t["vicreg_weighted"] == pytest.approx(0.5 * total, rel=1e-5)
    assert loss.item() == pytest.approx(t["prediction"] + 0.5 * total, rel=1e-5)


def test_the_auxiliary_loss_is_computed_in_full_precision():
    """Under bf16 autocast a covariance would keep two digits."""
    model, batch = fresh("jepa", auxiliary__kind="dino"), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(batch)
        value = fresh("jepa").loss(batch)[1]["vicreg_cov"]
    assert model.regulariser.centre.dtype == torch.float32
    assert value != torch.tensor(value).bfloat16().item()


TRAINED = ("enc_dec", "enc_dec_jepa", "jepa")
KINDS = ("vicreg", "barlow_twins", "dino")


def train(name, folder=None, data=None, **changes):
    data = data or tiny_transitions()
    model, optim = fresh(name, data, **changes), tiny_pixels(**changes).optim
    return model, training.fit(model, *data.split(0.3, 0), optim, seed=0, folder=folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("enc_dec", {"auxiliary__use_for_enc_dec": True}),
        ("enc_dec_jepa", {"jepa__predictor": "transformer"}),
        ("jepa", {"jepa__target": "none", "jepa__predictor": "transformer"}),
        ("jepa", {"encoder__kind": "vit", "jepa__target": "vjepa2"}),
        ("jepa", {"jepa__target": "none", "auxiliary__kind": "dino"}),
        *(("jepa", {"jepa__target": "default", "auxiliary__kind": kind}) for kind in KINDS),
    ],
    ids=str,
)
def test_every_trainable_tensor_is_optimised_and_learns(name, changes):
    """F1, F9, TRAIN-2, F3."""
    model, fit = train(name, **changes)
    optimised = {id(p) for group in fit.optimiser.param_groups for p in group["params"]}
    next(iter(fit))
    for key, p in model.named_parameters():
        assert p.requires_grad == (id(p) in optimised), key
        assert p.requires_grad != key.startswith("target_encoder"), key
        assert not p.requires_grad or p.grad.abs().max() > 0, key


def test_the_optimiser_and_budget_are_those_of_the_settings():
    """TRAIN-2."""
    _, fit = train("jepa")
    group = fit.optimiser.param_groups[0]
    assert isinstance(fit.optimiser, torch.optim.AdamW)
    assert (group["betas"], group["weight_decay"], fit.config.clip) == ((0.9, 0.999), 1e-5, 1.0)
    own = {"batch": 32, "lr": 1e-2, "weight_decay": 0.5, "clip": 1e-3, "schedule": "plateau",
           "patience": 2, "delta": 1e3}  # fmt: skip
    found = vars(EpochsConfig(epochs=20, **own).optim(3200))
    assert (own | {"updates": 2000}).items() <= found.items()
    assert {f.name for f in dataclasses.fields(EpochsConfig)} == {*own, "epochs", "updates"}

    # Rule 1: all models get the same number of updates, so nothing may stop one of them early.
    fixed = EpochsConfig(updates=7).optim(320)
    assert (fixed.updates, fixed.patience) == (7, 0)
    assert len(list(train("jepa", optim__lr=0.0)[1])) == 6  # its patience is 3


@pytest.mark.parametrize("name", ["enc_dec", "jepa"])
def test_two_runs_are_equal_and_a_resumed_one_as_well(name, tmp_path):
    """TRAIN-7."""
    changes = {"encoder__kind": "vit", "optim__batch": 13}  # validated every 3 updates
    one, fit = train(name, **changes)
    reports = list(fit)
    list(islice(train(name, tmp_path, **changes)[1], 4))
    again, fit = train(name, tmp_path, **changes)
    assert fit.update == 3
    torch.manual_seed(98)
    assert list(fit) == reports[3:] and digest(again) == digest(one)


def test_every_model_sees_the_same_batches(monkeypatch):
    """Rule 1 of the comparison: the k-th batch is a function of (seed, k) alone."""
    data, seen = tiny_transitions(), {name: [] for name in TRAINED}
    whole = type(data).__getitem__
    for name, rows in seen.items():
        monkeypatch.setattr(
            type(data),
            "__getitem__",
            lambda self, i, to=rows: to.append(i.tolist()) or whole(self, i),
        )
        list(train(name, data=data)[1])
    assert seen["enc_dec"] == seen["enc_dec_jepa"] == seen["jepa"] != []


TINY = RewardConfig(hidden=16, layers=2, optim=EpochsConfig(updates=30, batch=16, delta=0.0))


def features(rows=96, seed=0, ahead=True):
    z, a = (torch.randn(rows, width, generator=seeded(10 * seed + width)) for width in (5, 4))
    return Features(z, a, z[:, 0] + a.mean(1), z + 1 if ahead else None)


def trained(config=TINY, ahead=True, kinds=HEADS):
    """{kind: (initial weights' hash, trained head, what it predicts of held-out rewards)}."""
    train, held_out, choice = (features(seed=number, ahead=ahead) for number in range(3))
    found = {}
    for kind in kinds:
        work = training.fit_head(kind, train, choice, config, 0)
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
    z, a = torch.zeros(2, 64), torch.ones(2, 32)
    features = Features(z, a, torch.zeros(2), z + 7)
    plain, ahead, copy = (features.inputs(kind) for kind in HEADS)
    assert torch.equal(plain, torch.cat([z, a], 1))
    assert torch.equal(ahead, torch.cat([z, z + 7, a], 1))
    assert torch.equal(copy, torch.cat([z, z, a], 1))
    assert features._replace(imagined=None).inputs("larp") is None
    head = RewardHead(profile("full").pixels.reward, 96)
    assert [one.out_features for one in head.net if isinstance(one, nn.Linear)] == [512] * 3 + [1]
    assert [one.p for one in head.net if isinstance(one, nn.Dropout)] == [0.2] * 3


def test_initial_weights_depend_on_seed_and_width_alone():
    torch.manual_seed(1)
    first = RewardHead(TINY, 9, 0)
    second, other, wide = RewardHead(TINY, 9, 0), RewardHead(TINY, 9, 1), RewardHead(TINY, 14, 0)
    assert fingerprint(first) == fingerprint(second) != fingerprint(other)
    assert torch.equal(first.net[3].weight, wide.net[3].weight)  # hidden layers of MLP and LARP


@pytest.mark.parametrize("width", [96, 544, 1200])
def test_a_fresh_head_says_the_same_of_everything(width):
    head = RewardHead(profile("laptop").pixels.reward, width).eval()
    inputs = torch.randn(200, width, generator=seeded(7))
    assert not head(inputs).any()
    assert 0.5 < head.net[:-1](inputs).square().mean().sqrt() < 2  # signals keep their size


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
    one, two = (training.encode(base.train(), data) for _ in range(2))
    assert seen == 2 * list(range(len(data)))
    for mine, other in zip(one, two, strict=True):
        assert torch.equal(mine, other) and not mine.requires_grad  # dropout is off (F4)
    assert fingerprint(base) == before


def test_without_an_imagined_latent_larp_is_not_applicable_and_nothing_crashes(first):
    second = trained(ahead=False)
    assert set(second) == {"reward_mlp"} and set(first) == set(HEADS)
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
    """X4."""
    optim = EpochsConfig(updates=12, batch=16, lr=0.0, patience=1)
    config = dataclasses.replace(TINY, hidden=8, optim=optim, standardise=False)
    z, rewards = torch.randn(80, 4), torch.randn(80)
    whole = Features(z, z[:, :2], rewards, z + 1)
    parts = [whole.rows(rows) for rows in torch.arange(80).split([70, 10])]
    work = training.fit_head("larp", *parts, config, 0)
    *_, last = work
    assert last.update == 12
    inputs = torch.cat([z, z + 1, z[:, :2]], 1)[70:]
    error = (work.module.eval()(inputs) - rewards[70:]).square().mean().item()
    assert last.validation["loss"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", 8), ("layers", 1), ("dropout", 0.5), ("standardise", False)],
)
def test_every_setting_of_a_head_changes_what_it_predicts(field, value, first):
    other = trained(dataclasses.replace(TINY, **{field: value}), kinds=("larp",))
    assert not torch.equal(first["larp"][2], other["larp"][2])


@pytest.fixture(scope="module")
def labelled(outputs):
    data = tiny_transitions(12)
    data.reward[:] = torch.arange(len(data)) % 7
    ws = tiny_workspace(outputs, tiny_config(reward__labels=(20, 4_000, 9_000)), data=data)
    return ws, studies.load_labels(ws), data


def test_labels_are_counted_for_every_model_head_and_label(labelled, tmp_path):
    ws, found, _ = labelled
    cells = {(r["pays"], r["model"], r["head"], r["labels"]) for r in found["rows"]}
    assert len(cells) == 2 * len(studies.STUDIED) * len(HEADS) * 2 == len(found["rows"])
    every = len(studies._labelled(stages.make_transitions(ws).train)[0])
    assert {r["labels"] for r in found["rows"]} == {20, every}  # all that there are, once
    assert all(r["r2"] is not None for r in found["rows"])
    own = [row | {"learner": row["model"]} for row in found["rows"] if row["model"] == "jepa"]
    same = studies.score_labels(ws, {"models": ["jepa"]})
    assert [row | {"model": "jepa"} for row in same] == own
    pd.DataFrame(same).to_csv(tmp_path / "pixel_labels.csv")
    (told,) = tables.sections(tmp_path)
    assert told["sentences"] == [text for text in found["sentences"] if ", jepa, " in text]
    section = read_json(ws.run.path / "sections/25-labels.json")
    assert [*section["lists"].values()] == [found["sentences"]]


def test_rewards_that_are_all_alike_give_no_number():
    row = {"pays": "next state", "model": "jepa", "labels": 20, "r2": math.nan}
    rows = [row | {"r2_choice": math.nan, "seed": seed, "head": head} for seed in range(3)
            for head in HEADS]  # fmt: skip
    for said in studies.label_sentences(rows):
        assert said.startswith("next state, jepa, 20 labels: R2 not estimable over ")
    figures.label_curves(rows, {}).canvas.draw()


def test_seeds_that_cannot_tell_are_never_said_to_be_enough():
    """Three seeds whose interval is wider than the gain, however alike their choice rows are."""
    rng, rows = np.random.default_rng(0), []
    for labels, head, seed in itertools.product(range(1, 41, 3), HEADS, range(3)):
        row = {"pays": "next state", "model": "jepa", "labels": labels, "head": head, "seed": seed}
        said = {"r2": 0.01 * labels * rng.normal(), "r2_choice": 0.001 * rng.normal()}
        rows.append(row | said)
    for said in studies.label_sentences(rows):
        low, high, needed = re.search(r"\((\S+) to (\S+); seeds: 3, ([\d,]+)", said).groups()
        wide = float(high) - float(low) > 2 * studies.GAIN
        assert int(needed.replace(",", "")) > 3 * wide, said
    assert studies.seeds_for(1.0, 1.0, 3) > 3 * studies.seeds_for(1.0, 1.0, 1_000_000)


def test_the_control_pays_for_the_present_state_alone(labelled):
    """X13."""
    _, _, data = labelled
    kept, (reward, before) = studies._labelled(data)
    assert len(kept) == len(data) - len(data.episodes)
    assert torch.equal(reward, data.reward[kept]) and torch.equal(before, data.reward[kept - 1])
    assert torch.equal(data.episode[kept], data.episode[kept - 1])


def test_its_key_knows_the_heads_and_the_weights_it_starts_from(tmp_path):
    """I2, I8."""

    names = iter("abcdef")

    def key(**changes):
        ws = tiny_workspace(tmp_path, tiny_config(**changes), next(names))
        return [ws.key(stage) for stage in studies.label_study(ws)]

    plain = key()
    for changes in ({"reward__labels": (30,)}, {"jepa__ema_decay": 0.5}, {"seeds": 2}):
        assert key(**changes) != plain
    assert key(log_every=3) == plain


def test_losses_run_into_their_own_folders_and_are_ranked(root, monkeypatch):
    monkeypatch.setattr(makers, "acquire", lambda *_: tiny_transitions())
    losses = {kind: AuxiliaryConfig(kind) for kind in ("vicreg", "dino", "none")}
    config = tiny_config(optim__updates=3, jepa__target="default", encoder__kind="cnn")
    table = studies.run_losses("losses", losses, config)
    *rows, last = table.to_dict("records")
    assert [row["rank"] for row in rows] == [1, 2]
    assert math.isnan(last["rank"]) and "through the auxiliary loss alone" in last["status"]
    for row in rows:
        values = [v for k, v in row.items() if k.startswith("downstream/")]
        assert row["status"] == "ok" and len(values) == 2 and np.isfinite(values).all()
        drawn = read_json(root / "losses" / row["name"] / "pixels/decoder_jepa_s0/result.json")
        assert row["downstream/reconstruction_mse"] == drawn["best_loss"]  # not that of the test
        manifest = read_json(root / "losses" / row["name"] / "manifest.json")
        assert manifest["config"]["pixels"]["optim"]["updates"] == 3
        assert manifest["config"]["pixels"]["auxiliary"]["kind"] == row["type"]
    assert table.equals(studies.run_losses("losses", losses, config))


def test_rows_without_finite_numbers_are_ranked_last():
    """Published summaries of the seed's branch rank nothing but infinities and zeros."""
    rows = [
        {"name": "a", "downstream/x": 2.0, "downstream/y": 1},
        {"name": "b", "downstream/x": math.inf, "downstream/y": 0}, {"name": "c"},
        {"name": "d", "downstream/x": 1.0, "downstream/y": 0.5},
        {"name": "e", "downstream/x": 2.0, "downstream/y": 1},
    ]  # fmt: skip
    rows = [{"type": "vicreg", "status": ""} | row for row in rows]
    ranked = studies.rank_rows(rows)
    assert [*ranked["name"]] == [*"daebc"]
    assert [*ranked["rank"].fillna(0)] == [1, 2, 2, 0, 0]
    text = studies.summary_text(ranked)
    assert "inf" not in text and "nan" not in text.lower() and " - " in text


def test_the_command_ranks_what_it_is_given(tmp_path, monkeypatch, failed):
    given, path = [], tmp_path / "losses.yaml"

    def run_losses(study, losses, config):
        given.append((study, list(losses), config.profile))
        row = {"type": "x", "status": "", "downstream/x": 1.0}
        return studies.rank_rows([row | {"name": name} for name in losses])

    monkeypatch.setattr(studies, "run_losses", run_losses)
    path.write_text("- {name: weak, type: vicreg, params: {cov: 0.01}}\n- {name: b, type: dino}\n")
    assert main(["auxiliary", str(path), "--profile", "smoke", "--name", "mine"]) == 0
    assert main(["auxiliary", "--profile", "smoke"]) == 0
    assert given == [("mine", ["weak", "b"], "smoke"),
                     ("auxiliary", ["vicreg", "barlow_twins", "dino"], "smoke")]  # fmt: skip
    odd, empty = "is {name, type, params} with a name of its own", "must hold a list of auxiliary"
    for text, message in (
        ("[1", "is not valid YAML"), ("a: 1", empty), ("[]", empty), ("[1, 2]", odd),
        ("- {name: a}", odd), ("- {name: a, type: vicreg, weight: 1}", odd),
        ("- {name: a, type: dino, params: [1]}", odd),
        ("[{name: a, type: dino}, {name: a, type: dino}]", odd),
        ("- {name: a, type: gan}", "kind must be one of none, vicreg"),
        ("- {name: a, type: vicreg, params: {covv: 1}}", "unknown key 'covv'"),
    ):  # fmt: skip
        path.write_text(text)
        assert message in failed("auxiliary", str(path), "--profile", "smoke")


RNG = np.random.default_rng(0)


@pytest.fixture
def jepa():
    return fresh("jepa", encoder__kind="cnn")


def test_every_model_is_measured_on_the_same_rows():
    rows = met.pick(5000)
    assert len(rows) == met.MOST and rows.tolist() == met.pick(5000).tolist()
    assert (rows.diff() > 0).all() and met.pick(7).tolist() == list(range(7))


def test_latent_errors_of_a_perfect_and_a_lazy_model(jepa):
    """X1."""
    data = tiny_transitions()
    truth = {len(data): jepa.eval().encode_target(data[torch.arange(len(data))].next_state)}
    for imagine, wanted in (
        (lambda latent, action: truth[len(latent)], None),
        (lambda latent, action: latent, "copy_last_latent"),
    ):
        jepa.imagine, jepa.encode = imagine, jepa.encode_target
        found = met.transition_errors(data, data, "cpu", jepa)
        expected = found[wanted] if wanted else 0 * found["latent"]
        assert found["latent"] == pytest.approx(expected, abs=1e-6)
        means = [found[f"{kind}_latent"].mean() for kind in ("copy_last", "mean")]
        assert found["latent_guess"].mean() == min(means) > 0
    assert "latent" not in met.transition_errors(data, data, "cpu", fresh("random"))


def test_gradients_are_told_part_by_part(jepa):
    """F3."""
    norms = met.gradient_norms(jepa, tiny_batch())
    assert set(norms) == {"encoder", "action", "predictor"} and min(norms.values()) > 0
    jepa.loss(tiny_batch())[0].backward()
    own = [p.grad for p in jepa.predictor.parameters()]
    assert norms["predictor"] == pytest.approx(math.hypot(*(g.norm() for g in own)), rel=1e-5)
    jepa.requires_grad_(False)
    assert met.gradient_norms(jepa, tiny_batch()) == {}
    jepa.predictor.requires_grad_(True)
    assert set(met.gradient_norms(jepa, tiny_batch())) == {"predictor"}


def test_a_latent_without_a_map_is_written_out():
    maps = {"jepa": RNG.normal(size=(40, 4)), "random": np.ones((40, 4))}
    figure = figures.latent_maps(maps, np.arange(40.0), "step")
    texts = [text.get_text() for axis in figure.axes for text in axis.texts if text.get_text()]
    assert texts == ["not estimable", "not estimable"]  # both of the constant latent
