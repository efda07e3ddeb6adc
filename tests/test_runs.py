"""Run folders, metrics log, notebook start-up, machine set-up and the pretrained export."""

import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import pytest
import torch
from tiny_runs import CPU, fill, git, race

from hjepa_lib.__main__ import main
from hjepa_lib.config import ConfigError
from hjepa_lib.config.pixels import RewardConfig
from hjepa_lib.files import FileError
from hjepa_lib.grids.measures import latent_report
from hjepa_lib.pixels.heads import RewardHead
from hjepa_lib.runs import machine, workspace
from hjepa_lib.runs.log import MetricsLog
from hjepa_lib.runs.places import RunError, list_runs, new_name
from hjepa_lib.runs.run import Run
from hjepa_lib.training.probes import collapse, effective_rank, fit_ridge

TEXT = "device=cpu,precision=fp32"
pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def run(root):
    return Run.create("a", CPU)


def begin(number, run="mine", seed=0, more=""):
    return workspace.start(f"0{number}_chapter", "smoke", run, seed, TEXT + more)


def record(step, stage="l1", **values):
    return {"stage": stage, "step": step, **(values or {"loss": 1 / (step + 1)})}


def test_create_open_and_latest(root):
    """PL8."""
    first = Run.create("my_test_run", CPU)
    fill(first, "l1")
    Run.create("study/cell", CPU)
    Run.create("elsewhere", CPU, root / "study")
    assert Run.open().name == "my_test_run"  # I11: a cell of an experiment is not
    with pytest.raises(RunError, match="'my_test_run' exists already"):
        Run.create("my_test_run", CPU)
    with pytest.raises(RunError, match="is a run"):
        Run.create("my_test_run/cell", CPU)
    found = Run.open("my_test_run")
    assert found.config == CPU == first.config and found.done("l1")
    assert (root / "latest").read_text() == "my_test_run\n"
    assert list_runs() == ["my_test_run", "study/cell", "study/elsewhere"]
    assert not list(root.glob(".*"))
    assert new_name(CPU).startswith("smoke-s0-2")


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b/c", ".hidden", "", "latest", "pretrained/x", "a b", "a/../b"]
)
def test_names_that_could_leave_the_outputs_folder_are_refused(name, root):
    for make in (lambda: Run.create(name, CPU), lambda: Run.open(name)):
        with pytest.raises(RunError):
            make()
    assert not root.exists()


def test_missing_and_damaged_runs_are_one_sentence(root, monkeypatch):
    with pytest.raises(RunError, match="no run in"):
        Run.open()
    manifest = Run.create("a", CPU).path / "manifest.json"
    with pytest.raises(RunError, match=r"'b' does not exist.*newest ones are: a"):
        Run.open("b")
    with pytest.raises(RunError, match="holds no run"):
        Run.at(root)
    whole = manifest.read_text()
    for text, message in ((whole[:99], "not valid JSON"), ("{}", "no run manifest")):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=message):
            Run.open("a")

    def full(path, obj):
        raise FileError("cannot write: no space left on device")

    monkeypatch.setattr("hjepa_lib.runs.run.write_json", full)
    with pytest.raises(FileError):
        Run.create("b", CPU)
    assert {path.name for path in root.iterdir()} == {"a", "latest"}


def test_device_and_precision_are_chosen_once(monkeypatch):
    monkeypatch.setattr(machine, "bf16_speedup", lambda device: 3.0)
    config = CPU.override("precision=auto,device=auto")
    assert Run.create("a", config).precision == "bf16"
    monkeypatch.setattr(machine, "bf16_speedup", lambda device: 1.1)  # not clearly faster
    assert Run.open("a").precision == "bf16"
    assert Run.create("b", config).precision == "fp32"
    assert Run.create("c", config, like=Run.open("a")).precision == "bf16"


def test_a_run_whose_tracker_is_gone_opens(run):
    tree = json.loads((run.path / "manifest.json").read_text())
    for known, tracker in (("wandb", "wandb"), ("none", "trackio")):
        tree["config"]["tracker"] = tracker
        (run.path / "manifest.json").write_text(json.dumps(tree))
        assert Run.open("a").config.tracker == known


def test_stage_lists_files_and_notices_damage(run):
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
    with pytest.raises(RunError, match="not complete"):
        run.verify("l1")
    (run.path / "l1/l1.txt").unlink()
    assert not run.done("l1")


