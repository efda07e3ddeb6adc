import json
import math
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import refused, seeded

from hjepa_lib import files
from hjepa_lib.worlds import ENV_ID
from hjepa_lib.worlds import trials as trial_module
from hjepa_lib.worlds.layout import (
    Layout,
    all_layouts,
    layout_lists,
    layout_set,
    render,
    render_reference,
)
from hjepa_lib.worlds.trials import SPLITS, load_trials, make_trials, read_trials, save_trials
from hjepa_lib.worlds.two_rooms import (
    DYNAMICS,
    TwoRooms,
    inside,
    oracle_action,
    oracle_length,
    step,
)

LISTS = {
    "train": (900, "06bf8c8041cedf898a87aa8b6c12343cfb970ad7d6767b895d3c166a3d44dc41"),
    "validation": (112, "7d7b28d84eb9d5b5e58f0f8ba53ee704c48a061d789fad5c58739c09e4804a49"),
    "test": (113, "9037c3b9f21e4c35b64274f27be320e728b62e1e03bfc64550a709e0aa03551c"),
}
COMMITTED = [(name, split) for name in ("p1", "p2_seen", "p2_heldout", "p3") for split in SPLITS]


def as_set(rows):
    return {tuple(row) for row in np.asarray(rows).tolist()}


def test_lists_are_disjoint_complete_and_never_change():
    """EB6."""
    for name, (count, digest) in LISTS.items():
        rows = layout_lists()[name]
        assert len(as_set(rows)) == count
        assert files.sha256(rows.astype("<i2").tobytes()) == digest
    assert set().union(*map(as_set, layout_lists().values())) == as_set(all_layouts())
    assert all_layouts().shape == (1125, 2) and all_layouts()[-1].tolist() == [44, 54]
    assert layout_set("fixed").tolist() == [[32, 10]]
    assert np.array_equal(layout_set("random"), layout_lists()["train"])
    assert Layout.of([[32, 10], [20, 54], [32, 10]]).numbers().tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (layout_set, ("square",), "layouts must be one of fixed, random"),
        (load_trials, ("p1", "test", 0), "has 500 trials"),
        (load_trials, ("p1", "test", 501), "has 500 trials"),
        (load_trials, ("p4", "test"), "trials must be one of p1_validation"),
        (make_trials, (all_layouts(), 0, 0), "n must be at least 1"),
    ],
)
def test_what_there_is_not_is_one_sentence(call, arguments, message):
    refused(ValueError, message, call, *arguments)


@pytest.mark.parametrize(("protocol", "split"), COMMITTED)
def test_committed_trials_are_what_the_code_makes(protocol, split):
    """PL2."""
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
        "layouts must be 0 or more": {"layout": -columns["layout"]},
    }
    for message, change in wrong.items():
        files.save_npz(path, **{k: v for k, v in (columns | change).items() if v is not None})
        refused(files.FileError, message, read_trials, path)
    save_trials(path, good._replace(start=good.goal, goal=good.start))
    files.write_json(tmp_path / "index.json", {"p1_test": good.sha256})
    monkeypatch.setattr(trial_module, "_FOLDER", tmp_path)
    refused(files.FileError, "recorded SHA-256", load_trials, "p1", "test", 5)


FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "rendered_32.json").read_text())


@pytest.mark.parametrize("renderer", [render, render_reference])
def test_bytes_of_the_public_renderer(renderer):
    frames = renderer(torch.tensor(FIXTURE["locations"]), Layout.fixed())
    assert frames.shape == (32, 2, 65, 65) and frames.dtype == torch.uint8
    nhwc = frames.permute(0, 2, 3, 1).contiguous().numpy()
    assert files.sha256(nhwc.tobytes()) == FIXTURE["sha256"]


def test_fast_path_equals_the_direct_formula_at_4000_positions():
    position = torch.rand(4_000, 2, generator=seeded()) * 56 + 4
    position[:200] = position[:200].round()  # also whole and half pixels
    position[200:400] = position[200:400].floor() + 0.5
    layout = Layout.of(all_layouts()[np.arange(4_000) % 1125])
    for rows in torch.arange(4_000).split(1000):
        fast = render(position[rows], layout.index(rows)).int()
        gap = (fast - render_reference(position[rows], layout.index(rows)).int()).abs()
        assert int(gap.flatten(1).any(1).sum()) <= 1 and int(gap.max()) <= 1
    # also at and beyond the edges, and for sequences with one layout each
    edges = torch.tensor([[0.0, 0.0], [64.0, 64.0], [-3.0, 30.0], [2.4, 63.6], [500.0, -500.0]])
    edges, layout = edges.repeat(4, 1, 1), layout.index([0, 400, 800, 1124])
    frames = render(edges, layout)
    assert frames.shape == (4, 5, 2, 65, 65)
    assert torch.equal(frames, render_reference(edges, layout))
    for b in range(4):
        assert torch.equal(render(edges[b], layout.index([b])), frames[b])


