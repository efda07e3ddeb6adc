"""Pixel environments: opening, actions, frames, stacks, repeats, skips, the two built-in worlds."""

import re
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pixels import Counting

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import EnvironmentConfig, PixelsConfig
from hjepa_lib.pixels import worlds
from hjepa_lib.pixels.collect import make_training_env
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
from hjepa_lib.pixels.worlds import DRIFT_ID, PUSH_ID, WindEnv
from hjepa_lib.worlds import ENV_ID


class Picky(Counting):
    """Accepts one way of being opened only."""

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
        return self.picture


@pytest.fixture
def register(monkeypatch):
    """Registers a class under an id for one test."""

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
        ("NoSuchThing-v0", "NoSuchThing-v0 cannot be opened: Environment `NoSuchThing` doesn't"),
        ("no_such_module:Thing-v0", "No module named 'no_such_module'"),
        ("stub/Picky-v0", "stub/Picky-v0 cannot be opened: no mode default"),
        ("stub/Absent-v0", "stub/Absent-v0 .*paint is not installed"),
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
    with pytest.raises(ConfigError, match=sentence) as caught:
        open_env(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "dark"),
    [("ALE/Breakout-v5", "ale_py", 4000), ("CartPole-v1", "pygame", 1000)],
)
def test_environments_of_the_extras_are_seen(name, package, dark, monkeypatch):
    """ENV-8: Breakout has its ROM, and pygame draws a dark cart on white without a display."""
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
        with pytest.raises(ConfigError, match=re.escape(str(space))):
            describe_actions(space)


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
    with pytest.raises(ValueError, match=f"a picture must be .*{re.escape(str(shape))}"):
        to_frame(np.zeros(shape), 64)


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
    """F14, D7: almost black stays so, [-1, 1] keeps its negative half and uint16 its range."""
    env = Counting()
    env.observation_space = spaces.Box(low, high, (16, 16), kind)
    env._frame = lambda: np.full((16, 16), shown, kind)
    assert (PixelObservation(env, 16).reset()[0] == expected).all()


@pytest.mark.parametrize("gray", [True, False])
def test_what_nobody_declares_is_guessed_or_refused(gray):
    """D7: uint16 has its range; four planes first are no colours and no alpha but a stack."""
    assert to_frame(np.full((16, 16), 65_535, np.uint16), 16, gray).min() == 255
    for value, message in ((-1.0, "below 0, but no range is declared"), (np.nan, "NaN")):
        with pytest.raises(ValueError, match=message):
            to_frame(np.full((16, 16), value), 16, gray)
    stack = np.stack([np.full((84, 84), level, np.uint8) for level in (10, 20, 30, 40)])
    frame = to_frame(stack, 64, gray)
    assert frame.shape == (1 if gray else 3, 64, 64) and (frame == 40).all()


@pytest.mark.parametrize("picture", [None, [np.zeros((16, 16, 3))], np.zeros(4)])
def test_render_stands_in_for_numbers_or_there_are_no_pixels(picture):
    half = np.zeros((40, 30, 3), np.uint8)
    half[:20] = 255
    frame, _ = PixelObservation(type("Seeing", (Blind,), {"picture": half})(), 16).reset()
    assert frame[0, 0, 0] == 255 and frame[0, -1, 0] == 0
    env = PixelObservation(type("Dark", (Blind,), {"picture": picture})(), 16)
    with pytest.raises(ConfigError, match=r"Dark instance> has no pixels, observations are Box\(-"):
        env.reset()


@pytest.mark.parametrize("fault", [ImportError, RuntimeError, AttributeError])
def test_whatever_a_foreign_render_raises_is_a_sentence(fault):
    """A missing package or display has many errors."""

    def render(self):
        raise fault("no screen")

    with pytest.raises(ConfigError, match="no screen"):
        PixelObservation(type("Dark", (Blind,), {"render": render})(), 16).reset()


def test_two_rooms_is_usable_as_pixels():
    """ENV-8, and 65 x 65 x (dot, walls): walls at half brightness, the dot above them, resized."""
    env = make_env(EnvironmentConfig(id=ENV_ID, image_size=64))
    frame, info = env.reset(seed=0)
    assert frame.shape == (1, 64, 64)
    x, y = (info["position"] * 64 / 65).round().astype(int)
    assert frame[0, y - 1 : y + 2, x - 1 : x + 2].max() > 180
    assert 110 <= np.median(frame[frame > 100]) <= 128
    assert describe_actions(env.action_space) == (2, "continuous")
    assert (to_frame(np.full((16, 16, 2), [0, 255], np.uint8), 16) == 127).all()


def test_stack_repeats_the_first_frame_and_keeps_order():
    env = stack_frames(PixelObservation(Counting(20), 16), 4)
    state, _ = env.reset()
    assert state.shape == (4, 1, 16, 16) and (state == 0).all()
    for _ in range(6):
        state, *_ = env.step(0)
    assert state[:, 0, 0, 0].tolist() == [3, 4, 5, 6]
    assert env.reset()[0].max() == 0
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


@pytest.mark.parametrize("name", [DRIFT_ID, PUSH_ID, worlds.CALM_ID, *worlds.NOISY_IDS.values()])
def test_env_checker_passes(name):
    """ENV-9."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(gymnasium.make(name, render_mode="rgb_array").unwrapped)


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


def test_drift_pays_for_the_next_state_and_push_for_state_and_action():
    before, target, action, reward, after = play(DRIFT_ID, 400)
    assert reward == pytest.approx(1 - np.linalg.norm(after - target, axis=1) / 32)
    assert reward.std() > 0.3
    gone = np.linalg.norm(after - before, axis=1)[action == 0] > 0
    assert 0.3 < gone.mean() < 0.7  # a gust in about every other step
    before, target, action, reward, _ = play(PUSH_ID, 400)
    way = target - before
    directions = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
    expected = (directions[action] * way).sum(1) / np.linalg.norm(way, axis=1)
    assert reward == pytest.approx(expected)
    assert reward.std() > 0.4 and np.abs(reward).max() <= 1
    here = np.full(2, 9.0)
    assert worlds.push_reward(here, here, here, 2) == 0


def test_both_worlds_move_alike_and_at_random():
    """One reward is the control of the other, so everything else is the same."""
    one, two, other = play(DRIFT_ID, 40), play(PUSH_ID, 40), play(DRIFT_ID, 40, seed=1)
    assert np.array_equal(one[4], two[4]) and not np.array_equal(one[3], two[3])
    assert not np.array_equal(one[4], other[4])
    # No function of state and action explains Drift's reward; what it can reach is published.
    assert 0.85 < worlds.best_r2(2_000) < 0.95


def test_in_calm_all_that_moves_follows_from_the_action():
    before, target, action, reward, after = play(worlds.CALM_ID, 300)
    moved = np.clip(before + 4 * worlds.ACTIONS[action], worlds.LOW, worlds.HIGH)
    assert after == pytest.approx(moved)
    assert np.array_equal(reward, np.linalg.norm(after - target, axis=1) < 8) and reward.any()


def test_noise_is_new_in_each_frame_and_its_share_of_the_variance_is_the_named_one():
    """The object goes the same way with and without it."""
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
    with pytest.raises(ValueError, match=r"whole number in 0\.\.4"):
        env.step(action)
