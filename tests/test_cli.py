"""Every command starts, parses as documented, and fails with one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT, floors, result, write

from hjepa_lib import __main__
from hjepa_lib.config import profile
from hjepa_lib.evaluation import Case, results
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.places import list_runs
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import compare
from hjepa_lib.worlds.layout import layout_set
from hjepa_lib.worlds.trials import make_trials, read_trials

COMMANDS = tuple(__main__._COMMANDS)
FIXED = ("--set", "device=cpu", "precision=fp32")
pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_a", "02_b"):
        write(folder, name, "1")
    select = runner.select_notebooks
    monkeypatch.setattr(runner, "select_notebooks", lambda text: select(text, folder))
    monkeypatch.setattr(results, "collect", lambda folder: [*floors(), result()])
    return folder


def test_module_starts_quickly_without_heavy_imports():
    """F7, C12."""
    code = "import sys, hjepa_lib.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    command = [sys.executable, "-m", "hjepa_lib", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in said for name in COMMANDS)


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
        __main__.main(arguments)
    assert caught.value.code == status
    assert ("usage: python -m hjepa_lib" in capsys.readouterr().out) == (status == 0)


def test_run_resume_report_and_what_disagrees_with_the_stored_config(notebooks, root, capsys):
    assert __main__.main(["run", "--profile", "smoke", "--notebooks", "1", *FIXED]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("run smoke-s0-") and out[1].startswith("01_a ")
    (name,) = list_runs()
    report = root / name / "report.html"
    for again, done in (
        (["run", "--resume", "--notebooks", "1", "--set", "level1.width=16"], 1),
        (["report", "--run", name], 0),
    ):
        report.unlink()
        assert __main__.main(again) == 0 and report.is_file()
        assert capsys.readouterr().out.count("done before") == done
    named = ["run", "--name", name]
    for extra, message in (
        ([*named, "--profile", "smoke", *FIXED], f"run '{name}' exists already"),
        ([*named, "--resume", "--seed", "3"], "made with seed=0, not 3"),
        ([*named, "--resume", "--set", "level1.width=9"], "made with level1.width=16, not 9"),
        (["run", "--name", "b", "--resume"], "run 'b' does not exist"),
        ([*named, "--profile", "full", "--resume"], "chosen by --profile"),
    ):
        assert __main__.main(extra) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_failed_notebook_ends_with_status_1_and_how_to_resume(notebooks, root, capsys):
    write(notebooks, "02_b", "1 / 0")
    arguments = ["run", "--profile", "smoke", "--notebooks", "2", "--name", "a", *FIXED]
    assert __main__.main(arguments) == 1
    error = capsys.readouterr().err
    assert "02_b failed at In [3]: ZeroDivisionError" in error
    assert "python -m hjepa_lib run --name a --resume --notebooks 2" in error
    assert "Traceback" not in error
    assert "02_b" in (root / "a/report.html").read_text()  # S9


def test_settings_are_layered(tmp_path):
    """F13; PL7: nothing given is ignored."""

    def settings(**options):
        return __main__.RunCommand(**options).settings()

    path = tmp_path / "a.yaml"
    path.write_text("profile: smoke\nseed: 4\nlevel1: {width: 8, hidden: 32}\n")
    config = settings(config=path, set=("level1.width=12",), seed=5)
    assert (config.profile, config.level1.width, config.level1.hidden) == ("smoke", 12, 32)
    assert config.seed == 5
    assert config.level1.optim == profile("smoke").level1.optim
    path.write_text("level1: {width: 8}\n")
    assert settings(config=path).profile == "laptop"
    with pytest.raises(ValueError, match=r"level1\.width needs level1\.encoder=fast"):
        settings(config=path, profile="full")  # whose encoder has a fixed width
    path.write_text("level1: {window: 8}\n")
    assert settings(config=path, profile="full").level1.encoder == "impala"
    given = settings(set=("data.source=/data/a,b.npz", "seed=3"))  # C7: a value may hold a comma
    assert (given.data.source, given.seed) == ("/data/a,b.npz", 3)
    path.write_text("profile: smoke\n")
    for options, message in (
        ({"config": path, "profile": "full"}, "chosen by --profile"),
        ({"set": ("seed=1",), "seed": 2}, "--seed and by --set"),
        ({"config": tmp_path / "none.yaml"}, "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(**options)


def test_repeated_set_options_are_all_kept():
    """PL7: the parser alone would keep the last one only."""
    given = ["run", "--set", "a=1", "b=2", "--yes", "--set=c=3", "--set", "d=4"]
    kept = ["run", "--yes", "--set", "a=1", "b=2", "c=3", "d=4"]
    assert __main__._gather_settings(given) == kept
    plain = ["sweep", "grid.yaml", "--jobs", "2"]
    assert __main__._gather_settings(plain) == plain


def test_compare_takes_the_documented_options(monkeypatch):
    given = {}
    monkeypatch.setattr(compare, "compare", lambda **options: given.update(options) or 0)
    paths = {"config_l1": Path("a.yaml"), "config_l2": Path("b.yaml"), "output_root": Path("out")}
    wanted = paths | {"seed": 3, "epochs": 2, "mode": "l2", "l2_from_scratch": True}
    for style in ("_", "-"):
        options = [f"--{name.replace('_', style)}={wanted[name]}" for name in list(wanted)[:-1]]
        assert __main__.main(["compare", *options, f"--l2{style}from{style}scratch"]) == 0
        assert given == wanted
    assert __main__.main(["compare"]) == 0
    assert given["config_l1"] is given["config_l2"] is None  # the shipped ones, where used (C1)


def test_trials_writes_a_training_and_an_evaluation_file(tmp_path, capsys):
    train, evaluation = tmp_path / "train.npz", tmp_path / "eval.npz"
    arguments = ["trials", "--layouts", "test", "--n", "7", "--seed", "5"]
    outputs = ["--output_train", str(train), "--output_eval", str(evaluation), "--n_train", "30"]
    assert __main__.main([*arguments, *outputs]) == 0
    assert read_trials(train).sha256 == make_trials(layout_set("test"), 30, 5).sha256
    assert read_trials(evaluation).sha256 == make_trials(layout_set("test"), 7, 6).sha256
    assert read_trials(evaluation).sha256 in capsys.readouterr().out


def test_a_file_of_trials_can_be_played(tmp_path):
    """D5, and seed 003's command."""
    settings, path = tmp_path / "own.yaml", tmp_path / "eval.npz"
    settings.write_text("profile: smoke\nseed: 4\ndata: {layouts: random}\n")
    arguments = ["--config", str(settings), "--output_eval", str(path), "--n_eval", "20"]
    assert __main__.main(["trials", *arguments]) == 0
    made = make_trials(layout_set("random"), 20, 5)
    assert read_trials(path).sha256 == made.sha256
    options = {"profile": "smoke", "trials": path, "set": ("evaluation.trials=100",)}
    with pytest.raises(ValueError, match="p1 plays the fixed layout"):
        Case.of(__main__.RunCommand(**options).settings(), "oracle")
    options["set"] += ("evaluation.protocol=p2_seen",)
    config = __main__.RunCommand(**options).settings()
    case, other = Case.of(config, "oracle"), Case.of(config, "oracle", split="test")
    assert case.trials == 20 and case.header["trials_hash"] == made.sha256 == case.tasks.sha256
    assert case.digest != other.digest and case.name.startswith("oracle__none__p2_seen__eval20__")
    assert Case.of(config, "oracle", trials=7).tasks.count == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "level1.widht=3"], "unknown setting 'level1.widht'"),
        (["run", "--resume"], "there is no run in"),
        (["report", "--run", "nope"], "run 'nope' does not exist"),
        (["pretrained", "--run", "nope"], "run 'nope' does not exist"),
        (["sweep", "none.yaml"], "experiment file none.yaml does not exist"),
        (["trials"], "nothing to write"),
        (["trials", "--layouts", "moon", "--output_eval", "x.npz"], "layouts must be one of"),
        (["settings", "nothing"], "no setting begins with 'nothing'"),
        (["vjepa2", "evaluate", "--seed", "3", "--config", "a.yaml"], "use for --config, --seed:"),
        (["auxiliary", "--resume", "--trials", "x"], "has no use for --resume, --trials: leave it"),
        (["grid", "table", "--set", "seed=3"], "grid table has no use for --set: leave it out"),
    ],
)
def test_errors_are_one_sentence(arguments, message, root, capsys):
    assert __main__.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not root.exists()


