"""Command line: `python -m hjepa_lib run | train | compare | sweep | study | trials | ...`.

Exit status 2: a wrong setting, file or run, in one sentence; 1: a failed notebook or cell; 130:
Ctrl-C. Heavy imports wait until a command needs them, so `--help` is quick.
"""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hjepa_lib.config import Config
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import machine
from hjepa_lib.runs.command import (
    PretrainedCommand,
    ReportCommand,
    RunCommand,
    RunOptions,
    SettingsCommand,
    TrainCommand,
    TrialsCommand,
)
from hjepa_lib.runs.notebooks import prepare
from hjepa_lib.runs.places import repository
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench.command import (
    BenchCommand,
    CompareCommand,
    ExperimentCommand,
    GpuCheckCommand,
    SweepCommand,
)


@dataclass
class GalleryCommand:
    """Refresh the README's table and figures from the committed rows of the study."""

    run: tyro.conf.Positional[str] = ""
    """Run of notebooks 01-05 whose pictures are kept."""
    pixels: str = ""
    """Run of notebooks 10-15 whose tables are kept."""

    def __call__(self) -> int:
        from hjepa_lib import readme

        root = repository()
        if self.pixels:
            print(readme.keep_pixels(Run.open(self.pixels), root))
        if self.run:
            readme.keep_pictures(Run.open(self.run), root)
        print(readme.write_frontier(root))
        print(readme.refresh(root))
        return 0


@dataclass(kw_only=True)
class GridCommand(RunOptions):
    """Seed 004: the grid JEPA and its generative twin."""

    action: tyro.conf.Positional[Literal["train"]]
    """train a run."""

    def __call__(self) -> int:
        from hjepa_lib.grids import stages
        from hjepa_lib.runs.workspace import Workspace

        machine.set_up()
        run = self.open_run()
        print(f"run {run.name} in {run.path}")
        stages.train_all(Workspace("grid", run))
        return 0


@dataclass(kw_only=True)
class VJepa2Command(RunOptions):
    """Seed 002: the two-stage V-JEPA 2 style model of training seed 0."""

    action: tyro.conf.Positional[Literal["train", "evaluate"]]
    """train a run, or measure and grade one."""
    stage: Literal[1, 2] | None = None
    """One stage alone; both, with heads and decoder, if empty."""
    stage1_checkpoint: Path | None = None
    """Weights that are stage 1; if empty, those that the run, or another with these settings, has,
    else it is trained."""
    name: str = ""
    """Name of the run; made from profile, seed and time if empty (evaluate: the latest)."""

    def __call__(self) -> int:
        from hjepa_lib.pixels import two_stages

        if self.action == "evaluate":
            self.refuse_all_but(("action", "name", "stage"), "vjepa2 evaluate")
            return two_stages.evaluate(Run.open(self.name), self.stage)
        return two_stages.train_model(self.open_run(), self.stage)

    def settings(self, base: Config | None = None) -> Config:
        """The config asked for, with the option that stands for a setting."""
        from hjepa_lib.pixels.models import about_model

        config, path = super().settings(base), self.stage1_checkpoint
        if path is None:
            return config
        about_model(path, "stage1")  # no run is made, and no data, for a file that is none
        return config.override({"pixels.vjepa2.stage1.checkpoint": str(path.resolve())})


@dataclass(kw_only=True)
class AuxiliaryCommand(RunOptions):
    """Train a JEPA per auxiliary loss, all else equal, and rank them by downstream errors."""

    losses: tyro.conf.Positional[Path | None] = None
    """YAML list of {name, type, params}; VICReg, Barlow Twins and DINO centring if empty."""
    name: str = "auxiliary"
    """Folder with a run per loss; what is finished there is kept."""

    def __call__(self) -> int:
        from hjepa_lib.pixels import studies

        used = ("losses", "name", "profile", "config", "set", "seed", "yes")
        self.refuse_all_but(used, "auxiliary")
        machine.set_up()
        losses, config = studies.read_losses(self.losses), self.settings()
        prepare(config, [], self.yes)
        table = studies.run_losses(self.name, losses, config)
        print(studies.summary_text(table), end="")
        return int(table["rank"].isna().any())


_COMMANDS = {
    "run": RunCommand,
    "train": TrainCommand,
    "compare": CompareCommand,
    "experiment": ExperimentCommand,
    "sweep": SweepCommand,
    "study": ExperimentCommand,
    "trials": TrialsCommand,
    "report": ReportCommand,
    "settings": SettingsCommand,
    "pretrained": PretrainedCommand,
    "gallery": GalleryCommand,
    "grid": GridCommand,
    "vjepa2": VJepa2Command,
    "auxiliary": AuxiliaryCommand,
    "bench": BenchCommand,
    "gpu-check": GpuCheckCommand,
}


def main(arguments: list[str] | None = None) -> int:
    """Parse and execute one command; returns the exit status."""
    command = tyro.extras.subcommand_cli_from_dict(
        _COMMANDS,
        prog="python -m hjepa_lib",
        description="The H-JEPA workbook: notebooks, comparisons and sweeps from the command line.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (WorkbookError, OSError) as error:  # anything else is a fault: its trace is shown
        print(f"error: {error}", file=sys.stderr)
        return 2


def _stop(*_: object) -> None:
    """SIGTERM: unwind, so that kernels are shut down and the stage is recorded as interrupted."""
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
