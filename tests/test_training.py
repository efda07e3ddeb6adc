import dataclasses
import math
import struct
from itertools import islice
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import digest, dotted, make_job, make_level2, make_store, refused, seeded, tiny_config
from torch import nn

from hjepa_lib.config import OptimConfig
from hjepa_lib.data.recipes import generate
from hjepa_lib.evaluation.openloop import draw_windows
from hjepa_lib.files import FileError, WorkbookError
from hjepa_lib.models import objectives
from hjepa_lib.models.distance import LatentGeometry
from hjepa_lib.training import level2 as level2_training
from hjepa_lib.training import loop, probes
from hjepa_lib.training import policies as policies_training
from hjepa_lib.training.loop import Fit, Task, TrainingError, learning_rate
from hjepa_lib.worlds.layout import render

KINDS = ("level1", "level2", "joint", "distance")


def config_of(kind, **changes):
    joint = {"level2.train": "joint"} if kind == "joint" else {}
    return tiny_config().override(joint | dotted(changes), strict=False)


@given(updates=st.integers(1, 60), warmup=st.floats(0, 1), final=st.floats(0, 1))
@example(updates=1, warmup=0.0, final=0.1)
@example(updates=40, warmup=0.1, final=0.001)
def test_learning_rate_warms_up_and_never_rises_again(updates, warmup, final):
    """PL4."""
    config = OptimConfig(updates=updates, lr=0.5, warmup=warmup, final=final)
    rates = [learning_rate(i, config) for i in range(updates)]
    top = max(1, round(warmup * updates))
    assert np.allclose(np.diff(rates[:top]), 0.5 / top)
    assert rates[top - 1] == pytest.approx(0.5)
    assert (np.diff(rates[top:]) <= 1e-12).all()
    assert all(0.5 * final - 1e-12 <= rate <= 0.5 + 1e-12 for rate in rates[top:])
    if updates > top + 1:
        assert rates[-1] == pytest.approx(0.5 * final)


def test_training_makes_exactly_the_configured_updates():
    """PL4."""
    config = config_of("level1", level1__optim__updates=7)
    fit = make_job("level1", config).fit
    reports = list(fit)
    rates = [learning_rate(i, config.level1.optim) for i in range(7)]
    assert [(r.update, r.lr) for r in reports] == list(zip(range(1, 8), rates, strict=True))
    assert fit.finished and list(fit) == []
    # validation every 2 updates, and at the end
    assert [r.update for r in reports if r.validation] == [2, 4, 6, 7]


NO_DECAY = {f"{part}__optim__weight_decay": 0.0 for part in ("level1", "level2", "distance")}
HOOKS = {"level2__conditioning": True, "level2__feedback": True}
TRAINED = [
    ("level1", {}),
    ("level1", {"level1__encoder": "impala", "level1__predictor": "gru"}),
    ("level1", {"level1__predictor": "gru", "level1__loss__form": "pldm"}),
    ("level1", {"level1__encoder": "vit", "level1__predictor": "transformer"}),
    ("level1", {"level1__predictors": 3}),
    ("level1", {"level1__loss__idm": 0.0}),
    ("level1", {"level1__rollout": 2, "level1__loss__std_t": 0.2}),
    *(("level2", {"level2__actions": one}) for one in ("none", "concat", "only", "learned")),
    ("level2", {"level2__state_dim": 24}),
    ("level2", {"level2__latent": "categorical"}),
    ("joint", {}),
    ("joint", HOOKS),
    # Here the similarity is the only term of the predictions (F10: nothing cancels).
    ("joint", {"level2__latent": "categorical", "level2__conditioning": True}),
    ("joint", {"level2__feedback": True}),
    ("joint", {"level2__loss__idm": 1.0, "level2__actions": "learned"}),
    ("joint", {"level1__predictors": 2, "level1__rollout": 4}),
    ("level2", {"level2__macro_steps": 1, "level2__step_skip": 1, "level2__actions": "concat"}),
    ("distance", {"distance__gamma": 1.0, "distance__n_step": 1}),
    *((kind, {"precision": "bf16"}) for kind in KINDS),
]