def test_failed_stage_is_not_marked_and_its_time_is_kept(run, monkeypatch):
    fill(run, "l1")
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])
    watch = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("hjepa_lib.runs.run.time", watch)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), run.stage("l1"):
            assert not Run.open("a").done("l1")  # what kill -9 would leave
            raise KeyboardInterrupt
        assert not Run.open("a").done("l1")
    fill(run, "l1")
    assert run.manifest["stages"]["l1"]["seconds"] == 8.0  # 5 and 1 interrupted, then 2
    assert run.manifest["interrupted"] == {}


def test_stages_share_a_folder_without_claiming_each_others_files(run):
    with run.stage("l1") as folder:
        (folder / "resume.pt").write_text("optimiser state")
        (folder / "weights").write_text("1")
    fill(run, "distance", folder="l1", reads=("l1",))
    paths = [item["path"] for item in run.manifest["stages"]["distance"]["files"]]
    assert paths == ["l1/distance.txt"]
    (run.path / "l1/resume.pt").unlink()  # optimiser state is no result
    assert run.done("l1") and run.done("distance")


def test_stage_is_stale_when_its_input_was_made_again(run):
    for text, whole in (("old", True), ("old", True), ("new", False)):
        fill(run, "l1", text)
        if "l2" not in run.manifest["stages"]:
            fill(run, "l2", reads=("l1",))
        assert run.done("l2") is whole


NOTE = """
import sys
from hjepa_lib.runs.run import Run
run, name = Run.open("a"), sys.argv[1]
print("ready", flush=True)
input()
for step in range(50):
    run.note(f"{name}{step}", step)
    run.metrics.rewind(name, step - 1)
    run.log({"stage": name, "step": step, "loss": 1.0})
"""


def test_s3_two_processes_lose_no_note_and_no_metric_of_each_other(run):
    race(NOTE, "x", "y")
    names = {f"{name}{step}": step for name in "xy" for step in range(50)}
    assert Run.open("a").manifest["notes"] == names
    assert [len(run.records(name)) for name in "xy"] == [50, 50]


def test_log_rejects_a_second_value_for_the_same_key(run):
    """PL6."""
    run.log(record(3))
    run.log(record(3, probe=2.0))
    run.log(record(3, "l2"))
    for one in (run, Run.open("a")):
        with pytest.raises(FileError, match="'loss' of l1 step 3 is written twice"):
            one.log(record(3))
    assert (len(run.records()), len(run.records("l1"))) == (3, 2)


def test_half_a_last_line_is_ignored_and_healed(tmp_path):
    path = tmp_path / "m.jsonl"
    MetricsLog(path).log(record(1))
    with path.open("a") as file:
        file.write('{"stage": "l1", "st')
    assert len(MetricsLog(path).records()) == 1
    MetricsLog(path).log(record(2))
    assert [row["step"] for row in MetricsLog(path).records()] == [1, 2]
    before = path.stat().st_ino
    MetricsLog(path).log(record(3))
    assert path.stat().st_ino == before  # appended: another process may be writing, too
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(FileError, match="is not valid JSON"):
        MetricsLog(path).records()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_logging_is_one_sentence(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"cannot write .*full: No space left"):
        MetricsLog(tmp_path / "full").log(record(1))


def test_start_creates_then_reopens_a_named_run():
    first, again = begin(1), begin(2)
    assert again.run.path == first.run.path
    assert (again.device, again.precision) == ("cpu", "fp32")
    assert "run mine | profile smoke, seed 0 | cpu, fp32" in repr(again)
    with pytest.raises(RunError, match=r"made with seed=0, not 3; choose another"):
        begin(2, seed=3)
    with pytest.raises(RunError, match=r"level1\.optim\.updates=60, not 61"):
        begin(2, more=",level1.optim.updates=61")


def test_unnamed_notebooks_follow_each_other():
    first = begin(1, "").run
    assert begin(2, "").run.path == first.path
    assert begin(3, "", seed=1).run.path != first.path
    Run.create("later", first.config)
    assert begin(4, "").run.name == "later"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge", "", 0, ""), "profile must be one of"),
        ((None, "", 0, ""), "profile must be text"),
        (("smoke", 3, 0, ""), "run must be text"),
        (("smoke", "", "x", ""), "seed must be int"),
        (("smoke", "", 0, "level1.widht=3"), "unknown setting"),
        (("smoke", "", 0, "profile=full"), "not by a setting"),
        (("smoke", "../x", 0, ""), "no run name"),
    ],
)
def test_wrong_parameters_are_one_sentence(arguments, message, root):
    with pytest.raises(ValueError, match=message) as caught:
        workspace.start("01_data_prep", *arguments)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_figures_are_saved_with_captions():
    ws = begin(2)
    ws.figure(matplotlib.figure.Figure(), "loss", "Loss by update")
    ws.animation(b"GIF89a", "episode")
    assert (ws.run.path / "figures/loss.png").read_bytes().startswith(b"\x89PNG")
    notes = Run.open("mine").manifest["figures"]
    assert notes["loss.png"] == {"notebook": "02_chapter", "caption": "Loss by update"}
    assert list(notes) == ["loss.png", "episode.gif"]
    with pytest.raises(ConfigError, match="no figure name"):
        ws.figure(matplotlib.figure.Figure(), "../loss")


