"""Seed 004: grid world, buffers, JEPA and generative twin, reward, comparison, sweep, command."""

import dataclasses
import functools
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score

from hjepa_lib.__main__ import main
from hjepa_lib.config import ConfigError, OptimConfig, profile
from hjepa_lib.config.pixels import EpochsConfig, GridConfig
from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.figures.style import FigureError
from hjepa_lib.files import FileError, read_json, save_npz
from hjepa_lib.grids import buffer as grid_buffers
from hjepa_lib.grids import figures, measures, world
from hjepa_lib.grids import results as gridresults
from hjepa_lib.grids import stages as gridstages
from hjepa_lib.grids.buffer import GridBuffer
from hjepa_lib.grids.models import GridJepa, GridModel, build_grid_model
from hjepa_lib.grids.results import section
from hjepa_lib.grids.reward import GoalReward, build_reward, sinusoids
from hjepa_lib.grids.train import PairFit, fit_grid, fit_reward, reward_rows
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Fit, Task, learning_rate
from hjepa_lib.workbench import CONFIGS
from hjepa_lib.workbench.schema import read_experiment

SMALL = {
    "size": 6, "episodes": 6, "steps": 8, "latent_dim": 16, "action_dim": 8, "encoder_depth": 1,
    "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 16,
}  # fmt: skip
BUDGET = {"optim.updates": 6, "optim.batch": 8, "reward_optim.updates": 4, "reward_optim.batch": 8}
GRID = GridConfig(**SMALL)
CONFIG = profile("smoke").override(
    {"device": "cpu", "precision": "fp32", "pixels.seeds": 1}
    | {f"pixels.grid.{key}": value for key, value in (SMALL | BUDGET).items()}
)


@pytest.fixture(scope="module")
def buffer() -> GridBuffer:
    return grid_buffers.play(GRID, 0)


