"""Collision rules, start and goal sampling, the oracle and the stateful world."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import seeded

from hjepa_lib.worlds.layout import Layout, all_layouts
from hjepa_lib.worlds.oracle import oracle_action, oracle_length
from hjepa_lib.worlds.trials import load_trials
from hjepa_lib.worlds.two_rooms import DYNAMICS, TwoRooms, inside, step

FIXED = Layout.fixed()


def move(start, action, dynamics="blocked", generator=None, noise=0.5):
    rows = torch.tensor([start]), torch.tensor([action])
    return tuple(step(*rows, FIXED, dynamics, generator, noise)[0].tolist())


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
    """Section 1.4: where each rule acts; `slide` shows the hit point, up to 0.3 px inside."""
    start, action, point = CASES[name]
    moved = (start[0] + action[0], start[1] + action[1])
    if point is None:
        for dynamics in DYNAMICS:
            assert move(start, action, dynamics, seeded()) == pytest.approx(moved)
        return
    assert move(start, action, "blocked") == start
    slid = move(start, action, "slide")
    assert max(abs(slid[0] - point[0]), abs(slid[1] - point[1])) <= 0.3 + 1e-5
    assert move(start, action, "bounce", noise=0.0) == slid
    assert move(start, action, "bounce", seeded()) != slid


def test_slide_is_put_inside_the_room_but_not_off_a_lip():
    for dynamics, noise in (("slide", 0.5), ("bounce", 0.0)):  # PL11: noise can be switched off
        assert move((5.0, 30.0), (-2.0, 0.0), dynamics, noise=noise) == pytest.approx((4.3, 30.0))
        assert move((30.0, 40.0), (3.0, 0.0), dynamics, noise=noise) == pytest.approx((30.7, 40.0))
        assert move((32.0, 13.0), (0.0, 2.0), dynamics, noise=noise) == (32.0, 14.0)
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
    """PL2: whatever else is drawn, and whatever the other trials do; a reset brings it back."""
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
    with pytest.raises(ValueError, match="noise must be at least 0 px, got -1"):
        TwoRooms(Layout.fixed(), noise=-1)


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
    """PL11: no NaN on axis-parallel hits; whatever the step, the dot ends in free space."""
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
    """Independent check: a step is cancelled iff some point of its segment is not free space."""
    layout = Layout.of(all_layouts()[row : row + 1])
    start, move_by = torch.tensor([xs]), torch.tensor([action])
    if not inside(start, layout).all() or move_by.norm() < 0.01:
        return
    way, new = (
        torch.linspace(0, 1, 4001)[:, None] * move_by,
        step(start, move_by, layout, "blocked"),
    )
    if inside(start + way * 1.003, layout).all():  # clearly free
        assert torch.equal(new, start + move_by)
    if not inside(start + way * 0.997, layout).all():  # clearly blocked
        assert torch.equal(new, start)


def test_starts_and_goals():
    layout = Layout.of(all_layouts())
    start, goal = TwoRooms(layout).sample_start_goal(seeded())
    for place in (start, goal):
        assert inside(place, layout).all()
        assert ((place > 6.6 - 1e-4) & (place < 57.4 + 1e-4)).all()
        assert ((place[:, 0] - layout.wall_x).abs() > 3.6 - 1e-4).all()
    left = start[:, 0] < layout.wall_x
    assert torch.equal(left, goal[:, 0] > layout.wall_x)  # different rooms
    assert 0.4 < left.float().mean() < 0.6


def test_oracle_length_equals_a_search_over_the_opening():
    """The shortest of 201 x 201 polygon paths through the two faces cannot be beaten by much."""
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
    assert torch.allclose(exact, oracle_length(goal, start, layout), atol=1e-3)


def test_oracle_is_straight_where_nothing_is_in_the_way_and_stays_at_the_goal():
    start = torch.tensor([(10.0, 10.0), (20.0, 10.0), (32.0, 8.0)])
    goal = torch.tensor([(20.0, 50.0), (50.0, 11.0), (32.0, 12.0)])
    length = oracle_length(start, goal, Layout.fixed(3))
    assert torch.allclose(length, (start - goal).norm(dim=-1))
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
