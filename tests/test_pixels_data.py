import json
import math
import re
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import refused
from tiny_pixels import Counting, collected, numbered, skilled

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import EnvironmentConfig, PixelsConfig
from hjepa_lib.files import FileError, WorkbookError, read_json, save_npy, write_json
from hjepa_lib.pixels import collect as collecting
from hjepa_lib.pixels import measures, worlds
from hjepa_lib.pixels.collect import acquire, collect, make_training_env, record
from hjepa_lib.pixels.env import (
    FrameSkip,
    PixelObservation,
    describe_actions,
    is_picture,
    make_env,
    open_env,
    stack_frames,
    to_frame,
)
from hjepa_lib.pixels.transitions import Transitions, shapes_of
from hjepa_lib.pixels.worlds import DRIFT_ID, WindEnv
from hjepa_lib.worlds import ENV_ID


class Picky(Counting):
    accepts = "rgb_array"

    def __init__(self, render_mode="default"):
        if render_mode != self.accepts:
            raise ValueError(f"no mode {render_mode}")
        super().__init__()


class Blind(Counting):
    """Observes four numbers; draws what `picture` says."""

    observation_space = spaces.Box(-1, 1, (4,), np.float32)
    picture = None

    def _frame(self):
        return np.zeros(4, np.float32)

    def render(self):
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


@pytest.fixture
def register(monkeypatch):

    def add(name, kind):
        gymnasium.register(name, entry_point=kind, disable_env_checker=True)

    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    return add


