import math
import sys
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch
from scipy.ndimage import label
from tiny import refused, seeded, tiny_config

from hjepa_lib.data.recipes import generate
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import RULES, Case
from hjepa_lib.evaluation.episodes import OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.metrics import per_trial, solved, summarise
from hjepa_lib.files import WorkbookError, sha256
from hjepa_lib.worlds import Layout, TwoRooms, pointmaze
from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.four_rooms import (
    AWAY,
    LIFE,
    MOST,
    SPEED,
    WAY,
    FourRooms,
    decode,
    encode,
    layout_lists,
)
from hjepa_lib.worlds.layout import all_layouts
from hjepa_lib.worlds.patrolled_door import (
    BUDGET,
    CAUGHT,
    CONTACT,
    LEFT,
    PERIOD,
    PERIODS,
    PHASE,
    REACH,
    PatrolledDoor,
    PatrolledDoorOne,
)
from hjepa_lib.worlds.pointmaze import (
    GiantStitch,
    LargeNavigate,
    LargeStitch,
    MediumNavigate,
    MediumStitch,
    PointMaze,
    TeleportNavigate,
)
from hjepa_lib.worlds.trials import SPLITS, draw_trials, load_trials
from hjepa_lib.worlds.two_rooms import SHIFTS, inside, shifted

TEST = layout_lists()["test"]


def world(pairs, seed=0):
    return FourRooms(Layout.of(pairs), seed=seed)


def test_lists_share_no_doors_and_never_change():
    lists = layout_lists()
    doors = [{tuple(row) for row in decode(lists[name])[0].tolist()} for name in lists]
    assert [len(found) for found in doors] == [900, 100, 200]
    assert len(set().union(*doors)) == 1200
    whole = np.concatenate([*lists.values()])
    assert sha256(whole.astype("<i2").tobytes())[:16] == "1c3e6d790135da8b"
    places, closed, distractors = decode(whole)
    assert np.array_equal(
        encode(np.where([0, 1, 0, 1], 64 - places, places) - 10, closed, distractors), whole
    )


def test_pictures_show_the_doors_and_rooms_stay_connected():
    places, closed, _ = decode(TEST)
    for row, picture in enumerate(world(TEST).walls.numpy()):
        free = picture == 0
        assert label(free)[1] == 1
        for door, (at, rest) in enumerate(zip(places[row], ("y", "y", "x", "x"), strict=True)):
            line = free[:, 32] if rest == "y" else free[32]
            assert line[at - 5 : at + 6].sum() == (0 if door == closed[row] else 9)
        assert (~free[4, :]).all() and free[5:30, 5:30].all() and not free[:, 60].any()


@pytest.mark.parametrize("size", [0.7, 3.0, 30.0])
def test_no_step_leads_into_a_wall_or_through_a_closed_door(size):
    rooms = world(TEST)
    state = rooms.reset(rooms.sample_start_goal(seeded(1))[0])
    push = torch.zeros(200, 2)
    lines = torch.from_numpy(rooms.walls.numpy() > 0)
    for step in range(40):
        push = 0.8 * push + torch.randn(200, 2, generator=seeded(step))
        moved = rooms.step(size * push)
        assert rooms.free(moved).all()
        assert not rooms.crosses_wall(state[:, None, :2], moved[:, None, :2]).any()
        x, y = moved[:, :2].round().long().T
        assert not lines[torch.arange(200), y, x].any()
        state = moved
    shut = rooms.layout.pairs()[:, 0] < 289  # their upper door is closed: it keeps both sides apart
    left, right = torch.tensor([[28.0, 4]]), torch.tensor([[36.0, 4]])
    y = torch.from_numpy(decode(TEST)[0][:, :1]).float()
    ends = [torch.cat((side[:, :1].expand(200, 1), y), 1)[:, None] for side in (left, right)]
    assert torch.equal(rooms.crosses_wall(*ends)[:, 0], shut)


