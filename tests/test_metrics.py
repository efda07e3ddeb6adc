"""Formula-level tests of every metric on hand-made episodes (wall 32, door 10)."""

import math

import numpy as np
import pytest
from scipy import stats

from hjepa_lib.evaluation import metrics
from hjepa_lib.evaluation.metrics import Episodes, per_trial

NAN = math.nan


def episodes(*paths, goal, **changes) -> Episodes:
    """Trials with the given x, y paths (lists of (x, y)) and goals; other fields by default."""
    batch = len(paths)
    fields = {
        "positions": np.array(paths, dtype=np.float32),
        "goal": np.array(goal, dtype=np.float32),
        "actions": np.zeros((batch, len(paths[0]) - 1, 2)),
        "layout": np.tile([32.0, 10.0], (batch, 1)),
        "oracle": np.full(batch, 10.0),
        "lost": np.zeros(batch, bool),
        "seen": {},
        "cap": 1.8,
    }
    return Episodes(**(fields | changes))


def summarise(trials: Episodes, protocol: str):
    return metrics.summarise(per_trial(trials, protocol))


def test_first_hit_and_last_step_success_differ_at_both_thresholds():
    """P1 and P2 must never be mixed: a visit counts for first hit only."""
    goal = (50.0, 30.0)
    visit = [(20, 30), (50, 31), (20, 30)]  # 1 px away at t = 1, then gone
    stay = [(20, 30), (20, 30), (50, 31)]
    near = [(20, 30), (53, 30), (53, 30)]  # 3 px: loose only
    ring = [(20, 30), (54.5, 30), (54.5, 30)]  # exactly 4.5 px: outside, the test is strict
    strict_edge = [(20, 30), (51, 31), (51, 31)]  # m = 1 exactly: outside
    played = episodes(visit, stay, near, ring, strict_edge, goal=[goal] * 5)
    trial = per_trial(played, "p1")
    assert trial["success_first_1p41"].tolist() == [1, 1, 0, 0, 0]
    assert trial["success_last_1p41"].tolist() == [0, 1, 0, 0, 0]
    assert trial["success_first_4p5"].tolist() == [1, 1, 1, 0, 1]
    assert trial["success_last_4p5"].tolist() == [0, 1, 1, 0, 1]
    for protocol, successes in (("p1", 2), ("p2_seen", 3), ("p2_heldout", 3)):
        result = summarise(played, protocol)
        expected = stats.binomtest(successes, 5).proportion_ci(method="wilson")
        assert (result["n"], result["successes"]) == (5, successes)
        assert result["success_rate"] == successes / 5
        assert result["ci95"] == [expected.low, expected.high]


CROSSER = [(20, 1), (30, 8), (34, 10)]  # 15 px to the door, 8.333 training steps; over at t = 2
COLUMNS = {
    # column: wanted values, field of the row and its mean, goal, paths
    # m(1) = 0.5 although m(2) = 0; ((-4)^2 + 3^2) / 2 at the end; 0.5^2 / 2 at t = 0
    "planning_error": ([0.5, 12.5, 0.125], "planning_error_mean", 13.125 / 3, (50, 30), [
        [(20, 30), (50, 31), (50, 30)], [(20, 30), (30, 30), (46, 33)],
        [(50, 30.5), (20, 30), (20, 30)],
    ]),
    "final_distance": ([0, 5], "final_distance_mean", 2.5, (50, 30), [
        [(20, 30), (50, 31), (50, 30)], [(20, 30), (30, 30), (46, 33)],
    ]),
    # a failure counts as one step more than there are
    "termination_step": ([200, 201, 0], "avg_termination_step", 401 / 3, (50, 30), [
        [*[(20, 30)] * 200, (50, 30)], [(20, 30)] * 201, [(50, 30.5), *[(20, 30)] * 200],
    ]),
    # reached the goal and went home; across; on the right face: side 0; same room: not eligible
    "cross_wall": ([0, 1, 0, NAN], "cross_wall_rate", 1 / 3, (50, 10), [
        [(20, 10), (50, 10), (20, 10)], [(20, 10), (32, 10), (45, 10)],
        [(20, 10), (32, 10), (33, 10)], [(50, 10)] * 3,
    ]),
    "cross_wall, leftwards": ([1, 0], "cross_wall_rate", 0.5, (18, 10), [
        [(50, 10), (40, 10), (20, 10)], [(50, 10), (40, 10), (31.5, 10)],
    ]),
    "cross_wall, undefined": ([NAN], "cross_wall_rate", NAN, (50, 10), [[(40, 10)] * 3]),
    "first_crossing_step, undefined": ([NAN], "first_crossing_steps", NAN, (50, 10), [
        [(40, 10)] * 3,
    ]),
    # the step itself; a later return is ignored; the mean is that of crossers
    "first_crossing_step": ([3, 1, NAN], "first_crossing_steps", 2, (50, 10), [
        [(20, 10), (25, 10), (31.9, 10), (32.1, 10), (20, 10)],
        [(31, 10), (33, 10), (34, 10), (35, 10), (36, 10)], [(20, 10)] * 5,
    ]),
    "efficiency": ([15 / 1.8 / 2, 0], "efficiency_score", 15 / 1.8 / 4, (50, 10), [
        CROSSER, [(20, 1)] * 3,
    ]),
}  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_has_its_definition_and_its_field_is_the_mean(column):
    wanted, field, mean, goal, paths = COLUMNS[column]
    e = episodes(*paths, goal=[goal] * len(paths))
    np.testing.assert_allclose(per_trial(e, "p1")[column.split(",")[0]], wanted)
    row = summarise(e, "p1")
    assert row[field] == pytest.approx(mean, nan_ok=True)  # undefined is never 0
    assert row["planning_error_mean_rmse"] == math.sqrt(row["planning_error_mean"])