@pytest.mark.parametrize("mode", ["rgb_array", None, "default"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_refused_render_mode_is_replaced(register, mode):
    register("stub/Picky-v0", type("One", (Picky,), {"accepts": mode}))
    assert open_env("stub/Picky-v0").unwrapped.render_mode is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("NoSuchThing-v0", "cannot be opened: Environment `NoSuchThing`"),
        ("no_such_module:Thing-v0", "No module named 'no_such_module'"),
        ("stub/Picky-v0", "cannot be opened: no mode default"),
        ("stub/Absent-v0", "paint is not installed"),
        ("ALE/Breakout-v5", ": pip install ale-py$"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_opened_is_one_sentence(name, sentence, register, monkeypatch):
    def absent(**_):
        raise gymnasium.error.DependencyNotInstalled("paint is not installed")

    monkeypatch.setitem(sys.modules, "ale_py", None)  # what an absent package looks like
    register("stub/Picky-v0", type("One", (Picky,), {"accepts": "never"}))
    register("stub/Absent-v0", absent)
    refused(ConfigError, sentence, open_env, name)


@pytest.mark.parametrize(
    ("name", "package", "dark"),
    [("ALE/Breakout-v5", "ale_py", 4000), ("CartPole-v1", "pygame", 1000)],
)
def test_environments_of_the_extras_are_seen(name, package, dark, monkeypatch):
    """ENV-8."""
    pytest.importorskip(package)
    monkeypatch.delenv("DISPLAY", raising=False)
    env = make_env(EnvironmentConfig(id=name, image_size=64))
    frame, _ = env.reset(seed=0)
    assert frame.shape == (1, 64, 64) and frame.dtype == np.uint8
    assert frame.max() > 60 and 5 < (frame < 128).sum() < dark
    env.close()


def test_actions_are_discrete_or_a_flat_box():
    assert describe_actions(spaces.Discrete(7)) == (7, "discrete")
    assert describe_actions(spaces.Box(-1, 1, (3,))) == (3, "continuous")
    for space in (spaces.MultiBinary(3), spaces.Box(0, 1, (2, 2))):
        refused(ConfigError, re.escape(str(space)), describe_actions, space)


@given(
    st.sampled_from(["uint8", "float32", "float64", "bool", "int64"]),
    st.sampled_from([(), (1,), (2,), (3,), (4,)]),
    st.booleans(), st.booleans(), st.integers(8, 40), st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=50)
def test_every_picture_becomes_a_frame(kind, channels, first, gray, side, seed):
    values = np.random.default_rng(seed).integers(0, 256, (*channels, side, side + 3))
    image = (values / 255 if kind.startswith("float") else values).astype(kind)
    image = image if first else np.moveaxis(image, 0, -1) if channels else image
    frame = to_frame(image, 16, gray)
    assert frame.shape == (1 if gray else 3, 16, 16) and frame.dtype == np.uint8
    assert frame.max() > 60  # never [0, 1] stored as 0 and 1
    if kind.startswith("float"):  # floats and bytes give the same frame
        same = to_frame(np.rint(255 * image).astype(np.uint8), 16, gray)
        assert np.abs(same.astype(int) - frame).max() <= 1


def test_gray_is_luma_and_alpha_is_dropped():
    for channel, value in enumerate((76, 150, 29)):
        image = np.full((16, 16, 4), [0, 0, 0, 200], np.uint8)
        image[..., channel] = 255
        assert (to_frame(image, 16) == value).all()
    red = to_frame(image[..., [2, 0, 1]], 16, grayscale=False)
    assert (red[0] == 255).all() and (red[1:] == 0).all()


@pytest.mark.parametrize("shape", [(4,), (3, 3), (16, 16, 7), (2, 16, 16, 3), (), (5, 8, 3)])
def test_what_is_no_picture_is_refused_with_its_shape(shape):
    assert not is_picture(shape)
    refused(
        ValueError, f"a picture must be .*{re.escape(str(shape))}", to_frame, np.zeros(shape), 64
    )


@pytest.mark.parametrize(
    ("low", "high", "kind", "shown", "expected"),
    [
        (0, 255, np.float32, 1, 1), (0, 1, np.float32, 1, 255), (0, np.inf, np.float32, 1, 255),
        (-1, 1, np.float32, -1, 0), (-1, 1, np.float32, 0, 128), (-1, 1, np.float32, 1, 255),
        (0, 65_535, np.uint16, 257, 1), (0, 65_535, np.uint16, 65_535, 255),
        (0, 4_095, np.uint16, 4_095, 255), (0, 1, np.uint8, 1, 255), (0, 255, np.int64, 300, 255),
    ],
)  # fmt: skip
def test_the_declared_range_decides_what_black_and_white_are(low, high, kind, shown, expected):
    """F14, D7."""
    env = Counting()
    env.observation_space = spaces.Box(low, high, (16, 16), kind)
    env._frame = lambda: np.full((16, 16), shown, kind)
    assert (PixelObservation(env, 16).reset()[0] == expected).all()


@pytest.mark.parametrize("gray", [True, False])
def test_what_nobody_declares_is_guessed_or_refused(gray):
    """D7."""
    assert to_frame(np.full((16, 16), 65_535, np.uint16), 16, gray).min() == 255
    for value, message in ((-1.0, "below 0, but no range is declared"), (np.nan, "NaN")):
        refused(ValueError, message, to_frame, np.full((16, 16), value), 16, gray)
    stack = np.stack([np.full((84, 84), level, np.uint8) for level in (10, 20, 30, 40)])
    frame = to_frame(stack, 64, gray)
    assert frame.shape == (1 if gray else 3, 64, 64) and (frame == 40).all()


NO_PIXELS = r"Dark instance> has no pixels, observations are Box\(-"


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        *((picture, NO_PIXELS) for picture in (None, [np.zeros((16, 16, 3))], np.zeros(4))),
        *((kind("no screen"), "no screen") for kind in (ImportError, RuntimeError, AttributeError)),
    ],
)
def test_render_stands_in_for_numbers_or_there_are_no_pixels(picture, message):
    half = np.zeros((40, 30, 3), np.uint8)
    half[:20] = 255
    frame, _ = PixelObservation(type("Seeing", (Blind,), {"picture": half})(), 16).reset()
    assert frame[0, 0, 0] == 255 and frame[0, -1, 0] == 0
    env = PixelObservation(type("Dark", (Blind,), {"picture": picture})(), 16)
    refused(ConfigError, message, env.reset)


def test_two_rooms_is_usable_as_pixels():
    """ENV-8."""
    env = make_env(EnvironmentConfig(id=ENV_ID, image_size=64))
    frame, info = env.reset(seed=0)
    assert frame.shape == (1, 64, 64)
    x, y = (info["position"] * 64 / 65).round().astype(int)
    assert frame[0, y - 1 : y + 2, x - 1 : x + 2].max() > 180
    assert describe_actions(env.action_space) == (2, "continuous")
    assert (to_frame(np.full((16, 16, 2), [0, 255], np.uint8), 16) == 127).all()


def test_a_policy_sees_the_frames_of_a_stack_as_channels():
    seen = EnvironmentConfig(id=DRIFT_ID, image_size=64, stack=2, grayscale=False)
    env = make_training_env(PixelsConfig(environment=seen))
    first, _ = env.reset(seed=0)
    state, *_ = env.step(0)
    assert state.shape == (6, 64, 64) and np.array_equal(state[:3], first[3:])


@pytest.mark.parametrize("cut", [False, True])
def test_repeat_sums_rewards_and_stops_at_the_end(cut):
    inner = Counting(5, cut)
    env = FrameSkip(inner, 2)
    env.reset()
    frame, reward, terminated, truncated, _ = env.step(2)
    assert (reward, terminated, truncated) == (1 + 2 + 3, False, False) and frame.max() == 3
    frame, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (4 + 5, not cut, cut) and frame.max() == 5
    assert inner.actions == [2, 2, 2, 1, 1] and len(info["passed"]) == 1


def test_skip_takes_new_actions():
    inner = Counting(5)
    env = FrameSkip(inner, 2, lambda frame: int(frame.max()) % 3)
    env.reset()
    *_, info = env.step(2)
    assert inner.actions == [2, 1, 2]  # the first as given, the others from the frames 1 and 2
    assert [passed.max() for passed in info["passed"]] == [1, 2]
    none = FrameSkip(Counting(5), 0, lambda _: pytest.fail("no action is needed"))
    none.reset()
    frame, reward, *_, info = none.step(2)
    assert (frame.max(), reward, info["passed"]) == (1, 1, [])


def test_skipped_and_repeated_steps_count_toward_the_limit():
    config = EnvironmentConfig(id=DRIFT_ID, max_steps=7)
    for env in (FrameSkip(make_env(config), 1, lambda _: 0), make_env(config, action_repeat=2)):
        env.reset(seed=0)
        assert [env.step(1)[3] for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("name", [DRIFT_ID, worlds.CALM_ID, *worlds.NOISY_IDS.values(), ENV_ID])
def test_env_checker_passes(name):
    """ENV-9."""
    more = {"layouts": "random"} if name == ENV_ID else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Its only advice: actions in [-1, 1]. Ours are px, as every limit here.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
        check_env(gymnasium.make(name, render_mode="rgb_array", **more).unwrapped)


def play(name, steps, seed=0):
    """Arrays of (position before, target, action, reward, position after)."""
    env = gymnasium.make(name).unwrapped
    env.action_space.seed(seed)
    env.reset(seed=seed)
    rows = []
    for step in range(steps):
        if step % 20 == 0:
            _, info = env.reset()
        action, before = int(env.action_space.sample()), info["position"]
        _, reward, *over, info = env.step(action)
        assert over == [False, False]
        rows.append((before, info["target"], action, reward, info["position"]))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_drift_pays_for_the_next_state():
    before, target, action, reward, after = play(DRIFT_ID, 400)
    assert reward == pytest.approx(1 - np.linalg.norm(after - target, axis=1) / 32)
    gone = np.linalg.norm(after - before, axis=1)[action == 0] > 0
    assert 0.3 < gone.mean() < 0.7  # a gust in about every other step


def test_a_seed_moves_alike_and_others_do_not():
    one, two, other = play(DRIFT_ID, 40), play(DRIFT_ID, 40), play(DRIFT_ID, 40, seed=1)
    assert np.array_equal(one[4], two[4]) and not np.array_equal(one[4], other[4])
    # No function of state and action explains the reward of Drift.
    drift, calm = (worlds.ceilings(name, 2_000) for name in (worlds.DRIFT_ID, worlds.CALM_ID))
    assert 0.85 < drift["action blind"] < drift["full"] < 0.95 and 5 < drift["px"] < 6
    assert calm["full"] == 1.0 and calm["px"] == pytest.approx(0, abs=1e-6)
    assert 0.5 < calm["action blind"] < 0.8


def test_in_calm_all_that_moves_follows_from_the_action():
    before, target, action, reward, after = play(worlds.CALM_ID, 300)
    moved = np.clip(before + 4 * worlds.ACTIONS[action], worlds.LOW, worlds.HIGH)
    assert after == pytest.approx(moved)
    assert np.array_equal(reward, np.linalg.norm(after - target, axis=1) < 8) and reward.any()


def test_noise_is_new_in_each_frame_and_its_share_of_the_variance_is_the_named_one():
    variance, places = {}, []
    for share, name in worlds.NOISY_IDS.items():
        env = gymnasium.make(name).unwrapped
        frames = [env.reset(seed=0)]
        frames += [env.reset() for _ in range(300)]
        variance[share] = np.var([frame for frame, _ in frames], axis=0).mean()
        places.append([info["position"] for _, info in frames])
        still = [env.step(0)[0].astype(float) for _ in range(2)]
        assert np.ptp(still[1] - still[0]) == 0 or share > 0
    assert np.array_equal(places[0], places[1]) and np.array_equal(places[0], places[2])
    for share, found in variance.items():
        assert 1 - variance[0.0] / found == pytest.approx(share, abs=0.03)


def test_the_picture_shows_dot_and_target():
    image = worlds.draw(np.array([20.0, 40.0]), np.array([50.0, 10.0]))
    assert image[40, 20] == 255 and image[10, 50] == 110  # row y, column x
    assert (image > 0).sum() < 400 and image[30, 30] == 0


@pytest.mark.parametrize("action", [5, -1, 1.5])
def test_an_action_out_of_range_raises(action):
    env = WindEnv()
    env.reset(seed=0)
    refused(ValueError, r"whole number in 0\.\.4", env.step, action)


@pytest.fixture(scope="module")
def drift():
    return collect(collected(), 0)


def test_stacks_repeat_the_first_frame_and_stay_in_their_episode():
    batch = numbered([3, 2]).batch(torch.arange(5))  # frames 0..3 and 4..6
    shown = [states[..., 0, 0, 0].tolist() for states in (batch.state, batch.next_state)]
    assert shown[0] == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [4, 4, 4], [4, 4, 5]]
    assert shown[1] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 5], [4, 5, 6]]