def test_distractors_are_seen_and_never_matter():
    pairs = TEST[decode(TEST)[2] == MOST]
    one, other = world(pairs, seed=1), world(pairs, seed=2)
    start = one.sample_start_goal(seeded(0))[0]
    one.reset(start), other.reset(one.at_rest(start[:, :2]))
    gaps = []
    for step in range(150):
        before = one.position
        push = torch.randn(len(pairs), 2, generator=seeded(step))
        assert torch.equal(one.step(push)[:, :2], other.step(push)[:, :2])
        gaps.append((one.position - before)[:, 2:].unflatten(1, (MOST, 2)).norm(dim=-1))
    assert (other.position[:, 2:] == AWAY).all()
    seen = one.position[:, 2:]
    assert ((seen >= 4) & (seen <= 60)).all()
    gaps = torch.stack(gaps)  # (S, B, 5)
    jumps = (gaps - SPEED).abs() > 0.01
    # The first life is a whole one.
    assert jumps.sum(0).float().mean() == pytest.approx(150 / LIFE - 0.5, rel=0.08)
    frames = one.render()
    alone = one.render(one.at_rest(one.position[:, :2]))
    assert torch.equal(frames[:, 1], alone[:, 1]) and (frames[:, 0] >= alone[:, 0]).all()
    spot = one.at_rest(torch.tensor([[20.0, 20.0]] * len(pairs)))
    spot[:, 2:4] = torch.tensor([50.0, 50.0])
    assert one.render(spot)[0, 0, [20, 50], [20, 50]].tolist() == [255, 153]


def test_the_oracle_is_short_and_solves_every_task():
    config = tiny_config(data__source="four_rooms", evaluation__steps=0, planning__action_cap=0)
    case = Case.of(config, "oracle", split="test", trials=200)
    played = run_episodes(OraclePolicy(SPEED), case.tasks, "slide", 110, SPEED, 0)
    columns = per_trial(played, case.protocol)
    assert case.steps == 210 and case.planning.action_cap == pytest.approx(SPEED)
    assert columns["success"].mean() >= 0.99 and columns["path_efficiency"].min() > 0.95
    assert not played.invalid.any()
    assert np.median(played.oracle) == pytest.approx(WAY, abs=1)


@pytest.mark.parametrize("split", SPLITS)
def test_committed_tasks_are_what_the_code_draws(split):
    trials = load_trials("four_rooms", split, FourRooms.trials[split])
    assert draw_trials(FourRooms, split).sha256 == trials.sha256
    allowed = {tuple(row) for row in layout_lists()[split].tolist()}
    assert {tuple(row) for row in trials.layout.pairs().int().tolist()} <= allowed
    _, closed, distractors = decode(trials.layout.pairs().int().numpy())
    sides = [(end[:, :2] > 32).numpy() for end in (trials.start, trials.goal)]
    changed = sides[0] != sides[1]
    beside = np.where(changed[:, 0], 0 + sides[0][:, 1], 2 + sides[0][:, 0])
    assert (changed.all(1) | (closed == beside) & changed.any(1)).all()
    assert 0.2 < (~changed.all(1)).mean() < 0.4
    assert ((trials.start[:, 2::2] > AWAY).sum(1).numpy() == distractors).all()


@pytest.mark.parametrize(
    ("source", "dynamics"), [("four_rooms", "slide"), ("patrolled_door", "bounce")]
)
def test_a_trial_alone_meets_what_it_meets_in_its_batch(source, dynamics):
    trials = load_trials(source, "validation", 6)
    whole, alone = (part.begin(dynamics, 3) for part in (trials, trials.pick([4])))
    for step in range(80):
        push = 2 * torch.randn(6, 2, generator=seeded(step))
        whole.step(push), alone.step(push[4:5])
    assert torch.equal(whole.position[4:5], alone.position)
    assert torch.equal(whole.render()[4:5], alone.render())


def test_data_of_navigate_change_rooms():
    walked, led, again = (
        generate(recipe, 4500, "random", 0, source="four_rooms")
        for recipe in ("good", "navigate", "navigate")
    )
    assert led.hash() == again.hash()
    rates = []
    for data in (walked, led):
        paths = data.positions.reshape(50, 91, 12)[..., :2] > 32
        rates.append((paths != paths[:, :1]).any(-1).any(1).float().mean())
        assert data.layout.unique(dim=0).shape[0] > 45
    assert rates[0] < 0.2 < 0.35 < rates[1]


PAIR = PatrolledDoor.layout_set("fixed")
WALL, DOOR = PAIR[0].tolist()
STEP = PatrolledDoor.action_cap


def doors(count, cls=PatrolledDoor):
    return cls(Layout.of(PAIR.repeat(count, 0)), "slide")


def state(*places, phase=0.0, period=20.0):
    found = PatrolledDoor.at_rest(torch.tensor(places, dtype=torch.float32))
    found[:, PHASE], found[:, PERIOD] = phase, period
    return found


