"""Layout lists, the excluded rectangle, and the committed trial files."""

import random

import numpy as np
import pytest
import torch

from hjepa_lib import files
from hjepa_lib.worlds import layout as layouts
from hjepa_lib.worlds import trials as trial_module
from hjepa_lib.worlds.layout import Layout, all_layouts, layout_lists, layout_set, rectangle_split
from hjepa_lib.worlds.trials import (
    PROTOCOLS,
    SPLITS,
    load_trials,
    make_trials,
    read_trials,
    save_trials,
)
from hjepa_lib.worlds.two_rooms import inside


def as_set(rows):
    return {tuple(row) for row in np.asarray(rows).tolist()}


def test_all_layouts_are_the_1125_of_the_papers():
    rows = all_layouts()
    assert rows.shape == (1125, 2) and len(as_set(rows)) == 1125
    assert rows[0].tolist() == [20, 10] and rows[1].tolist() == [20, 11]  # wall_x slowest
    assert rows[-1].tolist() == [44, 54]


def test_lists_are_disjoint_and_complete():
    """EB6: validation layouts are disjoint from training."""
    train, validation, test = (as_set(layout_lists()[n]) for n in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (900, 112, 113)
    assert not train & validation and not train & test and not validation & test
    assert train | validation | test == as_set(all_layouts())


def test_committed_lists_are_what_the_code_makes(tmp_path, monkeypatch):
    for name, rows in layouts.split_layouts().items():
        assert np.array_equal(rows, layout_lists()[name])
    copy = layouts.write_lists(tmp_path / "layouts.json")
    content = files.read_json(copy)
    content["test"]["rows"][0] = [32, 10]
    files.write_json(copy, content)
    monkeypatch.setattr(layouts, "_LISTS", copy)
    layouts._stored_lists.cache_clear()
    with pytest.raises(files.FileError, match="does not match its SHA-256"):
        layout_lists()
    layouts._stored_lists.cache_clear()


def test_a_layout_is_held_out_only_if_wall_and_door_are_excluded():
    train, held = rectangle_split("28-36", "26-38")
    assert as_set(held) == {(w, d) for w in range(28, 37) for d in range(26, 39)}
    assert as_set(train) | as_set(held) == as_set(all_layouts())
    assert (30, 10) in as_set(train) and (20, 30) in as_set(train)
    assert len(rectangle_split("", "")[0]) == 1125


@pytest.mark.parametrize(
    ("wall", "door", "message"),
    [
        ("28-36", "", "both be set"),
        ("36-28", "26-38", "min <= max"),
        ("28", "26-38", '"min-max"'),
        ("20-44", "10-54", "no layout to train on"),
    ],
)
def test_bad_rectangles(wall, door, message):
    with pytest.raises(ValueError, match=message):
        rectangle_split(wall, door)


def test_layout_sets_by_name():
    assert layout_set("fixed").tolist() == [[32, 10]]
    assert np.array_equal(layout_set("random"), layout_lists()["train"])
    assert len(layout_set("rectangle_heldout", "28-36", "26-38")) == 9 * 13
    with pytest.raises(ValueError, match="layouts must be one of"):
        layout_set("square")
    with pytest.raises(ValueError, match="is empty"):
        layout_set("rectangle_heldout")


def test_layout_edges_and_rows():
    layout = Layout.of(np.array([[32, 10], [20, 54]]))
    assert layout.left.tolist() == [31, 19] and layout.right.tolist() == [33, 21]
    assert layout.top.tolist() == [6, 50] and layout.bottom.tolist() == [14, 58]
    assert layout.batch == 2 and layout.index([1]).pairs().tolist() == [[20, 54]]
    assert Layout.fixed(3).pairs().tolist() == [[32, 10]] * 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("split", SPLITS)
def test_committed_trials_are_what_the_code_makes(protocol, split, tmp_path):
    trials = load_trials(protocol, split, 500)
    allowed = {"p1": "fixed", "p2_seen": "train", "p2_heldout": split}[protocol]
    assert as_set(trials.layout.pairs().int()) <= as_set(layout_set(allowed))
    assert inside(trials.start, trials.layout).all() and inside(trials.goal, trials.layout).all()
    wall = trials.layout.wall_x
    assert ((trials.start[:, 0] < wall) != (trials.goal[:, 0] < wall)).all()
    trial_module.write_committed(tmp_path)
    again = read_trials(tmp_path / f"{protocol}_{split}.npz")
    assert again.sha256 == trials.sha256


def test_trial_files_share_no_rows():
    hashes = {load_trials(p, s, 500).sha256 for p in PROTOCOLS for s in SPLITS}
    assert len(hashes) == 6
    starts = torch.cat([load_trials("p1", s, 500).start for s in SPLITS])
    assert len(starts.unique(dim=0)) == 1000


def test_smaller_n_is_the_first_rows():
    few, many = load_trials("p2_seen", "test", 7), load_trials("p2_seen", "test", 500)
    assert few.count == 7 and torch.equal(few.start, many.start[:7])
    assert few.sha256 == many.sha256 and few.layout.batch == 7
    for n in (0, 501):
        with pytest.raises(ValueError, match="has 500 trials"):
            load_trials("p1", "test", n)


def test_trials_do_not_depend_on_global_generators():
    """PL2: the peer drew trials from Python's global generator and ignored its seed."""
    first = make_trials("train", "medium", 20, 5)
    torch.rand(10), random.random(), np.random.rand(3)
    again = make_trials("train", "medium", 20, 5)
    assert first.sha256 == again.sha256 and torch.equal(first.start, again.start)
    assert make_trials("train", "medium", 20, 6).sha256 != first.sha256
    python, state = random.getstate(), torch.random.get_rng_state()
    make_trials("train", "medium", 20, 5)
    assert random.getstate() == python and torch.equal(torch.random.get_rng_state(), state)


def test_damaged_trial_files_are_named(tmp_path, monkeypatch):
    path = tmp_path / "p1_test.npz"
    good = load_trials("p1", "test", 5)
    columns = {
        "start": good.start.numpy(),
        "goal": good.goal.numpy(),
        "layout": np.array([[32, 10]] * 5),
    }
    wrong = {
        "no array 'goal'": {"goal": None},
        r"goal must be \(5, 2\)": {"goal": columns["goal"][:4]},
        "not finite": {"start": columns["start"] * np.nan},
        "lies in a wall": {"start": np.full((5, 2), 32.0)},
    }
    for message, change in wrong.items():
        arrays = {k: v for k, v in {**columns, **change}.items() if v is not None}
        files.save_npz(path, **arrays)
        with pytest.raises(files.FileError, match=message):
            read_trials(path)
    moved = good._replace(start=good.goal, goal=good.start)
    save_trials(path, moved)
    files.write_json(tmp_path / "index.json", {"p1_test": good.sha256})
    monkeypatch.setattr(trial_module, "_FOLDER", tmp_path)
    with pytest.raises(files.FileError, match="recorded SHA-256"):
        load_trials("p1", "test", 5)
    for protocol, split, n in (("p3", "test", 1), ("p1", "train", 1)):
        with pytest.raises(ValueError, match="must be one of"):
            load_trials(protocol, split, n)
