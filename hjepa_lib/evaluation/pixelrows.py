"""Rows of the comparison of pixel models, one per model and training seed, and what is fair.

What may be compared across models is fixed by `COLUMNS`: downstream scores (reward R2, frame error)
and errors divided by those of a trivial guess in the same space. A loss is an error in a model's
own latent, whose unit is the model's choice, so no loss is a column. A set of rows that is
unfinished or mixed (other data, settings or batches) is refused, naming the mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.pixelsections import MODELS

RANDOM = "random"
NOT_APPLICABLE, NOT_ESTIMABLE = "not applicable", "not estimable"
NOTES = (NOT_APPLICABLE, NOT_ESTIMABLE)


class ComparisonError(ValueError):
    """Rows that do not make one fair comparison, or a question they cannot answer."""


class Column(NamedTuple):
    """One number of a row."""

    meaning: str
    better: str = ""  # "low" or "high" where models may be ranked by it; "" describes only
    baseline: str = ""  # the trivial guess that belongs beside it


COLUMNS: dict[str, Column] = {
    "parameters": Column("trained weights of the model, its heads and later decoder left out"),
    "updates": Column("updates of the model's training; both stages of vjepa2 added"),
    "train_seconds": Column("wall time of training the model, s"),
    "update_memory_mb": Column("weights, gradients, moments, activations of one update, MB"),
    "latent_error": Column(
        "squared error of the imagined latent / that of copying the last latent", "low",
        "copy_last_latent",
    ),
    "frame_mse": Column("squared error of the decoded next frame, pixels in [0, 1]", "low",
                        "copy_last_frame"),
    "frame_error": Column("frame_mse / that of copying the last frame", "low", "copy_last_frame"),
    "reward_mse": Column("squared error of the reward MLP", "low", "mean_reward"),
    "reward_r2": Column("R2 of the reward MLP", "high", "mean_reward"),
    "larp_mse": Column("squared error of the look-ahead reward predictor", "low", "mean_reward"),
    "larp_r2": Column("R2 of the look-ahead reward predictor", "high", "mean_reward"),
    "larp_gain": Column("(reward_mse - larp_mse) / that of the mean reward", "high", "reward_mlp"),
    "participation_ratio": Column("directions that share the variance, 1..D"),
    "effective_rank": Column("exp(entropy of the singular values' shares), 1..D"),
    "two_nn_dimension": Column("intrinsic dimension from two nearest neighbours"),
    "trustworthiness_at_5": Column("latent neighbours that are neighbours in pixels, 0..1"),
    "continuity_at_5": Column("pixel neighbours that stay neighbours, 0..1"),
    "smoothness_r2": Column("squared correlation of pixel and latent steps, 0..1"),
    "uniformity": Column("log mean exp(-2 distance^2) on the unit sphere"),
    "latent_std": Column("mean standard deviation of a latent dimension, own unit"),
    "noise_0.01": Column("latent shift under pixel noise of .01, over the latent's spread"),
    "noise_0.05": Column("the same, .05"),
    "noise_0.1": Column("the same, .1"),
    "noise_0.15": Column("the same, .15"),
    "noise_0.2": Column("the same, .2"),
}  # fmt: skip
"""Every number of a row, in the order of the table."""

FACTS = ("model", "seed", "data_sha256", "settings_sha256", "batches_sha256", "environment")
SHARED = {"environment": "environment", "data_sha256": "data", "settings_sha256": "settings"}


class Row(NamedTuple):
    """One model and training seed."""

    facts: dict[str, Any]  # FACTS and counts
    scores: dict[str, float | str]  # every name of COLUMNS; a text of NOTES where there is none
    errors: dict[str, np.ndarray]  # kind -> (K,) errors per block, see `by_block`


def check_row(row: Row) -> None:
    """ComparisonError unless the row has every fact and score, and numbers are finite."""
    where = label(row)
    for name in FACTS:
        if name not in row.facts:
            raise ComparisonError(f"{where} does not say its {name}")
    for name in [*COLUMNS, *row.scores]:
        if name not in row.scores:
            raise ComparisonError(f"{where} lacks {name}")
        if name not in COLUMNS:
            raise ComparisonError(f"{where} has the unknown column {name!r}")
        value = row.scores[name]
        if isinstance(value, str):
            if value not in NOTES:
                raise ComparisonError(f"{where}: {name} is {value!r}, neither a number nor a note")
        elif isinstance(value, bool) or not math.isfinite(value):
            raise ComparisonError(f"{where}: {name} is {value}, not a finite number")


def label(row: Row) -> str:
    """ "jepa seed 1"."""
    return f"{row.facts.get('model', 'a model')} seed {row.facts.get('seed', '?')}"


def check_rows(
    rows: Sequence[Row], seeds: Sequence[int], models: Sequence[str] = (*MODELS, RANDOM)
) -> None:
    """ComparisonError, naming the mismatch, unless rows are one finished, unmixed set."""
    for row in rows:
        check_row(row)
    found = [(row.facts["model"], row.facts["seed"]) for row in rows]
    for cell in found:
        if found.count(cell) > 1:
            raise ComparisonError(f"{cell[0]} seed {cell[1]} is there twice")
    for model in models:
        for seed in seeds:
            if (model, seed) not in found:
                raise ComparisonError(
                    f"the comparison is unfinished: {model} seed {seed} is missing"
                )
    for model, seed in found:
        if model not in models or seed not in seeds:
            raise ComparisonError(f"{model} seed {seed} does not belong to this comparison")
    first = rows[0]
    for row in rows:
        for fact, word in SHARED.items():
            mine, other = row.facts[fact], first.facts[fact]
            if mine != other:
                raise ComparisonError(
                    f"the set is mixed: {label(row)} has other {word} than {label(first)} "
                    f"({str(mine)[:12]} and {str(other)[:12]})"
                )
    for seed in seeds:
        same = [row for row in rows if row.facts["seed"] == seed and row.facts["batches_sha256"]]
        for row in same:
            if row.facts["batches_sha256"] != same[0].facts["batches_sha256"]:
                raise ComparisonError(
                    f"the set is mixed: {label(row)} saw other batches than {label(same[0])}"
                )


def of_model(rows: Sequence[Row], model: str) -> list[Row]:
    """The rows of one model, seeds in ascending order."""
    own = [row for row in rows if row.facts["model"] == model]
    return sorted(own, key=lambda row: row.facts["seed"])
