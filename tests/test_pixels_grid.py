import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import ema_follows, refused, seeded
from tiny_pixels import TINY_GRID
from tiny_runs import cut

from hjepa_lib.__main__ import main
from hjepa_lib.config import OptimConfig, differences, profile, read_yaml
from hjepa_lib.config.pixels import EpochsConfig, GridConfig
from hjepa_lib.figures.training import loss_curves
from hjepa_lib.files import FileError, WorkbookError, read_json, save_npz
from hjepa_lib.grids import buffer as buffers
from hjepa_lib.grids import figures, measures, stages, world
from hjepa_lib.grids.buffer import GridBuffer
from hjepa_lib.grids.models import ActionEncoder, GridJepa, build_grid_model
from hjepa_lib.grids.stages import fit_grid, train_pair
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.models.objectives import covariance, hinge_std
from hjepa_lib.runs.keys import key
from hjepa_lib.runs.report import read_sections
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Fit, Task
from hjepa_lib.training.probes import collapse
from hjepa_lib.workbench import CONFIGS
from hjepa_lib.workbench.engine import run_experiment
from hjepa_lib.workbench.schema import read_experiment

GRID = GridConfig(**TINY_GRID)
CONFIG = profile("smoke").override(
    {"device": "cpu", "precision": "fp32", "pixels.seeds": 1}
    | {"pixels.grid.optim.updates": 6, "pixels.grid.optim.batch": 8}
    | {f"pixels.grid.{name}": value for name, value in TINY_GRID.items()}
)
KINDS = ("jepa", "generative")


@pytest.fixture(scope="module")
def buffer():
    return buffers.play(GRID, 0)


@pytest.fixture(scope="module")
def batch(buffer):
    return buffer.batch(torch.arange(0, 48, 3))


@pytest.fixture(scope="module")
def whole(outputs):
    ws = Workspace("test", Run.create("whole", CONFIG))
    stages.grid_results(ws)
    return ws


def model_of(kind="jepa", seed=0, **changes):
    return build_grid_model(kind, dataclasses.replace(GRID, **changes), 6, seed)


def canvas(text):
    """A canvas from its rows, with a digit (a for 10) per cell."""
    grid = np.full((6, 6), world.PAD, dtype=np.int8)
    for i, row in enumerate(text.split()):
        grid[i, : len(row)] = [int(cell, 16) for cell in row]
    return grid


NAMES = [str(world.decode(action)) for action in range(world.ACTIONS)]


def test_every_action_id_has_one_meaning():
    assert world.ACTIONS == 2484 == len(set(NAMES))
    assert world.FIRST == (0, 1188, 1584, 1728, 2484)
    assert [NAMES[action] for action in (0, 1187, 1188, 1727, 2483)] == [
        "paint cell colour 0 at (0, 0)", "paint row colour 10 at (5, 5)",
        "flood colour 0 at (0, 0)", "move right at (5, 5)",
        "symmetry antitranspose grid at (5, 5)",
    ]  # fmt: skip
    assert len({tuple(row) for row in world.FACTORS.tolist()}) == 2484


def test_the_action_encoder_knows_every_action_and_no_other():
    """GRID-3."""
    encoder = ActionEncoder(GRID)
    with torch.no_grad():
        assert len(encoder(torch.arange(2484)).unique(dim=0)) == 2484
    for wrong in (-1, 2484):
        with pytest.raises(IndexError):
            encoder(torch.tensor([wrong]))
    assert sum(p.numel() for p in encoder.parameters()) < 2484


