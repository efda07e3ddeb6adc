import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import digest, make_agent, refused, seeded, tiny_config

from hjepa_lib.config import ConfigError, PlannerConfig, profile
from hjepa_lib.evaluation import Case
from hjepa_lib.planning import interval, levels
from hjepa_lib.planning.levels import PrimitiveLevel
from hjepa_lib.planning.search import search, softmin_weights
from hjepa_lib.planning.truth import TrueDistance, resume, witness
from hjepa_lib.runs import score, stages
from hjepa_lib.worlds.base import bound, trial_noise
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.mazes import Maze, VelocityMaze
from hjepa_lib.worlds.trials import Trials
from hjepa_lib.worlds.two_rooms import TwoRooms

METHODS = ("mppi", "cem")
SPACES = ("none", "concat", "only", "learned")
TOLERANCE = 1 + 1e-5


def settings_of(**changes):
    return PlannerConfig(**{"samples": 64, "iterations": 4, "horizon": 3} | changes)


def quadratic(target):
    """(B, N, H, A) -> (B, N): squared distance to one target plan per trial."""
    return lambda plans: (plans - target[:, None]).square().sum((-1, -2))


def plan_to(target, nominal=None, rows=None, seed=0, objective=None, cap=1.8, **changes):
    rows = range(len(target)) if rows is None else rows
    return search(
        objective or quadratic(target),
        lambda plans: bound(plans, cap),
        torch.zeros_like(target) if nominal is None else nominal,
        settings_of(**changes),
        lambda draw, shape: trial_noise(seed, rows, 0, shape, draw=draw),
    )


def random_plans(batch, seed=1):
    return torch.randn(batch, 3, 2, generator=seeded(seed))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    cap=st.floats(0.01, 20),
    sigma=st.floats(0.01, 50),
    temperature=st.sampled_from([0.0, 1e-3, 1.0, float("inf")]),
    reach=st.floats(0, 100),
)
def test_no_planned_action_exceeds_the_cap(method, seed, cap, sigma, temperature, reach):
    """EB1."""
    far = reach * random_plans(2, seed + 1)
    far[0, 0] = 0
    nominal, length = bound(far, cap), far.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(nominal, far * torch.where(length > cap, cap / length, 1.0))
    found = plan_to(
        reach * random_plans(2, seed), nominal, seed=seed, cap=cap, method=method, sigma=sigma,
        temperature=temperature, samples=6, iterations=2, elites=2,
    )  # fmt: skip
    for plans in (found.plan, found.candidates):
        assert torch.isfinite(plans).all()
        assert plans.norm(dim=-1).max() <= cap * TOLERANCE


@pytest.mark.parametrize("actions", SPACES)
@pytest.mark.parametrize("method", METHODS)
def test_executed_actions_of_both_planners_respect_the_cap(actions, method):
    """EB1."""
    agent = make_agent(tiny_config(level2__actions=actions))
    hierarchy, wild = agent.planning.hierarchy, {"method": method, "sigma": 9.0}
    top, low = (dataclasses.replace(one, **wild) for one in (hierarchy.level2, hierarchy.tracker))
    planner = hierarchical(agent, level2=top, tracker=low, clip=0.7)
    plan = planner.plan(torch.randn(3, 16), torch.randn(3, 16), 0)
    found, bound = planner.levels[1].search.plan, agent.planning.action_cap * TOLERANCE
    for actions_px in (plan.actions, plan.search.candidates):
        assert actions_px.norm(dim=-1).max() <= bound
    if actions == "none":
        assert found.abs().max() == 0.7
    elif actions == "learned":
        assert ((found >= agent.box[0]) & (found <= agent.box[1])).all()
    else:
        assert found.unflatten(-1, (4, 2)).norm(dim=-1).max() <= bound
        return
    free = hierarchical(agent, clip=0.0).level2  # a box of 0 bounds nothing
    assert torch.equal(free.project(10 * found), 10 * found)


