import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import tiny_config

from hjepa_lib.evaluation import failures, metrics
from hjepa_lib.evaluation.episodes import OFFSET_CALLS, LatentPolicy, OraclePolicy, run_episodes
from hjepa_lib.evaluation.failures import Commands, classify, unreachable_share
from hjepa_lib.evaluation.metrics import Episodes, per_trial
from hjepa_lib.evaluation.results import Case, load_result, save_result
from hjepa_lib.evaluation.statistics import (
    NOT_ESTIMABLE,
    bootstrap,
    bootstrap_difference,
    claim,
    mcnemar,
    success_rate,
    wilson,
)
from hjepa_lib.worlds.trials import load_trials

NAN = math.nan


def episodes(*paths, goal, **changes):
    """Trials with these paths, lists of (x, y), and goals; the rest by default."""
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


def summarise(trials, protocol):
    return metrics.summarise(per_trial(trials, protocol))


def test_first_hit_and_last_step_success_differ_at_both_thresholds():
    """A visit counts for first hit only."""
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
        assert (result["n"], result["successes"]) == (5, successes)


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
    # a later return is ignored; the mean is that of crossers
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
    places = np.array(paths, dtype=float)[:, None]
    return {"plan_xy": places} if stride == 1 else {"macro_xy": places, "macro_stride": stride}


def test_initial_plan_rate_is_defined_for_any_horizon_with_its_reach_beside_it():
    """Q9: undefined without a plan or a place."""
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
    """Q7: a macro-step into the other room that is too short for the door's way."""
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
    """Q6."""
    seen = {"effective": np.array([[1.0, 3.0]]), "effective_macro": np.array([[2.0, 2.0]])}
    e = episodes([(40, 10)] * 3, goal=[(50, 10)], seen=seen)
    row = summarise(e, "p1")
    assert (row["effective_samples"], row["effective_samples_macro"]) == (2, 2)
    assert math.isnan(summarise(e._replace(seen={}), "p1")["effective_samples"])


def test_path_efficiency_compares_the_way_up_to_the_hit_with_the_oracle():
    goal = (50.0, 10.0)
    detour = [(40, 10), (40, 18), (50, 10), (40, 10)]  # 8 + sqrt(164) px, wandering after is free
    short = [(41.4, 10), (50.9, 10), (50, 10), (50, 10)]  # of the exact goal: capped at 1
    e = episodes(detour, short, [(40, 10), (41, 10), (42, 10), (43, 10)], goal=[goal] * 3)
    way = 8 + math.sqrt(164)
    assert per_trial(e, "p1")["path_efficiency"] == pytest.approx([10 / way, 1, 0])
    assert summarise(e, "p1")["path_efficiency"] == pytest.approx((10 / way + 1) / 3)
    # P2: within 4.5 px after 7 px, not after 10; hit, then left, is no success
    path = [(40, 10), (40, 14), (50, 14), (50, 10)]
    e = episodes(path, [(40, 10), (50, 10), (40, 10), (40, 10)], goal=[goal] * 2)
    assert per_trial(e, "p2_seen")["path_efficiency"] == pytest.approx([10 / 14, 0])
    assert per_trial(e, "p1")["path_efficiency"] == pytest.approx([10 / 18, 1])
    there = episodes([goal] * 3, goal=[goal], oracle=np.zeros(1))  # starts on its goal
    assert per_trial(there, "p1")["path_efficiency"] == [1]


RNG = np.random.default_rng(7)


@pytest.mark.parametrize(("k", "n"), [(97, 100), (0, 20), (20, 20), (293, 300), (1, 1)])
def test_wilson_equals_scipys(k, n):
    """F15."""
    wanted = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx(wanted, abs=1e-12)
    assert all(math.isnan(bound) for bound in wilson(0, 0))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_the_binomial_sum_over_discordant_trials(pairs):
    a, b = np.array(pairs).T
    result = mcnemar(a, b)
    c, d = result.only_first, result.only_second
    assert (c, d) == (int((a & ~b).sum()), int((b & ~a).sum()))
    tail = sum(math.comb(c + d, i) for i in range(min(c, d) + 1)) / 2 ** (c + d)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))


