"""The example's world goes through the very code that Two Rooms goes through."""

import runpy
import sys

import numpy as np
import pytest
import torch
from tiny import make_agent, seeded, tiny_config
from tiny_runs import ROOT

from hjepa_lib.config import ConfigError, profile
from hjepa_lib.data.measures import describe, motion, published
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation.episodes import OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.results import Case, collect
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import workspace
from hjepa_lib.runs.run import Run
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.worlds import Layout, TwoRooms, World
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.trials import draw_trials, world_trials

EXAMPLES = ROOT / "examples"
SOURCE = "own_world:Lake"
CAP = 1.8365


@pytest.fixture
def lake(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return find_world(SOURCE)


def on_ring(position) -> bool:
    radius = np.linalg.norm(np.asarray(position) - 32, axis=-1)
    return bool(((radius > 12 - 1e-3) & (radius < 28 + 1e-3)).all())


def layout(batch):
    return Layout.of(np.zeros((batch, 2)))


def test_oracle_walks_the_shortest_path(lake):
    world = lake(layout(300))
    start, goal = world.sample_start_goal(seeded(0))
    length = world.oracle_length(start, goal)
    position, walked = world.reset(start), torch.zeros(300)
    for _ in range(60):
        action = world.oracle_action(goal, CAP)
        assert action.norm(dim=-1).max() <= CAP * (1 + 1e-5)
        moved = world.step(action)
        walked += (moved - position).norm(dim=-1)
        position = moved
    assert torch.allclose(position, goal, atol=1e-3)
    assert (walked / length).min() > 0.995  # chords of the shore are a little shorter than the arc
    assert (walked / length).max() < 1.02
    assert (length >= (goal - start).norm(dim=-1) - 1e-3).all()


def test_own_maze_keeps_its_walls_and_its_oracle_arrives(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    maze = find_world("own_maze:Maze")
    assert len((EXAMPLES / "own_maze.py").read_text().splitlines()) <= 120
    world = maze(layout(4))
    start, goal = world.sample_start_goal(seeded(0))
    length = world.oracle_length(start, goal)
    assert ((length >= 85) & (length <= 130)).all()
    place, walked = world.reset(start), torch.zeros(4)
    for _ in range(75):
        moved = world.step(world.oracle_action(goal, CAP))
        walked += (moved - place).norm(dim=-1)
        place = moved
    assert world.reached(place, goal).all()
    assert walked / length == pytest.approx(np.ones(4), abs=0.01)
    picture = world.render()[0, 1] == 255  # the middle pixel of each wall
    closed = picture[4::8, 8:57:8].sum() + picture[8:57:8, 4::8].sum()
    assert closed == 7 * 7  # a spanning tree leaves so many of 2 * 7 * 8
    walk = [place]
    for turn in 2 * torch.pi * torch.rand(100, 4, generator=seeded(1)):
        walk.append(world.step(2.45 * torch.stack((turn.cos(), turn.sin()), -1)))
    here, there = torch.cat(walk[:-1]), torch.cat(walk[1:])
    assert world.free(there).all()
    assert (world.oracle_length(here, there) < 4).all()  # through a wall: a long way around


def test_training_sees_frames_of_the_world(lake, tmp_path):
    data = generate("good", 1000, seed=3, source=SOURCE)
    assert on_ring(data.positions)
    assert Trajectories.load(data.save(tmp_path)).world is lake
    assert generate("eb_jepa", 160, source=SOURCE).lengths.tolist() == [17] * 10
    batch = Windows(data, 5).sample(4, seeded(0))
    expected = lake(layout(4)).render(batch.positions)
    assert torch.equal(batch.frames("cpu"), expected)
    mean = Normaliser.fit(data, 0).pixel_mean[1]
    assert mean == pytest.approx(float(expected[0, 0, 1].float().mean()))  # this shore, no walls


def test_latents_and_planners_see_frames_of_the_world(lake, level1, monkeypatch):
    data = generate("good", 400, seed=3, source=SOURCE)
    store = LatentStore(level1, data, 2, "fp32")
    frames = lake(layout(len(store.positions))).render(store.positions)
    assert torch.equal(store.latents, level1.encode(frames).to(torch.bfloat16))

    class Spy(OraclePolicy):
        needs_frames, seen = True, []

        def act(self, position, frames):
            self.seen.append(frames)
            return super().act(position, frames)

    trials = world_trials(SOURCE, "test", 4)
    found = run_episodes(Spy(CAP), trials, "slide", 3, CAP, 0)
    for step, frames in enumerate(Spy.seen):
        expected = lake(layout(4)).render(torch.from_numpy(found.positions[:, step]))
        assert torch.equal(frames, expected)
    assert len(Spy.seen) == 3
    world = lake(layout(4))
    assert np.array_equal(found.oracle, world.oracle_length(trials.start, trials.goal).numpy())
    monkeypatch.setattr(lake, "step", lambda self, action: self.position * float("nan"))
    with pytest.raises(WorkbookError, match="Lake returned positions that are not finite"):
        run_episodes(OraclePolicy(CAP), trials, "slide", 3, CAP, 0)


def test_actions_may_live_in_a_box(lake, monkeypatch):
    monkeypatch.setattr(lake, "action_ball", False)
    pushes = generate("good", 1000, seed=3, source=SOURCE).actions
    assert pushes.abs().max() <= 2.45 < pushes.norm(dim=-1).max()  # up to the corners
    trials = world_trials(SOURCE, "test", 4)
    for policy in (RandomPolicy(CAP, 0), RandomPolicy(CAP, 0, persistent=True)):
        found = run_episodes(policy, trials, "slide", 5, CAP, 0)
        assert np.abs(found.actions).max(-1) == pytest.approx(np.full((4, 5), CAP))
    corner = torch.full((4, 1, 2), CAP)
    monkeypatch.setattr(RandomPolicy, "act", lambda *_: corner)
    run_episodes(policy, trials, "slide", 1, CAP, 0)
    monkeypatch.setattr(lake, "action_ball", True)
    with pytest.raises(ValueError, match="exceeds the cap"):
        run_episodes(policy, trials, "slide", 1, CAP, 0)
    agent = make_agent(tiny_config(level2__actions="concat"))
    agent.ball = False
    planner = agent.planner("l1+l2")
    for level in (planner.level1, planner.level2):
        far = torch.full((1, 2, level.plan_dim), 5.0)
        assert torch.equal(level.project(far).unique(), corner[0, 0, :1])


def test_a_world_says_what_it_is(lake):
    """DESIGN 3."""
    assert len((EXAMPLES / "own_world.py").read_text().splitlines()) < 80
    for world in (lake, TwoRooms):
        assert isinstance(world(layout(2)), World)
        frames = world(layout(2)).render(torch.full((2, 2), 20.0))
        assert tuple(frames.shape[1:]) == world.frame_shape == (2, 65, 65) and world.stacked == 1
        assert (world.action_size, world.action_cap, world.action_ball) == (2, 2.45, True)
        assert (world.state_size, world.place, world.max_steps) == (2, (0, 1), 200)
    goal = torch.tensor([[10.0, 10.0], [10.0, 10.0]])
    near = goal + torch.tensor([[1.0, 0.9], [1.0, 1.1]])
    assert lake(layout(2)).reached(near, goal).tolist() == [True, False]
    for source in ("generated", "published", "a/b.npz", "C:\\data.npz", ""):
        assert find_world(source) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_module:Lake", "No module named 'no_such_module'"),
        ("own_world:Sea", "'own_world' has no attribute 'Sea'"),
        ("own_world:CENTRE", "CENTRE must extend hjepa_lib.worlds.World"),
        ("pathlib:Path", "Path must extend hjepa_lib.worlds.World"),
        ("hjepa_lib.worlds:World", "the world lacks the method sample_start_goal"),
    ],
)
def test_wrong_sources_are_one_sentence(lake, source, message):
    with pytest.raises(ConfigError, match=message) as caught:
        find_world(source)
    assert "\n" not in str(caught.value)


