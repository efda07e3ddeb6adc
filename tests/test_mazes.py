import hashlib
import runpy
import sys

import numpy as np
import pytest
import torch
from tiny import make_agent, refused, seeded, tiny_config
from tiny_runs import ROOT

from hjepa_lib.config import ConfigError
from hjepa_lib.data.measures import describe, motion, published
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.published import acquire
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import LatentPolicy, OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.results import load_result, save_result
from hjepa_lib.files import FileError, WorkbookError
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.runs import report, workspace
from hjepa_lib.runs.run import Run
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.probes import train_probe
from hjepa_lib.worlds import Layout, TwoRooms, World
from hjepa_lib.worlds.base import find_world
from hjepa_lib.worlds.boxes import Graph, grid_boxes, inside, slide, visible
from hjepa_lib.worlds.mazes import BINS, NUMBERS, Maze, VelocityMaze, maze_map, middle
from hjepa_lib.worlds.trials import draw_trials, load_trials, read_trials, save_trials

BOTH = pytest.mark.parametrize("source", ["maze", "maze_velocity"])
ROOM = grid_boxes(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], bool), 10, 2)


def rows(*numbers):
    return Layout.of([(number, 0) for number in numbers])


def grid_steps(closed, start):
    found, ring = {start: 0}, [start]
    while ring:
        ring = [
            (i + di, j + dj) for i, j in ring for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if 0 <= i + di < 7 and 0 <= j + dj < 8 and not closed[i + di, j + dj]
            and found.setdefault((i + di, j + dj), found[i, j] + 1) == found[i, j] + 1
        ]  # fmt: skip
        ring = list(dict.fromkeys(ring))
    return found


def test_maps_are_what_their_lists_promise():
    maps = {name: [maze_map(number) for number in NUMBERS[name]] for name in NUMBERS}
    whole = [maze for name in ("many", "validation", "test") for maze in maps[name]]
    kinds = {maze.closed.tobytes() for maze in whole}
    assert len(kinds) == len(whole) == 500 and len(maps["train"]) == 25
    assert maps["train"] == maps["many"][:25] and len(maps["test"]) >= 40
    digest = hashlib.sha256(b"".join(maze.closed.tobytes() for maze in whole)).hexdigest()
    assert digest[:16] == "e050c808be29d561"
    for maze in maps["test"]:
        reached = grid_steps(maze.closed, tuple(maze.cells[0]))
        assert [reached[tuple(cell)] for cell in maze.cells] == maze.steps[0].tolist()


def test_nothing_passes_a_wall_at_any_speed():
    boxes = torch.from_numpy(ROOM).expand(5000, -1, -1)
    wide = boxes + torch.tensor([-0.01, -0.01, 0.01, 0.01])
    place = torch.rand(5000, 2, generator=seeded(0)) * 29 + 2
    place = place[~inside(place, wide)]
    boxes, wide, turn = boxes[: len(place)], wide[: len(place)], seeded(1)
    for scale in (1.0, 6.0, 40.0):
        for _ in range(20):
            move = scale * torch.randn(place.shape, generator=turn)
            moved = slide(place, move, boxes)
            corner = torch.stack((moved[:, 0], place[:, 1]), -1)
            assert not inside(moved, boxes).any()
            legs = (torch.stack((place, corner), 1), torch.stack((corner, moved), 1))
            assert visible(*legs, boxes).all()  # along x, then along y
            wanted = place + move
            corner = torch.stack((wanted[:, 0], place[:, 1]), -1)
            legs = (torch.stack((place, corner), 1), torch.stack((corner, wanted), 1))
            free = visible(*legs, wide).all(1)  # then nothing is in its way
            full = (moved - wanted).norm(dim=-1) < 1e-4
            assert full[free].all()
            assert 0 < full.float().mean() < 1
            place = moved


def test_shortest_paths_are_exact_around_a_block():
    graph = Graph.of(ROOM, 0.02)
    assert len(graph.nodes) == 4
    start, corner, end = (torch.tensor(one) for one in ([3.0, 18.0], [11.48, 11.48], [20.0, 9.0]))
    length = (corner - start).norm() + (end - corner).norm()

    class Block(Maze):
        @classmethod
        def boxes_of(cls, row):
            return ROOM

    world = Block(rows(0))
    assert world.oracle_length(start[None], end[None])[0] == pytest.approx(float(length), abs=0.1)
    closed = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0]], bool)
    Block.boxes_of = classmethod(lambda cls, row: grid_boxes(closed, 10, 2))

    class Split(Block):
        pass

    assert Split(rows(0)).oracle_length(start[None], torch.tensor([[28.0, 5.0]]))[0] == torch.inf


