"""What a run says: a row per model and seed, the comparison of all, and what reward heads add.

R2 = 1 - MSE / variance on held-out episodes. The gain of look-ahead is the squared error of LARP
minus that of another head, on the same transitions and seeds: negative where looking ahead helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, Interval, bootstrap, paired, unestimable
from hjepa_lib.files import WorkbookError, read_json, write_atomic, write_json
from hjepa_lib.pixels import measures, tables
from hjepa_lib.pixels.compare import (
    COMPARED,
    MEAN_REWARD,
    NOT_APPLICABLE,
    UNTRAINED,
    Row,
    by_block,
    score,
    untrained,
)
from hjepa_lib.pixels.models import matched_counts
from hjepa_lib.pixels.stages import (
    DECODED,
    find,
    load_decoder,
    load_heads,
    load_model,
    load_result,
    make_transitions,
)
from hjepa_lib.pixels.tables import comparison_section
from hjepa_lib.pixels.training import next_latent
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace

RESAMPLES = 1000
TITLES = {"reward_mlp": "reward MLP", "larp": "LARP", "larp_copy": "copy"}
GAPS = {
    "look_ahead": "LARP - reward MLP",
    "over_copy": "LARP - copy",
    "over_mean": "reward MLP - mean reward",
    "over_random": "reward MLP - that on random",
}
Cell = Mapping[str, np.ndarray]
"""Held-out rewards, their episode ids, and every head's predictions of one seed, all (n,)."""


# --- the comparison ---------------------------------------------------------------------------
def make_comparison(ws: Workspace, folder: Path) -> None:
    """The rows of all models and seeds as one table: JSON and CSV."""
    config, (train, validation) = ws.config, make_transitions(ws)
    numbers = range(config.pixels.seeds)
    rows = [measure_row(ws, name, n) for n in numbers for name in COMPARED]
    pairs = [matched_counts(config.pixels, train)]
    seeds = [config.seed + n for n in numbers]
    found = tables.build(rows, seeds, baselines(train, validation), pairs)
    write_json(folder / "comparison.json", found)
    write_atomic(folder / "comparison.csv", tables.tidy(found).to_csv(index=False))


def load_comparison(ws: Workspace) -> dict[str, Any]:
    """The comparison of this run, measured here where it is missing; the report shows it."""
    found = read_json(find(ws, "comparison") / "comparison.json")
    leave_section(ws.run, "20-pixels", comparison_section(found))
    return found


def measure_row(ws: Workspace, name: str, number: int) -> Row:
    """Facts, scores on the validation part, and errors per block of it."""
    (train, validation), config = make_transitions(ws), ws.config.pixels
    model, trained = load_model(ws, name, number), name not in UNTRAINED
    predict = getattr(model, "predict_frame", None)
    # A decoder that reads the true next state reconstructs, it foresees nothing.
    if name in DECODED and config.decoder.source == "predictor":
        decoder = load_decoder(ws, name, number)

        def predict(batch: Any) -> Any:
            return decoder(next_latent(model, batch, "predictor"))

    mean = measures.mean_frame(train)
    found = measures.transition_errors(validation, mean, ws.device, model, predict)
    cell, heads = load_heads(ws, name, number)
    for kind in ("reward_mlp", "larp", MEAN_REWARD):
        if kind in cell:
            found[kind] = np.square(cell[kind].astype(float) - cell["reward"])
    result = load_result(ws, f"{name}_s{number}")
    memory = measures.update_megabytes(name, config, train) if trained else NOT_APPLICABLE
    scores: dict[str, float | str] = {
        "parameters": result["parameters"]["total"],
        "updates": result["updates"],
        "train_seconds": result["seconds"] if trained else 0.0,
        "update_memory_mb": memory,
        "latent_error": _ratio(found, "latent", "copy_last_latent"),
        "frame_mse": float(found["frame"].mean()) if "frame" in found else NOT_APPLICABLE,
        "frame_error": _ratio(found, "frame", "copy_last_frame"),
        **_reward_scores(heads["heads"]),
    }
    rows = measures.pick(len(validation), seed=ws.config.seed)
    batch = validation[rows].to(ws.device)
    shape = measures.measure(model.encode, batch.state, batch.next_state, seed=ws.config.seed)
    scores |= {key: NOT_ESTIMABLE if value != value else value for key, value in shape.items()}
    episode = validation.episode.numpy()
    blocks = {kind: by_block(values, episode) for kind, values in found.items()}
    return Row(_facts(result, validation), scores, blocks)


