"""Commands about many runs, and about the speed and the devices of a machine."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hjepa_lib.config import ConfigError
from hjepa_lib.runs import machine
from hjepa_lib.runs.places import RunError
from hjepa_lib.workbench import STUDY
from hjepa_lib.workbench.pool import Work
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.workbench.table import Table, describe


@dataclass
class CompareCommand:
    """Flat (l1) against hierarchical (l2) planning: same cost, protocol P1, one table."""

    config_l1: Path | None = None
    """Settings of the flat model; configs/tworooms_l1.yaml if empty."""
    config_l2: Path | None = None
    """Settings of the two-level model; configs/tworooms_l2.yaml if empty."""
    output_root: Path | None = None
    """Folder of the runs; compare-s<seed> in the outputs folder if empty."""
    seed: int = 0
    """Training seed of both."""
    epochs: int | None = None
    """Passes over the data, in place of the configured number of updates."""
    mode: Literal["l1", "l2", "both"] = "both"
    """Which of the two to train and evaluate."""
    l2_from_scratch: bool = False
    """Train a level 1 of its own under level 2."""

    def __call__(self) -> int:
        from hjepa_lib.workbench import compare

        return compare.compare(self)


@dataclass(frozen=True)
class ExperimentCommand(Work):
    """Do what an experiment file asks for and its table lacks; the same command goes on."""

    file: tyro.conf.Positional[Path | None] = None
    """YAML file, see configs/study.yaml; the committed study if empty."""
    list: bool = False
    """Only show the cells in their order, with what is done."""
    only: str = ""
    """Cells to do, by name or group: globs with commas between them; all if empty."""
    models: str = ""
    """Models to do (worlds, in worlds.yaml), in the same way."""
    seeds: str = ""
    """Training seeds to do, such as 0+1; those of each cell if empty."""

    resume = True

    def __call__(self) -> int:
        if not all(part.isdigit() for part in self.seeds.split("+") if self.seeds):
            raise ConfigError(f"--seeds must be numbers such as 0+1+2, got {self.seeds!r}")
        experiment = read_experiment(self.file or STUDY)
        seeds = tuple(int(part) for part in self.seeds.split("+") if part)
        units = experiment.select(self.only, seeds, self.models)
        if not units:
            raise ConfigError("no cell has these names, models and seeds")
        table = Table(experiment.table, experiment.profile)  # brought here, where it is remote
        if self.list:
            print(describe(units, table))
            return 0
        if experiment.folder.exists() and not self.resume:
            raise RunError(f"{experiment.name!r} exists already; resume it or choose another name")
        from hjepa_lib.workbench.engine import run_experiment

        ended = run_experiment(experiment, units, self)
        failed = sum(bool(one.error) for one in ended)
        print(f"{len(ended) - failed} of {len(ended)} rows made; table: {experiment.table}")
        return 1 if failed else 0


@dataclass(frozen=True)
class SweepCommand(ExperimentCommand):
    """An experiment file of one's own that is new, unless --resume is given."""

    resume: bool = False
    """Continue an experiment that exists; finished rows are skipped."""


@dataclass
class BenchCommand:
    """Time level-1 updates, planner calls, rendering and data on the CPU."""

    rounds: int = 20
    """Timed rounds; all ways take turns, so clock and neighbours are the same for them."""
    only: str = ""
    """Time only the work whose name contains this text."""
    quick: bool = False
    """Tiny sizes: shows that everything runs, its times mean nothing."""

    def __call__(self) -> int:
        from torch.utils.benchmark import Compare

        from hjepa_lib.workbench import bench

        print(f"{machine.set_up()} threads")
        every = bench.works(self.quick)
        chosen = {work: ways for work, ways in every.items() if self.only in work}
        if not chosen:
            raise ConfigError(f"no work is called like {self.only!r}: there are {'; '.join(every)}")
        Compare(bench.measure(chosen, self.rounds)).print()
        return 0


@dataclass
class GpuCheckCommand:
    """Check a machine with CUDA: losses and plans against the CPU, speed, P1, a start of `full`."""

    minutes: float = 8.0
    """Time in all; a part that does not fit is left out, and named."""
    output: Path | None = None
    """JSON file that grows part by part; in a new folder of the outputs if empty."""
    quick: bool = False
    """Tiny sizes, without CUDA on the CPU: shows that everything runs, its numbers mean nothing."""

    def __call__(self) -> int:
        begin = time.monotonic()  # imports count
        from hjepa_lib.workbench.gpu_check import PARTS, Check, wrong

        cuda = machine.has_device("cuda")
        if not cuda and not self.quick:
            raise ConfigError("gpu-check needs a machine with CUDA; --quick plays it tiny on any")
        machine.set_up()
        end = begin + 60 * self.minutes - 6
        check = Check(self.output, end, "cuda" if cuda else "cpu", self.quick)
        for work, seconds in PARTS.items():
            check.run(work, seconds)
        print(f"written: {check.output}")
        return 1 if wrong(check.parts) else 0
