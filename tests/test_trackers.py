"""Trackers: one record in, whoever is asked gets it, and nothing that goes wrong stops a run."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock, call

import numpy as np
import pytest
import torch
from tiny import tiny_config
from tiny_runs import ROOT

from hjepa_lib.config import flatten, profile
from hjepa_lib.runs.log import SINKS, Tracker
from hjepa_lib.runs.run import Run

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
RECORDS = [
    {"stage": "l1", "step": 10, "loss": 2.0, "lr": np.float32(0.5), "text": "not a number"},
    {"stage": "l1", "step": 20, "loss": torch.tensor(1.0), "lr": math.nan},
    {"stage": "l2", "step": 10, "loss": 3.0},
]


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for the packages, which write down every call."""
    found = {kind: MagicMock() for kind in MODULES}
    for kind, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, found[kind])
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return found


def tracker(kind, folder, name="smoke-s0"):
    return Tracker(kind, name, Path(folder), flatten(profile("smoke")))


def log_all(kind, folder):
    one = tracker(kind, folder)
    for record in RECORDS:
        one.log(record)
    one.close()


# --- what each one gets -----------------------------------------------------------------------
def test_tensorboard_gets_one_folder_per_stage(packages, tmp_path):
    """PL8: training that starts again at an earlier step replaces the curve from there on."""
    tracker("tensorboard", tmp_path).close()
    assert not packages["tensorboard"].mock_calls  # asked from the first record on
    log_all("tensorboard", tmp_path)
    assert not packages["wandb"].mock_calls
    make = packages["tensorboard"].SummaryWriter
    assert make.call_args_list == [call(str(tmp_path / one), purge_step=10) for one in ("l1", "l2")]
    assert [one.args for one in make.return_value.add_scalar.call_args_list] == [
        ("loss", 2.0, 10), ("lr", 0.5, 10), ("loss", 1.0, 20), ("loss", 3.0, 10)
    ]  # fmt: skip
    assert make.return_value.close.call_count == 2
    one = tracker("tensorboard", tmp_path)
    for step in (10, 20, 30, 20, 30):
        one.log({"stage": "l1", "step": step, "loss": 1.0})
    assert [made.kwargs["purge_step"] for made in make.call_args_list[2:]] == [10, 20]


def test_wandb_is_offline_unless_told_otherwise(packages, tmp_path, monkeypatch):
    """EB8: nothing connects, nobody is asked to log in; steps are counted per stage."""
    log_all("wandb", tmp_path / "tracker")
    wandb, run = packages["wandb"], packages["wandb"].init.return_value
    options = wandb.init.call_args.kwargs
    assert (options["mode"], options["name"], options["group"]) == ("offline", *["smoke-s0"] * 2)
    assert options["dir"] == str(tmp_path / "tracker") and Path(options["dir"]).is_dir()
    assert options["config"]["level1.optim.lr"] == profile("smoke").level1.optim.lr
    assert run.log.call_args_list == [
        call({"l1/step": 10, "l1/loss": 2.0, "l1/lr": 0.5}),
        call({"l1/step": 20, "l1/loss": 1.0}),
        call({"l2/step": 10, "l2/loss": 3.0}),
    ]
    steps = [call(f"{one}/*", step_metric=f"{one}/step") for one in ("l1", "l2")]
    assert run.define_metric.call_args_list == steps
    run.finish.assert_called_once_with()
    monkeypatch.setenv("WANDB_MODE", "online")
    log_all("wandb", tmp_path / "tracker")
    assert wandb.init.call_args.kwargs["mode"] == "online"


def test_what_is_measured_once_an_epoch_has_an_epoch_axis(packages, tmp_path):
    """LOG-3: train/* against the step, val/* and epoch averages against the epoch."""
    one = tracker("wandb", tmp_path)
    row = {"stage": "jepa_s0", "step": 20, "JEPA/train/Total_Loss": 1.0}
    one.log(row | {"epoch": 0.5})
    one.log(row | {"JEPA/val/Total_Loss": 2.0, "JEPA/train_epoch_avg/Total_Loss": 3.0, "epoch": 1})
    one.log({"stage": "s1", "step": 5, "stage1/val_loss": 1.0, "stage1/epoch": 1.0, "epoch": 1.0})
    one.log({"stage": "l1", "step": 5, "validation_loss": 1.0})  # counts no epochs
    run = packages["wandb"].init.return_value
    axes = {one.args[0]: one.kwargs["step_metric"] for one in run.define_metric.call_args_list}
    assert axes == {
        "jepa_s0/*": "jepa_s0/step",
        "jepa_s0/JEPA/val/Total_Loss": "jepa_s0/epoch",
        "jepa_s0/JEPA/train_epoch_avg/Total_Loss": "jepa_s0/epoch",
        "s1/*": "s1/step",
        "s1/stage1/val_loss": "s1/stage1/epoch",
        "l1/*": "l1/step",
    }
    assert run.define_metric.call_count == len(axes)


