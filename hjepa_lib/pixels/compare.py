"""Rows of the comparison of pixel models (MET-2), and what is fair.

A row is one model and training seed: facts, scores, and errors per block of held-out transitions.
What may be compared across models is fixed by `COLUMNS`: a loss is an error in a model's own
latent, whose unit is the model's choice, so no loss is a column. A mixed set is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE
from hjepa_lib.files import WorkbookError

RANDOM, RANDOM_VIT = "random", "random_vit"
UNTRAINED = (RANDOM, RANDOM_VIT)
"""Frozen encoders as they were drawn: `pixels.encoder`, and the vision transformer of `vjepa2`."""
COMPARED = (*MODELS, *UNTRAINED)
"""Every model of the comparison, in the order of its tables."""
LABELS = dict(zip(COMPARED, (
    "encoder-decoder", "encoder-decoder, JEPA style", "JEPA", "V-JEPA 2 style", "random encoder",
    "random ViT encoder",
), strict=True))  # fmt: skip
NOT_APPLICABLE = "not applicable"
NOTES = (NOT_APPLICABLE, NOT_ESTIMABLE)
BLOCK = 30
"""Consecutive transitions that are drawn anew together."""
MEAN_REWARD = "mean_reward"
"""Baseline: the mean of the training rewards, whatever the state."""


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
} | {
    f"noise_{sigma}": Column(f"latent shift under pixel noise of {sigma}, over the latent's spread")
    for sigma in (0.01, 0.05, 0.1, 0.15, 0.2)
}  # fmt: skip
"""Every number of a row, in the order of the table."""
SHARED = {"environment": "environment", "data_sha256": "data"}


class ComparisonError(WorkbookError):
    """Rows that do not make one fair comparison, or a question they cannot answer."""


class Row(NamedTuple):
    """One model and training seed."""

    facts: dict[str, Any]  # what makes it comparable, see `makers.facts_of`
    scores: dict[str, float | str]  # every name of COLUMNS; a text of NOTES where there is none
    errors: dict[str, np.ndarray]  # kind -> (K,) errors per block, see `by_block`

    @property
    def label(self) -> str:
        return f"{self.facts['model']} seed {self.facts['seed']}"


def untrained(model: str) -> str:
    """The untrained encoder of the same architecture, against which `model` is held."""
    return RANDOM_VIT if model in ("vjepa2", RANDOM_VIT) else RANDOM


def by_block(errors: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """(M,) errors in time order and their episode ids -> (K,), with the mean of the transitions.

    Neighbours in time resemble each other, so what is drawn anew is not a transition but a block of
    `BLOCK` consecutive ones of an episode (the last of an episode may be shorter).
    """
    errors, episode = np.asarray(errors, float), np.asarray(episode)
    if errors.shape != episode.shape or errors.ndim != 1 or not errors.size:
        raise ComparisonError(
            f"errors and episodes must be (M,), got {errors.shape} and {episode.shape}"
        )
    first = np.flatnonzero(np.r_[True, episode[1:] != episode[:-1]])
    place = np.arange(len(errors)) - np.repeat(first, np.diff(np.r_[first, len(errors)]))
    block = np.cumsum(place % BLOCK == 0) - 1
    sums = np.bincount(block, errors)
    return sums * len(sums) / len(errors)


class Score(NamedTuple):
    """Errors of one set of predicted rewards on the validation part."""

    mse: float
    r2: float | None  # None: not estimable, `note` says why
    note: str = ""


def score(predicted: np.ndarray, reward: np.ndarray, note: str = "") -> Score:
    """MSE and R2 of predictions (n,); a `note` of `statistics.unestimable` replaces R2."""
    predicted, reward = np.asarray(predicted, float), np.asarray(reward, float)
    if predicted.shape != reward.shape or reward.ndim != 1 or len(reward) == 0:
        raise ComparisonError(
            f"predictions and rewards must be (n,), got {predicted.shape} and {reward.shape}"
        )
    if not np.isfinite(predicted).all():
        raise ComparisonError("a reward head predicts NaN or infinity")
    mse = float(np.square(predicted - reward).mean())
    return Score(mse, None if note else 1 - mse / float(reward.var()), note)


# --- what is fair -----------------------------------------------------------------------------
def check_rows(rows: Sequence[Row], seeds: Sequence[int], models: Sequence[str] = COMPARED) -> None:
    """ComparisonError, naming the mismatch, unless rows are one finished, unmixed set."""
    found = [(row.facts["model"], row.facts["seed"]) for row in rows]
    wanted = [(model, seed) for model in models for seed in seeds]
    for model, seed in wanted:
        if found.count((model, seed)) != 1:
            how = "is there twice" if (model, seed) in found else "is missing"
            raise ComparisonError(f"the comparison is unfinished: {model} seed {seed} {how}")
    first: dict[Any, Row] = {}
    for row in rows:
        if (row.facts["model"], row.facts["seed"]) not in wanted:
            raise ComparisonError(f"{row.label} does not belong to this comparison")
        for name in COLUMNS.keys() | row.scores.keys():
            value = row.scores.get(name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in COLUMNS or not (value in NOTES or (number and math.isfinite(value))):
                raise ComparisonError(f"{row.label}: {name} is {value!r}, no number of the table")
        for fact, word in SHARED.items():
            _equal(row, first.setdefault("", row), fact, f"has other {word} than")
        if row.facts["batches_sha256"]:
            same = first.setdefault(row.facts["seed"], row)
            _equal(row, same, "batches_sha256", "saw other batches than")
        # Two trainings cannot make the updates of one; loaded weights, and budgets in epochs that
        # may stop early, make numbers of their own.
        model = row.facts["model"]
        free = row.facts.get("loaded") or row.facts.get("early_stopping")
        if model not in UNTRAINED and not free:
            group = model if "stage_updates" in row.facts else "one training"
            _equal(row, first.setdefault(group, row), "updates", "made other updates than")


def _equal(row: Row, other: Row, fact: str, sentence: str) -> None:
    mine, their = row.facts[fact], other.facts[fact]
    if mine != their:
        raise ComparisonError(
            f"the set is mixed: {row.label} {sentence} {other.label} "
            f"({str(mine)[:12]} and {str(their)[:12]})"
        )


def of_model(rows: Sequence[Row], model: str) -> list[Row]:
    """The rows of one model, seeds in ascending order."""
    own = [row for row in rows if row.facts["model"] == model]
    return sorted(own, key=lambda row: row.facts["seed"])


def notes(rows: Sequence[Row]) -> list[str]:
    """Sentences of the report on where its models differ by design, made from the rows."""
    models = [m for m in dict.fromkeys(row.facts["model"] for row in rows) if m not in UNTRAINED]
    groups: dict[str, list[str]] = {}
    for model in models:
        counts = sorted({row.facts["updates"] for row in of_model(rows, model)})
        ends = counts[:1] if len(counts) == 1 else [counts[0], counts[-1]]
        groups.setdefault(" to ".join(f"{n:,}" for n in ends), []).append(model)
    text = "; ".join(f"{count} for {_listed(names)}" for count, names in groups.items())
    text = f"Updates: {text}."
    if any(row.facts.get("early_stopping") for row in rows):
        text += " Budgets in epochs may stop early, so that models differ in updates."
    for model in models:
        stages = of_model(rows, model)[0].facts.get("stage_updates")
        if stages:
            parts = " + ".join(f"{count:,}" for count in stages)
            text += (
                f" {model} is trained in {len(stages)} stages ({parts}): the rule of equal updates "
                "does not hold for it."
            )
    found = [text]
    scored = {row.facts["model"]: row.scores.get("latent_error") for row in rows}
    if scored.get("enc_dec_jepa") == NOT_APPLICABLE:
        found.append(
            "latent_error of enc_dec_jepa is not applicable: the latent that it imagines is what "
            "its decoder reads and is trained to draw the next frame, never to equal the encoding "
            "of the next state, so its distance to that encoding is no error."
        )
    for model in models:
        loaded = [row.facts for row in of_model(rows, model) if row.facts.get("loaded")]
        said = sorted({facts["loaded_data"] for facts in loaded if "loaded_data" in facts})
        more = f" (trained on {_listed(said)})" if said else ""
        if loaded:
            found.append(f"{model} has weights from a file, so nothing is claimed from it{more}.")
    return found


def _listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
