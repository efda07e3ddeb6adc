"""Claims about pixel models: paired comparisons with trivial guesses and twins, as verdicts.

"Beats" is never typed: it is what the 95 % interval of the paired difference says (not corrected
for the number of comparisons, which is stated). With fewer than three training seeds, or hardly any
validation data, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hjepa_lib.evaluation.statistics import claim
from hjepa_lib.pixels.pixelrows import (
    RANDOM,
    RANDOM_VIT,
    UNTRAINED,
    ComparisonError,
    Row,
    label,
    of_model,
    untrained,
)

BLOCK = 30
"""Consecutive transitions that are drawn anew together."""
RESAMPLES = 2000
ERRORS = {
    ("latent", "copy_last_latent"): "imagined latent",
    ("frame", "copy_last_frame"): "decoded frame",
    ("reward_mlp", "mean_reward"): "reward MLP",
    ("larp", "mean_reward"): "look-ahead reward",
    ("larp", "reward_mlp"): "look-ahead reward",
}
"""Paired errors per block and the trivial guess (or plainer head) that each is held against."""
RANDOM_NAMES = {RANDOM: "random encoder", RANDOM_VIT: "random ViT encoder"}
TWINS = ("enc_dec_jepa", "jepa")
"""The pair with equal numbers of weights: one draws the next frame, one names the next latent."""
TWIN_ERRORS = {
    "frame": ("decoded frame", "jepa with its decoder"),
    "reward_mlp": ("reward MLP", "jepa"),
}
"""Errors in which the first of `TWINS` is held against the second, and how that one is called."""


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


def claims(rows: Sequence[Row], matched: bool = True) -> list[dict[str, Any]]:
    """Every paired comparison with a trivial guess, with the random encoder, and of the twins.

    `difference` is the model's error minus the other's, in units of the other's mean error, with a
    95 % interval: below 0 the model is better. `matched`: the twins have equal numbers of weights.
    """
    found: list[dict[str, Any]] = []
    models = list(dict.fromkeys(row.facts["model"] for row in rows))
    for model in models:
        own = of_model(rows, model)
        for (kind, baseline), what in ERRORS.items():
            if all(kind in row.errors and baseline in row.errors for row in own):
                pair = [(row.errors[kind], row.errors[baseline]) for row in own]
                found.append(
                    {"model": model, "score": what} | _unclaimed(_claim(baseline, pair), own)
                )
        floor = untrained(model)
        if model not in UNTRAINED:
            what = ERRORS["reward_mlp", "mean_reward"]
            found += _between(rows, (model, floor), "reward_mlp", what, RANDOM_NAMES[floor])
    for kind, (what, against) in TWIN_ERRORS.items():
        for one in _between(rows, TWINS, kind, what, against):
            unfair = {} if matched else {"verdict": "nothing claimed: the pair is not matched"}
            found.append(one | unfair)
    return found


def _between(
    rows: Sequence[Row], names: tuple[str, str], kind: str, what: str, against: str
) -> list[dict[str, Any]]:
    """The claim that pairs two models by seed and block; [] when one lacks the error or a seed."""
    one, two = (of_model(rows, name) for name in names)
    if [row.facts["seed"] for row in one] != [row.facts["seed"] for row in two] or not one:
        return []
    if not all(kind in row.errors for row in (*one, *two)):
        return []
    for a, b in zip(one, two, strict=True):
        if a.errors[kind].shape != b.errors[kind].shape:
            raise ComparisonError(f"{label(a)} and {label(b)} were scored on different blocks")
    pair = [(a.errors[kind], b.errors[kind]) for a, b in zip(one, two, strict=True)]
    found = _unclaimed(_claim(against, pair), [*one, *two])
    return [{"model": names[0], "score": what} | found]


def _unclaimed(found: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The claim, without a verdict for weights from a file: one training is not several seeds, and
    what it was trained on is not known here."""
    if any(row.facts.get("loaded") for row in rows):
        return found | {"verdict": "nothing claimed: the weights were loaded"}
    return found


def _claim(against: str, pair: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    one, two = (np.stack([side[index] for side in pair]) for index in (0, 1))
    return {"against": against} | claim(one, two, resamples=RESAMPLES)


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """The claims as text: "jepa: imagined latent beats copy_last_latent by 41 % (...)"."""
    found = []
    for one in comparison["claims"]:
        head = f"{one['model']}: {one['score']}"
        against = one["against"].replace("_", " ")
        if one["difference"] is None:
            found.append(f"{head} against {against}: {one['verdict']}")
            continue
        shares = [f"{100 * one[key]:+.1f}" for key in ("difference", "low", "high")]
        n = f"{_plural(one['seeds'], 'seed')}, {_plural(one['blocks'], 'block')}"
        shown = f"error {shares[0]} % ({shares[1]} to {shares[2]}, {n})"
        if one["verdict"] in ("beats", "loses to"):
            found.append(f"{head} {one['verdict']} {against}: {shown}")
        else:
            found.append(f"{head} against {against}, {one['verdict']}: {shown}")
    return found


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