def test_the_guard_walks_up_and_down_across_the_opening():
    rooms = doors(1)
    rooms.reset(state((10, 10), period=20))
    seen = []
    for _ in range(40):
        column = rooms.render()[0, -1, :, WALL].float()
        seen.append(float((column * torch.arange(65)).sum() / column.sum()))  # the guard's y
        rooms.step(torch.zeros(1, 2))
    assert seen[0] == pytest.approx(DOOR - REACH, abs=0.1)
    assert seen[10] == pytest.approx(DOOR + REACH, abs=0.1)
    assert seen[20:] == pytest.approx(seen[:20], abs=0.1)
    assert np.abs(np.diff(seen)) == pytest.approx([4 * REACH / 20] * 39, abs=0.15)


def test_contact_holds_the_dot_for_ever_and_the_task_is_lost():
    rooms = doors(2)
    goal = state((WALL, DOOR), (WALL - 10, DOOR))
    rooms.reset(goal.clone())
    for _ in range(12):
        now = rooms.position
        assert rooms.reached(now, goal).tolist() == [now[0, CAUGHT] == 0, True]
        rooms.step(torch.zeros(2, 2))
    assert rooms.position[0, CAUGHT] > 5 and rooms.position[1, CAUGHT] == 0
    moved = rooms.step(torch.tensor([[-1.5, 0], [-1.5, 0]]))
    assert moved[:, 0].tolist() == [WALL, WALL - 11.5]
    assert not rooms.reached(moved, moved)[0] and rooms.reached(moved, moved)[1]
    late = rooms.at_rest(goal[:, :2])
    late[:, LEFT] = torch.tensor([0.0, -1.0])
    assert rooms.reached(late, goal).tolist() == [True, False]


def test_contact_is_seen_between_two_steps():
    rooms = doors(2)
    phase = 0.25 - 0.5 / 12  # half a step before the centre
    rooms.reset(
        state((WALL - 1.7, DOOR), (WALL - 1.7, DOOR - CONTACT - 1.5), phase=phase, period=12.0)
    )
    assert rooms.step(torch.tensor([[1.7 * 2, 0], [0.0, 0]]))[:, CAUGHT].tolist() == [1, 0]


def test_one_frame_does_not_tell_the_guards_way():
    up, down = state((20, 20), phase=0.3), state((20, 20), phase=0.7)
    one, three = doors(1, PatrolledDoorOne), doors(1)
    assert torch.equal(one.render(up), one.render(down))
    assert not torch.equal(three.render(up), three.render(down))
    rooms = doors(1)
    rooms.reset(state((20, 20), phase=0.1))
    before = rooms.render()
    assert torch.equal(before[:, :2], before[:, 6:8])  # the dot has not moved before
    for push in ((1.5, 0.0), (0.0, 1.5), (1.0, 1.0)):
        now = rooms.step(torch.tensor([push]))
        after = rooms.render()
        assert torch.equal(after[:, :6], before[:, 3:])
        assert torch.equal(one.render(now), after[:, 6:])
        before = after


def test_the_oracle_is_in_time_where_others_are_not():
    changes = {"evaluation__steps": 0, "planning__action_cap": 0}
    case = Case.of(tiny_config(data__source="patrolled_door", **changes), "oracle", trials=24)
    trials, rates = case.tasks, {}
    policies = {kind: OraclePolicy(STEP, kind) for kind in ("oracle", *RULES)}
    for name, policy in (policies | {"random": RandomPolicy(STEP, 0)}).items():
        played = run_episodes(policy, trials, "slide", 60, STEP, 0)
        assert not played.invalid.any()
        rates[name] = per_trial(played, case.protocol)["success"].mean()
    assert rates["oracle"] >= 0.98 and rates["random"] == 0
    assert 0.2 < rates["heading"] < 0.7 and 0.2 < rates["rule"] < 0.9


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_of_the_patrolled_door_are_what_the_code_draws(split):
    count = PatrolledDoor.trials[split]
    trials = load_trials("patrolled_door", split, count)
    assert load_trials("patrolled_door_one", split, count).sha256 == trials.sha256
    generator = seeded(1000 + SPLITS.index(split))
    layout, start, goal = World.draw_tasks.__func__(PatrolledDoor, "", split, count, generator)
    other = [column for column in range(10) if column != LEFT]
    assert torch.equal(start[:, other], trials.start[:, other])
    assert torch.equal(goal, trials.goal) and (layout.pairs() == torch.tensor([WALL, DOOR])).all()
    assert (trials.start[:, PERIOD] >= PERIODS[0]).all()
    few = trials.pick(trials.start[:, LEFT].argsort()[:20:4].tolist())  # short ones
    played = run_episodes(OraclePolicy(STEP), few, "slide", 24, STEP, 0)
    needed = np.ceil(BUDGET * played.reached.argmax(1))
    assert few.start[:, LEFT].tolist() == needed.tolist()


