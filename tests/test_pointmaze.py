"""OGBench's PointMaze: its own environment judges, and ours draws."""

import sys
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch
from tiny import seeded

from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation.episodes import OraclePolicy, run_episodes
from hjepa_lib.evaluation.metrics import per_trial
from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds import Layout, point_maps
from hjepa_lib.worlds.pointmaze import (
    GiantStitch,
    LargeNavigate,
    LargeStitch,
    MediumNavigate,
    MediumStitch,
    PointMaze,
    TeleportNavigate,
)
from hjepa_lib.worlds.trials import draw_trials, world_trials

real = pytest.mark.skipif(find_spec("ogbench") is None, reason="needs the extra `worlds`")


def begin(world, places, **named):
    found = world(Layout.of(np.zeros((len(places), 2))), **named)
    found.reset(torch.tensor(places))
    return found


def px(cell):
    """The centre of a cell."""
    return [cell[1] * 8 + 3.5, cell[0] * 8 + 3.5]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"maze": "huge", "recipe": "stitch"}, "maze must be one of medium, .*'huge'"),
        ({"maze": "giant", "recipe": "explore"}, "recipe must be one of navigate, stitch"),
        ({"maze": "giant"}, "recipe must be one of navigate, stitch; got None"),
        ({"maze": "giant", "recipe": "stitch", "repeat": 3}, "repeat must divide 200, got 3"),
        ({"maze": "giant", "recipe": "stitch", "repeat": 0}, "repeat must divide 200, got 0"),
    ],
)
def test_what_no_world_can_be_is_one_sentence(named, message):
    with pytest.raises(WorkbookError, match=message):
        type("Mine", (PointMaze,), named)


def test_without_the_package_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(WorkbookError, match="ogbench is not installed: pip install"):
        point_maps.environment.__wrapped__("medium")


@real
def test_a_world_goes_where_the_environment_goes_and_ends_where_it_ends():
    goals = torch.tensor([px((1, 2)), px((1, 6))])
    drift = np.array([[[0.4, 0]], [[0, 0.3]]])
    push = (drift + np.random.default_rng(0).uniform(-1, 1, (2, 30, 2))).clip(-1, 1)
    world = begin(MediumNavigate, [px((1, 1)), px((2, 5))])
    world.goal = goals
    states = [world.step(torch.from_numpy(2 * push[:, step]).float()) for step in range(30)]
    arrived = 0
    for row in range(2):
        env = gymnasium.make("pointmaze-medium-v0")
        env.reset(options={"task_id": 1})
        env.unwrapped.set_goal(goal_xy=(goals[row].double().numpy() - 11.5) / 2)
        env.unwrapped.set_xy(np.array([[0.0, 0.0], [16.0, 4.0]])[row])
        ended = False
        for step in range(30):
            for _ in range(5):
                if not ended:
                    xy, _, ended, *_ = env.step(np.float32(push[row, step]).astype(float))
            assert torch.allclose(states[step][row], torch.tensor(xy * 2 + 11.5).float(), atol=1e-3)
            assert world.reached(states[step], goals)[row] == ended
        arrived += ended
    assert arrived == 1 and world.arrived.sum() == 1


@real
def test_success_is_read_between_the_steps_of_an_action():
    goal = [px((1, 1))[0] + 4.1, px((1, 1))[1] + 1.9]  # met for some of the steps only
    world = begin(LargeStitch, [px((1, 1))] * 2)
    world.goal = torch.tensor([goal, px((7, 1))])
    for _ in range(4):
        state = world.step(torch.tensor([[2.0, 0.0]] * 2))
    assert world.reached(state, world.goal).tolist() == world.arrived.tolist() == [True, False]
    assert state[1, 0] - state[0, 0] > 3  # who arrived stands still


@real
def test_a_teleporter_is_the_same_alone_and_in_a_batch():
    start, push = [px((4, 6))[0], px((3, 6))[1]], torch.tensor([[0.0, 2.0]])

    def play(rows, seed=0):
        world = begin(TeleportNavigate, [start] * len(rows), seed=seed)
        world.rows = rows
        states = [world.position, *(world.step(push.expand(len(rows), 2)) for _ in range(4))]
        return torch.stack(states, 1)

    np.random.seed(5)
    together = play(range(20))
    assert np.random.randint(10**6) == np.random.RandomState(5).randint(10**6)
    assert torch.equal(play([7])[0], together[7])
    assert len((together[:, -1] / 8).floor().unique(dim=0)) == 3  # each exit is drawn
    assert not torch.equal(play(range(20), seed=1), together)
    together, actions = together.numpy(), push.expand(20, 4, 2).numpy()
    world = begin(TeleportNavigate, [px((1, 1))])
    assert world.teleported(together, actions).all()
    assert not world.teleported(together[:, :2], actions[:, :1]).any()
    states = torch.stack([world.position, *(world.step(-push.abs()) for _ in range(4))], 1).numpy()
    assert not world.teleported(states, -np.abs(actions[:1])).any()  # pushed against the border
    assert begin(LargeStitch, [px((1, 1))]).teleported(states, actions[:1]) is None


