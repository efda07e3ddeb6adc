"""Measures of the grid models: prediction, collapse, decoded grids, facts, comparison.

A cosine is 1 when all grids go to one point (F13), so error and collapse stand beside it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.evaluation.statistics import claim, over_seeds, sentence
from hjepa_lib.files import WorkbookError
from hjepa_lib.grids.buffer import GridBatch, GridBuffer
from hjepa_lib.grids.models import GridJepa, GridModel, GridTwin
from hjepa_lib.grids.world import COLOURS, facts
from hjepa_lib.training.loop import mean_terms
from hjepa_lib.training.probes import effective_rank, fit_ridge

GOOD, CONCERNING = 0.7, 0.5
"""A cosine above the first is good, below the second late is worrying (004)."""


def latent_report(latents: Tensor) -> dict[str, float]:
    """std and effective rank of latents (M, D)."""
    latents = latents.cpu().double()  # S7
    std = float(latents.std(0, correction=0).mean())
    return {"std": std, "effective_rank": effective_rank(latents)}


def verdict(report: Mapping[str, Any], late: bool) -> str:
    """collapsed, good, worrying (late only) or between."""
    if report["collapsed"]:
        return "collapsed"
    cosine = report["jepa_cosine_sim"]
    if cosine > GOOD:
        return "good"
    return "worrying" if late and cosine < CONCERNING else "between"


def prediction_report(prediction: Tensor, target: Tensor, present: Tensor) -> dict[str, float]:
    """Errors of predicted latents (M, D), beside those of predicting no change (`present`).

    `error` is over the targets' variance: 1 = predicting the mean.
    """
    variance = target.var(0, correction=0).mean().clamp(min=1e-12)
    error, copied = (F.mse_loss(guess, target) for guess in (prediction, present))
    centre = target.mean(0)
    return {
        "jepa_prediction_loss": float(error),
        "jepa_cosine_sim": float(F.cosine_similarity(prediction, target, dim=-1).mean()),
        "centred_cosine": float(F.cosine_similarity(prediction - centre, target - centre).mean()),
        "error": float((error + 1e-12) / variance),
        "copy_error": float((copied + 1e-12) / variance),
    }


@torch.no_grad()
def ema_distance(online: nn.Module, target: nn.Module) -> float:
    """Distance of all weights of two encoders over the norm of the first's."""
    one, two = (nn.utils.parameters_to_vector(net.parameters()) for net in (online, target))
    return float((one - two).norm() / one.norm())


@torch.no_grad()
def imagined(model: GridModel, batch: GridBatch) -> list[Tensor]:
    """Latents, imagined next ones, what those should be, that of no change: (M, D) each."""
    parts = []
    for piece in batch.pieces(model.device):
        now, target = model.encode(piece.state), model.encode_target(piece.next_state)
        present = model.encode_target(piece.state)
        parts.append((now, model.imagine(now, piece.action), target, present))
    return [torch.cat(column).float().cpu() for column in zip(*parts, strict=True)]


def validate_jepa(model: GridJepa, batch: GridBatch) -> dict[str, float]:
    """What GRID-7 watches; `loss` is the relative error, as a collapse has the least bare one."""
    now, *others = imagined(model, batch)
    report = prediction_report(*others) | latent_report(now)
    report["ema_distance"] = ema_distance(model.encoder, model.target)
    return {"loss": report["error"], **report}


@torch.no_grad()
def validate_twin(model: GridTwin, batch: GridBatch) -> dict[str, float]:
    """Losses, latents, and shares of right cells."""
    pieces = [*batch.pieces(model.device)]
    report = mean_terms(((len(one.action), *model.loss(one)) for one in pieces), len(batch.action))
    drawn = torch.cat([model.predict(one.state, one.action).cpu() for one in pieces])
    latents = torch.cat([model.encode(one.state).float() for one in pieces])
    return report | cell_report(drawn, batch.state, batch.next_state) | latent_report(latents)


def cell_report(predicted: Tensor, state: Tensor, truth: Tensor) -> dict[str, float]:
    """Shares of right cells of canvases (M, S, S); padding counts where either grid has a cell.

    `copy_accuracy` is that of repeating the state.
    """
    either = (truth >= 0) | (state >= 0) | (predicted >= 0)
    changed = truth != state
    right = predicted == truth
    return {
        "cell_accuracy": float(right[either].float().mean()),
        "copy_accuracy": float((~changed)[either].float().mean()),
        "changed_accuracy": float(right[changed].float().mean()) if changed.any() else math.nan,
    }


