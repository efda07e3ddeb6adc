"""What the two stages are worth: errors, grades and success criteria of seed 002, collapse beside.

An L1 error on raw latents goes to 0 when all states get the same latent, so it says nothing alone.
Every error here therefore has its trivial baseline (a constant latent in stage 1, the last latent
in stage 2), stands next to standard deviation and effective rank, and a collapsed model fails.
Training and validation errors are measured alike: best weights, eval mode, the same masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.models.layers import draw_masks
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.pixels.vjepa2 import (
    LatentWindows,
    MaskedPrediction,
    WorldModel,
    window_loss,
)
from hjepa_lib.training.probes import effective_rank

RATIOS = (0.25, 0.5, 0.75)
BATCHES = 5
HELD_OUT = 256  # states or windows that are looked at, at most
ROLLOUT = 8
LEAST_STD, LEAST_RANK = math.sqrt(0.001), 2.0
"""A latent with less variance per dimension than 0.001, or on a line, has collapsed.

The bar is absolute because the graded errors are: where latents vary by 0.03, the best constant has
an error of about 0.025 and would be graded "good"."""
STABLE = 1.1  # last validation loss over the lowest
LEAST_EPOCHS = 15
WORDS = ("excellent", "good", "acceptable", "poor")
GRADES: dict[str, tuple[float, float, float]] = {
    "stage1_train": (0.01, 0.05, 0.1),
    "stage1_validation": (0.015, 0.06, 0.12),
    "stage2_total": (0.1, 0.3, 0.5),
    "stage2_teacher_forcing": (0.08, 0.2, 0.4),
    "stage2_rollout": (0.15, 0.4, 0.6),
    "ratio": (1.2, 1.5, 2.0),
}
"""Upper limits of excellent, good and acceptable; a ratio is validation over training."""
EXPECTED: dict[str, dict[int, tuple[float, float]]] = {
    "stage1_train": {1: (0.4, 0.6), 5: (0.1, 0.2), 10: (0.05, 0.1)},
    "stage1_validation": {1: (0.3, 0.5), 5: (0.08, 0.2), 10: (0.04, 0.08)},
    "stage2_total": {1: (0.4, 0.6), 10: (0.2, 0.3), 20: (0.15, 0.25)},
    "stage2_teacher_forcing": {1: (0.3, 0.5), 10: (0.15, 0.25), 20: (0.1, 0.2)},
    "stage2_rollout": {1: (0.5, 0.8), 10: (0.25, 0.4), 20: (0.2, 0.3)},
}
"""Ranges that seed 002 expects after so many epochs."""


class Criterion(NamedTuple):
    """One line of the success criteria; `passed` is None where it could not be checked."""

    name: str
    value: str
    bar: str
    passed: bool | None


def grade(quantity: str, value: float) -> str:
    """The seed's word for a value; NaN is poor."""
    return next((w for w, limit in zip(WORDS, GRADES[quantity], strict=False) if value < limit),
                WORDS[-1])  # fmt: skip


def expectation(quantity: str) -> str:
    """What the seed expects of a quantity by epoch: "1: 0.4-0.6, 10: 0.2-0.3"; "" for none."""
    ranges = EXPECTED.get(quantity, {})
    return ", ".join(f"{epoch}: {low:g}-{high:g}" for epoch, (low, high) in ranges.items())


def collapse(latents: Tensor) -> str:
    """Why latents (M, D) count as collapsed; "" when they do not."""
    if not bool(latents.isfinite().all()):
        return "latents are not finite"
    std, rank = spread(latents)
    if std < LEAST_STD:
        return f"std {std:.2g} is below {LEAST_STD:.2g}"
    if rank < LEAST_RANK:
        return f"effective rank {rank:.2f} is below {LEAST_RANK:g}"
    return ""