@pytest.fixture(scope="module")
def batch(buffer):
    return buffer.batch(torch.arange(0, 48, 3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Workspace:
    """A finished tiny run: one seed, all stages, result rows."""
    root = tmp_path_factory.mktemp("outputs")
    ws = Workspace("test", Run.create("whole", CONFIG, root))
    gridresults.grid_results(ws)
    return ws


def model_of(kind="jepa", size=6, seed=0, **changes) -> GridModel:
    return build_grid_model(kind, dataclasses.replace(GRID, **changes), size, seed)


def canvas(*rows: str, size: int = 6) -> np.ndarray:
    """A canvas from text, one digit (or a for 10) per cell."""
    grid = np.full((size, size), world.PAD, dtype=np.int8)
    for i, row in enumerate(rows):
        grid[i, : len(row)] = [int(cell, 16) for cell in row]
    return grid


def act(grid: np.ndarray, kind: str, anchor=(0, 0), **rest) -> np.ndarray:
    return world.apply(grid, world.encode(world.GridAction(kind, anchor, **rest)))


# --- world ------------------------------------------------------------------------------------
def test_every_action_id_has_one_meaning():
    meanings = [world.decode(action) for action in range(world.ACTIONS)]
    assert world.ACTIONS == 2484 == len(set(meanings))
    assert [world.encode(meaning) for meaning in meanings] == list(range(2484))
    assert world.FIRST == (0, 1188, 1584, 1728, 2484)
    assert world.decode(0) == world.GridAction("paint", (0, 0), 0, "cell")
    assert world.decode(1187) == world.GridAction("paint", (5, 5), 10, "row")
    assert world.decode(1188) == world.GridAction("flood", (0, 0), 0)
    assert world.decode(1727) == world.GridAction("move", (5, 5), None, "right")
    assert world.decode(2483).window == "grid" and world.decode(2483).what == "antitranspose"
    kinds = world.kind_of(np.arange(2484))
    assert [world.KINDS[kind] for kind in kinds] == [meaning.kind for meaning in meanings]
    for wrong in (-1, 2484):
        with pytest.raises(world.GridError, match=f"action {wrong} is outside 0..2483"):
            world.decode(wrong)


def test_paint_and_flood():
    grid = canvas("1100", "1000", "0000", "0022")
    # Anchor (1, 1) of a 4 x 4 grid is the cell at (1, 1): (2 * 1 + 1) * 4 // 12.
    assert act(grid, "paint", (1, 1), colour=5, what="cell")[1, 1] == 5
    block = act(grid, "paint", (1, 1), colour=5, what="block")
    assert (block[:3, :3] == 5).all() and (block == grid).sum() == 36 - 9
    row = act(grid, "paint", (5, 0), colour=7, what="row")
    assert (row[3, :4] == 7).all() and (row[3, 4:] == -1).all()
    flooded = act(grid, "flood", (0, 0), colour=10)
    assert (flooded == canvas("aa00", "a000", "0000", "0022")).all()
    assert (grid == canvas("1100", "1000", "0000", "0022")).all(), "the argument was changed"


def test_move_needs_free_background():
    grid = canvas("1100", "1000", "0022", "0000")
    assert (act(grid, "move", what="right") == canvas("0110", "0100", "0022", "0000")).all()
    for what in ("up", "left"):
        assert (act(grid, "move", what=what) == grid).all()  # the border
    down = act(grid, "move", what="down")
    assert (down == canvas("0000", "1100", "1022", "0000")).all()
    blocked = canvas("1100", "1000", "2200", "0000")
    assert (act(blocked, "move", what="down") == blocked).all()  # the other object
    assert (act(grid, "move", (5, 0), what="up") == grid).all()  # background


def test_symmetries_of_windows_and_of_the_whole_grid():
    grid = canvas("123", "456")
    assert (
        act(grid, "symmetry", what="transpose", window="grid") == canvas("14", "25", "36")
    ).all()
    turned = grid
    for _ in range(4):
        turned = act(turned, "symmetry", what="rotate 90", window="grid")
    assert (turned == grid).all()
    assert world.sides(act(grid, "symmetry", what="rotate 90", window="grid")) == (3, 2)
    # A 3 x 3 window shrinks to the grid's shorter side, 2 x 2, and stays inside.
    flipped = act(grid, "symmetry", (0, 5), what="flip columns", window="small")
    assert (flipped == canvas("132", "465")).all()
    for name, operation in world.SYMMETRIES.items():
        square = canvas("123", "456", "789")
        wanted = operation(square[:3, :3])
        assert (act(square, "symmetry", what=name, window="grid")[:3, :3] == wanted).all()


@pytest.mark.parametrize("size", [3, 10, 30])
def test_actions_keep_canvases_valid_and_random_ones_mostly_act(size):
    rng, changed = np.random.default_rng(size), 0
    for _ in range(60):
        grid = world.random_grid(size, rng)
        after = world.apply(grid, world.random_action(grid, rng))
        fields = dict.fromkeys(grid_buffers.CANVASES, after[None])
        scalars = {"action": np.zeros(1), "reward": np.zeros(1), "done": np.ones(1)}
        GridBuffer.of(fields | scalars)  # raises for a canvas that is none
        assert sorted(world.sides(after)) == sorted(world.sides(grid))
        changed += (after != grid).any()
    assert changed > 50


def test_reward_is_progress_and_adds_up():
    rng = np.random.default_rng(0)
    start = world.random_grid(8, rng)
    goal = world.apply(start, world.random_action(start, rng))
    task = world.GridWorld(start, goal)
    total, done = 0.0, False
    for action in (5, 1200, 1600, 2000):
        before = world.similarity(task.grid, goal)
        grid, reward, done = task.step(action)
        assert reward == pytest.approx(world.similarity(grid, goal) - before)
        total += reward
    assert total == pytest.approx(world.similarity(grid, goal) - world.similarity(start, goal))
    assert not done and world.similarity(goal, goal) == 1
    assert world.similarity(canvas("11"), canvas("1")) == 0.5  # a cell in one grid only is wrong
    assert world.GridWorld(goal, goal).step(0)[2] == bool((world.apply(goal, 0) == goal).all())
    with pytest.raises(world.GridError, match="canvases of one size"):
        world.GridWorld(start, goal[:3, :3])


def test_facts_settle_ties_towards_the_lower_colour():
    grids = np.stack([canvas("112", "203"), canvas("aa"), canvas("2211", "0000")])
    found = world.facts(torch.from_numpy(grids)).tolist()
    assert found == [[2, 3, 1, 0, 4], [1, 2, 10, 10, 1], [2, 4, 0, 1, 3]]


# --- buffers (GRID-12) ------------------------------------------------------------------------
def test_play_is_seeded_and_its_goals_are_reached(buffer):
    """F13: the data follow from the seed alone."""
    assert len(buffer) == 48 and buffer.episodes == 6 and buffer.size == 6
    assert buffer.sha256 == grid_buffers.play(GRID, 0).sha256 != grid_buffers.play(GRID, 1).sha256
    assert (buffer.next_state[buffer.done] == buffer.target_state[buffer.done]).all()
    assert buffer.step_distance.tolist() == list(range(8, 0, -1)) * 6
    for row in range(48):
        after = world.apply(buffer.state[row], int(buffer.action[row]))
        assert (after == buffer.next_state[row]).all()
        pair = [world.similarity(g, buffer.target_state[row]) for g in (buffer.state[row], after)]
        assert buffer.reward[row] == pytest.approx(pair[1] - pair[0])


@pytest.mark.parametrize("ending", [".npz", ".pt", ".h5"])
def test_every_format_returns_what_was_saved(buffer, tmp_path, ending):
    path = buffer.save(tmp_path / f"buffer{ending}")
    again = grid_buffers.load(path)
    assert again.sha256 == buffer.sha256
    for name, values in vars(buffer).items():
        assert (
            np.array_equal(getattr(again, name), values) and values.dtype == vars(again)[name].dtype
        )


def test_hdf5_without_its_package_is_one_sentence(buffer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "x.h5").write_bytes(b"anything")
    for attempt in (lambda p: grid_buffers.load(p), buffer.save):
        with pytest.raises(FileError, match=r"x\.h5 needs the package h5py: pip install"):
            attempt(tmp_path / "x.h5")


class Trap:
    """Unpickling this leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_refused_unopened(tmp_path):
    for ending in (".pkl", ".pickle", ".pt"):
        path = tmp_path / f"evil{ending}"
        with path.open("wb") as file:
            pickle.dump({"state": Trap(tmp_path / "sprung")}, file, protocol=2)
        with pytest.raises(FileError, match=r"which can run any code|is damaged, or holds more"):
            grid_buffers.load(path)
    assert not (tmp_path / "sprung").exists()


def test_corrupt_and_foreign_files_are_one_sentence(buffer, tmp_path):
    path = buffer.save(tmp_path / "buffer.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="not a whole"):
        grid_buffers.load(path)
    with pytest.raises(FileError, match="cannot read"):
        grid_buffers.load(tmp_path / "absent.npz")
    with pytest.raises(FileError, match="is no replay buffer: the known kinds"):
        grid_buffers.load(tmp_path / "buffer.csv")
    save_npz(path, frames=np.zeros(3))
    with pytest.raises(FileError, match="has no field 'state'"):
        grid_buffers.load(path)
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(FileError, match="dictionary of tensors"):
        grid_buffers.load(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("state", lambda x: x[:, :4], r"state must be \(N, S, S\)"),
        ("next_state", lambda x: x[:, :4, :4], "next_state must be"),
        ("state", lambda x: x + 9, "colours outside"),
        ("state", lambda x: x.astype(float) + 0.5, "no int8"),
        ("state", lambda x: x[:, ::-1], "no rectangle in the top left"),
        ("action", lambda x: x + 2484, r"outside 0\.\.2483"),
        ("action", lambda x: x[:-1], "action must be"),
        ("reward", lambda x: x * np.nan, "reward holds values that are not finite"),
        ("reward", lambda x: x.astype("U8"), "does not hold numbers"),
        ("metadata", lambda x: x + np.eye(5, dtype=int)[0], "metadata of row 0 does not fit"),
        ("transition_type", lambda x: (x + 1) % 4, "transition_type of row 0 does not fit"),
        ("step_distance", lambda x: x - 99, "step_distance of row 0 does not fit"),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(buffer, name, change, message):
    wrong = vars(buffer) | {name: change(vars(buffer)[name])}
    with pytest.raises(FileError, match=message):
        GridBuffer.of(wrong, "file.npz")


def test_absent_columns_follow_from_the_others(buffer):
    least = {name: vars(buffer)[name] for name in grid_buffers.REQUIRED}
    derived = GridBuffer.of(least)
    for name, values in vars(buffer).items():
        assert np.array_equal(vars(derived)[name], values), name


def test_split_is_by_episode_and_seeded(buffer):
    """F13: neighbours never stand on both sides, and the split is a function of the seed."""
    train, validation = buffer.split(0.2, 0)
    assert not set(train.episode) & set(validation.episode)
    assert len(train) + len(validation) == len(buffer) and validation.episodes == 1
    parts = {tuple(np.unique(buffer.split(0.2, seed)[1].episode)) for seed in range(8)}
    assert len(parts) > 1
    assert (buffer.split(0.2, 3)[1].state == buffer.split(0.2, 3)[1].state).all()
    with pytest.raises(FileError, match="two episodes or more"):
        buffer.select(buffer.episode == 0).split(0.2, 0)


# --- models (GRID-1 to GRID-4) ----------------------------------------------------------------
@pytest.mark.parametrize("encoder", ["transformer", "cnn"])
def test_padding_does_not_change_the_latent(encoder, buffer):
    model = model_of(encoder=encoder).eval()
    grids = torch.from_numpy(buffer.state[::5]).long()
    wider = torch.nn.functional.pad(grids, (0, 7, 0, 7), value=-1)
    with torch.no_grad():
        z, alone = model.encode(grids), model.encode(grids[:1])
        torch.testing.assert_close(model.encode(wider), z, rtol=1e-4, atol=1e-5)
        # Nor does what else is in the batch, though that decides how much is computed.
        torch.testing.assert_close(alone, z[:1], rtol=1e-4, atol=1e-5)
        assert z.shape == (len(grids), 16) and (z[0] - z[-1]).abs().max() > 1e-3
        moved = grids.clone()
        moved[0, 0, 0] = (moved[0, 0, 0] + 1) % 11
        assert (model.encode(moved)[0] - z[0]).abs().max() > 1e-5


def test_encoders_are_chosen_by_name_and_check_their_input():
    with pytest.raises(ConfigError, match="encoder must be one of transformer, cnn"):
        GridConfig(encoder="mlp")
    model = model_of()
    with pytest.raises(world.GridError, match=r"\(B, S, S\) with S up to 30, got \(2, 3, 4\)"):
        model.encode(torch.zeros(2, 3, 4, dtype=torch.long))
    with pytest.raises(world.GridError, match="colours outside"):
        model.encode(torch.full((1, 3, 3), 11))
    for size in (3, 30):
        assert model.encode(torch.zeros(1, size, size, dtype=torch.long)).shape == (1, 16)


@pytest.mark.parametrize("kind", ["table", "one_hot"])
def test_action_encoder(kind):
    encoder = model_of(action_encoder=kind).action_encoder
    codes = encoder(torch.tensor([0, 2483, 7]))
    assert codes.shape == (3, 8) and len(codes.unique(dim=0)) == 3
    for wrong in (-1, 2484):
        with pytest.raises(world.GridError, match=f"action {wrong} is outside"):
            encoder(torch.tensor([0, wrong]))


def test_transition_has_zero_positions_and_reads_the_action(batch):
    model = model_of()
    assert (model.transition.positions == 0).all() and model.transition.positions.requires_grad
    z = model.encode(batch.state)
    ahead = model.imagine(z, batch.action)
    assert ahead.shape == z.shape
    assert (model.imagine(z, (batch.action + 100) % 2484) - ahead).abs().max() > 1e-6
    defaults = GridConfig()
    block = build_grid_model("jepa", defaults, 6, 0).transition.blocks.blocks[0]
    assert (defaults.depth, defaults.heads, defaults.head_dim, defaults.mlp_dim) == (4, 8, 64, 256)
    assert block.attention.qkv.weight.shape == (3 * 512, 128)


def test_gradient_reaches_all_but_the_target(batch):
    """F3: encoder, action encoder and transition are trained, the EMA target is not."""
    model = model_of()
    loss, terms = model.loss(batch)
    loss.backward()
    for part in (model.encoder, model.action_encoder, model.transition):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    with torch.no_grad():
        prediction = model.imagine(model.encode(batch.state), batch.action)
        target = model.target(batch.next_state)
    assert loss.item() == pytest.approx(float((prediction - target).square().mean()), rel=1e-5)
    assert set(terms) == {"jepa_prediction_loss", "jepa_cosine_sim"}


def test_ema_over_several_updates(batch):
    model = model_of(ema_decay=0.9)
    slow = [p.clone() for p in model.target.parameters()]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        model.loss(batch)[0].backward()
        optimiser.step()
        model.after_update()
        fast = list(model.encoder.parameters())
        slow = [0.9 * old + 0.1 * new.detach() for old, new in zip(slow, fast, strict=True)]
    for ours, wanted in zip(model.target.parameters(), slow, strict=True):
        torch.testing.assert_close(ours, wanted)
    assert measures.ema_distance(model.encoder, model.target) > 0


def test_both_models_start_from_the_same_shared_weights():
    pair = [model_of(kind) for kind in ("jepa", "generative")]
    for part in ("encoder", "action_encoder", "transition"):
        one, two = (fingerprint(getattr(model, part)) for model in pair)
        assert one == two != fingerprint(getattr(model_of(seed=1), part))


# --- generative twin (GRID-8) -----------------------------------------------------------------
def test_twin_ignores_padding_and_weighs_the_action(batch):
    model = model_of("generative")
    total, terms = model.loss(batch)
    expected = terms["gen_transition_loss"] + 0.1 * terms["gen_action_loss"]
    assert total.item() == pytest.approx(expected, rel=1e-5)
    heavier = model_of("generative", action_weight=1.0).loss(batch)[0].item()
    assert heavier == pytest.approx(expected + 0.9 * terms["gen_action_loss"], rel=1e-5)
    total.backward()
    logits = model.decode(model.encode(batch.state)).cells
    logits.retain_grad()
    torch.nn.functional.cross_entropy(logits, batch.next_state, ignore_index=-1).backward()
    padding = (batch.next_state < 0)[:, None].expand_as(logits)
    assert padding.any() and (logits.grad[padding] == 0).all()
    assert (logits.grad[~padding] != 0).all()
    assert all(p.grad is not None for p in model.fact_heads.parameters())
    assert model.action_head.weight.grad.abs().sum() > 0


def test_twin_draws_whole_grids(batch):
    model = model_of("generative")
    grids = model.predict(batch.state, batch.action)
    decoded = model.decode(model.imagine(model.encode(batch.state), batch.action))
    assert grids.shape == batch.state.shape
    valid = grids >= 0
    height = decoded.facts[0].argmax(1).clamp(max=6)
    assert torch.equal(valid.any(2).sum(1), height * (decoded.facts[1].argmax(1) > 0))


def test_cell_report_knows_what_copying_scores():
    state, truth = (torch.from_numpy(np.stack([canvas(x)])) for x in ("1100", "1120"))
    copied = measures.cell_report(state, state, truth)
    assert copied == {"cell_accuracy": 0.75, "copy_accuracy": 0.75, "changed_accuracy": 0.0}
    assert measures.cell_report(truth, state, truth)["changed_accuracy"] == 1
    longer = torch.from_numpy(np.stack([canvas("11200")]))
    assert measures.cell_report(longer, state, truth)["cell_accuracy"] == pytest.approx(0.8)


# --- training (GRID-5, GRID-6, GRID-8) --------------------------------------------------------
def test_defaults_are_the_seeds():
    config = GridConfig()
    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.batch) == (1e-4, 1e-4, 32)
    assert (optim.epochs, optim.patience, optim.clip, optim.schedule) == (100, 15, 1.0, "constant")
    assert (config.ema_decay, config.latent_dim, config.action_dim) == (0.995, 128, 64)
    reward = config.reward_optim
    assert (reward.lr, reward.schedule) == (1e-4, "plateau")
    assert (reward.plateau_patience, reward.patience) == (5, 10)
    assert profile("smoke").pixels.data.validation_split == 0.2
    assert config.log_every == 10
    step = EpochsConfig(epochs=100, lr=1e-4, schedule="step").optim(320)
    rates = [learning_rate(20 * 10 * k, step) for k in range(3)]  # StepLR 20 epochs / 0.5
    assert rates == pytest.approx([1e-4, 5e-5, 2.5e-5])


class Scripted:
    """Validation losses told in advance."""

    def __init__(self, *losses):
        self.losses = list(losses)

    def __call__(self):
        return {"loss": self.losses.pop(0) if len(self.losses) > 1 else self.losses[0]}


def scripted(losses, updates=20) -> Fit:
    module = torch.nn.Linear(1, 1)
    optim = OptimConfig(updates=updates, validate_every=1, schedule="constant", non_finite="skip")
    task = Task(module, lambda g: (module(torch.ones(1)).sum() ** 2, {}), Scripted(*losses))
    return Fit(task, optim, seed=0)


def test_training_stops_when_both_have_stalled():
    """One model at a standstill for long waits for the other."""
    falling = [10 - k for k in range(8)]
    pair = PairFit({"jepa": scripted([1.0]), "generative": scripted(falling)}, patience=2)
    done = list(pair)
    # The twin improves 8 times, then stalls for 2 validations; JEPA went along all the time.
    assert pair.update == 10 and pair.fits["jepa"].update == 10 and len(done) == 20
    assert [u.kind for u in done[:4]] == ["jepa", "generative"] * 2
    assert [u.report.update for u in done if u.improved and u.kind == "jepa"] == [1]
    assert sum(u.improved for u in done if u.kind == "generative") == 8
    endless = PairFit({"jepa": scripted([1.0]), "generative": scripted([1.0])}, patience=0)
    assert len(list(endless)) == 40


def test_both_see_the_same_batches_with_optimisers_of_their_own(buffer):
    seen = {}
    for kind in ("jepa", "generative"):
        model = model_of(kind)
        own = seen[kind] = []
        loss = model.loss

        def spy(batch, own=own, loss=loss):
            own.append(batch.action.tolist())
            return loss(batch)

        model.loss = spy
        optim = EpochsConfig(updates=3, batch=4)
        fit = fit_grid(model, buffer, optim, lambda: {}, seed=5)
        trainable = [p for p in model.parameters() if p.requires_grad]
        assert sum(len(g["params"]) for g in fit.optimiser.param_groups) == len(trainable)  # F1
        for _ in fit:
            pass
    assert seen["jepa"] == seen["generative"] and len(seen["jepa"][0]) == 4
    assert seen["jepa"][0] != seen["jepa"][1]


def test_learning_lowers_both_losses(buffer):
    optim = EpochsConfig(updates=40, batch=16, lr=3e-3)
    for kind in ("jepa", "generative"):
        model = model_of(kind)
        losses = [r.loss for r in fit_grid(model, buffer, optim, lambda: {}, seed=0)]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), kind


LOGGED = {
    "grid_s0": {"jepa_prediction_loss", "jepa_cosine_sim"},
    "grid_twin_s0": {"gen_total_loss", "gen_transition_loss", "gen_action_loss"},
}


def test_logged_keys(whole):
    """GRID-7, GRID-8: both parts of every key, and what tells a collapse."""
    for stage, names in LOGGED.items():
        rows = whole.run.records(stage)
        keys = set().union(*rows)
        assert keys >= {f"{part}/{name}" for name in names for part in ("train", "val")}
        assert keys >= {"val/std", "val/effective_rank", "train/steps_per_second", "epoch"}
        assert rows[-1]["step"] == 6
    assert "val/ema_distance" in set().union(*whole.run.records("grid_s0"))


def test_one_documented_output_path(whole):
    """GRID-6: weights, settings, validation, optimiser of both; reloading gives equal outputs."""
    folder = whole.run.path / "grid/s0"
    _, validation = gridstages.make_grid_data(whole)
    batch = validation.batch(torch.arange(5))
    for kind in ("jepa", "generative"):
        meta = read_json(folder / f"best_{kind}_model.json")
        assert meta["config"]["latent_dim"] == 16 and meta["loss"] == meta["validation"]["loss"]
        model = gridstages.read_grid_model(folder, kind)
        again = gridstages.load_grid_model(whole, kind, 0)
        assert fingerprint(model) == fingerprint(again) != fingerprint(model_of(kind))
        assert torch.equal(model.encode(batch.state), again.encode(batch.state))
        state = gridstages.load_optimiser(folder / f"best_{kind}_model.optimiser.pt")
        trainable = [p for p in model_of(kind).parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trainable, 1.0)
        optimiser.load_state_dict(state)
        assert optimiser.param_groups[0]["lr"] == 1e-4
        assert optimiser.state[trainable[0]]["step"] == meta["update"]
    rows = [row for row in whole.run.records("grid_s0") if "val/loss" in row]
    best = min(rows, key=lambda row: row["val/loss"])
    assert read_json(folder / "best_jepa_model.json")["update"] == best["step"]
    assert not list((whole.run.path / "resume").iterdir())
    for stage in ("grid_data", "grid_s0", "grid_twin_s0", "grid_reward_s0"):
        whole.run.verify(stage)
    with pytest.raises(FileError, match="no optimiser state"):
        gridstages.load_optimiser(folder / "best_jepa_model.json")
    with pytest.raises(FileError, match="cannot read"):
        gridstages.read_grid_model(folder, "jepa", "absent")


def test_resuming_equals_an_uninterrupted_training(whole, tmp_path):
    """Stopped between the two models, twice; the numbered checkpoints are kept as asked."""
    config = CONFIG.override({"pixels.grid.checkpoint_every": 1})
    ws = Workspace("test", Run.create("cut", config, tmp_path))
    for stop in (5, 6):  # a validation of JEPA without the twin's
        for count, _ in enumerate(gridstages.train_grid_stage(ws, 0)):
            if count == stop:
                break
    for _ in gridstages.train_grid_stage(ws, 0):
        pass
    for kind in ("jepa", "generative"):
        pair = [gridstages.load_grid_model(one, kind, 0) for one in (ws, whole)]
        assert fingerprint(pair[0]) == fingerprint(pair[1])
        numbered = sorted((ws.run.path / "grid/s0").glob(f"{kind}_model_epoch*.safetensors"))
        assert len(numbered) == 1 and numbered[0].stem.endswith("0001")
        epoch = gridstages.read_grid_model(ws.run.path / "grid/s0", kind, numbered[0].stem)
        assert epoch.latent_dim == 16
    keep = ("train/steps_per_second",)
    for stage in LOGGED:
        rows = [[{k: v for k, v in row.items() if k not in keep} for row in one.run.records(stage)]
                for one in (ws, whole)]  # fmt: skip
        assert rows[0] == rows[1]


# --- monitoring (GRID-7) ----------------------------------------------------------------------
class Constant(GridJepa):
    """An encoder that sends every grid to one point, and a transition that stays there."""

    def encode(self, state):
        return torch.ones(len(state), 16) * 3

    def encode_target(self, state):
        return torch.ones(len(state), 16) * 3

    def imagine(self, latent, action):
        return latent


def test_a_collapsed_model_is_flagged_although_its_cosine_is_1(batch):
    """F13: cosine alone calls a collapsed model perfect."""
    report = measures.validate_jepa(Constant(GRID, 6), batch)
    assert report["jepa_cosine_sim"] == pytest.approx(1) and report["jepa_prediction_loss"] == 0
    assert measures.collapsed(report)
    assert measures.verdict(report, late=True) == "collapsed"
    assert report["loss"] == pytest.approx(1), "a collapsed model would be the best one"


@pytest.mark.parametrize(
    ("latents", "flagged"),
    [
        (torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), False),
        (torch.zeros(200, 16), True),
        (1e-3 * torch.randn(200, 16), True),  # std
        (100 + torch.randn(200, 16), True),  # spread: all point the same way
        (torch.randn(200, 1) * torch.ones(16), True),  # one dimension
        (torch.full((200, 16), torch.nan), True),
    ],
)
def test_collapse_rule(latents, flagged):
    finite = bool(latents.isfinite().all())
    values = {"std": 1.0, "spread": np.nan, "effective_rank": 5.0}
    report = measures.latent_report(latents) if finite else values
    assert measures.collapsed(report) is flagged


def test_verdict_needs_the_cosine_only_when_there_is_no_collapse():
    fine = {"std": 1.0, "spread": 1.0, "effective_rank": 9.0}
    words = [measures.verdict(fine | {"jepa_cosine_sim": c}, late=True) for c in (0.8, 0.6, 0.4)]
    assert words == ["good", "between", "worrying"]
    assert measures.verdict(fine | {"jepa_cosine_sim": 0.4}, late=False) == "between"


def test_prediction_report_has_the_copy_baseline():
    generator = torch.Generator().manual_seed(0)
    target, present = (torch.randn(500, 8, generator=generator) for _ in range(2))
    report = measures.prediction_report(target.mean(0).expand(500, 8), target, present)
    assert report["error"] == pytest.approx(1, rel=1e-3)  # predicting the mean
    assert report["copy_error"] == pytest.approx(2, rel=0.1)
    exact = measures.prediction_report(target, target, present)
    assert exact["error"] == pytest.approx(0, abs=1e-6)
    assert exact["jepa_cosine_sim"] == pytest.approx(1)


# --- reward (GRID-9) --------------------------------------------------------------------------
def test_reward_metrics_against_scikit_learn():
    rng = np.random.default_rng(0)
    true = rng.normal(size=50)
    predicted = true + rng.normal(size=50)
    report = measures.reward_report(predicted, true)
    assert report["mae"] == pytest.approx(mean_absolute_error(true, predicted))
    assert report["r2"] == pytest.approx(r2_score(true, predicted))
    assert report["rmse"] == pytest.approx(report["mse"] ** 0.5)
    assert report["correlation"] == pytest.approx(np.corrcoef(true, predicted)[0, 1])
    flat = measures.reward_report(np.zeros(5), np.zeros(5))
    assert np.isnan(flat["r2"]) and np.isnan(flat["correlation"])
    with pytest.raises(measures.GridMetricError, match=r"must be \(n,\)"):
        measures.reward_report(np.zeros(3), np.zeros(4))


def test_goal_reward_reads_all_three_latents():
    head = build_reward(torch.randn(30, 3, 16), seed=0)
    latents = torch.randn(5, 3, 16)
    with torch.no_grad():
        reward = head(latents)
        assert reward.shape == (5,)
        for token in range(3):
            changed = latents.clone()
            changed[:, token] += 1
            assert (head(changed) - reward).abs().max() > 1e-5
        assert (head(latents[:, [1, 0, 2]]) - reward).abs().max() > 1e-5  # types and positions
    assert len(head.blocks.blocks) == 4 and head.blocks.blocks[0].attention.heads == 8
    assert head.blocks.blocks[0].mlp[0].out_features == 512
    assert fingerprint(build_reward(torch.ones(9, 3, 16), 0).blocks) == fingerprint(head.blocks)
    with pytest.raises(ValueError, match=r"must be \(B, 3, 16\)"):
        head(torch.zeros(5, 2, 16))


def test_sinusoids():
    values = sinusoids(3, 4)
    expected = [[0, 1, 0, 1], [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)]]
    np.testing.assert_allclose(values[:2].numpy(), expected, rtol=1e-5)


def test_reward_training_leaves_the_encoder_alone(buffer):
    model = model_of()
    before = fingerprint(model)
    rows = reward_rows(model, buffer)
    assert rows.latents.shape == (48, 3, 16) and not rows.latents.requires_grad
    with torch.no_grad():
        wanted = model.encode(torch.from_numpy(buffer.target_state[40:]).long())
    torch.testing.assert_close(rows.latents[40:, 2], wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(rows.reward, torch.from_numpy(buffer.reward))
    head = build_reward(rows.latents, 0)
    optim = EpochsConfig(updates=60, batch=16, lr=1e-3)
    losses = [report.loss for report in fit_reward(head, rows, rows, optim, seed=0)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert fingerprint(model) == before and model.training


def test_every_reward_has_its_baselines(whole):
    """Mean reward, no change, untrained encoder; R2 only with enough rewards to estimate it."""
    scores = read_json(whole.run.path / "grid/s0/reward/reward.json")["scores"]
    kinds = ("jepa", "generative", "random")
    wanted = {f"{kind}{part}" for kind in kinds for part in ("", "_imagined", "_copy")} | {"mean"}
    assert set(scores) == wanted
    assert all(one["r2"] is None and "not estimable" in one["note"] for one in scores.values())
    head = gridstages.load_reward(whole, "jepa", 0)
    assert isinstance(head, GoalReward) and not any(p.requires_grad for p in head.parameters())
    model = gridstages.load_grid_model(whole, "jepa", 0)
    _, validation = gridstages.make_grid_data(whole)
    arrays = np.load(whole.run.path / "grid/s0/reward/predictions.npz")
    with torch.no_grad():
        found = head(reward_rows(model, validation).latents)
    np.testing.assert_allclose(arrays["jepa"], found.numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(arrays["jepa"], arrays["jepa_imagined"])


# --- comparison and sweep (GRID-10, GRID-11) --------------------------------------------------
def test_rows_are_measured_and_comparable(whole):
    rows = read_json(whole.run.path / "grid/results.json")
    assert [row["model"] for row in rows] == ["jepa", "generative", "random"]
    assert len({row["data_sha256"] for row in rows}) == 1
    assert len({row["batches_sha256"] for row in rows}) == 1
    jepa, twin, random = rows
    assert jepa["outputs"] == 16 and twin["outputs"] == 36 + 5
    for row in (jepa, twin):
        assert row["ms_per_update"] > 0 and row["memory_mb"] > 4 * 4e-6 * row["parameters"]
        assert row["train_seconds"] == pytest.approx(6e-3 * row["ms_per_update"])
    assert "memory_mb" not in random and random["collapsed"] in (True, False)
    assert all(0 <= row["fact_accuracy"] <= 1 for row in rows)


def test_memory_counts_what_backward_keeps(batch):
    model = model_of()
    parts = [type(batch)(*(x[:n] for x in batch)) for n in (2, 16)]
    small, large = (
        update_bytes(model, lambda part=part: model.loss(part)[0]) / 1e6 for part in parts
    )
    assert small < large
    weights = sum(4 * p.numel() for p in model.parameters())
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert small * 1e6 > weights + 3 * trained


def test_comparison_is_a_table_of_numbers():
    rows = [
        {"model": kind, "seed": seed, "parameters": 1000, "ms_per_update": 10.0 + seed,
         "reward_r2": 0.1 * seed, "collapsed": kind == "jepa" and seed == 0}
        for kind in ("jepa", "generative") for seed in range(3)
    ]  # fmt: skip
    table = measures.comparison(rows)
    assert list(table.columns) == ["jepa", "generative"]
    assert table.loc["collapse rate"].tolist() == ["1 of 3", "0 of 3"]
    assert table.loc["seed spread of reward R2 (std)", "jepa"] == "0.100"
    assert table.loc["trainable weights", "jepa"] == "1,000"
    # Student's interval of 10, 11, 12: 11 -+ 4.303 / sqrt(3).
    assert table.loc["time of one update (ms, median)", "jepa"] == "11 [8.52, 13.5]"
    lone = measures.comparison(rows[:1])
    assert lone.loc["time of one update (ms, median)", "jepa"] == "10"


def test_a_reward_r2_of_too_few_rewards_says_so():
    """An error without an R2 is not an empty cell: that would be a model without rewards."""
    rows = [
        {"model": "jepa", "seed": 0, "reward_r2": None, "reward_mse": 0.1, "imagined_r2": 0.5,
         "imagined_mse": 0.1, "collapsed": False},
        {"model": "untrained", "seed": 0, "reward_r2": None, "reward_mse": None,
         "collapsed": False},
    ]  # fmt: skip
    table = measures.comparison(rows)
    assert table.loc["reward R2, true next latent"].tolist() == ["not estimable", ""]
    assert table.loc["reward R2, imagined next latent"].tolist() == ["0.5", ""]


def test_the_tuning_sweep_has_the_seeds_values(tmp_path, monkeypatch, whole):
    study = read_experiment(CONFIGS / "grid_jepa_tuning.yaml")
    (cell,) = study.cells
    grids = [unit.config.pixels.grid for unit in study.units(cell)]
    assert {g.ema_decay for g in grids} == {0.99, 0.995, 0.999}
    assert {g.optim.lr for g in grids} == {1e-5, 1e-4, 1e-3}
    assert {g.latent_dim for g in grids} == {64, 128, 256}
    assert {g.depth for g in grids} == {2, 4, 6}
    assert cell.seeds == (0, 1, 2) and cell.notebooks == "14"
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path))
    study = read_experiment(CONFIGS / "grid_jepa_tuning.yaml")
    with pytest.raises(FileError, match="no run of the sweep 'grid-jepa_tuning' has finished"):
        gridresults.tuning_table(study.runs(), study.folder)
    rows = read_json(whole.run.path / "grid/results.json")
    for unit in study.units(cell)[:6]:  # default and EMA 0.99
        path = study.folder / unit.run_name / "grid/results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([row | {"seed": unit.seed} for row in rows]))
    assert main(["grid", "table"]) == 0
    table = pd.read_csv(tmp_path / "grid-jepa_tuning/grid_results.csv")
    assert table["setting"].unique().tolist() == ["default", "EMA 0.99"]
    assert len(table) == 2 * 3 and (table["seeds"] == 3).all()
    assert {"std", "effective_rank", "collapse_rate", "memory_mb"} <= set(table)


# --- settings and command ---------------------------------------------------------------------
CHANGES = {
    "size": 7, "episodes": 7, "steps": 9, "encoder": "cnn", "encoder_depth": 2, "latent_dim": 24,
    "action_dim": 12, "action_encoder": "one_hot", "depth": 2, "heads": 4, "head_dim": 4,
    "mlp_dim": 24, "ema_decay": 0.5, "action_weight": 2.0,
}  # fmt: skip


@functools.cache
def effect(config: GridConfig) -> tuple:
    """Data and weights after two updates of both models."""
    data = grid_buffers.play(config, 0)
    found = [data.sha256]
    for kind in ("jepa", "generative"):
        model = build_grid_model(kind, config, data.size, 0)
        for _ in fit_grid(model, data, EpochsConfig(updates=2, batch=4), lambda: {}, seed=0):
            pass
        found.append(fingerprint(model))
    return tuple(found)


@pytest.mark.parametrize("leaf", CHANGES)
def test_every_setting_acts(leaf):
    """F9: no setting is ignored (path, checkpoint_every, log_every, budgets: tests elsewhere)."""
    others = {"path", "checkpoint_every", "log_every", "optim", "reward_optim"}
    assert {field.name for field in dataclasses.fields(GridConfig)} == CHANGES.keys() | others
    base = dataclasses.replace(GRID, episodes=3, steps=3)
    assert effect(dataclasses.replace(base, **{leaf: CHANGES[leaf]})) != effect(base)


def test_the_config_file_acts(buffer, tmp_path, monkeypatch, capsys):
    """F13, F7: `grid train --config FILE` runs, and every value of the file is used."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))
    path = buffer.save(tmp_path / "own.pt")
    drawn = {"size", "episodes", "steps"}  # of the built-in world
    grid = {key: value for key, value in SMALL.items() if key not in drawn}
    grid |= {"latent_dim": 24, "path": str(path)}
    tree = {"profile": "smoke", "device": "cpu", "precision": "fp32", "pixels": {"grid": grid}}
    config = tmp_path / "own.yaml"
    config.write_text(json.dumps(tree))
    settings = [
        "--set",
        "pixels.grid.optim.updates=2",
        "--set",
        "pixels.grid.reward_optim.updates=2",
    ]
    assert main(["grid", "train", "--config", str(config), "--name", "own", *settings]) == 0
    run = tmp_path / "outputs/own"
    said = capsys.readouterr().out
    assert str(run / "grid/s0/best_jepa_model.safetensors") in said and "collapse rate" in said
    assert read_json(run / "grid/s0/best_jepa_model.json")["config"]["latent_dim"] == 24
    data = read_json(run / "grid/data/data.json")
    assert data["source"] == str(path) and data["sha256"] == buffer.sha256
    assert main(["grid", "train", "--config", str(config), "--name", "own", *settings]) == 2
    assert "exists already" in capsys.readouterr().err
    config.write_text("pixels: {grid: {latent: 24}}")
    assert main(["grid", "train", "--config", str(config)]) == 2
    assert "latent" in capsys.readouterr().err
    config.write_text(json.dumps(tree | {"pixels": {"grid": grid | {"path": "x.pkl"}}}))
    assert main(["grid", "train", "--config", str(config), "--name", "bad"]) == 2
    assert "is a pickle" in capsys.readouterr().err


# --- figures ----------------------------------------------------------------------------------
def test_colours_are_legible_apart():
    """Every pair differs clearly in sRGB, and padding is none of them."""
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in figures.PALETTE])
    gaps = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(11)
    assert len(colours) == 11 and gaps.min() > 90