def test_bootstrap_of_one_seed_equals_scipys_percentile_interval():
    scores = RNG.exponential(size=80)
    ours = bootstrap(scores, resamples=6000)
    reference = stats.bootstrap(
        (scores,), np.mean, n_resamples=6000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.estimate == scores.mean()
    assert ours[1:] == pytest.approx((reference.low, reference.high), abs=0.01)


def test_bootstrap_redraws_seeds():
    scores = np.repeat([[0.0], [1.0], [5.0]], 30, axis=1)
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    found, again = (bootstrap(scores, resamples=400) for _ in range(2))
    assert found == again and found.low == 0 and found.high > 3
    assert np.array_equal(np.random.get_state()[1], state)


def test_trials_that_seeds_share_are_not_more_trials():
    assert success_rate(np.arange(200) < 190) == (0.95, *wilson(190, 200))
    for rate, seeds in ((1.0, 3), (0.0, 5)):
        found = success_rate(np.full((seeds, 200), rate))
        assert found == (rate, *wilson(int(200 * rate), 200))
    found = success_rate(np.stack([np.arange(200) < hits for hits in (120, 160, 200)]))
    assert found.estimate == pytest.approx(0.8)
    assert found.low < 0.65 and found.high > 0.95  # seeds disagree, which n alone cannot say


def test_paired_difference_cancels_what_both_share_and_uses_the_statistic():
    difficulty = RNG.normal(scale=10, size=(3, 40))
    first, second = difficulty + 1, difficulty
    assert bootstrap_difference(first, second, resamples=300) == pytest.approx((1, 1, 1))
    shuffled = bootstrap_difference(first, second[:, ::-1], resamples=300)
    assert shuffled.high - shuffled.low > 1
    a, b = RNG.normal(size=(2, 15)), RNG.exponential(size=(2, 15))
    forth = bootstrap_difference(a, b, np.median, resamples=100)
    back = bootstrap_difference(b, a, np.median, resamples=100)
    assert forth == pytest.approx((-back.estimate, -back.high, -back.low))
    assert forth.estimate == np.median(a) - np.median(b) != a.mean() - b.mean()


def test_three_seeds_that_differ_decide_nothing():
    flat, two = (np.arange(200) < np.array(one)[:, None] for one in ([150] * 3, [139, 141, 147]))
    found = bootstrap_difference(two, flat)
    assert found.estimate == pytest.approx(-0.0383, abs=1e-4) and found.low < 0 < found.high


def test_a_claim_needs_seeds_and_blocks_and_an_interval_on_one_side():
    rng = np.random.default_rng(0)
    two = rng.uniform(0.5, 1.5, (3, 12)) * np.array([[1.0], [10.0], [100.0]])  # the seeds' units
    better = claim(0.8 * two * rng.uniform(0.98, 1.02, two.shape), two, resamples=200)
    assert better["verdict"] == "beats" and better["difference"] == pytest.approx(-0.2, abs=0.01)
    assert better["low"] < better["difference"] < better["high"] < 0
    assert claim(1.3 * two, two, resamples=50)["verdict"] == "loses to"
    for one in (two, np.array([[0.4], [0.5], [0.95]]) * two):  # seeds disagree: three are few
        assert claim(one, two, resamples=50)["verdict"] == "no difference shown"
    few = claim(0.1 * two[:2], two[:2], resamples=50)
    assert few["verdict"] == "nothing claimed: 2 of 3 seeds" and few["high"] < 0
    short = claim(0.1 * two[:, :7], two[:, :7], resamples=50)
    assert short["verdict"] == "nothing claimed: 7 of 8 validation blocks"
    for other in (0 * two, np.nan * two):
        assert claim(two, other)["verdict"] == NOT_ESTIMABLE


ROOM = np.array([32.0, 10.0])  # wall at x = 32, door at y = 6..14
GOAL = np.array([50.0, 50.0])
CAP, SKIP = 1.8365, 8


def walk(*points, steps=40):
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
    assert unreachable_share(told._replace(commanded=np.zeros((1, 4), bool)), ROOM[None]) == [0]


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
    two = result_of(LatentPolicy(agent, "l1+l2", planning), config, tmp_path, "l1+l2")
    told = failures.commands_of(two)
    assert told.subgoal.shape == (3, 10, 2)  # 20 steps, replanned every 2
    np.testing.assert_array_equal(told.position[:, 3], two.arrays["positions"][:, 6])
    assert told.reach == pytest.approx(4 * CAP)
    assert (~np.isnan(told.offset)).sum(1).tolist() == [OFFSET_CALLS] * 3
    longer = config.override({"evaluation.steps": 90})
    walker = result_of(OraclePolicy(CAP), longer, tmp_path, "oracle")
    assert failures.label(walker).tolist() == ["solved"] * 3


def test_subgoal_offset_tells_real_encodings_from_others(agent):
    policy = LatentPolicy(agent, "l1+l2", agent.planning)
    run_episodes(policy, load_trials("p1", "validation", 3), "bounce", 4, CAP, 0)
    real = policy.log["latent"]
    offsets = []
    for scale in (1, 30):
        policy.log["subgoal"] = [scale * latent for latent in real]
        offsets.append(policy.diagnostics()["subgoal_offset"])
    assert np.isfinite(offsets[0]).all()
    assert (offsets[1] > 5 * offsets[0]).all()
