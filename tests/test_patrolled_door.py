"""The patrolled door: guard, contact, what one frame cannot tell, oracle and budgets."""

import numpy as np
import pytest
import torch
from tiny import seeded, tiny_config

from hjepa_lib.data.recipes import generate
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.metrics import per_trial
from hjepa_lib.worlds import Layout
from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.patrolled_door import (
    BUDGET,
    CAUGHT,
    CONTACT,
    LEFT,
    PERIOD,
    PERIODS,
    PHASE,
    REACH,
    PatrolledDoor,
    PatrolledDoorOne,
)
from hjepa_lib.worlds.trials import SPLITS, world_trials

PAIR = PatrolledDoor.layout_set("fixed")
WALL, DOOR = PAIR[0].tolist()
CAP = PatrolledDoor.action_cap


def world(count, cls=PatrolledDoor, dynamics="slide"):
    return cls(Layout.of(PAIR.repeat(count, 0)), dynamics)


def state(*places, phase=0.0, period=20.0):
    found = PatrolledDoor.at_rest(torch.tensor(places, dtype=torch.float32))
    found[:, PHASE], found[:, PERIOD] = phase, period
    return found


def guard_of(frames):
    """The guard's y in each last frame, from its picture."""
    column = frames[:, -1, :, WALL].float()
    return (column * torch.arange(65)).sum(1) / column.sum(1)


def test_the_guard_walks_up_and_down_across_the_opening():
    rooms = world(1)
    rooms.reset(state((10, 10), period=20))
    seen = []
    for _ in range(40):
        seen.append(float(guard_of(rooms.render())))
        rooms.step(torch.zeros(1, 2))
    assert seen[0] == pytest.approx(DOOR - REACH, abs=0.1)
    assert seen[10] == pytest.approx(DOOR + REACH, abs=0.1)
    assert seen[20:] == pytest.approx(seen[:20], abs=0.1)
    assert np.abs(np.diff(seen)) == pytest.approx([4 * REACH / 20] * 39, abs=0.15)


def test_contact_holds_the_dot_for_ever_and_the_task_is_lost():
    rooms = world(2)
    goal = state((WALL, DOOR), (WALL - 10, DOOR))
    rooms.reset(state((WALL, DOOR), (WALL - 10, DOOR)))
    for _ in range(12):
        now = rooms.position
        assert rooms.reached(now, goal).tolist() == [now[0, CAUGHT] == 0, True]
        rooms.step(torch.zeros(2, 2))
    assert rooms.position[0, CAUGHT] > 5 and rooms.position[1, CAUGHT] == 0
    moved = rooms.step(torch.tensor([[-1.5, 0], [-1.5, 0]]))
    assert moved[:, 0].tolist() == [WALL, WALL - 11.5]
    assert not rooms.reached(moved, moved)[0] and rooms.reached(moved, moved)[1]
    bright = rooms.render()[:, 6].flatten(1).amax(1).tolist()
    assert bright[0] == 127 and bright[1] > 200
    late = rooms.at_rest(goal[:, :2])
    late[:, LEFT] = torch.tensor([0.0, -1.0])
    assert rooms.reached(late, goal).tolist() == [True, False]


def test_contact_is_seen_between_two_steps():
    """A step across the guard's column while the guard crosses the dot's row."""
    rooms = world(2)
    phase = 0.25 - 0.5 / 12  # half a step before the centre
    rooms.reset(
        state((WALL - 1.7, DOOR), (WALL - 1.7, DOOR - CONTACT - 1.5), phase=phase, period=12.0)
    )
    caught = rooms.step(torch.tensor([[1.7 * 2, 0], [0.0, 0]]))[:, CAUGHT]
    assert caught.tolist() == [1, 0]


def test_one_frame_does_not_tell_the_guards_way():
    up, down = state((20, 20), phase=0.3), state((20, 20), phase=0.7)
    one, three = world(1, PatrolledDoorOne), world(1)
    assert torch.equal(one.render(up), one.render(down))
    assert not torch.equal(three.render(up), three.render(down))
    assert PatrolledDoor.observed() == (9, 65, 65) and PatrolledDoorOne.observed() == (3, 65, 65)
    rooms = world(1)
    rooms.reset(state((20, 20), phase=0.1))
    before = rooms.render()
    assert torch.equal(before[:, :2], before[:, 6:8])  # the dot has not moved before
    for push in ((1.5, 0.0), (0.0, 1.5), (1.0, 1.0)):
        now = rooms.step(torch.tensor([push]))
        after = rooms.render()
        assert torch.equal(after[:, :6], before[:, 3:])
        assert torch.equal(one.render(now), after[:, 6:])
        before = after


def test_the_oracle_is_in_time_where_others_are_not():
    """Random, straight ahead, and wait-and-go beside it."""
    changes = {"evaluation__steps": 0, "planning__action_cap": 0}
    case = Case.of(tiny_config(data__source="patrolled_door", **changes), "oracle", trials=24)
    trials = case.tasks

    class Blind(OraclePolicy):
        def act(self, position, frames):
            return self.world.heading(self.goal, self.cap)[:, None]

    rates = {}
    for policy in (OraclePolicy(CAP), Blind(CAP), OraclePolicy(CAP, "rule"), RandomPolicy(CAP, 0)):
        played = run_episodes(policy, trials, "slide", 60, CAP, 0)
        assert not played.invalid.any()
        name = f"{type(policy).__name__} {getattr(policy, 'kind', '')}"
        rates[name] = per_trial(played, case.protocol)["success"].mean()
    assert rates["OraclePolicy oracle"] >= 0.98 and rates["RandomPolicy "] == 0
    assert 0.2 < rates["Blind oracle"] < 0.7 and 0.2 < rates["OraclePolicy rule"] < 0.9


@pytest.mark.parametrize("split", SPLITS)
def test_committed_tasks_are_what_the_code_draws(split):
    count = PatrolledDoor.trials[split]
    trials = world_trials("patrolled_door", split, count)
    assert world_trials("patrolled_door_one", split, count).sha256 == trials.sha256
    generator = seeded(1000 + SPLITS.index(split))
    layout, start, goal = World.draw_tasks.__func__(PatrolledDoor, "", split, count, generator)
    other = [column for column in range(10) if column != LEFT]
    assert torch.equal(start[:, other], trials.start[:, other])
    assert torch.equal(goal, trials.goal) and (layout.pairs() == torch.tensor([WALL, DOOR])).all()
    assert (trials.start[:, PERIOD] >= PERIODS[0]).all()
    few = trials.pick(trials.start[:, LEFT].argsort()[:20:4].tolist())  # short ones
    played = run_episodes(OraclePolicy(CAP), few, "slide", 24, CAP, 0)
    needed = np.ceil(BUDGET * played.reached.argmax(1))
    assert few.start[:, LEFT].tolist() == needed.tolist()


def test_data_pass_the_door_and_meet_the_guard():
    data = generate("navigate", 4500, seed=0, source="patrolled_door", dynamics="slide")
    paths = data.positions.reshape(50, 91, 10)
    crossed = ((paths[..., 0] > WALL) != (paths[:, :1, 0] > WALL)).any(1)
    assert 0.08 < crossed.float().mean() < 0.6
    assert 0.08 < (paths[:, -1, CAUGHT] > 0).float().mean() < 0.7
    assert Windows(data, 5).sample(3, seeded(0)).frames("cpu").shape == (3, 5, 9, 65, 65)