def test_figures_show_what_they_were_given(whole, buffer):
    strip = figures.grid_strip(buffer.state[:7], ["a"], columns=4)
    assert len(strip.axes) == 7
    shown = strip.axes[0].images[0].get_array()
    assert np.array_equal(shown.mask, buffer.state[0] < 0)
    assert np.array_equal(shown.data, buffer.state[0])
    with pytest.raises(FigureError, match="whole colours"):
        figures.grid_strip([np.full((3, 3), 11)])
    rows = [[buffer.state[0], buffer.next_state[0]]] * 3
    assert len(figures.predictions(rows, ["state", "next"]).axes) == 6
    with pytest.raises(FigureError, match="every row needs 2 grids"):
        figures.predictions([[buffer.state[0]]], ["state", "next"])
    records = whole.run.records("grid_s0")
    keys = ["jepa_prediction_loss", "jepa_cosine_sim", "effective_rank"]
    drawn = figures.curves([records], keys, {"jepa_cosine_sim": {"good": 0.7}})
    assert [axis.get_title("left") for axis in drawn.axes] == [k.replace("_", " ") for k in keys]
    with pytest.raises(FigureError, match="no record has"):
        figures.curves([records], ["absent"])


def test_reward_figure_has_four_panels(whole):
    arrays = np.load(whole.run.path / "grid/s0/reward/predictions.npz")
    scores = read_json(whole.run.path / "grid/s0/reward/reward.json")["scores"]
    records = whole.run.records("grid_reward_s0_jepa")
    figure = figures.reward_panels(arrays["true"], arrays["jepa"], records, scores)
    assert len(figure.axes) == 4
    assert figure.axes[3].get_title("left") == "MSE (R2 not estimable)"
    points = figure.axes[0].collections[0].get_offsets()
    assert sorted(points[:, 0]) == pytest.approx(sorted(arrays["true"]))
    known = {name: {"r2": 0.5, "mse": 1.0} for name in ("jepa", "random")}
    figure = figures.reward_panels(arrays["true"], arrays["jepa"], records, known)
    assert [bar.get_width() for bar in figure.axes[3].patches] == [0.5, 0.5]


