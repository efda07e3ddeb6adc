"""What seed 002 says of the two stages' numbers: grades, expectations and success criteria (VJ-13).

The bars of collapse are absolute because the graded errors are: where latents vary by 0.03, the
best constant has an error of about 0.025 and would be graded "good".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from hjepa_lib.training.probes import effective_rank

LEAST_STD, LEAST_RANK = math.sqrt(0.001), 2.0
"""A latent with less variance per dimension than 0.001, or on a line, has collapsed."""
STABLE = 1.1  # last validation loss over the lowest
LEAST_EPOCHS = 15
WORDS = ("excellent", "good", "acceptable", "poor")


class Quantity(NamedTuple):
    """What seed 002 says of a number: upper limits of its grades, ranges after so many epochs."""

    limits: tuple[float, float, float]
    expected: str = ""


GRADES = {
    1: {
        "train": Quantity((0.01, 0.05, 0.1), "1: 0.4-0.6, 5: 0.1-0.2, 10: 0.05-0.1"),
        "validation": Quantity((0.015, 0.06, 0.12), "1: 0.3-0.5, 5: 0.08-0.15, 10: 0.04-0.08"),
        "ratio": Quantity((1.2, 1.5, 2.0)),
    },
    2: {
        "total": Quantity((0.1, 0.3, 0.5), "1: 0.4-0.6, 10: 0.2-0.3, 20: 0.15-0.25"),
        "teacher_forcing": Quantity((0.08, 0.2, 0.4), "1: 0.3-0.5, 10: 0.15-0.25, 20: 0.1-0.2"),
        "rollout": Quantity((0.15, 0.4, 0.6), "1: 0.5-0.8, 10: 0.25-0.4, 20: 0.2-0.3"),
        "ratio": Quantity((1.2, 1.5, 2.0)),
    },
}
"""By stage; `ratio` is validation over training."""


def spread(latents: Tensor) -> tuple[float, float]:
    """(std averaged over dimensions, effective rank) of latents (M, D)."""
    return latents.std(dim=0).mean().item(), effective_rank(latents)


def collapse(latents: Tensor) -> str:
    """Why latents (M, D) count as collapsed; "" when they do not."""
    if not bool(latents.isfinite().all()):
        return "latents are not finite"
    std, rank = spread(latents)
    if std < LEAST_STD:
        return f"std {std:.2g} is below {LEAST_STD:.2g}"
    return f"effective rank {rank:.2f} is below {LEAST_RANK:g}" if rank < LEAST_RANK else ""


class Criterion(NamedTuple):
    """One line of the success criteria; `passed` is None where it could not be checked."""

    name: str
    value: str
    bar: str
    passed: bool | None


def grade(stage: int, quantity: str, value: float) -> str:
    """The seed's word for a value; NaN is poor."""
    limits = GRADES[stage][quantity].limits
    words = zip(WORDS, limits, strict=False)
    return next((word for word, limit in words if value < limit), WORDS[-1])


def graded(stage: int, result: dict[str, Any]) -> list[tuple[str, float, str]]:
    """(quantity, value, word) for everything that seed 002 grades."""
    return [(name, result[name], grade(stage, name, result[name])) for name in GRADES[stage]]


def stage1_criteria(result: dict[str, Any], losses: Sequence[float] = ()) -> list[Criterion]:
    """Success of stage 1; `losses` are the validation losses in their order."""
    return [
        _no_collapse(result),
        _below("training L1", result["train"], 0.05),
        _below("validation / training", result["ratio"], 1.5),
        _stable(losses),
        _below("L1 against a constant latent", result["validation"], result["constant"]),
    ]


def stage2_criteria(
    result: dict[str, Any],
    losses: Sequence[float] = (),
    epochs: float | None = None,
    patience: int = 0,
) -> list[Criterion]:
    """Success of stage 2; a total below 0.1 counts as having reached the seed's range .1-.3.

    `epochs` are checked only with early stopping off: a training that stalls early is no failure.
    """
    teacher, rollout = result["teacher_forcing"], result["rollout"]
    enough = None if patience or epochs is None else epochs >= LEAST_EPOCHS
    shown = "" if epochs is None else f"{epochs:.1f}"
    above = (f"{rollout:.4f}", f"> {teacher:.4f}", rollout > teacher)
    return [
        _no_collapse(result),
        _below("total loss", result["total"], 0.3),
        Criterion("roll-out above teacher forcing", *above),
        Criterion("epochs", shown, f">= {LEAST_EPOCHS}, early stopping off", enough),
        _stable(losses),
        _below("L1 against copying the last latent", result["mean_l1"], result["copy_last_l1"]),
    ]


def passed(lines: Sequence[Criterion]) -> bool:
    """True when nothing failed and collapse was ruled out; what was not checked is left out."""
    return lines[0].passed is True and all(line.passed is not False for line in lines)


def _no_collapse(result: dict[str, Any]) -> Criterion:
    reason = result["collapsed"]
    value = f"std {result['std']:.3g}, effective rank {result['effective_rank']:.1f}"
    bar = f"std >= {LEAST_STD:.2g}, rank >= {LEAST_RANK:g}"
    return Criterion("no collapse", f"{value}: {reason}" if reason else value, bar, not reason)


def _below(name: str, value: float, bar: float) -> Criterion:
    return Criterion(name, f"{value:.4f}", f"< {bar:.4g}", value < bar)


def _stable(losses: Sequence[float]) -> Criterion:
    ratio = losses[-1] / max(min(losses), 1e-12) if losses else None
    value = "" if ratio is None else f"{ratio:.3f} x lowest"
    good = None if ratio is None else ratio <= STABLE
    return Criterion("stable validation", value, f"last <= {STABLE:g} x lowest", good)
