"""Plan optimisers, cost forms, levels, and the planner with one and two levels."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import digest, make_agent, seeded, tiny_config

from hjepa_lib.config import Config, ConfigError, PlannerConfig, profile
from hjepa_lib.config.fields import describe
from hjepa_lib.models.distance import LatentGeometry
from hjepa_lib.planning import interval, levels
from hjepa_lib.planning import planner as planner_module
from hjepa_lib.planning.levels import MacroLevel, PrimitiveLevel, clip_norm, reduce_horizon
from hjepa_lib.planning.search import search, shift_plan, softmin_weights
from hjepa_lib.runs.places import repository
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.worlds.base import trial_noise

METHODS = ("mppi", "cem", "gradient")
SPACES = ("none", "concat", "only", "learned")
TOLERANCE = 1 + 1e-5


def settings_of(**changes):
    return PlannerConfig(
        **{"samples": 64, "iterations": 4, "horizon": 3, "form": "last_mean"} | changes
    )


def noise_of(batch, seed=0):
    return lambda draw, shape: trial_noise(seed, range(batch), 0, shape, draw=draw)


def ball(cap):
    return lambda plans: clip_norm(plans, cap)


def quadratic(target):
    """(B, N, H, A) -> (B, N): squared distance to one target plan per trial."""
    return lambda plans: (plans - target[:, None]).square().sum((-1, -2))


# --- bounds -----------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@given(
    seed=st.integers(0, 1000),
    cap=st.floats(0.01, 20),
    sigma=st.floats(0.01, 50),
    temperature=st.sampled_from([0.0, 1e-3, 1.0, float("inf")]),
    reach=st.floats(0, 100),
)
def test_no_planned_action_exceeds_the_cap(method, seed, cap, sigma, temperature, reach):
    """EB1: plan and every candidate stay inside the norm ball, wherever the optimum lies."""
    config = settings_of(
        method=method, sigma=sigma, temperature=temperature, samples=6, iterations=2, elites=2,
        lr=reach + 0.1,
    )  # fmt: skip
    target = reach * torch.randn(2, 3, 2, generator=seeded(seed))
    nominal = clip_norm(reach * torch.randn(2, 3, 2, generator=seeded(seed + 1)), cap)
    found = search(quadratic(target), ball(cap), nominal, config, noise_of(2, seed))
    for plans in (found.plan, found.candidates):
        assert torch.isfinite(plans).all()
        assert plans.norm(dim=-1).max() <= cap * TOLERANCE


@given(seed=st.integers(0, 1000), cap=st.floats(0.01, 20))
def test_clipping_keeps_direction_and_short_actions(seed, cap):
    actions = 5 * torch.randn(30, 2, generator=seeded(seed))
    actions[0] = 0
    clipped = clip_norm(actions, cap)
    short = actions.norm(dim=-1) <= cap
    torch.testing.assert_close(clipped[short], actions[short])
    torch.testing.assert_close(
        clipped[~short].norm(dim=-1), torch.full((int((~short).sum()),), cap)
    )
    cross = clipped[:, 0] * actions[:, 1] - clipped[:, 1] * actions[:, 0]
    assert cross.abs().max() < 1e-3 * max(1, cap)
    assert ((clipped * actions).sum(-1) >= 0).all()


@pytest.mark.parametrize("actions", SPACES)
@pytest.mark.parametrize("method", METHODS)
def test_executed_actions_of_both_planners_respect_the_cap(actions, method):
    """EB1: for every optimiser and every level-2 space; level 2 stays inside its own set too."""
    agent = make_agent(tiny_config(level2__actions=actions))
    planning = agent.planning
    flat = dataclasses.replace(planning.flat, method=method, sigma=9.0)
    top = dataclasses.replace(planning.hierarchy.level2, method=method, sigma=9.0)
    hierarchy = dataclasses.replace(planning.hierarchy, level2=top, tracker=flat, clip=0.7)
    planning = dataclasses.replace(planning, flat=flat, hierarchy=hierarchy)
    for name in ("flat", "l1+l2"):
        planner = agent.planner(name, planning)
        planner.reset()
        plan = planner.plan(torch.randn(3, 16), torch.randn(3, 16), 0)
        assert plan.actions.norm(dim=-1).max() <= planning.action_cap * TOLERANCE
        assert plan.search.candidates.norm(dim=-1).max() <= planning.action_cap * TOLERANCE
    found = planner.layers[1].nominal
    if actions == "none":
        assert found.abs().max() <= 0.7
    elif actions == "learned":
        assert (found >= agent.box[0]).all()
        assert (found <= agent.box[1]).all()
    else:
        chunks = found.unflatten(-1, (4, 2))
        assert chunks.norm(dim=-1).max() <= planning.action_cap * TOLERANCE


def test_projection_of_each_level2_space():
    """z: box of `clip`; primitive chunks: each action's norm; learned: percentiles; 0 = neither."""
    plans = 10 * torch.randn(4, 5, 3, generator=seeded())
    config = tiny_config()
    for clip, bound in ((0.5, 0.5), (0.0, float("inf"))):
        planning = dataclasses.replace(
            config.planning, hierarchy=dataclasses.replace(config.planning.hierarchy, clip=clip)
        )
        level = make_agent(config).planner("l1+l2", planning).level2
        z = torch.cat([plans, plans[..., :1]], -1)
        torch.testing.assert_close(level.project(z), z.clamp(-bound, bound))
    learned = make_agent(tiny_config(level2__actions="learned"))
    low, high = learned.box
    inside = learned.planner("l1+l2").level2.project(plans)
    torch.testing.assert_close(inside, plans.clamp(low, high))
    assert ((inside == low) | (inside == high)).any()
    planning = tiny_config(planning__hierarchy__clip=0.0).planning
    assert torch.equal(learned.planner("l1+l2", planning).level2.project(plans), plans)


