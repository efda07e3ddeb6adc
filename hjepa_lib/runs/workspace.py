"""Start-up of a notebook: check the parameters, find or make the run, hand out device and folders.

The first code cell of every notebook calls `start(...)`. The same call serves a reader in
JupyterLab, papermill and the command line, so that a notebook behaves the same everywhere.
HJEPA_HEADLESS=1 (set by the runner) switches to plain progress bars.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hjepa_lib.config import Config, ConfigError, differences, parse_overrides
from hjepa_lib.config import profile as make_profile
from hjepa_lib.files import write_atomic
from hjepa_lib.runs import machine
from hjepa_lib.runs.drive import copy_run, find_drive
from hjepa_lib.runs.run import Run, new_name, pretrained_folder
from hjepa_lib.worlds.base import find_world

STAGE_SECTIONS = {
    "data": ("data",),
    "l1": ("data", "level1"),
    "distance": ("data", "level1", "distance"),
    "l2": ("data", "level1", "level2"),
    "l3": ("data", "level1", "level2", "level3"),
}
"""Config sections that must agree before a stage of another run is taken as input."""


class Input(NamedTuple):
    """Where a stage's files were found; `folder` is None when nowhere."""

    folder: Path | None
    origin: str  # for printing: "this run", "latest run NAME", "pretrained", ...


def start(
    notebook: str,
    profile: str,
    run: str = "",
    seed: int = 0,
    overrides: str = "",
    drive: bool = False,
) -> Workspace:
    """Check a notebook's parameters and open its run; the arguments are its `parameters` cell.

    A named run must have been made with the same settings (RunError names the first difference);
    a missing one is created. With `run=""`, notebook 01 makes a new run, later notebooks continue
    the latest run if its settings agree and make a new one otherwise. With `drive`, a Drive must
    be mounted. Raises ConfigError and RunError, one sentence each.
    """
    machine.set_up()
    config = resolve(profile, seed, overrides)
    if not isinstance(run, str):
        raise ConfigError(f"run must be text, got {run!r}")
    mount = find_drive(drive)
    return Workspace(notebook, _find_run(notebook, run, config), mount)


def resolve(profile: str, seed: int, overrides: str) -> Config:
    """The config that profile, seed and overrides describe; ConfigError on any wrong value."""
    if not isinstance(profile, str) or not isinstance(overrides, str):
        raise ConfigError(f"profile and overrides must be text, got {profile!r} and {overrides!r}")
    base = make_profile(profile, seed)
    if "profile" in parse_overrides(overrides):  # it would change the label and keep the values
        raise ConfigError("profile is a parameter of its own, it cannot be an override")
    return base.override(overrides)


def overrides_text(config: Config) -> str:
    """The `overrides` parameter that makes `resolve` return `config` from its profile and seed."""
    pairs = []
    for key, (_, value) in differences(make_profile(config.profile, config.seed), config).items():
        text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
        if "," in text or text != text.strip():
            raise ConfigError(
                f"{key}={text!r} cannot be handed to a notebook: it holds a comma or blanks"
            )
        pairs.append(f"{key}={text}")
    return ",".join(pairs)


def _find_run(notebook: str, name: str, config: Config) -> Run:
    if name:
        if not Run.exists(name):
            return Run.create(name, config)
        run = Run.open(name)
        run.require(config)
        return run
    if not notebook.startswith("01"):
        latest = _latest()
        if latest is not None and latest.config == config:
            return latest
    return Run.create(new_name(config), config)


def latest_run(run: Run) -> Run | None:
    """The latest run other than `run`, which became the latest when it was created."""
    latest = _latest()
    if latest is None or latest.path != run.path:
        return latest
    previous = run.manifest.get("previous", "")
    return _latest(previous) if previous else None


def _latest(name: str = "") -> Run | None:
    try:
        return Run.open(name)
    except ValueError:  # none yet, damaged, or made by another version of the settings
        return None


