"""A stage is known by what made it: keys, and where inputs come from (I1 to I7, C3, C11)."""

import os
import shutil

import pytest
import torch
from tiny import digest, tiny_config
from tiny_runs import CPU

from hjepa_lib.config import ConfigError
from hjepa_lib.files import read_json, write_json
from hjepa_lib.grids.stages import grid_stages
from hjepa_lib.models.checkpoint import load_level2
from hjepa_lib.pixels.stages import pixel_stages
from hjepa_lib.runs import stages
from hjepa_lib.runs.keys import Stage, closure, core_stages, key
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

NAMES = ("data", "l1", "distance", "l2")


@pytest.fixture
def root(root, monkeypatch):
    monkeypatch.setattr("hjepa_lib.runs.places.repository", lambda: root / "nowhere")
    return root


@pytest.fixture
def toy(monkeypatch):
    """Makers that write what they would depend on, and log what they made."""
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
    return [ws.obtain(stages.core_stages(ws.config)[name]) for name in names]


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
    return {name: key(stage, config) for name, stage in stages.core_stages(config).items()}


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


def test_i1_a_run_of_another_seed_trains_its_own(root, toy, capsys):
    obtain(begin("zero"), "l2")
    ws = begin("one", seed=1)
    obtain(ws, "l2", "l1")
    assert [name for run, name in toy if run == "one"] == ["data", "l1", "distance", "l2"]
    assert origins(ws, *NAMES) == ["this run"] * 4
    assert "l1: no run holds it with these settings" in capsys.readouterr().out
    assert obtained(begin("again", "planning.cost=latent"), *NAMES[:0:-1]) == ["zero"] * 3
    assert "l2: taken from zero" in capsys.readouterr().out


def test_i3_a_set_of_models_comes_from_one_run(root, toy):
    """Runs with equal keys have other weights."""
    first, second = begin("first"), begin("second")
    for ws in (first, second):
        list(ws.make(stages.core_stages(ws.config)["l1"]))
        (ws.run.path / "l1" / "l1.txt").write_text(ws.run.name)  # as another machine would round
        with ws.run.stage("l1", key=ws.run.key("l1")):
            pass
    list(first.make(stages.core_stages(CPU)["distance"]))
    obtain(first, "l2")
    os.utime(second.run.path / "manifest.json")
    ws = begin("third")
    assert obtained(ws, "l1") == ["second"]  # the newest that has it
    assert obtained(ws, "l2", "distance", "l1") == ["this run", "this run", "second"]
    assert obtained(begin("fourth"), "l2", "distance", "l1") == ["third", "third", "second"]


def test_i5_the_newest_run_that_has_the_stage_is_asked(root, toy):
    """Nothing stands in."""
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


def test_i7_level_2_is_stale_once_this_run_makes_its_own_level_1(root, toy):
    obtain(begin("donor"), "l2")
    ws = begin("mine")
    assert obtained(ws, "l2", "l1") == ["donor", "donor"]
    level1 = stages.core_stages(ws.config)["l1"]
    with ws.run.stage("l1", key=ws.key(level1)) as folder:
        (folder / "l1.txt").write_text("made here")
    assert not ws.done(stages.core_stages(ws.config)["l2"])


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
    with pytest.raises(RunError, match="does not exist"):
        obtain(begin("bad", "level1.load=nobody"), "l1")


@pytest.mark.parametrize(("changes", "seed"), [("level1.width=9", 0), ("", 3), ("", 0)])
def test_i4_an_exported_level_1_is_taken_by_its_equal_alone(root, toy, capsys, changes, seed):
    donor = begin("donor")
    obtain(donor, "l1")
    donor.run.export(root / "pretrained")
    shutil.rmtree(donor.run.path)
    equal = not changes and not seed
    assert obtained(begin("mine", changes, seed), "l1") == ["pretrained" if equal else "this run"]
    assert ("l1: taken from pretrained" in capsys.readouterr().out) is equal


def test_a_run_made_before_there_were_keys_is_input_only_when_named(root, toy):
    old = begin("old")
    obtain(old, "l1")
    edit(old.run, lambda manifest: manifest["stages"]["l1"].pop("key"))
    assert obtained(begin("mine"), "l1") == ["this run"]
    named = begin("named", "level1.load=old")
    assert obtained(named, "l1") == ["old"]
    assert named.done(stages.core_stages(named.config)["l1"])


def test_s1_a_run_of_a_gpu_opens_where_there_is_none(root, capsys, monkeypatch):
    run = Run.create("gpu", CPU)
    edit(run, lambda manifest: manifest.update(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Workspace("test", run).device == "cpu"
    assert "made on cuda, which this machine lacks" in capsys.readouterr().out


def test_s1_a_stage_names_the_device_it_was_made_on(root, toy, monkeypatch):
    """Also in a run that was begun on another machine."""
    ws = begin("begun")
    obtain(ws, "data")
    edit(ws.run, lambda manifest: manifest.update(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    again = Workspace("test", Run.open("begun"))
    obtain(again, "l1")
    found = again.run.manifest
    assert (found["device"], found["stages"]["l1"]["device"]) == ("cuda", "cpu")


def test_s10_a_manifest_cannot_name_files_outside_its_run(root, toy):
    donor = begin("donor")
    obtain(donor, "l1")

    def outside(manifest):
        manifest["stages"]["l1"]["files"][0]["path"] = "../../secret"

    edit(donor.run, outside)
    with pytest.raises(ValueError, match="no file below"):
        begin("mine").run.adopt(donor.run, "l1")
    with pytest.raises(ValueError, match="no file below"):
        Run.open("donor").export(root / "exported")
    assert not (root / "exported").exists()


def test_where_nothing_is_held_out_nothing_is_called_so(workspace_of, capsys):
    """D2."""
    ws = workspace_of(tiny_config(data__val_fraction=0.0))
    reports = list(stages.train(ws, "l1"))
    assert not any(report.validation for report in reports)
    folder = ws.run.path / "l1"
    weights = [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "last")]
    assert weights[0] == weights[1]
    assert read_json(folder / "quality.json")["measured_on"] == "training"
    assert "nothing is held out" in capsys.readouterr().out
    for name in ("level1.optim.patience=2", "level2.optim.schedule=plateau"):
        with pytest.raises(ConfigError, match=r"waits for a validation: set data\.val_fraction"):
            tiny_config(data__val_fraction=0.0).override(name)


def test_c3_chapters_after_a_joint_training_start_alone(workspace_of):
    # Its windows are level 2's own: a level1.window that no trajectory has is not asked for.
    config = tiny_config(level2__train="joint", level1__optim__updates=2, level1__window=200)
    list(stages.train(workspace_of(config, "donor"), "l1"))
    ws = Workspace("03", Run.create("alone", config))
    agent = stages.load_trained(ws)
    assert origins(ws, "l1", "l2") == ["donor", "this run"]
    jointly = load_level2(ws.run.path / "l1", "joint_level2").model
    assert digest(agent.level2) == digest(jointly)
