"""Measures of the grid models: prediction next to collapse, decoded grids, rewards, comparison.

Cosine of prediction and target is 1 when the encoder sends every grid to one point (F13), so it is
never read alone. Beside it stand the mean standard deviation and effective rank of the latents, and

    error  = mean (zhat - z')^2 / mean over dimensions of Var(z')      1 = predicting the mean
    spread = sum of variances / mean squared norm of the latents       0 = one point, 1 = no offset

A model counts as collapsed, whatever its cosine, when std < 0.01, spread < 0.001 or the effective
rank is below 2. Losses of different latents are not compared anywhere; the comparison table ranks
nothing either: it states what was measured, with the number of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.evaluation.statistics import LEAST_SEEDS, Interval, student
from hjepa_lib.files import WorkbookError
from hjepa_lib.grids.buffer import GridBatch, GridBuffer
from hjepa_lib.grids.models import GridJepa, GridModel, GridTwin
from hjepa_lib.grids.train import CHUNK
from hjepa_lib.grids.world import FACTS, facts
from hjepa_lib.training.probes import effective_rank, fit_ridge

LEAST_STD, LEAST_SPREAD, LEAST_RANK = 0.01, 0.001, 2.0
GOOD, CONCERNING = 0.7, 0.5
"""Cosine above the first after a few epochs is good, below the second late is worrying (004)."""


class GridMetricError(WorkbookError):
    """Arrays that a measure is not defined for."""


# --- latents ----------------------------------------------------------------------------------
def latent_report(latents: Tensor) -> dict[str, float]:
    """std, spread and effective rank of latents (M, D)."""
    if latents.dim() != 2 or len(latents) < 2:
        raise GridMetricError(f"latents must be (M, D) with M of 2 or more, got {latents.shape}")
    latents = latents.double()
    variance = latents.var(0, correction=0)
    norm = latents.square().sum(1).mean()
    return {
        "std": float(variance.sqrt().mean()),
        "spread": float(variance.sum() / norm.clamp(min=1e-30)),
        "effective_rank": effective_rank(latents),
    }


def collapsed(report: Mapping[str, float]) -> bool:
    """The rule of this module's head; a value that is not finite is a collapse as well."""
    limits = {"std": LEAST_STD, "spread": LEAST_SPREAD, "effective_rank": LEAST_RANK}
    return any(not report[name] >= least for name, least in limits.items())


def verdict(report: Mapping[str, float], late: bool) -> str:
    """collapsed, good, worrying (late only) or between; collapse comes before any cosine."""
    if collapsed(report):
        return "collapsed"
    cosine = report["jepa_cosine_sim"]
    if cosine > GOOD:
        return "good"
    return "worrying" if late and cosine < CONCERNING else "between"


def prediction_report(prediction: Tensor, target: Tensor, present: Tensor) -> dict[str, float]:
    """Errors of predicted latents (M, D), beside those of predicting no change (`present`)."""
    variance = target.var(0, correction=0).mean().clamp(min=1e-12)
    error = F.mse_loss(prediction, target)
    centre = target.mean(0)
    cosine = F.cosine_similarity(prediction, target, dim=-1).mean()
    return {
        "jepa_prediction_loss": float(error),
        "jepa_cosine_sim": float(cosine),
        "centred_cosine": float(F.cosine_similarity(prediction - centre, target - centre).mean()),
        "error": float((error + 1e-12) / variance),
        "copy_error": float((F.mse_loss(present, target) + 1e-12) / variance),
        "copy_cosine": float(F.cosine_similarity(present, target, dim=-1).mean()),
    }


@torch.no_grad()
def ema_distance(online: nn.Module, target: nn.Module) -> float:
    """Distance of all weights of two encoders over the norm of the first's."""
    pairs = list(zip(online.parameters(), target.parameters(), strict=True))
    gap = sum(float((one - two).square().sum()) for one, two in pairs)
    return math.sqrt(gap / sum(float(one.square().sum()) for one, _ in pairs))