@BOTH
def test_frames_show_the_dot_and_the_walls(source):
    world = find_world(source)
    assert world.observed() == (2 * world.stacked, 64, 72)
    played = world(rows(3, 7, 3))
    start, _ = played.sample_start_goal(seeded(0))
    played.reset(start)
    for _ in range(3):
        state = played.step(torch.full((3, 2), 0.5))
    frames = played.render()
    assert frames.shape == (3, *world.observed()) and frames.dtype == torch.uint8
    assert torch.equal(frames, played.render(state[:, None])[:, 0])
    closed = np.pad(np.kron(maze_map(3).closed, np.ones((8, 8), bool)), 4, constant_values=True)
    assert ((frames[0, 1].numpy() == 255) == closed).all()
    assert len(world.boxes_of((3, 0))) < maze_map(3).closed.sum() + 4  # runs are joined
    for channel, columns in ((-2, [0, 1]), (0, [-2, -1])):
        place = frames[0, channel].double()
        mass = place / place.sum()
        y, x = mass.sum(1) @ torch.arange(64.0).double(), mass.sum(0) @ torch.arange(72.0).double()
        assert torch.stack((x, y)).float() == pytest.approx(state[0, columns], abs=0.1)


@BOTH
def test_the_oracle_solves_committed_tasks(source):
    world = find_world(source)
    trials = load_trials(source, "test", 40, "d17_20")
    length = world(trials.layout).oracle_length(trials.start, trials.goal)
    cap = world.action_cap
    found = run_episodes(OraclePolicy(cap), trials, "slide", 200, cap, 0)
    assert found.reached.any(1).mean() == 1
    steps = found.reached.argmax(1)
    moved = np.linalg.norm(np.diff(found.positions, axis=1), axis=-1)
    assert (steps >= (length.numpy() - 4) / 2.45 - 1).all()
    if source == "maze":
        way = np.array([part[:step].sum() for part, step in zip(moved, steps, strict=True)])
        assert (way <= length.numpy() * 1.02).all() and (way >= length.numpy() - 4.1).all()


def test_momentum_carries_on_and_stops_at_walls():
    world, closed = VelocityMaze(rows(0)), maze_map(0).closed
    free = next((i, j) for i, j in np.ndindex(7, 6) if not closed[i, j : j + 3].any())
    world.reset(world.at_rest(middle(np.array([free]))))
    push, speeds = torch.tensor([[0.6, 0.0]]), []
    for step in range(80):
        before = world.position
        state = world.step(push if step < 2 else torch.zeros(1, 2))
        assert torch.equal(state[:, 2:], before[:, :2])
        speeds.append(float((state[:, :2] - state[:, 2:]).norm()))
    assert speeds[1] > speeds[0] and speeds[5] > 0.2 and speeds[-1] < 0.01
    for _ in range(60):
        state = world.step(push)
        assert float((state[:, :2] - state[:, 2:]).norm()) <= 2.4501
    assert torch.equal(state[:, :2], state[:, 2:])  # at a wall


