"""Recorded frames take the way of drawn ones: data, both levels, planning, offline measures."""

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from tiny import dotted, seeded, tiny_config
from tiny_runs import ROOT, execute

from hjepa_lib.config import ConfigError
from hjepa_lib.data.published import acquire
from hjepa_lib.data.readers import write_h5
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import Case, offline, openloop
from hjepa_lib.files import WorkbookError, read_json
from hjepa_lib.runs import score, stages
from hjepa_lib.runs.keys import core_stages, key
from hjepa_lib.runs.notebooks import finish, select_notebooks
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import distributed
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.worlds.base import find_world

HEIGHT, WIDTH = 20, 24
NOTEBOOKS = select_notebooks("01-05", ROOT / "notebooks")


def walk(path, episodes=12, length=30, seed=0):
    """An npz in which four numbers move a bright square; x and y are columns 1 and 0 of `where`."""
    numbers = np.random.default_rng(seed)
    actions = numbers.uniform(-0.02, 0.02, (episodes * length, 4)).astype(np.float32)
    places = numbers.uniform(5, 14, (episodes, 1, 2)) + np.zeros((1, length, 1))
    moves = actions.reshape(episodes, length, 4)[..., :2] * 100
    places[:, 1:] += moves[:, :-1].cumsum(1)
    places = places.clip(2, 17).reshape(-1, 2)
    frames = np.zeros((len(places), HEIGHT, WIDTH, 3), np.uint8)
    for frame, (x, y) in zip(frames, places.round().astype(int), strict=True):
        frame[y - 2 : y + 3, x - 2 : x + 3] = (250, 120, 60)
    terminals = np.arange(len(places)) % length == length - 1
    where = places[:, ::-1].astype(np.float32)
    np.savez(path, observations=frames, actions=actions, terminals=terminals, where=where)
    return str(path)


def by_hand(source, path):
    """The same as a reader of the form's description would write it with h5py."""
    h5py = pytest.importorskip("h5py")
    with np.load(source) as content, h5py.File(path, "w") as file:
        ends = np.flatnonzero(content["terminals"])
        action = content["actions"].astype(np.float64)
        action[ends] = np.nan
        file["pixels"], file["action"], file["proprio"] = (
            content["observations"], action, content["where"],
        )  # fmt: skip
        file["ep_len"], file["ep_offset"] = np.diff(ends, prepend=-1), np.append(0, ends[:-1] + 1)
        file["reward"], file["episode_idx"] = np.zeros(len(action)), np.zeros(len(action), int)
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return walk(tmp_path_factory.mktemp("recorded") / "walk.npz")


def settings(source, **changes):
    shape = {"data.source": source, "level1.window": 5, "level2.step_skip": 3}
    shape["planning.action_cap"] = 0  # as far as the recorded ones go
    return tiny_config().override(shape | dotted(changes))


def test_windows_splits_and_folders_keep_frames_with_their_states(source, tmp_path):
    config = settings(source, data__position="where:1,0", data__transitions=100).data
    with np.load(source) as file:
        frames, where = np.moveaxis(file["observations"], -1, 1), file["where"][:, ::-1]
    data = acquire(config, 0, tmp_path / "a")
    assert data.lengths.tolist() == [30, 30, 30, 14] and data.frame_shape == (3, HEIGHT, WIDTH)
    assert data.actions.shape == (104, 4) and (data.actions[[29, 103]] == 0).all()
    assert np.array_equal(data.frames(torch.tensor([3, 95])), frames[[3, 95]])
    assert (tmp_path / "a/frames.npy").stat().st_size < 104 * frames[0].size + 200  # no more
    order = data.save(tmp_path / "a").stat()
    again = Trajectories.load(tmp_path / "a")
    assert again.hash() == data.hash() and again.record.store.base is not None  # memory-mapped
    assert order.st_ino == (tmp_path / "a").stat().st_ino
    for part in (again, *again.split(0.5, 1), again.select(torch.tensor([2, 0]))):
        batch = Windows(part, 5).sample(8, seeded())
        found = batch.frames("cpu")
        for row, place in zip(found[:, 2], batch.positions[:, 2], strict=True):
            assert np.array_equal(row, frames[(where == place.numpy()).all(1).argmax()])
        moved = Trajectories.load(part.save(tmp_path / "b"))
        assert torch.equal(moved.frames(torch.arange(20)), part.frames(torch.arange(20)))
        assert moved.hash() == part.hash()
    assert again.select(torch.tensor([1])).hash() != again.select(torch.tensor([2])).hash()
    rows = distributed.own_rows(batch)
    assert torch.equal(rows.frames("cpu"), found)


@pytest.mark.parametrize("position", ["", "proprio:1,0"])
def test_a_recording_trains_both_levels_and_plans(source, position, root, tmp_path):
    source = by_hand(source, tmp_path / "walk.h5") if position else source
    config = settings(source, data__position=position)
    ws = Workspace("test", Run.create("recorded", config))
    agent = stages.load_trained(ws)
    train, held_out, _ = stages.load_data(ws)
    assert ws.recorded and agent.level1.frame == (3, HEIGHT, WIDTH) and agent.level1.action_dim == 4
    largest = float(train.actions.abs().max())
    assert largest <= agent.planning.action_cap < 2 * largest and not agent.ball
    store = LatentStore(agent.level1, held_out, 5, "fp32")
    assert torch.equal(
        store.latents[:7], agent.encode(held_out.frames(torch.arange(7))).to(torch.bfloat16)
    )
    batch = openloop.draw_windows(store, 8, 16)
    curves = openloop.open_loop(agent, batch)
    unit = batch.positions if position else batch.latents / batch.latents.shape[-1] ** 0.5
    still = (unit[:, 1:] - unit[:, :1]).norm(dim=-1)
    assert np.allclose(curves["stand still"].errors, still) and still.max() > 0
    assert all(np.isfinite(curve.errors).all() for curve in curves.values())
    known = agent.probe(batch.latents).isfinite().all()
    names = {name for row in ws.run.records("l1") for name in row}
    assert known == bool(position) == ("validation_probe_position_px" in names)
    rows = offline.planned_rows(agent, batch, score.learned(config), (1, 4))
    assert len(rows) == 8 and all(row["n"] == 16 and row["error"] > 0 for row in rows)
    with pytest.raises(ConfigError, match="no environment to play in"):
        Case.of(config, "flat")