FIXED = Layout.fixed()


def move(start, action, dynamics="blocked", generator=None):
    rows = torch.tensor([start]), torch.tensor([action])
    return tuple(step(*rows, FIXED, dynamics, generator)[0].tolist())


CASES = {
    # name: start, action, hit point (None = moves freely)
    "free": ((20.0, 40.0), (8.0, 0.0), None),  # the measured example: actions are never clipped
    "left border": ((5.0, 30.0), (-2.0, 0.0), (4.0, 30.0)),
    "touching a border counts": ((5.0, 30.0), (-1.0, 0.0), (4.0, 30.0)),
    "right border": ((59.0, 30.0), (2.0, 2.0), (60.0, 31.0)),
    "top border, vertical step": ((20.0, 5.0), (0.0, -2.0), (20.0, 4.0)),
    "bottom border": ((20.0, 59.0), (2.0, 2.0), (21.0, 60.0)),
    "left face": ((29.5, 40.0), (5.0, 0.0), (31.0, 40.0)),
    "right face": ((35.0, 40.0), (-4.0, 2.0), (33.0, 41.0)),
    "nearer of border and face": ((30.5, 58.0), (1.0, 3.0), (31.0, 59.5)),
    "corner, border first": ((30.0, 59.5), (2.0, 2.0), (30.5, 60.0)),
    "through the door": ((30.0, 10.0), (4.0, 1.0), None),
    "face just above the door": ((30.0, 5.5), (2.0, 0.0), (31.0, 5.5)),
    "face just below the door": ((30.0, 14.5), (2.0, 0.0), (31.0, 14.5)),
    "lip below": ((32.0, 13.0), (0.0, 2.0), (32.0, 14.0)),
    "lip above, vertical step": ((32.0, 6.5), (0.0, -2.0), (32.0, 6.0)),
    "lip entered from the room": ((30.5, 13.0), (1.8, 1.8), (31.5, 14.0)),
    "lip level outside the doorway": ((29.0, 13.0), (1.0, 2.0), None),
    "out of the doorway before the lip": ((32.5, 13.0), (1.5, 1.5), None),
    "back from a lip": ((32.0, 14.0), (0.0, -1.0), None),
    "along a lip": ((32.0, 14.0), (2.0, 0.0), None),
}


@pytest.mark.parametrize("name", CASES)
def test_hit_points(name):
    """Section 1.4; `slide` shows the hit point, up to 0.3 px inside."""
    start, action, point = CASES[name]
    moved = (start[0] + action[0], start[1] + action[1])
    if point is None:
        for dynamics in DYNAMICS:
            assert move(start, action, dynamics, seeded()) == pytest.approx(moved)
        return
    assert move(start, action, "blocked") == start
    slid = move(start, action, "slide")
    assert max(abs(slid[0] - point[0]), abs(slid[1] - point[1])) <= 0.3 + 1e-5
    assert move(start, action, "bounce", torch.zeros(1, 2)) == slid
    assert move(start, action, "bounce", seeded()) != slid


def test_slide_is_put_inside_the_room_but_not_off_a_lip():
    assert move((5.0, 30.0), (-2.0, 0.0), "slide") == pytest.approx((4.3, 30.0))  # PL11: no noise
    assert move((30.0, 40.0), (3.0, 0.0), "slide") == pytest.approx((30.7, 40.0))
    assert move((32.0, 13.0), (0.0, 2.0), "slide") == (32.0, 14.0)
    for wall in (20.0, 44.0):  # each dot in its own room, wherever the wall stands
        start = torch.tensor([[wall - 2, 40.0], [wall + 2, 40.0]])
        action = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
        end = step(start, action, Layout.of([[wall, 10]] * 2), "slide")
        assert end[:, 0].tolist() == pytest.approx([wall - 1.3, wall + 1.3])


def test_bounce_noise_points_back_and_has_the_stated_size():
    start, action = torch.tensor([[29.5, 40.0], [5.0, 0.0]])[:, None].expand(-1, 20_000, -1)
    end = step(start, action, Layout.fixed(20_000), "bounce", seeded())
    assert (end[:, 0] < 31).all()
    assert float(end[:, 1].std()) == pytest.approx(0.5, rel=0.03)
    # Normal part: 31 - |n|, n of 0.5 px, whose mean is 0.5 * sqrt(2 / pi).
    assert float(31 - end[:, 0].mean()) == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.05)


def test_noise_is_of_its_generator_its_trial_and_its_step():
    """PL2."""
    before, start = torch.random.get_rng_state(), torch.tensor([[29.5, 40.0], [20.0, 20.0]])
    hit = ((29.5, 40.0), (5.0, 0.0), "bounce")
    assert move(*hit, seeded(4)) != move(*hit, seeded(3)) == move(*hit, seeded(3))
    world, ends = TwoRooms(Layout.fixed(2), "bounce", seed=5), []
    for other in ((1.0, 1.0), (-30.0, 0.0)):
        assert torch.equal(world.reset(start), start)  # PL11: a given position works
        generator, actions = seeded(), torch.tensor([[[0.0, 1.0], other], [[5.0, 0.0], other]])
        found = [world.step(action) for action in actions]
        found += [step(start, action, world.layout, "bounce", generator) for action in actions]
        ends.append(torch.stack(found)[:, 0])
    assert torch.equal(*ends)
    assert torch.equal(torch.random.get_rng_state(), before)