@pytest.mark.parametrize("command", [["train"], ["grid", "train"], ["vjepa2", "train"]])
def test_c2_full_is_started_on_a_cpu_only_with_yes(command, root, monkeypatch, capsys):
    full = [*command, "--profile", "full", *FIXED]
    assert __main__.main(full) == 2
    assert "takes days on a CPU; add --yes to start" in capsys.readouterr().err
    assert not root.exists()

    def create(name, config):
        raise OSError("it would start")

    monkeypatch.setattr(Run, "create", create)
    assert __main__.main([*full, "--yes"]) == 2
    assert "it would start" in capsys.readouterr().err


def test_vjepa2_trains_and_evaluates_where_it_is_told_to(monkeypatch):
    """VJ-12, PL7."""
    from hjepa_lib.pixels import command as vjepa2command

    Run.create("c", profile("smoke").override("device=cpu,precision=fp32"))
    opened, used = [], []
    monkeypatch.setattr(vjepa2command, "train_model", lambda run, stage: opened.append(run) or 0)
    monkeypatch.setattr(vjepa2command.two_stages, "evaluate", lambda ws, *_: used.append(ws.device))
    monkeypatch.setattr(vjepa2command, "_print", lambda *_: None)
    monkeypatch.setattr("hjepa_lib.runs.machine.choose_device", lambda wanted: f"<{wanted}>")
    stage = ["--stage", "1", "--name"]
    train = ["vjepa2", "train", "--profile", "smoke", "--set", "tracker=wandb"]
    train += ["precision=fp32", *stage]
    assert __main__.main([*train, "a", "--device", "cpu", "--tracking", "off"]) == 0
    assert __main__.main([*train, "b", "--device", "mps"]) == 0
    for run, device, tracker in zip(opened, ("cpu", "mps"), ("none", "wandb"), strict=True):
        assert (run.manifest["device"], run.config.device) == (f"<{device}>", device)
        assert run.config.tracker == run.tracker.kind == tracker
    # An evaluation is elsewhere than the run was, where asked for.
    assert __main__.main(["vjepa2", "evaluate", *stage, "c"]) == 0
    assert __main__.main(["vjepa2", "evaluate", *stage, "c", "--device", "cuda"]) == 0
    assert used == ["cpu", "<cuda>"]
