import dataclasses
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import digest, frames_of, make_agent, make_policy, refused, seeded, tiny_config, tiny_data

import hjepa_lib
from hjepa_lib.config import ConfigError, to_dict
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.compute import planner_flops
from hjepa_lib.evaluation.episodes import ClonedPolicy, LatentPolicy, run_episodes
from hjepa_lib.evaluation.openloop import wall_leak
from hjepa_lib.files import FileError, write_json
from hjepa_lib.models import checkpoint
from hjepa_lib.models.checkpoint import TrainedMacro, load_part, save_part
from hjepa_lib.planning import THREE_LEVELS, scale_samples
from hjepa_lib.planning.agent import load_agent
from hjepa_lib.planning.search import search as run_search
from hjepa_lib.runs import score, stages
from hjepa_lib.runs.keys import core_stages, key, wanted_stages
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import policies as training
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.worlds.base import trial_noise
from hjepa_lib.worlds.layout import Layout, layout_set, render
from hjepa_lib.worlds.patrolled_door import CAUGHT
from hjepa_lib.worlds.trials import load_trials
from hjepa_lib.worlds.two_rooms import TwoRooms, step


@pytest.fixture(scope="module")
def frames():
    return render(torch.tensor([[15.0, 20.0], [50.0, 40.0]]), Layout.fixed(1))


@pytest.mark.parametrize("method", ["flat", "l1+l2"])
def test_plan_takes_frames_in_both_channel_orders(agent, frames, method):
    actions, plan = agent.plan(*frames, method)
    assert isinstance(actions, np.ndarray)
    assert plan.actions.shape == (1, 5, 2)
    np.testing.assert_array_equal(actions, plan.actions[0, : agent.planning.replan].numpy())
    last = frames.permute(0, 2, 3, 1)
    for pair in (last, frames.numpy(), last.numpy()):
        np.testing.assert_array_equal(agent.plan(*pair, method)[0], actions)
    assert not np.array_equal(agent.plan(*frames.flip(0), method)[0], actions)


def test_bad_frames_and_what_was_not_trained_are_one_sentence(agent, frames):
    for wrong, message in (
        (np.zeros((65, 65, 3), np.uint8), r"got \(65, 65, 3"),
        (np.zeros((1, 2, 65, 65), np.uint8), r"got \(1, 2, 65, 65\)"),
        (np.zeros((2, 65, 65), np.float32), "got torch.float32"),
    ):
        for pair in ((wrong, frames[1]), (frames[0], wrong)):
            refused(ValueError, message, agent.plan, *pair)
    for lacking, method, message in (
        ({}, "mppi", "must be one of .* got 'mppi'"),
        ({"level2": None}, "l1+l2", "needs a trained level 2"),
        ({}, THREE_LEVELS, "needs a trained level 3"),
        ({"distance": None}, "flat", "needs a trained distance head"),
    ):
        refused(ConfigError, message, dataclasses.replace(agent, **lacking).plan, *frames, method)
    latent = dataclasses.replace(agent.planning, cost="latent")
    dataclasses.replace(agent, distance=None, planning=latent).plan(*frames)


def test_costs_of_places(agent, frames):
    rendered = render(torch.rand(12, 2) * 20 + 10, Layout.fixed(1))
    latents, goal = agent.encode(rendered), agent.encode(frames[1:])
    for cost, wanted in (
        ("latent", (latents - goal).square().mean(-1)),
        ("distance", agent.distance(latents, goal)),
    ):
        found = agent.cost_to(frames[1], cost)(latents)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def store_agent(agent, folder):
    for part in (agent.level1, agent.distance, agent.probe):
        checkpoint.save_part(folder / "l1", part)
    TrainedMacro(agent.level2, agent.reach, agent.box).save(folder / "l2")
    return folder / "l1", folder / "l2"