def test_what_an_own_world_cannot_do_is_refused(lake, monkeypatch):
    settings = {"data__source": SOURCE, "evaluation__protocol": "p2_heldout"}
    for attempt, message in (
        (lambda: generate("no_crossing", 100, source=SOURCE), "no_crossing needs two rooms"),
        (lambda: generate("good", 100, "random", source=SOURCE), "one layout"),
        (lambda: Case.of(tiny_config(**settings), "oracle"), "p2_heldout is of Two Rooms"),
        (lambda: draw_trials(lake, "test", "far"), "Lake has no task_set 'far': there is none"),
        (lambda: tiny_config(data__source="lake"), "source must be one of generated, .*'lake'"),
        (lambda: world_trials(SOURCE, "test", 501), "500 trials"),
        (lambda: draw_trials(lake, "mine"), "split must be one of validation, test"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    data, whole = generate("good", 1000, source=SOURCE), lake.render
    monkeypatch.setattr(lake, "render", lambda self, position=None: whole(self, position)[..., :64])
    with pytest.raises(ValueError, match=r"\(256, 2, 65, 64\)"):
        Normaliser.fit(data, 0)


def test_actions_that_are_not_x_and_y_are_described(lake):
    data = generate("good", 200, source=SOURCE)
    data.actions = torch.cat([data.actions, data.actions[:, :1]], 1)
    found = describe(data)
    assert published(data) == {} != published(generate("good", 200))  # those are of Two Rooms
    assert found["action_std_0"] == found["action_std_2"] > 0 and "action_std_x" not in found
    moves = torch.cat([data.one(row)[0].diff(dim=0) for row in range(data.count)])
    assert torch.allclose(motion(data).steps, moves.norm(dim=-1))


def test_trials_are_the_worlds_own(lake):
    five, ten = (world_trials(SOURCE, "test", n) for n in (5, 10))
    assert torch.equal(five.goal, ten.goal[:5])
    assert five.sha256 == ten.sha256 != draw_trials(lake, "validation").sha256


def test_example_trains_plans_and_compares(lake, root, short_probe, monkeypatch, capsys):
    """The very script, with less data, training and trials than its `--smoke` has."""
    small = "data.transitions=3000,level1.optim.updates=20,level1.optim.validate_every=20,"
    small += "level1.refine_updates=20,distance.trajectories=30,evaluation.trials=2,"
    small += "evaluation.latency=false"
    start = workspace.start
    monkeypatch.setattr(
        workspace, "start", lambda *own, overrides: start(*own, overrides=f"{overrides},{small}")
    )
    monkeypatch.setattr(sys, "argv", ["own_world.py", "--smoke"])
    monkeypatch.setenv("HJEPA_HEADLESS", "1")
    runpy.run_path(str(EXAMPLES / "own_world.py"), run_name="__main__")
    run = Run.open()
    assert all(run.done(stage) for stage in ("data", "l1", "distance", "l2"))
    run.require(profile("smoke").override(f"data.source={SOURCE},data.dynamics=slide,{small}"))
    rows = {(row["method"], row["cost"]): row for row in collect(run.path / "results")}
    learned = {
        (method, cost) for method in ("flat", "l1+l2") for cost in ("latent", "distance", "graph")
    }
    floors = {(method, "none") for method in ("random", "random-persistent", "oracle")}
    assert set(rows) == learned | floors
    assert rows["oracle", "none"]["success_rate"] == 1
    assert rows["oracle", "none"]["path_efficiency"] == pytest.approx(1, abs=0.01)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for (method, cost), row in rows.items():
        (line,) = (words for words in printed if words[1:3] == [method, cost])
        low, high = (float(word.strip("[],")) for word in line[5:7])
        assert int(line[3]) == row["n"] == 2
        assert [low, high] == pytest.approx(row["ci95"], abs=1e-5)
        assert row["dynamics"] == "slide"
        assert np.isnan(row["cross_wall_rate"])  # undefined: there is no wall
    for path in (run.path / "results").glob("*.npz"):
        with np.load(path) as result:
            assert on_ring(result["positions"])
            assert on_ring(result["goal"])