def plan_of(*paths, stride=1):
    """What a planner sees whose first plan passes these places."""
    places = np.array(paths, dtype=float)[:, None]
    return {"plan_xy": places} if stride == 1 else {"macro_xy": places, "macro_stride": stride}


def test_initial_plan_rate_is_defined_for_any_horizon_with_its_reach_beside_it():
    """Q9: for flat planners too, whatever they see; undefined without a plan or a place."""
    paths = [[(20, 10), (20, 10)]] * 2
    for places, stride, reach in (([(45, 10)], 1, 1), ([(30, 10), (45, 10)], 8, 16)):
        other = [(22, 10)] * len(places)
        e = episodes(*paths, goal=[(50, 10)] * 2, seen=plan_of(places, other, stride=stride))
        row = summarise(e, "p1")
        assert row["init_plan_cross_wall_rate"] == 0.5
        assert row["init_plan_reach"] == reach
        assert row["cross_wall_rate"] == 0
    walls = np.array([[32.0, 10], [19.5, 10]])  # each trial has its own: the second starts in it
    crossing = per_trial(e._replace(layout=walls), "p1")["init_plan_cross_wall"]
    np.testing.assert_array_equal(crossing, [1, NAN])
    for seen in ({}, plan_of([(NAN, NAN)], [(NAN, NAN)])):
        row = summarise(e._replace(seen=seen), "p1")
        assert math.isnan(row["init_plan_cross_wall_rate"])
    assert math.isnan(summarise(e._replace(seen={}), "p1")["init_plan_reach"])


def test_plans_through_the_wall_are_counted():
    """Q7: rooms changed by a macro-step that is too short for the way through the door."""
    straight = [(24, 30), (28, 30), (24, 30)]
    through = [(24, 30), (28, 30), (36, 30)]  # 8 px straight, but 60 px through the door
    long = [(24, 30), (2, 30), (14, 30)]  # too long, but in its room
    door = [(28, 10), (36.5, 10), (36, 10)]  # 8.5 px, 1.3 more than a step: the probe's error
    starts = [(20, 30)] * 3 + [(24, 10)]
    plans = plan_of(straight, through, long, door, stride=4)
    e = episodes(*([start, start] for start in starts), goal=[(50, 10)] * 4, seen=plans)
    assert per_trial(e, "p1")["init_plan_through_wall"].tolist() == [0, 1, 0, 0]
    assert summarise(e, "p1")["init_plan_through_wall_rate"] == 0.25
    nowhere = e._replace(layout=np.zeros((4, 2)))  # a world without the two rooms' walls
    assert math.isnan(summarise(nowhere, "p1")["init_plan_through_wall_rate"])


def test_effective_samples_are_means_over_the_planning_calls():
    """Q6: of both levels; undefined where nothing was planned."""
    seen = {"effective": np.array([[1.0, 3.0]]), "effective_macro": np.array([[2.0, 2.0]])}
    e = episodes([(40, 10)] * 3, goal=[(50, 10)], seen=seen)
    row = summarise(e, "p1")
    assert (row["effective_samples"], row["effective_samples_macro"]) == (2, 2)
    assert math.isnan(summarise(e._replace(seen={}), "p1")["effective_samples"])


def test_path_efficiency_compares_the_way_up_to_the_hit_with_the_oracle():
    goal = (50.0, 10.0)
    detour = [(40, 10), (40, 18), (50, 10), (40, 10)]  # 8 + sqrt(164) px, wandering after is free
    short = [(41.4, 10), (50.9, 10), (50, 10), (50, 10)]  # of the exact goal: capped at 1
    missed = [(40, 10), (41, 10), (42, 10), (43, 10)]
    e = episodes(detour, short, missed, goal=[goal] * 3)
    way = 8 + math.sqrt(164)
    assert per_trial(e, "p1")["path_efficiency"] == pytest.approx([10 / way, 1, 0])
    assert summarise(e, "p1")["path_efficiency"] == pytest.approx((10 / way + 1) / 3)
    # P2: first within 4.5 px after 7 px, not after 10; hit, then left, is no success
    path = [(40, 10), (40, 14), (50, 14), (50, 10)]
    left = [(40, 10), (50, 10), (40, 10), (40, 10)]
    e = episodes(path, left, goal=[goal] * 2)
    assert per_trial(e, "p2_seen")["path_efficiency"] == pytest.approx([10 / 14, 0])
    assert per_trial(e, "p1")["path_efficiency"] == pytest.approx([10 / 18, 1])
    there = episodes([goal] * 3, goal=[goal], oracle=np.zeros(1))  # starts on its goal
    assert per_trial(there, "p1")["path_efficiency"] == [1]
