"""Peak memory of one piece of work, each in a process of its own.

Freed memory stays with a process here (machine.py), so peaks of several works in one process would
hide each other. Reported is what the work adds to a process that has imported and built everything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from hjepa_lib.config import Config
from hjepa_lib.data.recipes import generate
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.runs import machine
from hjepa_lib.workbench.bench.level1 import SAMPLE, PlainJepa, update_of
from hjepa_lib.workbench.bench.planning import Bench
from hjepa_lib.workbench.bench.profiles import configs
from hjepa_lib.workbench.timing import BenchError

Makers = dict[str, Callable[[], Callable[[], Any]]]


class Peak(NamedTuple):
    """One row of the memory table, MB."""

    name: str
    added: float  # by the work
    whole: float  # of the process


def works(reference: Config, laptop: Config, precision: str, trials: int = 20) -> Makers:
    """Name -> function that builds the work and returns it."""

    def update(kind: type[Jepa], config: Config, kept: str) -> Callable[[], Any]:
        return update_of(kind, config.level1, generate("good", SAMPLE), kept)

    def plan(config: Config, kept: str, batched: bool) -> Callable[[], Any]:
        bench = Bench(config, trials)
        return (lambda: bench.call(kept)) if batched else (lambda: bench.loop(kept))

    one, two = reference.level1.encoder, laptop.level1.encoder
    return {
        f"update, {one} fp32 channels first": lambda: update(PlainJepa, reference, "fp32"),
        f"update, {one} {precision}": lambda: update(Jepa, reference, precision),
        f"update, {two} {precision}": lambda: update(Jepa, laptop, precision),
        f"plan, {trials} trials one by one": lambda: plan(laptop, precision, False),
        f"plan, {trials} trials at once": lambda: plan(laptop, precision, True),
        f"plan, reference, {trials} at once": lambda: plan(reference, precision, True),
    }


def added_memory(make: Callable[[], Callable[[], Any]]) -> tuple[float, float]:
    """(added, whole) peak MB of this process after building and running the work twice."""
    work = make()
    before = machine.peak_memory_mb() or 0.0
    work()
    work()
    whole = machine.peak_memory_mb() or 0.0
    return whole - before, whole


def peaks(quick: bool, precision: str, threads: int) -> list[Peak]:
    """One child process per work; BenchError when one fails."""
    rows = []
    arguments = ["quick" if quick else "whole", precision, str(threads)]
    for name in works(*configs(quick), precision):
        command = [sys.executable, "-m", "hjepa_lib.workbench.bench.memory", name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
            raise BenchError(f"the memory of {name!r} could not be measured: {reason}")
        rows.append(Peak(name, *json.loads(done.stdout)))
    return rows


def describe_peaks(rows: list[Peak]) -> str:
    """The memory table as text."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'work':<{width}}  {'adds MB':>8}  {'process MB':>10}"]
    lines += [f"{row.name:<{width}}  {row.added:>8,.0f}  {row.whole:>10,.0f}" for row in rows]
    return "\n".join(lines)


def main(name: str, size: str, precision: str, threads: str) -> None:
    """One work, in this process: prints a JSON pair."""
    machine.set_up(int(threads))
    print(json.dumps(added_memory(works(*configs(size == "quick"), precision)[name])))


if __name__ == "__main__":
    main(*sys.argv[1:])
