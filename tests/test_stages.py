import os
import shutil

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from tiny import digest, dotted, refused, seeded, tiny_config
from tiny_runs import CPU, ROOT, execute

from hjepa_lib.config import ConfigError
from hjepa_lib.data.published import acquire
from hjepa_lib.data.readers import write_h5
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import Case, offline, openloop
from hjepa_lib.files import WorkbookError, read_json, write_json
from hjepa_lib.grids.stages import grid_stages
from hjepa_lib.models.checkpoint import load_part
from hjepa_lib.pixels.stages import pixel_stages
from hjepa_lib.runs import score, stages
from hjepa_lib.runs.keys import Stage, closure, core_stages, key
from hjepa_lib.runs.notebooks import select_notebooks
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import distributed
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.workbench.variants import with_epochs
from hjepa_lib.worlds.base import find_world

NAMES = ("data", "l1", "distance", "l2")


@pytest.fixture
def root(root, monkeypatch):
    monkeypatch.setattr("hjepa_lib.runs.places.repository", lambda: root / "nowhere")
    return root


@pytest.fixture
def toy(root, monkeypatch):
    made = []

    def maker(name):
        def make(ws, folder, **_):
            made.append((ws.run.name, name))
            (folder / f"{name}.txt").write_text(f"{ws.config.seed} {torch.rand(1).item()}")
            yield from ()

        return make

    for name, attribute in zip(NAMES, ("data", "level1", "distance", "macro"), strict=True):
        monkeypatch.setattr(stages, f"make_{attribute}_stage", maker(name))
    return made


def begin(name, changes="", seed=0):
    return Workspace("test", Run.create(name, CPU.override(changes).override({"seed": seed})))


def obtain(ws, *names):
    return [ws.obtain(core_stages(ws.config)[name]) for name in names]


def origins(ws, *names):
    return [ws.origin(name) for name in names]


def obtained(ws, *names):
    obtain(ws, *names)
    return origins(ws, *names)


def edit(run, change):
    change(run.manifest)
    write_json(run.path / "manifest.json", run.manifest)


def keys(changes="", seed=0):
    config = CPU.override(changes).override({"seed": seed})
    return {name: key(stage, config) for name, stage in core_stages(config).items()}


def test_the_key_holds_what_shapes_a_stage_and_nothing_else():
    plain = keys()
    assert keys("planning.cost=latent,evaluation.trials=3,device=auto,tracker=wandb") == plain
    for name, changes, shaped in (
        ("seed", {"seed": 1}, NAMES),  # I1
        ("data", {"changes": "data.transitions=9000"}, NAMES),
        ("level 1", {"changes": "level1.width=8"}, NAMES[1:]),
        ("precision", {"changes": "precision=auto"}, NAMES[1:]),
        ("head", {"changes": "distance.dim=8"}, NAMES[2:]),  # I2: its reach is level 2's
        ("level 2", {"changes": "level2.hidden=8"}, NAMES[3:]),
        ("joint", {"changes": "level2.train=joint"}, NAMES[1:]),  # I2
    ):
        other = keys(**changes)
        assert [one for one in NAMES if other[one] != plain[one]] == list(shaped), name
    joint = keys("level2.train=joint")
    assert keys("level2.train=joint,level2.hidden=8")["l1"] != joint["l1"]


def test_a_raised_recipe_changes_every_key_above_it():
    data = Stage("data", print, ("data",))
    for recipe, same in ((1, True), (2, False)):
        above = Stage("l1", print, ("level1",), (Stage("data", print, ("data",), recipe=recipe),))
        assert (key(above, CPU) == key(Stage("l1", print, ("level1",), (data,)), CPU)) is same
    assert [one.name for one in closure(above)] == ["data", "l1"]


def test_i1_another_file_of_the_same_name_is_another_stage(tmp_path):
    file = tmp_path / "own.npz"
    for section, name, stages_of in (
        ("data.source", "data", core_stages),
        ("pixels.data.path", "data", pixel_stages),
        ("pixels.loading.path", "jepa_s0", pixel_stages),
        ("pixels.vjepa2.stage1.checkpoint", "vjepa2_stage1_s0", pixel_stages),
        ("pixels.grid.path", "grid_data", grid_stages),
    ):
        config = CPU.override({section: str(file)})
        stage = {one.name.removeprefix("pixel_"): one for one in stages_of(config).values()}[name]
        found = []
        for content in (None, b"one", b"other", b"one"):
            file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
            os.utime(file, ns=(0, len(found))) if content else None
            found.append(key(stage, config))
        assert found[1] == found[3] and len(set(found)) == 3, section