def load(l1, l2, agent):
    return load_agent(l1, l2, agent.planning, agent.seed, "fp32", "cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"level2__actions": "learned"},
        {"level2__train": "joint", "level2__conditioning": True},
        {"level2__latent": "categorical"},
    ],
    ids=str,
)
def test_a_reloaded_agent_plans_the_same(changes, frames, tmp_path):
    """EB4, EB7, PL5."""
    agent = make_agent(tiny_config(**changes))
    loaded = load(*store_agent(agent, tmp_path), agent)
    assert loaded.reach == agent.reach
    for method in ("flat", "l1+l2"):
        found, wanted = loaded.plan(*frames, method)[0], agent.plan(*frames, method)[0]
        np.testing.assert_array_equal(found, wanted)
    assert torch.equal(loaded.probe(agent.encode(frames)), agent.probe(agent.encode(frames)))
    for module in (loaded.level1, loaded.level2, loaded.distance, loaded.probe):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_levels_that_do_not_fit_are_refused(agent, tmp_path):
    """I3."""
    l1, l2 = store_agent(agent, tmp_path)
    other, _ = store_agent(make_agent(tiny_config(level1__latent_dim=20)), tmp_path / "wider")
    refused(FileError, "latents of width 16, .* makes 20", load, other, l2, agent)
    refused(FileError, "does not describe a level1 model", load, l2, l1, agent)
    own, foreign = (
        checkpoint.fingerprint(one.level1) for one in (agent, make_agent(tiny_config(), seed=5))
    )
    for trained_on in (own, "", foreign):
        trained = (agent.level2, agent.reach, agent.box)
        TrainedMacro(*trained, trained_on).save(l2)
        if trained_on != foreign:
            assert load(l1, l2, agent).level2 is not None
    refused(FileError, r"level 2 in .*l2 was trained on another level 1", load, l1, l2, agent)
    TrainedMacro(*trained, own).save(l2)
    assert load(l1, None, agent).level2 is None
    (l1 / "distance.json").unlink()
    assert load(l1, l2, agent).distance is None
    (l1 / "probe.safetensors").unlink()
    refused(FileError, r"cannot read .*probe\.safetensors", load, l1, l2, agent)


def test_load_a_run_without_its_data(trained, root, frames):
    """PL5, README."""
    shutil.copytree(trained, root / "trained")
    (root / "latest").write_text("trained\n")
    shutil.rmtree(root / "trained" / "data")
    agent = hjepa_lib.load()
    actions, _ = agent.plan(*frames)
    assert actions.shape == (2, 2)
    np.testing.assert_array_equal(hjepa_lib.load("trained").plan(*frames)[0], actions)
    assert agent.plan(*frames, "l1+l2")[1].macro is not None
    assert agent.planning == Run.open("trained").config.planning


@pytest.mark.parametrize("method", ["flat", "graph"])
def test_the_committed_agent_of_mazes_plans_with_its_graph(method):
    agent, config = hjepa_lib.load("pretrained-maze"), Run.named("pretrained-maze").config
    assert agent.planning.cost == "graph" and agent.level2 is not None
    case = Case.of(config, method, "graph", trials=1)
    assert ("ahead" in case.settings, case.stages) == (method == "graph", ("l1",))
    world = case.tasks.begin(case.dynamics, 0)
    found = [world.xy(world.position)]
    for action in agent.plan(world.render()[0], world.render(case.tasks.goal)[0], method)[0]:
        found.append(world.xy(world.step(torch.as_tensor(action)[None].float())))
    left = [world.oracle_length(place, case.tasks.goal).item() for place in (found[0], found[-1])]
    assert left[1] < left[0] - 0.9 * (len(found) - 1) * case.planning.action_cap  # px of the way


@pytest.mark.parametrize(("method", "protocol"), [("flat", "p2_seen"), ("l1+l2", "p1")])
def test_a_closed_loop_plays_the_episodes_of_the_table(trained, tmp_path, method, protocol):
    """I14."""
    shutil.copytree(trained, tmp_path / "run")
    run = Run.at(tmp_path / "run")
    changes = {"evaluation.protocol": protocol, "planning.action_cap": 0.0}
    config = to_dict(run.config.override(changes))
    write_json(run.path / "manifest.json", run.manifest | {"config": config})
    run = Run.at(run.path)
    case, agent = Case.of(run.config, method, "distance"), stages.load_run(run)
    cap = case.planning.action_cap
    assert agent.planning.action_cap == cap
    policy = LatentPolicy(agent, method, case.planning)
    played = run_episodes(policy, case.tasks, case.dynamics, case.steps, cap, case.seed)
    for trial in range(2):
        task = case.tasks.pick([trial])
        world = task.begin(case.dynamics, case.seed)
        control = agent.controller(world.render(task.goal)[0], method, trial=trial)
        actions = []
        while len(actions) < case.steps:
            for action in control.act(world.render()[0].movedim(0, -1).numpy()):
                world.step(torch.as_tensor(action)[None])
                actions.append(action)
        np.testing.assert_allclose(np.stack(actions), played.actions[trial], atol=5e-3)


