"""The comparison of pixel models (MET-2): rows, what they claim, one table.

No loss is a column: an error in a model's own latent has the model's own unit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, claim, over_seeds, sentence

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
RATIOS = {
    "ratio_first": ("px_first", "px_guess_first", 0.5),
    "ratio_last": ("px_last", "px_guess_last", 0.5),
    "action_use": ("px_first", "px_permuted", -0.5),
    "latent_error": ("latent", "latent_guess", 1.0),
    "frame_error": ("frame", "frame_guess", 1.0),
}
"""Scores that are an error over another one, to a power; 1 is the trivial guess."""
RANKED: dict[str, float | str] = {
    "px_first": "px_first", "px_last": "px_last",
    "ratio_first": 1.0, "ratio_last": 1.0, "action_use": 1.0, "frame_error": 1.0,
    "latent_error": 1.0,
    **dict.fromkeys(("reward_r2", "larp_r2"), "mean_reward_r2"),
    "larp_gain": 0.0,  # mse of the plain head - that of LARP, over that of the mean
}  # fmt: skip
"""Numbers by which models may be ranked: value of the trivial guess, or of which baseline it is."""
COLUMNS = (
    "parameters", "updates", "train_seconds", *RANKED, "px_encoded", "varying", "effective_rank",
)  # fmt: skip
"""Every number of a row, in the order of the table."""
ERRORS = {"px_first": "state px, one step", "px_last": "state px, last step",
          "latent": "imagined latent", "frame": "decoded frame", "reward_mlp": "reward MLP",
          "larp": "look-ahead reward"}  # fmt: skip
"""Errors per block that claims are about."""
GUESSES = dict.fromkeys((guess for _, guess, _ in RATIOS.values()), "the better guess")
GUESSES["px_permuted"] = "permuted actions"
PAIRED = (
    *((kind, guess) for kind, guess, _ in RATIOS.values()),
    ("reward_mlp", MEAN_REWARD), ("larp", "reward_mlp"), ("larp", "larp_copy"),
)  # fmt: skip
"""An error, and that of the better guess or plainer head that it is held against."""
BLOCKED = (*(kind for kind, *_ in RATIOS.values()), *GUESSES, "px_possible_first")
"""Errors whose blocks the row of an experiment keeps, at most `KEPT` of them."""
KEPT = 20
TWINS = ("enc_dec_jepa", "jepa")
"""The pair with equal numbers of weights: one draws the next frame, one names the next latent."""


class Row(NamedTuple):
    """One model and training seed."""

    facts: dict[str, Any]  # what makes it comparable, see `makers.facts_of`
    scores: dict[str, float | str]  # every name of COLUMNS; a text of NOTES where there is none
    errors: dict[str, np.ndarray]  # kind -> (K,) squared errors per block, see `by_block`


def by_block(errors: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """(M,) errors in time order and their episode ids -> (K,) of the same mean.

    A block is `BLOCK` transitions of an episode: neighbours in time resemble each other.
    """
    place = pd.Series(episode).groupby(episode).cumcount()
    sums = np.bincount(np.cumsum(place % BLOCK == 0) - 1, errors)
    return sums * len(sums) / len(errors)


def pack(blocks: np.ndarray) -> str:
    """(K,) errors per block as one field of a table: `KEPT` of neighbours at most, same mean."""
    parts = np.array_split(blocks, min(KEPT, len(blocks)))
    return " ".join(f"{part.sum() * len(parts) / len(blocks):.4g}" for part in parts)


def unpack(fields: Sequence[str]) -> np.ndarray:
    """(S, K) errors of fields of `pack`, a row per seed; blocks that not all have are left out."""
    rows = [np.array(text.split(), float) for text in fields]
    return np.stack([row[: min(map(len, rows))] for row in rows])


def ratio_of(one: np.ndarray, two: np.ndarray, power: float = 1.0) -> dict[str, float]:
    """Errors (K,) or (S, K) over others: {"": ratio, "_low", "_high"}, see `statistics.claim`.

    {} where the others are none.
    """
    said = claim(np.atleast_2d(one), np.atleast_2d(two), resamples=RESAMPLES, power=power)
    if said["difference"] is None:
        return {}
    return {"": 1 + said["difference"], "_low": 1 + said["low"], "_high": 1 + said["high"]}


def score(predicted: np.ndarray, reward: np.ndarray, note: str = "") -> dict[str, Any]:
    """mse, r2 and note of predictions (n,); a `note` of `statistics.unestimable` makes R2 None."""
    predicted, reward = np.asarray(predicted, float), np.asarray(reward, float)
    mse = float(np.square(predicted - reward).mean())
    return {"mse": mse, "r2": None if note else 1 - mse / float(reward.var()), "note": note}


def plain(model: str) -> str:
    """The untrained encoder of a model's own architecture."""
    return "random_vit" if model in ("vjepa2", "random_vit") else "random"