@pytest.mark.parametrize(("unit", "scale"), [("spread", np.std([1, 2, 4], ddof=1)), ("cost", 1.0)])
def test_weights_equal_their_formula_and_limits(unit, scale):
    """EB3, Q1."""
    costs = torch.tensor([[1.0, float("nan"), 2.0, float("inf"), 4.0]])
    nobody = torch.full((1, 4), float("nan"))
    wanted = np.exp(-np.array([0, 1, 3]) / (0.5 * scale))
    wanted /= wanted.sum()
    best, mean = [1, 0, 0], [1 / 3] * 3
    limits = {0.5: wanted, 0.0: best, 1e-6: best, 1e9: mean, float("inf"): mean}
    for temperature, values in limits.items():
        found = softmin_weights(costs, temperature, unit)[0]
        np.testing.assert_allclose(found[[0, 2, 4]], values, rtol=1e-5, atol=1e-7)
        assert found[[1, 3]].tolist() == [0, 0]
        assert softmin_weights(nobody, temperature, unit).tolist() == [[0] * 4]
    ties = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
    assert softmin_weights(ties, 0.0, unit).tolist() == [[0, 0.5, 0.5, 0]]
    assert torch.isfinite(softmin_weights(torch.ones(2, 5), 0.05, unit)).all()
    # "spread" does not care about the unit of the costs, "cost" does
    other = softmin_weights(1e3 * costs, 0.5, unit)[0, 0].item()
    assert other == pytest.approx(1 if unit == "cost" else wanted[0])


