"""The comparison of pixel models (MET-2): fair rows, what they claim, one table.

A loss is an error in a model's own latent, whose unit is the model's choice: no loss is a column.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, claim, over_seeds, sentence
from hjepa_lib.files import WorkbookError

UNTRAINED = ("random", "random_vit")
"""Frozen encoders as they were drawn: `pixels.encoder`, and that of `vjepa2`."""
COMPARED = (*MODELS, *UNTRAINED)
"""Every model of the comparison, in the order of its tables."""
LABELS = dict(zip(COMPARED, (
    "encoder-decoder", "encoder-decoder, JEPA style", "JEPA", "V-JEPA 2 style", "random encoder",
    "random ViT encoder",
), strict=True))  # fmt: skip
NOT_APPLICABLE = "not applicable"
NOTES = (NOT_APPLICABLE, NOT_ESTIMABLE)
MEAN_REWARD = "mean_reward"
"""Baseline: the mean of the training rewards, whatever the state."""
RESAMPLES = 2000
BLOCK = 30  # transitions
MATCH = 0.02
"""Largest difference in parameters of a matched pair, as a share of the smaller one."""
SIGMAS = (0.01, 0.05, 0.1, 0.15, 0.2)
"""Standard deviations of the pixel noise, pixels in [0, 1]."""
SHAPE = (
    "participation_ratio", "effective_rank", "two_nn_dimension", "trustworthiness_at_5",
    "continuity_at_5", "smoothness_r2", "uniformity",
)  # fmt: skip
"""The shape of a latent space, see measures.py."""
RANKED: dict[str, tuple[str, str, float | str]] = {
    "latent_error": ("low", "copy_last_latent", 1.0),  # squared, over that of the guess
    "frame_mse": ("low", "copy_last_frame", "copy_last_frame"),  # pixels in [0, 1]
    "frame_error": ("low", "copy_last_frame", 1.0),  # over that of the guess
    "reward_mse": ("low", MEAN_REWARD, MEAN_REWARD),
    "reward_r2": ("high", MEAN_REWARD, "mean_reward_r2"),
    "larp_mse": ("low", MEAN_REWARD, MEAN_REWARD),
    "larp_r2": ("high", MEAN_REWARD, "mean_reward_r2"),
    "larp_gain": ("high", "reward_mlp", 0.0),  # reward_mse - larp_mse, over that of the mean
}
"""Numbers by which models may be ranked: better end, trivial guess, its value or whose it is."""
COLUMNS = (
    "parameters", "updates", "train_seconds", *RANKED, *SHAPE, "latent_std",
    *(f"noise_{sigma:g}" for sigma in SIGMAS),
)  # fmt: skip
"""Every number of a row, in the order of the table."""
ERRORS = {"latent": "imagined latent", "frame": "decoded frame", "reward_mlp": "reward MLP",
          "larp": "look-ahead reward"}  # fmt: skip
"""Errors per block that claims are about."""
PAIRED = (
    ("latent", "copy_last_latent"), ("frame", "copy_last_frame"), ("reward_mlp", MEAN_REWARD),
    ("larp", MEAN_REWARD), ("larp", "reward_mlp"), ("larp", "larp_copy"),
)  # fmt: skip
"""An error, and that of the guess or plainer head that it is held against."""
TWINS = ("enc_dec_jepa", "jepa")
"""The pair with equal numbers of weights: one draws the next frame, one names the next latent."""


class Row(NamedTuple):
    """One model and training seed."""

    facts: dict[str, Any]  # what makes it comparable, see `makers.facts_of`
    scores: dict[str, float | str]  # every name of COLUMNS; a text of NOTES where there is none
    errors: dict[str, np.ndarray]  # kind -> (K,) errors per block, see `by_block`


def by_block(errors: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """(M,) errors in time order and their episode ids -> (K,), with the mean of the transitions.

    A block is `BLOCK` transitions of an episode, for neighbours in time resemble each other.
    """
    first = np.flatnonzero(np.r_[True, episode[1:] != episode[:-1]])
    place = np.arange(len(errors)) - np.repeat(first, np.diff(np.r_[first, len(errors)]))
    sums = np.bincount(np.cumsum(place % BLOCK == 0) - 1, errors)
    return sums * len(sums) / len(errors)


def score(predicted: np.ndarray, reward: np.ndarray, note: str = "") -> dict[str, Any]:
    """mse, r2 and note of predictions (n,); a `note` of `statistics.unestimable` makes R2 None."""
    predicted, reward = np.asarray(predicted, float), np.asarray(reward, float)
    mse = float(np.square(predicted - reward).mean())
    return {"mse": mse, "r2": None if note else 1 - mse / float(reward.var()), "note": note}


def check_rows(rows: Sequence[Row]) -> None:
    """WorkbookError, naming the mismatch, unless rows are one whole, finite and unmixed set."""
    found = Counter((row.facts["model"], row.facts["seed"]) for row in rows)
    wanted = {(model, seed) for model in COMPARED for _, seed in found}
    for cell in sorted(wanted | found.keys()):
        if found[cell] != (cell in wanted):
            raise WorkbookError(
                "{} seed {} is in the comparison {} times".format(*cell, found[cell])
            )
    first: dict[Any, Mapping[str, Any]] = {}
    for facts, scores, _ in rows:
        label = "{model} seed {seed}".format(**facts)
        if odd := scores.keys() ^ set(COLUMNS):
            raise WorkbookError(f"{label}: lacks, or should not have, {', '.join(sorted(odd))}")
        for name, value in scores.items():
            known = isinstance(value, float | int) and not isinstance(value, bool)
            if value not in NOTES and not (known and math.isfinite(value)):
                raise WorkbookError(f"{label}: {name} is {value!r}, neither a number nor a note")
        groups = {"environment": "all", "data_sha256": "all"}
        if facts["batches_sha256"]:
            groups["batches_sha256"] = facts["seed"]
        # Two trainings cannot make the updates of one; loaded weights, and budgets in epochs that
        # may stop early, make numbers of their own.
        if not (facts["model"] in UNTRAINED or facts["loaded"] or facts["early_stopping"]):
            groups["updates"] = facts["model"] if "stage_updates" in facts else "one training"
        for fact, group in groups.items():
            other = first.setdefault((fact, group), facts)
            if facts[fact] != other[fact]:
                raise WorkbookError(
                    "the set is mixed: {} has other {} than {model} seed {seed} ({} and {})".format(
                        label, fact, facts[fact], other[fact], **other
                    )
                )


def claims(
    errors: Mapping[str, Mapping[str, np.ndarray]], loaded: Sequence[str] = (), matched: bool = True
) -> list[dict[str, Any]]:
    """`statistics.claim` of errors (S, K) by model and kind: PAIRED, untrained encoders, twins.

    Nothing is claimed from `loaded` weights, nor between twins that are not `matched` in weights.
    """
    found = []
    for model, own in errors.items():
        pairs = [(kind, model, baseline) for kind, baseline in PAIRED]
        if model not in UNTRAINED:
            plain = "random_vit" if model == "vjepa2" else "random"
            pairs.append(("reward_mlp", plain, "reward_mlp"))
        if model == TWINS[0]:
            pairs += [(kind, TWINS[1], kind) for kind in ("frame", "reward_mlp")]
        for kind, other, baseline in pairs:
            two = errors.get(other, {}).get(baseline)
            if kind not in own or two is None:
                continue
            against = baseline if other == model else LABELS[other]
            said = {"model": model, "score": ERRORS[kind], "against": against}
            said |= claim(own[kind], two, resamples=RESAMPLES)
            if model in loaded or other in loaded:
                said["verdict"] = "nothing claimed: the weights were loaded"
            elif (model, other) == TWINS and not matched:
                said["verdict"] = "nothing claimed: the pair is not matched"
            found.append(said)
    return found


def sentences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Claims as text: "jepa: imagined latent beats copy last latent: error -41.0 % (...)"."""
    return [
        sentence(f"{one['model']}: {one['score']}", one["against"].replace("_", " "), one)
        for one in found
    ]


