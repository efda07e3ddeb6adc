import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import nbformat
import pytest
import torch
from tiny import refused
from tiny_runs import CPU, ROOT, SEED, Said, fill, floors, git, race, result, write

from hjepa_lib import __main__
from hjepa_lib.__main__ import main
from hjepa_lib.config import ConfigError
from hjepa_lib.config.pixels import RewardConfig
from hjepa_lib.evaluation import Case
from hjepa_lib.files import FileError, WorkbookError
from hjepa_lib.grids.measures import latent_report
from hjepa_lib.pixels.training import RewardHead
from hjepa_lib.runs import machine, report, workspace
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.log import MetricsLog
from hjepa_lib.runs.places import RunError, list_runs, pretrained_runs
from hjepa_lib.runs.run import Run
from hjepa_lib.training.probes import collapse, effective_rank, fit_ridge
from hjepa_lib.workbench import compare
from hjepa_lib.worlds.layout import layout_set
from hjepa_lib.worlds.trials import make_trials, read_trials

pytestmark = pytest.mark.usefixtures("root")


COMMANDS = tuple(__main__._COMMANDS)
FIXED = ("--set", "device=cpu", "--set=precision=fp32")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "notebooks"
    path.mkdir()
    return path


@pytest.fixture
def notebooks(folder, monkeypatch):
    for name in ("01_a", "02_b"):
        write(folder, name, "1")
    select = runner.select_notebooks
    monkeypatch.setattr(runner, "select_notebooks", lambda text: select(text, folder))
    rows = [SimpleNamespace(row=row) for row in (*floors(), result())]
    monkeypatch.setattr(report, "played", lambda run: rows)
    return folder


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        *(([name, "--help"], 0) for name in COMMANDS),
        (["run", "--profil", "smoke"], 2),
        (["run", "--profile", "huge"], 2),
        (["dance"], 2),
        ([], 2),
    ],
)
def test_every_command_has_help_and_wrong_options_are_refused(arguments, status, capsys):
    """F7."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == status
    assert ("usage: python -m hjepa_lib" in capsys.readouterr().out) == (status == 0)


def test_run_resume_report_and_what_disagrees_with_the_stored_config(
    notebooks, root, capsys, failed
):
    assert main(["run", "--profile", "smoke", "--notebooks", "1", *FIXED]) == 0
    (name,) = list_runs()
    assert Run.open(name).config == CPU  # PL7: the parser would keep the last
    report = root / name / "report.html"
    for again, done in (
        (["run", "--resume", "--notebooks", "1", "--set", "level1.width=16"], 1),
        (["report", "--run", name], 0),
    ):
        report.unlink()
        assert main(again) == 0 and report.is_file()
        assert capsys.readouterr().out.count("done before") == done
    named = ["run", "--name", name]
    for extra, message in (
        ([*named, "--profile", "smoke", *FIXED], f"run '{name}' exists already"),
        ([*named, "--resume", "--seed", "3"], "made with seed=0, not 3"),
        ([*named, "--resume", "--set", "level1.width=9"], "made with level1.width=16, not 9"),
        (["run", "--name", "b", "--resume"], "run 'b' does not exist"),
    ):
        assert message in failed(*extra)


def test_settings_are_layered(tmp_path):
    """F13, PL7."""

    def settings(**options):
        return __main__.RunCommand(**options).settings()

    path = tmp_path / "a.yaml"
    path.write_text("profile: smoke\nseed: 4\nlevel1: {width: 8, hidden: 32}\n")
    config = settings(config=path, set=[("level1.width=12",)], seed=5)
    assert (config.profile, config.level1.width, config.level1.hidden) == ("smoke", 12, 32)
    assert config.seed == 5
    path.write_text("level1: {width: 8}\n")
    assert settings(config=path).profile == "laptop"
    with pytest.raises(ValueError, match=r"level1\.width needs level1\.encoder=fast"):
        settings(config=path, profile="full")  # whose encoder has a fixed width
    given = settings(set=[("data.source=/data/a,b.npz", "seed=3")])  # C7: a value may hold a comma
    assert (given.data.source, given.seed) == ("/data/a,b.npz", 3)
    path.write_text("profile: smoke\n")
    for options, message in (
        ({"config": path, "profile": "full"}, "chosen by --profile"),
        ({"set": [("seed=1",)], "seed": 2}, "--seed and by --set"),
        ({"config": tmp_path / "none.yaml"}, "does not exist"),
    ):
        refused(ValueError, message, settings, **options)


def test_compare_takes_the_documented_options(monkeypatch):
    given = {}
    monkeypatch.setattr(compare, "compare", lambda asked: given.update(vars(asked)) or 0)
    paths = {"config_l1": Path("a.yaml"), "config_l2": Path("b.yaml"), "output_root": Path("out")}
    wanted = paths | {"seed": 3, "epochs": 2, "mode": "l2", "l2_from_scratch": True}
    for style in ("_", "-"):
        options = [f"--{name.replace('_', style)}={wanted[name]}" for name in list(wanted)[:-1]]
        assert main(["compare", *options, f"--l2{style}from{style}scratch"]) == 0
        assert given == wanted
    assert main(["compare"]) == 0
    assert given["config_l1"] is given["config_l2"] is None  # the shipped ones, where used (C1)


def test_trials_writes_a_training_and_an_evaluation_file(tmp_path):
    train, evaluation = tmp_path / "train.npz", tmp_path / "eval.npz"
    arguments = ["trials", "--layouts", "test", "--n", "7", "--seed", "5"]
    outputs = ["--output_train", str(train), "--output_eval", str(evaluation), "--n_train", "30"]
    assert main([*arguments, *outputs]) == 0
    assert read_trials(train).sha256 == make_trials(layout_set("test"), 30, 5).sha256
    assert read_trials(evaluation).sha256 == make_trials(layout_set("test"), 7, 6).sha256


def test_a_file_of_trials_can_be_played(tmp_path):
    """D5, and seed 003's command."""
    settings, path = tmp_path / "own.yaml", tmp_path / "eval.npz"
    settings.write_text("profile: smoke\nseed: 4\ndata: {layouts: random}\n")
    arguments = ["--config", str(settings), "--output_eval", str(path), "--n_eval", "20"]
    assert main(["trials", *arguments]) == 0
    made = make_trials(layout_set("random"), 20, 5)
    assert read_trials(path).sha256 == made.sha256
    options = {"profile": "smoke", "trials": path, "set": [("evaluation.trials=100",)]}
    config = __main__.RunCommand(**options).settings()
    refused(ValueError, "p1 plays the fixed layout", Case.of, config, "oracle")
    config = config.override("evaluation.protocol=p2_seen")
    case, other = Case.of(config, "oracle"), Case.of(config, "oracle", split="test")
    assert case.trials == 20 and case.header["trials_hash"] == made.sha256 == case.tasks.sha256
    assert case.digest != other.digest
    assert Case.of(config, "oracle", trials=7).tasks.count == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "level1.widht=3"], "unknown setting 'level1.widht'"),
        (["run", "--set", "data.source=nowhere:World"], "No module named 'nowhere'"),
        (["run", "--trials", "nowhere.npz"], "cannot read"),
        (["run", "--set", "evaluation.rows=usual+graph"], "needs cost=graph and level1.predictor"),
        (["run", "--resume"], "there is no run in"),
        (["report", "--run", "nope"], "run 'nope' does not exist"),
        (["sweep", "none.yaml"], "none.yaml does not exist"),
        (["trials"], "nothing to write"),
        (["trials", "--layouts", "moon", "--output_eval", "x.npz"], "layouts must be one of"),
        (["settings", "nothing"], "no setting begins with 'nothing'"),
        (["vjepa2", "evaluate", "--seed", "3", "--config", "a.yaml"], "use for --config, --seed:"),
        (["auxiliary", "--resume", "--trials", "x"], "no use for --resume, --trials"),
    ],
)
def test_errors_are_one_sentence(arguments, message, root, failed):
    assert message in failed(*arguments)
    assert not root.exists()


