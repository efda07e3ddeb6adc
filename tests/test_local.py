import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from hjepa_lib.config import PlannerConfig, profile
from hjepa_lib.models import level1
from hjepa_lib.models.checkpoint import TrainedMacro, load_macro, load_part, save_part
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.models.local import (
    GAIN,
    MAPS,
    REACH,
    Displacement,
    Picture,
    PlaceEncoder,
    Scene,
    read_patches,
)
from hjepa_lib.planning import graph as graphs
from hjepa_lib.planning.levels import PrimitiveLevel
from hjepa_lib.planning.planner import Planner
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.level2 import train_level2
from hjepa_lib.training.local import (
    STEPS,
    Draw,
    Moves,
    centre_places,
    ended,
    train_local,
    train_places,
)
from hjepa_lib.worlds.layout import Layout
from tests.tiny import CPU, Windows, frames_of, seeded, tiny_data, tiny_normaliser

BRIEF = {"level1.optim.updates": 150, "level1.optim.batch": 16, "level1.optim.lr": 4e-3,
         "level1.optim.validate_every": 150, "level1.hidden": 32, "level1.layers": 1,
         "level1.refine_updates": 30}  # fmt: skip
CONFIG = profile("laptop").override({"preset": "local"} | BRIEF).level1


@pytest.fixture(scope="module")
def data():
    return tiny_data("fixed").split(0.2, 0)


@pytest.fixture(scope="module")
def places(data):
    """Level 1 after its first part, and that part's last report."""
    torch.manual_seed(0)
    model = Jepa(CONFIG, tiny_normaliser())
    *_, report = train_places(model, *(Windows(part, CONFIG.window) for part in data), seed=0)
    centre_places(model, Windows(data[0], 1), seed=0)
    return model, report


@pytest.fixture(scope="module")
def store(places, data):
    return LatentStore(places[0], data[0], 100, "fp32")


def test_inverse_dynamics_alone_find_the_place(places, data):
    model, report = places
    assert report.validation["probe_position_px"] < 0.5
    batch = Windows(data[1], 1).sample(64, seeded())
    with torch.no_grad():
        found = model.encoder.picture.pixels(model.encode(batch.frames(CPU)))
    # Neither shrunk nor shifted: patches are read around it.
    assert (found - batch.positions).norm(dim=-1).mean() < 0.5


def test_without_positions_no_error_of_them_is_told(data):
    class Unplaced(Windows):
        def sample(self, *draw):
            batch = super().sample(*draw)
            return batch._replace(positions=batch.positions[..., :0], record=batch)

    optim = replace(CONFIG.optim, updates=1)
    model, windows = Jepa(replace(CONFIG, optim=optim), tiny_normaliser()), Unplaced(data[0], 3)
    (report,) = train_places(model, windows, windows, seed=0)
    assert set(report.validation) == {"loss", "idm"}


def test_frames_are_mapped_some_at_a_time(places, monkeypatch):
    model, frames = copy.deepcopy(places[0]), frames_of(7)
    whole, sizes = model.scene(frames), []
    monkeypatch.setattr(level1, "MAPPED", 3 * 65**2)
    model.map.register_forward_hook(lambda _, given, maps: sizes.append(len(maps)))
    found = model.scene(frames)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(found.maps, whole.maps)


def test_places_are_moved_to_the_middle_of_what_is_seen(places, data):
    model, windows = copy.deepcopy(places[0]), Windows(data[0], 1)
    shift, centred = torch.tensor([0.1, -0.15]), model.encoder.offset.clone()  # 2.4 px of 65
    model.encoder.offset += shift
    centre_places(model, windows, seed=1)
    torch.testing.assert_close(model.encoder.offset, centred, atol=0.02, rtol=0)


def test_the_attempt_with_the_lowest_error_is_used_and_all_learn_alone(places):
    encoder = copy.deepcopy(places[0].encoder)
    x = torch.rand(3, 2, 65, 65)
    every = encoder.attempts(x, *encoder.maps.parameters())
    encoder.offset.zero_()
    for one in (2, 5):
        encoder.error.fill_(1.0)[one] = 0.5
        torch.testing.assert_close(encoder(x), every[:, one])
    every[:, 5].sum().backward()
    assert encoder.maps.bias.grad.nonzero().flatten().tolist() in ([5], [])
    assert encoder.maps.weight.grad[5].any() and not encoder.maps.weight.grad[:5].any()


