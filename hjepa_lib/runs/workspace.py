"""What a notebook works with: its run, and the stages that it makes, takes over and follows."""

import contextlib
import html
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hjepa_lib.config import GONE, Config, ConfigError, leaves
from hjepa_lib.config import profile as make_profile
from hjepa_lib.evaluation import unplayed
from hjepa_lib.figures import style
from hjepa_lib.files import WorkbookError, exclusive, read_json, write_atomic, write_json
from hjepa_lib.runs import machine
from hjepa_lib.runs.keys import Stage, closure, digest, key
from hjepa_lib.runs.places import RunError, list_runs, new_name, outputs_root, pretrained_runs
from hjepa_lib.runs.run import MANIFEST, Run
from hjepa_lib.training.loop import Fit, Report


def start(
    notebook: str, profile: str, run: str = "", seed: int = 0, overrides: str = ""
) -> "Workspace":
    """Check the `parameters` of a notebook (ConfigError) and open its run, which must have these
    settings (RunError), or make it; "" is the latest if its settings agree, for 01 a new one."""
    machine.set_up()
    for name, value in {"profile": profile, "run": run, "overrides": overrides}.items():
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be text, got {value!r}")
    config = make_profile(profile, seed).override(overrides)
    if run and Run.exists(run):
        found = Run.open(run)
        if not is_headless():
            found.require(config)
        return Workspace(notebook, found)
    if not run and not notebook.startswith("01"):
        with contextlib.suppress(WorkbookError):  # none yet, damaged, or of another version
            latest = Run.open()
            if latest.config == config:
                return Workspace(notebook, latest)
    return Workspace(notebook, Run.create(run or new_name(config), config))


def open_run(name: str, config: Config, root: Path) -> "Workspace":
    """The run `name` below `root`, which must have these settings, or a new one."""
    if not Run.exists(name, root):
        return Workspace("experiment", Run.create(name, config, root))
    run = Run.open(name, root)
    run.require(config)
    return Workspace("experiment", run)


def is_headless() -> bool:
    """True in a kernel that the runner started."""
    return os.environ.get("HJEPA_HEADLESS") == "1"