@pytest.mark.parametrize("method", METHODS)
def test_planners_reach_a_quadratic_optimum(method):
    target = bound(2 * random_plans(4), 1.5)
    sigma = 0.15 if method == "mppi" else 1.0  # its noise never shrinks: a narrow proposal
    found = plan_to(target, method=method, iterations=60, temperature=0.02, sigma=sigma)
    cost = quadratic(target)(found.plan[:, None])[:, 0]
    random = bound(torch.randn(4, 64 * 60, 3, 2, generator=seeded(2)), 1.8)
    assert (cost < 0.5 * quadratic(target)(random).amin(1)).all() and cost.max() < 0.1
    # a search with arg-min weights never makes the optimum worse
    found = plan_to(target, target, method=method, temperature=0.0, elites=1, samples=4)
    torch.testing.assert_close(found.plan, target, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_candidates_without_a_finite_cost_have_no_say(method):
    """Q1."""
    target = random_plans(3)
    whole = quadratic(target)

    def broken(plans):
        costs = whole(plans)
        for bad, number in ((float("nan"), 2), (float("inf"), 4), (float("-inf"), 6)):
            costs[1, number : number + 2] = bad  # some candidates of trial 1, all of trial 2
            costs[2, number - 2 :] = bad
        return costs

    small = {"method": method, "samples": 16, "iterations": 3, "elites": 4}
    found, clean = plan_to(target, objective=broken, **small), plan_to(target, **small)
    assert found.lost.tolist() == [False, False, True]
    assert torch.equal(found.plan[0], clean.plan[0])
    assert torch.isfinite(found.plan).all()
    assert (found.plan[2] == 0).all()  # its warm start, for what comes next
    assert (whole(found.plan[:, None]) < whole(torch.zeros(3, 1, 3, 2)))[:2].all()
    for row in range(3):  # HW5: batched over trials without mixing them
        alone = plan_to(target[[row]], rows=[row], **small)
        torch.testing.assert_close(alone.plan[0], clean.plan[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("disagreement", [0.0, 0.7])
@pytest.mark.parametrize("predictor", ["mlp", "transformer"])
@pytest.mark.parametrize(
    ("cost", "form"), [("latent", "auto"), ("latent", "sum"), ("distance", "auto")]
)
def test_plan_costs_equal_candidates_one_by_one(cost, form, predictor, disagreement, monkeypatch):
    """HW2; and candidates do not see each other."""
    agent = make_agent(tiny_config(level1__predictors=3, level1__predictor=predictor))
    geometry = agent.geometry(cost)
    config = settings_of(horizon=4, disagreement=disagreement, form=form)
    assert geometry.name == cost
    level = PrimitiveLevel(agent.level1, config, geometry, 1.8)
    start, goal = torch.randn(3, 16), geometry.embed(torch.randn(3, 16))
    plans = torch.randn(3, 5, 4, 2)
    monkeypatch.setattr(levels, "CHUNK", 4)
    found = level.costs(start, plans, goal)
    for trial, candidate in itertools.product(range(3), range(5)):
        rolled = agent.level1.rollout_members(start[[trial]], plans[[trial], candidate])
        members = rolled[:, 0, 1:]  # (K, H, D)
        mean = members.mean(0)
        steps = geometry.between(geometry.embed(mean), goal[trial])
        spread = (members - mean).square().sum(0) / 2
        wanted = steps.sum() if (cost, form) != ("latent", "auto") else steps.amin()
        wanted = wanted + disagreement * spread.mean(-1).sum()
        torch.testing.assert_close(found[trial, candidate], wanted, atol=1e-5, rtol=1e-4)


def test_disagreement_needs_several_predictors():
    """A level 1 of another run may have one: no spread."""
    agent = make_agent(tiny_config())
    with pytest.raises(ConfigError, match="needs a level 1 of several predictors"):
        PrimitiveLevel(agent.level1, settings_of(disagreement=0.7), agent.geometry("latent"), 1.8)


def hierarchical(agent, **changes):
    hierarchy = dataclasses.replace(agent.planning.hierarchy, **changes)
    return agent.planner("l1+l2", dataclasses.replace(agent.planning, hierarchy=hierarchy))


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"level2__actions": one, "planning__cost": cost}
            for one in SPACES
            for cost in ("latent", "distance")
        ),
        *(
            {"level2__latent": "categorical", "planning__hierarchy__level2__method": one}
            for one in METHODS
        ),
    ],
    ids=str,
)
def test_level2_changes_the_executed_actions(changes):
    """F2."""
    agent = make_agent(tiny_config(**changes))
    latent, goal = torch.randn(2, 6, 16, generator=seeded(3))
    plain = hierarchical(agent).plan(latent, goal, 0)
    for control in ("zero", "shuffle", "perturb"):
        plan = hierarchical(agent, control=control).plan(latent, goal, 0)
        assert not torch.equal(plan.actions, plain.actions), control
        given, true = (one.above[0].subgoal for one in (plan, plain))
        if control == "shuffle":  # a permutation of the true ones
            assert sorted(given.tolist()) == sorted(true.tolist())
        else:
            moved = (given != true).any(-1)
            assert moved.sum() >= len(moved) - ("level2__latent" in changes)  # one code: the mode


