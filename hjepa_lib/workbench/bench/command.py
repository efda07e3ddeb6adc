"""What `make bench` prints: pairs of times, how planning grows, peak memory, cells on workers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from hjepa_lib.config import Config, ConfigError
from hjepa_lib.files import write_json
from hjepa_lib.runs import machine
from hjepa_lib.workbench.bench.level1 import level1_cases
from hjepa_lib.workbench.bench.memory import describe_peaks, peaks
from hjepa_lib.workbench.bench.planning import (
    GROWTH,
    QUICK_GROWTH,
    describe_growth,
    growth,
    planner_cases,
)
from hjepa_lib.workbench.bench.profiles import configs
from hjepa_lib.workbench.bench.sweeps import sweep_times
from hjepa_lib.workbench.bench.world import world_cases
from hjepa_lib.workbench.timing import BenchError, Case, describe, measure

SECTIONS = ("cases", "growth", "memory", "sweep")


def cases(
    reference: Config,
    laptop: Config,
    precision: str,
    trials: int = 20,
    frames: int = 1088,
    transitions: int = 100_000,
) -> list[Case]:
    """Every pair that is timed; smaller numbers and configs make it a test."""
    return [
        *level1_cases(reference.level1, laptop.level1, precision),
        *planner_cases(laptop, reference, precision, trials),
        *world_cases(frames, transitions),
    ]


@dataclass
class BenchCommand:
    """Baseline against candidate, interleaved in one process; medians."""

    rounds: int = 20
    """Timed rounds per case (the reference planner has 3 at most)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the shipped path; auto takes the faster one, by measurement."""
    threads: int | None = None
    """Threads of both sides; all usable cores if empty."""
    sections: str = "cases+growth+memory"
    """What to measure: cases, growth, memory, sweep (8 smoke cells on 1 and on 2 workers)."""
    only: str = ""
    """Measure only the cases whose name contains this text."""
    quick: bool = False
    """Tiny sizes: shows that everything runs, its times mean nothing."""
    output: Path | None = None
    """Also write the rows to this JSON file."""

    def __call__(self) -> int:
        wanted = self.sections.split("+")
        for section in wanted:
            if section not in SECTIONS:
                raise ConfigError(f"sections must be of {'+'.join(SECTIONS)}, got {section!r}")
        threads = machine.set_up(self.threads)
        precision = machine.choose_precision("cpu", self.precision)
        print(f"{threads} threads, {precision}")
        found: dict[str, Any] = {}
        if "cases" in wanted:
            found["rows"] = self.time_cases(precision)
        if "growth" in wanted and not self.only:
            axes, calls = (QUICK_GROWTH, 1) if self.quick else (GROWTH, 3)
            points = growth(configs(self.quick)[1], precision, axes, calls=calls)
            print(f"\nA planning call as it grows\n{describe_growth(points)}")
            found["growth"] = [point._asdict() for point in points]
        if "memory" in wanted and not self.only:
            rows = peaks(self.quick, precision, threads)
            print(f"\nPeak memory\n{describe_peaks(rows)}")
            found["memory"] = [row._asdict() for row in rows]
        if "sweep" in wanted:
            found["sweep"] = sweep_times(2 if self.quick else 8)
        if self.output:
            about = {"threads": threads, "precision": precision, "versions": machine.versions()}
            write_json(self.output, about | found)
        return 0

    def time_cases(self, precision: str) -> list[dict[str, Any]]:
        """Measure and print the chosen cases; those that cannot run here are named."""
        sizes = {"trials": 3, "frames": 34, "transitions": 500} if self.quick else {}
        found = cases(*configs(self.quick), precision, **sizes)
        chosen = [case for case in found if self.only in case.name]
        if not chosen:
            names = ", ".join(case.name for case in found)
            raise ConfigError(f"no case is called like {self.only!r}; there are: {names}")
        print(f"medians of {self.rounds} rounds")
        rows = [measure(case, self.rounds) for case in chosen if not case.skip]
        if rows:
            print(describe(rows))
        for case in chosen:
            if case.skip:
                print(f"{case.name}: not measured, {case.skip}")
        return [row._asdict() for row in rows]


def main(arguments: list[str] | None = None) -> int:
    """Parse the options and measure; one sentence and status 2 when that is not possible."""
    try:
        return tyro.cli(
            tyro.conf.FlagCreatePairsOff[BenchCommand],
            prog="python -m hjepa_lib.workbench.bench",
            args=arguments,
        )()
    except (ConfigError, BenchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
