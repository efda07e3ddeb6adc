"""Interleaved timing of two ways of doing the same work, for `hjepa_lib.workbench.bench`.

Baseline and candidate take turns (A B A B) in one process, so that allocator, threads, clock speed
and neighbours are the same for both. Medians are compared, the spread is that of the ratios of
single rounds, and nothing is timed before both sides gave the same numbers on the same input.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from hjepa_lib.config import ConfigError
from hjepa_lib.files import WorkbookError

TOLERANCE = 0.05
"""Largest mean difference of the two sides' numbers, as a share: bf16 rounding stays below it."""
WARM_UP = 2
"""Rounds before the timed ones: memory is mapped and kernels are chosen there."""
Side = Callable[[], Any]


class BenchError(WorkbookError):
    """Baseline and candidate do not compute the same, so their times say nothing."""


class Case(NamedTuple):
    """Two ways of doing the same work; without a baseline only the candidate is timed."""

    name: str
    baseline_label: str
    candidate_label: str
    baseline: Side | None
    candidate: Side
    check: Callable[[Any, Any], float] | None  # both sides' outcomes -> relative difference
    count: int  # items of one call
    unit: str  # what is counted
    most_rounds: int = 0  # of work that takes minutes, with a single warm-up; 0: as many as asked
    skip: str = ""  # why it cannot run on this machine


class Row(NamedTuple):
    """Outcome of one case; seconds are medians per call, ratios are baseline / candidate."""

    name: str
    baseline_label: str
    candidate_label: str
    rounds: int
    baseline_seconds: float | None
    candidate_seconds: float
    ratio: float | None  # of the medians
    ratio_low: float | None  # smallest and largest of the single rounds
    ratio_high: float | None
    difference: float | None  # relative difference of the two sides' numbers
    per_second: float  # items per second of the candidate
    unit: str


def measure(case: Case, rounds: int) -> Row:
    """Run one case for `rounds` interleaved rounds; BenchError when the two sides disagree."""
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    sides = [side for side in (case.baseline, case.candidate) if side is not None]
    outcomes = [side() for side in sides]
    if case.most_rounds:
        rounds = min(rounds, case.most_rounds)
    else:
        for side in sides * (WARM_UP - 1):
            side()
    difference = None if case.check is None else case.check(*outcomes)
    if difference is not None and not difference <= TOLERANCE:
        raise BenchError(
            f"{case.name}: {case.baseline_label} and {case.candidate_label} differ by "
            f"{difference:.3g}, more than {TOLERANCE}"
        )
    seconds = [[_time(side) for side in sides] for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    ratio = low = high = None
    if case.baseline is not None:
        singles = [before / after for before, after in seconds]
        ratio, low, high = medians[0] / medians[1], min(singles), max(singles)
    return Row(
        case.name,
        case.baseline_label,
        case.candidate_label,
        rounds,
        medians[0] if case.baseline is not None else None,
        medians[-1],
        ratio,
        low,
        high,
        difference,
        case.count / medians[-1],
        case.unit,
    )


def _time(work: Side) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def relative_difference(one: Tensor, two: Tensor) -> float:
    """Mean absolute difference as a share of the mean absolute value."""
    one, two = one.double(), two.double()
    return float((one - two).abs().mean() / one.abs().mean())


def describe(rows: list[Row]) -> str:
    """The rows as a text table."""
    lines = [("case", "baseline", "candidate", "s", "s", "ratio", "min-max", "differ", "rate")]
    for row in rows:
        paired = row.ratio is not None
        lines.append(
            (
                row.name,
                row.baseline_label,
                row.candidate_label,
                f"{row.baseline_seconds:.4f}" if paired else "",
                f"{row.candidate_seconds:.4f}",
                f"{row.ratio:.2f}x" if paired else "",
                f"{row.ratio_low:.2f}-{row.ratio_high:.2f}" if paired else "",
                "" if row.difference is None else f"{row.difference:.1e}",
                f"{row.per_second:,.0f} {row.unit}/s",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