@pytest.mark.parametrize("command", [["run"], ["train"], ["grid", "train"], ["vjepa2", "train"]])
def test_c2_full_is_started_on_a_cpu_only_with_yes(command, root, monkeypatch, failed):
    full = [*command, "--profile", "full", *FIXED]
    assert "takes days on a CPU; add --yes to start" in failed(*full)
    assert not root.exists()

    def create(name, config):
        raise OSError("it would start")

    monkeypatch.setattr(Run, "create", create)
    assert "it would start" in failed(*full, "--yes")


def play(run, notebooks, resume=False):
    said = Said()
    runner.run_notebooks(Run.open(run.name), notebooks, resume=resume, say=said)
    return said


def test_select_notebooks(folder):
    for name in ("01_a", "02_b", "04_d"):
        write(folder, name)
    (folder / "notes.ipynb").touch()

    def chosen(text):
        return [path.stem for path in runner.select_notebooks(text, folder)]

    assert chosen("01-02") == ["01_a", "02_b"]
    assert chosen("4, 1") == ["01_a", "04_d"]
    assert chosen("01-15") == ["01_a", "02_b", "04_d"]  # C6: a range takes what exists
    refused(RunError, "no notebook 5-9; there are: 01_a", chosen, "5-9")
    refused(RunError, "is not like 01-05", chosen, "all")
    write(folder, "01_a_old")
    refused(RunError, "01_a and 01_a_old have one number", chosen, "1")  # C6


