"""Layout lists, the excluded rectangle, and the committed trial files."""

import numpy as np
import pytest
import torch

from hjepa_lib import files
from hjepa_lib.worlds import trials as trial_module
from hjepa_lib.worlds.layout import Layout, all_layouts, layout_lists, layout_set
from hjepa_lib.worlds.trials import SPLITS, load_trials, make_trials, read_trials, save_trials
from hjepa_lib.worlds.two_rooms import inside

LISTS = {
    "train": (900, "06bf8c8041cedf898a87aa8b6c12343cfb970ad7d6767b895d3c166a3d44dc41"),
    "validation": (112, "7d7b28d84eb9d5b5e58f0f8ba53ee704c48a061d789fad5c58739c09e4804a49"),
    "test": (113, "9037c3b9f21e4c35b64274f27be320e728b62e1e03bfc64550a709e0aa03551c"),
}
COMMITTED = [(name, split) for name in ("p1", "p2_seen", "p2_heldout", "p3") for split in SPLITS]


def as_set(rows):
    return {tuple(row) for row in np.asarray(rows).tolist()}


def test_lists_are_disjoint_complete_and_never_change():
    """EB6: the 1,125 of the papers, training apart; studies on disk rest on these rows."""
    for name, (count, digest) in LISTS.items():
        rows = layout_lists()[name]
        assert len(as_set(rows)) == count
        assert files.sha256(rows.astype("<i2").tobytes()) == digest
    assert set().union(*map(as_set, layout_lists().values())) == as_set(all_layouts())
    assert all_layouts().shape == (1125, 2) and all_layouts()[-1].tolist() == [44, 54]
    assert Layout.of([[32, 10], [20, 54], [32, 10]]).numbers().tolist() == [1, 0, 1]


def test_a_layout_is_held_out_only_if_wall_and_door_are_excluded():
    ranges = ("28-36", "26-38")
    assert len(layout_set("rectangle")) == 1125  # no range, nothing excluded
    held = {(w, d) for w in range(28, 37) for d in range(26, 39)}
    assert as_set(layout_set("rectangle", *ranges)) == as_set(all_layouts()) - held
    assert layout_set("fixed").tolist() == [[32, 10]]
    assert np.array_equal(layout_set("random"), layout_lists()["train"])


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (layout_set, ("rectangle", "28-36", ""), 'exclude_door must be "min-max"'),
        (layout_set, ("rectangle", "36-28", "26-38"), "min <= max"),
        (layout_set, ("rectangle", "28", "26-38"), 'exclude_wall must be "min-max"'),
        (layout_set, ("rectangle", "20-44", "10-54"), "exclude_door=10-54 leave none"),
        (layout_set, ("square",), "layouts must be one of fixed, random"),
        (load_trials, ("p1", "test", 0), "has 500 trials"),
        (load_trials, ("p1", "test", 501), "has 500 trials"),
        (load_trials, ("p4", "test"), "trials must be one of p1_validation"),
        (load_trials, ("p1", "train"), "trials must be one of p1_validation"),
        (make_trials, (all_layouts(), 0, 0), "n must be at least 1"),
    ],
)
def test_what_there_is_not_is_one_sentence(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


@pytest.mark.parametrize(("protocol", "split"), COMMITTED)
def test_committed_trials_are_what_the_code_makes(protocol, split):
    """PL2: from the seed alone; the peer drew them from Python's global generator."""
    trials = load_trials(protocol, split, 500)
    allowed = {"p1": "fixed", "p2_seen": "train", "p2_heldout": split, "p3": "fixed"}[protocol]
    assert as_set(trials.layout.pairs().int()) <= as_set(layout_set(allowed))
    assert inside(trials.start, trials.layout).all() and inside(trials.goal, trials.layout).all()
    wall = trials.layout.wall_x
    assert ((trials.start[:, 0] < wall) != (trials.goal[:, 0] < wall)).all()
    seed = 1000 + COMMITTED.index((protocol, split))
    assert make_trials(layout_set(allowed), 500, seed).sha256 == trials.sha256
    few = load_trials(protocol, split, 7)
    assert few.count == few.layout.batch == 7 and torch.equal(few.start, trials.start[:7])
    assert few.sha256 == trials.sha256


def test_damaged_trial_files_are_named(tmp_path, monkeypatch):
    path, good = tmp_path / "p1_test.npz", load_trials("p1", "test", 5)
    columns = {"start": good.start.numpy(), "goal": good.goal.numpy()}
    columns["layout"] = np.array([[32, 10]] * 5)
    wrong = {
        "no array 'goal'": {"goal": None},
        r"goal must be \(5, 2\)": {"goal": columns["goal"][:4]},
        r"start must be \(n, 2\)": dict.fromkeys(columns, np.zeros((0, 2))),
        "lies in a wall": {"start": np.full((5, 2), 32.0)},
        "or outside": {"start": columns["start"] * np.nan},
    }
    for message, change in wrong.items():
        files.save_npz(path, **{k: v for k, v in (columns | change).items() if v is not None})
        with pytest.raises(files.FileError, match=message):
            read_trials(path)
    save_trials(path, good._replace(start=good.goal, goal=good.start))
    files.write_json(tmp_path / "index.json", {"p1_test": good.sha256})
    monkeypatch.setattr(trial_module, "_FOLDER", tmp_path)
    with pytest.raises(files.FileError, match="recorded SHA-256"):
        load_trials("p1", "test", 5)