SHAPE = "1100 1000 0000 0022"
TURNED = dict(zip(world.SYMMETRIES, ("24 13", "43 21", "31 42", "34 12", "21 43", "13 24", "42 31"),
                  strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "action", "after"),
    [
        # Anchor (1, 1) of 4 x 4 cells is the cell (1, 1): (2 * 1 + 1) * 4 // 12.
        (SHAPE, "paint cell colour 5 at (1, 1)", "1100 1500 0000 0022"),
        (SHAPE, "paint block colour 5 at (1, 1)", "5550 5550 5550 0022"),
        (SHAPE, "paint row colour 7 at (5, 0)", "1100 1000 0000 7777"),
        (SHAPE, "flood colour 10 at (0, 0)", "aa00 a000 0000 0022"),
        (SHAPE, "move right at (0, 0)", "0110 0100 0000 0022"),
        (SHAPE, "move down at (0, 0)", "0000 1100 1000 0022"),
        (SHAPE, "move up at (0, 0)", SHAPE),  # the border
        (SHAPE, "move left at (0, 0)", SHAPE),
        (SHAPE, "move right at (5, 5)", SHAPE),
        (SHAPE, "move up at (2, 5)", SHAPE),  # background
        ("11 10 22", "move down at (0, 0)", "11 10 22"),  # another object
        ("123 456", "symmetry transpose grid at (0, 0)", "14 25 36"),
        ("123 456", "symmetry rotate 90 grid at (3, 3)", "36 25 14"),
        # A 3 x 3 window shrinks to the grid's shorter side, 2 x 2, and stays inside.
        ("123 456", "symmetry flip columns small at (0, 5)", "132 465"),
        *(("12 34", f"symmetry {name} grid at (0, 0)", after) for name, after in TURNED.items()),
    ],
)
def test_actions_do_what_they_say(grid, action, after):
    before = canvas(grid)
    assert (world.apply(before, NAMES.index(action)) == canvas(after)).all()
    assert (before == canvas(grid)).all(), "the argument was changed"


@pytest.mark.parametrize("size", [3, 10, 30])
def test_actions_keep_canvases_valid_and_random_ones_mostly_act(size):
    rng, changed = np.random.default_rng(size), 0
    for _ in range(60):
        grid = world.random_grid(size, rng)
        after = world.apply(grid, world.random_action(grid, rng))
        fields = dict.fromkeys(buffers.CANVASES, after[None])
        GridBuffer.of(fields | {"action": np.zeros(1), "done": np.ones(1)})  # refuses others
        both = world.facts(torch.from_numpy(np.stack([grid, after])))[:, :2].tolist()
        assert sorted(both[0]) == sorted(both[1])  # the sides, at most exchanged
        changed += (after != grid).any()
    assert changed > 50


def test_facts_settle_ties_towards_the_lower_colour():
    found = np.stack([canvas("112 203"), canvas("aa"), canvas("2211 0000")])
    facts = world.facts(torch.from_numpy(found)).tolist()
    assert facts == [[2, 3, 1, 0, 4], [1, 2, 10, 10, 1], [2, 4, 0, 1, 3]]


def test_play_is_seeded_and_applies_its_actions(buffer):
    """F13."""
    assert buffer.sha256 == buffers.play(GRID, 0).sha256 != buffers.play(GRID, 1).sha256
    for row, (state, action) in enumerate(zip(buffer.state, buffer.action, strict=True)):
        assert (world.apply(state, action) == buffer.next_state[row]).all()
        assert buffer.done[row] or (buffer.next_state[row] == buffer.state[row + 1]).all()


def test_a_buffer_is_read_as_it_was_written(buffer, tmp_path):
    columns = {name: vars(buffer)[name] for name in buffers.REQUIRED} | {"extra": np.zeros(2)}
    again = buffers.load(save_npz(tmp_path / "buffer.npz", **columns))
    for name, values in vars(buffer).items():
        found = getattr(again, name)
        assert np.array_equal(found, values) and values.dtype == found.dtype, name
    kept = buffers.load(buffer.select(buffer.episode > 1).save(tmp_path / "kept.npz"))
    assert kept.episode.min() == 2


