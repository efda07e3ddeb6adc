"""The Gymnasium wrapper: checker, seeding, reset options, success."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from hjepa_lib.worlds import ENV_ID
from hjepa_lib.worlds.layout import Layout, layout_set
from hjepa_lib.worlds.rendering import render


def make(**options):
    return gymnasium.make(ENV_ID, **options)


def test_env_checker_passes():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        # Its only advice: actions in [-1, 1]. Ours are px, because every limit here is in px.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
        check_env(make(layouts="random", render_mode="rgb_array").unwrapped)


def rollout(seed):
    env = make(layouts="random")
    observation, info = env.reset(seed=seed)
    track = [observation.copy(), info["goal"]]
    for k in range(20):
        observation, *_, info = env.step(np.array([2.0 * (-1) ** k, 2.4], dtype=np.float32))
        track += [observation.copy(), info["position"]]
    return track


def test_one_seed_rules_everything():
    """PL2: the episode follows from the seed, whatever global generators did before."""
    first = rollout(3)
    np.random.rand(4), torch.rand(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, rollout(3), strict=True))
    assert not np.array_equal(first[0], rollout(4)[0])


def test_reset_options_and_observation():
    """PL11: reset with a given position works."""
    env, start = make(layouts="test", dynamics="slide"), (16.0, 58.0)
    observation, info = env.reset(seed=0, options={"start": start, "goal": (50.0, 20.0)})
    assert observation.shape == (65, 65, 2) and observation.dtype == np.uint8
    room = [int(info["wall_x"]), int(info["door_y"])]
    assert room in layout_set("test").tolist() and not info["success"]
    expected = render(torch.tensor([start]), Layout.of([room]))[0].permute(1, 2, 0)
    assert np.array_equal(observation, expected.numpy())
    assert info["position"].tolist() == [16, 58] and info["goal"].tolist() == [50, 20]
    assert info["distance"] == pytest.approx(np.hypot(34, 38))
    _, reward, terminated, truncated, info = env.step(np.array([0.0, -8.0], dtype=np.float32))
    assert info["position"].tolist() == [16, 50]  # not clipped
    assert (reward, terminated, truncated) == (0.0, False, False)
    env.step(np.array([-20.0, 0.0]))
    assert env.unwrapped.step(np.zeros(2))[4]["position"] == pytest.approx([4.3, 50])
    assert env.unwrapped.goal_frame()[20, 50, 0] == 255


def test_success_is_within_sqrt_two_and_time_is_limited():
    env, still = make(dynamics="slide"), np.zeros(2, np.float32)
    env.reset(seed=0, options={"start": (20.0, 40.0), "goal": (23.0, 40.0)})
    ends = [env.step(still)[3] for _ in range(200)]
    assert ends[-1] and not any(ends[:-1])
    for move, reached in ((1.5, False), (0.2, True)):
        _, reward, terminated, _, info = env.step(np.array([move, 0.0]))
        assert (reward, terminated, info["success"]) == (reached, reached, reached)


def test_picture_shows_dot_blue_and_goal_red():
    env = make(render_mode="rgb_array")
    env.reset(seed=0, options={"start": (20.0, 40.0), "goal": (50.0, 20.0)})
    picture = env.render()
    assert picture.shape == (260, 260, 3) and picture.dtype == np.uint8
    assert picture[161, 81].tolist() == [0, 0, 255]
    assert picture[81, 201].tolist() == [255, 0, 0]
    assert picture[200, 100].tolist() == [255, 255, 255]
    assert picture[200, 128].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    ("door", "value", "message"),
    [
        ("reset", {"begin": (1, 2)}, "unknown reset option 'begin'"),
        ("reset", {"start": (32.0, 40.0)}, "start must be .* free place"),
        ("reset", {"goal": (1.0, 40.0)}, "goal must be .* free place"),
        ("reset", {"goal": (1.0, 2.0, 3.0)}, r"goal must be \(x, y\)"),
        ("step", np.zeros(3), "two finite numbers"),
        ("step", np.array([np.nan, 0.0]), "two finite numbers"),
        ("make", {"dynamics": "x"}, "dynamics must be"),
        ("make", {"render_mode": "x"}, "render_mode must be"),
        ("make", {"layouts": "x"}, "layouts must be"),
    ],
)
def test_bad_values_are_one_sentence(door, value, message):
    with pytest.raises(ValueError, match=message):
        env = gymnasium.spec(ENV_ID).make(**(value if door == "make" else {})).unwrapped
        env.reset(seed=0, options=value if door == "reset" else None)
        env.step(value)