def test_predictor_learns_beside_walls_and_is_saved_with_its_map(places, store, tmp_path):
    model, _ = places
    losses = [report.terms["sim"] for report in train_local(model, store, None, seed=0)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    save_part(tmp_path, model)
    loaded, batch = load_part(tmp_path, "level1"), store.sample(5, 4, seeded())
    ahead = [
        one.rollout_members(batch.latents[:, 0], batch.actions, scene=one.scene(frames))
        for one in (model.eval(), loaded)
        for frames in [store.frames(store.windows(4)[:5])]
    ]
    assert torch.equal(*ahead)
    assert ahead[0].shape == (1, 5, 4, 2)


def test_patches_are_bilinear_around_each_place_of_its_own_map():
    maps, pixels = torch.randn(3, 20, 30, MAPS), torch.rand(7, 2) * 10 + 6
    scene = Scene(maps, torch.arange(7) % 3)
    side = torch.arange(-REACH, REACH + 1.0)
    around = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1) + pixels[:, None, None]
    unit = around * torch.tensor([2 / 29, 2 / 19]) - 1
    wanted = F.grid_sample(
        maps[scene.rows].permute(0, 3, 1, 2), unit, align_corners=True, padding_mode="border"
    )
    found = read_patches(scene, pixels, REACH)
    assert torch.allclose(found, wanted.permute(0, 2, 3, 1).flatten(1), atol=1e-4)
    again = read_patches(scene.pick(torch.tensor([4, 4])), pixels[[4, 4]], REACH)
    assert torch.equal(again, found[[4, 4]])


@pytest.mark.parametrize("stacked", [1, 3])
def test_latents_are_the_newest_place_and_the_moves_before(stacked):
    torch.manual_seed(0)
    encoder = PlaceEncoder(replace(CONFIG, latent_dim=2 * stacked), 2 * stacked, (33, 49))
    frames = torch.rand(5, 2 * stacked, 33, 49)
    one = PlaceEncoder(replace(CONFIG, latent_dim=2), 2, (33, 49))
    one.load_state_dict(encoder.state_dict())
    each = one(frames.reshape(-1, 2, 33, 49)).reshape(5, stacked, 2)
    wanted = [each[:, -1], *(each[:, k] - each[:, k - 1] for k in range(stacked - 1, 0, -1))]
    assert torch.allclose(encoder(frames), torch.cat(wanted, 1), atol=1e-6)


def test_steps_with_momentum_keep_the_moves_in_order():
    torch.manual_seed(0)
    one = tiny_normaliser()
    twice = {name: 2 * list(getattr(one, name)) for name in ("pixel_mean", "pixel_std")}
    model = Jepa(replace(CONFIG, latent_dim=4), replace(one, **twice))
    frames = torch.randint(256, (6, 4, 65, 65), dtype=torch.uint8)
    latents, scene = model.encode(frames), model.scene(frames)
    later = model.rollout(latents, torch.randn(6, 1, 2), scene=scene)[:, 1]
    assert torch.allclose(later[:, 2:], later[:, :2] - latents[:, :2], atol=1e-6)


def test_free_steps_are_told_from_stopped_ones(places, store):
    moves = Moves.of(places[0], store)
    gone = (store.positions[1:] - store.positions[:-1]).norm(dim=-1)
    inside = store.trajectory[1:] == store.trajectory[:-1]
    stopped = moves.stopped[:-1]
    assert (gone[stopped & inside] < 0.4).float().mean() > 0.95
    assert (gone[~stopped & inside] > 0).float().mean() > 0.95
    assert not stopped[~inside].any() and not moves.carried.any()


class Elsewhere(torch.Tensor):
    """On another device: it meets no tensor of this one but as an index."""

    @classmethod
    def __torch_function__(cls, call, types, args=(), kwargs=None):
        if call.__name__ in ("cpu", "to"):
            return call(args[0].as_subclass(torch.Tensor), *args[1:], **kwargs or {})
        met = [] if call.__name__ == "__getitem__" else tree_leaves((args, kwargs))
        assert not any(type(one) is torch.Tensor and one.ndim for one in met), call.__name__
        return super().__torch_function__(call, types, args, kwargs)