def test_i1_a_run_of_another_seed_trains_its_own(toy):
    obtain(begin("zero"), "l2")
    ws = begin("one", seed=1)
    obtain(ws, "l2", "l1")
    assert [name for run, name in toy if run == "one"] == ["data", "l1", "distance", "l2"]
    assert origins(ws, *NAMES) == ["this run"] * 4
    assert obtained(begin("again", "planning.cost=latent"), *NAMES[:0:-1]) == ["zero"] * 3


def test_i3_a_set_of_models_comes_from_one_run(toy):
    first, second = begin("first"), begin("second")
    for ws in (first, second):
        list(ws.make(core_stages(ws.config)["l1"]))
        (ws.run.path / "l1" / "l1.txt").write_text(ws.run.name)  # as another machine would round
        with ws.run.stage("l1", key=ws.run.key("l1")):
            pass
    list(first.make(core_stages(CPU)["distance"]))
    obtain(first, "l2")
    os.utime(second.run.path / "manifest.json")
    ws = begin("third")
    assert obtained(ws, "l1") == ["second"]  # the newest that has it
    assert obtained(ws, "l2", "distance", "l1") == ["this run", "this run", "second"]
    assert obtained(begin("fourth"), "l2", "distance", "l1") == ["third", "third", "second"]


def test_i5_the_newest_run_that_has_the_stage_is_asked(toy):
    obtain(begin("donor"), "l1")
    begin("empty")
    obtain(begin("short", "level1.optim.updates=5"), "l1")
    for changes, origin in (("", "donor"), ("level1.optim.updates=500", "this run")):
        assert obtained(begin(f"mine-{origin[:2]}", changes), "l1") == [origin]


def test_i6_what_is_made_for_another_stage_is_trained_to_its_end(workspace_of):
    ws = workspace_of(tiny_config(level1__optim__updates=80, level1__optim__validate_every=40))
    obtain(ws, "distance")
    assert ws.run.records("l1")[-1]["step"] == 80
    assert ws.done(core_stages(ws.config)["l1"])


def test_an_interrupted_training_goes_on_from_its_own_inputs_alone(toy, monkeypatch):
    ws = begin("cut", "level1.load=donor")
    seen = []

    def broken(self, folder):
        state = self.resume("distance") / "resume.pt"
        seen.append(state.is_file())
        state.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "make_distance_stage", broken)
    donor = begin("donor")
    for text in ("one", "one", "other"):  # level 1 is trained again there, with another end
        with donor.run.stage("l1", key="same") as folder:
            (folder / "l1.txt").write_text(text)
        if text == "other":
            (ws.run.path / "l1" / "l1.txt").unlink()
        with pytest.raises(KeyboardInterrupt):
            list(stages.train(ws, "distance"))
    assert seen == [False, True, False]


def test_data_that_stood_in_for_published_ones_stay_in_their_run(toy):
    first = begin("offline", "data.source=published")
    obtain(first, "l1")
    first.run.note("data_fallback", "no network: generated data")
    assert obtained(begin("online", "data.source=published"), "l1") == ["this run"]
    also = begin("also-offline", "data.source=published")
    also.run.note("data_fallback", "no network: generated data")
    assert obtained(also, "l1") == ["offline"]


def test_a_run_of_a_setting_that_is_gone_is_for_reading(toy):
    ws = begin("old")
    obtain(ws, "l1")
    edit(ws.run, lambda manifest: manifest["config"]["distance"].update(ema_rate=0.02))
    obtain(Workspace("test", Run.open("old")), "distance")
    edit(ws.run, lambda manifest: manifest["config"]["distance"].update(ema_rate=0.5))
    found = Workspace("test", Run.open("old"))
    assert found.run.done("l1")
    message = r"'old' has settings that are gone: distance\.ema_rate=0\.5"
    refused(RunError, message, obtain, found, "l2")


def test_i7_level_2_is_stale_once_this_run_makes_its_own_level_1(toy):
    obtain(begin("donor"), "l2")
    ws = begin("mine")
    assert obtained(ws, "l2", "l1") == ["donor", "donor"]
    with ws.run.stage("l1", key=ws.key(core_stages(ws.config)["l1"])) as folder:
        (folder / "l1.txt").write_text("made here")
    assert not ws.done(core_stages(ws.config)["l2"])


