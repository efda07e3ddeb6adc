"""Rows of the comparison of pixel models, one per model and training seed, and what is fair.

What may be compared across models is fixed by `COLUMNS`: downstream scores (reward R2, frame error)
and errors divided by those of a trivial guess in the same space. A loss is an error in a model's
own latent, whose unit is the model's choice, so no loss is a column. A set of rows that is
unfinished or mixed (other data, settings, batches or numbers of updates) is refused, naming the
mismatch. Where the models do differ by design, `notes` says so in the report's own words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.files import WorkbookError

RANDOM, RANDOM_VIT = "random", "random_vit"
UNTRAINED = (RANDOM, RANDOM_VIT)
"""Frozen encoders as they were drawn: `pixels.encoder`, and the vision transformer of `vjepa2`."""
OWN_UPDATES = ("vjepa2",)
"""Models with a budget of their own: two trainings cannot make the updates of one."""
COMPARED = (*MODELS, *UNTRAINED)
"""Every model of the comparison, in the order of its tables."""
NOT_APPLICABLE, NOT_ESTIMABLE = "not applicable", "not estimable"
NOTES = (NOT_APPLICABLE, NOT_ESTIMABLE)


class ComparisonError(WorkbookError):
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

FACTS = (
    "model", "seed", "data_sha256", "settings_sha256", "batches_sha256", "environment", "updates",
)  # fmt: skip
SHARED = {"environment": "environment", "data_sha256": "data", "settings_sha256": "settings"}


def untrained(model: str) -> str:
    """The untrained encoder of the same architecture, against which `model` is held."""
    return RANDOM_VIT if model in ("vjepa2", RANDOM_VIT) else RANDOM


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


def check_rows(rows: Sequence[Row], seeds: Sequence[int], models: Sequence[str] = COMPARED) -> None:
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
    _check_updates(rows)


def _check_updates(rows: Sequence[Row]) -> None:
    """Equal numbers of updates, among the models with one training and among those of each other.

    Rows of loaded weights are left out (nothing is claimed from them), and so are budgets in epochs
    that may stop early, where the numbers are each model's own.
    """
    first: dict[str, Row] = {}
    for row in rows:
        model = row.facts["model"]
        free = row.facts.get("loaded") or row.facts.get("early_stopping")
        if model in UNTRAINED or free:
            continue
        other = first.setdefault(model if model in OWN_UPDATES else "", row)
        if row.facts["updates"] != other.facts["updates"]:
            raise ComparisonError(
                f"the set is mixed: {label(row)} made {row.facts['updates']} updates, "
                f"{label(other)} {other.facts['updates']}"
            )


def of_model(rows: Sequence[Row], model: str) -> list[Row]:
    """The rows of one model, seeds in ascending order."""
    own = [row for row in rows if row.facts["model"] == model]
    return sorted(own, key=lambda row: row.facts["seed"])


# --- what the table cannot say by itself --------------------------------------------------------
def notes(rows: Sequence[Row]) -> list[str]:
    """Sentences of the report on where its models differ by design, made from the rows."""
    models = list(dict.fromkeys(row.facts["model"] for row in rows))
    found = [_about_updates(rows, models)]
    scored = {row.facts["model"]: row.scores.get("latent_error") for row in rows}
    if scored.get("enc_dec_jepa") == NOT_APPLICABLE:
        found.append(
            "latent_error of enc_dec_jepa is not applicable: the latent that it imagines is what "
            "its decoder reads and is trained to draw the next frame, never to equal the encoding "
            "of the next state, so its distance to that encoding is no error."
        )
    return [*found, *(_about_loaded(rows, model) for model in models if _loaded(rows, model))]


def _about_updates(rows: Sequence[Row], models: Sequence[str]) -> str:
    """ "Updates: 600 each for enc_dec and jepa; vjepa2 1,750 in 2 trainings (600 + 1,150) ..."."""
    own = [model for model in models if model not in UNTRAINED]
    groups: dict[str, list[str]] = {}
    for model in own:
        counts = sorted({row.facts["updates"] for row in of_model(rows, model)})
        groups.setdefault(" to ".join(f"{n:,}" for n in _ends(counts)), []).append(model)
    equal = [f"{count} for {_listed(names)}" for count, names in groups.items()]
    text = f"Updates: {'; '.join(equal)}."
    if any(row.facts.get("early_stopping") for row in rows):
        text += " Budgets in epochs may stop early, so that models differ in updates."
    for model in own:
        stages = of_model(rows, model)[0].facts.get("stage_updates")
        if stages:
            parts = " + ".join(f"{count:,}" for count in stages)
            text += (
                f" {model} is trained in {len(stages)} stages ({parts}): the rule of equal updates "
                "does not hold for it."
            )
    return text


def _about_loaded(rows: Sequence[Row], model: str) -> str:
    said = {row.facts["loaded_data"] for row in _loaded(rows, model) if "loaded_data" in row.facts}
    text = f"{model} has weights from a file, so nothing is claimed from it"
    return f"{text} (trained on {_listed(sorted(said))})." if said else f"{text}."


def _loaded(rows: Sequence[Row], model: str) -> list[Row]:
    return [row for row in of_model(rows, model) if row.facts.get("loaded")]


def _ends(counts: Sequence[int]) -> list[int]:
    return [counts[0]] if len(counts) == 1 else [counts[0], counts[-1]]


def _listed(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
