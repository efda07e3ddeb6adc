"""The comparison table of the pixel models (MET-2): rows of all seeds become means and claims.

Means over training seeds have Student's 95 % interval; every score has a trivial guess beside it.
`ranked` refuses any column that does not mean the same for every model, such as a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hjepa_lib.evaluation.statistics import student
from hjepa_lib.pixels.claims import claims
from hjepa_lib.pixels.pixelrows import (
    COLUMNS,
    COMPARED,
    ComparisonError,
    Row,
    check_rows,
    notes,
    of_model,
)

SCHEMA = 2
"""Since 2 a comparison has `notes`, and the untrained vision transformer beside `vjepa2`."""
MATCH = 0.02
"""Largest difference in parameters of a matched pair, as a share of the smaller one."""


def matched(counts: Mapping[str, int]) -> dict[str, Any]:
    """Whether two parameter counts {name: count} agree within 2 %, as a share of the smaller."""
    (one, first), (two, second) = counts.items()
    gap = abs(first - second) / max(1, min(first, second))
    return {"pair": [one, two], "parameters": [first, second], "gap": gap, "ok": gap <= MATCH}


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
    low, high = student(numbers)
    text = f"{number(mean)} ({number(low)} to {number(high)})"
    return cell | {"mean": mean, "low": low, "high": high, "text": text}


def build(
    rows: Sequence[Row],
    seeds: Sequence[int],
    baselines: Mapping[str, float | str],
    pairs: Sequence[Mapping[str, int]] = (),
    models: Sequence[str] = COMPARED,
) -> dict[str, Any]:
    """The whole comparison, JSON-ready; ComparisonError when the rows are no fair set.

    `baselines` are the scores of the trivial guesses: see `reportstages.baselines`.
    """
    check_rows(rows, seeds, models)
    for name in ("copy_last_latent", "copy_last_frame", "mean_reward", "mean_reward_r2"):
        if name not in baselines:
            raise ComparisonError(f"the baseline {name!r} is missing")
    first, pairs = rows[0].facts, [matched(pair) for pair in pairs]
    table = {
        model: {
            name: over_seeds([row.scores[name] for row in of_model(rows, model)])
            for name in COLUMNS
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
        "claims": claims(rows, all(pair["ok"] for pair in pairs)),
        "matched": pairs,
        "notes": notes(rows),
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


def number(value: float) -> str:
    """Three significant digits, whole numbers with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