# --- paired by seed ----------------------------------------------------------------------------
def paired_rows(seeds=3):
    """JEPA's reward error is a tenth below its twin's in every seed, whose level differs a lot."""
    rows = []
    for seed in range(seeds):
        level = 0.03 * 2.0**seed
        for model, factor in (("jepa", 0.9 + 0.002 * seed), ("generative", 1.0), ("random", 1.0)):
            row = {"model": model, "seed": seed, "std": 0.4, "effective_rank": 30.0}
            row |= {"collapsed": model == "jepa" and seed == 0, "reward_mse": factor * level}
            row |= {"reward_r2": None if model == "random" else 0.1, "mean_reward_mse": 0.0355}
            if model != "generative":
                row |= {"error": 0.6, "copy_error": 0.5, "jepa_cosine_sim": 0.9}
            rows.append(row)
    return rows


def test_grid_models_are_paired_by_seed():
    """Their levels differ by seed far more than they do: separate means would overlap."""
    rows = paired_rows()
    gap = measures.paired_error(rows, "jepa", "generative")
    assert gap["verdict"] == "beats" and gap["difference"] == pytest.approx(-0.098)
    assert gap["seeds"] == 3 and gap["low"] < gap["difference"] < gap["high"] < -0.08
    means = {
        name: measures.mean_interval([row["reward_mse"] for row in rows if row["model"] == name])
        for name in ("jepa", "generative")
    }
    assert means["jepa"].high > means["generative"].low
    assert measures.paired_error(rows[::-1], "jepa", "generative") == gap  # by seed, not by place
    few = measures.paired_error(paired_rows(2), "jepa", "generative")
    assert few["verdict"] == "nothing claimed: 2 of 3 seeds"
    single = measures.sentence(measures.paired_error(paired_rows(1), "jepa", "generative"))
    assert single.endswith("reward error -10.0 % (1 seed)")
    with pytest.raises(measures.GridMetricError, match="same training seeds"):
        measures.paired_error(rows[1:], "jepa", "generative")
    lists = section(rows)["lists"]
    assert "jepa beats generative" in lists["Paired by training seed, interval over seeds alone"][0]