ON = {"level3__enabled": True}
NEAR = 0.8


def with_near(planner, goal, latent):
    """Sets each level's `reach` so that half of the trials are near."""
    here = planner.geometry.between(planner.geometry.embed(latent), planner.geometry.embed(goal))
    for layer, share in zip(planner.levels[1:], (0.4, 0.7), strict=False):
        layer.reach = float(here.quantile(share)) / NEAR
    return planner


def search(planner, number, at, latent, target, warm):
    level = planner.levels[number - 1]
    return run_search(
        lambda plans: level.costs(latent, plans, target),
        level.project, warm, level.config,
        lambda draw, shape: trial_noise(planner.seed, range(5), at, shape, number, draw),
    ).plan  # fmt: skip


def by_hand(planner, latents, goal, executed, replan):
    """Actions of levels on clocks of their own, and who aims at the goal itself."""
    geometry, count = planner.geometry, len(planner.levels)
    embedded, at, found = geometry.embed(goal), 0, []
    close = torch.ones(5, dtype=torch.bool)
    nominal, path = [None] * count, [None] * count
    since_plan, since_step = [0] * count, [0] * count
    for latent, steps in zip(latents, executed, strict=True):
        at, target = at + steps, embedded
        for one in reversed(range(count)):
            level = planner.levels[one]
            since_plan[one] += steps
            since_step[one] += steps
            if nominal[one] is None or since_plan[one] >= replan[one]:
                passed, since_step[one] = divmod(since_step[one], level.stride)
                warm = torch.zeros(len(latent), level.config.horizon, level.plan_dim)
                if nominal[one] is not None:
                    kept = nominal[one][:, passed:]
                    warm[:, : kept.shape[1]] = kept
                nominal[one] = search(planner, one + 1, at, latent, target, warm)
                since_plan[one] = 0
                path[one] = level.imagine(latent, nominal[one]) if one else None
            if one:
                due = min(since_plan[one] // level.stride, path[one].shape[1] - 1)
                away = geometry.between(geometry.embed(latent), embedded)
                close = away <= NEAR * planner.levels[one].reach
                target = torch.where(close[:, None], embedded, geometry.embed(path[one][:, due]))
        found.append((nominal[0], close))
    return map(torch.stack, zip(*found, strict=True))


@pytest.mark.parametrize("cost", ["latent", "distance"])
@pytest.mark.parametrize("replan", [3, 16, 40])
@pytest.mark.parametrize("method", ["flat", "l1+l2", THREE_LEVELS])
def test_a_stack_equals_the_written_out_planner_bit_for_bit(method, replan, cost):
    """PL3."""
    planning = {"hierarchy__replan": replan, "hierarchy__near": NEAR, "level3__replan": 6}
    planning = {f"planning__{key}": value for key, value in planning.items()}
    config = tiny_config(**ON, **planning, planning__cost=cost, planning__replan=1)
    latents, goal = torch.randn(9, 5, 16, generator=seeded(4)), torch.randn(5, 16)
    executed = (0, 2, 2, 1, 3, 2, 2, 4, 2)
    planner = with_near(make_agent(config).planner(method), goal, latents[0])
    wanted, near = by_hand(planner, latents, goal, executed, (0, replan, 6))
    pairs = list(zip(latents, executed, strict=True))
    plans = [planner.plan(latent, goal, steps) for latent, steps in pairs]
    assert torch.equal(torch.stack([plan.actions for plan in plans]), wanted)
    assert torch.equal(torch.stack([plan.near for plan in plans]), near)
    assert near.all() == (method == "flat") == (plans[0].macro is None)
    planner.reset()
    assert torch.equal(planner.plan(latents[0], goal, 0).actions, wanted[0])


@pytest.mark.parametrize("control", ["zero", "shuffle", "perturb", "untrained"])
def test_controls_act_on_level2_alone(control):
    plans = {}
    start, goal = torch.randn(2, 6, 16, generator=seeded(3))
    for name in ("none", control):
        agent = make_agent(tiny_config(**ON, planning__hierarchy__control=name))
        plans[name] = agent.planner(THREE_LEVELS).plan(start, goal, 0)
    assert not torch.equal(plans[control].actions, plans["none"].actions)
    assert torch.equal(plans[control].above[1].subgoal, plans["none"].above[1].subgoal)


def test_compute_counts_every_level_at_its_own_interval():
    planning = {"planning__hierarchy__replan": 4, "planning__level3__replan": 6}
    agent = make_agent(tiny_config(**ON, **planning, planning__cost="latent"))
    counted = {
        name: planner_flops(agent.planner(name), agent.level1) for name in ("l1+l2", THREE_LEVELS)
    }
    extra = [three - two for two, three in zip(*counted.values(), strict=True)]
    assert extra[1] == (8 * 2 + 1) * 3 / 6  # level 3 is due at steps 6, 12, ...
    rssm = agent.level3.model
    weights = sum(
        p.numel() for m in (rssm.decoder, rssm.prior_head) for p in m.parameters() if p.ndim > 1
    )
    weights += rssm.cell.weight_ih.numel() + rssm.cell.weight_hh.numel()
    assert extra[0] == pytest.approx(extra[1] * 2 * weights, rel=0.05)
    half = scale_samples(agent.planning, 0.5)
    assert half.level3 == dataclasses.replace(agent.planning.level3, samples=4)

    third = tiny_config(**ON, level2__z_dim=5, level3__macro_steps=3).third
    assert (third.step_skip, third.macro_steps, third.z_dim) == (8, 3, 5)


@pytest.fixture(scope="module")
def deep(ws):
    path = ws.run.path
    config = ws.config.override("level3.enabled=true,evaluation.latency=false")
    write_json(path / "manifest.json", ws.run.manifest | {"config": to_dict(config)})
    before, said = {file: file.read_bytes() for file in (path / "l2").iterdir()}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "papermill", None)
        stages.train_run(lambda: Run.at(path), said.append)
    assert before == {file: file.read_bytes() for file in before}
    again = Workspace("test", Run.at(path))
    assert list(stages.train(again, "l3")) == []  # done
    return again, said