def test_inspect_refuses_what_papermill_only_warns_about(folder):
    """N2."""
    good = write(folder, "01_a")
    runner.inspect_notebook(good)
    notebook = nbformat.read(good.open(), 4)
    notebook.cells.append(nbformat.v4.new_code_cell("x = 1", metadata=notebook.cells[0].metadata))
    nbformat.write(notebook, folder / "03_c.ipynb")
    (folder / "05_e.ipynb").write_text("{half")
    for path, message in (
        (write(folder, "06_f", parameters="seed = 1"), "has no parameter named 'run'"),
        (write(folder, "02_b", tags=()), "has 0 cells tagged 'parameters'"),
        (folder / "03_c.ipynb", "has 2 cells"),
        (write(folder, "04_d", parameters="seed = = 1"), "readable parameters: invalid syntax"),
        (folder / "05_e.ipynb", "not a notebook"),
    ):
        refused(WorkbookError, message, runner.inspect_notebook, path)


WORK = """
import os
from pathlib import Path
assert os.environ["HJEPA_HEADLESS"] == "1" and run == "mine"
outputs = Path(os.environ["HJEPA_OUTPUTS"])
(outputs / run / "work.txt").open("a").write("x")
from tqdm import tqdm
import time
for _ in tqdm(range(30)):
    time.sleep(0.002)
"""


def test_run_and_resume(folder, root):
    notebooks = [write(folder, "01_a", WORK), write(folder, "02_b", SEED + "assert seed == 0")]
    run, before = Run.create("mine", CPU), dict(os.environ)
    play(run, notebooks)
    executed = nbformat.read((run.path / "notebooks/01_a.ipynb").open(), 4)
    (output,) = executed.cells[2].outputs  # the injected parameters are cell 1
    assert output.text.count("it/s") == 1  # N4: the progress bar leaves one clean line
    assert os.environ == before
    said = play(run, notebooks, resume=True)
    assert [line.split()[1:] for line in said] == [["done", "before"]] * 2
    assert (root / "mine/work.txt").read_text() == "x"


