"""GIFs have every step, the right speed and colours, and a bounded size (PL14)."""

import base64
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image, ImageSequence

from hjepa_lib.figures import plans, style
from hjepa_lib.figures.style import FigureError
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.rendering import render_walls

RNG = np.random.default_rng(2)
GOAL = np.array([50, 40])


def room(wall_x: int = 32, door_y: int = 10) -> np.ndarray:
    return render_walls(Layout.of([[wall_x, door_y]]))[0].numpy()


def episode(path, positions: np.ndarray, title: str = "", **walls: int):
    return plans.comparison_gif(path, [plans.Clip(positions, GOAL, room(**walls), title)])


def walk(steps: int) -> np.ndarray:
    """A random walk (steps + 1, 2) px inside the room."""
    free = 20 + np.cumsum(RNG.normal(scale=1.3, size=(steps + 1, 2)), axis=0)
    return 5 + np.abs((free - 5) % 108 - 54)  # folded back at 5 and 59


def decoded(path, step: int) -> np.ndarray:
    image = Image.open(path)
    image.seek(step)
    return np.array(image.convert("RGB"))


def near(image: np.ndarray, colour: str) -> np.ndarray:
    return (np.abs(image - 255.0 * np.array(to_rgb(colour))) < 5).all(-1)


def places(image: np.ndarray, colour: str) -> np.ndarray:
    """World px (n, 2) of the pixels of one colour, for a single clip."""
    floor = near(image, style.FLOOR)
    corner, end = np.transpose([np.flatnonzero(floor.sum(i) > 50)[[0, -1]] for i in (0, 1)])
    at = np.argwhere(near(image, colour))[:, ::-1]
    return 65 * (at + 0.5 - corner) / (end + 1 - corner) - 0.5


def test_one_frame_per_state_at_ten_a_second_even_when_the_dot_rests(tmp_path):
    image = Image.open(episode(tmp_path / "rest.gif", np.full((31, 2), 20.0)))
    assert image.n_frames == 31  # steps + 1; equal frames would have been merged
    assert {one.info["duration"] for one in ImageSequence.Iterator(image)} == {100}
    assert image.info["loop"] == 0


def test_goal_is_red_and_the_dot_moves_to_where_it_should_be(tmp_path):
    positions = np.array([[10.0, 20.0], [20.0, 50.0], [24.0, 12.0]])
    path = episode(tmp_path / "a.gif", positions)
    for step, position in enumerate(positions):
        image = decoded(path, step)
        for colour, place in ((style.GOAL, GOAL), (style.BLUE, position)):
            assert places(image, colour).mean(0) == pytest.approx(place, abs=0.3)


def test_the_room_has_its_wall_and_its_door(tmp_path):
    path = episode(tmp_path / "a.gif", np.full((2, 2), 15.0), wall_x=28, door_y=45)
    x, y = places(decoded(path, 0), style.WALL).T
    rows = y[abs(x - 28) < 0.3]  # through the wall's middle
    assert not ((rows > 40.6) & (rows < 49.4)).any()  # the rendered opening: rows 41 to 49
    assert ((rows > 5) & (rows < 40.4)).sum() > 130 and (rows > 49.6).sum() > 35


def test_two_methods_of_200_steps_stay_below_300_kb(tmp_path):
    """PL14: bounded output for the longest, busiest comparison of the protocols."""
    clips = [plans.Clip(walk(200), GOAL, room(), name) for name in ("flat", "L1+L2")]
    path = plans.comparison_gif(tmp_path / "two.gif", clips)
    image = Image.open(path)
    assert path.stat().st_size <= plans.LIMIT_BYTES and image.n_frames == 201
    assert image.width > 2 * 58 * 3  # readable: at least three screen pixels per px


def test_a_file_above_the_cap_is_drawn_smaller_and_never_written_larger(tmp_path, monkeypatch):
    positions = walk(20)
    normal = episode(tmp_path / "a.gif", positions)
    monkeypatch.setattr(plans, "LIMIT_BYTES", normal.stat().st_size - 1)
    small = episode(tmp_path / "b.gif", positions)
    assert Image.open(small).width < Image.open(normal).width
    assert small.stat().st_size < normal.stat().st_size
    monkeypatch.setattr(plans, "LIMIT_BYTES", 100)
    with pytest.raises(FigureError, match="fewer steps"):
        episode(tmp_path / "c.gif", positions)
    assert not (tmp_path / "c.gif").exists()


def test_a_shorter_episode_waits_at_its_end(tmp_path):
    clips = [plans.Clip(walk(steps), GOAL, room()) for steps in (3, 9)]
    path = plans.comparison_gif(tmp_path / "two.gif", clips)
    assert Image.open(path).n_frames == 10
    early, late = (decoded(path, step)[:260] for step in (3, 9))  # without the counter
    half = early.shape[1] // 2
    assert np.array_equal(early[:, :half], late[:, :half])
    assert not np.array_equal(early[:, half:], late[:, half:])


def test_html_embeds_the_file_with_an_escaped_alternative_text(tmp_path):
    path = episode(tmp_path / "a.gif", walk(2))
    image = plans.gif_html(path, alt='the "flat" planner <1>')
    code = re.fullmatch(
        r'<img src="data:image/gif;base64,([^"]+)" alt="the &quot;flat&quot; planner &lt;1&gt;">',
        image,
    )
    assert base64.b64decode(code[1]) == path.read_bytes()
    assert image._repr_html_() == image and "http" not in image


def test_clip_of_a_stored_result_shows_where_level_2_sends_level_1(tmp_path):
    """N9: the sub-goal of each planning call, and none where level 1 aims at the goal itself."""
    arrays = {
        "positions": np.full((2, 5, 2), 20.0, np.float32),
        "goal": np.array([[1.0, 2.0], [50.0, 40.0]], np.float32),
        "plan_subgoal_xy": np.full((2, 2, 2), 30.0, np.float32),  # a call every two steps
        "plan_near": np.array([[0, 0], [0, 1]]),
    }
    clip = plans.clip_of(arrays, 1, room(), "l1+l2, latent")
    assert (clip.positions == 20).all() and clip.goal.tolist() == [50, 40]
    assert (clip.title, clip.colour) == ("l1+l2, latent", style.ORANGE)
    assert np.isnan(clip.subgoals).all(1).tolist() == [False, False, True, True]
    flat = {name: value for name, value in arrays.items() if not name.startswith("plan")}
    assert plans.clip_of(flat, 0, room(), "flat").subgoals is None
    path = plans.comparison_gif(tmp_path / "a.gif", [clip._replace(colour=style.BLUE)])
    first, *_, last = (places(decoded(path, step), style.ORANGE) for step in range(5))
    assert first.mean(0) == pytest.approx([30, 30], abs=0.3) and not len(last)