def test_gathered_stacks_are_those_of_the_environment(drift):
    assert shapes_of(drift) == (1, 4, 16, "discrete", 5) and len(drift) == 120
    env = stack_frames(make_env(collected().environment), 4)
    env.action_space.seed(0)
    state, _ = env.reset(seed=0)
    for row in range(12):
        batch = drift[torch.tensor([row])]
        assert np.array_equal(batch.state[0].numpy(), state)
        state, reward, *_ = env.step(int(batch.action[0]))
        assert np.array_equal(batch.next_state[0].numpy(), state)
        assert reward == pytest.approx(float(batch.reward[0]))


def test_the_split_is_by_episode_and_shuffled_by_the_seed(drift):
    parts = [drift.split(0.3, seed) for seed in (0, 0, 1)]
    held = [validation.episodes.tolist() for _, validation in parts]
    assert held[0] == held[1] != held[2] and held[0] != drift.episodes[:3].tolist()
    assert sorted(parts[0][0].episodes.tolist() + held[0]) == drift.episodes.tolist()
    refused(WorkbookError, "one episode alone", numbered([6]).split, 0.2, 0)


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
        refused(WorkbookError, f"no episode has {length} transitions", data.windows, length)
        return
    first = data.windows(length)
    assert len(first) == expected
    rows = first[:, None] + torch.arange(length)
    assert (data.episode[rows] == data.episode[first][:, None]).all()
    batch = data[rows[0]]
    assert torch.equal(batch.state[1:, -1], batch.next_state[:-1, -1])


