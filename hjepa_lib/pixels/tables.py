"""What committed tables of `studies.score_models` say, as sections of the results page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.statistics import LEAST_SEEDS, number, over_seeds, student
from hjepa_lib.pixels import compare
from hjepa_lib.pixels.compare import LABELS, TWINS, ratio_of
from hjepa_lib.pixels.studies import label_sentences

PLACES = ("paddle x", "ball x", "ball y")
"""What the numbers of Breakout's positions are."""
RIVALS = ("enc_dec", TWINS[0])
"""Models with a decoder that the prediction of configs/noisy_tv.yaml holds against JEPA."""
LEARNED = 0.5
"""px over the better guess; what is above does not learn (added after the first rows)."""
ABOUT = (
    "State px after one and the last imagined step, {}; ratios are over the best of last place, "
    "mean place and a line through both, with 95 % intervals over {}blocks of test episodes."
)
Section = dict[str, Any]
Errors = dict[str, np.ndarray]  # kind -> (S, K) per block, a row per seed
Learners = dict[str, tuple[pd.DataFrame, Errors]]  # model -> its rows, and their errors


def sections(gallery: Path) -> list[Section]:
    """A section of every table that is in the folder and has rows, in the order of `MADE`."""
    found = []
    for name, (title, column, say) in MADE.items():
        path = gallery / f"{name}.csv"
        if not path.is_file() or not path.stat().st_size:
            continue
        rows = pd.read_csv(path, dtype={"noise": str}).sort_values("seed", kind="stable")
        if len(rows):
            said = say(rows) if say else {}
            if not column:
                found.append({"title": title, **said})
                continue
            words = "of one training seed", ""
            if rows.groupby([column, "learner"]).size().max() > 1:
                words = "mean over training seeds [lowest to highest]", "seeds, if several, and "
            said["sentences"] = [ABOUT.format(*words), *said.get("sentences", ())]
            found.append({"title": title, **said, "tables": [grid(rows, column)]})
    return found


def learners(rows: pd.DataFrame) -> Learners:
    """Those of the four models."""
    found = {}
    for name, part in rows.groupby("learner"):
        fields = part.filter(like="errors.").dropna(axis=1)
        errors = {one.removeprefix("errors."): compare.unpack([*fields[one]]) for one in fields}
        found[name] = part, errors
    return {name: found[name] for name in MODELS if name in found}


# --- one table for all
def _mean(column: str, of: str = "") -> Callable[..., str]:
    """Mean over seeds [lowest to highest] of a column, or of its share of another."""

    def cell(rows: pd.DataFrame, _: Errors) -> str:
        if column not in rows or rows[column].isna().any():
            return "–"
        return over_seeds([*(rows[column] / rows[of] if of else rows[column])])["text"]

    return cell


def _ratio(end: str) -> Callable[..., str]:
    def cell(_: pd.DataFrame, errors: Errors) -> str:
        if f"px_{end}" not in errors:
            return "–"
        said = ratio_of(errors[f"px_{end}"], errors[f"px_guess_{end}"], power=0.5)
        return "{:.2f} ({:.2f} to {:.2f})".format(*said.values()) if said else "–"

    return cell


SHOWN: dict[str, Callable[[pd.DataFrame, Errors], str]] = {
    "px first": _mean("imagined_first"), "guess first": _mean("guess_first"),
    "ratio first (95 %)": _ratio("first"), "px last": _mean("imagined_last"),
    "ratio last (95 %)": _ratio("last"), "px encoded": _mean("encoded_first"),
    "action use": _mean("action_use"), "frame / copy-last": _mean("frame", "copy_last_frame"),
    "frame / mean frame": _mean("frame", "mean_frame"), "latent error": _mean("latent_error"),
    "px first, training episodes": _mean("training.px_first"),
    "px last, training episodes": _mean("training.px_last"),
    "latent error, training episodes": _mean("training.latent_error"),
    "transitions": _mean("n.training"), "updates": _mean("updates"), "seconds": _mean("seconds"),
    "TFLOP": _mean("teraflop"), "minutes, decoder included": _mean("minutes"),
    "seeds": lambda rows, _: str(len(rows)),
}  # fmt: skip
"""Columns of a table; one that nobody has is left out."""


def grid(rows: pd.DataFrame, column: str) -> Section:
    """A line per value of `column` and model."""
    lines = []
    for value, part in rows.groupby(column, sort=False):
        for label, own in _by_place(_words(value), part):
            for name, pair in learners(own).items():
                line = {column: label, "learner": LABELS[name]}
                lines.append(line | {key: cell(*pair) for key, cell in SHOWN.items()})
    table = pd.DataFrame(lines)
    table = table.loc[:, (table != "–").any()]
    return {"columns": [*map(_words, table)], "rows": table.to_numpy().tolist()}


