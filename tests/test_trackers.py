import math
import os
import re
import subprocess
import sys
from unittest.mock import MagicMock, call

import numpy as np
import pytest
import torch
from tiny import tiny_config
from tiny_runs import ROOT

from hjepa_lib.config import flatten, profile
from hjepa_lib.runs.log import SINKS, Tracker
from hjepa_lib.runs.run import Run

CREATED = "2026-11-05T14:22:33"
ABOUT = ("smoke-s0", CREATED, flatten(profile("smoke").override("tracker=wandb")))
RECORDS = [
    {"stage": "l1", "step": 10, "loss": 2.0, "lr": np.float32(0.5), "text": "not a number"},
    {"stage": "l1", "step": 20, "loss": torch.tensor(1.0), "lr": math.nan},
    {"stage": "l2", "step": 10, "loss": 3.0},
]


@pytest.fixture
def wandb(monkeypatch):
    found = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", found)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return found


def log_all(folder):
    one = Tracker(folder, *ABOUT)
    for record in RECORDS:
        one.log(record)


def test_wandb_is_offline_unless_told_otherwise(wandb, tmp_path, monkeypatch):
    """EB8."""
    Tracker(tmp_path, *ABOUT)
    assert not wandb.mock_calls  # asked from the first record on
    log_all(tmp_path / "tracker")
    run, options = wandb.init.return_value, wandb.init.call_args.kwargs
    assert (options["mode"], options["name"], options["group"]) == ("offline", *["smoke-s0"] * 2)
    assert run.log.call_args_list == [
        call({"l1/step": 10, "l1/loss": 2.0, "l1/lr": 0.5}),
        call({"l1/step": 20, "l1/loss": 1.0}),
        call({"l2/step": 10, "l2/loss": 3.0}),
    ]
    steps = [call(f"{one}/*", step_metric=f"{one}/step") for one in ("l1", "l2")]
    assert run.define_metric.call_args_list == steps
    monkeypatch.setenv("WANDB_MODE", "online")
    log_all(tmp_path)
    assert wandb.init.call_args.kwargs["mode"] == "online"


def test_project_entity_and_name_are_settings(wandb, tmp_path):
    """LOG-1."""
    own = {"project": "p", "entity": "team", "run_name_prefix": "night"}
    for name, tracking in (("plain", {}), ("named", own)):
        changes = {f"tracking__{key}": value for key, value in tracking.items()}
        run = Run.create(name, tiny_config(tracker="wandb", **changes), tmp_path)
        started = re.sub(r"[-:]", "", run.manifest["created"][:19]).replace("T", "-")
        shown = f"night-{started}" if tracking else name
        for one, record in zip((run, Run.at(run.path)), RECORDS, strict=False):  # opened again
            one.log(record)
            options = wandb.init.call_args.kwargs
            wanted = (tracking.get("project", "hjepa"), tracking.get("entity"), shown, shown)
            assert [options[key] for key in ("project", "entity", "name", "group")] == [*wanted]


@pytest.mark.parametrize("error", [RuntimeError("no route\nto host"), OSError(), SystemExit(1)])
@pytest.mark.parametrize("where", ["init", "log"])
def test_a_failing_tracker_prints_one_line_and_is_left_alone(wandb, where, error, tmp_path, caplog):
    failing = wandb.init if where == "init" else getattr(wandb.init.return_value, where)
    failing.side_effect = error
    log_all(tmp_path)
    (line,) = caplog.messages
    assert line.startswith("tracker wandb is off")
    assert failing.call_count == 1


def test_ctrl_c_is_not_swallowed(wandb, tmp_path):
    wandb.init.side_effect = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        log_all(tmp_path)


def test_a_run_keeps_its_curves_whatever_the_tracker_does(tmp_path, monkeypatch, caplog):
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    found = set()
    for kind in ("none", *SINKS):
        run = Run.create(kind, tiny_config(tracker=kind), tmp_path)
        for record in RECORDS:
            run.log(record)
        found.add((run.path / "metrics.jsonl").read_text())
    for kind, line in zip(SINKS, caplog.messages, strict=True):
        assert line.startswith(f"tracker {kind} is off from here on (metrics.jsonl is not): ")
        assert line.endswith(f"; pip install {kind}")
    assert len(found) == 1


def test_the_real_packages_keep_what_a_process_logged_without_closing(tmp_path):
    """PL8."""
    curves = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("wandb")
    code = (
        "import sys; from pathlib import Path; from hjepa_lib.runs.log import Tracker\n"
        f"name, created, settings = {ABOUT!r}\n"
        "for kind in ('tensorboard', 'tensorboard', 'wandb', 'wandb'):\n"
        "    one = Tracker(Path(sys.argv[1]), name, created, settings | {'tracker': kind})\n"
        "    name = f'{name}-next'\n"
        "    for step in (10, 20):\n"
        "        for stage in ('l1', 'l2'):\n"
        "            one.log({'stage': stage, 'step': step, 'loss': 1 / step})\n"
    )
    quiet = {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_API_KEY": ""}
    command = [sys.executable, "-c", code, str(tmp_path)]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, env=os.environ | quiet, check=True, **options)
    assert "is off" not in done.stdout + done.stderr
    for stage in ("l1", "l2"):
        events = curves.EventAccumulator(str(tmp_path / stage))
        events.Reload()
        found = [(event.step, round(event.value, 4)) for event in events.Scalars("loss")]
        assert found == [(10, 0.1), (20, 0.05)]
    files = [*tmp_path.glob("wandb/offline-run-*/run-*.wandb")]
    assert len(files) == 2  # a process may train several runs, each has its own
    for file in files:
        content = file.read_bytes()
        assert content.count(b"l1/loss") >= 2 and b"level1.optim.lr" in content