def fact_accuracy(model: GridModel, train: GridBuffer, validation: GridBuffer) -> float:
    """Mean accuracy over FACTS of a ridge regression to one-hot classes, on held-out episodes."""
    (seen, labels), (held, truths) = (
        (imagined(model, batch)[0], facts(batch.state).unbind(1))
        for batch in (train.sample(1000), validation.sample(1000))
    )
    shares = []
    for label, truth in zip(labels, truths, strict=True):
        found = fit_ridge(seen, F.one_hot(label).float())(held).argmax(1)
        shares.append(float((found == truth).float().mean()))
    return float(np.mean(shares))


def against_copying(model: GridModel, train: GridBuffer, validation: GridBuffer) -> dict[str, Any]:
    """Errors where an action changed something, beside those of latents that stay (`_copied`).

    By held-out episode `latent`, squared, and `changed`, the share of changed cells that a ridge of
    training latents reads wrong. `unseen_read`: of actions that no training transition has.
    """
    held = validation.select((validation.state != validation.next_state).any((1, 2)))
    seen, batch = train.sample(1000), held.sample(len(held))
    now, ahead, *_ = imagined(model, seen)
    cells = F.one_hot(torch.cat([seen.state, seen.next_state]) + 1, COLOURS + 1)
    read = fit_ridge(torch.cat([now, ahead]), cells.flatten(1).float())
    now, ahead, target, present = imagined(model, batch)
    changed = batch.state != batch.next_state
    errors = {}
    for mark, latents, guess in (("", ahead, ahead), ("_copied", now, present)):
        drawn = read(latents).view(*changed.shape, -1).argmax(-1) - 1
        wrong = ((drawn != batch.next_state) & changed).sum((1, 2)) / changed.sum((1, 2))
        errors |= {f"changed{mark}": wrong, f"latent{mark}": (guess - target).square().mean(1)}
    table = pd.DataFrame({name: values.numpy() for name, values in errors.items()})
    unseen = ~np.isin(held.action, train.action)
    return {
        "episodes": table.groupby(held.episode).mean().to_dict("list"),
        "changed_read": 1 - table["changed"].mean(),
        "changed_copied": 1 - table["changed_copied"].mean(),
        "unseen_read": 1 - table["changed"][unseen].mean(),
    }


# --- comparison (GRID-10): nothing is ranked, and losses of different latents never meet
PAIRS = (("jepa", "generative"), ("jepa", "random"), ("generative", "random"))
"""Who is held against whom in the share of facts that are read wrong."""
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
    "changed_read": "changed cells read from imagined latents (share)",
    "unseen_read": "the same, actions of no training (share)",
    "changed_copied": "changed cells read from latents that stay (share)",
}
"""Columns of a result row that the comparison shows."""


def paired_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The facts that `PAIRS` read wrong, in shares of the second one's; intervals are over training
    seeds alone."""
    table = pd.DataFrame(rows).pivot(index="seed", columns="model", values="fact_accuracy")
    told, wrong = [], 1 - table
    for one, two in PAIRS:
        if wrong[[one, two]].isna().any(axis=None):
            raise WorkbookError(f"{one} and {two} have no rows of the same training seeds")
        gap = claim(wrong[[one]], wrong[[two]], least_blocks=1)
        told.append(sentence(one, two, gap, "facts read wrong", blocks=False))
    return told


def copying_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """JEPA and twin against copying, in changed cells and in latents, and in changed cells against
    the untrained model, whose latents the action helps to read, too; all blocks are episodes."""
    told, what = [], {"changed": "changed cells read wrong", "latent": "latent error"}
    for kind in PAIRS[0]:
        for name, other, mark, against in (
            ("changed", kind, "_copied", "copying"),
            ("changed", "random", "", "the untrained model"),
            ("latent", kind, "_copied", "copying"),
        ):
            one, two = ([row["episodes"][key] for row in rows if row["model"] == model]
                        for model, key in ((kind, name), (other, name + mark)))  # fmt: skip
            told += [sentence(kind, against, claim(one, two), what[name])] if one and two else []
    return told


def comparison(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """GRID-10: a row per measure, a column per model: mean over seeds, lowest to highest."""
    columns = {}
    for kind, own in pd.DataFrame(rows).groupby("model", sort=False):
        cells = {
            title: over_seeds(own[name].dropna())["text"] if own[name].notna().any() else ""
            for name, title in MEASURES.items()
            if name in own
        }
        cells["collapse rate"] = f"{own['collapsed'].astype(bool).sum()} of {len(own)}"
        columns[str(kind)] = cells | {"seeds": str(own["seed"].nunique())}
    return pd.DataFrame(columns)