def test_the_untrained_control_plans_with_fresh_weights(agent):
    state = torch.get_rng_state()
    first, second = (hierarchical(agent, control="untrained").level2.model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert digest(first) == digest(second) != digest(agent.level2)
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_every_interval_acts_or_is_refused():
    """Q3."""
    deep = tiny_config(planning__replan=4, level3__enabled=True)

    def every(changes, method):
        parts = ",".join(f"planning.{part}" for part in changes.split(","))
        return interval(deep.override(parts).planning, method)

    found = {k: every(f"hierarchy.replan={k}", "l1+l2") for k in (1, 2, 4, 8)}
    assert found == {1: 1, 2: 2, 4: 4, 8: 4}
    assert every("replan=4", "flat") == 4
    for changes, method, message in (
        ("hierarchy.replan=6", "l1+l2", r"hierarchy\.replan=6 must be"),
        ("level3.replan=6", "l1+l2+l3", r"level3\.replan=6 must be"),
        ("replan=8", "flat", r"flat\.horizon=5 steps is over"),
        ("replan=8,hierarchy.replan=8", "l1+l2", r"tracker\.horizon=5 steps is over"),
    ):
        refused(ConfigError, message, every, changes, method)


def test_conditioning_reaches_the_planner_in_step_with_time():
    """F11."""
    agent = make_agent(tiny_config(level2__train="joint", level2__conditioning=True))
    planner = hierarchical(agent, replan=6)
    latent, goal = torch.randn(2, 2, 16)
    planner.plan(latent, goal, 0)
    imagined = agent.level2.imagine(latent, 3, None, planner.levels[1].search.plan)
    context = agent.level2.context(imagined.z)  # (B, 12, A): three macro steps of four
    start, plans = torch.randn(2, 16), torch.randn(2, 5, 2)

    def check(elapsed, plan):
        steps = [min(elapsed + i, 11) for i in range(5)]  # beyond its end the last one holds
        assert torch.equal(plan.context, context[:, steps])
        wanted = agent.level1.rollout(start, plans, context=context[:, steps])[:, 1:]
        torch.testing.assert_close(planner.level1.imagine(start, plans, plan.context), wanted)
        assert not torch.allclose(planner.level1.imagine(start, plans), wanted)

    check(0, planner.plan(latent, goal, 0))
    check(3, planner.plan(latent, goal, 3))  # level 2 keeps its plan: three of its steps are over
    planner.levels[1].since_plan = 9
    assert torch.equal(planner.levels[1].context(5), context[:, [9, 10, 11, 11, 11]])


def test_feedback_reaches_the_planner():
    """F11."""
    agent = make_agent(tiny_config(level2__train="joint", level2__feedback=True))
    planner = agent.planner("l1+l2")
    start, plans = torch.randn(3, 16), torch.randn(3, 5, 2)
    found = planner.level1.imagine(start, plans)
    wanted = agent.level1.rollout(start, plans, feedback=agent.level2.feedback)[:, 1:]
    assert torch.equal(found, wanted)
    plain = agent.planner("flat").level1.imagine(start, plans)
    assert torch.equal(found[:, :4], plain[:, :4])
    assert not torch.equal(found[:, 4], plain[:, 4])


def test_macro_level_feeds_normalised_primitive_actions():
    agent = make_agent(tiny_config(level2__actions="concat"))
    level = agent.planner("l1+l2").level2
    assert (level.plan_dim, level.stride) == (8, 4)
    plans = torch.randn(3, 2, 8)
    wanted = agent.level1.normalise_actions(plans.unflatten(-1, (4, 2))).flatten(-2)
    torch.testing.assert_close(level.macros(plans), wanted)


def test_flat_and_tracking_planner_differ_in_their_horizon_alone():
    """HW1."""
    for name in ("smoke", "laptop", "full"):
        flat, tracker = profile(name).planning.flat, profile(name).planning.hierarchy.tracker
        assert dataclasses.replace(flat, horizon=tracker.horizon) == tracker


def test_an_imagined_path_pays_for_what_level1_cannot_follow():
    agent = make_agent(tiny_config(planning__cost="latent"))
    level, free = (hierarchical(agent, reachable=weight).level2 for weight in (3.0, 0.0))
    assert level.stride == 4
    start = torch.zeros(3, 16)
    path = torch.tensor([[4.0, 8.0, 4.0], [6.0, 6.0, 6.0], [0.0, -7.0, 4.0]])[..., None]
    assert level.penalty(start, path[None], path) == 0  # the latent cost has no unit of time
    level.geometry = free.geometry = SimpleNamespace(  # the gap on the first axis, in steps
        in_steps=True,
        embed=lambda latents: latents[..., :1],
        between=lambda embedded, goal: (embedded - goal).abs().squeeze(-1),
    )
    found = level.penalty(start, path[None], path)
    torch.testing.assert_close(found, 3 * torch.tensor([0.0, 4 / 4, (3**2 + 7**2) / 4]))
    # HW2: the coefficient is in the costs
    level.members = free.members = lambda *_: path[None]
    paid = level.costs(start[:1], torch.zeros(1, 3, 3, 4), torch.zeros(1, 1))
    plain = free.costs(start[:1], torch.zeros(1, 3, 3, 4), torch.zeros(1, 1))
    torch.testing.assert_close(paid - plain, found[None])


def told(truth, **changes):
    return tiny_config(planning__truth=truth, **changes)


def begun(world):
    layout = Layout.fixed(2) if world is TwoRooms else Layout.of([(0, 0), (1, 0)])
    ends = world(layout).sample_start_goal(seeded())
    return Trials.of(*ends, layout, "made", world).begin("bounce", 0)


def test_told_dynamics_are_steps_of_the_world_made_by_hand(agent):
    world = begun(TwoRooms)
    then, frames, scene = world.position.clone(), world.render(), witness(world, None)
    world.step(torch.full((2, 2), -1.3))  # the scene is of then
    level = agent.planner("flat", told("dynamics").planning).level1
    plans, rows = 9 * torch.randn(4, 4, 2), torch.tensor([0, 0, 1, 1])  # into walls
    found = level.imagine(agent.encode(frames)[rows], plans, None, scene.pick(rows))
    hand = TwoRooms(Layout.fixed(4), "slide")  # what chance does is not told
    hand.reset(then[rows])
    wanted = [agent.encode(hand.render(hand.step(action))) for action in plans.unbind(1)]
    torch.testing.assert_close(found, torch.stack(wanted, 1))


def test_a_copy_keeps_momentum():
    world, rows = begun(VelocityMaze), torch.tensor([1, 0, 1])
    world.step(torch.tensor([[0.3, 0.0], [0.0, 0.3]]))
    found = resume(world, rows).step(torch.zeros(3, 2))
    torch.testing.assert_close(found, world.step(torch.zeros(2, 2))[rows])


@pytest.mark.parametrize("world", [TwoRooms, Maze])
def test_a_told_distance_is_the_way_around_the_walls_of_its_own_task(world):
    played = begun(world)
    geometry = TrueDistance(lambda latents: latents, cap=2.0)  # a latent is its place
    geometry.begin(witness(played, None), torch.zeros(2, 2))
    goal = geometry.embed_goal(played.goal)
    here = played.position
    for start, off in ((here, 0.3), (here.round(), 1e-4)):  # between pixels, and on one
        found = geometry.between(geometry.embed(start), goal)
        wanted = played.oracle_length(start, played.goal) / 2
        torch.testing.assert_close(found, wanted, atol=off, rtol=0)
    assert geometry.between(geometry.embed(torch.zeros(2, 2)), goal).isfinite().all()  # in a wall


@pytest.mark.parametrize("truth", ["dynamics", "distance"])
def test_a_told_row_says_so_and_is_another_row(ws, truth):
    plain, case = (Case.of(told(one), "flat", "distance") for one in ("none", truth))
    assert "truth" not in plain.settings and case.digest != plain.digest
    row = score.play(ws, stages.load_trained(ws), case).row
    assert row["told"] == row["planner"]["truth"] == truth and row["flops_per_step"] > 0


def test_what_cannot_be_told_is_one_sentence(agent):
    dynamics, local = {"planning__truth": "dynamics"}, {"preset": "local"}
    point = {"data__source": "pointmaze_large_stitch"}
    for method, cost, changes, message in (
        ("l1+l2", "distance", dynamics, r"not go with l1\+l2, distance"),
        ("flat", "latent", {"planning__truth": "distance"}, "not go with flat, latent"),
        ("flat", "distance", dynamics | point, "in pointmaze_large_stitch"),
        ("graph", "graph", {}, "graph needs cost=graph and"),
        ("graph", "latent", local, "graph needs cost=graph"),
    ):
        refused(ConfigError, message, Case.of, tiny_config(**changes), method, cost)
    refused(ConfigError, "needs level1.predictor=local", agent.planner, "graph")
    frames = torch.zeros(2, 2, 65, 65, dtype=torch.uint8)
    for truth in ("dynamics", "distance"):
        alone = dataclasses.replace(agent, planning=told(truth).planning)
        refused(ConfigError, "behind these frames there is none", alone.plan, *frames)