def test_c4_the_command_trains_stores_and_reloads_the_third_level(deep, frames):
    ws, said = deep
    updates = ws.config.level2.optim.updates
    assert [line.split(":")[0] for line in said if line.startswith("l")][-1] == (
        f"l3 {updates}/{updates}"
    )
    stored = checkpoint.load_macro(ws.run.path / "l3")
    assert stored.model.config == ws.config.third
    agent = stages.load_trained(ws)
    assert digest(agent.level3.model) == digest(stored.model)
    actions, _ = agent.plan(*frames, THREE_LEVELS)
    np.testing.assert_array_equal(hjepa_lib.load("trained").plan(*frames, THREE_LEVELS)[0], actions)
    assert set(score.learned(ws.config)) > {(THREE_LEVELS, "latent"), ("l1+l2", "latent")}


def test_results_of_three_levels_hold_their_settings_and_size(deep):
    ws, _ = deep
    ws.config = ws.config.override("planning.action_cap=0")
    agent = stages.load_trained(ws)
    rows = {}
    for method in ("l1+l2", THREE_LEVELS):
        rows[method] = score.play(ws, agent, Case.of(ws.config, method, "latent", trials=2)).row
    names = {method: set(row["planner"]) for method, row in rows.items()}
    added = names[THREE_LEVELS] - names["l1+l2"]
    assert {name.split(".")[0] for name in added} == {"level3"}
    extra = rows[THREE_LEVELS]["parameters"] - rows["l1+l2"]["parameters"]
    assert extra == score.count_all(agent.level3.model)
    assert rows[THREE_LEVELS]["init_plan_reach"] == 3 * 8  # logged beside level 2's plans


def policy_of(**changes):
    return make_policy(tiny_config(**{f"policies__{key}": one for key, one in changes.items()}))


def test_goals_are_later_states_of_the_same_trajectory():
    lengths = torch.tensor([2, 5, 30])
    nothing = torch.zeros(37, 2)
    data = Trajectories(nothing, nothing, lengths, torch.zeros(3, 2, dtype=torch.int16))
    now, goal, steps = training.draw_pairs(data, 4000, seeded())
    place = torch.arange(3).repeat_interleave(lengths)
    assert torch.equal(place[now], place[goal])
    assert torch.equal(steps[2000:], (goal - now)[2000:]) and not steps[:2000].any()
    assert (goal > now).all() and set(now.tolist()) == {*range(36)} - {1, 6}
    early = now == 7  # 29 later states
    for part, few in ((slice(2000), 0.17), (slice(2000, None), 0.53)):  # 5 of 29; log 6 / log 30
        assert abs(((goal - now)[part][early[part]] <= 5).float().mean() - few) < 0.15


