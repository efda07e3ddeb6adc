"""Protocol P3: five steps in a row at the goal, routes checked against the walls, shifts."""

import math

import numpy as np
import pytest
import torch
from tiny import seeded, tiny_config

from hjepa_lib.config import ConfigError
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import OraclePolicy, RandomPolicy, run_episodes
from hjepa_lib.evaluation.metrics import per_trial, solved, summarise
from hjepa_lib.worlds import Layout, TwoRooms
from hjepa_lib.worlds.layout import all_layouts
from hjepa_lib.worlds.two_rooms import SHIFTS, inside, shifted

CAP = 1.8365


def case_of(protocol, **changes):
    config = tiny_config(evaluation__protocol=protocol, evaluation__steps=0, planning__action_cap=0)
    return Case.of(config, "oracle", split="test", trials=100, **changes)


def test_one_rule_says_when_a_task_is_solved():
    near = (
        np.array(
            [
                [1, 1, 1, 1, 0, 1, 1],
                [0, 1, 1, 1, 1, 1, 0],
                [0, 0, 1, 1, 1, 1, 1],
                [1, 0, 0, 0, 0, 0, 0],
            ]
        )
        > 0
    )
    first, last, hold = (solved(near, name) for name in ("p1", "p2_seen", "p3_dim"))
    assert first[1].tolist() == solved(near, "own")[1].tolist() == [1, 1, 1, 1]
    assert last[1].tolist() == [1, 0, 1, 0]
    assert hold[1].tolist() == [0, 1, 1, 0]
    assert hold[0].argmax(1).tolist() == [0, 1, 2, 0]  # a visit lasts from its first step
    assert not solved(near[:, :3], "p3")[1].any()


def test_segments_through_the_wall_are_found():
    """Against points along each segment, in all layouts."""
    layout = Layout.of(all_layouts())
    generator = seeded(0)
    here = layout.pairs() + 6 * torch.randn(1125, 2, generator=generator)
    there = here + 4 * torch.randn(1125, 2, generator=generator)
    there[::7, 0] = here[::7, 0]  # upright ones
    for half in (1.0, 2.0):
        rooms = TwoRooms(layout) if half == 1 else shifted("p3_thick_wall")(layout)
        ways = torch.linspace(0, 1, 801)[:, None, None] * (there - here) + here
        x, y = ways.unbind(-1)
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
    assert "teleported" not in unknown
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
        walls = rooms.render()[0, 1] > 0
        assert walls[30].sum() == (5 if name == "thick_wall" else 3) + 2
        assert type(rooms.layout.index([0]).to("cpu")) is type(rooms.layout)
    assert len(digests) == 6
    weak = case_of("p3_weak").tasks.begin("slide", 0)
    weak.reset(torch.tensor([[20.0, 40.0]] * 100))
    assert weak.step(torch.tensor([[1.0, 0.0]] * 100))[0].tolist() == pytest.approx([20.8, 40.0])


def test_a_fixed_cap_is_kept():
    with pytest.raises(ConfigError, match=r"protocol p3_dim fixes planning.action_cap=1.8365"):
        Case.of(tiny_config(evaluation__protocol="p3_dim", planning__action_cap=2), "oracle")