def test_i4_c11_a_level_1_of_other_settings_is_taken_only_by_name(root, toy):
    obtain(begin("donor", "level1.width=8"), "distance")
    assert obtained(begin("mine", seed=3), "l1") == ["this run"]
    for where in ("donor", str(root / "donor")):
        named = begin(f"named-{len(where)}", {"level1.load": where})
        assert list(stages.train(named, "l1")) == []
        obtain(named, "l2")
        assert origins(named, "l1", "distance") == ["donor", "donor"]
        assert origins(named, "l2") != ["donor"]  # of another seed
        assert named.run.key("l1") == Run.open("donor").key("l1")
    refused(RunError, "does not exist", obtain, begin("bad", "level1.load=nobody"), "l1")


@pytest.mark.parametrize(("changes", "seed"), [("level1.width=9", 0), ("", 3), ("", 0)])
def test_i4_an_exported_level_1_is_taken_by_its_equal_alone(root, toy, capsys, changes, seed):
    donor = begin("donor")
    obtain(donor, "l1")
    donor.run.export(root / "pretrained")
    shutil.rmtree(donor.run.path)
    equal = not changes and not seed
    assert obtained(begin("mine", changes, seed), "l1") == ["pretrained" if equal else "this run"]
    assert ("l1: taken from pretrained" in capsys.readouterr().out) is equal


def test_a_run_made_before_there_were_keys_is_input_only_when_named(toy):
    old = begin("old")
    obtain(old, "l1")
    edit(old.run, lambda manifest: manifest["stages"]["l1"].pop("key"))
    assert obtained(begin("mine"), "l1") == ["this run"]
    named = begin("named", "level1.load=old")
    assert obtained(named, "l1") == ["old"]
    assert named.done(core_stages(named.config)["l1"])