def test_what_follows_a_chapter_that_ran_again_is_not_done(folder, monkeypatch):
    notebooks, lost = [write(folder, f"0{n}_a", "1") for n in (1, 2, 3)], []

    def execute(run, path):
        if path in lost:
            raise KeyboardInterrupt
        (run.folder("notebooks") / path.name).write_text("{}")

    monkeypatch.setattr(runner, "_execute", execute)
    run = Run.create("mine", CPU)
    play(run, notebooks)
    write(folder, "01_a", "2")
    lost.append(notebooks[1])
    with pytest.raises(KeyboardInterrupt):
        play(run, notebooks, resume=True)
    lost.clear()
    said = play(run, notebooks, resume=True)
    assert ["done before" in line for line in said] == [True, False, False]


def test_failed_notebook_is_kept_and_named_and_resume_goes_on(notebooks, root, capsys):
    """Status 1, one sentence, and how to resume."""
    words = ["run", "--notebooks", "1-2", "--name", "a"]
    kept = root / "a/notebooks/02_b.failed.ipynb"
    for source, more, message in (
        ("raise ValueError('bad\\nx')", ["--profile", "smoke", *FIXED],
         f" at In [3]: ValueError: bad (kept: {kept})"),
        ("import os; os._exit(1)", ["--resume"], ": DeadKernelError"),
    ):  # fmt: skip
        write(notebooks, "02_b", source)
        assert main([*words, *more]) == 1
        out, err = capsys.readouterr()
        error, again = err[err.index("error: 02_b") :].splitlines()[:2]
        assert error.startswith(f"error: 02_b failed{message}") and "failed after" in out
        assert again == "continue with: python -m hjepa_lib run --name a --resume --notebooks 1-2"
        assert "02_b" in (root / "a/report.html").read_text()  # S9
        assert "--resume" in more or "bad" in kept.read_text()
    write(notebooks, "02_b", "1")
    assert main([*words, "--resume"]) == 0 and not kept.exists()
    assert re.search("01_a +done before\n02_b +ok in", capsys.readouterr().out)


def test_s9_a_damaged_result_ends_after_the_page_is_written():
    run = Run.create("mine", CPU)
    with run.stage("results/flat", "results") as folder:
        (folder / "flat.npz").write_text("half")
    refused(WorkbookError, "flat", runner.finish, run, say=Said())
    assert (run.path / "report.html").is_file()


def test_s6_kernels_may_start_slowly(folder, monkeypatch):
    import papermill

    asked = {}

    def execute(source, target, **options):
        asked.update(options)
        Path(target).write_text("{}")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    play(Run.create("mine", CPU), [write(folder, "01_a")])
    assert asked["start_timeout"] >= 300
    assert "cwd" not in asked  # own worlds are found from where it was given


def test_ctrl_c_ends_the_kernel_and_says_how_to_resume(folder, tmp_path):
    pid_file = tmp_path / "pid"
    wait = f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(100)"
    write(folder, "01_a", wait)
    code = f"""
import sys
from pathlib import Path
from hjepa_lib import __main__
from hjepa_lib.runs import notebooks as runner
select = runner.select_notebooks
runner.select_notebooks = lambda text: select(text, Path({str(folder)!r}))
settings = ["--set", "device=cpu", "precision=fp32"]
sys.exit(__main__.main(["run", "--profile", "smoke", "--notebooks", "1", "--name", "a", *settings]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(pid_file.read_text())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    again = "python -m hjepa_lib run --name a --resume --notebooks 1"
    assert error.strip().splitlines()[-1] == f"interrupted; continue with: {again}"
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    assert Run.open("a").manifest["notebooks"] == {}


TEXT = "device=cpu,precision=fp32"


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
    refused(RunError, "'my_test_run' exists already", Run.create, "my_test_run", CPU)
    refused(RunError, "is a run", Run.create, "my_test_run/cell", CPU)
    refused(RunError, "'study' exists already", Run.create, "study", CPU)
    found = Run.open("my_test_run")
    assert found.config == CPU == first.config and found.done("l1")
    assert list_runs() == ["my_test_run", "study/cell", "study/elsewhere"]


def test_a_killed_start_is_no_run_and_stands_in_no_way(root, monkeypatch):
    """PL8."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", killed)  # a kill cleans up nothing
        with pytest.raises(KeyboardInterrupt):
            Run.create("a", CPU)
    assert list((root / "a").iterdir()) and list_runs() == [] and not (root / "latest").exists()
    assert Run.create("a", CPU).name == "a"
    other = CPU.override("seed=1")

    def meanwhile(wish):
        monkeypatch.undo()
        return Run.create("b", other, root).device

    monkeypatch.setattr(machine, "choose_device", meanwhile)
    refused(RunError, "'b' exists already", Run.create, "b", CPU, root)
    assert Run.open("b", root).config == other