def test_data_pass_the_door_and_meet_the_guard():
    data = generate("navigate", 4500, seed=0, source="patrolled_door", dynamics="slide")
    paths = data.positions.reshape(50, 91, 10)
    assert 0.08 < ((paths[..., 0] > WALL) != (paths[:, :1, 0] > WALL)).any(1).float().mean() < 0.6
    assert 0.08 < (paths[:, -1, CAUGHT] > 0).float().mean() < 0.7
    assert Windows(data, 5).sample(3, seeded(0)).frames("cpu").shape == (3, 5, 9, 65, 65)


real = pytest.mark.skipif(find_spec("ogbench") is None, reason="needs the extra `worlds`")


def test_without_the_package_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    message = r"ogbench is not installed: .*\[worlds\]"
    refused(WorkbookError, message, pointmaze.environment.__wrapped__, "medium")
    monkeypatch.setattr("hjepa_lib.worlds.trials.load_trials", None)  # that would need it
    case = Case.of(tiny_config(data__source="pointmaze_giant_stitch"), "random")
    assert case.header["layouts"] == "fixed" and len(case.trials_hash) == 64


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
    refused(WorkbookError, message, type, "Mine", (PointMaze,), named)


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
    frames = begin(TeleportNavigate, [px((1, 1)), px((7, 3))]).render()
    assert frames.shape == (2, 3, 72, 96) and frames.dtype == torch.uint8
    walls = pointmaze.closed_cells("teleport")
    assert np.array_equal(frames[0, 1, ::8, ::8].numpy() == 255, walls)
    assert np.array_equal(frames[1, 1, 7::8, 7::8].numpy() == 255, walls)
    assert frames[:, 0].amax((0, 2)).nonzero().max() == 63  # a dot reaches 4 px, to 59.5 + 4
    assert frames[0, 2, 8 * 4 + 4, 8 * 6 + 4] == 255 and frames[0, 2, 8 + 4, 8 * 7 + 4] == 128
    assert torch.equal(frames[0, 1:], frames[1, 1:])


@real
@pytest.mark.parametrize("world", [MediumStitch, LargeStitch, GiantStitch, TeleportNavigate])
def test_committed_tasks_are_the_environments_and_validation_has_others(world):
    env = pointmaze.environment(world.maze)
    pairs = {}
    for split in ("test", "validation"):
        source = f"pointmaze_{world.maze}_{world.recipe}"
        trials, drawn = load_trials(source, split, 250), draw_trials(world, split)
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
        assert columns["success"].all()
        assert not np.any(found.teleported)
        assert columns["path_efficiency"].min() > 0.95
        assert (found.oracle > np.linalg.norm(found.positions[:, 0] - found.goal, axis=-1)).all()
    closed = begin(TeleportNavigate, [px((1, 7))])
    assert closed.oracle_length(closed.position, trials.goal[:1]).isinf()


@real
@pytest.mark.parametrize("world", [LargeNavigate, MediumStitch])
def test_data_are_episodes_of_the_recipe(world):
    per = {"navigate": 200, "stitch": 40}[world.recipe]
    asked = {"transitions": 3 * per + 7, "source": f"pointmaze_{world.maze}_{world.recipe}"}
    data, same, other = (generate("good", seed=seed, **asked) for seed in (3, 3, 4))
    assert data.transitions == 3 * per + 7
    assert data.lengths.tolist() == [per + 1] * 3 + [8]
    assert data.hash() == same.hash() != other.hash()
    positions, actions = data.one(1)
    assert (actions.abs() <= 2).all()
    again = begin(world, positions[:1].tolist())
    walked = torch.cat([again.step(action[None]) for action in actions])
    assert torch.allclose(walked, positions[1:], atol=0.02)  # contacts remember a little
    span = (positions.amax(0) - positions.amin(0)).sum()
    assert span > 60 if world.recipe == "navigate" else span < 40  # 4 cells of 8 px, and about
    assert Windows(data, 5).sample(3, seeded(0)).frames("cpu").shape == (3, 5, *world.frame_shape)


CAP = 1.8365


def case_of(protocol, **changes):
    config = tiny_config(evaluation__protocol=protocol, evaluation__steps=0, planning__action_cap=0)
    return Case.of(config, "oracle", split="test", trials=100, **changes)


