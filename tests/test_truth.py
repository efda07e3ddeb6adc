"""Planning that is told one part of the truth, and who may be told."""

import dataclasses

import pytest
import torch
from tiny import refused, tiny_config

from hjepa_lib.config import ConfigError
from hjepa_lib.evaluation import Case
from hjepa_lib.planning.truth import TrueDistance, resume, witness
from hjepa_lib.runs import score, stages
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.mazes import Maze, VelocityMaze
from hjepa_lib.worlds.trials import Trials
from hjepa_lib.worlds.two_rooms import TwoRooms


def told(truth, **changes):
    return tiny_config(planning__truth=truth, **changes)


def begun(world):
    """Two tasks in layouts of their own."""
    layout = Layout.fixed(2) if world is TwoRooms else Layout.of([(0, 0), (1, 0)])
    ends = world(layout).sample_start_goal(torch.Generator().manual_seed(0))
    return Trials.of(*ends, layout, "made", world).begin("bounce", 0)


def test_told_dynamics_are_steps_of_the_world_made_by_hand(agent):
    world = begun(TwoRooms)
    then, frames, scene = world.position.clone(), world.render(), witness(world, None)
    world.step(torch.full((2, 2), -1.3))  # the scene is of then
    level = agent.planner("flat", told("dynamics").planning).level1
    plans, rows = 9 * torch.randn(4, 4, 2), torch.tensor([0, 0, 1, 1])  # into walls
    found = level.imagine(agent.encode(frames)[rows], plans, None, scene.pick(rows))
    hand = TwoRooms(Layout.fixed(4), "slide")  # what chance does is not told
    hand.reset(then[rows])
    wanted = [agent.encode(hand.render(hand.step(action))) for action in plans.unbind(1)]
    torch.testing.assert_close(found, torch.stack(wanted, 1))


def test_a_copy_keeps_momentum():
    world, rows = begun(VelocityMaze), torch.tensor([1, 0, 1])
    world.step(torch.tensor([[0.3, 0.0], [0.0, 0.3]]))
    found = resume(world, rows).step(torch.zeros(3, 2))
    torch.testing.assert_close(found, world.step(torch.zeros(2, 2))[rows])


@pytest.mark.parametrize("world", [TwoRooms, Maze])
def test_a_told_distance_is_the_way_around_the_walls_of_its_own_task(world):
    played = begun(world)
    geometry = TrueDistance(lambda latents: latents, cap=2.0)  # a latent is its place
    geometry.begin(witness(played, None), torch.zeros(2, 2))
    goal = geometry.embed_goal(played.goal)
    here = played.position
    for start, off in ((here, 0.3), (here.round(), 1e-4)):  # between pixels, and on one
        found = geometry.between(geometry.embed(start), goal)
        wanted = played.oracle_length(start, played.goal) / 2
        torch.testing.assert_close(found, wanted, atol=off, rtol=0)
    assert geometry.between(geometry.embed(torch.zeros(2, 2)), goal).isfinite().all()  # in a wall


@pytest.mark.parametrize("truth", ["dynamics", "distance"])
def test_a_told_row_says_so_and_is_another_row(ws, truth):
    plain, case = (Case.of(told(one), "flat", "distance") for one in ("none", truth))
    assert "truth" not in plain.settings and case.digest != plain.digest
    row = score.play(ws, stages.load_trained(ws), case).row
    assert row["told"] == row["planner"]["truth"] == truth and row["flops_per_step"] > 0


def test_what_cannot_be_told_is_one_sentence(agent):
    dynamics, local = {"planning__truth": "dynamics"}, {"preset": "local"}
    point = {"data__source": "pointmaze_large_stitch"}
    for method, cost, changes, message in (
        ("l1+l2", "distance", dynamics, r"truth=dynamics does not go with l1\+l2, distance cost"),
        ("flat", "latent", {"planning__truth": "distance"}, "not go with flat, latent cost"),
        ("flat", "distance", dynamics | point, "in pointmaze_large_stitch"),
        ("flat", "distance", dynamics | {"planning__flat__method": "gradient"}, "gradient search"),
        ("graph", "graph", {}, "graph needs cost=graph and level1.predictor=local"),
        ("graph", "latent", local, "graph needs cost=graph"),
    ):
        refused(ConfigError, message, Case.of, tiny_config(**changes), method, cost)
    refused(ConfigError, "needs level1.predictor=local", agent.planner, "graph")
    frames = torch.zeros(2, 2, 65, 65, dtype=torch.uint8)
    for truth in ("dynamics", "distance"):
        alone = dataclasses.replace(agent, planning=told(truth).planning)
        refused(ConfigError, "behind these frames there is none", alone.plan, *frames)