def _facts(result: dict[str, Any], validation: Transitions) -> dict[str, Any]:
    """What makes the row comparable, and where loaded weights come from."""
    taken = ("model", "seed", "environment", "data_sha256", "batches_sha256", "updates", "loaded",
             "early_stopping", "stage_updates")  # fmt: skip
    facts = {key: result[key] for key in taken if key in result}
    facts["n"] = result["transitions"] | {"episodes": len(validation.episodes)}
    if facts["loaded"]:
        there = result.get("loaded_data_sha256", "")
        same = "this data" if there == facts["data_sha256"] else "other data"
        facts["loaded_data"] = same if there else "unknown data"
    return facts


def _ratio(errors: dict[str, np.ndarray], kind: str, baseline: str) -> float | str:
    if kind not in errors:
        return NOT_APPLICABLE
    floor = float(errors[baseline].mean())
    return float(errors[kind].mean()) / floor if floor > 0 else NOT_ESTIMABLE


def _reward_scores(heads: dict[str, dict[str, Any]]) -> dict[str, float | str]:
    scores: dict[str, float | str] = {}
    for kind, prefix in (("reward_mlp", "reward"), ("larp", "larp")):
        r2 = heads[kind].get("r2", NOT_APPLICABLE)
        scores[f"{prefix}_mse"] = heads[kind].get("mse", NOT_APPLICABLE)
        scores[f"{prefix}_r2"] = NOT_ESTIMABLE if r2 is None else r2
    floor, gain = heads[MEAN_REWARD]["mse"], NOT_ESTIMABLE
    if scores["larp_mse"] == NOT_APPLICABLE:
        gain = NOT_APPLICABLE
    elif scores["larp_r2"] != NOT_ESTIMABLE and floor > 0:
        gain = (scores["reward_mse"] - scores["larp_mse"]) / floor
    return scores | {"larp_gain": gain}


def baselines(train: Transitions, validation: Transitions) -> dict[str, float | str]:
    """Scores of guesses that need no model, in the units of their columns.

    `copy_last_latent` is 1 by the definition of `latent_error`; the mean is that of the training
    rewards, so its R2 on the validation part lies a little below 0.
    """
    errors = measures.transition_errors(validation, measures.mean_frame(train), "cpu")
    frames = {name: float(errors[name].mean()) for name in ("copy_last_frame", "mean_frame")}
    seen, true = (part.reward.numpy() for part in (train, validation))
    found = score(np.full_like(true, seen.mean()), true, unestimable(seen, true))
    r2 = NOT_ESTIMABLE if found.r2 is None else found.r2
    return frames | {"copy_last_latent": 1.0, "mean_reward": found.mse, "mean_reward_r2": r2}


# --- reward heads -----------------------------------------------------------------------------
def make_rewards(ws: Workspace, folder: Path) -> None:
    """What all reward heads predict, model by model."""
    rows = reward_rows(ws, COMPARED)
    for row in rows:
        names = (f"{row['model']}_s{n}" for n in range(ws.config.pixels.seeds))
        row["loaded"] = any(load_result(ws, name)["loaded"] for name in names)
    write_json(folder / "rewards.json", rows)


def load_rewards(ws: Workspace) -> list[dict[str, Any]]:
    """The rows of all reward heads of this run."""
    return read_json(find(ws, "rewards") / "rewards.json")


