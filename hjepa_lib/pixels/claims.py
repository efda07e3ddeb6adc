"""Claims about pixel models: paired comparisons with trivial guesses and twins, as verdicts.

"Beats" is never typed: it is what the 95 % interval of the paired difference says (not corrected
for the number of comparisons, which is stated). With fewer than three training seeds, or hardly any
validation data, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hjepa_lib.evaluation.statistics import Interval, bootstrap_difference, student
from hjepa_lib.pixels.pixelrows import (
    NOT_ESTIMABLE,
    RANDOM,
    RANDOM_VIT,
    UNTRAINED,
    ComparisonError,
    Row,
    label,
    of_model,
    untrained,
)

LEAST_SEEDS = 3
LEAST_BLOCKS = 8
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
    95 % interval (`wider`): below 0 the model is better. `matched`: the twins have equal numbers
    of weights.
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
        for claim in _between(rows, TWINS, kind, what, against):
            unfair = {} if matched else {"verdict": "nothing claimed: the pair is not matched"}
            found.append(claim | unfair)
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
    claim = _unclaimed(_claim(against, pair), [*one, *two])
    return [{"model": names[0], "score": what} | claim]


def _unclaimed(claim: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The claim, without a verdict for weights from a file: one training is not several seeds, and
    what it was trained on is not known here."""
    if any(row.facts.get("loaded") for row in rows):
        return claim | {"verdict": "nothing claimed: the weights were loaded"}
    return claim


def _claim(against: str, pair: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    units = [float(other.mean()) for _, other in pair]
    row = {"against": against, "seeds": len(pair), "blocks": len(pair[0][0])}
    if min(units) <= 0:  # the guess is perfect, as on frames that never change
        return row | {"difference": None, "low": None, "high": None, "verdict": NOT_ESTIMABLE}
    one, two = (
        np.stack([side[index] / unit for side, unit in zip(pair, units, strict=True)])
        for index in (0, 1)
    )
    gap = wider(one, two)
    verdict = _verdict(gap, *one.shape)
    return row | {"difference": gap.estimate, "low": gap.low, "high": gap.high, "verdict": verdict}


def wider(one: np.ndarray, two: np.ndarray) -> Interval:
    """Mean of one - two, both (S, K), inside both of its intervals.

    The bootstrap knows that blocks differ, but with three seeds it believes in them too much;
    Student's interval of the seeds' mean differences does not, and knows nothing of blocks.
    """
    gap = bootstrap_difference(one, two, resamples=RESAMPLES)
    if len(one) == 1:
        return gap
    low, high = student((one - two).mean(1))
    return Interval(gap.estimate, min(low, gap.low), max(high, gap.high))


def _verdict(gap: Interval, seeds: int, blocks: int) -> str:
    if seeds < LEAST_SEEDS:
        return f"nothing claimed: {seeds} of {LEAST_SEEDS} seeds"
    if blocks < LEAST_BLOCKS:
        return f"nothing claimed: {blocks} of {LEAST_BLOCKS} validation blocks"
    if gap.high < 0:
        return "beats"
    return "loses to" if gap.low > 0 else "no difference shown"


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