# --- optimisers -------------------------------------------------------------------------------
def test_temperature_limits():
    """EB3: the temperature divides: 0 is the arg-min, small nearly so, infinity the plain mean."""
    costs = torch.randn(4, 50, generator=seeded())
    for unit in ("spread", "cost"):
        best = torch.nn.functional.one_hot(costs.argmin(1), 50).float()
        assert torch.equal(softmin_weights(costs, 0.0, unit), best)
        torch.testing.assert_close(softmin_weights(costs, 1e-6, unit), best)
        uniform = torch.full((4, 50), 1 / 50)
        torch.testing.assert_close(softmin_weights(costs, float("inf"), unit), uniform)
        torch.testing.assert_close(softmin_weights(costs, 1e6, unit), uniform, atol=1e-5, rtol=1e-3)
        peaks = [softmin_weights(costs, t, unit).amax(1) for t in (0.01, 0.1, 1.0, 10.0)]
        assert all((a > b).all() for a, b in itertools.pairwise(peaks))
    ties = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
    assert softmin_weights(ties, 0.0).tolist() == [[0, 0.5, 0.5, 0]]
    assert torch.isfinite(softmin_weights(torch.ones(2, 5), 0.05)).all()


def test_weights_equal_their_formula():
    costs = torch.tensor([[1.0, 2.0, 4.0]])
    for unit, scale in (("spread", np.std([1, 2, 4], ddof=1)), ("cost", 1.0)):
        wanted = np.exp(-np.array([0, 1, 3]) / (0.5 * scale))
        found = softmin_weights(costs, 0.5, unit)[0].numpy()
        np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-5)
    # "spread" does not care about the unit of the costs, "cost" does
    torch.testing.assert_close(softmin_weights(1e3 * costs, 0.5), softmin_weights(costs, 0.5))
    assert softmin_weights(1e3 * costs, 0.5, "cost")[0, 0] == 1


def test_mppi_at_temperature_zero_returns_its_best_candidate():
    target = torch.randn(3, 3, 2, generator=seeded(1))
    config = settings_of(temperature=0.0, iterations=1)
    found = search(quadratic(target), ball(9.0), torch.zeros(3, 3, 2), config, noise_of(3))
    best = found.candidates[torch.arange(3), found.costs.argmin(1)]
    torch.testing.assert_close(found.plan, best)