coordinate = st.floats(4.0625, 59.9375, width=32)
shift = st.one_of(st.just(0.0), st.floats(-4, 4, width=32), st.floats(-80, 80, width=32))


@settings(max_examples=150)
@given(
    xs=st.tuples(coordinate, coordinate),
    action=st.tuples(shift, shift),
    row=st.integers(0, 1124),
    dynamics=st.sampled_from(DYNAMICS),
    seed=st.integers(0, 1000),
)
def test_never_in_the_wall_outside_or_nan(xs, action, row, dynamics, seed):
    """PL11."""
    layout = Layout.of(all_layouts()[row : row + 1])
    position = torch.tensor([xs])
    if not inside(position, layout).all():
        return
    generator, push = seeded(seed), torch.tensor([action])
    for _ in range(3):
        position = step(position, push, layout, dynamics, generator)
        assert torch.isfinite(position).all()
        assert inside(position, layout).all()


@settings(max_examples=80)
@given(
    xs=st.tuples(coordinate, coordinate),
    action=st.tuples(st.floats(-6, 6, width=32), st.floats(-6, 6, width=32)),
    row=st.integers(0, 1124),
)
def test_blocked_agrees_with_sampling_the_segment(xs, action, row):
    layout = Layout.of(all_layouts()[row : row + 1])
    start, move_by = torch.tensor([xs]), torch.tensor([action])
    if not inside(start, layout).all() or move_by.norm() < 0.01:
        return
    way = torch.linspace(0, 1, 4001)[:, None] * move_by
    new = step(start, move_by, layout, "blocked")
    if inside(start + way * 1.003, layout).all():  # clearly free
        assert torch.equal(new, start + move_by)
    if not inside(start + way * 0.997, layout).all():  # clearly blocked
        assert torch.equal(new, start)


def test_oracle_length_equals_a_search_over_the_opening():
    trials = load_trials("p2_seen", "validation", 60)
    layout, start, goal = trials.layout, trials.start, trials.goal
    y = layout.top[:, None] + torch.linspace(0, 1, 201) * 8
    from_left = start[:, 0] < layout.wall_x
    enter = torch.where(from_left, layout.left, layout.right)
    leave = torch.where(from_left, layout.right, layout.left)
    one = torch.hypot((start[:, 0] - enter)[:, None], start[:, 1:] - y)
    two = torch.hypot((goal[:, 0] - leave)[:, None], goal[:, 1:] - y)
    across = torch.hypot(torch.tensor(2.0), y[:, :, None] - y[:, None])
    searched = (one[:, :, None] + across + two[:, None]).flatten(1).amin(1)
    exact = oracle_length(start, goal, layout)
    assert ((searched - exact) > -1e-3).all() and ((searched - exact) < 1e-2).all()


def test_oracle_is_straight_where_nothing_is_in_the_way_and_stays_at_the_goal():
    start = torch.tensor([(10.0, 10.0), (20.0, 10.0), (32.0, 8.0)])
    goal = torch.tensor([(20.0, 50.0), (50.0, 11.0), (32.0, 12.0)])
    assert torch.allclose(oracle_length(start, goal, Layout.fixed(3)), (start - goal).norm(dim=-1))
    assert torch.equal(oracle_action(goal, goal, Layout.fixed(3), 1.8), torch.zeros(3, 2))


def test_the_oracle_solves_every_trial_without_a_hit():
    trials = load_trials("p2_heldout", "validation", 100)
    world = trials.begin("bounce", seed=0)
    for _ in range(70):
        action = world.oracle_action(trials.goal, 1.8365)
        assert (action.norm(dim=-1) <= 1.8365 + 1e-4).all()
        before = world.position
        assert torch.equal(world.step(action), before + action)
    assert ((world.position - trials.goal).norm(dim=-1) < 0.01).all()


def make(**options):
    return gymnasium.make(ENV_ID, **options)


def rollout(seed):
    env = make(layouts="random")
    observation, info = env.reset(seed=seed)
    track = [observation.copy(), info["goal"]]
    for k in range(20):
        observation, *_, info = env.step(np.array([2.0 * (-1) ** k, 2.4], dtype=np.float32))
        track += [observation.copy(), info["position"]]
    return track


def test_one_seed_rules_everything():
    """PL2."""
    first = rollout(3)
    np.random.rand(4), torch.rand(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, rollout(3), strict=True))
    assert not np.array_equal(first[0], rollout(4)[0])


def test_reset_options_and_observation():
    """PL11."""
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