def test_latents_on_another_device_are_fetched(places, store):
    model, away = places[0], copy.copy(store)
    away.latents = store.latents.as_subclass(Elsewhere)
    for found, known in zip(Moves.of(model, away), Moves.of(model, store), strict=True):
        torch.testing.assert_close(found, known)
    assert torch.equal(ended(away, 0.1), ended(store, 0.1))


def test_what_a_teleporter_did_is_neither_a_stop_nor_drawn(places, store):
    """In OGBench's teleport maze they were half of each batch."""
    known, latents = Moves.of(places[0], store), store.latents.float().clone()
    row = int(store.windows(6)[40]) + 3
    rest = (store.trajectory == store.trajectory[row]) & (torch.arange(len(latents)) > row)
    latents[rest] += 2.0  # 32 px, from one step to the next
    moved = copy.copy(store)
    moved.latents = latents
    moves = Moves.of(places[0], moved)
    assert moves.carried.nonzero().tolist() == [[row]] and not moves.stopped[row]
    assert moves.usual == pytest.approx(known.usual, rel=1e-3)
    drawn, _ = Draw(moved, moves.stopped, moves.carried).sample(20_000, 0, seeded())
    assert not ((drawn <= row) & (row < drawn + STEPS)).any()
    assert row in Draw(store, known.stopped, known.carried).sample(20_000, 0, seeded())[0]


def test_windows_come_from_few_layouts_half_of_them_stopped(places):
    store = LatentStore(places[0], tiny_data("random"), 100, "fp32")
    stopped = torch.zeros(len(store.positions), dtype=torch.bool)
    stopped[::3] = True
    recorded = copy.copy(store)
    recorded.layout = Layout.of([(0, 0)] * len(store.lengths))
    recorded.data = replace(store.data, record="frames")

    def drawn(store, stopped):
        return Draw(store, stopped, stopped & False).sample(64, 4, seeded())

    for one in (store, recorded):
        first, rows = drawn(one, stopped)
        layouts = store.layout.numbers()[store.trajectory[first]]
        assert (layouts == layouts[rows]).all()  # a scene is of the window's own layout
        if one is store:
            assert len(layouts.unique()) == 4 and stopped[first].float().mean() > 0.5
    assert len(drawn(store, stopped & False)[0]) == 64


class Walls(nn.Module):
    """Walks exactly, but not through column 10 above row 15, on a picture of 20 x 24 px."""

    leaks = ""  # "one way": all to the right; "gap": between (9, 5) and (11, 6)

    def __init__(self):
        super().__init__()
        self.picture = Picture((20, 24))
        self.free = nn.Linear(2, 2, bias=False)
        # As after 5,078 transitions: actions seemed shorter than they are, no way led anywhere.
        self.free.weight.data = 0.6 * torch.eye(2) / self.picture.unit
        self.kept = torch.tensor(0)

    def forward(self, latent, action, scene):
        here = self.picture.pixels(latent)
        there = here + action
        share = ((10 - here[:, 0]) / (there[:, 0] - here[:, 0])).nan_to_num(-1, -1, -1)
        crossing = (share >= 0) & (share <= 1) & (here[:, 1] + share * action[:, 1] < 15)
        if self.leaks == "one way":
            crossing &= action[:, 0] < 0
        elif self.leaks == "gap":
            ends, gap = torch.stack([here, there], 1).round(), torch.tensor([[9, 5], [11, 6]])
            for one in (gap, gap.flip(0)):
                crossing &= (ends != one).flatten(1).any(1)
        return self.picture.latents(torch.where(crossing[:, None], here, there))

    def visit(self, latent, scene):
        x, y = self.picture.pixels(latent).unbind(-1)
        return torch.where((x.round() == 10) & (y < 15), -9.0, 9.0)


FLOOR = Scene(torch.zeros(2, 20, 24, MAPS), torch.arange(2))
START = torch.tensor([[5.0, 4.0], [5.0, 4.0]])


