"""What rows of the comparison say: claims, one table of all models, and sections of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hjepa_lib.evaluation.statistics import claim, student
from hjepa_lib.files import FileError
from hjepa_lib.pixels.compare import (
    COLUMNS,
    COMPARED,
    LABELS,
    NOT_APPLICABLE,
    UNTRAINED,
    ComparisonError,
    Row,
    check_rows,
    notes,
    of_model,
    untrained,
)

SCHEMA = 2
MATCH = 0.02
"""Largest difference in parameters of a matched pair, as a share of the smaller one."""
RESAMPLES = 2000
ERRORS = {
    ("latent", "copy_last_latent"): "imagined latent",
    ("frame", "copy_last_frame"): "decoded frame",
    ("reward_mlp", "mean_reward"): "reward MLP",
    ("larp", "mean_reward"): "look-ahead reward",
    ("larp", "reward_mlp"): "look-ahead reward",
}
"""Paired errors per block and the trivial guess (or plainer head) that each is held against."""
TWINS = ("enc_dec_jepa", "jepa")
"""The pair with equal numbers of weights: one draws the next frame, one names the next latent."""
TWIN_ERRORS = {"frame": "jepa with its decoder", "reward_mlp": "jepa"}
"""Errors in which the first of `TWINS` is held against the second, and how that one is called."""
LEFT_OUT = ("columns", "rows")
"""Parts of the comparison that its own file has and a summary does not need."""


# --- what it says -----------------------------------------------------------------------------
def claims(rows: Sequence[Row], matched: bool = True) -> list[dict[str, Any]]:
    """Every paired comparison with a trivial guess, with the random encoder, and of the twins.

    `matched`: the twins have equal numbers of weights. See `statistics.claim`.
    """
    found: list[dict[str, Any]] = []

    def hold(model: str, kind: str, other: str, baseline: str, what: str, against: str) -> None:
        pairs = list(zip(of_model(rows, model), of_model(rows, other), strict=False))
        if not pairs or any(kind not in a.errors or baseline not in b.errors for a, b in pairs):
            return
        for a, b in pairs:
            if a.errors[kind].shape != b.errors[baseline].shape:
                raise ComparisonError(f"{a.label} and {b.label} were scored on different blocks")
        one, two = (np.stack([pair[n].errors[key] for pair in pairs])
                    for n, key in ((0, kind), (1, baseline)))  # fmt: skip
        said = {"model": model, "score": what, "against": against}
        said |= claim(one, two, resamples=RESAMPLES)
        if any(row.facts.get("loaded") for pair in pairs for row in pair):
            said["verdict"] = "nothing claimed: the weights were loaded"
        elif other in TWINS and other != model and not matched:
            said["verdict"] = "nothing claimed: the pair is not matched"
        found.append(said)

    for model in dict.fromkeys(row.facts["model"] for row in rows):
        for (kind, baseline), what in ERRORS.items():
            hold(model, kind, model, baseline, what, baseline)
        if model not in UNTRAINED:
            floor = untrained(model)
            hold(model, "reward_mlp", floor, "reward_mlp", "reward MLP", LABELS[floor])
    for kind, against in TWIN_ERRORS.items():
        what = "decoded frame" if kind == "frame" else "reward MLP"
        hold(TWINS[0], kind, TWINS[1], kind, what, against)
    return found


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """The claims as text: "jepa: imagined latent beats copy last latent: error -41.0 % (...)"."""
    found = []
    for one in comparison["claims"]:
        head, against = f"{one['model']}: {one['score']}", one["against"].replace("_", " ")
        if one["difference"] is None:
            found.append(f"{head} against {against}: {one['verdict']}")
            continue
        middle, low, high = (f"{100 * one[key]:+.1f}" for key in ("difference", "low", "high"))
        n = ", ".join(
            f"{one[key]} {key if one[key] != 1 else key[:-1]}" for key in ("seeds", "blocks")
        )
        shown = f"error {middle} % ({low} to {high}, {n})"
        if one["verdict"] in ("beats", "loses to"):
            found.append(f"{head} {one['verdict']} {against}: {shown}")
        else:
            found.append(f"{head} against {against}, {one['verdict']}: {shown}")
    return found


def over_seeds(values: Sequence[float | str]) -> dict[str, Any]:
    """Mean and 95 % Student interval over seeds; {"text": ...} for a note or a single seed.

    A note of any seed is the note of the model: a mean over the other seeds would be another
    quantity.
    """
    cell = {"mean": None, "low": None, "high": None, "seeds": len(values)}
    for value in values:
        if isinstance(value, str):
            return cell | {"text": value}
    numbers = np.array(values, dtype=float)
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return cell | {"mean": mean, "text": f"{number(mean)} (1 seed)"}
    low, high = student(numbers)
    text = f"{number(mean)} ({number(low)} to {number(high)})"
    return cell | {"mean": mean, "low": low, "high": high, "text": text}


def number(value: float) -> str:
    """Three significant digits, whole numbers with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def matched(counts: Mapping[str, int]) -> dict[str, Any]:
    """Whether two parameter counts {name: count} agree within 2 %, as a share of the smaller."""
    (one, first), (two, second) = counts.items()
    gap = abs(first - second) / max(1, min(first, second))
    return {"pair": [one, two], "parameters": [first, second], "gap": gap, "ok": gap <= MATCH}


