"""The comparison table (MET-2) and the rules that make it fair.

Rows, one per model and training seed, become means with 95 % intervals, and claims. A set of rows
that is unfinished or mixed (other data, settings or batches) is refused with a sentence.

What may be compared across models is fixed here: downstream scores (reward R2, frame error) and
errors divided by those of a trivial guess in the same space. A loss is the error in a model's own
latent, whose unit is the model's choice, so no loss is in the table and `ranked` refuses any column
that is not a score. "Beats" is never typed: it is what the paired interval of the difference says
(not corrected for the number of comparisons, which is stated), and with fewer than three training
seeds, or hardly any validation data, nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from hjepa_lib.evaluation.statistics import Interval, bootstrap_difference
from hjepa_lib.pixelsections import MODELS

RANDOM = "random"
SCHEMA = 1
LEAST_SEEDS = 3
LEAST_BLOCKS = 8
BLOCK = 30
"""Consecutive transitions that are drawn anew together."""
RESAMPLES = 2000
MATCH = 0.02
"""Largest difference in parameters of a matched pair, as a share of the smaller one."""
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
ERRORS = {
    ("latent", "copy_last_latent"): "imagined latent",
    ("frame", "copy_last_frame"): "decoded frame",
    ("reward_mlp", "mean_reward"): "reward MLP",
    ("larp", "mean_reward"): "look-ahead reward",
    ("larp", "reward_mlp"): "look-ahead reward",
}
"""Paired errors per block and the trivial guess (or plainer head) that each is held against."""


class Row(NamedTuple):
    """One model and training seed."""

    facts: dict[str, Any]  # FACTS and counts
    scores: dict[str, float | str]  # every name of COLUMNS; a text of NOTES where there is none
    errors: dict[str, np.ndarray]  # kind -> (K,) errors per block, see `by_block`


# --- rows -------------------------------------------------------------------------------------
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


def matched(counts: Mapping[str, int]) -> dict[str, Any]:
    """Whether two parameter counts {name: count} agree within 2 %, as a share of the smaller."""
    (one, first), (two, second) = counts.items()
    gap = abs(first - second) / max(1, min(first, second))
    return {"pair": [one, two], "parameters": [first, second], "gap": gap, "ok": gap <= MATCH}


# --- table ------------------------------------------------------------------------------------
def over_seeds(values: Sequence[float | str]) -> dict[str, Any]:
    """Mean and 95 % Student interval over seeds; {"text": ...} for a note or a single seed.

    A note of any seed is the note of the model: a mean over the other seeds would be another
    quantity.
    """
    notes = [value for value in values if isinstance(value, str)]
    cell = {"mean": None, "low": None, "high": None, "seeds": len(values)}
    if notes:
        return cell | {"text": notes[0]}
    numbers = np.array(values, dtype=float)
    mean, count = float(numbers.mean()), len(numbers)
    if count == 1:
        return cell | {"mean": mean, "text": f"{number(mean)} (1 seed)"}
    low, high = _student(numbers)
    text = f"{number(mean)} ({number(low)} to {number(high)})"
    return cell | {"mean": mean, "low": low, "high": high, "text": text}


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every paired comparison with a trivial guess and with the random encoder.

    `difference` is the model's error minus the other's, in units of the other's mean error, with a
    95 % interval (`_wider`): below 0 the model is better.
    """
    found = []
    models = list(dict.fromkeys(row.facts["model"] for row in rows))
    for model in models:
        own = _of(rows, model)
        for (kind, baseline), what in ERRORS.items():
            if all(kind in row.errors and baseline in row.errors for row in own):
                pair = [(row.errors[kind], row.errors[baseline]) for row in own]
                found.append({"model": model, "score": what} | _claim(baseline, pair))
        floor = _of(rows, RANDOM)
        if model != RANDOM and [r.facts["seed"] for r in floor] == [r.facts["seed"] for r in own]:
            kind, what = "reward_mlp", ERRORS["reward_mlp", "mean_reward"]
            pair = [(a.errors[kind], b.errors[kind]) for a, b in zip(own, floor, strict=True)]
            found.append({"model": model, "score": what} | _claim("random encoder", pair))
    return found


def _of(rows: Sequence[Row], model: str) -> list[Row]:
    own = [row for row in rows if row.facts["model"] == model]
    return sorted(own, key=lambda row: row.facts["seed"])