def test_s1_a_run_of_a_gpu_goes_on_where_there_is_none(toy, monkeypatch):
    ws = begin("begun")
    obtain(ws, "data")
    edit(ws.run, lambda manifest: manifest.update(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    again = Workspace("test", Run.open("begun"))
    assert again.device == "cpu"
    obtain(again, "l1")
    found = again.run.manifest
    assert (found["device"], found["stages"]["l1"]["device"]) == ("cuda", "cpu")


def test_s10_a_manifest_cannot_name_files_outside_its_run(root, toy):
    donor = begin("donor")
    obtain(donor, "l1")

    def outside(manifest):
        manifest["stages"]["l1"]["files"][0]["path"] = "../../secret"

    edit(donor.run, outside)
    refused(ValueError, "no file below", begin("mine").run.adopt, donor.run, "l1")
    refused(ValueError, "no file below", Run.open("donor").export, root / "exported")
    assert not (root / "exported").exists()


def test_where_nothing_is_held_out_nothing_is_called_so(workspace_of):
    """D2."""
    config = tiny_config(data__val_fraction=0.0)
    ws = workspace_of(config)
    assert not any(report.validation for report in list(stages.train(ws, "l1")))
    folder = ws.run.path / "l1"
    weights = [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "last")]
    assert weights[0] == weights[1]
    assert read_json(folder / "quality.json")["measured_on"] == "training"
    for name in ("level1.optim.patience=2", "level2.optim.schedule=plateau"):
        refused(ConfigError, r"for a validation: set data\.val_fraction", config.override, name)


def test_c3_chapters_after_a_joint_training_start_alone(workspace_of):
    # Its windows are level 2's own, whatever level1.window says.
    config = tiny_config(level2__train="joint", level1__optim__updates=2, level1__window=200)
    list(stages.train(workspace_of(config, "donor"), "l1"))
    ws = Workspace("03", Run.create("alone", config))
    agent = stages.load_trained(ws)
    assert origins(ws, "l1", "l2") == ["donor", "this run"]
    jointly = load_part(ws.run.path / "l1", "level2", "joint_level2")
    assert digest(agent.level2) == digest(jointly)


HEIGHT, WIDTH = 20, 24
NOTEBOOKS = select_notebooks("01-05", ROOT / "notebooks")


def walk(path, seed=0):
    """Four numbers move a bright square; x and y are columns 1 and 0 of `where`."""
    numbers = np.random.default_rng(seed)
    actions = numbers.uniform(-0.02, 0.02, (360, 4)).astype(np.float32)
    places = numbers.uniform(5, 14, (12, 1, 2)).repeat(30, 1)
    moves = actions.reshape(12, 30, 4)[..., :2] * 100
    places[:, 1:] += moves[:, :-1].cumsum(1)
    places = places.clip(2, 17).reshape(-1, 2)
    frames = np.zeros((len(places), HEIGHT, WIDTH, 3), np.uint8)
    for frame, (x, y) in zip(frames, places.round().astype(int), strict=True):
        frame[y - 2 : y + 3, x - 2 : x + 3] = (250, 120, 60)
    terminals = np.arange(len(places)) % 30 == 29
    where = places[:, ::-1].astype(np.float32)
    np.savez(path, observations=frames, actions=actions, terminals=terminals, where=where)
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return walk(tmp_path_factory.mktemp("recorded") / "walk.npz")


def settings(source, **changes):
    shape = {"data.source": source, "level1.window": 5, "level2.step_skip": 3}
    shape["planning.action_cap"] = 0  # as far as the recorded ones go
    return tiny_config().override(shape | dotted(changes))


def test_what_is_made_again_goes_on_from_no_part_of_the_old(tmp_path, workspace_of):
    source = walk(tmp_path / "walk.npz")
    config = settings(source, level1__refine_updates=3, level1__optim__updates=2)
    ws, fresh = (workspace_of(config, name) for name in ("again", "fresh"))
    list(stages.train(ws, "l1"))
    assert not [*ws.run.path.glob("resume/*")]
    walk(source, seed=1)
    for one in (ws, fresh):
        list(stages.train(one, "l1"))
    found, wanted = (one.run.path / "l1/model.safetensors" for one in (ws, fresh))
    assert found.read_bytes() == wanted.read_bytes()


def test_counting_the_windows_of_a_recording_leaves_nothing_behind(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.iterdir()}
    assert with_epochs(settings(source), 1)["level1.optim.updates"] > 0
    assert {*tmp_path.iterdir()} == before


def test_windows_splits_and_folders_keep_frames_with_their_states(source, tmp_path):
    config = settings(source, data__position="where:1,0", data__transitions=100).data
    with np.load(source) as file:
        frames, where = np.moveaxis(file["observations"], -1, 1), file["where"][:, ::-1]
    data = acquire(config, 0, tmp_path / "a")
    assert data.lengths.tolist() == [30, 30, 30, 14] and data.frame_shape == (3, HEIGHT, WIDTH)
    assert data.actions.shape == (104, 4) and (data.actions[[29, 103]] == 0).all()
    assert np.array_equal(data.frames(torch.tensor([3, 95])), frames[[3, 95]])
    data.save(tmp_path / "a")
    again = Trajectories.load(tmp_path / "a")
    assert again.hash() == data.hash() and again.record.store.base is not None  # memory-mapped
    for part in (again, *again.split(0.5, 1), again.select(torch.tensor([2, 0]))):
        batch = Windows(part, 5).sample(8, seeded())
        found = batch.frames("cpu")
        for row, place in zip(found[:, 2], batch.positions[:, 2], strict=True):
            assert np.array_equal(row, frames[(where == place.numpy()).all(1).argmax()])
        moved = Trajectories.load(part.save(tmp_path / "b"))
        assert torch.equal(moved.frames(torch.arange(20)), part.frames(torch.arange(20)))
        assert moved.hash() == part.hash()
    assert again.select(torch.tensor([1])).hash() != again.select(torch.tensor([2])).hash()
    assert torch.equal(distributed.own_rows(batch).frames("cpu"), found)


@pytest.mark.parametrize("position", ["", "where:1,0"])
def test_a_recording_trains_both_levels_and_plans(source, position, workspace_of):
    config = settings(source, data__position=position)
    ws = workspace_of(config)
    agent = stages.load_trained(ws)
    train, held_out, _ = stages.load_data(ws)
    assert ws.recorded and agent.level1.frame == (3, HEIGHT, WIDTH) and agent.level1.action_dim == 4
    largest = float(train.actions.abs().max())
    assert largest <= agent.planning.action_cap < 2 * largest and not agent.ball
    batch = openloop.draw_windows(LatentStore(agent.level1, held_out, 5, "fp32"), 8, 16)
    curves = openloop.open_loop(agent, batch)
    unit = batch.positions if position else batch.latents / batch.latents.shape[-1] ** 0.5
    still = (unit[:, 1:] - unit[:, :1]).norm(dim=-1)
    assert np.allclose(curves["stand still"].errors, still) and still.max() > 0
    known = agent.probe(batch.latents).isfinite().all()
    names = {name for row in ws.run.records("l1") for name in row}
    assert known == bool(position) == ("validation_probe_position_px" in names)
    refused(ConfigError, "no environment to play in", Case.of, config, "flat")


def test_offline_measures_know_a_model_that_is_right():
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
    def found(config):
        return key(core_stages(config)["data"], config)

    assert found(tiny_config()) == found(tiny_config().override("data.position=,data.world="))
    own, named = found(settings(source)), settings(source, data__position="where:0,1")
    assert found(settings(source)) == own != found(named)
    assert own != found(settings(walk(tmp_path / "b.npz", seed=1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__layouts": "random"}, "data.layouts=fixed"),
        ({"data__position": "where:0"}, "two components"),
        ({"data__world": "hjepa_lib.worlds:TwoRooms"}, "the recording .3, 20, 24, 4."),
        ({"data__source": "generated", "data__position": "where"}, "are of recordings"),
    ],
)
def test_what_does_not_fit_is_one_sentence(source, tmp_path, changes, message):
    refused(ValueError, message, acquire, settings(source, **changes).data, 0, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_world_plays_what_a_file_taught(workspace_of, tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    monkeypatch.syspath_prepend(ROOT / "examples")
    source, world = str(tmp_path / "lake.h5"), "own_world:Lake"
    lake = generate("good", 600, source=world)
    write_h5(source, lake)
    config = settings(source, data__position="state", data__world=world, evaluation__steps=4)
    ws = workspace_of(config)
    data = stages.make_data(ws)
    assert not ws.recorded and data.world is find_world(world) and data.hash() != lake.hash()
    assert torch.equal(data.positions, lake.positions) and torch.equal(data.actions, lake.actions)
    case = Case.of(config, "flat", "latent", trials=2)
    assert case.world == world and case.planning.action_cap == find_world(world).action_cap
    row = score.play(ws, stages.load_trained(ws), case).row
    assert row["n"] == 2 and row["data"]["source"] == source and row["world"] == world
    assert openloop.long_walks(config.data, 20, 2, 0).world is find_world(world)
    refused(WorkbookError, "no other walks", openloop.long_walks, settings(source).data, 20, 2, 0)


@pytest.mark.parametrize("setting", ["data__source", "data__world"])
def test_another_content_of_an_own_world_is_another_world(tmp_path, monkeypatch, setting):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / f"box_{setting}.py"
    config = tiny_config(**{"data__source": "records.h5", setting: f"{file.stem}:Box"})
    found = []
    for text in ("step = 1", "step = 2", "step = 1"):
        file.write_text(text)
        found.append(key(core_stages(config)["l1"], config))
    assert found[0] == found[2] != found[1]


def test_chapters_go_as_far_as_a_recording_does(source, workspace_of, monkeypatch):
    monkeypatch.setenv("HJEPA_HEADLESS", "1")
    ws = workspace_of(settings(source), "chapters")
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
    assert [row["steps ahead"] for row in read_json(ws.run.path / "offline.json")] == [1, 2, 5] * 4


def test_chapters_draw_the_curves_that_there_are(workspace_of, monkeypatch, capsys):
    """Without a validation, and of trainings that another run has."""
    monkeypatch.setenv("HJEPA_HEADLESS", "1")
    updates = {f"{part}__optim__updates": 10 for part in ("level1", "distance", "level2")}
    config = tiny_config(data__val_fraction=0.0, **updates)
    stages.load_trained(workspace_of(config, "donor"))
    stages.load_trained(workspace_of(config.override("level1.load=donor"), "named"))
    for run, curves in (
        ("donor", {"02_losses.png", "02_distance_losses.png", "03_losses.png"}),
        ("named", set()),
    ):
        capsys.readouterr()
        for chapter, end in ((1, '= ws.run.records("distance")'), (2, '= ws.run.records("l2")')):
            execute(NOTEBOOKS[chapter], end, run=run)
        figures = {*Run.open(run).manifest["figures"]}
        assert {name for name in figures if name.endswith("losses.png")} == curves
        assert capsys.readouterr().out.count("in donor") == (0 if curves else 3)


def test_a_chapter_that_ends_early_says_so_in_every_later_cell(source, root, monkeypatch, capsys):
    ws, shell = Workspace("test", Run.create("end", settings(source))), InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    ws.leave("no more")
    assert shell.run_cell("print(1 / 0)").success
    out = capsys.readouterr().out
    assert "no more" in out and "left out, as said above" in out
