"""Four rooms: layouts, doors, distractors, oracle and tasks."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from tiny import seeded, tiny_config

from hjepa_lib.data.recipes import generate
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.metrics import per_trial
from hjepa_lib.files import sha256
from hjepa_lib.worlds import Layout
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
from hjepa_lib.worlds.trials import SPLITS, draw_trials, world_trials

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
    assert np.bincount(closed, minlength=5) / 1200 == pytest.approx(
        [15 / 64] * 4 + [1 / 16], abs=0.04
    )
    assert np.bincount(distractors, minlength=6) / 1200 == pytest.approx([1 / 6] * 6, abs=0.04)


def test_pictures_show_the_doors_and_rooms_stay_connected():
    places, closed, _ = decode(TEST)
    for row, picture in enumerate(world(TEST).walls.numpy()):
        free = picture == 0
        assert label(free)[1] == 1
        for door, (at, rest) in enumerate(zip(places[row], ("y", "y", "x", "x"), strict=True)):
            line = free[:, 32] if rest == "y" else free[32]
            run = line[at - 5 : at + 6]
            assert run.sum() == (0 if door == closed[row] else 9)
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
    lives = jumps[:, 0, 0].nonzero()[:, 0].diff()
    assert (lives > 10).all() and (lives < 70).all()  # Poisson, not memoryless
    frames = one.render()
    alone = one.render(one.at_rest(one.position[:, :2]))
    assert torch.equal(frames[:, 1], alone[:, 1]) and (frames[:, 0] >= alone[:, 0]).all()
    spot = one.at_rest(torch.tensor([[20.0, 20.0]] * len(pairs)))
    spot[:, 2:4] = torch.tensor([50.0, 50.0])
    assert one.render(spot)[0, 0, [20, 50], [20, 50]].tolist() == [255, 153]


def test_the_oracle_is_short_and_solves_every_task():
    config = tiny_config(data__source="four_rooms", evaluation__steps=0, planning__action_cap=0)
    case = Case.of(config, "oracle", split="test", trials=200)
    trials = case.tasks
    played = run_episodes(OraclePolicy(SPEED), trials, "slide", 110, SPEED, 0)
    columns = per_trial(played, case.protocol)
    assert case.steps == 210 and case.planning.action_cap == pytest.approx(SPEED)
    assert columns["success"].mean() >= 0.99 and columns["path_efficiency"].min() > 0.95
    assert not played.invalid.any()
    assert np.median(played.oracle) == pytest.approx(WAY, abs=1)
    walked = run_episodes(RandomPolicy(SPEED, 0), trials, "slide", 20, SPEED, 0)
    assert not per_trial(walked, case.protocol)["success"].any()


@pytest.mark.parametrize("split", SPLITS)
def test_committed_tasks_are_what_the_code_draws(split):
    """Through two doors at least, in layouts of their split."""
    trials = world_trials("four_rooms", split, FourRooms.trials[split])
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
    trials = world_trials(source, "validation", 6)
    whole, alone = (part.begin(dynamics, 3) for part in (trials, trials.pick([4])))
    for step in range(80):
        push = 2 * torch.randn(6, 2, generator=seeded(step))
        whole.step(push), alone.step(push[4:5])
    assert torch.equal(whole.position[4:5], alone.position)
    assert torch.equal(whole.render()[4:5], alone.render())


def test_data_of_navigate_change_rooms():
    walked, led = (
        generate(recipe, 4500, "random", 0, source="four_rooms") for recipe in ("good", "navigate")
    )
    assert led.hash() == generate("navigate", 4500, "random", 0, source="four_rooms").hash()
    rates = []
    for data in (walked, led):
        paths = data.positions.reshape(50, 91, 12)[..., :2] > 32
        rates.append((paths != paths[:, :1]).any(-1).any(1).float().mean())
        assert data.actions.norm(dim=-1).max() <= SPEED * (1 + 1e-5)
        assert data.layout.unique(dim=0).shape[0] > 45
    assert rates[0] < 0.2 < 0.35 < rates[1]
