"""Run folders, metrics log, notebook start-up, machine set-up and the pretrained export."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
import torch

from hjepa_lib.config import ConfigError, profile
from hjepa_lib.files import FileError
from hjepa_lib.runs import machine, workspace
from hjepa_lib.runs.log import MetricsLog
from hjepa_lib.runs.places import RunError, list_runs, new_name, outputs_root
from hjepa_lib.runs.pretrained import export
from hjepa_lib.runs.run import Run

CONFIG = profile("smoke").override("device=cpu,precision=fp32")
TEXT = "device=cpu,precision=fp32"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def fill(run, stage, text="x", **options):
    with run.stage(stage, **options) as folder:
        (folder / f"{stage}.txt").write_text(text)


def test_create_open_and_latest(root):
    first = Run.create("a", CONFIG)
    Run.create("study/cell", CONFIG)
    assert Run.open().name == "a"  # I11: a cell of an experiment is not
    assert Run.open("a").config == CONFIG == first.config
    assert (root / "latest").read_text() == "a\n"
    assert list_runs() == ["a", "study/cell"]
    assert not list(root.glob(".*"))
    assert new_name(CONFIG).startswith("smoke-s0-2")


def test_existing_run_is_an_error_and_nothing_is_deleted(root):
    """PL8: starting a run never deletes files, whatever its name contains."""
    run = Run.create("my_test_run", CONFIG)
    fill(run, "l1")
    with pytest.raises(RunError, match="'my_test_run' exists already"):
        Run.create("my_test_run", CONFIG)
    Run.create("my_test_run2", CONFIG)
    assert Run.open("my_test_run").done("l1")
    with pytest.raises(RunError, match="is a run"):
        Run.create("my_test_run/cell", CONFIG)


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b/c", ".hidden", "", "latest", "pretrained/x", "a b", "a/../b"]
)
def test_names_that_could_leave_the_outputs_folder_are_refused(name, root):
    with pytest.raises(RunError):
        Run.create(name, CONFIG)
    if name:
        with pytest.raises(RunError):
            Run.open(name)
    assert not root.exists()


def test_missing_and_damaged_runs_are_one_sentence(root):
    with pytest.raises(RunError, match="no run in"):
        Run.open()
    run = Run.create("a", CONFIG)
    with pytest.raises(RunError, match=r"'b' does not exist.*newest ones are: a"):
        Run.open("b")
    manifest = (run.path / "manifest.json").read_text()
    (run.path / "manifest.json").write_text(manifest[: len(manifest) // 2])
    with pytest.raises(FileError):
        Run.open("a")
    (run.path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="no run manifest"):
        Run.open("a")


def test_failed_creation_leaves_nothing(root, monkeypatch):
    def full(path, obj):
        raise FileError("cannot write: no space left on device")

    monkeypatch.setattr("hjepa_lib.runs.run.write_json", full)
    with pytest.raises(FileError):
        Run.create("a", CONFIG)
    assert list(root.iterdir()) == []


def test_device_and_precision_are_chosen_once(monkeypatch):
    monkeypatch.setattr(machine, "bf16_speedup", lambda device: 3.0)
    config = CONFIG.override("precision=auto,device=auto")
    assert Run.create("a", config).precision == "bf16"
    monkeypatch.setattr(machine, "bf16_speedup", lambda device: 0.5)
    assert Run.open("a").precision == "bf16"
    assert Run.create("b", config).precision == "fp32"


def test_stage_lists_files_and_notices_damage():
    run = Run.create("a", CONFIG)
    assert not run.done("l1")
    fill(run, "l1", "hello")
    (item,) = run.manifest["stages"]["l1"]["files"]
    assert (item["path"], item["bytes"]) == ("l1/l1.txt", 5)
    assert Run.open("a").done("l1")
    run.verify("l1")
    (run.path / "l1/l1.txt").write_text("HELLO")
    assert run.done("l1")
    with pytest.raises(RunError, match="differs from what stage 'l1' wrote"):
        run.verify("l1")
    (run.path / "l1/l1.txt").write_text("hell")
    assert not run.done("l1")
    (run.path / "l1/l1.txt").unlink()
    assert not run.done("l1")


def test_failed_stage_is_not_marked_and_its_time_is_kept(monkeypatch):
    run = Run.create("a", CONFIG)
    fill(run, "l1")
    clock = iter([0.0, 5.0, 10.0, 12.0])
    watch = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("hjepa_lib.runs.run.time", watch)
    with pytest.raises(KeyboardInterrupt), run.stage("l1"):
        raise KeyboardInterrupt
    assert not Run.open("a").done("l1")
    fill(run, "l1")
    assert run.manifest["stages"]["l1"]["seconds"] == 7.0  # 5 interrupted + 2
    assert run.manifest["interrupted"] == {}


def test_stages_share_a_folder_without_claiming_each_others_files():
    run = Run.create("a", CONFIG)
    with run.stage("l1") as folder:
        (folder / "resume.pt").write_text("optimiser state")
        (folder / "weights").write_text("1")
    fill(run, "distance", folder="l1", reads=("l1",))
    paths = [item["path"] for item in run.manifest["stages"]["distance"]["files"]]
    assert paths == ["l1/distance.txt"]
    (run.path / "l1/resume.pt").unlink()  # optimiser state is no result
    assert run.done("l1")
    assert run.done("distance")


def test_stage_is_stale_when_its_input_was_made_again():
    run = Run.create("a", CONFIG)
    fill(run, "l1", "old")
    fill(run, "l2", reads=("l1",))
    fill(run, "l1", "old")
    assert run.done("l2")
    fill(run, "l1", "new")
    assert not run.done("l2")


def test_kill_9_in_a_stage_leaves_it_unfinished(root):
    code = """