def reward_rows(ws: Workspace, models: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of `reward_comparison` over all training seeds of a run."""
    cells: dict[str, list[Cell]] = {}
    note = ""
    for name in models:
        found = [load_heads(ws, name, n) for n in range(ws.config.pixels.seeds)]
        cells[name], note = [cell for cell, _ in found], found[0][1]["note"]
    return reward_comparison(cells, note)


def reward_comparison(models: Mapping[str, Sequence[Cell]], note: str) -> list[dict[str, Any]]:
    """One row per model: all heads and baselines, and the differences of `GAPS` with intervals.

    A value is None where the model lacks the head. The reference of `over_random` is the untrained
    encoder of the model's own architecture, where `models` holds it.
    """
    rows = []
    for name, cells in models.items():
        floor = None if name in UNTRAINED else models.get(untrained(name))
        rows.append({
            "model": name,
            "heads": {kind: summarise(cells, kind, note) for kind in (*TITLES, MEAN_REWARD)},
            "look_ahead": difference(cells, "larp", "reward_mlp"),
            "over_copy": difference(cells, "larp", "larp_copy"),
            "over_mean": difference(cells, "reward_mlp", MEAN_REWARD),
            "over_random": floor and difference(cells, "reward_mlp", "reward_mlp", floor),
        })  # fmt: skip
    return rows


def _squared_errors(cells: Sequence[Cell], kind: str) -> np.ndarray:  # (S, K) by block
    gaps = [np.square(np.asarray(cell[kind], float) - cell["reward"]) for cell in cells]
    return np.stack([by_block(gap, cells[0]["episode"]) for gap in gaps])


def difference(
    cells: Sequence[Cell], first: str, second: str, other: Sequence[Cell] | None = None
) -> Interval | None:
    """Mean squared error of head `first` minus that of `second`, paired by seed and block.

    With `other`, `second` is a head of that model's cells. None when a head does not exist; what
    was scored on other transitions cannot be paired.
    """
    other = cells if other is None else other
    if first not in cells[0] or second not in other[0]:
        return None
    for cell in (*cells, *other):
        if not np.array_equal(cell["reward"], cells[0]["reward"]):
            raise WorkbookError("heads were scored on different transitions; they cannot be paired")
    errors = _squared_errors(cells, first), _squared_errors(other, second)
    return paired(*errors, tables.RESAMPLES)


def summarise(cells: Sequence[Cell], kind: str, note: str) -> dict[str, Any]:
    """Mean and interval of the MSE over seeds and blocks, mean R2 over seeds, and n.

    {} for a head that the model does not have.
    """
    if kind not in cells[0]:
        return {}
    interval = bootstrap(_squared_errors(cells, kind), resamples=RESAMPLES)
    r2 = [score(cell[kind], cell["reward"], note).r2 for cell in cells]
    return {
        "mse": interval.estimate,
        "mse_low": interval.low,
        "mse_high": interval.high,
        "r2": None if note else float(np.mean(r2)),
        "note": note,
        "seeds": len(cells),
        "transitions": len(cells[0]["reward"]),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `reward_comparison` for reading: MSE, R2, and differences with their intervals."""
    lines = {}
    for row in rows:
        heads = row["heads"]
        line: dict[str, Any] = {"mean reward MSE": heads[MEAN_REWARD]["mse"]}
        for kind, title in TITLES.items():
            line[f"{title} MSE"] = heads[kind].get("mse", NOT_APPLICABLE)
            if kind != "larp_copy":
                r2 = heads[kind].get("r2", NOT_APPLICABLE)
                line[f"{title} R2"] = NOT_ESTIMABLE if r2 is None else r2
        for key, title in GAPS.items():
            gap = row[key] and "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row[key])
            line[title] = gap or NOT_APPLICABLE
        line["n"] = f"{heads['reward_mlp']['seeds']} seeds x {heads['reward_mlp']['transitions']}"
        lines[row["model"]] = line
    return pd.DataFrame.from_dict(lines, orient="index")
