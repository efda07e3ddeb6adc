"""What notebooks 10-15 say in a run's report and summary; models keep their order, unranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjepa_lib.files import FileError
from hjepa_lib.pixels.compare import LABELS, UNTRAINED, floor, number, sentences, untrained, verdict

LEFT_OUT = ("columns", "rows")
"""Parts of the comparison that its own file has and a summary does not need."""


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