def claims(
    errors: Mapping[str, Mapping[str, np.ndarray]], loaded: Sequence[str] = (), matched: bool = True
) -> list[dict[str, Any]]:
    """`statistics.claim` of errors (S, K) by model and kind: PAIRED, untrained encoders, twins.

    Of px the root. Nothing is claimed from `loaded` weights, nor between twins not `matched`.
    """
    found = []
    for model, own in errors.items():
        pairs = [(kind, model, baseline) for kind, baseline in PAIRED]
        if model not in UNTRAINED:
            pairs.append(("reward_mlp", plain(model), "reward_mlp"))
        if model == TWINS[0]:
            pairs += [(kind, TWINS[1], kind) for kind in ("px_first", "frame", "reward_mlp")]
        for kind, other, baseline in pairs:
            two = errors.get(other, {}).get(baseline)
            if kind not in own or two is None:
                continue
            against = GUESSES.get(baseline, baseline) if other == model else LABELS[other]
            said = {"model": model, "score": ERRORS[kind], "against": against}
            power = 0.5 if kind.startswith("px") else 1.0
            said |= claim(own[kind], two, resamples=RESAMPLES, power=power)
            if model in loaded or other in loaded:
                said["verdict"] = "nothing claimed: the weights were loaded"
            elif (model, other) == TWINS and not matched:
                said["verdict"] = "nothing claimed: the pair is not matched"
            found.append(said)
    return found


def sentences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Claims as text, see `statistics.sentence`."""
    return [
        sentence(f"{one['model']}: {one['score']}", one["against"].replace("_", " "), one)
        for one in found
    ]


def notes(models: Mapping[str, Sequence[Row]]) -> list[str]:
    """Sentences on where the trained models differ by design."""
    trained = {name: [row.facts for row in own] for name, own in models.items()
               if name not in UNTRAINED}  # fmt: skip
    counts = {name: sorted({one["updates"] for one in own}) for name, own in trained.items()}
    rates = {name: own[0]["learning_rates"] for name, own in trained.items()}
    found = [f"Updates: {_each(counts)}."]
    if len({rate for own in rates.values() for rate in own}) > 1:
        found.append(f"Learning rates: {_each(rates)}; what differs may be their doing.")
    for name, facts in trained.items():
        if stages := facts[0].get("stage_updates"):
            told = "the rule of equal updates does not hold for it"
            if all(count == counts[name] for count in counts.values()):
                reads = " and ".join(f"{count:,}" for count in facts[0]["reads"])
                told = f"as many updates as the others, of {reads} transitions each"
            sums = " + ".join(f"{count:,}" for count in stages)
            found.append(f"{name} is trained in {len(stages)} stages ({sums}): {told}.")
        if any(one["early_stopping"] for one in facts):
            found.append(f"The budget of {name} is in epochs and may stop early.")
        if any(one["loaded"] for one in facts):
            found.append(f"{name} has weights from a file, so nothing is claimed from it.")
        if why := sorted({one["collapsed"] for one in facts} - {""}):
            found.append(f"{name} has collapsed: {', '.join(why)}.")
        if name == TWINS[0]:
            found.append(
                f"latent_error of {name} is not applicable: its imagined latent is trained to draw "
                "the next frame, never to equal the encoding of the next state."
            )
    return found


def _each(values: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{k} {' / '.join(f'{one:,}' for one in own)}" for k, own in values.items())


def matched(counts: Mapping[str, int]) -> dict[str, Any]:
    """Whether two parameter counts {name: count} agree within 2 %, as a share of the smaller."""
    first, second = counts.values()
    gap = abs(first - second) / max(1, min(first, second))
    return {"pair": [*counts], "parameters": [first, second], "gap": gap, "ok": gap <= MATCH}


def build(rows: Sequence[Row], pairs: Sequence[Mapping[str, int]] = ()) -> dict[str, Any]:
    """The comparison of the rows of a run, JSON-ready; `pairs`: counts that should be equal."""
    rows = sorted(rows, key=lambda row: row.facts["seed"])
    facts = rows[0].facts
    models = {name: [row for row in rows if row.facts["model"] == name] for name in COMPARED}
    errors = {
        model: {kind: np.stack([row.errors[kind] for row in own]) for kind in own[0].errors}
        for model, own in models.items()
    }
    found = [matched(pair) for pair in pairs]
    loaded = [row.facts["model"] for row in rows if row.facts["loaded"]]
    floors = {name: float(value.mean()) for name, value in rows[0].errors.items()}
    roots = {f"px_{end}": f"px_guess_{end}" for end in ("first", "last")}
    return {
        "environment": facts["environment"],
        "data_sha256": facts["data_sha256"],
        "seeds": sorted({row.facts["seed"] for row in rows}),
        "n": facts["n"],
        "models": {
            model: {name: over_seeds([row.scores[name] for row in own]) for name in COLUMNS}
            for model, own in models.items()
        },
        "baselines": {name: floors[name] for name in ("copy_last_frame", "mean_frame", MEAN_REWARD)}
        | {name: floors[guess] ** 0.5 for name, guess in roots.items() if guess in floors}
        | {"mean_reward_r2": facts["mean_reward_r2"]},
        "curves": {model: [row.facts["px"] for row in own] for model, own in models.items()},
        "claims": claims(errors, loaded, all(pair["ok"] for pair in found)),
        "matched": found,
        "notes": notes(models),
        "rows": [row.facts | row.scores for row in rows],
    }


def floor(comparison: Mapping[str, Any], column: str) -> float | str | None:
    """What the trivial guess of a column scores there; None without one."""
    guess = RANKED.get(column)
    return comparison["baselines"].get(guess, NOT_APPLICABLE) if isinstance(guess, str) else guess