def test_another_seed_is_other_data(drift):
    assert drift.sha256 != collect(collected(), 6).sha256
    assert torch.bincount(drift.action, minlength=5).min() > 10  # uniform


def test_positions_are_those_of_the_frames(drift, tmp_path):
    """X19."""
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
    refused(WorkbookError, "returned the reward nan", record, env, lambda _: 4, collected(), 0)
    assert len(closed) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_breakout_without_a_console_tells_no_place(register):
    register("stub/Breakout-v0", Counting)
    env = make_env(EnvironmentConfig(id="stub/Breakout-v0", image_size=16))
    assert record(env, lambda _: 1, collected(data__episodes=2), 0).position is None


def test_ppo_without_its_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    refused(FileError, "stable_baselines3 is not installed", collect, skilled(), 0)


@pytest.fixture
def stored(drift, tmp_path):
    return drift.save(tmp_path / "stored")


def test_round_trip_with_everything_that_describes_it(drift, stored):
    loaded = Transitions.load(stored)
    assert loaded.sha256 == drift.sha256 and loaded.meta == drift.meta
    wanted = {
        "environment": "hjepa/Drift-v0", "method": "random", "collected_seed": 0, "episodes": 10,
        "image_size": 16, "max_steps": 12, "frame_skip": 0, "action_repeat": 1, "ppo": None,
        "transitions": 120, "sha256": drift.sha256,
    }  # fmt: skip
    assert wanted.items() <= json.loads((stored / "meta.json").read_text()).items()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "meta.json").unlink(), "cannot read"),
        (lambda f: (f / "meta.json").write_text("[]"), "holds no transitions"),
        (
            lambda f: write_json(f / "meta.json", read_json(f / "meta.json") | {"ppo": [1]}),
            "'ppo' is no mapping",
        ),
        (lambda f: (f / "meta.json").write_text('{"format": "hjepa transitions"}'), "are unknown"),
        (lambda f: save_npy(f / "reward.npy", np.zeros(120, np.float32)), "SHA-256"),
        (lambda f: (f / "reward.npy").write_bytes(b"\x80\x04pickle"), "not a whole"),
    ],
)
def test_a_damaged_folder_is_one_sentence(stored, spoil, sentence):
    spoil(stored)
    refused(FileError, sentence, acquire, collected(data__path=str(stored)), 0)


