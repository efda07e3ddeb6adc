import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from tiny import digest, make_agent, make_store, seeded, tiny_config

from hjepa_lib.evaluation import openloop
from hjepa_lib.evaluation.compute import count, planner_flops
from hjepa_lib.evaluation.episodes import LatentPolicy, OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.metrics import per_trial, summarise
from hjepa_lib.worlds.base import trial_noise
from hjepa_lib.worlds.trials import load_trials
from hjepa_lib.worlds.two_rooms import TwoRooms

CAP = 1.8365


@pytest.fixture(scope="module")
def trials():
    return load_trials("p1", "validation", 12)


class Fixed:
    needs_frames = True

    def __init__(self, actions):
        self.actions, self.seen = actions, []

    def reset(self, world, goal):
        self.seen.clear()

    def act(self, position, frames):
        self.seen.append((position, frames))
        return self.actions

    def diagnostics(self):
        return {"calls": np.array(len(self.seen))}


def test_positions_follow_the_world_step_by_step(trials):
    chunk = 0.3 * torch.randn(12, 3, 2, generator=seeded())
    policy = Fixed(chunk)
    outcome = run_episodes(policy, trials, "bounce", 7, CAP, seed=5)
    world = TwoRooms(trials.layout, "bounce", seed=5)
    wanted = [world.reset(trials.start)]
    wanted += [world.step(chunk[:, step % 3]) for step in range(7)]
    np.testing.assert_array_equal(outcome.positions, torch.stack(wanted, 1).numpy())
    np.testing.assert_array_equal(outcome.actions, chunk.repeat(1, 3, 1)[:, :7].numpy())
    assert outcome.seen["calls"] == 3
    for (position, frames), place in zip(policy.seen, wanted[::3], strict=True):
        assert torch.equal(position, place) and torch.equal(frames, world.render(place))


def test_an_action_that_is_no_number_ends_its_own_trial_alone(trials):
    """Q1."""
    good = 0.3 * torch.randn(12, 2, 2, generator=seeded())

    class Breaking(Fixed):
        def act(self, position, frames):
            actions = super().act(position, frames).clone()
            actions[3, 1, 0] = np.nan if len(self.seen) == 2 else actions[3, 1, 0]
            return actions

    whole, broken = (
        run_episodes(kind(good), trials, "bounce", 8, CAP, 0) for kind in (Fixed, Breaking)
    )
    others = np.arange(12) != 3
    assert not whole.lost.any() and (broken.lost == ~others).all()
    np.testing.assert_array_equal(broken.positions[others], whole.positions[others])
    assert (broken.positions[3, 2:] == whole.positions[3, 2]).all()
    assert per_trial(broken, "p1")["lost"].sum() == 1


@pytest.mark.parametrize("method", ["flat", "l1+l2"])
def test_q1_a_lost_trial_changes_no_number_of_the_others(agent, trials, method, monkeypatch):
    planning, others = dataclasses.replace(agent.planning, cost="latent"), [0, 1, 3]
    few, encode = trials.pick([7, 2, 5, 4]), type(agent).encode

    def blind(self, frames):
        latents = encode(self, frames)
        if len(latents) == few.count:
            latents[2] = np.nan
        return latents

    def played(batch):
        return run_episodes(LatentPolicy(agent, method, planning), batch, "slide", 6, CAP, 0)

    clean = played(few.pick(others))
    monkeypatch.setattr(type(agent), "encode", blind)
    found = played(few)
    assert found.lost.tolist() == [False, False, True, False]
    for name, values in clean.seen.items():
        rows = found.seen[name][others] if values.shape else found.seen[name]
        np.testing.assert_allclose(rows, values, atol=2e-2, rtol=1e-3, err_msg=name)
    one, two = (summarise(per_trial(played, "p1")) for played in (clean, found))
    for name in one:
        if name.startswith(("effective", "init_plan")):
            assert two[name] == pytest.approx(one[name], rel=1e-3, nan_ok=True), name