def build(
    rows: Sequence[Row],
    seeds: Sequence[int],
    baselines: Mapping[str, float | str],
    pairs: Sequence[Mapping[str, int]] = (),
    models: Sequence[str] = COMPARED,
) -> dict[str, Any]:
    """The whole comparison, JSON-ready; ComparisonError when the rows are no fair set.

    `baselines` are the scores of the trivial guesses (`stages.baselines`), `pairs` the matched.
    """
    check_rows(rows, seeds, models)
    first, found = rows[0].facts, [matched(pair) for pair in pairs]
    return {
        "schema": SCHEMA,
        "environment": first["environment"],
        "data_sha256": first["data_sha256"],
        "seeds": list(seeds),
        "n": first["n"],
        "columns": {name: column._asdict() for name, column in COLUMNS.items()},
        "models": {
            model: {
                name: over_seeds([row.scores[name] for row in of_model(rows, model)])
                for name in COLUMNS
            }
            for model in models
        },
        "baselines": dict(baselines),
        "claims": claims(rows, all(pair["ok"] for pair in found)),
        "matched": found,
        "notes": notes(rows),
        "rows": [row.facts | row.scores for row in rows],
    }


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
    lines = [
        {"model": model, "column": name, **cell}
        for model, cells in comparison["models"].items()
        for name, cell in cells.items()
    ]
    return pd.DataFrame(lines)


def verdict(interval: Sequence[float] | None, loaded: bool = False) -> str:
    """What the interval of LARP minus reward MLP says; nothing for weights from a file."""
    if interval is None:
        return NOT_APPLICABLE
    if loaded:
        return "nothing claimed: the weights were loaded"
    _, low, high = interval
    return "look-ahead helps" if high < 0 else "look-ahead hurts" if low > 0 else "within noise"


