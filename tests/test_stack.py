"""A stack of levels: one planner for any number of them, and the third level from end to end."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from tiny import digest, make_agent, make_level3, seeded, tiny_config

import hjepa_lib
from hjepa_lib.config import Config, ConfigError, to_dict
from hjepa_lib.evaluation.compute import planner_flops
from hjepa_lib.evaluation.episodes import LatentPolicy, run_episodes
from hjepa_lib.evaluation.results import Case
from hjepa_lib.files import FileError, write_json
from hjepa_lib.models import checkpoint
from hjepa_lib.planning import THREE_LEVELS, scale_samples
from hjepa_lib.planning.agent import load_agent
from hjepa_lib.planning.search import search as run_search
from hjepa_lib.planning.search import shift_plan
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.score import learned
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.worlds.base import trial_noise
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.rendering import render
from hjepa_lib.worlds.trials import load_trials

ON = {"level3__enabled": True}


def with_near(planner, goal, latent):
    """Sets each level's `reach` so that half of the trials are near."""
    here = planner.geometry.between(planner.geometry.embed(latent), planner.geometry.embed(goal))
    for layer, share in zip(planner.layers[1:], (0.4, 0.7), strict=False):
        layer.reach = float(here.quantile(share))
    return planner


def search(planner, number, at, latent, target, warm):
    level = planner.layers[number - 1].level
    return run_search(
        lambda plans: level.costs(latent, plans, target),
        level.project, warm, level.config,
        lambda draw, shape: trial_noise(planner.seed, range(5), at, shape, number, draw),
    ).plan  # fmt: skip