def test_one_rule_says_when_a_task_is_solved():
    near = np.array([[*row] for row in ("1111011", "0111110", "0011111", "1000000")]) == "1"
    first, last, hold = (solved(near, name) for name in ("p1", "p2_seen", "p3_dim"))
    assert first[1].tolist() == solved(near, "own")[1].tolist() == [1, 1, 1, 1]
    assert last[1].tolist() == [1, 0, 1, 0]
    assert hold[1].tolist() == [0, 1, 1, 0]
    assert hold[0].argmax(1).tolist() == [0, 1, 2, 0]  # a visit lasts from its first step
    assert not solved(near[:, :3], "p3")[1].any()


def test_segments_through_the_wall_are_found():
    layout = Layout.of(all_layouts())
    generator = seeded(0)
    here = layout.pairs() + 6 * torch.randn(1125, 2, generator=generator)
    there = here + 4 * torch.randn(1125, 2, generator=generator)
    there[::7, 0] = here[::7, 0]  # upright ones
    for half in (1.0, 2.0):
        rooms = TwoRooms(layout) if half == 1 else shifted("p3_thick_wall")(layout)
        x, y = (torch.linspace(0, 1, 801)[:, None, None] * (there - here) + here).unbind(-1)
        body = (x > rooms.layout.left) & (x < rooms.layout.right)
        deep = (y < rooms.layout.top - 0.02) | (y > rooms.layout.bottom + 0.02)
        shallow = (y < rooms.layout.top + 0.02) | (y > rooms.layout.bottom - 0.02)
        found = rooms.crosses_wall(here[:, None], there[:, None])[:, 0]
        assert found[(body & deep).any(0)].float().mean() > 0.999
        assert not (found & ~(body & shallow).any(0)).any()
        assert 100 < found.sum() < 900


@pytest.mark.parametrize("dynamics", ["bounce", "blocked", "slide"])
def test_routes_are_valid_in_the_world_itself(dynamics):
    case = case_of("p3", dynamics=dynamics)
    assert (case.steps, case.planning.action_cap) == (200, CAP)
    assert case.header["layouts"] == "fixed"
    for policy in (OraclePolicy(CAP), RandomPolicy(CAP, 0), RandomPolicy(CAP, 0, persistent=True)):
        played = run_episodes(policy, case.tasks, dynamics, 120, CAP, 0)
        row = summarise(per_trial(played, "p3"))
        assert (row["invalid_routes"], row["invalid_route_rate"]) == (0, 0)
        if type(policy) is OraclePolicy:
            assert row["success_rate"] == row["success_hold_1p41"] == 1
    jump = played._replace(invalid=np.arange(100) < 3)
    assert summarise(per_trial(jump, "p3"))["invalid_routes"] == 3
    unknown = summarise(per_trial(played._replace(invalid=None), "p3"))
    assert "invalid_routes" not in unknown and math.isnan(unknown["invalid_route_rate"])
    columns = per_trial(played._replace(teleported=np.arange(100) < 9), "p3")
    row = summarise(columns)
    failed = int((columns["success"][:9] == 0).sum())
    assert (row["teleported"], row["teleported_failures"]) == (9, failed) and failed > 0


def test_shifts_change_the_world_and_not_the_tasks():
    strict = case_of("p3").tasks
    usual = strict.begin("slide", 0).render().float()
    digests = {case_of("p3").digest}
    for name in SHIFTS:
        case = case_of(f"p3_{name}")
        assert case.tasks.sha256 == strict.sha256 == case.trials_hash
        digests.add(case.digest)
        rooms = case.tasks.begin("slide", 0)
        assert inside(strict.start, rooms.layout).all() and inside(strict.goal, rooms.layout).all()
        played = run_episodes(OraclePolicy(CAP), case.tasks, "slide", 100, CAP, 0)
        assert per_trial(played, case.protocol)["success"].mean() == 1
        assert played.reached is None and not played.invalid.any()
        light = rooms.render().float().flatten(2).sum(-1) / usual.flatten(2).sum(-1)
        wanted = {"large_dot": 1.69, "small_dot": 0.49, "dim": 0.7}.get(name, 1)
        assert light[:, 0].mean() == pytest.approx(wanted, abs=0.03)
        assert (rooms.render()[0, 1] > 0)[30].sum() == (5 if name == "thick_wall" else 3) + 2
    assert len(digests) == 6
    weak = case_of("p3_weak").tasks.begin("slide", 0)
    weak.reset(torch.tensor([[20.0, 40.0]] * 100))
    assert weak.step(torch.tensor([[1.0, 0.0]] * 100))[0].tolist() == pytest.approx([20.8, 40.0])