def test_names_that_could_leave_the_outputs_folder_are_refused(root):
    for name in ("../x", "/tmp/x", "a/b/c", ".hidden", "", "latest", "pretrained/x",
                 "pretrained-maze", "a b", "a/../b"):  # fmt: skip
        refused(RunError, "", Run.create, name, CPU)
        refused(RunError, "", Run.open, name)
    assert not root.exists()


def test_missing_and_damaged_runs_are_one_sentence(root, monkeypatch):
    refused(RunError, "no run in", Run.open)
    manifest = Run.create("a", CPU).path / "manifest.json"
    refused(RunError, r"'b' does not exist.*newest ones are: a", Run.open, "b")
    refused(RunError, "holds no run", Run.at, root)
    for text, message in ((manifest.read_text()[:99], "not valid JSON"), ("{}", "no run manifest")):
        manifest.write_text(text)
        refused(ValueError, message, Run.open, "a")

    def full(path, obj):
        raise FileError("cannot write: no space left on device")

    with monkeypatch.context() as patch, pytest.raises(FileError):
        patch.setattr("hjepa_lib.runs.run.write_json", full)
        Run.create("b", CPU)
    assert list_runs() == ["a"] and (root / "latest").read_text() == "a\n"
    assert Run.create("b", CPU).name == "b"


def test_one_thread_gives_the_others_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), machine.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_device_and_precision_are_chosen_once(monkeypatch):
    monkeypatch.setattr(machine, "_cpu_text", lambda: "model name : One\nflags : avx2 amx_bf16")
    config = CPU.override("precision=auto,device=cpu")
    assert Run.create("a", config).precision == "bf16"
    assert Run.open("a").manifest["versions"]["processor"] == "One"
    monkeypatch.setattr(machine, "_cpu_text", lambda: "flags : avx2 avx512f")
    assert Run.open("a").precision == "bf16"
    assert Run.create("b", config).precision == "fp32"


def test_a_run_whose_tracker_is_gone_opens(run):
    tree = json.loads((run.path / "manifest.json").read_text())
    for known, tracker in (("wandb", "wandb"), ("none", "trackio")):
        tree["config"]["tracker"] = tracker
        (run.path / "manifest.json").write_text(json.dumps(tree))
        assert Run.open("a").config.tracker == known


def test_stage_lists_files_and_notices_damage(run):
    assert not run.done("l1")
    fill(run, "l1", "hello")
    assert Run.open("a").done("l1")
    run.verify("l1")
    (run.path / "l1/l1.txt").write_text("HELLO")
    assert run.done("l1")
    refused(RunError, "differs from what stage 'l1' wrote", run.verify, "l1")
    (run.path / "l1/l1.txt").write_text("hell")
    refused(RunError, "not complete", run.verify, "l1")
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


