"""`drive = True`: the run is copied to a mounted folder, whole, once, and over nobody else's."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from tiny import OVERRIDES, tiny_config

from hjepa_lib.config import ConfigError
from hjepa_lib.files import FileError
from hjepa_lib.runs import drive, workspace
from hjepa_lib.runs.run import Run, RunError

TEXT = ",".join(f"{key}={value}" for key, value in OVERRIDES.items())


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """A folder that stands for the mounted Drive."""
    folder = tmp_path / "drive"
    folder.mkdir()
    monkeypatch.setenv("HJEPA_DRIVE", str(folder))
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))
    return folder


@pytest.fixture
def run(tmp_path):
    made = Run.create("mine", tiny_config(), tmp_path / "outputs")
    with made.stage("data") as folder:
        (folder / "positions.bin").write_bytes(b"12345")
    made.log({"stage": "l1", "step": 10, "loss": 1.0})
    made.folder("notebooks")
    (made.path / "notebooks/02_train_l1.running.ipynb").write_text("{}")
    (made.path / ".left.tmp").write_text("half")
    return made


def test_a_notebook_copies_its_run(mount):
    ws = workspace.start("01_data_prep", "smoke", "mine", 0, TEXT, True)
    target = ws.copy_to_drive()
    assert target == mount / "hjepa" / "mine"
    assert Run.at(target).config == ws.config
    off = workspace.start("01_data_prep", "smoke", "mine", 0, TEXT)
    with pytest.raises(ConfigError, match="start the notebook with drive=True"):
        off.copy_to_drive()


def test_the_copy_is_a_whole_run_without_passing_files(run, mount):
    copy = Run.at(drive.copy_run(run, mount))
    copy.verify("data")
    assert copy.records() == run.records()
    found = {path.name for path in copy.path.rglob("*") if path.is_file()}
    assert found == {"manifest.json", "metrics.jsonl", "positions.bin"}


def test_a_study_cell_keeps_its_place(tmp_path, mount):
    cell = Run.create("study/seed0", tiny_config(), tmp_path / "outputs")
    assert drive.copy_run(cell, mount) == mount / "hjepa" / "study" / "seed0"


def test_only_what_changed_is_copied_again(run, mount, monkeypatch):
    drive.copy_run(run, mount)
    copied = []
    real = shutil.copyfile
    monkeypatch.setattr(
        shutil, "copyfile", lambda a, b: copied.append(os.path.basename(a)) or real(a, b)
    )
    drive.copy_run(run, mount)
    assert copied == []
    run.log({"stage": "l1", "step": 20, "loss": 0.5})
    run.note("x", 1)
    drive.copy_run(run, mount)
    assert copied == ["metrics.jsonl", "manifest.json"]  # the manifest comes last


def test_an_interrupted_copy_is_no_run_yet(run, mount, monkeypatch):
    """A stage counts when the manifest lists it, so the manifest must not come first."""
    real = shutil.copyfile

    def full(source, target):
        if source.name == "positions.bin":
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(FileError, match=r"^cannot copy to .*positions\.bin: No space left"):
        drive.copy_run(run, mount)
    assert not list(mount.rglob("manifest.json"))
    monkeypatch.undo()
    Run.at(drive.copy_run(run, mount)).verify("data")


def test_another_run_of_the_same_name_is_left_alone(run, mount):
    target = drive.copy_run(run, mount)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | {"created": "yesterday"}))
    with pytest.raises(RunError, match="holds another run of that name"):
        drive.copy_run(run, mount)


def test_a_missing_mount_is_reported_before_anything_is_made(tmp_path, mount, monkeypatch):
    monkeypatch.setenv("HJEPA_DRIVE", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"^drive=True needs a mounted Drive, and .*absent does"):
        workspace.start("01_data_prep", "smoke", "mine", 0, TEXT, True)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("value", ["true", 1, None, "no"])
def test_only_true_and_false_are_answers(value):
    with pytest.raises(ConfigError, match=r"^drive must be True or False, got "):
        drive.find_drive(value)
    assert drive.find_drive(False) is None


@pytest.mark.parametrize("granted", [True, False])
def test_colab_is_asked_to_mount(tmp_path, monkeypatch, granted):
    """In Colab the mount is made now; a refusal is one sentence."""

    def mount(path):
        if not granted:
            raise ValueError("mount failed")
        (tmp_path / "content/drive/MyDrive").mkdir(parents=True)

    monkeypatch.delenv("HJEPA_DRIVE", raising=False)
    monkeypatch.setattr(drive, "COLAB_MOUNT", str(tmp_path / "content/drive"))
    module = SimpleNamespace(mount=mount)
    for name, value in (("google.colab", SimpleNamespace()), ("google.colab.drive", module)):
        monkeypatch.setitem(sys.modules, name, value)
    if granted:
        assert drive.find_drive(True) == tmp_path / "content/drive/MyDrive"
    else:
        with pytest.raises(ConfigError, match="needs a mounted Drive"):
            drive.find_drive(True)
