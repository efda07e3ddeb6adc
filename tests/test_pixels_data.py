"""Transitions, collection, load rules, inspection and sample figures."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from tiny_pixels import Counting, collected, numbered, skilled

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.files import FileError, WorkbookError, read_json, save_npy, write_json
from hjepa_lib.pixels import checks, figures
from hjepa_lib.pixels import collect as collecting
from hjepa_lib.pixels.collect import acquire, collect, record
from hjepa_lib.pixels.env import PixelObservation, make_env, stack_frames
from hjepa_lib.pixels.transitions import Transitions, scaled, shapes_of


@pytest.fixture(scope="module")
def drift():
    return collect(collected(), 0)


def test_stacks_repeat_the_first_frame_and_stay_in_their_episode():
    batch = numbered([3, 2]).batch(torch.arange(5))  # frames 0..3 and 4..6
    shown = [states[..., 0, 0, 0].tolist() for states in (batch.state, batch.next_state)]
    assert shown[0] == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [4, 4, 4], [4, 4, 5]]
    assert shown[1] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 5], [4, 5, 6]]


def test_gathered_stacks_are_those_of_the_environment(drift):
    """The predicted image is the last of the next state."""
    assert shapes_of(drift) == (1, 4, 16, "discrete", 5) and len(drift) == 120
    env = stack_frames(make_env(collected().environment), 4)
    env.action_space.seed(0)
    state, _ = env.reset(seed=0)
    for row in range(12):
        batch = drift[torch.tensor([row])]
        assert (batch.action.dtype, batch.reward.dtype) == (torch.int64, torch.float32)
        assert batch.state.dtype == torch.uint8 and scaled(batch.state).max() <= 1  # F14
        assert np.array_equal(batch.state[0].numpy(), state)
        state, reward, *_ = env.step(int(batch.action[0]))
        assert np.array_equal(batch.next_state[0].numpy(), state)
        assert reward == pytest.approx(float(batch.reward[0]))


def test_the_split_is_by_episode_and_shuffled_by_the_seed(drift):
    parts = [drift.split(0.3, seed) for seed in (0, 0, 1)]
    held = [validation.episodes.tolist() for _, validation in parts]
    assert held[0] == held[1] != held[2] and held[0] != drift.episodes[:3].tolist()
    assert sorted(parts[0][0].episodes.tolist() + held[0]) == drift.episodes.tolist()
    with pytest.raises(WorkbookError, match="one episode alone"):
        numbered([6]).split(0.2, 0)


@pytest.mark.parametrize("skip", [0, 1])
def test_parts_keep_their_transitions_and_only_their_frames(skip, tmp_path):
    data = numbered([3, 5, 2, 4], skip=skip)
    for part in data.split(0.5, 0):
        rows = torch.isin(data.episode, part.episodes).nonzero()[:, 0]
        pairs = zip(part[torch.arange(len(part))], data[rows], strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
        assert len(part.frames) == (skip + 1) * len(part) + len(part.episodes)
        assert Transitions.load(part.save(tmp_path)).sha256 == part.sha256


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 8), st.integers(0, 1))
def test_windows_never_cross_an_episode(lengths, length, skip):
    """DATA-10, F6."""
    data = numbered(lengths, skip=skip)
    expected = sum(n - length + 1 for n in lengths if n >= length)
    if expected == 0:
        with pytest.raises(WorkbookError, match=f"no episode has {length} transitions"):
            data.windows(length)
        return
    first = data.windows(length)
    assert len(first) == expected
    rows = first[:, None] + torch.arange(length)
    assert (data.episode[rows] == data.episode[first][:, None]).all()
    batch = data[rows[0]]
    assert torch.equal(batch.state[1:, -1], batch.next_state[:-1, -1])


def test_same_seed_same_data(drift):
    again, other = (collect(collected(), seed) for seed in (0, 6))
    assert drift.sha256 == again.sha256 != other.sha256
    assert torch.bincount(drift.action, minlength=5).min() > 10  # uniform


def test_positions_are_those_of_the_frames(drift, tmp_path):
    """X19: as `info` tells them; parts keep their own, and an environment may tell nothing."""
    place = drift.position[drift.after[30]] / 4  # 64 px world, 16 px frames
    x, y = place.round().int().tolist()
    patch = drift.frames[drift.after[30], 0, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
    assert patch.max() > 120
    part, _ = drift.split(0.3, 0)
    rows = torch.isin(drift.episode, part.episodes)
    assert torch.equal(part.position[part.now], drift.position[drift.now[rows]])
    loaded = Transitions.load(part.save(tmp_path))
    assert torch.equal(loaded.position, part.position) and loaded.sha256 == part.sha256
    told = record(PixelObservation(Counting(3), 16), lambda _: 1, collected(), 0)
    assert told.position is None
    assert Transitions.load(told.save(tmp_path)).position is None  # no other data's are left


def test_limits_of_episodes_and_transitions():
    assert len(collect(collected(data__episodes=3), 0).episodes) == 3
    cut = collect(collected(data__transitions=30), 0)
    assert len(cut) == 30 and cut.episode.bincount().tolist() == [12, 12, 6]
    with pytest.raises(WorkbookError, match="one episode alone cannot be split"):
        collect(collected(data__transitions=9), 0)


def test_frame_skip_stores_first_action_last_state_and_summed_reward(drift):
    skipped = collect(collected(environment__frame_skip=1), 0)
    assert len(skipped) == 60 and torch.equal(skipped.frames, drift.frames)  # the same play
    assert torch.equal(skipped.action, drift.action[::2])
    assert torch.allclose(skipped.reward, drift.reward.view(-1, 2).sum(1))
    batch, steps = skipped.batch(torch.tensor([1])), drift.batch(torch.tensor([2, 3]))
    assert torch.equal(batch.state[0], steps.state[0])
    assert torch.equal(batch.next_state[0], steps.next_state[1])
    data = collect(collected(environment__frame_skip=4, data__episodes=2), 0)
    assert (data.after - data.now).tolist() == [5, 5, 2] * 2  # the last decision is cut short


def test_discrete_actions_are_stored_from_zero_and_the_environment_is_closed(monkeypatch):
    env, closed = PixelObservation(Counting(3), 16), []
    env.action_space = spaces.Discrete(4, start=3)
    monkeypatch.setattr(Counting, "close", lambda self: closed.append(True))
    assert set(record(env, lambda _: 4, collected(), 0).action.tolist()) == {1} and closed
    env.env.reward = math.nan
    with pytest.raises(WorkbookError, match="the environment returned the reward nan"):
        record(env, lambda _: 4, collected(), 0)
    assert len(closed) == 2


def test_ppo_without_its_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install stable-baselines3"):
        collect(skilled(), 0)


@pytest.fixture
def stored(drift, tmp_path):
    return drift.save(tmp_path / "stored")


def test_round_trip_with_everything_that_describes_it(drift, stored):
    loaded = Transitions.load(stored)
    assert loaded.sha256 == drift.sha256 and loaded.meta == drift.meta
    assert torch.equal(loaded.batch(torch.arange(9)).state, drift.batch(torch.arange(9)).state)
    train, validation = drift.split(0.2, 0)
    wanted = {
        "environment": "hjepa/Drift-v0", "method": "random", "seed": 0, "episodes": 10,
        "image_size": 16, "max_steps": 12, "validation_split": 0.2, "frame_skip": 0,
        "action_repeat": 1, "ppo": None, "transitions": 120, "train_transitions": len(train),
        "validation_transitions": len(validation), "sha256": drift.sha256,
        "validation_episodes": validation.episodes.tolist(),
    }  # fmt: skip
    assert wanted.items() <= json.loads((stored / "meta.json").read_text()).items()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "meta.json").unlink(), "cannot read"),
        (lambda f: (f / "meta.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "meta.json").write_text("[]"), "holds no transitions"),
        (
            lambda f: write_json(f / "meta.json", read_json(f / "meta.json") | {"ppo": [1]}),
            "'ppo' is no mapping",
        ),
        (lambda f: (f / "meta.json").write_text('{"format": "hjepa transitions"}'), "are unknown"),
        (lambda f: (f / "reward.npy").unlink(), "No such file"),
        (lambda f: (f / "frames.npy").write_bytes(b"\x93NUMPY"), "not a whole"),
        (lambda f: (f / "reward.npy").write_bytes(b"\x80\x04pickle"), "not a whole"),
        (lambda f: save_npy(f / "reward.npy", np.zeros(120, np.float32)), "SHA-256"),
    ],
)
def test_a_damaged_folder_is_one_sentence(stored, spoil, sentence):
    spoil(stored)
    with pytest.raises(FileError, match=sentence) as caught:
        acquire(collected(data__path=str(stored)), 0)
    assert "\n" not in str(caught.value)


OWN, CONTINUOUS = "frames of its own", {"action_kind": "continuous", "action_dim": 2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"frames": np.zeros((7, 8, 8), np.uint8)}, r"\(F, C, H, W\), got \(7, 8, 8\)"),
        ({"frames": np.zeros((7, 1, 8, 0), np.uint8)}, "frames must be .* not empty"),
        ({"frames": np.zeros((7, 1, 8, 8), np.float32)}, "frames must be .* uint8"),
        ({"now": np.array([0, 1, 2, 4, 5], ">i8")}, "now must be .* int64.* got .* >i8"),
        ({"after": [*"abcde"]}, "after must be .* got .* <U1"),
        ({"episode": [0] * 4}, r"episode must be \(5,\) .* got \(4,\)"),
        ({"reward": np.zeros((5, 1), np.float32)}, r"reward must be \(5,\) .* got \(5, 1\)"),
        ({"reward": [0.0] * 5}, "reward must be .* float32.* got .* float64"),
        ({"action": np.zeros((5, 2), np.float32)}, r"action must be \(5,\) int64"),
        ({"now": [1, 0, 2, 4, 5]}, OWN), ({"now": [1, 1, 2, 4, 5]}, OWN),
        ({"after": [1, 2, 3, 5, 7]}, OWN), ({"after": [1, 2, 4, 5, 6]}, OWN),
        ({"after": [1, 2, 3, 5, 5]}, OWN), ({"origin": [0] * 5}, OWN),
        ({"origin": [0, 1, 0, 4, 4]}, OWN), ({"episode": [0, 0, 0, 0, 1]}, OWN),
        ({"action": [0, 1, 2, 3, 4]}, r"outside 0\.\.3"),
        ({"action": [0, 1, 2, 3, -1]}, r"outside 0\.\.3"),
        ({"reward": np.array([0, 0, 0, 0, np.inf], np.float32)}, "reward is NaN or infinite"),
        ({"action_dim": "4"}, "size '4'"), ({"stack": 0}, "stacks of 0"),
        ({"action_kind": "analog"}, "'analog' actions"),
        (CONTINUOUS | {"action": np.full((5, 2), np.nan, np.float32)}, "action is NaN or infinite"),
        (CONTINUOUS | {"action": np.zeros((5, 3), np.float32)}, r"action must be \(5, 2\) float32"),
    ],
)  # fmt: skip
def test_a_stored_set_of_a_stranger_is_checked(tmp_path, change, sentence):
    """`numbered([3, 2])` with one change: the sentence says what is wrong, not that the hash is."""
    folder = numbered([3, 2]).save(tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    for name in change.keys() - meta.keys():
        save_npy(folder / f"{name}.npy", np.array(change[name]))
    own = {name: change[name] for name in change.keys() & meta.keys()}
    (folder / "meta.json").write_text(json.dumps(meta | own))
    with pytest.raises(FileError, match=sentence) as caught:
        Transitions.load(folder)
    assert "\n" not in str(caught.value)


def test_a_fitting_file_is_loaded(stored, drift, monkeypatch):
    monkeypatch.setattr(collecting, "collect", lambda *_: pytest.fail("nothing to collect"))
    data = acquire(collected(data__path=str(stored), environment__max_steps=9), 7)
    assert data.sha256 == drift.sha256
    assert data.meta["notes"][0] == f"loaded from {stored}" and "max_steps" in data.meta["notes"][1]
    assert data.meta["seed"] == 7 and data.meta["collected_seed"] == 0
    _, held = data.split(data.meta["validation_split"], 7)
    assert data.meta["validation_episodes"] == held.episodes.tolist()  # as this run cuts it
    longer = acquire(collected(data__path=str(stored), environment__stack=6), 7)
    assert longer.state_shape == (6, 1, 16, 16)


def test_without_a_file_data_are_collected(tmp_path, drift):
    data = acquire(collected(), 0)
    assert data.sha256 == drift.sha256 and data.meta["notes"] == []
    with pytest.warns(UserWarning, match="does not exist"):
        data = acquire(collected(data__path=str(tmp_path / "none")), 0)
    assert data.sha256 == drift.sha256 and "does not exist" in data.meta["notes"][0]
    assert not (tmp_path / "none").exists()


def test_data_that_do_not_fit_are_collected_anew_or_refused_and_never_overwritten(stored):
    before = {path.name: path.read_bytes() for path in stored.iterdir()}
    data = acquire(collected(data__path=str(stored), environment__id="hjepa/Push-v0"), 0)
    assert data.meta["environment"] == "hjepa/Push-v0"
    (note,) = data.meta["notes"]
    assert "another environment, hjepa/Drift-v0 instead of hjepa/Push-v0" in note
    with pytest.raises(ConfigError, match=r"method 'random', but pixels\.data\.method=ppo"):
        acquire(collected(data__path=str(stored), data__method="ppo"), 0)
    for name, value, shape in (
        ("image_size", 32, r"\(4, 1, 32, 32\)"), ("grayscale", False, r"\(4, 3, 16, 16\)")
    ):  # fmt: skip
        with pytest.raises(WorkbookError, match=rf"{shape}, got \(4, 1, 16, 16\)"):
            acquire(collected(data__path=str(stored), **{f"environment__{name}": value}), 0)
    assert before == {path.name: path.read_bytes() for path in stored.iterdir()}


def test_inspection_counts_what_is_there():
    facts = checks.inspect(numbered([4, 2]))
    assert facts["transitions"] == 6 and facts["episode length"] == "2 to 4"
    assert facts["state"] == "(3, 1, 8, 8) uint8" and facts["different actions"] == 4
    assert facts["pixel range"] == "0 to 7" and facts["non-zero rewards"] == 5
    assert facts["pixels that change per step"] == 1
    assert facts["mean change of a pixel"] == pytest.approx(1 / 255)
    assert facts["steps without any change"] == 0


def test_figures_of_a_data_set(drift):
    sheet = figures.samples(drift.batch(torch.arange(3)), "samples")
    titles = [axis.get_title("left") for axis in sheet.axes]
    assert len(titles) == 15 and (titles[0], titles[4]) == ("t-3", "t+1")
    points, held_out = checks.frame_points(*drift.split(0.3, 0), 20, 0)
    assert points.shape == (40, 256) and held_out.tolist() == [0] * 20 + [1] * 20