OWN, CONTINUOUS = "frames of its own", {"action_kind": "continuous", "action_dim": 2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"frames": np.zeros((7, 8, 8), np.uint8)}, r"got \(7, 8, 8\)"),
        ({"frames": np.zeros((7, 1, 8, 0), np.uint8)}, "frames must be .* not empty"),
        ({"frames": np.zeros((7, 1, 8, 8), np.float32)}, "frames must be .* uint8"),
        ({"now": np.array([0, 1, 2, 4, 5], ">i8")}, "now must be .* got .* >i8"),
        ({"after": [*"abcde"]}, "after must be .* got .* <U1"),
        ({"episode": [0] * 4}, "episode must be"),
        ({"reward": np.zeros((5, 1), np.float32)}, r"reward must be .* got \(5, 1\)"),
        ({"reward": [0.0] * 5}, "reward must be .* got .* float64"),
        ({"action": np.zeros((5, 2), np.float32)}, "action must be .* int64"),
        ({"now": [1, 0, 2, 4, 5]}, OWN), ({"now": [1, 1, 2, 4, 5]}, OWN),
        ({"after": [1, 2, 3, 5, 7]}, OWN), ({"after": [1, 2, 4, 5, 6]}, OWN),
        ({"after": [1, 2, 3, 5, 5]}, OWN), ({"origin": [0] * 5}, OWN),
        ({"origin": [0, 1, 0, 4, 4]}, OWN), ({"episode": [0, 0, 0, 0, 1]}, OWN),
        ({"action": [0, 1, 2, 3, 4]}, r"outside 0\.\.3"),
        ({"action": [0, 1, 2, 3, -1]}, r"outside 0\.\.3"),
        ({"reward": np.array([0, 0, 0, 0, np.inf], np.float32)}, "reward is NaN or infinite"),
        ({"action_dim": "4"}, "size '4'"), ({"stack": 0}, "stacks of 0"),
        ({"action_kind": "analog"}, "'analog' actions"),
        ({"position": np.zeros(7, np.float32)}, r"position must be \(7, 1\)"),
        (CONTINUOUS | {"action": np.full((5, 2), np.nan, np.float32)}, "action is NaN or infinite"),
        (CONTINUOUS | {"action": np.zeros((5, 3), np.float32)}, "action must be .* float32"),
    ],
)  # fmt: skip
def test_a_stored_set_of_a_stranger_is_checked(tmp_path, change, sentence):
    """The sentence says what is wrong, not that the hash is."""
    folder = numbered([3, 2]).save(tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    for name in change.keys() - meta.keys():
        save_npy(folder / f"{name}.npy", np.array(change[name]))
    own = {name: change[name] for name in change.keys() & meta.keys()}
    (folder / "meta.json").write_text(json.dumps(meta | own))
    refused(FileError, sentence, Transitions.load, folder)


def test_a_fitting_file_is_loaded(stored, drift, monkeypatch):
    monkeypatch.setattr(collecting, "collect", lambda *_: pytest.fail("nothing to collect"))
    data = acquire(collected(data__path=str(stored), environment__max_steps=9), 7)
    assert data.sha256 == drift.sha256
    assert data.meta["notes"][0] == f"loaded from {stored}" and "max_steps" in data.meta["notes"][1]
    assert data.meta["collected_seed"] == 0


def test_without_a_file_data_are_collected(tmp_path, drift):
    data = acquire(collected(), 0)
    assert data.sha256 == drift.sha256 and data.meta["notes"] == []
    with pytest.warns(UserWarning, match="does not exist"):
        data = acquire(collected(data__path=str(tmp_path / "none")), 0)
    assert data.sha256 == drift.sha256 and "does not exist" in data.meta["notes"][0]
    assert not (tmp_path / "none").exists()


def test_data_that_do_not_fit_are_collected_anew_or_refused_and_never_overwritten(stored):
    before = {path.name: path.read_bytes() for path in stored.iterdir()}

    def load(**changes):
        return acquire(collected(data__path=str(stored), **changes), 0)

    data = load(environment__id="hjepa/Calm-v0")
    assert data.meta["environment"] == "hjepa/Calm-v0"
    (note,) = data.meta["notes"]
    assert "another environment, hjepa/Drift-v0 instead of hjepa/Calm-v0" in note
    refused(ConfigError, r"method 'random', but pixels\.data\.method=ppo", load, data__method="ppo")
    for name, value, shape in (
        ("image_size", 32, r"\(4, 1, 32, 32\)"),
        ("grayscale", False, r"\(4, 3, 16, 16\)"),
    ):
        changes = {f"environment__{name}": value}
        refused(WorkbookError, rf"{shape}, got \(4, 1, 16, 16\)", load, **changes)
    assert before == {path.name: path.read_bytes() for path in stored.iterdir()}


def test_inspection_counts_and_draws_what_is_there(drift):
    facts = measures.inspect(numbered([4, 2]))
    assert facts["transitions"] == 6 and facts["episode length"] == "2 to 4"
    assert facts["state"] == "(3, 1, 8, 8) uint8" and facts["different actions"] == 4
    assert facts["pixels that change per step"] == 1
    assert facts["mean change of a pixel"] == pytest.approx(1 / 255)

    points, held_out = measures.frame_points(*drift.split(0.3, 0), 20, 0)
    assert points.shape == (40, 256) and held_out.tolist() == [0] * 20 + [1] * 20