def test_offline_measures_know_a_model_that_is_right():
    """Recognition is 1 where predictions are the truth, and planned actions are found at h = 1."""
    batch = offline.LatentBatch(
        torch.randn(40, 4, 6, generator=seeded()), torch.randn(40, 3, 2, generator=seeded(1)),
        torch.zeros(40, 4, 0), None,
    )  # fmt: skip
    truth = batch.latents[None]

    class Level1:
        rollout_members = staticmethod(lambda start, actions, scene: truth)
        normalise_actions = staticmethod(lambda actions: actions)

    class Agent:
        device, level1 = "cpu", Level1

    steps, share, low, _ = offline.recognised(Agent, batch)
    assert steps.tolist() == [1, 2, 3] and (share == 1).all() and (low < 1).all()
    truth = truth.roll(1, 1)
    assert (offline.recognised(Agent, batch)[1] == 0).all()


def test_keys_are_older_than_the_settings_of_recordings(source, tmp_path):
    config = tiny_config()
    data = core_stages(config)["data"]
    assert key(data, config) == key(data, config.override("data.position=,data.world="))
    one, two = (core_stages(c)["data"] for c in (settings(source), settings(source)))
    named = settings(source, data__position="where:0,1")
    assert key(one, settings(source)) == key(two, settings(source)) != key(one, named)
    assert key(one, settings(source)) != key(
        core_stages(settings(walk(tmp_path / "b.npz", seed=1)))["data"], settings(source)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__layouts": "random"}, "data.layouts=fixed"),
        ({"data__position": "where:0"}, "two components"),
        ({"data__world": "hjepa_lib.worlds:TwoRooms"}, "the recording .3, 20, 24, 4."),
        ({"data__source": "generated", "data__position": "where"}, "are of recordings"),
        ({"data__source": "nowhere.h5"}, "cannot read nowhere.h5"),
    ],
)
def test_what_does_not_fit_is_one_sentence(source, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        acquire(settings(source, **changes).data, 0, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_world_plays_what_a_file_taught(root, tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    monkeypatch.syspath_prepend(ROOT / "examples")
    source, world = str(tmp_path / "lake.h5"), "own_world:Lake"
    lake = generate("good", 600, source=world)
    write_h5(source, lake)
    config = settings(source, data__position="state", data__world=world, evaluation__steps=4)
    ws = Workspace("test", Run.create("played", config))
    data = stages.make_data(ws)
    assert not ws.recorded and data.world is find_world(world) and data.hash() != lake.hash()
    assert torch.equal(data.positions, lake.positions) and torch.equal(data.actions, lake.actions)
    assert torch.equal(data.frames(torch.arange(9)), lake.frames(torch.arange(9)))
    case = Case.of(config, "flat", "latent", trials=2)
    assert case.world == world and case.planning.action_cap == find_world(world).action_cap
    row = score.play(ws, stages.load_trained(ws), case).row
    assert row["n"] == 2 and row["data"]["source"] == source and row["world"] == world
    assert openloop.long_walks(config.data, 20, 2, 0).world is find_world(world)
    with pytest.raises(WorkbookError, match="no other walks"):
        openloop.long_walks(settings(source).data, 20, 2, 0)


def test_chapters_go_as_far_as_a_recording_does(source, root, monkeypatch):
    """01 to 04 train, show and judge it offline; each ends in one sentence, as 05 begins."""
    monkeypatch.setenv("HJEPA_HEADLESS", "1")
    ws = Workspace("test", Run.create("chapters", settings(source)))
    ends = ("no layouts", "no oracle", "no trials", "no environment", "no method can be compared")
    for path, end in zip(NOTEBOOKS, ends, strict=True):
        with pytest.raises(WorkbookError, match=end) as caught:
            execute(path, run="chapters")
        assert "left out" in str(caught.value) or path == NOTEBOOKS[4]
    ws.run.reload()
    names = set(ws.run.manifest["figures"])
    assert {"01_trajectories.png", "02_open_loop.png", "02_calibration.png"} <= names
    assert {"03_open_loop.png", "04_recognised.png"} <= names
    assert not {"01_motion.png", "02_probe.png", "02_latent_map.png"} & names
    rows = read_json(ws.run.path / "offline.json")
    assert [row["steps ahead"] for row in rows] == [1, 2, 5] * 4
    page = finish(ws.run, say=lambda text: None).read_text()
    assert "nearest to the frame recorded then" in page


def test_a_chapter_that_ends_early_says_so_in_every_later_cell(source, root, monkeypatch, capsys):
    ws, shell = Workspace("test", Run.create("end", settings(source))), InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    ws.leave("no more")
    assert shell.run_cell("print(1 / 0)").success
    out = capsys.readouterr().out
    assert "no more" in out and "left out, as said above" in out