def test_training_learns_the_way_to_the_goal(monkeypatch):
    monkeypatch.setattr(training, "VALIDATION_PAIRS", 32)
    heading = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    walk = 20 + 1.5 * heading[:, None] * torch.arange(8.0)[:, None]  # (4, 8, 2)
    actions = 1.5 * heading.repeat_interleave(8, 0)
    layout = torch.tensor([[32, 10]] * 4, dtype=torch.int16)
    data = Trajectories(walk.flatten(0, 1), actions, torch.full((4,), 8), layout)
    model = policy_of(optim__updates=60, optim__batch=32, optim__validate_every=60, optim__lr=3e-3)
    reports = list(training.train_policy(model, data, data, seed=0))
    first, last = reports[0], reports[-1]
    assert first.loss == pytest.approx(sum(first.terms.values()) / 2)
    assert max(last.validation.values()) < 0.3 * min(first.terms.values())


def test_it_is_stored_with_all_that_it_needs(tmp_path):
    model = policy_of(hidden=24)
    save_part(tmp_path, model)
    loaded = load_part(tmp_path, "policy")
    assert digest(loaded) == digest(model) and loaded.config == model.config
    now, goal = frames_of(3, 2).unbind(1)
    assert torch.equal(loaded.act(now, goal, 4), model.eval().act(now, goal, 4))
    for other in (loaded.act(now, goal), loaded.act(now, goal, 5), loaded.act(goal, now, 4)):
        assert not torch.equal(loaded.act(now, goal, 4), other)
    refused(ValueError, "frames must be uint8", loaded.act, now.float(), goal)
    (tmp_path / "policy.json").write_text("{}")
    refused(FileError, "does not describe a policy", load_part, tmp_path, "policy")


def test_it_plays_within_the_cap_and_counts_its_one_pass():
    trials = load_trials("p1", "validation", 5)
    policy = ClonedPolicy(policy_of(), 0.01, 4)  # tiny: the cap binds
    norms = np.linalg.norm(run_episodes(policy, trials, "slide", 3, 0.01, 0).actions, axis=-1)
    assert norms.max() <= 0.01 * (1 + 1e-4) and norms.min() > 0.009
    large = ClonedPolicy(policy_of(hidden=32), 1.0)
    # 18 x 16 + 16 x 16 + 16 x 2 weights against 18 x 32 + 32 x 32 + 32 x 2, two FLOPs each
    assert large.flops_per_step - policy.flops_per_step == 2 * (1664 - 576)


def test_rows_on_demand(ws):
    plain, config = tiny_config(), tiny_config(evaluation__rows="usual+gcbc+idm+hilp")
    added = ["gcbc", "idm", "hilp"]
    names = [one.name for one in wanted_stages(config)]
    assert names == [*(one.name for one in wanted_stages(plain)), "policies"]
    usual = [case.digest for case in score.cases_of(plain)]
    cases = {case.method: case for case in score.cases_of(config) if case.method in added}
    assert [one.digest for one in score.cases_of(config) if one.method not in added] == usual
    assert {name: case.stages for name, case in cases.items()} == {
        "gcbc": ("policies",), "idm": ("policies",), "hilp": ("l1", "distance"),
    }  # fmt: skip
    ws.config = config
    for found in score.find_results(ws, cases.values()):
        row = found.row
        assert row["flops_per_step"] > 0 and row["replan"] == 1 and row["parameters"] > 0
        assert set(row["weights"]) == set(cases[row["method"]].stages)
        assert (row["model_transitions_per_step"] > 0) == (row["method"] == "hilp")