def _claim(against: str, pair: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    units = [float(other.mean()) for _, other in pair]
    row = {"against": against, "seeds": len(pair), "blocks": len(pair[0][0])}
    if min(units) <= 0:  # the guess is perfect, as on frames that never change
        return row | {"difference": None, "low": None, "high": None, "verdict": NOT_ESTIMABLE}
    one, two = (
        np.stack([side[index] / unit for side, unit in zip(pair, units, strict=True)])
        for index in (0, 1)
    )
    gap = _wider(one, two)
    verdict = _verdict(gap, *one.shape)
    return row | {"difference": gap.estimate, "low": gap.low, "high": gap.high, "verdict": verdict}


def _wider(one: np.ndarray, two: np.ndarray) -> Interval:
    """Mean of one - two, both (S, K), inside both of its intervals.

    The bootstrap knows that blocks differ, but with three seeds it believes in them too much;
    Student's interval of the seeds' mean differences does not, and knows nothing of blocks.
    """
    gap = bootstrap_difference(one, two, resamples=RESAMPLES)
    if len(one) == 1:
        return gap
    low, high = _student((one - two).mean(1))
    return Interval(gap.estimate, min(low, gap.low), max(high, gap.high))


def _student(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (S,) values, S of at least 2."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _verdict(gap: Interval, seeds: int, blocks: int) -> str:
    if seeds < LEAST_SEEDS:
        return f"nothing claimed: {seeds} of {LEAST_SEEDS} seeds"
    if blocks < LEAST_BLOCKS:
        return f"nothing claimed: {blocks} of {LEAST_BLOCKS} validation blocks"
    if gap.high < 0:
        return "beats"
    return "loses to" if gap.low > 0 else "no difference shown"


def build(
    rows: Sequence[Row],
    seeds: Sequence[int],
    baselines: Mapping[str, float | str],
    pairs: Sequence[Mapping[str, int]] = (),
    models: Sequence[str] = (*MODELS, RANDOM),
) -> dict[str, Any]:
    """The whole comparison, JSON-ready; ComparisonError when the rows are no fair set.

    `baselines` are the scores of the trivial guesses: see `reportstages.baselines`.
    """
    check_rows(rows, seeds, models)
    for name in ("copy_last_latent", "copy_last_frame", "mean_reward", "mean_reward_r2"):
        if name not in baselines:
            raise ComparisonError(f"the baseline {name!r} is missing")
    first = rows[0].facts
    table = {
        model: {
            name: over_seeds([row.scores[name] for row in _of(rows, model)]) for name in COLUMNS
        }
        for model in models
    }
    return {
        "schema": SCHEMA,
        "environment": first["environment"],
        "data_sha256": first["data_sha256"],
        "settings_sha256": first["settings_sha256"],
        "seeds": list(seeds),
        "n": {key: first[key] for key in ("training", "validation", "episodes") if key in first},
        "columns": {name: column._asdict() for name, column in COLUMNS.items()},
        "models": table,
        "baselines": dict(baselines),
        "claims": claims(rows),
        "matched": [matched(pair) for pair in pairs],
        "rows": [row.facts | row.scores for row in rows],
    }


def ranked(comparison: Mapping[str, Any], column: str) -> list[tuple[str, float]]:
    """(model, mean) from best to worst; only for scores that mean the same for every model."""
    better = COLUMNS[column].better if column in COLUMNS else ""
    if not better:
        raise ComparisonError(
            f"models cannot be ranked by {column!r}: only scores that mean the same for every "
            "model can, and a loss in a model's own latent does not"
        )
    found = [(name, cells[column]["mean"]) for name, cells in comparison["models"].items()]
    numbers = [(name, mean) for name, mean in found if mean is not None]
    return sorted(numbers, key=lambda pair: pair[1], reverse=better == "high")


def floor(comparison: Mapping[str, Any], column: str) -> float | str | None:
    """What the trivial guess of a column scores there; None for a column without one."""
    baseline = COLUMNS[column].baseline
    if column in ("latent_error", "frame_error"):  # errors over those of the guess
        return 1.0
    if column == "larp_gain":
        return 0.0
    key = f"{baseline}_r2" if column.endswith("_r2") else baseline
    return comparison["baselines"].get(key) if baseline else None


def tidy(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """One line per model and column: model, column, mean, low, high, seeds, text."""
    return pd.DataFrame(
        [
            {"model": model, "column": name, **cell}
            for model, cells in comparison["models"].items()
            for name, cell in cells.items()
        ]
    )


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """The claims as text: "jepa: imagined latent beats copy_last_latent by 41 % (...)"."""
    found = []
    for claim in comparison["claims"]:
        head = f"{claim['model']}: {claim['score']}"
        against = claim["against"].replace("_", " ")
        if claim["difference"] is None:
            found.append(f"{head} against {against}: {claim['verdict']}")
            continue
        shares = [f"{100 * claim[key]:+.1f}" for key in ("difference", "low", "high")]
        n = f"{_plural(claim['seeds'], 'seed')}, {_plural(claim['blocks'], 'block')}"
        shown = f"error {shares[0]} % ({shares[1]} to {shares[2]}, {n})"
        if claim["verdict"] in ("beats", "loses to"):
            found.append(f"{head} {claim['verdict']} {against}: {shown}")
        else:
            found.append(f"{head} against {against}, {claim['verdict']}: {shown}")
    return found


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def number(value: float) -> str:
    """Three significant digits, whole numbers with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