def test_half_a_last_line_is_ignored_and_healed(tmp_path):
    path = tmp_path / "m.jsonl"
    MetricsLog(path).log(record(1))
    with path.open("a") as file:
        file.write('{"stage": "l1", "st')
    assert len(MetricsLog(path).records()) == 1
    MetricsLog(path).rewind("l2")
    MetricsLog(path).log(record(2))
    assert [row["step"] for row in MetricsLog(path).records()] == [1, 2]
    path.write_text("{broken\n" + path.read_text())
    refused(FileError, "is not valid JSON", MetricsLog(path).records)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_logging_is_one_sentence(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    log = MetricsLog(tmp_path / "full")
    refused(FileError, r"cannot write .*full: No space left", log.log, record(1))


def test_start_creates_then_reopens_a_named_run():
    first, again = begin(1), begin(2)
    assert again.run.path == first.run.path
    assert (again.device, again.precision) == ("cpu", "fp32")
    refused(RunError, "made with seed=0, not 3", begin, 2, seed=3)
    refused(RunError, r"level1\.width=16, not 9", begin, 2, more=",level1.width=9")

    first = begin(1, "").run  # unnamed ones follow each other
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
    ],
)
def test_wrong_parameters_are_one_sentence(arguments, message, root):
    refused(ValueError, message, workspace.start, "01_data_prep", *arguments)
    assert not root.exists()


def test_figures_are_saved_with_captions(monkeypatch):
    ws = begin(2)
    ws.figure(matplotlib.figure.Figure(), "loss", "Loss by update")
    shown = []
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "shell", lambda: True)
        patch.setattr("IPython.display.display", shown.append)
        ws.animation(b"GIF89a", "episode", 'the "flat" planner <1>')
    (picture,) = shown
    code = base64.b64encode(b"GIF89a").decode()
    wanted = f'src="data:image/gif;base64,{code}" alt="the &quot;flat&quot; planner &lt;1&gt;">'
    assert picture._repr_html_().endswith(wanted)
    assert (ws.run.path / "figures/loss.png").read_bytes().startswith(b"\x89PNG")
    notes = Run.open("mine").manifest["figures"]
    assert notes["loss.png"] == {"notebook": "02_chapter", "caption": "Loss by update"}
    refused(ConfigError, "no figure name", ws.figure, matplotlib.figure.Figure(), "../loss")


def test_set_up_and_choices(monkeypatch):
    threads = torch.get_num_threads()
    try:
        assert machine.set_up(1) == 1
        assert 1 <= machine.set_up() <= machine.usable_cores()
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.choose_device() == "mps"
    assert machine.choose_precision("mps") == "fp32"
    for name in ("cuda", "tpu"):
        refused(ConfigError, f"{name!r} is not available", machine.choose_device, name)


class OnMps(torch.Tensor):
    """On a device without float64, until it is taken to the CPU."""

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


@pytest.mark.parametrize(
    ("error", "told"),
    [(RunError("no run"), True), (OSError(28, "full"), True), (ValueError("(3, 4)"), False)],
)
def test_c5_only_sentences_for_users_lose_their_trace(error, told, monkeypatch, failed):
    def fail(name):
        raise error

    monkeypatch.setattr(Run, "open", fail)
    if told:
        assert failed("report") == f"error: {error}"
    else:
        refused(ValueError, "3, 4", main, ["report"])


def test_pretrained_export_is_a_run_without_data_or_resume_state(run, root, monkeypatch):
    place = root / "pretrained"
    refused(RunError, "no trained level 1", run.export, place)
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
    (run.path / "l1/weights").write_text("2")
    refused(RunError, "differs", run.export, place)
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


def test_the_committed_runs_open():
    found = {name: Run.named(name).label for name in pretrained_runs()}
    assert {"pretrained", "pretrained-maze"} <= found.keys() == set(found.values())


def test_a_pretrained_run_of_another_world_stands_beside_that_of_two_rooms(root, monkeypatch):
    monkeypatch.setattr("hjepa_lib.runs.run.repository", lambda: root.parent)
    for name, source in (("rooms", "generated"), ("mazes", "maze"), ("own", "parks.zoo:Maze")):
        made = Run.create(name, CPU.override({"data.source": source}))
        fill(made, "l1")
        made.export()
    assert list(pretrained_runs()) == ["pretrained", "pretrained-maze", "pretrained-parks_zoo_Maze"]
    assert list_runs() == ["rooms", "mazes", "own"]  # and none of them is the latest run
    refused(RunError, "is no run name", Run.named, "pretrained-lake")