def test_settings_of_a_policy_move_its_own_rows_alone():
    def digests(**changes):
        config = tiny_config(evaluation__rows="usual+gcbc+idm+hilp", **changes)
        return {f"{one.method} {one.cost}": one.digest for one in score.cases_of(config)}

    def moved(**changes):
        before = digests()
        return {name for name, now in digests(**changes).items() if now != before[name]}

    assert moved(planning__idm_steps=3) == {"idm none"}
    assert moved(planning__ahead=3) == set()
    assert moved(planning__replan=1) == {
        f"{method} {cost}" for method in ("flat", "l1+l2") for cost in score.COSTS
    }  # one step ahead there is nothing to replan
    one = Case.of(tiny_config(), "hilp", "distance")
    assert (one.planner, one.planning.flat.horizon, one.planning.replan) == ("flat", 1, 1)
    plain, other = tiny_config(), tiny_config(policies__hidden=24)
    names = [n for n, s in core_stages(plain).items() if key(s, plain) != key(s, other)]
    assert names == ["policies"]
    refused(ConfigError, "begin with usual", tiny_config, evaluation__rows="gcbc")


def test_cells_of_an_experiment_name_them():
    about = {"protocol": "p1", "trials": 2, "cost": "distance", "model": "base"}
    tree = {"name": "x", "base": {"profile": "smoke"}, "models": {"base": {}}, "defaults": about}
    cells = [
        {"name": "a", "method": "gcbc"},
        {"name": "b", "method": "idm", "grid": {"idm_steps": [4, 8]}},
        {"name": "c", "method": "hilp"},
    ]
    units = read_experiment(tree | {"cells": cells}).units
    assert [one.case.planning.idm_steps for one in units[1:3]] == [4, 8]
    assert [one.case.cost for one in units] == ["none", "none", "none", "distance"]
    with pytest.raises(ConfigError, match="cost=latent does not go with method=gcbc"):
        read_experiment(tree | {"cells": [cells[0] | {"cost": "latent"}]})


class Seer:
    seed, device = 0, torch.device("cpu")

    def __init__(self, walls):
        self.level1, self.walls = self, walls

    def encode(self, frames):
        dot, axis = frames[:, 0].float(), torch.arange(65.0)
        places = torch.stack([(dot.sum(1) * axis).sum(1), (dot.sum(2) * axis).sum(1)], 1)
        return places / dot.sum((1, 2))[:, None]

    def probe(self, latents):
        return latents

    def scene(self, frames):
        return None

    def rollout_members(self, start, pushes, scene):
        places, layout = [start], Layout.fixed(len(start))
        for push in pushes.unbind(1):
            here = places[-1]
            places.append(step(here, push, layout, "blocked") if self.walls else here + push)
        return torch.stack(places, 1)[None]


def test_the_leak_is_that_of_the_walls(monkeypatch):
    """A model without walls leaks always, one that knows them never; free pushes count apart."""
    data = tiny_data()
    blind, seer = (wall_leak(Seer(walls), data, 1.8, 600) for walls in (False, True))
    assert (blind["leak"], seer["leak"]) == (1.0, 0.0)
    assert blind["stopped"] == seer["stopped"] > 50
    # A dot seen 0.1 px aside may pass a lip that it does not pass in truth.
    assert blind["free_off"] < 0.1 and seer["free_off"] < 0.02
    held = generate("good", 900, source="patrolled_door")
    held.positions[:, CAUGHT] = 1
    assert wall_leak(Seer(False), held, 1.8, 50)["stopped"] == 0  # it is a guard that holds them
    monkeypatch.setattr(TwoRooms, "teleported", lambda _, places, pushes: places[:, 0, 0] < 32)
    right = wall_leak(Seer(False), data, 1.8, 600)  # the rest ends elsewhere, and in no wall
    assert 0 < right["stopped"] < blind["stopped"]


def test_the_leak_of_a_run_is_a_row_of_no_training(ws, monkeypatch):
    (row,) = score.leak_rows(ws, {"pushes": 64})
    assert row["pushes"] == 64 and row["world"] == "generated" and 0 <= row["leak"] <= 1
    walked, trained = [], stages.make_data(ws).positions
    monkeypatch.setattr(score, "wall_leak", lambda _, data, *rest: walked.append(data) or {})
    monkeypatch.setattr(score, "load_trained", lambda ws, names: None)
    for layouts, name in (("fixed", "fixed"), ("random", "validation")):
        other = SimpleNamespace(config=ws.config.override({"data.layouts": layouts}))
        (row,), known = score.leak_rows(other, {}), layout_set(name).tolist()
        assert row["layouts"] == name and all(one in known for one in walked[-1].layout.tolist())
        assert not (walked[-1].positions[:9, None] == trained).all(-1).any()