@pytest.fixture
def walls():
    one, idm = Walls(), Displacement(2, 2, 6.0)
    idm.weight.data[0] = torch.eye(2) / GAIN
    model = SimpleNamespace(
        encoder=one, predictors=[one], idm=idm, action_dim=2, latent_dim=2,
        action_mean=torch.zeros(2), normalise_actions=lambda actions: actions,
    )  # fmt: skip
    geometry = graphs.GraphDistance(model, cap=2.0)
    goals = one.picture.latents(torch.tensor([[15.0, 4.0], [4.0, 4.0]]))
    geometry.begin(FLOOR, goals)
    return geometry, one.picture, goals


def steps_to(geometry, here, goals):
    return geometry.between(geometry.embed(here), geometry.embed_goal(goals))


def test_graph_goes_around_the_wall_to_each_trials_own_goal(walls):
    geometry, picture, goals = walls
    start = picture.latents(START)
    steps = steps_to(geometry, start, goals)
    around = 2 * math.hypot(5, 11) / geometry.step
    assert geometry.step == pytest.approx(2.0)
    assert steps[0] == pytest.approx(around, rel=0.06)  # 16 directions, the wall's lower end
    assert steps[1] == pytest.approx(0.5, abs=1e-4)
    start[0] = torch.nan
    found = steps_to(geometry, start, goals)
    assert found[0].isnan() and found[1] == steps[1]


def test_the_node_ahead_is_that_many_steps_on_along_the_shortest_way(walls):
    geometry, picture, goals = walls
    start = picture.latents(START)
    node = geometry.ahead(start, goals, 4)
    assert torch.equal(node[1], goals[1])  # half a step away
    ends = geometry.embed_goal(goals)
    whole, rest = (geometry.between(geometry.embed(one), ends)[0] for one in (start, node))
    assert whole - rest == pytest.approx(4, abs=1.2)  # a hop is 1.1 steps at most
    geometry.begin(FLOOR, node)
    gone = steps_to(geometry, start, node)[0]
    assert gone + rest == pytest.approx(float(whole), rel=1e-4)