@torch.no_grad()
def encode_all(model: GridModel, grids: Tensor) -> Tensor:
    """Canvases (M, S, S) -> (M, D) on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model.encode(part.to(device)).cpu() for part in grids.split(CHUNK)])


@torch.no_grad()
def validate_jepa(model: GridJepa, batch: GridBatch) -> dict[str, float]:
    """Everything that GRID-7 watches, on held-out transitions; `loss` is the relative error."""
    parts = []
    device = next(model.parameters()).device
    for rows in zip(*(field.split(CHUNK) for field in batch), strict=True):
        piece = GridBatch(*rows).to(device)
        now, target = model.encode(piece.state), model.encode_target(piece.next_state)
        present = model.encode_target(piece.state)
        parts.append((now, model.imagine(now, piece.action), target, present))
    now, predicted, target, present = (
        torch.cat(column).float() for column in zip(*parts, strict=True)
    )
    report = prediction_report(predicted, target, present) | latent_report(now)
    report["ema_distance"] = ema_distance(model.encoder, model.target)
    return {"loss": report["error"], **report}


# --- decoded grids ----------------------------------------------------------------------------
@torch.no_grad()
def validate_twin(model: GridTwin, batch: GridBatch) -> dict[str, float]:
    """Losses, latents, and how many cells are right, also among those that the action changed."""
    parts, predicted, latents = [], [], []
    device = next(model.parameters()).device
    for rows in zip(*(field.split(CHUNK) for field in batch), strict=True):
        piece = GridBatch(*rows).to(device)
        parts.append((len(piece.action), model.loss(piece)[1]))
        predicted.append(model.predict(piece.state, piece.action).cpu())
        latents.append(model.encode(piece.state).cpu().float())
    report = {
        name: sum(n * terms[name] for n, terms in parts) / len(batch.action) for name in parts[0][1]
    }
    report |= cell_report(torch.cat(predicted), batch.state.cpu(), batch.next_state.cpu())
    return {"loss": report["gen_total_loss"], **report, **latent_report(torch.cat(latents))}


def cell_report(predicted: Tensor, state: Tensor, truth: Tensor) -> dict[str, float]:
    """Shares of right cells of canvases (M, S, S); padding counts where either grid has a cell.

    `copy_accuracy` is that of repeating the state, which is right in every cell that did not change
    and in none that did.
    """
    either = (truth >= 0) | (state >= 0) | (predicted >= 0)
    changed = truth != state
    right = predicted == truth
    return {
        "cell_accuracy": float(right[either].float().mean()),
        "copy_accuracy": float((~changed)[either].float().mean()),
        "changed_accuracy": float(right[changed].float().mean()) if changed.any() else math.nan,
    }


# --- rewards ----------------------------------------------------------------------------------
def reward_report(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """MSE, MAE, RMSE, Pearson correlation and R2 of (n,); NaN where nothing varies."""
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    if predicted.shape != true.shape or true.ndim != 1 or len(true) < 2:
        raise GridMetricError(
            f"predicted and true must be (n,), n of 2 or more; got {predicted.shape}, {true.shape}"
        )
    gap = predicted - true
    mse, variance = float(np.square(gap).mean()), float(true.var())
    varied = variance > 0 and predicted.std() > 0
    return {
        "mse": mse,
        "mae": float(np.abs(gap).mean()),
        "rmse": math.sqrt(mse),
        "correlation": float(np.corrcoef(predicted, true)[0, 1]) if varied else math.nan,
        "r2": 1 - mse / variance if variance > 0 else math.nan,
    }


def fact_accuracy(model: GridModel, train: GridBuffer, validation: GridBuffer) -> float:
    """Mean accuracy over FACTS of a linear probe on frozen latents, held-out episodes.

    A ridge regression to one-hot classes, its largest output taken: what a straight cut can read.
    """
    parts = []
    for data in (train, validation):
        rows = torch.linspace(0, len(data) - 1, min(len(data), 1000)).long()
        grids = data.batch(rows).state
        parts.append((encode_all(model, grids), facts(grids)))
    (seen, labels), (held, truth) = parts
    shares = []
    for column in range(len(FACTS)):
        classes = F.one_hot(labels[:, column]).float()
        read = fit_ridge(seen, classes)(held).argmax(1)
        shares.append(float((read == truth[:, column]).float().mean()))
    return float(np.mean(shares))


# --- comparison -------------------------------------------------------------------------------
def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's 95 % interval; its ends are NaN for one seed."""
    array = np.asarray(values, float)
    if len(array) < 2 or not np.isfinite(array).all():
        return Interval(float(array.mean()), math.nan, math.nan)
    return Interval(float(array.mean()), *student(array))