@pytest.mark.parametrize("method", ["random", "random-persistent", "flat", "l1+l2"])
def test_a_trial_alone_is_the_trial_in_its_batch(agent, trials, method):
    """I13, PL2."""
    planning = dataclasses.replace(agent.planning, cost="latent")

    def played(tasks, seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        policy = RandomPolicy(CAP, 3, persistent=method.endswith("persistent"))
        if not method.startswith("random"):
            policy = LatentPolicy(agent, method, planning)
        return run_episodes(policy, tasks, "bounce", 8, CAP, 3)

    few = trials.pick([7, 2])
    assert few.numbers == (7, 2)
    whole, part, again = played(trials, 1), played(few, 2), played(few, 3)
    # Draws are equal bit for bit; matrix products round otherwise in another batch.
    np.testing.assert_allclose(part.actions, whole.actions[[7, 2]], atol=5e-3)
    np.testing.assert_allclose(part.positions, whole.positions[[7, 2]], atol=2e-2)
    for one, other in zip(part[:-1], again[:-1], strict=True):
        np.testing.assert_equal(one, other)


def test_noise_is_of_its_own_everywhere():
    """I13."""
    base = {"seed": 0, "row": 3, "step": 2, "level": 1, "draw": 0}

    def drawn(seed, row, step, level, draw):
        return trial_noise(seed, [row], step, (100,), level, draw)

    found = [drawn(**base), *(drawn(**base | {key: 5}) for key in base)]
    assert len({digest(one) for one in found}) == 6
    every = trial_noise(1, range(2000), 0, (50,))
    assert abs((every.abs() < 1).float().mean() - 0.6827) < 0.005
    assert abs(torch.corrcoef(every.T[:2])[0, 1]) < 0.08
    assert torch.equal(every[[7, 2]], trial_noise(1, (7, 2), 0, (50,)))


def test_the_oracle_is_the_ceiling_and_random_the_floor(trials):
    """F15."""
    policies = (OraclePolicy(CAP), RandomPolicy(CAP, 0), RandomPolicy(CAP, 0, persistent=True))
    played = [run_episodes(policy, trials, "blocked", 70, CAP, 0) for policy in policies]
    scores = [per_trial(outcome, "p1") for outcome in played]
    rates = [one["success"].mean() for one in scores]
    gaps = [one["final_distance"].mean() for one in scores]
    assert rates[0] == 1 and max(rates[1:]) < 0.5 and gaps[0] < min(gaps[1:])
    new, kept = played[1:]
    np.testing.assert_allclose(np.linalg.norm(new.actions, axis=-1), CAP, rtol=1e-5)
    angles = np.arctan2(new.actions[..., 1], new.actions[..., 0]).ravel()
    quarters = np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0] / angles.size
    assert np.abs(quarters - 0.25).max() < 0.06
    moved = np.linalg.norm(np.diff(kept.positions, axis=1), axis=-1) > CAP / 2  # (B, S)
    same = (kept.actions[:, 1:] == kept.actions[:, :-1]).all(-1)
    assert (same == moved[:, :-1]).all()
    assert 0 < same.mean() < 1


def test_a_policy_plans_for_all_trials_at_once_and_executes_chunks(agent, trials, monkeypatch):
    """HW5."""
    calls = []
    for method in ("flat", "l1+l2"):
        policy = LatentPolicy(agent, method, agent.planning)
        plan = policy.planner.plan

        def spy(latent, goal, executed, scene, plan=plan):
            calls.append((len(latent), executed))
            return plan(latent, goal, executed)

        monkeypatch.setattr(policy.planner, "plan", spy)
        outcome = run_episodes(policy, trials, "slide", 7, CAP, 0)
        assert calls == [(12, 0), (12, 2), (12, 2), (12, 2)]
        calls.clear()
        np.testing.assert_array_equal(outcome.actions[:, :2], policy.log["plan"][0][:, :2])


@pytest.mark.parametrize("method", ["flat", "l1+l2"])
def test_diagnostics_have_documented_shapes_and_values(agent, trials, method):
    """PL14."""
    whole, plain = (
        LatentPolicy(agent, method, agent.planning, fans=fans) for fans in (True, False)
    )
    seen, less = (run_episodes(one, trials, "slide", 6, CAP, 0).seen for one in (whole, plain))
    shapes = {"plan_xy": (12, 3, 5, 2), "fan_xy": (1, 3, 8, 5, 2)}
    shapes |= {"near": (12, 3), "effective": (12, 3)}
    if method == "l1+l2":
        shapes |= {"macro_xy": (12, 3, 3, 2), "subgoal_xy": (12, 3, 2), "macro_stride": ()}
        shapes |= {"subgoal_offset": (12, 3), "effective_macro": (12, 3)}
        np.testing.assert_array_equal(seen["subgoal_xy"], seen["macro_xy"][:, :, 0])
        assert seen["macro_stride"] == 4
    assert {name: values.shape for name, values in seen.items()} == shapes
    world = TwoRooms(trials.layout, "slide")
    latent = agent.encode(world.render(trials.start))
    np.testing.assert_allclose(less.pop("plan_xy"), seen["plan_xy"][:, :1], atol=1e-4)
    assert less.keys() == seen.keys() - {"plan_xy", "fan_xy"}  # what results keep
    actions = whole.log["plan"][0]
    path = agent.probe(agent.level1.rollout(latent, actions)[:, 1:]).numpy()
    np.testing.assert_allclose(seen["plan_xy"][:, 0], path, atol=1e-3)


def searching(planning, **changes):
    hierarchy = planning.hierarchy
    flat, level2, tracker = (
        dataclasses.replace(one, **changes)
        for one in (planning.flat, hierarchy.level2, hierarchy.tracker)
    )
    changed = dataclasses.replace(hierarchy, level2=level2, tracker=tracker)
    return dataclasses.replace(planning, flat=flat, hierarchy=changed)