# --- sections of the report -------------------------------------------------------------------
def comparison_section(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Scores with intervals beside the trivial guesses, and the claims; FileError unless whole."""
    check(comparison)
    models, n = comparison["models"], comparison["n"]
    rows = []
    for name, column in comparison["columns"].items():
        cells = [_shown(one[name]) for one in models.values()]
        rows.append([_words(name), *cells, _guess(comparison, name, column)])
    names = [LABELS.get(name, name) for name in models]
    seeds = ", ".join(map(str, comparison["seeds"]))
    about = (
        f"{comparison['environment']}, training seeds {seeds}; {n['training']:,} transitions of "
        f"training, {n['validation']:,} of validation in {n['episodes']} episodes. Mean over seeds "
        "with its 95 % interval; errors in latents are divided by that of copying the last latent, "
        "because the units of two latent spaces cannot be compared."
    )
    return {
        "title": "World models on pixels",
        "headline": headline(comparison),
        "sentences": [about],
        "tables": [{
            "columns": ["Measure", *names, "Trivial guess"],
            "rows": rows,
            "notes": [*map(_pair, comparison["matched"]), *comparison.get("notes", [])],
        }],
        "lists": {"Paired comparisons": sentences(comparison)},
        "data": {key: part for key, part in comparison.items() if key not in LEFT_OUT},
    }  # fmt: skip


def check(comparison: Mapping[str, Any]) -> None:
    """FileError unless scores speak of every seed, with intervals, beside their floors."""
    for key in ("seeds", "n", "models", "baselines", "claims"):
        if not comparison.get(key):
            raise FileError(f"the comparison on pixels lacks {key!r}")
    models = comparison["models"]
    for model, cells in models.items():
        if untrained(model) not in models:
            raise FileError(f"the comparison lacks the random encoder {untrained(model)!r}")
        for name, cell in cells.items():
            if "loss" in name:
                raise FileError(f"{model}: {name} is a loss in a latent of its own, not a score")
            if cell["seeds"] != len(comparison["seeds"]) or not cell["text"]:
                raise FileError(f"{model}: {name} does not speak of every seed")
            if cell["mean"] is not None and cell["seeds"] > 1 and cell["low"] is None:
                raise FileError(f"{model}: {name} has no interval")


def look_ahead_section(study: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The look-ahead study: paired squared errors of both heads by world and model."""
    worlds = {"drift": "reward of the next state", "push": "reward of state and action (control)"}
    rows = []
    for world, about in worlds.items():
        for row in study[world]:
            gap = row["look_ahead"]
            if gap is None:
                continue
            heads = [row["heads"][name] for name in ("reward_mlp", "larp")]
            scores = [one["note"] if one["r2"] is None else f"{one['r2']:.3f}" for one in heads]
            shown = f"{gap[0]:+.4f} ({gap[1]:+.4f} to {gap[2]:+.4f})"
            n = f"{heads[1]['transitions']} ({heads[1]['seeds']})"
            found = [" / ".join(scores), shown, verdict(gap), n]
            rows.append([f"{world}: {about}", row["model"], *found])
    columns = ["world", "model", "R2 plain / look-ahead", "error difference", "verdict"]
    columns += ["n (seeds)"]
    title = "Look-ahead reward predictor against plain reward head"
    sentences = ["Paired squared errors with 95 % interval; left of zero looking ahead helps."]
    return {"title": title, "sentences": sentences, "tables": [{"columns": columns, "rows": rows}]}


def headline(comparison: Mapping[str, Any]) -> str:
    """One sentence: what was compared, and how many of the derived claims were won."""
    claims = [claim for claim in comparison["claims"] if claim["model"] not in UNTRAINED]
    won = sum(claim["verdict"] == "beats" for claim in claims)
    seeds, n = len(comparison["seeds"]), comparison["n"]
    models = len(set(comparison["models"]) - set(UNTRAINED))
    return (
        f"{models} world models and random encoders on {comparison['environment']}: {seeds} "
        f"seed{'s' if seeds > 1 else ''}, {n['training']:,} transitions to learn from and "
        f"{n['validation']:,} to be judged on; {won} of {len(claims)} paired comparisons with a "
        "trivial guess, a plainer head, a random encoder or the matched twin are won (95 % "
        "intervals, not corrected for their number)."
    )


def _shown(cell: Mapping[str, Any]) -> str:
    """The text of a score, without the interval that a number of weights does not have."""
    same = cell["mean"] is not None and cell["low"] == cell["high"]
    return number(cell["mean"]) if same else cell["text"]


def _guess(comparison: Mapping[str, Any], name: str, column: Mapping[str, str]) -> str:
    """The baseline's own score in the units of the column."""
    if not column["baseline"]:
        return "–"
    value = floor(comparison, name)
    return f"{_words(column['baseline'])}: {value if isinstance(value, str) else number(value)}"


def _pair(pair: Mapping[str, Any]) -> str:
    (one, two), (first, second) = pair["pair"], pair["parameters"]
    apart = f"{100 * pair['gap']:.2f} % apart, {'matched' if pair['ok'] else 'NOT matched'}"
    return f"{one} has {first:,} parameters, {two} {second:,}: {apart}."


def _words(name: str) -> str:
    return name.replace("_", " ")
