"""`hjepa_lib.load(run).plan(frame, goal_frame)` and what the agent is built from."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from tiny import make_agent, tiny_config

import hjepa_lib
from hjepa_lib.config import ConfigError, to_dict
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import LatentPolicy, run_episodes
from hjepa_lib.files import FileError, write_json
from hjepa_lib.models import checkpoint
from hjepa_lib.planning.agent import load_agent
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import load_run
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.rendering import render


@pytest.fixture(scope="module")
def frames():
    return render(torch.tensor([[15.0, 20.0], [50.0, 40.0]]), Layout.fixed(1))


@pytest.mark.parametrize("method", ["flat", "l1+l2"])
def test_plan_takes_frames_in_both_channel_orders(agent, frames, method):
    """The README's call: (k, 2) px actions within the cap, the same for arrays and tensors."""
    actions, plan = agent.plan(*frames, method)
    assert isinstance(actions, np.ndarray) and actions.shape == (agent.planning.replan, 2)
    assert plan.actions.shape == (1, 5, 2)
    np.testing.assert_array_equal(actions, plan.actions[0, : agent.planning.replan].numpy())
    last = frames.permute(0, 2, 3, 1)
    for pair in (last, frames.numpy(), last.numpy()):
        np.testing.assert_array_equal(agent.plan(*pair, method)[0], actions)
    assert not np.array_equal(agent.plan(*frames.flip(0), method)[0], actions)
    assert (plan.macro is not None) == (method == "l1+l2")


def test_bad_frames_and_what_was_not_trained_are_one_sentence(agent, frames):
    for wrong, message in (
        (np.zeros((65, 65, 3), np.uint8), r"\(65, 65, 2\) or \(2, 65, 65\) uint8, got \(65, 65, 3"),
        (np.zeros((1, 2, 65, 65), np.uint8), r"got \(1, 2, 65, 65\)"),
        (np.zeros((2, 65, 65), np.float32), r"uint8 values in \[0, 255\], got torch.float32"),
    ):
        for pair in ((wrong, frames[1]), (frames[0], wrong)):
            with pytest.raises(ValueError, match=message):
                agent.plan(*pair)
    for lacking, method, message in (
        ({}, "mppi", r"method must be one of flat, l1\+l2; got 'mppi'"),
        ({"level2": None}, "l1+l2", "needs a trained level 2; this run has none"),
        ({"distance": None}, "flat", "cost 'distance' needs a trained distance head"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(agent, **lacking).plan(*frames, method)
    latent = dataclasses.replace(agent.planning, cost="latent")
    dataclasses.replace(agent, distance=None, planning=latent).plan(*frames)


def test_costs_of_places(agent, frames):
    rendered = render(torch.rand(12, 2) * 20 + 10, Layout.fixed(1))
    latents, goal = agent.encode(rendered), agent.encode(frames[1:])
    for cost, wanted in (
        ("latent", (latents - goal).square().mean(-1)), ("distance", agent.distance(latents, goal)),
    ):  # fmt: skip
        found = agent.cost_to(frames[1], cost)(latents)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    there = agent.cost_to(frames[1], "latent")(goal)
    assert there.item() == pytest.approx(0, abs=1e-9)


def store_agent(agent, folder):
    checkpoint.save_level1(folder / "l1", agent.level1)
    checkpoint.save_distance(folder / "l1", agent.distance)
    checkpoint.save_probe(folder / "l1", agent.probe)
    checkpoint.save_level2(folder / "l2", agent.level2, agent.reach, agent.box)
    return folder / "l1", folder / "l2"


def load(l1, l2, agent):
    return load_agent(l1, l2, agent.planning, agent.seed, "fp32", "cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"level2__actions": "learned"},
        {"level2__train": "joint", "level2__conditioning": True},
        {"level2__latent": "categorical"},
        {"level2__latent": "fsq", "level2__levels": [3, 4]},
    ],
    ids=str,
)
def test_a_reloaded_agent_plans_the_same(changes, frames, tmp_path):
    """EB4, EB7, PL5: everything that planning needs is in the two folders; no data set is."""
    agent = make_agent(tiny_config(**changes))
    loaded = load(*store_agent(agent, tmp_path), agent)
    assert loaded.level1.normaliser == agent.level1.normaliser
    assert loaded.reach == agent.reach
    for method in ("flat", "l1+l2"):
        found, wanted = loaded.plan(*frames, method)[0], agent.plan(*frames, method)[0]
        np.testing.assert_array_equal(found, wanted)
    assert torch.equal(loaded.probe(agent.encode(frames)), agent.probe(agent.encode(frames)))
    for module in (loaded.level1, loaded.level2, loaded.distance, loaded.probe):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_levels_that_do_not_fit_are_refused(agent, tmp_path):
    """I3: the same widths do not make one agent of two trainings."""
    l1, l2 = store_agent(agent, tmp_path)
    wider = make_agent(tiny_config(level1__latent_dim=20))
    other, _ = store_agent(wider, tmp_path / "wider")
    with pytest.raises(FileError, match=r"reads latents of width 16, level 1 in .* makes 20"):
        load(other, l2, agent)
    with pytest.raises(FileError, match="does not describe a level1 model"):
        load(l2, l1, agent)
    own, foreign = (
        checkpoint.fingerprint(one.level1) for one in (agent, make_agent(tiny_config(), seed=5))
    )
    for trained_on in (own, "", foreign):
        trained = (agent.level2, agent.reach, agent.box)
        checkpoint.save_level2(l2, *trained, level1=trained_on)
        if trained_on != foreign:
            assert load(l1, l2, agent).level2 is not None
    with pytest.raises(FileError, match=r"level 2 in .*l2 was trained on another level 1"):
        load(l1, l2, agent)
    checkpoint.save_level2(l2, *trained, level1=own)
    assert load(l1, None, agent).level2 is None
    (l1 / "distance.json").unlink()
    assert load(l1, l2, agent).distance is None
    (l1 / "probe.safetensors").unlink()
    with pytest.raises(FileError, match=r"cannot read .*probe\.safetensors"):
        load(l1, l2, agent)


def test_load_a_run_without_its_data(ws, frames):
    """PL5, README: the latest run or a named one plans without data set and training code."""
    shutil.rmtree(ws.run.path / "data")
    agent = hjepa_lib.load()
    actions, _ = agent.plan(*frames)
    assert actions.shape == (2, 2)
    np.testing.assert_array_equal(hjepa_lib.load("trained").plan(*frames)[0], actions)
    assert agent.plan(*frames, "l1+l2")[1].macro is not None
    assert agent.planning == ws.config.planning
    with pytest.raises(ValueError, match="run 'absent' does not exist"):
        hjepa_lib.load("absent")


@pytest.mark.parametrize(("method", "protocol"), [("flat", "p2_seen"), ("l1+l2", "p1")])
def test_a_closed_loop_plays_the_episodes_of_the_table(trained, tmp_path, method, protocol):
    """I14: a loop through `controller` has the cap, the noise, the warm starts and the clocks."""
    shutil.copytree(trained, tmp_path / "run")
    run = Run.at(tmp_path / "run")
    changes = {"evaluation.protocol": protocol, "planning.action_cap": 0.0}
    config = to_dict(run.config.override(changes))
    write_json(run.path / "manifest.json", run.manifest | {"config": config})
    run = Run.at(run.path)
    case, agent = Case.of(run.config, method, "distance"), load_run(run)
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
        assert np.linalg.norm(np.stack(actions), axis=-1).max() <= cap * (1 + 1e-5)