def spread_rows(count: int, most: int = HELD_OUT) -> Tensor:
    """At most `most` of `count` indices, evenly spread and always the same."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def spread(latents: Tensor) -> tuple[float, float]:
    """(std averaged over dimensions, effective rank) of latents (M, D)."""
    return latents.std(dim=0).mean().item(), effective_rank(latents)


# --- stage 1 ----------------------------------------------------------------------------------
@torch.no_grad()
def masked_latents(
    model: MaskedPrediction, data: Transitions, rows: Tensor, ratio: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Predicted and target latents (len(rows), D) with `ratio` of the patches hidden, eval mode."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for index in rows.split(64):
        mask = draw_masks(len(index), model.online.patches, ratio, generator).to(device)
        pairs.append(model.predict(data.batch(index).state.to(device), mask))
    return tuple(torch.cat(part) for part in zip(*pairs, strict=True))


def evaluate_stage1(
    model: MaskedPrediction, train: Transitions, validation: Transitions, config: PixelsConfig
) -> dict[str, Any]:
    """L1 at three mask ratios over 5 batches, graded errors, and what collapse would show in."""
    stage = config.vjepa2.stage1
    few = spread_rows(len(validation), BATCHES * stage.optim.batch)
    ladder = {ratio: F.l1_loss(*masked_latents(model, validation, few, ratio)) for ratio in RATIOS}
    parts = [masked_latents(model, d, spread_rows(len(d)), stage.mask) for d in (train, validation)]
    errors = [F.l1_loss(*part).item() for part in parts]
    constant = parts[0][1].median(dim=0).values  # the constant with the lowest L1 error
    targets = parts[1][1]
    std, rank = spread(targets)
    return {
        "masked_l1": {str(ratio): value.item() for ratio, value in ladder.items()},
        "train": errors[0],
        "validation": errors[1],
        "ratio": _ratio(*errors),
        "constant": (targets - constant).abs().mean().item(),
        "std": std,
        "effective_rank": rank,
        "collapsed": collapse(targets),
    }


def stage1_criteria(result: dict[str, Any], losses: Sequence[float] = ()) -> list[Criterion]:
    """Success of stage 1; `losses` are the validation losses in their order."""
    return [
        _collapse_line(result["collapsed"], result),
        _below("training L1", result["train"], 0.05),
        _below("validation / training", result["ratio"], 1.5),
        _stable(losses),
        _below("L1 against a constant latent", result["validation"], result["constant"]),
    ]


# --- stage 2 ----------------------------------------------------------------------------------
@torch.no_grad()
def rollout_errors(world: WorldModel, data: LatentWindows, rows: Tensor, steps: int) -> dict:
    """Mean L1 error after 1..steps imagined steps, (steps,) each: the model's, and copy-last's."""
    world.eval()
    now, action, then = data.windows(rows, steps)
    imagined = world.rollout(now[:, 0], action, steps)
    copied = (now[:, :1] - then).abs().mean(dim=(0, 2))
    return {
        "model": (imagined - then).abs().mean(dim=(0, 2)).tolist(),
        "copy_last": copied.tolist(),
    }


@torch.no_grad()
def evaluate_stage2(
    world: WorldModel, train: LatentWindows, validation: LatentWindows, config: PixelsConfig
) -> dict[str, Any]:
    """Mean L1 over 5 batches, graded losses, errors of an 8-step roll-out against copy-last."""
    stage, length = config.vjepa2.stage2, config.data.sequence
    few = spread_rows(len(validation.first), BATCHES * stage.optim.batch)
    losses = [window_loss(world, part, config) for part in (train, validation)]
    now, action, then = validation.windows(few, length)
    world.eval()
    forced = world(now, action)
    latents, named = now[:, -1], forced[:, -1]  # one state per window: neighbours are alike
    std, rank = spread(latents)
    broken = collapse(latents)
    lost = collapse(named)
    return {
        "mean_l1": F.l1_loss(forced, then).item(),
        "copy_last_l1": F.l1_loss(now, then).item(),
        "total": losses[1]["loss"],
        "teacher_forcing": losses[1]["teacher_forcing"],
        "rollout": losses[1]["rollout"],
        "train_total": losses[0]["loss"],
        "ratio": _ratio(losses[0]["loss"], losses[1]["loss"]),
        "per_step": rollout_errors(world, validation, few, min(ROLLOUT, length)),
        "std": std,
        "effective_rank": rank,
        "predicted_std": spread(named)[0],
        "collapsed": broken or (f"predicted {lost}" if lost else ""),
    }


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
    return [
        _collapse_line(result["collapsed"], result),
        _below("total loss", result["total"], 0.3),
        Criterion("roll-out above teacher forcing", f"{rollout:.4f}", f"> {teacher:.4f}",
                  rollout > teacher),
        Criterion("epochs", "" if epochs is None else f"{epochs:.1f}",
                  f">= {LEAST_EPOCHS}, early stopping off", enough),
        _stable(losses),
        _below("L1 against copying the last latent", result["mean_l1"], result["copy_last_l1"]),
    ]  # fmt: skip


class Example(NamedTuple):
    """One imagined future beside the encoded one."""

    true: Tensor  # (T + 1, D), the given start first
    imagined: Tensor  # (T, D)
    action: Tensor  # (T,) first number of the action embedding


@torch.no_grad()
def example(world: WorldModel, data: LatentWindows, steps: int) -> Example:
    """The roll-out over that window of `data` in which the latent moves farthest."""
    world.eval()
    now, action, then = data.windows(torch.arange(len(data.first)), steps)
    far = int((then[:, -1] - now[:, 0]).norm(dim=1).argmax())
    imagined = world.rollout(now[far, None, 0], action[far, None], steps)[0]
    true = torch.cat([now[far, :1], then[far]])
    embedded = world.embedding(action[far])
    return Example(true.cpu(), imagined.cpu(), embedded[:, 0].cpu())


# --- both -------------------------------------------------------------------------------------
def graded(stage: int, result: dict[str, Any]) -> list[tuple[str, float, str]]:
    """(quantity, value, word) for everything that seed 002 grades."""
    names = {1: ("train", "validation"), 2: ("total", "teacher_forcing", "rollout")}[stage]
    rows = [(n, result[n], grade(f"stage{stage}_{n}", result[n])) for n in names]
    return [*rows, ("validation / training", result["ratio"], grade("ratio", result["ratio"]))]


def passed(criteria: Sequence[Criterion]) -> bool:
    """True when nothing failed and collapse was ruled out; what was not checked is left out."""
    return criteria[0].passed is True and all(line.passed is not False for line in criteria)


def _collapse_line(reason: str, result: dict[str, Any]) -> Criterion:
    value = f"std {result['std']:.3g}, effective rank {result['effective_rank']:.1f}"
    bar = f"std >= {LEAST_STD:.2g}, rank >= {LEAST_RANK:g}"
    return Criterion("no collapse", f"{value}: {reason}" if reason else value, bar, not reason)


def _below(name: str, value: float, bar: float) -> Criterion:
    return Criterion(name, f"{value:.4f}", f"< {bar:.4g}", value < bar)


def _stable(losses: Sequence[float]) -> Criterion:
    if not losses:
        return Criterion("stable validation", "", f"last <= {STABLE:g} x lowest", None)
    ratio = losses[-1] / max(min(losses), 1e-12)
    return Criterion("stable validation", f"{ratio:.3f} x lowest", f"<= {STABLE:g} x lowest",
                     ratio <= STABLE)  # fmt: skip


def _ratio(train: float, validation: float) -> float:
    return validation / train if train > 0 else math.inf