def test_project_entity_and_name_are_settings(packages, tmp_path, monkeypatch):
    """LOG-1: {project, entity, run_name_prefix}; the run's name ends with its start."""
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    own = {"project": "p", "entity": "team", "run_name_prefix": "night"}
    for name, tracking in (("plain", {}), ("named", own)):
        changes = {f"tracking__{key}": value for key, value in tracking.items()}
        run = Run.create(name, tiny_config(tracker="wandb", **changes), tmp_path)
        started = re.sub(r"[-:]", "", run.manifest["created"][:19]).replace("T", "-")
        shown = f"night-{started}" if tracking else name
        for one, record in zip((run, Run.at(run.path)), RECORDS, strict=False):  # opened again
            one.log(record)
            options = packages["wandb"].init.call_args.kwargs
            wanted = (tracking.get("project", "hjepa"), tracking.get("entity"), shown, shown)
            found = [options[key] for key in ("project", "entity", "name", "group")]
            assert found == [*wanted]


# --- what goes wrong --------------------------------------------------------------------------
@pytest.mark.parametrize("error", [RuntimeError("no route\nto host"), OSError(), SystemExit(1)])
@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_tracker_prints_one_line_and_is_left_alone(
    packages, where, error, tmp_path, caplog
):
    wandb = packages["wandb"]
    failing = wandb.init if where == "init" else getattr(wandb.init.return_value, where)
    failing.side_effect = error
    log_all("wandb", tmp_path)
    (line,) = caplog.messages
    assert line.startswith("tracker wandb is off")
    assert failing.call_count == 1


def test_ctrl_c_is_not_swallowed_and_nobody_is_greeted(packages, tmp_path, capsys):
    """One clean progress bar per training: what the packages print is not ours to show."""
    packages["wandb"].init.side_effect = lambda **_: print("* wandb initialised") or MagicMock()
    log_all("wandb", tmp_path)
    assert capsys.readouterr().out == ""
    packages["wandb"].init.side_effect = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        log_all("wandb", tmp_path)


def test_a_run_keeps_its_curves_whatever_the_tracker_does(tmp_path, monkeypatch, caplog):
    """JSON lines always: the same file with every tracker, here with all packages missing."""
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    found = set()
    for kind in ("none", *SINKS):
        run = Run.create(kind, tiny_config(tracker=kind), tmp_path)
        for record in RECORDS:
            run.log(record)
        found.add((run.path / "metrics.jsonl").read_text())
        assert Run.open(kind, tmp_path).config.tracker == kind
    for kind, line in zip(SINKS, caplog.messages, strict=True):
        assert line.startswith(f"tracker {kind} is off from here on (metrics.jsonl is not): ")
        assert line.endswith(f"; pip install {kind}")
    assert len(found) == 1
    rows = [(row["stage"], row["step"], row["loss"]) for row in run.records()]
    assert rows == [("l1", 10, 2.0), ("l1", 20, 1.0), ("l2", 10, 3.0)]


# --- the real packages, where they are installed ----------------------------------------------
def test_the_real_packages_keep_what_a_process_logged_without_closing(tmp_path):
    """As when a kernel is shut down; an earlier attempt's curve is replaced, W&B is offline."""
    curves = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("wandb")
    code = (
        "import sys; from pathlib import Path; from hjepa_lib.runs.log import Tracker\n"
        "settings = {'level1.optim.lr': 0.001, 'tracking.project': 'p', 'tracking.entity': ''}\n"
        "for kind in ('tensorboard', 'tensorboard', 'wandb'):\n"
        "    one = Tracker(kind, 'smoke-s0', Path(sys.argv[1]), settings)\n"
        "    for step in (10, 20): one.log({'stage': 'l1', 'step': step, 'loss': 1 / step})\n"
    )
    quiet = {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_API_KEY": ""}
    command = [sys.executable, "-c", code, str(tmp_path)]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, env=os.environ | quiet, check=True, **options)
    assert "is off" not in done.stdout + done.stderr
    events = curves.EventAccumulator(str(tmp_path / "l1"))
    events.Reload()
    found = [(event.step, round(event.value, 4)) for event in events.Scalars("loss")]
    assert found == [(10, 0.1), (20, 0.05)]
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert content.count(b"l1/loss") >= 2 and b"level1.optim.lr" in content
