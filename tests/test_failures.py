"""Failure taxonomy: one label per trial, on constructed paths and on real episodes."""

import numpy as np
import pytest
from tiny import tiny_config

from hjepa_lib.evaluation import failures
from hjepa_lib.evaluation.episodes import OFFSET_CALLS, LatentPolicy, OraclePolicy, run_episodes
from hjepa_lib.evaluation.failures import Commands, classify, unreachable_share
from hjepa_lib.evaluation.results import Case, load_result, save_result
from hjepa_lib.worlds.trials import load_trials

ROOM = np.array([32.0, 10.0])  # wall at x = 32, door at y = 6..14
GOAL = np.array([50.0, 50.0])
CAP, SKIP = 1.8365, 8


def walk(*points, steps=40):
    """A path (S+1, 2) through the points, evenly in time."""
    points = np.array(points, float)
    at = np.linspace(0, len(points) - 1, steps + 1)
    return np.stack([np.interp(at, np.arange(len(points)), column) for column in points.T], -1)


def commands(subgoal=(22, 30), offset=1.0, near=False, position=(20.0, 30.0), calls=5):
    spread = np.ones((1, calls, 1))
    return Commands(
        spread * np.array(position),
        spread * np.array(subgoal),
        np.full((1, calls), offset),
        np.full((1, calls), not near),
        SKIP * CAP,
    )


WAITING = walk((20, 30), (20, 34))
STUCK = walk((20, 30), (29, 40), (29, 40), (29, 41))
THROUGH = walk((20, 30), (32, 10), (40, 12), (40, 14))


FAR = {"subgoal": (60, 60), "offset": 9}


@pytest.mark.parametrize(
    ("path", "told", "wanted"),
    [
        (WAITING, None, "no_door"),
        (STUCK, None, "stuck_at_wall"),
        (walk((20, 30), (27.9, 40), (27.9, 40), (27.9, 41)), None, "no_door"),  # 3.1 px away
        (walk((20, 30), (29, 10), (29, 10), (29, 11)), None, "no_door"),  # in front of the door
        (walk((29, 40), (29, 40), (20, 30), (20, 31)), None, "no_door"),  # left it by half-time
        (walk((20, 30), (32, 10), (33, 10), (32, 10)), None, "no_door"),  # in the doorway
        (THROUGH, None, "missed_goal"),
        (walk((20, 30), (32, 10), (40, 12), (20, 12)), None, "missed_goal"),  # came back
        (walk((50, 20), (50, 46)), None, "missed_goal"),  # came within 4.5 px
        # with what level 2 told level 1
        (WAITING, {}, "no_door"),
        (WAITING, {"offset": 2.1}, "off_distribution"),
        (WAITING, {"offset": 1.9}, "no_door"),
        (WAITING, {"offset": np.nan}, "no_door"),
        (WAITING, {"subgoal": (20, 46.5)}, "no_door"),  # 16.5 of 16.69 px
        (WAITING, {"subgoal": (20, 46.9)}, "subgoal_unreachable"),
        (WAITING, {"subgoal": (34, 30), "position": (30, 30)}, "subgoal_unreachable"),  # a wall
        (WAITING, {"subgoal": (34, 10), "position": (30, 10)}, "no_door"),  # through the door
        (WAITING, FAR | {"near": True}, "no_door"),  # level 1 aimed at the goal
        (WAITING, FAR, "off_distribution"),
        (THROUGH, {"subgoal": (60, 60)}, "subgoal_unreachable"),
        (walk((50, 20), (50, 46)), FAR, "missed_goal"),  # came near
    ],
)
def test_the_first_rule_that_applies_gives_the_label(path, told, wanted):
    told = None if told is None else commands(**told)
    for solved, label in ((0.0, wanted), (1.0, "solved")):
        found = classify(path[None], GOAL[None], ROOM[None], np.array([solved]), told)
        assert found.tolist() == [label]


def test_labels_of_several_trials_are_counted():
    paths = np.stack([WAITING, THROUGH, STUCK, walk((50, 30), (32, 10), (20, 12))])
    goals = np.stack([GOAL, GOAL, GOAL, [10.0, 50.0]])  # the goal's side may be the left one
    found = classify(paths, goals, np.tile(ROOM, (4, 1)), np.array([0, 0, 1.0, 0]))
    assert found.tolist() == ["no_door", "missed_goal", "solved", "missed_goal"]
    counts = {"no_door": 1, "missed_goal": 2, "solved": 1}
    assert failures.count(found) == dict.fromkeys(failures.LABELS, 0) | counts


def test_unreachable_share_counts_commanded_calls_only():
    told = commands((20, 46.9), calls=4)
    told.subgoal[0, :1] = (22, 30)
    told.commanded[0, 3] = False
    assert unreachable_share(told, ROOM[None]) == pytest.approx([2 / 3])
    walled = commands((32, 30), calls=2)  # Q7: a place inside the wall, however near
    assert unreachable_share(walled, ROOM[None]) == [1]
    none = told._replace(commanded=np.zeros((1, 4), bool))
    assert unreachable_share(none, ROOM[None]) == [0]


def result_of(policy, config, folder, method):
    case = Case.of(config, method, "latent", split="validation", trials=3)
    outcome = run_episodes(policy, case.tasks, "bounce", case.steps, CAP, 0)
    return load_result(save_result(folder, case, outcome, {}))


def test_labels_of_result_files(agent, tmp_path):
    config = tiny_config(
        planning__cost="latent", planning__hierarchy__replan=4, evaluation__steps=20
    )
    planning = config.planning
    flat = result_of(LatentPolicy(agent, "flat", planning), config, tmp_path, "flat")
    assert failures.commands_of(flat) is None
    assert set(failures.label(flat)) <= {"solved", "missed_goal", "stuck_at_wall", "no_door"}
    two = result_of(LatentPolicy(agent, "l1+l2", planning), config, tmp_path, "l1+l2")
    told = failures.commands_of(two)
    assert told.subgoal.shape == (3, 10, 2)  # 20 steps, replanned every 2
    np.testing.assert_array_equal(told.position[:, 3], two.arrays["positions"][:, 6])
    assert told.reach == pytest.approx(4 * CAP)
    assert told.commanded.all()  # the tiny agent's "near" is out of reach
    assert (~np.isnan(told.offset)).sum(1).tolist() == [OFFSET_CALLS] * 3
    assert len(failures.label(two)) == 3
    longer = config.override({"evaluation.steps": 90})
    walker = result_of(OraclePolicy(CAP), longer, tmp_path, "oracle")
    assert failures.label(walker).tolist() == ["solved"] * 3


def test_subgoal_offset_tells_real_encodings_from_others(agent):
    """A sub-goal that is the encoding of a frame is consistent, a scaled one is not."""
    policy = LatentPolicy(agent, "l1+l2", agent.planning)
    run_episodes(policy, load_trials("p1", "validation", 3), "bounce", 4, CAP, 0)
    real = policy.log["latent"]
    offsets = []
    for scale in (1, 30):
        policy.log["subgoal"] = [scale * latent for latent in real]
        offsets.append(policy.diagnostics()["subgoal_offset"])
    assert np.isfinite(offsets[0]).all()
    assert (offsets[1] > 5 * offsets[0]).all()