@real
def test_frames_show_dot_walls_and_teleporters():
    world = begin(TeleportNavigate, [px((1, 1)), px((7, 3))])
    frames = world.render()
    assert frames.shape == (2, 3, 72, 96) and frames.dtype == torch.uint8
    walls = point_maps.closed_cells("teleport")
    assert np.array_equal(frames[0, 1, ::8, ::8].numpy() == 255, walls)
    assert np.array_equal(frames[1, 1, 7::8, 7::8].numpy() == 255, walls)
    assert frames[:, 0].amax((0, 2)).nonzero().max() == 63  # a dot reaches 4 px, to 59.5 + 4
    assert frames[0, 2, 8 * 4 + 4, 8 * 6 + 4] == 255 and frames[0, 2, 8 + 4, 8 * 7 + 4] == 128
    assert torch.equal(frames[0, 1:], frames[1, 1:])
    assert world.render(torch.zeros(2, 3, 2)).shape == (2, 3, 3, 72, 96)
    assert begin(GiantStitch, [px((1, 1))]).render().shape == (1, 2, 96, 128)


@real
@pytest.mark.parametrize("world", [MediumStitch, LargeStitch, GiantStitch, TeleportNavigate])
def test_committed_tasks_are_the_environments_and_validation_has_others(world):
    env = point_maps.environment(world.maze)
    pairs = {}
    for split in ("test", "validation"):
        source = f"pointmaze_{world.maze}_{world.recipe}"
        trials, drawn = world_trials(source, split, 250), draw_trials(world, split)
        assert trials.name == f"pointmaze_{world.maze}_{split}"
        assert torch.allclose(drawn.start, trials.start) and torch.allclose(drawn.goal, trials.goal)
        ends = torch.stack((trials.start, trials.goal), 1).numpy()  # (250, 2, 2)
        cells = np.floor((ends[..., ::-1] + 0.5) / 8).astype(int)
        assert np.abs(ends - (8 * cells[..., ::-1] + 3.5)).max() <= 2
        assert (cells.reshape(50, 5, 4) == cells[:5].reshape(5, 4)).all()
        assert len(np.unique(ends[:, 0], axis=0)) == 250
        pairs[split] = cells[:5].tolist()
    assert pairs["test"] == [[[*i["init_ij"]], [*i["goal_ij"]]] for i in env.task_infos]
    known = pairs["test"] + [pair[::-1] for pair in pairs["test"]]
    assert not any(pair in known for pair in pairs["validation"])


@real
def test_the_oracle_walks_around_walls_and_teleporters():
    for world in (MediumNavigate, TeleportNavigate):
        trials = draw_trials(world, "test").first(5)
        found = run_episodes(OraclePolicy(2.0), trials, "", 100, 2.0, 0)
        columns = per_trial(found, "own")
        assert np.isnan(columns["invalid_route"]).all()
        assert columns["success"].all()
        assert (found.teleported is None) == (world is MediumNavigate)
        assert not np.any(found.teleported)
        assert columns["path_efficiency"].min() > 0.95
        assert (found.oracle > np.linalg.norm(found.positions[:, 0] - found.goal, axis=-1)).all()
    closed = begin(TeleportNavigate, [px((1, 7))])
    assert closed.oracle_length(closed.position, trials.goal[:1]).isinf()


@real
@pytest.mark.parametrize("world", [LargeNavigate, MediumStitch])
def test_data_are_episodes_of_the_recipe(world):
    per = {"navigate": 200, "stitch": 40}[world.recipe]
    source = f"pointmaze_{world.maze}_{world.recipe}"
    data = generate("good", 3 * per + 7, seed=3, source=source)
    assert data.transitions == 3 * per + 7
    assert data.lengths.tolist() == [per + 1] * 3 + [8]
    assert data.world is world
    assert data.hash() == generate("good", 3 * per + 7, seed=3, source=source).hash()
    assert data.hash() != generate("good", 3 * per + 7, seed=4, source=source).hash()
    positions, actions = data.one(1)
    assert (actions.abs() <= 2).all()
    again = begin(world, positions[:1].tolist())
    walked = torch.cat([again.step(action[None]) for action in actions])
    assert torch.allclose(walked, positions[1:], atol=0.02)  # contacts remember a little
    span = (positions.amax(0) - positions.amin(0)).sum()
    assert span > 60 if world.recipe == "navigate" else span < 40  # 4 cells of 8 px, and about
    batch = Windows(data, 5).sample(3, seeded(0))
    assert batch.frames("cpu").shape == (3, 5, *world.frame_shape)
    assert len(Normaliser.fit(data, 0).pixel_mean) == 2