@BOTH
@pytest.mark.parametrize("task_set", ["", *BINS])
def test_committed_tasks_can_be_drawn_again(source, task_set):
    world = find_world(source)
    for split, count in (("validation", 50), ("test", 200)):
        stored = load_trials(source, split, count, task_set)
        assert stored.sha256 == draw_trials(world, split, task_set).sha256
        numbers = stored.layout.wall_x.int().tolist()
        assert {*numbers} <= {*NUMBERS[split]}
        low, high = BINS.get(task_set, (5, 20))
        for number, *ends in zip(numbers, *map(world.xy, (stored.start, stored.goal)), strict=True):
            cells = [tuple(((end.flip(0) - 3.5) // 8).int().tolist()) for end in ends]
            assert low <= grid_steps(maze_map(number).closed, cells[0])[cells[1]] <= high


@BOTH
def test_data_and_training_see_the_maze(source):
    data = generate("good", 4000, "random", seed=1, source=source)
    world = data.world
    assert data.transitions == 4000
    assert data.positions.shape[1] == world.state_size
    assert {*data.layout[:, 0].tolist()} <= {*NUMBERS["train"]} and len(data.layout.unique()) > 10
    assert float(data.actions.norm(dim=-1).max()) == pytest.approx(world.action_cap, rel=1e-3)
    states, actions = data.one(3)
    played = world(data.layouts([3]))
    played.reset(states[:1])
    walked = torch.cat([played.step(action[None]) for action in actions])
    assert torch.allclose(walked, states[1:], atol=1e-4)
    config, normaliser = tiny_config().level1, Normaliser.fit(data, 0)
    model = Jepa(config, normaliser, data.frame_shape[1:])
    assert model.frame == data.frame_shape == world.observed()
    store = LatentStore(model, data, 8, "fp32")
    probe, quality = train_probe(model, store, None, seed=0)
    assert store.positions.shape[1] == probe(store.latents.float()).shape[1] == 2
    assert set(quality) == {"probe_px_encoder"}  # the number of a map is nothing to read


@BOTH
def test_planners_play_and_results_read_back(source, tmp_path):
    config = tiny_config(data__source=source, planning__action_cap=0.0)
    case = Case.of(config, "flat", "latent", trials=2)
    world = find_world(source)
    assert case.planning.action_cap == world.action_cap and case.protocol == "own"
    assert Case.of(config, "flat", "latent", trials=2, dynamics="blocked") == case
    assert case.header["dynamics"] == "slide"  # what dots of boxes do, whatever is asked for
    far = Case.of(config.override("evaluation.task_set=d17_20"), "flat", "latent", trials=2)
    assert far.digest != case.digest and far.trials_hash != case.trials_hash
    data = generate("good", 400, "random", source=source)
    agent = make_agent(config)
    agent.level1 = Jepa(config.level1, Normaliser.fit(data, 0), data.frame_shape[1:]).eval()
    policy = LatentPolicy(agent, "l1+l2", case.planning)
    cap = world.action_cap
    for player in (policy, RandomPolicy(cap, 0, persistent=True)):
        found = run_episodes(player, case.tasks, "slide", 6, cap, 0)
    stored = load_result(save_result(tmp_path, case, found, {}))
    assert ("states" in stored.arrays) == (world.state_size > 2)
    assert set(stored.success) <= {0, 1} and np.isnan(stored.row["cross_wall_rate"])


def test_bad_input_is_one_sentence(tmp_path):
    trials = load_trials("maze", "validation", 3)
    wall = save_trials(tmp_path / "wall.npz", trials._replace(goal=torch.full((3, 2), 1.0)))
    narrow = save_trials(tmp_path / "narrow.npz", trials)
    wide = tiny_config(data__source="maze", planning__action_cap=3.0)
    for attempt, kind, message in (
        (lambda: read_trials(wall, Maze), FileError, "a start or goal lies in a wall"),
        (lambda: read_trials(narrow, VelocityMaze), FileError, r"start must be \(3, 4\)"),
        (lambda: generate("good", 100, "square", source="maze"), WorkbookError, "layouts must"),
        (lambda: load_trials("maze", "test", 5, "d1"), WorkbookError, "got 'maze_test_d1'"),
        (lambda: Case.of(wide, "oracle"), ConfigError, "3.0 is beyond the world's 2.45"),
    ):
        refused(kind, message, attempt)
    again = read_trials(narrow, Maze)
    assert torch.equal(again.start, trials.start) and torch.equal(again.goal, trials.goal)


EXAMPLES = ROOT / "examples"
SOURCE = "own_world:Lake"
CAP = 1.8365


@pytest.fixture
def lake(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return find_world(SOURCE)


def layout(batch):
    return Layout.of(np.zeros((batch, 2)))


def walk_of_oracle(world, steps):
    """Where the oracle of B own tasks ends, their goals, the shortest ways, its own."""
    start, goal = world.sample_start_goal(seeded(0))
    place, walked = world.reset(start), torch.zeros(len(start))
    for _ in range(steps):
        action = world.oracle_action(goal, CAP)
        assert action.norm(dim=-1).max() <= CAP * (1 + 1e-5)
        moved = world.step(action)
        walked += (moved - place).norm(dim=-1)
        place = moved
    return place, goal, world.oracle_length(start, goal), walked


def test_oracle_walks_the_shortest_path(lake):
    place, goal, length, walked = walk_of_oracle(lake(layout(300)), 60)
    assert torch.allclose(place, goal, atol=1e-3)
    assert (walked / length).min() > 0.995  # chords of the shore are a little shorter than the arc
    assert (walked / length).max() < 1.02


def test_own_maze_keeps_its_walls_and_its_oracle_arrives(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    maze = find_world("own_maze:Maze")
    assert len((EXAMPLES / "own_maze.py").read_text().splitlines()) <= 120
    world = maze(layout(4))
    place, goal, length, walked = walk_of_oracle(world, 75)
    assert ((length >= 85) & (length <= 130)).all()
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
    radius = (data.positions - 32).norm(dim=-1)
    assert ((radius > 12 - 1e-3) & (radius < 28 + 1e-3)).all()
    assert Trajectories.load(data.save(tmp_path)).world is lake
    assert generate("eb_jepa", 160, source=SOURCE).lengths.tolist() == [17] * 10
    batch = Windows(data, 5).sample(4, seeded(0))
    expected = lake(layout(4)).render(batch.positions)
    assert torch.equal(batch.frames("cpu"), expected)


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

    trials = load_trials(SOURCE, "test", 4)
    found = run_episodes(Spy(CAP), trials, "slide", 3, CAP, 0)
    for step, frames in enumerate(Spy.seen):
        expected = lake(layout(4)).render(torch.from_numpy(found.positions[:, step]))
        assert torch.equal(frames, expected)
    assert len(Spy.seen) == 3
    monkeypatch.setattr(lake, "step", lambda self, action: self.position * float("nan"))
    with pytest.raises(WorkbookError, match="Lake returned positions that are not finite"):
        run_episodes(OraclePolicy(CAP), trials, "slide", 3, CAP, 0)


def test_actions_may_live_in_a_box(lake, monkeypatch):
    monkeypatch.setattr(lake, "action_ball", False)
    pushes = generate("good", 1000, seed=3, source=SOURCE).actions
    assert pushes.abs().max() <= 2.45 < pushes.norm(dim=-1).max()  # up to the corners
    trials = load_trials(SOURCE, "test", 4)
    for policy in (RandomPolicy(CAP, 0), RandomPolicy(CAP, 0, persistent=True)):
        found = run_episodes(policy, trials, "slide", 5, CAP, 0)
        assert np.abs(found.actions).max(-1) == pytest.approx(np.full((4, 5), CAP))
    corner = torch.full((4, 1, 2), CAP)
    monkeypatch.setattr(RandomPolicy, "act", lambda *_: corner)
    run_episodes(policy, trials, "slide", 1, CAP, 0)
    monkeypatch.setattr(lake, "action_ball", True)
    refused(ValueError, "exceeds the cap", run_episodes, policy, trials, "slide", 1, CAP, 0)
    agent = make_agent(tiny_config(level2__actions="concat"))
    agent.ball = False
    planner = agent.planner("l1+l2")
    for level in (planner.level1, planner.level2):
        far = torch.full((1, 2, level.plan_dim), 5.0)
        assert torch.equal(level.project(far).unique(), corner[0, 0, :1])


def test_a_world_says_what_it_is(lake):
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
    for source, message in (
        ("no_such_module:Lake", "No module named 'no_such_module'"),
        ("own_world:Sea", "'own_world' has no attribute 'Sea'"),
        ("own_world:CENTRE", "CENTRE must extend"),
        ("pathlib:Path", "Path must extend"),
        ("hjepa_lib.worlds:World", "lacks the method sample_start_goal"),
    ):
        refused(ConfigError, message, find_world, source)


def test_what_an_own_world_cannot_do_is_refused(lake, monkeypatch):
    settings = {"data__source": SOURCE, "evaluation__protocol": "p2_heldout"}
    for attempt, message in (
        (lambda: generate("no_crossing", 100, source=SOURCE), "no_crossing needs two rooms"),
        (lambda: generate("good", 100, "random", source=SOURCE), "one layout"),
        (lambda: Case.of(tiny_config(**settings), "oracle"), "p2_heldout is of Two Rooms"),
        (lambda: draw_trials(lake, "test", "far"), "no task_set 'far'"),
        (lambda: tiny_config(data__source="lake"), "one of generated, .*_velocity.*'lake'"),
        (lambda: tiny_config(data__source="own-world:Lake"), "one of .*module:Class; got 'own-w"),
        (lambda: load_trials(SOURCE, "test", 501), "500 trials"),
        (lambda: draw_trials(lake, "mine"), "split must be one of"),
    ):
        refused(ValueError, message, attempt)
    monkeypatch.setattr(lake, "free", lambda self, state: state[:, 0] > 99)
    refused(FileError, "Lake: .* lies in a wall", draw_trials, lake, "test")
    data = generate("good", 1000, source=SOURCE)
    states, pushes, rows = torch.zeros(2, 5, 2), torch.zeros(2, 4, 2), torch.zeros(2, 2)
    for columns, message in (
        # no episodes; too few; of another package; none; not finite
        ((data.positions, data.actions, data.layout), "Lake.collect must return"),
        ((states, pushes, rows), "return enough states"),
        ((states.numpy(), pushes, rows), "Lake.collect must return"),
        ((states[:, :0], pushes, rows), "Lake.collect must return"),
        ((torch.zeros(9, 5, 2), torch.zeros(9, 4, 2) / 0, torch.zeros(9, 2)), "not finite"),
    ):
        monkeypatch.setattr(lake, "collect", lambda *asked, own=columns: own)
        refused(WorkbookError, message, generate, "good", 9, source=SOURCE)


def moves_what_it_returned(self, action):
    self.position += action
    return self.position


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("sample_start_goal", lambda self, generator: None, "sample_start_goal must return"),
        ("sample_start_goal", lambda self, generator: 2 * (torch.zeros(8),), r"\(8,\), torch"),
        ("reset", lambda self, position: None, r"reset must return \(\(8, 2\)"),
        ("step", lambda self, action: action.numpy(), "step must return"),
        ("step", lambda self, action: action[:, :1], r"\(8, 1\), torch"),
        ("step", moves_what_it_returned, "step must return a new tensor"),
        ("render", lambda self, position: torch.zeros(8, 2, 65, 65).byte(), r"\(8, 3, 2, 65, 65\)"),
        ("render", lambda self, position: torch.zeros(8, 3, 2, 65, 65), "got .* torch.float32"),
        ("reached", lambda self, state, goal: (state - goal)[:, :2, 0] < 1, r"\(8, 2\), torch"),
        ("oracle_length", lambda self, start, goal: (goal - start)[:, :1], r"\(8, 1\), torch"),
        ("oracle_action", lambda self, goal, cap: goal - self.position, "beyond the cap of 2.45"),
    ],
)
def test_a_method_that_breaks_its_word_is_named(lake, monkeypatch, method, change, message):
    monkeypatch.setattr(lake, method, change)
    config = tiny_config(data__source=SOURCE, planning__action_cap=0.0)
    refused(ConfigError, message, acquire, config.data, 0)
    refused(ConfigError, message, Case.of, config, "oracle")


def test_actions_that_are_not_x_and_y_are_described(lake):
    data = generate("good", 200, source=SOURCE)
    data.actions = torch.cat([data.actions, data.actions[:, :1]], 1)
    found = describe(data)
    assert published(data) == {} != published(generate("good", 200))  # those are of Two Rooms
    assert found["action_std_0"] == found["action_std_2"] > 0 and "action_std_x" not in found
    moves = torch.cat([data.one(row)[0].diff(dim=0) for row in range(data.count)])
    assert torch.allclose(motion(data).steps, moves.norm(dim=-1))
    assert found["step_mean_px"] == pytest.approx(float(moves.norm(dim=-1).mean()))


def test_example_trains_plans_and_compares(lake, root, short_probe, monkeypatch):
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
    rows = {(one.row["method"], one.row["cost"]): one.row for one in report.played(run)}
    monkeypatch.setattr(report, "trials_hash", lambda *_: "those of the edited world")
    assert report.played(run) == []
    learned = {
        (method, cost) for method in ("flat", "l1+l2") for cost in ("latent", "distance", "graph")
    }
    floors = {(method, "none") for method in ("random", "random-persistent", "oracle")}
    assert set(rows) == learned | floors
    assert rows["oracle", "none"]["success_rate"] == 1
    assert rows["oracle", "none"]["path_efficiency"] == pytest.approx(1, abs=0.01)
    for row in rows.values():
        assert row["dynamics"] == "slide"
        assert np.isnan(row["cross_wall_rate"])  # undefined: there is no wall