import os, signal, sys
from hjepa_lib.runs.run import Run
run = Run.open("a")
run.log({"stage": "l1", "step": 1, "loss": 2.0})
with run.stage("l1") as folder:
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = Run.create("a", CONFIG)
    fill(run, "data")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    again = Run.open("a")
    assert again.done("data")
    assert not again.done("l1")
    assert [row["loss"] for row in again.records("l1")] == [2.0]


def test_notes_of_two_processes_do_not_overwrite_each_other():
    run, other = Run.create("a", CONFIG), Run.open("a")
    run.note("data_hash", "ab")
    other.record_notebook("01_x", {"ok": True})
    fill(other, "data")
    run.note("probe", 1.5)
    again = Run.open("a").manifest
    assert again["notes"] == {"data_hash": "ab", "probe": 1.5}
    assert again["notebooks"] == {"01_x": {"ok": True}}
    assert run.done("data")


def test_log_rejects_a_second_value_for_the_same_key():
    """PL6: one key, one value; also across processes."""
    run = Run.create("a", CONFIG)
    run.log({"stage": "l1", "step": 3, "loss": 1.0})
    run.log({"stage": "l1", "step": 3, "probe": 2.0})
    run.log({"stage": "l2", "step": 3, "loss": 1.0})
    for one in (run, Run.open("a")):
        with pytest.raises(FileError, match="'loss' of l1 step 3 is written twice"):
            one.log({"stage": "l1", "step": 3, "loss": 1.0})
    assert len(run.records()) == 3
    assert len(run.records("l1")) == 2