def by_hand(planner, latents, goal, executed, replan):
    """Actions of a stack of levels, top-down and each on its own clock, written out."""
    geometry, count = planner.geometry, len(planner.layers)
    embedded, at, found = geometry.embed(goal), 0, []
    nominal, path = [None] * count, [None] * count
    since_plan, since_step = [0] * count, [0] * count
    for latent, steps in zip(latents, executed, strict=True):
        at, target = at + steps, embedded
        for one in reversed(range(count)):
            level = planner.layers[one].level
            since_plan[one] += steps
            since_step[one] += steps
            if nominal[one] is None or since_plan[one] >= replan[one]:
                passed, since_step[one] = divmod(since_step[one], level.stride)
                warm = torch.zeros(len(latent), level.config.horizon, level.plan_dim)
                warm = warm if nominal[one] is None else shift_plan(nominal[one], passed)
                nominal[one] = search(planner, one + 1, at, latent, target, warm)
                since_plan[one] = 0
                path[one] = level.imagine(latent, nominal[one]) if one else None
            if one:
                due = min(since_plan[one] // level.stride, path[one].shape[1] - 1)
                away = geometry.between(geometry.embed(latent), embedded)
                close = away <= planner.layers[one].reach
                target = torch.where(close[:, None], embedded, geometry.embed(path[one][:, due]))
        found.append(nominal[0])
    return torch.stack(found)


@pytest.mark.parametrize("cost", ["latent", "distance"])
@pytest.mark.parametrize("replan", [3, 7, 40])
@pytest.mark.parametrize("method", ["flat", "l1+l2", THREE_LEVELS])
def test_a_stack_equals_the_written_out_planner_bit_for_bit(method, replan, cost):
    """PL3."""
    planning = {"planning__hierarchy__replan": replan, "planning__level3__replan": 6}
    config = tiny_config(**ON, **planning, planning__cost=cost, planning__replan=1)
    latents, goal = torch.randn(9, 5, 16, generator=seeded(4)), torch.randn(5, 16)
    executed = (0, 2, 2, 1, 3, 2, 2, 4, 2)
    planner = with_near(make_agent(config).planner(method), goal, latents[0])
    wanted = by_hand(planner, latents, goal, executed, (0, replan, 6))
    pairs = list(zip(latents, executed, strict=True))
    plans = [planner.plan(latent, goal, steps) for latent, steps in pairs]
    assert torch.equal(torch.stack([plan.actions for plan in plans]), wanted)
    assert [len(plan.above) for plan in plans] == [len(planner.layers) - 1] * 9
    planner.reset()
    assert torch.equal(planner.plan(latents[0], goal, 0).actions, wanted[0])


def test_a_third_level_that_is_off_costs_and_changes_nothing():
    config = Config()
    assert not config.level3.enabled
    assert learned(config) == learned(config.override("level2.hidden=64"))
    assert THREE_LEVELS not in {method for method, _ in learned(config)}
    agent = make_agent(tiny_config())
    assert agent.level3 is None
    with pytest.raises(ConfigError, match="'l1\\+l2\\+l3' needs a trained level 3; this run has"):
        agent.planner(THREE_LEVELS)


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
    assert scale_samples(agent.planning, 1e-9).flat.samples == 2  # a search needs two candidates


def test_episodes_log_the_third_level():
    agent = make_agent(tiny_config(**ON))
    policy = LatentPolicy(agent, THREE_LEVELS, agent.planning)
    trials = load_trials("p1", "validation", 3)
    outcome = run_episodes(policy, trials, "slide", 6, agent.planning.action_cap, 0)
    seen = outcome.seen
    assert seen["macro_xy"].shape == (3, 3, 3, 2)
    assert seen["macro3_xy"].shape == (3, 3, 3, 2)
    assert seen["subgoal3_xy"].shape == (3, 3, 2)
    np.testing.assert_array_equal(seen["macro3_xy"][:, :, 0], seen["subgoal3_xy"])
    assert (int(seen["macro_stride"]), int(seen["macro3_stride"])) == (4, 8)


def test_a_third_level_has_the_settings_of_level_2_and_its_own_clock():
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


def test_c4_the_command_trains_stores_and_reloads_the_third_level(deep):
    ws, said = deep
    updates = ws.config.level2.optim.updates
    assert [line.split(":")[0] for line in said if line.startswith("l")][-1] == (
        f"l3 {updates}/{updates}"
    )
    assert {row["stage"] for row in ws.run.records("l3")} == {"l3"}
    stored = checkpoint.load_level2(ws.run.path / "l3")
    assert stored.model.config == ws.config.third
    assert stored.reach.keys() == {"latent", "distance"}
    agent = stages.load_trained(ws)
    assert digest(agent.level3.model) == digest(stored.model)
    frames = render(torch.tensor([[15.0, 20.0], [50.0, 40.0]]), Layout.fixed(1))
    actions, plan = agent.plan(*frames, THREE_LEVELS)
    assert len(plan.above) == 2
    loaded = hjepa_lib.load("trained")
    np.testing.assert_array_equal(loaded.plan(*frames, THREE_LEVELS)[0], actions)
    assert set(learned(ws.config)) > {(THREE_LEVELS, "latent"), ("l1+l2", "latent")}


def test_results_of_three_levels_hold_their_settings_and_size(deep):
    ws, _ = deep
    ws.config = ws.config.override("planning.action_cap=0")
    agent = stages.load_trained(ws)
    rows = {}
    for method in ("l1+l2", THREE_LEVELS):
        case = Case.of(ws.config, method, "latent", trials=2)
        rows[method] = scoring.play(ws, agent, case).row
    names = {method: set(row["planner"]) for method, row in rows.items()}
    added = names[THREE_LEVELS] - names["l1+l2"]
    assert added
    assert all(name.startswith("level3.") for name in added)
    extra = rows[THREE_LEVELS]["parameters"] - rows["l1+l2"]["parameters"]
    assert extra == scoring.count_all(agent.level3.model)
    assert rows["l1+l2"]["init_plan_reach"] == 3 * 4
    assert rows[THREE_LEVELS]["init_plan_reach"] == 3 * 8
    assert "l3" in ws.run.manifest["stages"]


def test_a_third_level_for_other_latents_is_refused(deep, tmp_path):
    ws, _ = deep
    agent = make_agent(tiny_config())
    checkpoint.save_level2(
        tmp_path / "l3", make_level3(tiny_config(level1__latent_dim=20)), {}, None
    )
    with pytest.raises(FileError, match=r"level 3 in .* reads latents of width 20, level 1 .* 16"):
        load_agent(ws.run.path / "l1", None, agent.planning, 0, "fp32", "cpu", tmp_path / "l3")