class Workspace:
    """What a notebook works with: its run, settings, device and precision."""

    def __init__(
        self, notebook: str, run: Run, drive: Path | None = None, device: str | None = None
    ) -> None:
        """`device` stands in for the run's own: auto, cpu, cuda or mps."""
        self.notebook = notebook
        self.run = run
        self.drive = drive
        self.config = run.config
        self.device = machine.choose_device(device) if device else run.device
        self.precision = run.precision
        self.headless = os.environ.get("HJEPA_HEADLESS") == "1"

    def __repr__(self) -> str:
        return (
            f"run {self.run.name} | profile {self.config.profile}, seed {self.config.seed} | "
            f"{self.device}, {self.precision} | {self.run.path}"
        )

    def input(self, stage: str, otherwise: Callable[[], Path] | None = None) -> Input:
        """Find `stage` in this run, the latest run, or the pretrained one; else call `otherwise`.

        The latest run counts only if the settings that shape the stage agree with ours.
        `otherwise` makes the stage (for example by a smoke training) and returns its folder.
        """
        if self.run.done(stage):
            return Input(_stage_folder(self.run, stage), "this run")
        latest = latest_run(self.run)
        if latest is not None and latest.done(stage) and self._agrees(latest, stage):
            return Input(_stage_folder(latest, stage), f"latest run {latest.name}")
        folder, own = pretrained_folder(), find_world(self.config.data.source) is not None
        if (folder / "manifest.json").is_file() and not own:  # it knows Two Rooms only
            pretrained = Run.at(folder)
            if pretrained.done(stage):
                return Input(_stage_folder(pretrained, stage), "pretrained")
        if otherwise is not None:
            return Input(otherwise(), "made now")
        return Input(None, "nowhere")

    def _agrees(self, other: Run, stage: str) -> bool:
        sections = STAGE_SECTIONS.get(stage)
        if sections and stage != "data" and self.config.level1.refine_updates:
            sections = (*sections, "distance")  # says on how many trajectories it is refined
        changed = {key.split(".")[0] for key in differences(other.config, self.config)}
        return not changed.intersection(sections) if sections else not changed

    def whole(self, name: str, value: Any, low: int, high: int) -> int:
        """A notebook's own whole-number parameter; ConfigError unless low <= value <= high."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} must be a whole number in {low}..{high}, got {value!r}")
        return value

    def switch(self, name: str, value: Any) -> bool:
        """A notebook's own true-or-false parameter; ConfigError for anything else."""
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}")
        return value

    def figure(self, figure: Any, name: str, caption: str = "") -> None:
        """Save a figure as `<run>/figures/<name>.png` and show it; the report has `caption`."""
        from hjepa_lib.figures.style import png

        self._keep(f"{name}.png", png(figure), caption)
        _show(figure)

    def animation(self, gif: bytes, name: str, caption: str = "") -> Path:
        """Save GIF bytes as `<run>/figures/<name>.gif`, listed in the report."""
        return self._keep(f"{name}.gif", gif, caption)

    def _keep(self, file: str, data: bytes, caption: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", file):
            raise ConfigError(f"{file!r} is no figure name: use letters, digits and . _ -")
        path = write_atomic(self.run.folder("figures") / file, data)
        self.run.reload()
        captions = self.run.manifest["notes"].get("figures", {})
        captions[file] = {"notebook": self.notebook, "caption": caption}
        self.run.note("figures", captions)
        return path

    def copy_to_drive(self) -> Path:
        """Copy the run to the mounted Drive (see `drive.copy_run`); ConfigError without one."""
        if self.drive is None:
            raise ConfigError("there is no Drive to copy to: start the notebook with drive=True")
        return copy_run(self.run, self.drive)

    def progress(self, work: Iterable | int, desc: str = "", **options: Any) -> Any:
        """A tqdm bar over an iterable, or of a total to `update(n)`; plain text when headless."""
        if self.headless:
            from tqdm import tqdm

            # One line a second on one stream: the executed notebook keeps a single clean line.
            options = {"file": sys.stdout, "mininterval": 1.0, "ncols": 100} | options
        else:
            from tqdm.auto import tqdm
        if isinstance(work, int):
            return tqdm(total=work, desc=desc, **options)
        return tqdm(work, desc=desc, **options)


def _stage_folder(run: Run, stage: str) -> Path:
    return run.path / run.manifest["stages"][stage]["folder"]


def _show(figure: Any) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if get_ipython() is not None:
        display(figure)