@pytest.mark.parametrize(("kind", "changes"), TRAINED, ids=str)
def test_every_trainable_tensor_is_optimised_and_changes(kind, changes):
    """F1, F3, F9, F10, F11, HW3, PL1, PL15."""
    job = make_job(kind, config_of(kind, **changes, **NO_DECAY))
    named = {name.removeprefix("level1."): p for name, p in job.module.named_parameters()}
    before = {name: p.clone() for name, p in named.items()}
    optimised = {id(p) for group in job.fit.optimiser.param_groups for p in group["params"]}
    losses = [next(iter(job.fit)).loss]
    assert optimised == {id(p) for p in named.values()}  # and nothing else: level 1 is frozen
    for name, parameter in named.items():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad.abs().max() > 1e-6, name  # more than rounding
    losses += [report.loss for report in job.fit]
    assert [math.isfinite(loss) for loss in losses] == [True] * 4
    assert all(torch.isfinite(p).all() for p in named.values())


def test_short_trajectories_are_refused(store, level1):
    model = make_level2(tiny_config(level2__step_skip=40, level2__macro_steps=3))
    short = make_store(level1, generate("good", 400, states=17))
    train = level2_training.train_level2
    for part, longest in ((store, 91), (short, 17)):  # of a validation too
        message = f"no trajectory has {{}} states: the longest has {longest}".format
        refused(WorkbookError, message(121), train, model, level1, part, None, seed=0)
    model = make_level2(tiny_config(level2__step_skip=20))
    refused(WorkbookError, message(41), train, model, level1, store, short, seed=0)
    refused(WorkbookError, message(33), draw_windows, short, 32)


RESUMED = [
    *((kind, {}) for kind in KINDS),
    ("distance", {"distance__teacher": "graph"}),
    ("policies", {}),
]