def test_set_up_and_choices(monkeypatch):
    threads = torch.get_num_threads()
    try:
        assert machine.set_up(1) == 1
        assert 1 <= machine.set_up() <= machine.usable_cores()
        torch.set_num_threads(1)
        assert 0.001 < machine.bf16_speedup("cpu", seconds=0.01) < 1000
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.choose_device() == "mps"
    assert machine.choose_precision("mps") == "fp32"
    for name in ("cuda", "tpu"):
        with pytest.raises(ConfigError, match=f"{name!r} is not available"):
            machine.choose_device(name)
    assert machine.choose_precision("cpu", "bf16") == "bf16"


class OnMps(torch.Tensor):
    """A tensor of a device without float64, until it is taken to the CPU."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_s7_what_needs_float64_works_on_the_cpu():
    latents = torch.randn(40, 3).as_subclass(OnMps)
    head = RewardHead(RewardConfig(), 3)
    for measure in (head.standardise, latent_report, effective_rank):
        measure(latents)
    collapse(latents, latents)
    fit_ridge(latents, latents[:, :2])(latents)


def test_revision_and_versions(tmp_path):
    """The filter of notebooks, slow to start, is never started."""
    source, clone, calls = (tmp_path / name for name in ("source", "clone", "calls"))
    source.mkdir()
    assert machine.revision(source) == "unknown"
    (source / ".gitattributes").write_text("*.ipynb filter=nbstripout\n")
    (source / "a.ipynb").write_text("cells\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        git(source, *command)
    git(tmp_path, "clone", "-q", "source", "clone")
    git(clone, "config", "filter.nbstripout.clean", f"echo x >> '{calls}'; sed /output/d")
    (clone / "outputs/gallery").mkdir(parents=True)
    (clone / "outputs/gallery/study.csv").write_text("a row that was just made\n")
    assert len(machine.revision(clone)) == 40
    (clone / "a.ipynb").write_text("other\n")  # of the same size: contents are compared
    assert machine.revision(clone).endswith("-dirty")
    assert not calls.exists()
    assert {"python", "torch", "processor", "cores"} <= machine.versions().keys()
    json.dumps(machine.versions())


@pytest.mark.parametrize(
    ("error", "told"),
    [(RunError("no run"), True), (OSError(28, "full"), True), (ValueError("(3, 4)"), False)],
)
def test_c5_only_sentences_for_users_lose_their_trace(error, told, monkeypatch, capsys):
    def fail(name):
        raise error

    monkeypatch.setattr(Run, "open", fail)
    if told:
        assert main(["report"]) == 2
        assert capsys.readouterr().err == f"error: {error}\n"
    else:
        with pytest.raises(ValueError, match="3, 4"):
            main(["report"])


def test_pretrained_export_is_a_run_without_data_or_resume_state(run, root, monkeypatch):
    place = root / "pretrained"
    with pytest.raises(RunError, match="no trained level 1"):
        run.export(place)
    fill(run, "data")
    with run.stage("l1", reads=("data",)) as folder:
        for name in ("weights", "last.weights", "resume.pt"):
            (folder / name).write_text("1")
    fill(run, "l2", reads=("l1",))
    run.note("loss.png", {}, "figures")
    for _ in range(2):  # the second export replaces the first
        run.export(place)
    found = Run.named("pretrained")
    assert found.label == "pretrained" and found.manifest["figures"] == {}
    assert found.done("l1") and found.done("l2")  # although l1 has fewer files than l2 read
    files = {path.name for path in found.path.rglob("*") if path.is_file()}
    assert files == {"manifest.json", "weights", "l2.txt"}
    assert not list(root.glob("*.tmp"))
    (run.path / "l1/weights").write_text("2")
    with pytest.raises(RunError, match="differs"):
        run.export(place)
    assert Run.named("pretrained").done("l1")
    fill(run, "l1")
    rename = Path.rename

    def killed(path, target):
        if path.name == "pretrained.new.tmp":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        run.export(place)
    assert Run.at(root / "pretrained.old.tmp").done("l1")  # whole or absent, never lost