def paired_error(
    rows: Sequence[Mapping[str, Any]], one: str, two: str, name: str = "reward_mse"
) -> dict[str, Any]:
    """Error `name` of model `one` minus that of `two`, in shares of the latter's, paired by seed.

    Both are means over the same held-out transitions, which the rows do not keep one by one: the
    interval is Student's over training seeds alone. Below 0 `one` is better.
    """
    first, second = (
        {row["seed"]: row[name] for row in rows if row["model"] == kind} for kind in (one, two)
    )
    if first.keys() != second.keys() or not first:
        raise GridMetricError(f"{one} and {two} have no rows of the same training seeds")
    gaps = np.array([(first[seed] - second[seed]) / second[seed] for seed in sorted(first)])
    gap = mean_interval(gaps)
    found = {"model": one, "against": two, "seeds": len(gaps), "difference": gap.estimate}
    known = len(gaps) > 1
    found |= {"low": gap.low if known else None, "high": gap.high if known else None}
    if len(gaps) < LEAST_SEEDS:
        return found | {"verdict": f"nothing claimed: {len(gaps)} of {LEAST_SEEDS} seeds"}
    if gap.high < 0:
        return found | {"verdict": "beats"}
    return found | {"verdict": "loses to" if gap.low > 0 else "no difference shown"}


def sentence(gap: Mapping[str, Any]) -> str:
    """ "jepa against generative, no difference shown: reward error -0.4 % (-2.1 to +1.3, ...)"."""
    ends = ""
    if gap["low"] is not None:
        ends = f"{100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}, "
    plural = "" if gap["seeds"] == 1 else "s"
    shown = f"reward error {100 * gap['difference']:+.1f} % ({ends}{gap['seeds']} seed{plural})"
    if gap["verdict"] in ("beats", "loses to"):
        return f"{gap['model']} {gap['verdict']} {gap['against']}: {shown}"
    return f"{gap['model']} against {gap['against']}, {gap['verdict']}: {shown}"


PAIRS = (("jepa", "generative"), ("jepa", "random"), ("generative", "random"))
"""Who is held against whom in the error of the reward."""


def paired_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`PAIRS` as far as the rows have both models, paired by training seed."""
    known = {row["model"] for row in rows if row.get("reward_mse") is not None}
    return [sentence(paired_error(rows, *pair)) for pair in PAIRS if known.issuperset(pair)]


MEASURES = {
    "parameters": "trainable weights",
    "outputs": "numbers predicted per transition",
    "memory_mb": "memory of one update (MB)",
    "ms_per_update": "time of one update (ms, median)",
    "train_seconds": "training, all updates (s)",
    "std": "latent std",
    "effective_rank": "effective rank",
    "fact_accuracy": "grid facts read linearly (share)",
    "changed_accuracy": "changed cells decoded right (share)",
    "reward_r2": "reward R2, true next latent",
    "imagined_r2": "reward R2, imagined next latent",
}
"""Columns of a result row that the comparison shows, in this order."""

ESTIMATES = {"reward_r2": "reward_mse", "imagined_r2": "imagined_mse"}
"""The error that a model has wherever its R2 was asked for."""


def comparison(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """GRID-10: one row per measure, one column per model, from result rows of all seeds.

    A cell is the mean over seeds with its interval; the last rows are the seed spread of the reward
    R2 (standard deviation) and the collapse rate. What a model does not have is left empty; an R2
    for which there are too few rewards is "not estimable".
    """
    table = pd.DataFrame(list(rows))
    columns: dict[str, dict[str, str]] = {}
    for kind, own in table.groupby("model", sort=False):
        cells = {title: _cell(own[name]) for name, title in MEASURES.items() if name in own}
        for name, error in ESTIMATES.items():
            if {name, error} <= set(own) and own[error].notna().any() and own[name].isna().all():
                cells[MEASURES[name]] = "not estimable"
        r2 = own["reward_r2"].dropna()
        cells["seed spread of reward R2 (std)"] = f"{r2.std():.3f}" if len(r2) > 1 else ""
        flags = own["collapsed"].dropna()
        cells["collapse rate"] = f"{int(flags.sum())} of {len(flags)}" if len(flags) else ""
        columns[str(kind)] = cells | {"seeds": str(own["seed"].nunique())}
    return pd.DataFrame(columns)


def _cell(values: pd.Series) -> str:
    known = values.dropna()
    if not len(known):
        return ""
    found = mean_interval(known.to_numpy(float))
    text = f"{found.estimate:,.0f}" if abs(found.estimate) >= 100 else f"{found.estimate:.3g}"
    if math.isnan(found.low) or found.low == found.high:
        return text
    return f"{text} [{found.low:.3g}, {found.high:.3g}]"