def spent(agent, stack="flat", **changes):
    """FLOPs per environment step, without those of the encoder."""
    frame = torch.zeros(1, 2, 65, 65, dtype=torch.uint8)
    encode = count(lambda: agent.encode(frame)) / agent.planning.replan
    planner = agent.planner(stack, searching(agent.planning, **changes))
    found = planner_flops(planner, agent.level1)[0] - encode
    assert encode > 0 < found
    return found


def test_flops_are_linear_in_samples_and_count_all_that_acts(agent):
    """Q2."""
    for cost in ("latent", "distance"):
        priced = dataclasses.replace(agent, planning=dataclasses.replace(agent.planning, cost=cost))
        one, two = (spent(priced, samples=samples) for samples in (4, 8))
        assert two == pytest.approx(2 * one)
    one, two, four = (spent(agent, "l1+l2", samples=samples) for samples in (4, 8, 16))
    assert four - two == pytest.approx(2 * (two - one))
    plain, joint = (
        make_agent(tiny_config(level2__train="joint", level2__feedback=on)) for on in (False, True)
    )
    assert spent(joint, "l1+l2") > spent(plain, "l1+l2")
    three = make_agent(tiny_config(level1__predictors=3))
    (_, few), (_, many) = (planner_flops(a.planner("flat"), a.level1) for a in (agent, three))
    assert many == 3 * few and spent(three) > spent(agent)  # every member of an ensemble


def test_transitions_per_step_are_those_really_made(agent, trials, monkeypatch):
    """Q2."""
    few, made = trials.first(2), []
    rollout, advance = type(agent.level1).rollout, type(agent.level2).advance

    def count_rollout(self, start, actions, *a, **k):
        made.append(actions.shape[:2].numel())
        return rollout(self, start, actions, *a, **k)

    def count_advance(self, state, *a):
        made.append(len(state.h))
        return advance(self, state, *a)

    monkeypatch.setattr(type(agent.level1), "rollout", count_rollout)
    monkeypatch.setattr(type(agent.level2), "advance", count_advance)
    for method, optimiser in itertools.product(("flat", "l1+l2"), ("mppi", "cem")):
        policy = LatentPolicy(agent, method, searching(agent.planning, method=optimiser))
        monkeypatch.setattr(policy, "diagnostics", dict)
        policy.reset(few.begin("slide", 0), few.goal)  # counts by a search of its own
        made.clear()
        run_episodes(policy, few, "slide", 4, CAP, 0)
        assert sum(made) / 2 / 4 == policy.transitions_per_step


@pytest.mark.parametrize("actions", ["none", "concat", "learned"])
def test_open_loop_errors_by_horizon(actions, data):
    """HW4."""
    agent = make_agent(tiny_config(level2__actions=actions))
    batch = openloop.draw_windows(make_store(agent.level1, data, 4), 11, count=10)
    curves = openloop.open_loop(agent, batch)
    prior = "level 2, prior mean" + ", told the actions" * (actions != "none")
    assert list(curves) == ["level 1", "level 2, posterior z", prior, "stand still"]
    others = openloop.open_loop(agent, batch._replace(actions=batch.actions.flip(0)))
    alike = digest(curves[prior].errors) == digest(others[prior].errors)
    assert alike == (actions == "none")  # it was called told nothing, and told every action
    level1, posterior, prior, stay = curves.values()

    def gaps(latents, state):
        return (agent.probe(latents) - batch.positions[:, state]).norm(dim=-1).numpy()

    latent, truth = batch.latents[:, 0], batch.positions
    for step in range(11):
        latent = agent.level1.rollout(latent, batch.actions[:, [step]])[:, 1]
        np.testing.assert_allclose(level1.errors[:, step], gaps(latent, step + 1), rtol=1e-4)
    wanted = (truth[:, 3] - truth[:, 0]).norm(dim=-1).numpy()
    np.testing.assert_allclose(stay.errors[:, 2], wanted, rtol=1e-6)
    assert prior.steps.tolist() == posterior.steps.tolist() == [4, 8]
    assert digest(posterior.errors) != digest(prior.errors)
    macros = agent.level2.macro(
        agent.level2.chunk_actions(agent.level1.normalise_actions(batch.actions))
    )
    imagined = agent.level2.imagine(batch.latents[:, 0], 2, macros).predictions
    np.testing.assert_allclose(prior.errors[:, 1], gaps(imagined[:, 1], 8), rtol=1e-4)


def test_prediction_probe_error_pools_all_steps(agent, store):
    """PL6."""
    found = openloop.probe_errors(agent.level1, agent.probe, store)
    batch = openloop.draw_windows(store, 15)
    rolled = agent.level1.rollout(batch.latents[:, 0], batch.actions)
    gap = (agent.probe(rolled) - batch.positions)[:, 1:].square().sum(-1).mean().sqrt().item()
    assert found == {"probe_px_predictor": pytest.approx(gap, rel=1e-5)}