def test_log_takes_numbers_of_all_kinds_and_needs_stage_and_step(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.log(
        {
            "stage": "l1",
            "step": np.int64(1),
            "a": torch.tensor(0.5),
            "b": [np.float32(2), float("inf")],
            "c": {"d": float("nan")},
        }
    )
    wanted = {"stage": "l1", "step": 1, "a": 0.5, "b": [2.0, None], "c": {"d": None}}
    assert log.records() == [wanted]
    for bad in ({"step": 1}, {"stage": "l1"}, {"stage": "l1", "step": 0.5}):
        with pytest.raises(FileError, match="needs a text 'stage'"):
            log.log(bad)


def test_half_a_last_line_is_ignored_and_healed(tmp_path):
    path = tmp_path / "m.jsonl"
    MetricsLog(path).log({"stage": "l1", "step": 1, "loss": 1})
    with path.open("a") as file:
        file.write('{"stage": "l1", "st')
    assert len(MetricsLog(path).records()) == 1
    MetricsLog(path).log({"stage": "l1", "step": 2, "loss": 1})
    assert [row["step"] for row in MetricsLog(path).records()] == [1, 2]
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(FileError, match="line 1 is not valid JSON"):
        MetricsLog(path).records()


def test_rewind_makes_a_resumed_log_equal_to_an_uninterrupted_one(tmp_path):
    """PL8: resume equals an uninterrupted run, from a checkpoint and from the start."""

    def train(log, first, last):
        log.rewind("l1", first - 1)
        for step in range(first, last):
            log.log({"stage": "l1", "step": step, "loss": 1 / (step + 1)})

    whole, cut = MetricsLog(tmp_path / "whole"), MetricsLog(tmp_path / "cut")
    train(whole, 0, 10)
    train(cut, 0, 7)  # killed at step 7, last checkpoint after step 4
    train(cut, 4, 10)
    assert cut.path.read_bytes() == whole.path.read_bytes()
    train(cut, 0, 10)
    assert cut.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_logging_is_one_sentence():
    with pytest.raises(FileError, match="cannot write /dev/full"):
        MetricsLog(Path("/dev/full")).log({"stage": "l1", "step": 1})


def test_start_creates_then_reopens_a_named_run():
    first = workspace.start("01_data_prep", "smoke", "mine", 0, TEXT)
    again = workspace.start("02_train_l1", "smoke", "mine", 0, TEXT)
    assert again.run.path == first.run.path
    assert (again.device, again.precision) == ("cpu", "fp32")
    assert "run mine | profile smoke, seed 0 | cpu, fp32" in repr(again)
    with pytest.raises(RunError, match=r"made with seed=0, not 3; choose another"):
        workspace.start("02_train_l1", "smoke", "mine", 3, TEXT)
    with pytest.raises(RunError, match=r"level1\.optim\.updates=60, not 61"):
        workspace.start("02_train_l1", "smoke", "mine", 0, TEXT + ",level1.optim.updates=61")


def test_unnamed_notebooks_follow_each_other():
    first = workspace.start("01_data_prep", "smoke", "", 0, TEXT).run
    assert workspace.start("02_train_l1", "smoke", "", 0, TEXT).run.path == first.path
    other = workspace.start("03_train_l2_rssm", "smoke", "", 1, TEXT).run
    assert other.path != first.path
    Run.create("later", first.config)
    assert workspace.start("04_plan_mppi", "smoke", "", 0, TEXT).run.name == "later"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge", "", 0, ""), "profile must be one of"),
        ((None, "", 0, ""), "must be text"),
        (("smoke", 3, 0, ""), "run must be text"),
        (("smoke", "", "x", ""), "seed must be int"),
        (("smoke", "", -1, ""), "seed must lie in"),
        (("smoke", "", 0, "level1.widht=3"), "unknown setting"),
        (("smoke", "", 0, "level1.width=lots"), "width must be int"),
        (("smoke", "", 0, "level1.width"), "not of the form"),
        (("smoke", "", 0, "profile=full"), "cannot be an override"),
        (("smoke", "../x", 0, ""), "no run name"),
    ],
)
def test_wrong_parameters_are_one_sentence(arguments, message, root):
    with pytest.raises(ValueError, match=message) as caught:
        workspace.start("01_data_prep", *arguments)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_figures_are_saved_with_captions():
    ws = workspace.start("02_train_l1", "smoke", "mine", 0, TEXT)
    ws.figure(matplotlib.figure.Figure(), "loss", "Loss by update")
    ws.animation(b"GIF89a", "episode")
    assert (ws.run.path / "figures/loss.png").read_bytes().startswith(b"\x89PNG")
    notes = Run.open("mine").manifest["notes"]["figures"]
    assert notes["loss.png"] == {"notebook": "02_train_l1", "caption": "Loss by update"}
    assert list(notes) == ["loss.png", "episode.gif"]
    with pytest.raises(ConfigError, match="no figure name"):
        ws.figure(matplotlib.figure.Figure(), "../loss")


