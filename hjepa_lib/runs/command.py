"""Commands about one run, and the options that every command with settings has."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hjepa_lib.config import Config, ConfigError, load_yaml, parse_overrides, settings_text
from hjepa_lib.config import profile as make_profile
from hjepa_lib.evaluation import unplayed
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.places import new_name
from hjepa_lib.runs.run import Run


@dataclass(kw_only=True)
class RunOptions:
    """Which settings, and which run: what every command that trains has."""

    profile: Literal["smoke", "laptop", "full"] | None = None
    """smoke (minutes), laptop (default: a real result on 2 cores) or full (one GPU)."""
    config: Path | None = None
    """YAML file of settings, on top of the profile."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Single settings, such as level1.optim.updates=500."""
    name: str = ""
    """Name of the run; of profile, seed and time if empty."""
    seed: int | None = None
    """Training seed."""
    resume: bool = False
    """Continue the run --name, or the latest one; what is complete is skipped."""
    yes: bool = False
    """Start the profile full even without a GPU."""
    trials: Path | None = None
    """File of the command `trials` to play in place of the committed trials."""

    def settings(self, base: Config | None = None) -> Config:
        """The config asked for; what is not asked for comes from `base` or the profile."""
        if base is None and (self.profile or not self.config):
            base = make_profile(self.profile or "laptop")
        config = load_yaml(self.config, base) if self.config else base
        pairs = parse_overrides([*itertools.chain(*self.set)])
        if self.profile and config.profile != self.profile:
            raise ConfigError("the profile is chosen by --profile, or by the run or file, not both")
        if self.seed is not None and pairs.setdefault("seed", self.seed) != self.seed:
            raise ConfigError("the seed is given by --seed and by --set")
        if self.trials is not None:
            pairs["evaluation.split"] = str(self.trials.resolve())
        return config.override(pairs)

    def open_run(self, notebooks: Sequence[Path] = ()) -> Run:
        """The run asked for, made or continued; RunError for `full` on a CPU without --yes."""
        run = Run.open(self.name) if self.resume else None
        config = self.settings(run and run.config)
        if run:
            run.require(config)
        if not unplayed(config):
            from hjepa_lib.runs.score import cases_of

            cases_of(config)  # no such world, trials or row: there is no run either
        runner.prepare(config, notebooks, self.yes)
        return run or Run.create(self.name or new_name(config), config)

    def refuse_all_but(self, used: tuple[str, ...], action: str) -> None:
        """ConfigError that names the options given which `action` would ignore (PL7)."""
        given = [
            f"--{item.name.replace('_', '-')}"
            for item in dataclasses.fields(self)
            if item.name not in used and getattr(self, item.name) != item.default
        ]
        if given:
            raise ConfigError(f"{action} has no use for {', '.join(given)}: leave it out")


@dataclass(kw_only=True)
class RunCommand(RunOptions):
    """Execute notebooks headless in a run; write summary.json and report.html."""

    notebooks: str = "01-05"
    """Which ones, such as 01-05 or 01,03."""

    def __call__(self) -> int:
        notebooks = runner.select_notebooks(self.notebooks)
        run = self.open_run(notebooks)
        print(f"run {run.name} in {run.path}")
        again = f"continue with: python -m hjepa_lib run --name {run.name} --resume"
        again += "" if self.notebooks == "01-05" else f" --notebooks {self.notebooks}"
        try:
            runner.run_notebooks(run, notebooks, resume=self.resume)
            runner.finish(run)
        except runner.NotebookFailed as error:
            print(f"error: {error}\n{again}", file=sys.stderr)
            with contextlib.suppress(WorkbookError):  # the page is written in any case (S9)
                runner.finish(run)
            return 1
        except KeyboardInterrupt:
            print(f"interrupted; {again}", file=sys.stderr)
            return 130
        return 0


@dataclass(kw_only=True)
class TrainCommand(RunOptions):
    """Train a run without notebooks; under torchrun, level 1 on all its processes."""

    def __call__(self) -> int:
        from hjepa_lib.runs.stages import train_run

        train_run(self.open_run)
        return 0


@dataclass
class ReportCommand:
    """Write summary.json and report.html of a run again."""

    run: str = ""
    """Name of the run; the latest if empty."""

    def __call__(self) -> int:
        runner.finish(Run.open(self.run))
        return 0


@dataclass
class PretrainedCommand:
    """Replace outputs/pretrained, or that of a run's world, by the trained stages of the run."""

    run: str = ""
    """Run to take; if empty, one is trained with the profile laptop, seed 0."""

    def __call__(self) -> int:
        if not self.run and (failed := RunCommand(notebooks="01-03")()):
            return failed
        run = Run.open(self.run)
        print(f"pretrained: {run.export()} from run {run.name}")
        return 0


@dataclass
class TrialsCommand:
    """Make trial files: a training file from --seed and an evaluation file from --seed + 1."""

    output_train: Path | None = None
    """Training file (.npz) to write."""
    output_eval: Path | None = None
    """Evaluation file (.npz) to write, for `--trials` of other commands."""
    config: Path | None = None
    """YAML file whose seed and layouts count where they are not given here."""
    layouts: str = ""
    """Rooms: fixed (if empty), train (also called random), validation, test or all."""
    n_eval: Annotated[int, tyro.conf.arg(aliases=["--n"])] = 100
    """Rows of the evaluation file."""
    n_train: int = 20_000
    """Rows of the training file."""
    seed: int | None = None
    """Seed of the training file; 0 if not given."""

    def __call__(self) -> int:
        from hjepa_lib.worlds.layout import layout_set
        from hjepa_lib.worlds.trials import make_trials, save_trials

        if not self.output_train and not self.output_eval:
            raise ConfigError("nothing to write: give --output_train, --output_eval or both")
        config = load_yaml(self.config) if self.config else make_profile("laptop")
        seed = config.seed if self.seed is None else self.seed
        rooms = layout_set(self.layouts or config.data.layouts)
        wanted = ((self.output_train, self.n_train), (self.output_eval, self.n_eval))
        for own, (path, rows) in enumerate(wanted, seed):
            if path:
                trials = make_trials(rooms, rows, own)
                save_trials(path, trials)
                print(f"{path}: {rows} trials, seed {own}, sha256 {trials.sha256}")
        return 0


@dataclass
class SettingsCommand:
    """Print every setting with its value, range and meaning."""

    prefix: tyro.conf.Positional[str] = ""
    """Beginning of the dotted names, such as planning.hierarchy; all if empty."""
    profile: Literal["smoke", "laptop", "full"] = "laptop"
    """Whose values are shown."""

    def __call__(self) -> int:
        print(settings_text(self.prefix, self.profile))
        return 0
