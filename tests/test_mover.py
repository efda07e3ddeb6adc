"""What moves by itself: where it is and goes, what meeting it ends."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hjepa_lib.config import PlannerConfig, profile
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.models.checkpoint import load_part, save_part
from hjepa_lib.models.distance import LatentGeometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.planning.levels import ENDED, PrimitiveLevel
from hjepa_lib.runs.keys import core_stages, shaping
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.local import Moves, ended, typical_step
from hjepa_lib.training.mover import find_mover, gone_from, train_foresight
from hjepa_lib.worlds.patrolled_door import CAUGHT, PatrolledDoor
from tests.tiny import seeded

AHEAD = 6
CONFIG = profile("laptop").override({
    "preset": "local", "level1.foresight": AHEAD, "level1.latent_dim": 6, "level1.hidden": 32,
    "level1.optim.updates": 100, "level1.optim.batch": 16, "level1.refine_updates": 150,
}).level1  # fmt: skip


def record(transitions, seed):
    return generate("navigate", transitions, seed=seed, source="patrolled_door", dynamics="slide")


@pytest.fixture(scope="module")
def trained():
    """Level 1, told the agent's place, that has learned the guard's; its store."""
    torch.manual_seed(0)
    data = record(2700, 0)
    model = Jepa(CONFIG, Normaliser.fit(data, 0))
    now, before, first = data.positions[:, [0, 1, 6, 7, 8, 9]].split(2, 1)
    moves = torch.cat([now - before, before - first], 1) / model.encoder.picture.unit
    told = torch.cat([model.encoder.picture.latents(now), moves], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentStore, "encode", lambda _: told)
        store = LatentStore(model, data, 100, "fp32")
    for part in (find_mover, train_foresight):
        for _ in part(model, store, seed=0):
            pass
    return model.eval().requires_grad_(False), store


def test_the_free_step_has_no_digits_of_chance(trained, monkeypatch):
    """Solved in float32 they changed from process to process."""
    asked, solve = [], torch.linalg.lstsq
    monkeypatch.setattr(torch.linalg, "lstsq", lambda *sides: asked.append(sides) or solve(*sides))
    free = Moves.of(*trained).free
    exact = np.linalg.lstsq(*(side.double().numpy() for side in asked[0]))[0].T
    assert torch.equal(free, torch.from_numpy(exact).float())


def test_what_has_gone_is_found_where_it_was_but_for_the_agents_own():
    y, x = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")

    def frame(*places):
        dots = [(x - column).square() + (y - row).square() < 5 for column, row in places]
        return (200 * torch.stack(dots).any(0)).to(torch.uint8).expand(1, 2, -1, -1)

    own = torch.tensor([[20.0, 10.0]])
    middle, amount = gone_from(frame((20, 10), (33, 20)), frame((24, 16), (38, 30)), own)
    assert middle.tolist() == [[33, 20]] and amount > 0
    assert gone_from(frame((20, 10), (33, 20)), frame((24, 16), (33, 20)), own)[1] == 0


def test_the_end_of_a_trajectory_is_told_from_a_rest():
    walk = torch.cumsum(torch.rand(40, 2, generator=seeded()) + 0.5, 0)
    rest, end = walk.clone(), walk.clone()
    rest[10:20], end[25:] = rest[10], end[25]
    starts, number = torch.arange(4) * 40, torch.arange(120) // 40
    store = SimpleNamespace(latents=torch.cat([walk, rest, end]), starts=starts, trajectory=number)
    assert ended(store, typical_step(store)).nonzero().flatten().tolist() == [*range(105, 120)]


def test_the_guard_is_found_and_foreseen_in_other_recordings(trained):
    model, _ = trained
    data = record(900, 1)
    first = torch.arange(0, 910, 7)
    first = first[first % 91 + AHEAD < 91]
    rooms = PatrolledDoor(data.layouts(torch.zeros(len(first), dtype=torch.long)))
    ahead = model.encoder.picture.pixels(model.scene(data.frames(first)).ahead)
    assert ahead.shape == (len(first), AHEAD + 1, 2)
    now, then = (rooms._guard(data.positions[first + k]) for k in (0, AHEAD))
    assert (ahead[:, 0, 0] - rooms.layout.wall_x).abs().median() < 0.5
    assert (ahead[:, 0, 1] - now).abs().median() < 0.5
    assert (ahead[:, AHEAD, 1] - then).abs().median() < 0.5 * (now - then).abs().median()


def test_meeting_it_is_a_risk_and_missing_it_is_none(trained):
    model, store = trained
    over = ended(store, typical_step(store))
    assert (over == (store.data.positions[:, CAUGHT] > 0)).float().mean() > 0.95
    assert not Moves.of(model, store).stopped[over].any()
    last = (over[1:] & ~over[:-1]).nonzero().flatten()
    rows = last[last % 91 >= 2, None] + torch.arange(-2, 2)
    ahead, path = model.scene(store.frames(rows[:, 0])).ahead, store.latents[rows]
    away = path - torch.tensor([0.8, 0, 0, 0, 0, 0])  # 13 px
    met, missed = (torch.sigmoid(model.mover.odds(ahead, one)) for one in (path, away))
    assert met.shape == (len(rows), 3)
    assert met[:, 2].median() > 10 * missed[:, 2].median()
    assert model.mover.odds(ahead, path[:, :1].expand(-1, 15, -1)).shape == (len(rows), AHEAD)


@pytest.mark.parametrize(("odds", "risk"), [(-40.0, 0), (0.0, 1 - 0.5**4), (40.0, 1)])
def test_a_plan_costs_more_the_surer_it_ends_early(trained, monkeypatch, odds, risk):
    model, store = trained
    monkeypatch.setattr(
        model.mover, "odds", lambda ahead, way: torch.full(way[:, 1:, 0].shape, odds)
    )
    scene, path = model.scene(store.frames(torch.arange(2))), torch.zeros(1, 2, 4, 6)
    level = PrimitiveLevel(model, PlannerConfig(), LatentGeometry(), 1.8)
    found = level.penalty(path[0, :, 0], path, path[0], scene)
    assert torch.allclose(found, torch.full((2,), ENDED * risk))


def test_it_is_saved_with_level_1_and_others_have_none(trained, tmp_path):
    model, store = trained
    save_part(tmp_path, model)
    frames, path = store.frames(torch.arange(3)), torch.zeros(1, 3, 4, 6)
    assert torch.equal(load_part(tmp_path, "level1").scene(frames).ahead, model.scene(frames).ahead)
    still = Jepa(replace(CONFIG, foresight=0), model.normaliser)
    assert still.mover is None and still.scene(frames).ahead is None
    level = PrimitiveLevel(still, PlannerConfig(), LatentGeometry(), 1.8)
    assert level.penalty(path[0, :, 0], path, path[0], still.scene(frames)) == 0


def test_a_level_1_that_foresees_nothing_keeps_its_key():
    config = profile("laptop").override({"data.source": "patrolled_door"})
    still, seeing = (
        shaping(core_stages(one)["l1"], one)
        for one in (config, config.override({"level1.foresight": 4}))
    )
    assert seeing == still | {"level1.foresight": 4}