def test_progress_is_plain_when_headless(monkeypatch, capsys):
    monkeypatch.setenv("HJEPA_HEADLESS", "1")
    ws = workspace.start("02_train_l1", "smoke", "mine", 0, TEXT)
    assert list(ws.progress(range(3), "train")) == [0, 1, 2]
    with ws.progress(5, "plan") as bar:
        bar.update(5)
    out, err = capsys.readouterr()
    assert "train: 100%" in out
    assert "plan: 100%" in out
    assert err == ""


def test_set_up_and_choices(monkeypatch):
    threads = torch.get_num_threads()
    try:
        assert machine.set_up(1) == 1
        assert 1 <= machine.set_up() <= machine.usable_cores()
    finally:
        torch.set_num_threads(threads)
    assert machine.choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_has_mps", lambda: True)
    assert machine.choose_device() == "mps"
    assert machine.choose_precision("mps") == "fp32"
    for name in ("cuda", "tpu"):
        with pytest.raises(ConfigError, match=f"{name!r} is not available"):
            machine.choose_device(name)
    assert machine.choose_precision("cpu", "bf16") == "bf16"
    monkeypatch.setattr(machine, "bf16_speedup", lambda device: 1.1)
    assert machine.choose_precision("cpu") == "fp32"  # not clearly faster


def test_precision_benchmark_measures_and_restores_threads():
    threads = torch.get_num_threads()
    assert 0.001 < machine.bf16_speedup("cpu", seconds=0.01) < 1000
    assert torch.get_num_threads() == threads


def test_revision_and_versions(tmp_path):
    assert machine.revision(tmp_path) == "unknown"
    (tmp_path / "VERSION").write_text("1.2\n")
    assert machine.revision(tmp_path) == "1.2"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=clean)
    assert len(machine.revision(tmp_path)) == 40
    (tmp_path / "outputs" / "gallery").mkdir(parents=True)
    (tmp_path / "outputs" / "gallery" / "study.csv").write_text("a row that was just made\n")
    assert len(machine.revision(tmp_path)) == 40
    (tmp_path / "VERSION").write_text("1.3\n")
    assert machine.revision(tmp_path).endswith("-dirty")
    assert {"python", "torch", "processor", "cores"} <= machine.versions().keys()
    json.dumps(machine.versions())


def test_revision_of_notebooks_behind_a_filter(tmp_path):
    """The filter, slow to start, is never started; a changed notebook is a change."""
    calls = tmp_path / "calls"

    def git(folder, *command):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        subprocess.run(["git", *command], cwd=folder, check=True, env=clean, capture_output=True)

    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    git(source, "init", "-q")
    (source / ".gitattributes").write_text("*.ipynb filter=nbstripout\n")
    (source / "a.ipynb").write_text("cells\n")
    git(source, "add", ".")
    git(source, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "x")
    git(tmp_path, "clone", "-q", "source", "clone")
    git(clone, "config", "filter.nbstripout.clean", f"echo x >> '{calls}'; sed /output/d")
    assert len(machine.revision(clone)) == 40
    assert not calls.exists()
    (clone / "a.ipynb").write_text("other\n")  # of the same size: contents are compared
    assert machine.revision(clone).endswith("-dirty")
    assert not calls.exists()


def test_pretrained_export_is_a_run_without_data_or_resume_state(root):
    run = Run.create("a", CONFIG)
    with pytest.raises(RunError, match="no trained level 1"):
        export(run, root / "pretrained")
    fill(run, "data")
    with run.stage("l1", reads=("data",)) as folder:
        (folder / "weights").write_text("1")
        (folder / "resume.pt").write_text("1")
    fill(run, "l2", reads=("l1",))
    for _ in range(2):  # the second export replaces the first
        export(run, root / "pretrained")
    found = Run.at(root / "pretrained")
    assert found.done("l1")
    assert found.done("l2")
    files = {path.name for path in found.path.rglob("*") if path.is_file()}
    assert files == {"manifest.json", "weights", "l2.txt"}
    assert not list(root.glob("*.tmp"))
    (run.path / "l1/weights").write_text("2")
    with pytest.raises(RunError, match="differs"):
        export(run, root / "pretrained")
    assert Run.at(root / "pretrained").done("l1")
    assert outputs_root() == root