def of_models(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by model, seeds in ascending order."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.facts["seed"]):
        found.setdefault(row.facts["model"], []).append(row)
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    """Sentences on where the trained models differ by design, made from the rows."""
    found, updates = [], []
    for name, own in of_models(rows).items():
        facts = [row.facts for row in own if name not in UNTRAINED]
        if counts := sorted({one["updates"] for one in facts}):
            updates.append(f"{name} {' or '.join(f'{count:,}' for count in counts)}")
        if stages := facts and facts[0].get("stage_updates"):
            found.append(
                f"{name} is trained in {len(stages)} stages "
                f"({' + '.join(f'{count:,}' for count in stages)}): the rule of equal updates does "
                "not hold for it."
            )
        if any(one["early_stopping"] for one in facts):
            found.append(f"The budget of {name} is in epochs and may stop early.")
        if any(one["loaded"] for one in facts):
            found.append(f"{name} has weights from a file, so nothing is claimed from it.")
        if name == TWINS[0]:
            found.append(
                f"latent_error of {name} is not applicable: its imagined latent is trained to draw "
                "the next frame, never to equal the encoding of the next state."
            )
    return [f"Updates: {', '.join(updates)}.", *found]


def matched(counts: Mapping[str, int]) -> dict[str, Any]:
    """Whether two parameter counts {name: count} agree within 2 %, as a share of the smaller."""
    first, second = counts.values()
    gap = abs(first - second) / max(1, min(first, second))
    return {"pair": [*counts], "parameters": [first, second], "gap": gap, "ok": gap <= MATCH}


def build(rows: Sequence[Row], pairs: Sequence[Mapping[str, int]] = ()) -> dict[str, Any]:
    """The whole comparison, JSON-ready; `pairs` are parameter counts that should be equal."""
    check_rows(rows)
    facts, models = rows[0].facts, of_models(rows)
    errors = {
        model: {kind: np.stack([row.errors[kind] for row in own]) for kind in own[0].errors}
        for model, own in models.items()
    }
    guesses = ("copy_last_frame", "mean_frame", MEAN_REWARD)
    found = [matched(pair) for pair in pairs]
    loaded = [row.facts["model"] for row in rows if row.facts["loaded"]]
    return {
        "environment": facts["environment"],
        "data_sha256": facts["data_sha256"],
        "seeds": sorted({row.facts["seed"] for row in rows}),
        "n": facts["n"],
        "models": {
            model: {name: over_seeds([row.scores[name] for row in own]) for name in COLUMNS}
            for model, own in models.items()
        },
        "baselines": {kind: float(rows[0].errors[kind].mean()) for kind in guesses}
        | {"copy_last_latent": 1.0, "mean_reward_r2": facts["mean_reward_r2"]},
        "claims": claims(errors, loaded, all(pair["ok"] for pair in found)),
        "matched": found,
        "notes": notes(rows),
        "rows": [row.facts | row.scores for row in rows],
    }


def floor(comparison: Mapping[str, Any], column: str) -> float | str | None:
    """What the trivial guess of a column scores there; None for a column without one."""
    *_, guess = RANKED.get(column, (None,))
    return comparison["baselines"].get(guess, guess)