@pytest.mark.parametrize(("kind", "changes"), RESUMED, ids=str)
def test_resuming_equals_an_uninterrupted_run_bit_for_bit(kind, changes, tmp_path, monkeypatch):
    """EB5, PL2, PL8."""
    monkeypatch.setattr(policies_training, "VALIDATION_PAIRS", 8)
    part = "level1" if kind == "joint" else kind
    updates = {f"{part}__optim__updates": 6, f"{part}__optim__patience": 0}
    config = config_of(kind, **changes, **updates)
    whole = make_job(kind, config)
    reports = list(whole.fit)
    last = digest(whole.whole)
    whole.fit.load_best()
    for stop in (1, 3, 6):
        folder = tmp_path / str(stop)
        stopped = iter(make_job(kind, config, folder).fit)  # never closed
        for _ in range(stop):
            next(stopped)
        resumed = make_job(kind, config, folder)
        assert resumed.fit.update == stop // 2 * 2  # checkpoints at every second update
        torch.manual_seed(123)
        np.random.seed(123)
        assert list(resumed.fit) == reports[stop // 2 * 2 :]
        assert digest(resumed.whole) == last
        resumed.fit.load_best()
        assert digest(resumed.whole) == digest(whole.whole)
    other = make_job(kind, config.override({"seed": 1}))
    assert [report.loss for report in other.fit] != [report.loss for report in reports]


def test_a_resume_file_that_does_not_fit_is_one_sentence(tmp_path, monkeypatch):
    """S6."""
    config, path = config_of("level1"), tmp_path / loop.RESUME

    def again(config):
        return make_job("level1", config, tmp_path)

    list(again(config).fit)
    payload = torch.load(path, weights_only=True)
    del payload["settings"]["patience"]
    torch.save(payload, path)
    assert again(config).fit.update == 4
    for setting, value, message in (
        ("level1.optim.patience", 3, "patience was 0 there and is 3 here"),
        ("level1.optim.lr", 0.1, "belongs to other training settings"),
        ("level1.hidden", 17, "does not fit this model"),
        ("precision", "bf16", "precision was fp32 there and is bf16 here"),
    ):
        refused(TrainingError, message, again, config.override({setting: value}))
    path.write_bytes(path.read_bytes()[:-100])
    refused(FileError, r"resume\.pt is not the whole state", again, config)
    for kind in (struct.error, AttributeError, ZeroDivisionError):  # what unpickling can end in
        monkeypatch.setattr(torch, "load", Mock(side_effect=kind))
        refused(FileError, r"resume\.pt is not the whole state", again, config)


def test_c5_a_file_that_is_not_there_is_not_called_damaged(tmp_path, monkeypatch):
    fit = make_job("level1", config_of("level1")).fit
    with pytest.raises(TrainingError, match=r"none\.pt, the state to go on from, does not exist"):
        fit.resume(tmp_path / "none.pt")
    fit.save(tmp_path / "some.pt")
    monkeypatch.setattr(nn.Module, "load_state_dict", Mock(side_effect=AttributeError))
    with pytest.raises(AttributeError):
        fit.resume(tmp_path / "some.pt")


def test_a_resume_file_of_another_device_goes_on_and_says_so(tmp_path, monkeypatch):
    """S1: its precision was that machine's."""
    config = config_of("level1")
    for _ in zip(range(2), make_job("level1", config, tmp_path).fit, strict=False):
        pass
    path = tmp_path / loop.RESUME
    payload = torch.load(path, weights_only=True) | {"device": "cuda"}
    payload["settings"]["precision"] = "bf16"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(payload, path)
    with pytest.warns(UserWarning, match="begun on cuda, goes on here on cpu"):
        resumed = make_job("level1", config, tmp_path)
    assert resumed.fit.update == 2
    assert [report.update for report in resumed.fit] == [3, 4]


class Toy(nn.Module):
    """A vector driven to zero, and a sum that a lost update must not touch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))


def toy(factors=(), validate=None, folder=None, after=None, skips=False, **optim):
    """Loss = factor * |w|^2, the factor of update k from `factors` (1 beyond them)."""
    module = Toy()

    def loss_fn(generator):
        factor = factors[fit.update] if fit.update < len(factors) else 1.0
        if factor == "slope":  # of a root at 0: the loss is finite, its gradient is not
            return module.weight.mul(0).abs().sqrt().sum(), {}
        module.seen += factor
        return factor * module.weight.square().sum(), {}

    settings = {"updates": 6, "lr": 0.1, "validate_every": 1, "schedule": "constant"} | optim
    task = Task(module, loss_fn, validate, after)
    fit = Fit(task, OptimConfig(**settings), seed=0, folder=folder, skips=skips)
    return module, fit


@pytest.mark.parametrize("clip", [0.0, 2.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, "slope"])
def test_an_update_that_is_not_finite_stops_or_is_skipped_and_counted(bad, clip):
    """TRAIN-3."""
    module, fit = toy([1.0, 1.0, bad], clip=clip)
    steps, optimiser = iter(fit), fit.optimiser.state
    next(steps), next(steps)
    before = digest(module.weight, *optimiser.values())
    said = "the gradient .*" if bad == "slope" else f"the loss is {bad}"
    refused(TrainingError, rf"{said} at update 3; lower the lea", next, steps)
    assert digest(module.weight, *optimiser.values()) == before and fit.update == 2
    calls = []
    module, fit = toy([1.0, bad], after=lambda: calls.append(1), clip=clip, skips=True)
    steps, optimiser = iter(fit), fit.optimiser.state
    next(steps)
    before = digest(module, *optimiser.values())
    report = next(steps)
    assert (report.update, report.skipped, fit.skipped) == (2, 1, 1)
    assert digest(module, *optimiser.values()) == before
    assert [report.skipped for report in steps] == [1] * 4
    assert len(calls) == 5 and digest(module, *optimiser.values()) != before


def test_a_training_that_only_skips_ends_with_a_sentence():
    _, fit = toy([math.nan] * 100, updates=100, skips=True)
    refused(TrainingError, "50 updates in a row", list, fit)


def test_a_huge_loss_fails():
    """(+) The seed divided losses above 1e6 by 1000 and went on."""
    refused(TrainingError, r"the loss is 3e\+06 at update 1", list, toy([1e6], skips=True)[1])
    assert next(iter(toy([1e6])[1])).loss > 1e6


PLATEAU = {"schedule": "plateau"}
SMALL = [1.0, 0.99, 0.98, 0.97, 0.96]


@pytest.mark.parametrize(
    ("losses", "settings", "rates"),
    [
        ([1.0] * 4, {}, [0.1] * 4),
        ([1.0, 0.9, 0.8, 0.7], PLATEAU, [0.1] * 4),
        ([1.0] * 7, PLATEAU, [0.1] * 4 + [0.05] * 3),  # as torch's ReduceLROnPlateau
        ([1.0] * 5, PLATEAU | {"lr": 1.5e-6}, [1.5e-6] * 4 + [1e-6]),
        (SMALL, PLATEAU | {"delta": 0.1}, [0.1] * 4 + [0.05]),
        (SMALL, PLATEAU | {"delta": 0.001}, [0.1] * 5),
    ],
)
def test_schedules(losses, settings, rates):
    """VJ-5."""
    told = iter(losses)
    _, fit = toy(validate=lambda: {"loss": next(told)}, updates=len(losses), **settings)
    assert [report.lr for report in fit] == pytest.approx(rates)


FALLING = [1.0, 0.5, 0.6, 0.6, 0.6, 0.1]
SLOW = [1.0, 0.9995, 0.999, 0.9985, 0.998, 0.9975]  # 0.001 below the first only at the fourth


@pytest.mark.parametrize(
    ("losses", "patience", "delta", "updates"),
    [(FALLING, 3, 0.0, 5), (FALLING, 0, 0.0, 6), (SLOW, 3, 0.001, 6), (SLOW, 2, 0.001, 3)],
)
def test_early_stopping_on_fake_loss_sequences(losses, patience, delta, updates):
    """TRAIN-4, F9."""
    told, snapshots = iter(losses), []

    def validate():
        snapshots.append(module.weight.clone())
        return {"loss": next(told)}

    module, fit = toy(validate=validate, patience=patience, delta=delta)
    assert len(list(fit)) == updates
    assert fit.best_loss == min(losses[:updates])  # a small fall is still the best so far
    fit.load_best()
    assert torch.equal(module.weight, snapshots[losses.index(fit.best_loss)])


def test_resuming_keeps_schedule_patience_skip_counter_and_best_weights(tmp_path):
    """TRAIN-7, PL8."""
    losses = [1.0, 1.0, 1.0, 0.9999, 0.9, 0.95, 0.95, 0.95]
    factors = [1.0, math.nan, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0]

    def start(folder=None):
        module, fit = toy(
            factors, lambda: {"loss": losses[fit.update - 1]}, folder, delta=0.01, patience=4,
            updates=8, skips=True, **PLATEAU,
        )  # fmt: skip
        return module, fit

    def best(module, fit):
        fit.load_best()
        return digest(module)

    first, fit = start()
    whole, wanted = list(fit), best(first, fit)
    for stop in range(1, len(whole)):
        list(islice(start(tmp_path / str(stop))[1], stop))
        module, fit = start(tmp_path / str(stop))
        assert fit.update == stop
        assert repr(list(fit)) == repr(whole[stop:])  # NaN equals NaN as text
        assert best(module, fit) == wanted
    assert whole[-1].skipped == 2 and whole[-1].lr < 0.1


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_gradient_clipping_bounds_the_norm_and_zero_switches_it_off(clip):
    module, fit = toy([1e3], clip=clip)
    report = next(iter(fit))
    assert module.weight.grad.norm().item() == pytest.approx(clip or report.grad_norm, rel=1e-4)
    assert report.grad_norm > 100


def test_validation_without_a_loss_selects_nothing():
    module, fit = toy(validate=lambda: {"quality": 1.0}, patience=1)
    assert len(list(fit)) == 6
    last = module.weight.clone()
    fit.load_best()
    assert torch.equal(module.weight, last)


def test_a_reader_can_hand_in_a_loss_and_an_optimiser():
    module, fit = toy()
    fit = Fit(
        dataclasses.replace(fit.task, loss=lambda _: (module.weight.abs().sum(), {"mine": 2.0})),
        fit.config,
        seed=0,
        stage="mine",
        optimiser=lambda parameters, optim: torch.optim.SGD(parameters, lr=optim.lr),
    )
    before = module.weight.clone()
    report = next(iter(fit))
    assert (report.terms, report.stage) == ({"mine": 2.0}, "mine")
    torch.testing.assert_close(module.weight.detach(), before - report.lr * before.sign())


@pytest.mark.parametrize("kind", ["level1", "joint"])
def test_bf16_is_for_forward_passes_alone(kind, monkeypatch):
    """Q4."""
    seen = []

    def spy(where, name):
        plain = getattr(where, name)

        def checked(*args):
            found = plain(*args)
            seen.append((name, found.dtype))
            return found

        monkeypatch.setattr(where, name, checked)

    spy(objectives, "covariance")
    spy(objectives, "inverse_dynamics")
    list(make_job(kind, config_of(kind, precision="bf16")).fit)
    assert set(seen) >= {("covariance", torch.float32), ("inverse_dynamics", torch.float32)}
    assert {dtype for _, dtype in seen} == {torch.float32}


def test_validation_reports_collapse_and_position():
    """F13, PL7."""
    config = config_of("level1", level1__loss__std_t=0.3)
    report = list(make_job("level1", config).fit)[-1].validation
    terms = {"sim", "std", "std_t", "cov", "sim_t", "idm"}
    wanted = {"loss", "latent_std", "effective_rank", "probe_position_px", "open_loop_px"}
    assert report.keys() == terms | wanted
    weights = config.level1.loss
    total = sum(getattr(weights, name) * report[name] for name in terms)
    assert report["loss"] == pytest.approx(total, rel=1e-5)


def test_effective_rank():
    basis = torch.randn(50, 6, generator=seeded())
    equal = torch.linalg.qr(basis - basis.mean(0)).Q
    for latents, rank in ((equal, 6), (equal[:, :1] * torch.ones(3), 1), (torch.ones(50, 3), 1)):
        assert probes.effective_rank(latents) == pytest.approx(rank, rel=1e-3)


def test_ridge_probe_reads_a_linear_code_exactly():
    """Q4."""
    latents = torch.randn(200, 5, generator=seeded())
    targets = latents @ torch.randn(5, 2, generator=seeded(1)) + torch.tensor([3.0, -7.0])
    with torch.autocast("cpu", torch.bfloat16):
        probe = probes.fit_ridge(latents[:100], targets[:100], strength=1e-9)
        torch.testing.assert_close(probe(latents[100:]), targets[100:], atol=1e-4, rtol=1e-4)
    error = probes.rmse_px(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0, 0]]))
    assert error == pytest.approx(math.sqrt(12.5))


def test_probe_speaks_px_and_leaves_the_model_alone(level1, store, short_probe):
    before = digest(level1)
    probe, report = probes.train_probe(level1, store, store, seed=0)
    assert digest(level1) == before
    assert not any(parameter.requires_grad for parameter in probe.parameters())
    latents, places = store.latents.float(), store.positions
    error = probes.rmse_px(probe(latents), places)
    assert report["probe_px_encoder"] == pytest.approx(error, rel=1e-5)
    torch.testing.assert_close(probe(latents), probe.net(latents) * probe.std + probe.mean)


def test_store_holds_the_latents_of_its_trajectories(level1, data):
    store = make_store(level1, data, limit=3)
    assert torch.equal(store.lengths, data.lengths[:3])
    frames = render(store.positions, store.layout.index(store.trajectory))
    torch.testing.assert_close(store.latents.float(), level1.encode(frames), atol=2e-2, rtol=1e-2)
    assert torch.equal(store.actions, data.actions[: len(store.positions)])


def test_windows_of_stored_latents_never_cross_a_trajectory(store):
    """F6."""
    length = 9
    first = store.windows(length)
    wanted = sum(int(n) - length + 1 for n in store.lengths)
    assert len(first) == wanted
    batch = store.gather(first, length)
    rows = first[:, None] + torch.arange(length)
    assert (store.trajectory[rows] == store.trajectory[rows[:, :1]]).all()
    assert torch.equal(batch.positions, store.positions[rows])
    assert torch.equal(batch.actions, store.actions[rows[:, :-1]])
    assert torch.equal(batch.latents, store.latents[rows].float())


def test_typical_cost_is_the_median_over_windows(store):
    first = store.windows(6)
    gap = store.latents[first].float() - store.latents[first + 5].float()
    found = level2_training.typical_cost(LatentGeometry(), store, 5)
    assert found == pytest.approx(gap.square().mean(-1).median().item(), rel=1e-6)


def test_percentile_box_of_learned_macro_actions(level1, store, monkeypatch):
    """HWM: 2nd and 98th percentile per dimension, each pulled in by 0.1; no frame is drawn."""
    monkeypatch.setattr(store, "scene", lambda _: pytest.fail("a frame was drawn"))
    model = make_level2(tiny_config(level2__actions="learned"))
    box = level2_training.macro_box(model, level1, store)
    with torch.no_grad():
        actions = store.gather(store.windows(5), 5, scene=False).actions
        codes = model.macro(level1.normalise_actions(actions))
    low, high = np.quantile(codes.numpy(), [0.02, 0.98], axis=0)
    np.testing.assert_allclose(box.numpy(), [low + 0.1, high - 0.1], atol=1e-5)
    assert level2_training.macro_box(make_level2(tiny_config()), level1, store) is None


def test_prior_error_is_the_mse_of_one_imagined_step(level1, store):
    batch = store.gather(store.windows(9)[:20], 9)
    for actions in ("none", "learned"):
        model = make_level2(tiny_config(level2__actions=actions))
        macros = model.macro(level1.normalise_actions(batch.actions)[:, None, :4])
        predicted = model.imagine(batch.latents[:, 0], 1, macros).predictions[:, 0]
        wanted = (predicted - batch.latents[:, 4]).square().mean()
        torch.testing.assert_close(level2_training.prior_error(model, level1, batch), wanted)