@pytest.mark.parametrize("method", METHODS)
def test_planners_reach_a_quadratic_optimum(method):
    """House rule: every planner finds the bottom of a bowl and beats the best random candidate."""
    target = clip_norm(2 * torch.randn(4, 3, 2, generator=seeded(1)), 1.5)
    config = settings_of(method=method, iterations=60, temperature=0.02, lr=0.1, sigma=1.0)
    if method == "mppi":  # its noise never shrinks: a narrow proposal ends close to the optimum
        config = dataclasses.replace(config, sigma=0.15)
    found = search(quadratic(target), ball(1.8), torch.zeros(4, 3, 2), config, noise_of(4))
    cost = quadratic(target)(found.plan[:, None])[:, 0]
    random = clip_norm(torch.randn(4, 64 * 60, 3, 2, generator=seeded(2)), 1.8)
    assert (cost < 0.5 * quadratic(target)(random).amin(1)).all()
    assert cost.max() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_the_nominal_plan_is_always_a_candidate(method):
    """With the optimum as warm start and arg-min weights, a search can never make it worse."""
    target = clip_norm(torch.randn(2, 3, 2, generator=seeded(1)), 1.0)
    config = settings_of(method=method, temperature=0.0, elites=1, samples=4, lr=0.0)
    found = search(quadratic(target), ball(1.8), target.clone(), config, noise_of(2))
    torch.testing.assert_close(found.plan, target, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_global_generator_is_used(method):
    """Same seed, same plan, whatever the global generator did; and the global one is not used."""
    target = torch.randn(2, 3, 2, generator=seeded(1))

    def run(seed, other):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        config = settings_of(method=method, samples=8, iterations=2)
        found = search(
            quadratic(target), ball(1.8), torch.zeros(2, 3, 2), config, noise_of(2, seed)
        )
        assert torch.equal(torch.get_rng_state(), before)
        return digest(*found)

    assert run(0, 1) == run(0, 2)
    assert run(0, 1) != run(3, 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_trials_one_by_one(method):
    """HW5: batched over trials without mixing them; the same noise gives the same plans."""
    target = torch.randn(5, 3, 2, generator=seeded(1))
    nominal = 0.3 * torch.randn(5, 3, 2, generator=seeded(2))
    config = settings_of(method=method, samples=16, iterations=3, elites=4)
    whole = search(quadratic(target), ball(1.8), nominal, config, noise_of(5))
    for trial in range(5):
        rows = slice(trial, trial + 1)
        alone = search(
            quadratic(target[rows]), ball(1.8), nominal[rows], config,
            lambda draw, shape, row=trial: trial_noise(0, [row], 0, shape, draw=draw),
        )  # fmt: skip
        torch.testing.assert_close(alone.plan[0], whole.plan[trial], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", METHODS)
def test_candidates_without_a_finite_cost_have_no_say(method, bad):
    """Q1: weight 0 for them; a trial without a finite candidate is lost, others never notice."""
    target = torch.randn(3, 3, 2, generator=seeded(1))
    config = settings_of(method=method, samples=16, iterations=3, elites=4)
    whole = quadratic(target)

    def broken(plans):
        costs = whole(plans)
        wrong = torch.zeros_like(costs)
        wrong[1, 2:9] = 1  # some candidates of trial 1, all of trial 2
        wrong[2] = 1
        return costs.where(wrong == 0, bad)

    start = torch.zeros(3, 3, 2)
    found = search(broken, ball(1.8), start, config, noise_of(3))
    clean = search(whole, ball(1.8), start, config, noise_of(3))
    assert found.lost.tolist() == [False, False, True]
    assert torch.equal(found.plan[0], clean.plan[0])
    assert torch.isfinite(found.plan).all()
    assert torch.equal(found.plan[2], start[2])  # its warm start, for what comes next
    cost = quadratic(target[1:2])
    assert cost(found.plan[1:2, None]) < cost(start[1:2, None])


def test_weights_of_what_is_not_finite():
    """Q1: as if those candidates were not there, at every temperature and in both units."""
    costs = torch.tensor([[1.0, float("nan"), 2.0, float("inf"), 4.0]])
    nobody = torch.full((1, 4), float("nan"))
    for unit, temperature in itertools.product(("spread", "cost"), (0.0, 0.5, float("inf"))):
        found = softmin_weights(costs, temperature, unit)
        alone = softmin_weights(costs[:, [0, 2, 4]], temperature, unit)
        torch.testing.assert_close(found[:, [0, 2, 4]], alone)
        assert found[0, [1, 3]].tolist() == [0, 0]
        assert softmin_weights(nobody, temperature, unit).tolist() == [[0] * 4]


def test_a_trial_without_a_finite_plan_is_lost_alone(agent):
    """Q1: a start that no model can read gives no action, and no other trial another one."""
    latent, goal = torch.randn(2, 4, 16, generator=seeded(3))
    for method in ("flat", "l1+l2"):
        plain = agent.planner(method).plan(latent, goal, 0)
        blind = latent.clone()
        blind[2] = float("nan")
        found = agent.planner(method).plan(blind, goal, 0)
        assert found.actions[2].isnan().all()
        others = [0, 1, 3]
        torch.testing.assert_close(found.actions[others], plain.actions[others])


# --- warm start -------------------------------------------------------------------------------
def test_shifted_plans():
    """PL3: new nominal[0] == old nominal[k]; the end is filled with zeros."""
    plan = torch.randn(2, 5, 3, generator=seeded())
    for executed in (0, 1, 3, 5, 8):
        shifted = shift_plan(plan, executed)
        assert shifted.shape == plan.shape
        kept = max(0, 5 - executed)
        assert torch.equal(shifted[:, :kept], plan[:, 5 - kept :])
        assert (shifted[:, kept:] == 0).all()


@pytest.fixture
def recorded(monkeypatch):
    """Every search as (level settings, nominal plan, result), in order."""
    calls = []

    def spy(objective, project, nominal, config, noise):
        found = search(objective, project, nominal, config, noise)
        calls.append((config, nominal.clone(), found.plan.clone()))
        return found

    monkeypatch.setattr(planner_module, "search", spy)
    return calls


def test_planner_shifts_by_the_executed_steps(agent, recorded):
    """PL3: through the planner, for any number of executed steps; `reset` forgets."""
    planner = agent.planner("flat")
    latents, goal = torch.randn(4, 3, 16, generator=seeded(1)), torch.randn(3, 16)
    for latent, executed in zip(latents, (0, 1, 3, 2), strict=True):
        planner.plan(latent, goal, executed)
    assert (recorded[0][1] == 0).all()
    for (_, _, old), (_, new, _), executed in zip(recorded, recorded[1:], (1, 3, 2), strict=False):
        assert torch.equal(new, shift_plan(old, executed))
        assert torch.equal(new[:, 0], old[:, executed])
    planner.reset()
    planner.plan(latents[0], goal, 0)
    assert (recorded[-1][1] == 0).all()
    assert torch.equal(recorded[-1][2], recorded[0][2])  # the noise restarts too


def test_level2_shifts_by_whole_macro_steps(agent, recorded):
    """PL3 at level 2: stride 4, replanned every 3 steps: shifts of 0, 1, 1, 1, 0 macro steps."""
    hierarchy = dataclasses.replace(agent.planning.hierarchy, replan=3)
    planning = dataclasses.replace(agent.planning, replan=3, hierarchy=hierarchy)
    planner, goal = agent.planner("l1+l2", planning), torch.randn(2, 16)
    for call in range(6):
        planner.plan(torch.randn(2, 16), goal, 3 if call else 0)
    top = [call for call in recorded if call[0] is hierarchy.level2]
    assert len(top) == 6
    shifts = (0, 1, 1, 1, 0)  # steps 3, 6, 9, 12, 15 -> whole macro steps passed since the last
    for (_, _, old), (_, new, _), shift in zip(top, top[1:], shifts, strict=False):
        assert torch.equal(new, shift_plan(old, shift))


# --- costs ------------------------------------------------------------------------------------
def test_cost_forms_equal_their_formulas():
    costs = torch.rand(2, 4, 6, generator=seeded())
    rows = costs.double().numpy()
    weights = np.linspace(0.1, 1, 3)
    wanted = {
        "sum": rows.sum(-1),
        "last": rows[..., -1],
        "closest": rows.min(-1),
        "last_k": (rows[..., -3:] * weights).sum(-1) / weights.sum(),
        "last_mean": rows[..., -1] + 0.2 * rows.mean(-1),
    }
    choices = next(one.allowed for one in describe(PlannerConfig()) if one.name == "form")
    assert {*wanted, "auto"} == set(choices.split(" | "))
    auto = PlannerConfig(form="auto")
    assert torch.equal(reduce_horizon(costs, auto, True), costs.sum(-1))
    assert torch.equal(reduce_horizon(costs, auto, False), costs.amin(-1))
    for form, values in wanted.items():
        found = reduce_horizon(costs, PlannerConfig(form=form, last_k=3, mean_weight=0.2), False)
        np.testing.assert_allclose(found.numpy(), values, rtol=1e-5)
    longer = reduce_horizon(costs, PlannerConfig(form="last_k", last_k=99), False)
    every = np.linspace(0.1, 1, 6)
    np.testing.assert_allclose(longer.numpy(), (rows * every).sum(-1) / every.sum(), rtol=1e-5)


@pytest.mark.parametrize("cost", ["latent", "distance"])
def test_plan_costs_equal_candidates_one_by_one(agent, cost, monkeypatch):
    """Chunking over trials and candidates changes nothing; each trial meets its own goal."""
    geometry = agent.geometry(cost)
    assert geometry.name == cost
    level = PrimitiveLevel(agent.level1, settings_of(horizon=4), geometry, 1.8)
    start, goal = torch.randn(3, 16), geometry.embed(torch.randn(3, 16))
    plans = torch.randn(3, 5, 4, 2)
    monkeypatch.setattr(levels, "CHUNK", 4)
    found = level.costs(start, plans, goal)
    for trial in range(3):
        for candidate in range(5):
            rolled = agent.level1.rollout(start[[trial]], plans[[trial], candidate])[:, 1:]
            steps = geometry.between(geometry.embed(rolled), goal[[trial]][:, None])
            wanted = steps[0, -1] + 0.2 * steps.mean()
            torch.testing.assert_close(found[trial, candidate], wanted, atol=1e-5, rtol=1e-4)


def test_geometries():
    one, two = torch.randn(2, 5, 16)
    latent = LatentGeometry()
    torch.testing.assert_close(
        latent.between(latent.embed(one), latent.embed(two)), (one - two).square().mean(-1)
    )
    head = make_agent(tiny_config()).distance
    learned = head
    torch.testing.assert_close(
        learned.between(learned.embed(one), learned.embed(two)), head(one, two)
    )


def test_disagreement_acts_on_the_plan():
    """HW2: the ensemble term is in the cost, by its formula; another weight changes the plan."""
    agent = make_agent(tiny_config(level1__predictors=3))
    geometry = agent.geometry("latent")
    start, goal, plans = torch.randn(2, 16), torch.randn(2, 16), torch.randn(2, 4, 5, 2)

    def costs(weight):
        level = PrimitiveLevel(agent.level1, settings_of(disagreement=weight), geometry, 1.8)
        return level.costs(start, plans, goal)

    members = agent.level1.rollout_members(start.repeat_interleave(4, 0), plans.flatten(0, 1))[
        :, :, 1:
    ]  # (K, B * N, H, D)
    mean = members.mean(0)
    steps = (mean - goal.repeat_interleave(4, 0)[:, None]).square().mean(-1)
    plain = (steps[:, -1] + 0.2 * steps.mean(-1)).reshape(2, 4)
    spread = ((members - mean).square().sum(0) / 2).mean(-1).sum(-1).reshape(2, 4)
    torch.testing.assert_close(costs(0.0), plain)
    torch.testing.assert_close(costs(0.7), plain + 0.7 * spread)

    def plan(weight):
        flat = dataclasses.replace(agent.planning.flat, disagreement=weight)
        planner = agent.planner("flat", dataclasses.replace(agent.planning, flat=flat))
        return planner.plan(start, goal, 0).actions

    assert not torch.equal(plan(0.0), plan(100.0))


def test_disagreement_needs_an_ensemble():
    """One member has no variance: a clear error, not a NaN plan."""
    with pytest.raises(ConfigError, match=r"disagreement .* needs level1\.predictors > 1"):
        tiny_config(planning__flat__disagreement=0.1)
    with pytest.raises(ConfigError, match=r"unknown setting .*level2\.disagreement"):
        tiny_config(level1__predictors=2, planning__hierarchy__level2__disagreement=0.1)


# --- two levels -------------------------------------------------------------------------------
def hierarchical(agent, **changes):
    hierarchy = dataclasses.replace(agent.planning.hierarchy, **changes)
    return agent.planner("l1+l2", dataclasses.replace(agent.planning, hierarchy=hierarchy))


@pytest.mark.parametrize("cost", ["latent", "distance"])
@pytest.mark.parametrize("actions", SPACES)
def test_level2_changes_the_executed_actions(actions, cost):
    """F2: zeroed, shuffled and perturbed level 2 all execute something else, in every space."""
    agent = make_agent(tiny_config(level2__actions=actions, planning__cost=cost))
    latent, goal = torch.randn(2, 6, 16, generator=seeded(3))
    plans = {}
    for control in ("none", "zero", "shuffle", "perturb"):
        planner = hierarchical(agent, control=control)
        plans[control] = planner.plan(latent, goal, 0)
    for control in ("zero", "shuffle", "perturb"):
        assert not torch.equal(plans[control].actions, plans["none"].actions), control
    # the sub-goal differs for every trial, the shuffled ones are a permutation of the true ones
    for control in ("zero", "perturb"):
        assert (plans[control].subgoal != plans["none"].subgoal).any(-1).all()
    order = sorted(map(tuple, plans["none"].subgoal.tolist()))
    assert sorted(map(tuple, plans["shuffle"].subgoal.tolist())) == order


def test_level1_tracks_the_subgoal_and_goes_straight_to_a_near_goal(agent, monkeypatch):
    """Level 1 aims at the goal exactly where it is within near * reach, else at the sub-goal."""
    latent, goal = torch.randn(2, 8, 16, generator=seeded(3))
    geometry = agent.geometry("distance")
    away = agent.distance(latent, goal)
    middle = away.sort().values[3:5].mean().item()  # four trials are nearer, four farther
    targets = []
    replan = planner_module.Planner.replan

    def spy(self, number, latent, target):
        targets.append(target)
        return replan(self, number, latent, target)

    monkeypatch.setattr(planner_module.Planner, "replan", spy)
    for near, wanted in ((0.0, 0), (2.0, 4), (1e9, 8)):
        planner = hierarchical(agent, near=near)
        planner.layers[1].reach = middle / 2
        plan = planner.plan(latent, goal, 0)
        assert plan.near.sum() == wanted
        assert torch.equal(plan.near, away <= near * planner.layers[1].reach)
        embedded = geometry.embed(torch.where(plan.near[:, None], goal, plan.subgoal))
        torch.testing.assert_close(targets[-1], embedded)
    # near everywhere: level 1 plans as a flat planner with the same noise would
    flat = planner_module.Planner(planner.layers[:1], 0, 2)
    torch.testing.assert_close(flat.plan(latent, goal, 0).actions, plan.actions)


def test_subgoal_is_the_first_predicted_latent_of_the_best_plan(agent):
    planner = hierarchical(agent)
    latent, goal = torch.randn(2, 3, 16)
    plan = planner.plan(latent, goal, 0)
    imagined = agent.level2.imagine(latent, 3, None, planner.layers[1].nominal).predictions
    torch.testing.assert_close(plan.macro, imagined)
    assert torch.equal(plan.subgoal, plan.macro[:, 0])


@pytest.mark.parametrize(
    ("every", "replan", "wanted"), [(2, 4, 3), (2, 2, 6), (1, 4, 3), (4, 1, 6)]
)
def test_level2_replans_at_its_own_interval(agent, recorded, every, replan, wanted):
    """HW5: planner calls are counted: level 1 at every call, level 2 when its interval is over."""
    planner = hierarchical(agent, replan=replan)
    calls = 6 if every != 1 else 12
    goal, subgoals = torch.randn(7, 16), set()
    for call in range(calls):
        plan = planner.plan(torch.randn(7, 16), goal, every if call else 0)
        subgoals.add(digest(plan.subgoal))
    top = [call for call in recorded if call[0] is planner.level2.config]
    low = [call for call in recorded if call[0] is planner.level1.config]
    assert len(low) == calls  # one search plans for all seven trials at once
    assert all(len(call[1]) == 7 for call in recorded)
    assert len(top) == len(subgoals) == wanted


def test_every_interval_acts_or_is_refused():
    """Q3: level 1 plans whenever level 2 does: 1, 2 and 4 differ; what cannot be kept is named."""
    planning, found = tiny_config(planning__replan=4).planning, {}
    for replan in (1, 2, 4, 8):
        hierarchy = dataclasses.replace(planning.hierarchy, replan=replan)
        found[replan] = interval(dataclasses.replace(planning, hierarchy=hierarchy), "l1+l2")
    assert found == {1: 1, 2: 2, 4: 4, 8: 4}
    assert interval(planning, "flat") == 4
    for change, method, message in (
        ("hierarchy.replan=6", "l1+l2", r"hierarchy\.replan=6 must be a multiple of 4"),
        ("level3.replan=6", "l1+l2+l3", r"level3\.replan=6 must be a multiple of 4"),
        ("replan=8", "flat", r"a plan of planning\.flat\.horizon=5 steps is over before"),
        ("replan=8,hierarchy.replan=8", "l1+l2", r"hierarchy\.tracker\.horizon=5 steps is over"),
    ):
        parts = (f"planning.{part}" for part in change.split(","))
        deep = tiny_config(planning__replan=4, level3__enabled=True)
        changed = deep.override(",".join(parts))
        with pytest.raises(ConfigError, match=message):
            make_agent(tiny_config(level3__enabled=True)).planner(method, changed.planning)


def test_planning_works_without_an_explicit_reset(agent):
    """EB4: a new planner is ready to plan; `reset` gives the same plan again."""
    latent, goal = torch.randn(2, 3, 16)
    for method in ("flat", "l1+l2"):
        planner = agent.planner(method)
        first = planner.plan(latent, goal, 0).actions
        planner.reset()
        assert torch.equal(planner.plan(latent, goal, 0).actions, first)


def test_conditioning_reaches_the_planner_in_step_with_time():
    """F11: level-1 candidates get level 2's context, counted from level 2's last plan."""
    config = tiny_config(level2__train="joint", level2__conditioning=True)
    agent = make_agent(config)
    planner = hierarchical(agent, replan=6)
    latent, goal = torch.randn(2, 2, 16)
    planner.plan(latent, goal, 0)
    context = agent.level2.context(
        agent.level2.imagine(latent, 3, None, planner.layers[1].nominal).z
    )  # (B, 12, A): three macro steps of four
    start, plans = torch.randn(2, 16), torch.randn(2, 5, 2)

    def check(elapsed, plan):
        steps = [min(elapsed + i, 11) for i in range(5)]  # beyond its end the last one holds
        assert torch.equal(plan.context, context[:, steps])
        wanted = agent.level1.rollout(start, plans, context=context[:, steps])[:, 1:]
        torch.testing.assert_close(planner.level1.imagine(start, plans, plan.context), wanted)
        assert not torch.allclose(planner.level1.imagine(start, plans), wanted)

    check(0, planner.plan(latent, goal, 0))
    check(3, planner.plan(latent, goal, 3))  # level 2 keeps its plan: three of its steps are over
    planner.layers[1].since_plan = 9
    assert torch.equal(planner.layers[1].context(5), context[:, [9, 10, 11, 11, 11]])


def test_feedback_reaches_the_planner():
    """F11: roll-outs of the planner cross macro boundaries with the correction switched on."""
    config = tiny_config(level2__train="joint", level2__feedback=True)
    agent = make_agent(config)
    planner = agent.planner("l1+l2")
    start, plans = torch.randn(3, 16), torch.randn(3, 5, 2)
    found = planner.level1.imagine(start, plans)
    wanted = agent.level1.rollout(start, plans, feedback=agent.level2.feedback)[:, 1:]
    assert torch.equal(found, wanted)
    plain = agent.planner("flat").level1.imagine(start, plans)
    assert torch.equal(found[:, :4], plain[:, :4])
    assert not torch.equal(found[:, 4], plain[:, 4])


def test_macro_level_feeds_normalised_primitive_actions():
    """Plans of the `concat` space are px; the model was trained on normalised actions."""
    agent = make_agent(tiny_config(level2__actions="concat"))
    level: MacroLevel = agent.planner("l1+l2").level2
    assert (level.plan_dim, level.stride) == (8, 4)
    plans = torch.randn(3, 2, 8)
    wanted = agent.level1.normalise_actions(plans.unflatten(-1, (4, 2))).flatten(-2)
    torch.testing.assert_close(level.macros(plans), wanted)


# --- comparisons ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["smoke", "laptop", "full"])
def test_flat_and_tracking_planner_differ_in_their_horizon_alone(name):
    """HW1: by default level 1 searches with the same settings with and without level 2, but for how
    far it looks: a sub-goal is near. That change is ablated alone, in the study's choice."""
    planning = profile(name).planning
    flat = dataclasses.asdict(planning.flat)
    tracker = dataclasses.asdict(planning.hierarchy.tracker)
    assert {key for key in flat if flat[key] != tracker[key]} <= {"horizon"}
    study = read_experiment(repository() / "hjepa_lib/configs/study.yaml")
    (cell,) = [cell for cell in study.cells if cell.name == "choose_l1l2_latent"]
    assert planning.hierarchy.tracker.horizon in cell.grid["hierarchy.tracker.horizon"]
    assert profile("laptop").planning.flat.horizon in cell.grid["hierarchy.tracker.horizon"]


def test_a_flat_plan_has_no_level_above(agent):
    planner = agent.planner("flat")
    for trials in (1, 5):
        planner.reset()
        plan = planner.plan(torch.randn(trials, 16), torch.randn(trials, 16), 0)
        assert plan.near.all()
        assert plan.macro is None
        assert plan.subgoal is None


def test_default_settings_plan(agent):
    """EB4: `Config()` as it is builds a planner that returns finite actions within the cap."""
    for method in ("flat", "l1+l2"):
        planner = agent.planner(method, Config().planning)
        plan = planner.plan(torch.randn(2, 16), torch.randn(2, 16), 0)
        assert torch.isfinite(plan.actions).all()
        norm = plan.actions.norm(dim=-1).max()
        assert 0 < norm <= 1.8365 * TOLERANCE


# --- reachability and stale plans -------------------------------------------------------------
class Line:
    """A geometry in which the distance of two latents is their gap on the first axis."""

    name, in_steps = "distance", True

    def embed(self, latents):
        return latents[..., :1]

    def between(self, embedded, goal):
        return (embedded - goal).abs().squeeze(-1)


def test_an_imagined_path_pays_for_what_level1_cannot_follow():
    """Steps of up to `stride` are free, longer ones cost (d - stride)^2 / stride."""
    agent = make_agent(tiny_config())
    level = hierarchical(agent, reachable=3.0).level2
    level.geometry = Line()
    assert level.stride == 4
    start = torch.zeros(3, 16)
    path = torch.tensor([[4.0, 8.0, 4.0], [6.0, 6.0, 6.0], [0.0, -7.0, 4.0]])[..., None]
    found = level.penalty(start, path[None], path)
    torch.testing.assert_close(found, 3 * torch.tensor([0.0, 4 / 4, (3**2 + 7**2) / 4]))


def test_reachability_acts_in_the_cost_that_counts_steps_only():
    """HW2: the coefficient changes costs and plans; the latent cost has no unit of time."""
    config = tiny_config()
    for cost, acts in (("distance", True), ("latent", False)):
        found = []
        for weight in (0.0, 1e6):
            override = {"planning.cost": cost, "planning.hierarchy.reachable": weight}
            agent = make_agent(config.override(override))
            agent.distance.phi[-1].weight.mul_(1e3)  # so that macro-steps are too long
            planner = agent.planner("l1+l2")
            latent, goal = torch.randn(2, 2, 16, generator=seeded(3))
            found.append(planner.plan(latent, goal, 0).macro)
        assert torch.equal(*found) == (not acts)


def test_an_old_plan_hands_down_its_next_subgoals():
    """With a replan interval beyond step_skip the sub-goal moves along the imagined path."""
    agent = make_agent(tiny_config(planning__hierarchy__replan=100))
    planner = agent.planner("l1+l2")
    latent, goal = torch.randn(2, 2, 16, generator=seeded(3))
    first = planner.plan(latent, goal, 0)
    for passed, place in ((2, 0), (2, 1), (4, 2), (40, 2)):  # executed steps; step_skip 4, H2 3
        plan = planner.plan(latent, goal, passed)
        assert torch.equal(plan.macro, first.macro)
        assert torch.equal(plan.subgoal, first.macro[:, place])