def _by_place(label: str, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield label, rows
    for at, place in enumerate(PLACES):
        own = {name: name[: -len(f"_{at}")] for name in rows if name.endswith(f"_{at}")}
        part = rows[["learner", "seed", *own]].dropna(subset=[*own], how="all").rename(columns=own)
        if own and len(part):
            yield f"{label}, {place}", part


def _words(name: Any) -> str:
    return str(name).replace("_", " ")


# --- other worlds
def say_worlds(rows: pd.DataFrame) -> Section:
    """Who beats the guesses, and how much is won of what can be."""
    said, lists = [], {}
    for world, part in rows.groupby("model", sort=False):
        found, name = learners(part), _words(world)
        errors = {one: own for one, (_, own) in found.items()}
        claims = compare.claims(errors, matched=_matched(found))
        lists[f"Paired comparisons, {name}"] = compare.sentences(claims)
        seeds = min(len(rows) for rows, _ in found.values())
        few = f"seeds: {seeds}{', so nothing is claimed' * (seeds < LEAST_SEEDS)}"
        said += [*share_sentence(name, found, few), won_sentence(name, claims, len(found), few)]
    return {"sentences": said, "lists": lists}


def _matched(found: Learners) -> bool:
    """Whether the twins have equal numbers of weights, JEPA's decoder included."""
    own = [f"weights.{part}.parameters" for part in ("model", "decoder")]
    sizes = {name: found[name][0].iloc[0].reindex(own) for name in TWINS if name in found}
    known = len(sizes) == 2 and sizes["jepa"].notna().all()
    return known and compare.matched({name: one.sum() for name, one in sizes.items()})["ok"]


def won_sentence(world: str, claims: Sequence[Mapping[str, Any]], count: int, seeds: str) -> str:
    """How many of `count` models beat the better guess."""
    guess = compare.GUESSES["px_guess_first"]
    won = [one["score"] for one in claims if (one["against"], one["verdict"]) == (guess, "beats")]
    first, last = (won.count(compare.ERRORS[f"px_{end}"]) for end in ("first", "last"))
    return (
        f"{world}: the better guess is beaten by {first} of {count} models after one imagined "
        f"step and by {last} after the last ({seeds})."
    )


def share_sentence(world: str, found: Learners, seeds: str) -> Iterator[str]:
    """How much of the gap between the better guess and the best possible model is closed, in mean
    squared px after one step."""
    shares = {}
    for name, (rows, errors) in found.items():
        if (best := errors.get("px_possible_first")) is None:
            return
        shares[name] = ratio_of(errors["px_first"] - best, errors["px_guess_first"] - best)
        guess, least, known = errors["px_guess_first"].mean(), best.mean(), rows["ceiling_px"]
    if not all(shares.values()):
        return
    texts = [
        "{} {:.0f} % ({:.0f} to {:.0f})".format(
            LABELS[name], *(100 * (1 - left[end]) for end in ("", "_high", "_low"))
        )
        for name, left in sorted(shares.items(), key=lambda pair: pair[1][""])
    ]
    yield (
        f"{world}, mean squared px after one step: the better guess {number(guess)}, the best "
        f"possible model {number(least)} on these windows, {number(known.iloc[0] ** 2)} over "
        f"uniform states. Of the gap is closed (95 %; {seeds}): {', '.join(texts)}."
    )


# --- the noisy TV
def say_noise(rows: pd.DataFrame) -> Section:
    """The committed prediction against the rows, for each rival of JEPA."""
    px = rows.pivot(index="seed", columns=["noise", "learner"], values="imagined_first")
    return {"sentences": [prediction(px, rival) + unlearned(rows, rival) for rival in RIVALS]}


def unlearned(rows: pd.DataFrame, rival: str) -> str:
    """Who of the two fails without noise, by `LEARNED`, so that noise is not what is measured."""
    rows = rows[(rows["noise"] == "0") & rows["learner"].isin([rival, "jepa"])]
    share = rows["imagined_first"] / rows["guess_first"]
    worst = share[share > LEARNED].groupby(rows["learner"]).max()
    return "".join(
        f" But {LABELS[name]} does not learn without noise (ratio up to {ratio:.2f}): this tells "
        "more of its training than of noise (a rule added after the first rows)."
        for name, ratio in worst.items()
    )


def prediction(px: pd.DataFrame, rival: str) -> str:
    """Confirmed, refuted or open by px of (seed, (noise, model)): configs/noisy_tv.yaml."""
    wanted = [(noise, name) for noise in ("75", "0") for name in (rival, "jepa")]
    table = np.log(px.reindex(columns=wanted).dropna())
    gap = table.to_numpy() @ [1, -1, -1, 1]
    told = f"ratio of px errors, {LABELS[rival]} over JEPA, at 75 % of noise over that at 0 %"
    if len(gap) < LEAST_SEEDS:
        return f"Prediction open: {told}, has {len(gap)} of {LEAST_SEEDS} seeds."
    low, high = student(gap)
    verdict = "confirmed" if low > 0 else "refuted" if high < 0 else "open"
    return (
        f"Prediction {verdict}: {told}, mean of the logarithm {gap.mean():+.3f} "
        f"({low:+.3f} to {high:+.3f}; seeds: {len(gap)})."
    )


# --- equal seconds
def say_seconds(rows: pd.DataFrame) -> Section:
    """How equal the seconds are."""
    share = 100 * (rows["seconds"] / rows["wish"] - 1)
    within = "within" if share.abs().max() <= 10 else "NOT within"
    said = f"Measured seconds are {share.min():+.1f} to {share.max():+.1f} % from those wished"
    return {"sentences": [f"{said}, {within} 10 %."]}


# --- labels
def say_labels(rows: pd.DataFrame) -> Section:
    """The gains by looking ahead, of as many seeds as a pilot asked for."""
    rows = rows.assign(model=rows["learner"])
    return {"sentences": label_sentences(rows.to_dict("records"))}


MADE: dict[str, tuple[str, str, Callable[[pd.DataFrame], Section] | None]] = {
    "pixel_worlds": ("Pixels in other worlds", "model", say_worlds),
    "noisy_tv": ("The noisy TV", "noise", say_noise),
    "pixel_seconds": ("The four models at equal seconds", "wish", say_seconds),
    "pixel_ablations": ("JEPA's targets and auxiliary losses", "variant", None),
    "pixel_curves": ("Error against transitions and updates", "point", None),
    "pixel_labels": ("Labels that looking ahead saves: JEPA, all labelled rows", "", say_labels),
}
"""Tables of outputs/gallery: title, the column of their lines (none: no table), what they say."""