def test_foreign_files_are_one_sentence(tmp_path):
    """GRID-12."""
    save_npz(tmp_path / "frames.npz", frames=np.zeros(3))
    for name, message in (
        ("buffer.pkl", "is no replay buffer of grids"),
        ("frames.npz", "has no field 'state'"),
    ):
        refused(FileError, message, buffers.load, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("state", lambda x: x[:, :4], r"state must be \(N, S, S\)"),
        ("next_state", lambda x: x[:, :4, :4], "next_state must be"),
        ("state", lambda x: x[:, :0, :0], r"state must be \(N, S, S\)"),
        ("state", lambda x: x + 9, "colours outside"),
        ("state", lambda x: x.astype(float) + 0.5, "state must hold int8 numbers"),
        ("state", lambda x: x[:, ::-1], "state of row 8 is no rectangle"),
        ("action", lambda x: x + 2484, r"outside 0\.\.2483"),
        ("action", lambda x: x - 2484, r"outside 0\.\.2483"),
        ("action", lambda x: x[:-1], "action must be"),
        ("episode", lambda x: x[:-1], "episode must be"),
        ("action", lambda x: x * np.nan, "action must hold int64 numbers"),
        ("action", lambda x: x.astype("U8"), "action must hold int64 numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(buffer, name, change, message):
    wrong = vars(buffer) | {name: change(vars(buffer)[name])}
    refused(FileError, message, GridBuffer.of, wrong, "file.npz")


def test_split_is_by_episode_and_seeded(buffer):
    """F13."""
    train, held_out = buffer.split(0.2, 0)
    assert not set(train.episode) & set(held_out.episode)
    assert len(train) + len(held_out) == len(buffer) and len(set(held_out.episode)) == 1
    held = [tuple(np.unique(buffer.split(0.2, seed)[1].episode)) for seed in (*range(8), 0)]
    assert len(set(held)) > 1 and held[0] == held[-1]
    refused(FileError, "three episodes or more", buffer.select(buffer.episode == 0).split, 0.2, 0)


@pytest.mark.parametrize("encoder", ["transformer", "cnn"])
def test_padding_does_not_change_the_latent(encoder, buffer):
    model = model_of(encoder=encoder).eval()
    grids = torch.from_numpy(buffer.state[::5]).long()
    wider = torch.nn.functional.pad(grids[:3], (0, 24, 0, 24), value=-1)
    moved = grids.clone()
    moved[0, 0, 0] = (moved[0, 0, 0] + 1) % 11
    with torch.no_grad():
        z = model.encode(grids)
        for same in (wider, grids[:1]):
            torch.testing.assert_close(model.encode(same), z[: len(same)], rtol=1e-4, atol=1e-5)
        assert z.shape == (len(grids), 16) and (z[0] - z[-1]).abs().max() > 1e-3
        assert (model.encode(moved)[0] - z[0]).abs().max() > 1e-5


def test_transition_has_zero_positions_and_reads_the_action(batch):
    model = model_of()
    assert (model.transition.positions == 0).all() and model.transition.positions.requires_grad
    z = model.encode(batch.state)
    ahead, other = (model.imagine(z, (batch.action + by) % 2484) for by in (0, 100))
    assert ahead.shape == z.shape and (other - ahead).abs().max() > 1e-6
    for weights in model.transition.head.parameters():
        torch.nn.init.zeros_(weights)
    assert torch.equal(model.imagine(z, batch.action), z)  # what it learns is added


def test_gradient_reaches_all_but_the_target_which_follows(batch):
    """F3."""
    model = model_of(ema_decay=0.9, regulariser=0.5)
    loss, terms = model.loss(batch)
    with torch.no_grad():
        latent = model.encode(batch.state)
        prediction = model.imagine(latent, batch.action)
        target = model.target(batch.next_state)
        spread = 0.5 * float(hinge_std(latent) + covariance(latent))
    error = float((prediction - target).square().mean())
    assert loss.item() == pytest.approx(error + spread, rel=1e-5) and spread > 0.1
    assert terms["jepa_prediction_loss"] == pytest.approx(error, rel=1e-5)
    assert set(terms) == {"jepa_prediction_loss", "jepa_cosine_sim"}
    loss.backward()
    for part in (model.encoder, model.action_encoder, model.transition):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    assert ema_follows(model.target, model.encoder, 0.9, model.after_update)
    assert measures.ema_distance(model.encoder, model_of().encoder) > 0


def test_both_models_start_from_the_same_shared_weights():
    pair = [model_of(kind) for kind in KINDS]
    for part in ("encoder", "action_encoder", "transition"):
        one, two = (fingerprint(getattr(model, part)) for model in pair)
        assert one == two != fingerprint(getattr(model_of(seed=1), part))


def test_twin_ignores_padding_and_weighs_the_action(batch):
    model = model_of("generative")
    total, terms = model.loss(batch)
    heavier = model_of("generative", action_weight=1.0).loss(batch)[0].item()
    for found, weight in ((total.item(), 0.1), (heavier, 1.0)):
        expected = terms["gen_transition_loss"] + weight * terms["gen_action_loss"]
        assert found == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert all(p.grad is not None for p in model.fact_heads.parameters())
    assert model.action_head.weight.grad.abs().sum() > 0
    cells, values = model.decode(model.imagine(model.encode(batch.state), batch.action))
    inside = batch.next_state >= 0
    picked = cells.log_softmax(1).gather(1, batch.next_state.clamp(min=0)[:, None])[:, 0]
    wanted = -picked[inside].mean()
    for logits, column in zip(values, world.facts(batch.next_state).unbind(1), strict=True):
        wanted = wanted + torch.nn.functional.cross_entropy(logits, column)
    assert not inside.all()
    assert terms["gen_transition_loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_twin_draws_whole_grids(batch):
    model = model_of("generative")
    valid = model.predict(batch.state, batch.action) >= 0
    facts = model.decode(model.imagine(model.encode(batch.state), batch.action))[1]
    height = facts[0].argmax(1).clamp(max=6)
    assert valid.shape == batch.state.shape
    assert torch.equal(valid.any(2).sum(1), height * (facts[1].argmax(1) > 0))


def test_cell_report_knows_what_copying_scores():
    state, truth, longer = (torch.tensor(canvas(x)[None]) for x in ("1100", "1120", "11200"))
    copied = measures.cell_report(state, state, truth)
    assert copied == {"cell_accuracy": 0.75, "copy_accuracy": 0.75, "changed_accuracy": 0.0}
    assert measures.cell_report(truth, state, truth)["changed_accuracy"] == 1
    assert measures.cell_report(longer, state, truth)["cell_accuracy"] == pytest.approx(0.8)


class Exact(torch.nn.Module):
    """Latents are the cells, and the next ones those of the world."""

    device = "cpu"

    def encode(self, state):
        return torch.nn.functional.one_hot(state + 1, 12).flatten(1).float()

    encode_target = encode

    def imagine(self, latent, action):
        grids = latent.view(-1, 6, 6, 12).argmax(-1).numpy().astype(np.int8) - 1
        after = [world.apply(*pair) for pair in zip(grids, action.tolist(), strict=True)]
        return self.encode(torch.from_numpy(np.stack(after)).long())


def test_who_knows_the_world_beats_copying_on_every_episode():
    data = buffers.play(dataclasses.replace(GRID, episodes=60), 0)
    found = measures.against_copying(Exact(), *data.split(0.17, 0))
    assert found["changed_read"] > 0.95 and found["changed_copied"] < 0.05
    assert 0.9 < found["unseen_read"] != found["changed_read"]
    episodes = found["episodes"]
    assert {len(values) for values in episodes.values()} == {10}
    assert max(episodes["latent"]) == 0 < min(episodes["latent_copied"])
    rows = [{"model": kind, "seed": s, **found} for kind in KINDS for s in range(3)]
    first, second, *_ = measures.copying_sentences(rows)
    plain = episodes | {"changed": [0.8 + 0.01 * n for n in range(10)]}
    rows += [{"model": "random", "seed": s, "episodes": plain} for s in range(3)]
    said = [text for text in measures.copying_sentences(rows) if "the untrained model" in text]
    assert len(said) == 2 and said[0].startswith("jepa beats the untrained model: changed cells")
    assert first.startswith("jepa beats copying: changed cells read wrong -9")
    assert second.startswith("jepa beats copying: latent error -100.0 % (")


def scripted(*losses):
    told = list(losses)

    def validate():
        return {"loss": told.pop(0) if len(told) > 1 else told[0]}

    module = torch.nn.Linear(1, 1)
    task = Task(module, lambda _: (module.weight.sum() ** 2, {}), validate)
    return Fit(task, OptimConfig(updates=20, validate_every=1, schedule="constant"), seed=0)


def test_training_stops_when_both_have_stalled():
    fits = {"jepa": scripted(1.0), "generative": scripted(*range(10, 2, -1))}
    done = list(train_pair(fits, patience=2))
    # The twin improves 8 times, then stalls for 2 validations; JEPA goes along.
    assert [fit.update for fit in fits.values()] == [10, 10] and len(done) == 20
    assert [kind for kind, _ in done[:4]] == ["jepa", "generative"] * 2
    assert len(list(train_pair({"jepa": scripted(1.0), "generative": scripted(1.0)}))) == 40


@pytest.mark.parametrize(("updates", "patience"), [(0, 7), (1, 0)])
def test_a_pair_takes_its_patience(tmp_path, monkeypatch, updates, patience):
    """GRID-5."""
    asked = []
    monkeypatch.setattr(
        stages, "train_pair", lambda fits, most, go: asked.append(most) or train_pair(fits, 1, go)
    )
    changed = {"updates": updates, "epochs": 1, "patience": 7}
    changed = {f"pixels.grid.optim.{name}": value for name, value in changed.items()}
    config = CONFIG.override(changed, strict=False)
    ws = Workspace("test", Run.create("pair", config, tmp_path))
    list(ws.make(stages.grid_stages(config)["grid_s0"]))
    assert asked == [patience]


def test_both_learn_from_the_same_batches_with_optimisers_of_their_own(buffer):
    seen = {}
    for kind in KINDS:
        model = model_of(kind)
        own, loss = seen.setdefault(kind, []), model.loss
        model.loss = lambda batch, own=own, loss=loss: (
            own.append(batch.action.tolist()) or loss(batch)
        )
        fit = fit_grid(model, buffer, EpochsConfig(updates=40, batch=16, lr=3e-3), dict, seed=5)
        trainable = [p for p in model.parameters() if p.requires_grad]
        assert sum(len(g["params"]) for g in fit.optimiser.param_groups) == len(trainable)  # F1
        losses = [report.loss for report in fit]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), kind
    assert seen["jepa"] == seen["generative"] and len(seen["jepa"][0]) == 16
    assert seen["jepa"][0] != seen["jepa"][1]


LOGGED = {
    "grid_s0": {"jepa_prediction_loss", "jepa_cosine_sim"},
    "grid_twin_s0": {"gen_total_loss", "gen_transition_loss", "gen_action_loss"},
}


def test_what_chooses_weights_never_scores_them(whole, monkeypatch, tmp_path):
    """X4."""
    parts = stages.load_data(whole)
    episodes = [set(part.episode) for part in parts]
    assert sum(map(len, episodes)) == len(set.union(*episodes)) == CONFIG.pixels.grid.episodes
    asked = []
    for module, name in ((stages, "fit_grid"), (stages.measures, "against_copying")):
        monkeypatch.setattr(module, name, lambda *given, **_: 1 / asked.append(given))
    monkeypatch.setattr(Workspace, "resume", lambda *_: tmp_path)
    ws = Workspace("test", whole.run)
    for work in (
        lambda: next(stages.make_pair(ws, ws.run.path, 0)),
        lambda: stages.grid_results(ws),
    ):
        with pytest.raises(TypeError):
            work()
    (_, trained, _, check), (_, *read) = asked
    assert trained.sha256 == parts.train.sha256
    held = parts.choice.batch(torch.arange(len(parts.choice)))
    assert {row.numpy().tobytes() for row in check.args[1].next_state} <= {
        row.numpy().tobytes() for row in held.next_state
    }
    assert [part.sha256 for part in read] == [parts.train.sha256, parts.test.sha256]


def test_one_documented_output_path(whole):
    """GRID-6 to GRID-8."""
    folder = whole.run.path / "grid/s0"
    state = stages.load_data(whole)[1].batch(torch.arange(5)).state
    for kind, (log, names) in zip(KINDS, LOGGED.items(), strict=True):
        records = whole.run.records(log)
        keys = set().union(*records)
        assert keys >= {f"{part}{name}" for name in names for part in ("", "validation_")}
        assert keys >= {"validation_std", "validation_effective_rank", "seconds", "loss", "lr"}
        path = folder / f"best_{kind}_model"
        meta = read_json(f"{path}.json")
        best = min(records, key=lambda row: row.get("validation_loss", np.inf))
        assert meta["update"] == best["step"] and meta["config"]["latent_dim"] == 16
        assert meta["loss"] == meta["validation"]["loss"] == best["validation_loss"]
        one, two = (stages.load_grid_model(whole, kind, 0) for _ in range(2))
        assert fingerprint(one) == fingerprint(two) != fingerprint(model_of(kind))
        assert torch.equal(one.encode(state), two.encode(state))


def test_resuming_equals_an_uninterrupted_training(whole, tmp_path):
    config = CONFIG.override({"pixels.grid.checkpoint_every": 1})
    ws = Workspace("test", Run.create("cut", config, tmp_path))
    stage = stages.grid_stages(config)["grid_s0"]
    for stop in (5, 6):  # a validation of JEPA without the twin's
        cut(ws.make(stage), stop + 1)
    list(ws.make(stage))
    for kind, name in zip(KINDS, LOGGED, strict=True):
        pair = [stages.load_grid_model(one, kind, 0) for one in (ws, whole)]
        assert fingerprint(pair[0]) == fingerprint(pair[1])
        assert len([*(ws.run.path / "grid/s0").glob(f"{kind}_model_epoch0001.safetensors")]) == 1
        rows = [one.run.records(name) for one in (ws, whole)]
        for row in rows[0] + rows[1]:
            row.pop("seconds")
        assert rows[0] == rows[1]


def test_a_stage_is_known_by_what_shapes_it():
    for change, made_again in (
        ({"pixels.grid.depth": 2}, ["grid_s0"]),
        ({"pixels.grid.steps": 9}, ["grid_data", "grid_s0"]),
        ({"pixels.data.validation_split": 0.4}, ["grid_data", "grid_s0"]),
        ({"pixels.grid.log_every": 3, "pixels.jepa.lr": 1e-3, "level1.latent_dim": 24}, []),
    ):
        one, two = ({name: key(stage, config) for name, stage in stages.grid_stages(config).items()}
                    for config in (CONFIG, CONFIG.override(change)))  # fmt: skip
        assert [name for name in one if one[name] != two[name]] == made_again


class Constant(GridJepa):
    def encode(self, state):
        return torch.ones(len(state), 16) * 3

    encode_target = encode

    def imagine(self, latent, action):
        return latent


def test_a_collapsed_model_is_flagged_although_its_cosine_is_1(batch):
    """F13."""
    constant, fresh = Constant(GRID, 6), model_of()
    report = measures.validate_jepa(constant, batch)
    report |= collapse(*(measures.imagined(model, batch)[0] for model in (constant, fresh)))
    assert report["jepa_cosine_sim"] == pytest.approx(1) and report["jepa_prediction_loss"] == 0
    assert measures.verdict(report, late=True) == "collapsed"
    assert report["loss"] == pytest.approx(1), "a collapsed model would be the best one"


def test_prediction_report_has_the_copy_baseline():
    target, present = torch.randn(2, 500, 8, generator=seeded())
    report = measures.prediction_report(target.mean(0).expand(500, 8), target, present)
    assert report["error"] == pytest.approx(1, rel=1e-3)  # predicting the mean
    assert report["copy_error"] == pytest.approx(2, rel=0.1)
    exact = measures.prediction_report(target, target, present)
    assert exact["error"] == pytest.approx(0, abs=1e-6)
    assert exact["jepa_cosine_sim"] == pytest.approx(1)


def test_rows_are_measured_and_comparable(whole):
    rows = read_sections(whole.run)["grid"]["data"]["rows"]
    assert [row["model"] for row in rows] == [*KINDS, "random"]
    jepa, twin, _ = rows
    assert jepa["outputs"] == 16 and twin["outputs"] == 36 + 5
    for row in (jepa, twin):
        assert row["ms_per_update"] > 0 and row["memory_mb"] > 4 * 4e-6 * row["parameters"]
        assert row["weights"] == whole.weights(["grid_s0"])  # I4
    other = Workspace("test", Run.create("other", CONFIG, whole.run.path.parent))
    other.obtain(stages.grid_stages(CONFIG)["grid_s0"])
    again = stages.grid_results(other)  # what was taken over has no metrics here, and its costs
    assert other.origin("grid_s0") == "whole" and not other.run.records()
    assert again[0]["train_seconds"] == jepa["train_seconds"]


def test_comparison_is_a_table_of_numbers():
    rows = [
        {"model": kind, "seed": seed, "ms_per_update": 10.0 + seed,
         "collapsed": "rank" * (kind == "jepa" and seed == 0)}
        for kind in KINDS for seed in range(3)
    ]  # fmt: skip
    table = measures.comparison(rows)
    assert list(table.columns) == list(KINDS)
    assert table.loc["collapse rate"].tolist() == ["1 of 3", "0 of 3"]
    assert table.loc["time of one update (ms, median)", "jepa"] == "11 [10 to 12]"  # X16


def test_grid_models_are_paired_by_seed():
    rows = []
    for seed in range(3):
        for model, factor in {"jepa": 0.9 + 0.002 * seed, "generative": 1.0, "random": 1.0}.items():
            wrong = factor * 0.03 * 2.0**seed
            rows.append({"model": model, "seed": seed, "fact_accuracy": 1 - wrong, "collapsed": ""})
    said = measures.paired_sentences(rows)
    assert said[0].startswith("jepa beats generative: facts read wrong -9.8 % (-1")
    assert said[2].startswith("generative against random, no difference shown: facts read wrong")
    assert measures.paired_sentences(rows[::-1]) == said  # by seed, not by place
    assert "nothing claimed: 2 of 3 seeds" in measures.paired_sentences(rows[:6])[0]
    with pytest.raises(WorkbookError, match="jepa and generative have no rows of the same"):
        measures.paired_sentences(rows[1:])


def test_the_tuning_sweep_has_a_table(root):
    tree = read_yaml(CONFIGS / "grid_jepa_tuning.yaml", "experiment file")
    tree["base"] = {key: two for key, (_, two) in differences(profile("smoke"), CONFIG).items()}
    tree["base"] |= {"profile": "smoke"}
    labels = ("default", "depth 6")
    tree |= {"grid": {"setting": {one: tree["grid"]["setting"][one] for one in labels}}}
    experiment = read_experiment(tree | {"seeds": [0]})
    assert not any(one.error for one in run_experiment(experiment))
    table = pd.read_csv(experiment.table)
    assert table["learner"].tolist() == [*KINDS, "random"] * 2
    assert table["setting"].tolist() == [label for label in labels for _ in range(3)]
    assert table["changed_read"].notna().all() and table["training"].nunique() == 2


def test_the_config_file_acts(buffer, tmp_path, root, capsys):
    """F13, F7."""
    path, config = buffer.save(tmp_path / "own.npz"), tmp_path / "own.yaml"
    drawn = {"size", "episodes", "steps"}  # of the built-in world
    grid = {key: value for key, value in TINY_GRID.items() if key not in drawn}
    grid |= {"latent_dim": 24, "path": str(path)}
    tree = {"profile": "smoke", "device": "cpu", "precision": "fp32", "pixels": {"grid": grid}}
    run = root / "own"
    for content, name, status, message in (
        (tree, "own", 0, str(run / "grid/s0/best_jepa_model.safetensors")),
        (tree | {"pixels": {"grid": grid | {"path": "x.pkl"}}}, "bad", 2, "is no replay buffer"),
    ):
        config.write_text(json.dumps(content))
        options = ["--config", str(config), "--name", name, "--set", "pixels.grid.optim.updates=2"]
        assert main(["grid", "train", *options]) == status
        assert message in "".join(capsys.readouterr())
    assert read_json(run / "grid/s0/best_jepa_model.json")["config"]["latent_dim"] == 24
    data = read_json(run / "grid/data/data.json")
    assert data["source"] == str(path) and data["sha256"] == buffer.sha256


def test_figures_show_what_they_were_given(whole, buffer):
    drawn = figures.show_grids([buffer.state[:4], buffer.next_state[:4]], ["a", "b"], ["now"])
    assert len(drawn.axes) == 8 and drawn.axes[1].get_title("left") == "b"
    frame = drawn.axes[0].images[0].get_array()[6::12, 6::12]  # the middle of every cell
    colours = [figures.PALETTE[colour] for colour in buffer.state[0][buffer.state[0] >= 0]]
    found = ["#" + bytes(rgb).hex().upper() for rgb in frame[buffer.state[0] >= 0]]
    assert found == colours and len({bytes(rgb) for rgb in frame[buffer.state[0] < 0]}) == 1
    limits = {"jepa_cosine_sim": {"good": 0.7}}
    drawn = loss_curves([whole.run.records("grid_s0")], [*limits], limits=limits)
    assert drawn.axes[0].texts[0].get_text() == "good"