@pytest.mark.parametrize(("nodes", "every"), [(True, 2), (False, 1)])
def test_nodes_lead_round_a_wall_that_a_straight_line_meets(walls, nodes, every):
    geometry, picture, goals = walls
    (one,) = geometry.model.predictors

    def walk(here, action):  # and slides along a wall, as in mazes
        there = one(here, action, None)
        return torch.where(there == here, one(here, action * torch.tensor([0, 1]), None), there)

    def members(start, plans, **hooks):
        first = walk(start, plans[:, 0])
        return torch.stack([start, first, walk(first, plans[:, 1])], 1)[None]

    geometry.model.rollout_members = members
    level = PrimitiveLevel(geometry.model, PlannerConfig(horizon=2, samples=32), geometry, 2.0)
    planner = Planner([level], 0, every, ahead=4)
    if not nodes:
        geometry.ahead = lambda latents, goals, steps: goals
    here = picture.latents(START)
    for call in range(30 // every):
        plan = planner.plan(here, goals, every * (call > 0), FLOOR)
        for action in plan.actions[:, :every].unbind(1):
            here = walk(here, action)
    left = (picture.pixels(here) - picture.pixels(goals)).norm(dim=-1)
    assert left[1] < 1.0 and plan.near[1]
    assert (left[0] < 1.0) == nodes, left


def test_ways_to_sub_goals_bend_as_those_to_goals_do(walls):
    """They were straight: level 1 stood before the wall in between."""
    geometry, picture, goals = walls
    here, there = (picture.latents(torch.tensor([[x, 4.0], [5.0, 4.0]])) for x in (5.0, 15.0))
    for subgoals in (there, goals):
        geometry.begin(FLOOR, subgoals)
        wanted = steps_to(geometry, here, subgoals)
        geometry.begin(FLOOR, goals)
        whole = steps_to(geometry, here, goals)
        for level in (3, 2, 2):
            found = geometry.embed_subgoal(subgoals, level, 8)
            torch.testing.assert_close(geometry.between(geometry.embed(here), found), wanted)
        again = steps_to(geometry, here, goals)
        torch.testing.assert_close(again, whole)
    found = geometry.embed_subgoal(there, 2, 8)
    assert geometry.between(geometry.embed(here), found)[0] > 6.0  # straight it is 5


@pytest.mark.parametrize("leaks", ["one way", "gap"])
def test_a_leak_is_no_way(walls, monkeypatch, leaks):
    """Half of all ways led through corners of a maze, imagined open by a hair."""
    geometry, _, goals = walls
    known = geometry.fields
    monkeypatch.setattr(Walls, "leaks", leaks)
    geometry.begin(FLOOR, goals)
    torch.testing.assert_close(geometry.fields, known)


def test_ways_beside_a_wall_are_those_of_their_own_side(walls):
    geometry, picture, goals = walls
    beside = picture.latents(torch.tensor([[9.6, 4.0], [9.9, 4.0]]))
    steps = geometry.between(geometry.embed(beside), geometry.embed_goal(goals)[[1, 1]])
    assert steps.tolist() == pytest.approx([2.5, 2.5], abs=0.3)  # not repelled, not drawn through
    inside = picture.latents(torch.tensor([[10.0, 4.0]]))
    far = geometry.between(geometry.embed(inside), geometry.embed_goal(goals)[1:])
    assert far > geometry.fields[1].where(geometry.fields[1].isfinite(), 0).max() / geometry.step


def test_latents_without_a_field_are_compared_in_a_straight_line(walls):
    geometry, picture, _ = walls
    a, b = (geometry.embed(picture.latents(torch.tensor([[x, 4.0]]))) for x in (5.0, 15.0))
    assert geometry.between(a, b) == pytest.approx(5.0)


def test_a_goal_among_no_nodes_is_beyond_all(walls, monkeypatch):
    geometry, _, goals = walls
    monkeypatch.setattr(graphs, "VISITED", 99.0)
    geometry.begin(FLOOR, goals)
    assert steps_to(geometry, goals, goals).isfinite().all()


def test_other_worlds_are_seen_locally_unless_an_encoder_is_chosen():
    own = profile("smoke").override("data.source=some.module:World")
    assert own.level1.predictor == "local"
    assert own.level1.refine_updates <= 100
    assert profile("laptop").override("data.source=a.b:C").level1.refine_updates >= 1_000
    chosen = profile("smoke").override("data.source=some.module:World,level1.encoder=fast")
    assert chosen.level1.predictor == "mlp"
    assert profile("smoke").override("data.transitions=5000").level1.predictor == "mlp"


def test_level_2_tells_the_next_place_from_what_lies_around(tmp_path):
    torch.manual_seed(0)
    picture, config = Picture((64, 80)), profile("laptop").override({"preset": "local"}).level2
    model = Level2(config, 2, 2, picture.size).eval()
    maps, macros = torch.randn(1, 64, 80, MAPS), torch.randn(1, 1, model.macro_dim)
    scene = Scene(torch.cat([maps, maps.roll((8, 16), (1, 2))]), torch.arange(2))
    pixels = torch.tensor([[30.3, 25.6], [46.3, 33.6]])

    def ahead(level, seen):
        return level.imagine(picture.latents(pixels), 1, macros.repeat(2, 1, 1), scene=seen)

    with torch.no_grad():
        found = [
            ahead(model, seen).predictions[:, 0]
            for seen in (scene, scene.pick(torch.tensor([0, 0])))
        ]
    moved, elsewhere = (picture.pixels(one) - pixels for one in found)
    torch.testing.assert_close(moved[0], moved[1], atol=1e-3, rtol=0)
    assert not torch.allclose(elsewhere[0], elsewhere[1], atol=1e-2)
    TrainedMacro(model, {}, None).save(tmp_path)
    assert torch.equal(ahead(load_macro(tmp_path).model, scene).predictions[:, 0], found[0])


def test_level_2_learns_with_the_scenes_of_its_windows(places, store):
    model, _ = places
    torch.manual_seed(0)
    config = profile("laptop").override({
        "preset": "local", "level2.hidden": 32, "level2.state_dim": 32, "level2.optim.updates": 80,
        "level2.macro_steps": 2, "level2.optim.lr": 1e-2,
    }).level2  # fmt: skip
    level2 = Level2(config, 2, 2, model.image)
    losses = [report.terms["sim"] for report in train_level2(level2, model, store, None, seed=0)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(weight.grad.abs().sum() > 0 for weight in level2.around.parameters())