def shell() -> Any:
    """The notebook's own; None outside of a notebook."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def log_row(report: Report, every: int = 10) -> dict[str, Any]:
    """What metrics.jsonl keeps of a report: one update in `every`, and every validation."""
    if report.update % every and not report.validation:
        return {}
    row = {"loss": report.loss, "lr": report.lr, "grad_norm": report.grad_norm, **report.terms}
    return row | {f"validation_{key}": value for key, value in report.validation.items()}


class Workspace:
    """A run with its settings, device and precision."""

    def __init__(self, notebook: str, run: Run) -> None:
        self.notebook = notebook
        self.run = run
        self.config = run.config
        self.device = run.device
        self.precision = run.precision
        self.headless = is_headless()

    def __repr__(self) -> str:
        return (
            f"run {self.run.name} | profile {self.config.profile}, seed {self.config.seed} | "
            f"{self.device}, {self.precision} | {self.run.path}"
        )

    @property
    def recorded(self) -> bool:
        """True for frames that somebody recorded, and no world to play on in."""
        return unplayed(self.config)

    def leave(self, why: str) -> None:
        """End a chapter here: the cells that follow say `why` and do nothing else.

        WorkbookError outside of a notebook.
        """
        if not shell():
            raise WorkbookError(why)
        print(why)
        skipped = ["print('left out, as said above; restart the kernel to begin again')\n"]
        shell().input_transformers_cleanup.append(lambda lines: skipped)

    def key(self, stage: Stage) -> str:
        """The key that the stage has under this run's settings."""
        return key(stage, self.config, lambda one: Run.named(one.load).key(one.name))

    def done(self, stage: Stage) -> bool:
        """True when this run holds the stage, whole and as it would be made now."""
        return self.run.done(stage.name, self.key(stage))

    def found(self, stage: Stage) -> bool:
        """True when this run holds the stage, or takes it over from another one now."""
        return self.done(stage) or self._take(stage)

    def make(self, stage: Stage) -> Iterator[Report]:
        """Obtain a stage's inputs and run it unless it is done; yields its reports."""
        if self.done(stage) or (stage.load and self._take(stage)):
            return
        was = leaves(self.run.manifest["config"]).items()
        if gone := [f"{name}={value}" for name, value in was if value != GONE.get(name, value)]:
            raise RunError(f"run {self.run.name!r} has settings that are gone: {', '.join(gone)}")
        for other in stage.reads:
            self.obtain(other)
        torch.manual_seed(self.config.seed)  # before any weight or batch is drawn (EB5)
        reads = tuple(other.name for other in stage.reads if not other.recorded)
        options = {"reads": reads, "device": self.device}
        begun = self.resume(stage.name)
        mark = begun / "inputs.json"  # of others nothing goes on
        inputs = [self.key(stage), *(digest(self.run.manifest["stages"][one]) for one in reads)]
        if mark.is_file() and read_json(mark) != inputs:
            self._clear(begun)
        write_json(mark, inputs)
        with self.run.stage(stage.name, stage.folder, inputs[0], **options) as folder:
            yield from stage.make(self, folder) or ()
        self._clear(begun)

    def _clear(self, folder: Path) -> None:
        with exclusive(self.run.path / MANIFEST):  # who uploads the run walks through its folders
            shutil.rmtree(folder, ignore_errors=True)

    def obtain(self, stage: Stage) -> Path:
        """Folder of a finished stage: of this run, else taken over, else made now.

        Taken over, with a printed line, is what the newest run (or a pretrained one) has under the
        same key, made from the very inputs that this run has or takes with it.
        """
        if not self.found(stage):
            print(f"{stage.name}: no run holds it with these settings, so it is made here")
            for _ in self.make(stage):
                pass
        return self.run.stage_folder(stage.name)

    def resume(self, name: str, part: str = "") -> Path:
        """Where the stage `name`, or a part of its training, keeps what it resumes from."""
        return self.run.folder(f"resume/{name.replace('/', '+')}/{part}")

    def follow(
        self, fit: Fit, stage: str, row: Callable[[Report], dict] = log_row
    ) -> Iterator[Report]:
        """Iterate a fit from its checkpoint on; log what `row` makes of its reports."""
        self.run.metrics.rewind(stage, fit.update)
        for report in fit:
            if found := row(report):
                self.run.log({"stage": stage, "step": report.update, **found})
            yield report

    def origin(self, name: str) -> str:
        """Where this run's stage came from: "this run", or a run's label."""
        return self.run.manifest["stages"][name].get("from", "this run")

    def weights(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """{name: {"from": its `origin`, "key": its key}} of stored stages, for a row of results."""
        return {name: {"from": self.origin(name), "key": self.run.key(name)} for name in names}

    def data_of(self, stages: Iterable[Stage]) -> dict[str, Any]:
        """Meta of this run's data, else of the run's that made a stored stage; {} without any."""
        sources = ((self._sources(stage), self.origin(stage.name)) for stage in stages)
        there = (one for runs, made in sources for one in runs if one.label == made)
        held = (one for one in itertools.chain([self.run], there) if one.done("data"))
        return next((read_json(one.path / "data/meta.json") for one in held), {})

    def _take(self, stage: Stage) -> bool:
        """Copy the stage, with those of its inputs that this run lacks, from one other run."""
        needed = closure(stage)
        for other in needed[:-1]:
            if other.load and not self.done(other):
                self._take(other)
        wanted = (one for one in needed if one is stage or not one.recorded)
        missing = [one for one in wanted if not self.done(one)]
        for other in self._sources(stage):
            if all(self._offers(other, one) for one in missing):
                for one in missing:
                    self.run.adopt(other, one.name)
                    print(f"{one.name}: taken from {self.origin(one.name)}")
                return True
        if stage.load:
            raise RunError(f"{stage.load} has no whole stage {stage.name!r} to load")
        return False

    def _sources(self, stage: Stage) -> Iterator[Run]:
        """Runs that may hold it: those that a setting names, the newest first, the pretrained."""
        yield from map(Run.named, {one.load for one in closure(stage) if one.load})
        if stage.load:
            return
        roots = dict.fromkeys([self.run.path.parent, outputs_root()])  # beside this one first
        paths = [root / name for root in roots for name in reversed(list_runs(root))]
        for path in [*paths, *pretrained_runs().values()]:
            if path != self.run.path:
                with contextlib.suppress(WorkbookError):  # none, or settings of another version
                    yield Run.at(path)

    def _offers(self, other: Run, stage: Stage) -> bool:
        """True when `other` holds the stage, made from the inputs that this run has."""
        # Generated data that stand in for published ones have their key.
        kinds = {"data_fallback" in one.manifest["notes"] for one in (self.run, other)}
        if (len(kinds) > 1 and not stage.load) or not other.done(stage.name, self.key(stage)):
            return False
        here = self.run.manifest["stages"]
        read = other.manifest["stages"][stage.name].get("reads", {})
        return all(digest(here[name]) == was for name, was in read.items() if name in here)

    def figure(self, figure: Any, name: str, caption: str = "") -> None:
        """Save a figure as `figures/<name>.png`, for the report, and show it."""
        self._keep(f"{name}.png", style.png(figure), caption, figure)

    def animation(self, gif: bytes, name: str, caption: str = "") -> None:
        """Save GIF bytes as `figures/<name>.gif`, for the report, and show them."""
        picture = f'<img src="{style.data_uri(gif, "gif")}" alt="{html.escape(caption)}">'
        self._keep(f"{name}.gif", gif, caption, style.Html(picture))

    def _keep(self, file: str, data: bytes, caption: str, shown: Any) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", file):
            raise ConfigError(f"{file!r} is no figure name: use letters, digits and . _ -")
        write_atomic(self.run.folder("figures") / file, data)
        self.run.note(file, {"notebook": self.notebook, "caption": caption}, "figures")
        if shell():
            from IPython.display import display

            display(shown)

    def progress(self, work: Iterable, desc: str = "", **options: Any) -> Any:
        """A tqdm bar over `work`, as text: an executed notebook keeps a single clean line.

        An interrupt ends `work`, too, though the notebook keeps the bar.
        """
        return _Bar(work, desc, file=sys.stdout, mininterval=1.0, ncols=100, **options)


class _Bar(tqdm):
    def __iter__(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        finally:
            if isinstance(self.iterable, Generator):
                self.iterable.close()
