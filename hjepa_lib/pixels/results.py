"""What a run says: a row per model and seed, the comparison of all, and what reward heads add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE
from hjepa_lib.files import read_json, write_atomic, write_json
from hjepa_lib.pixels import compare, measures
from hjepa_lib.pixels.compare import (
    COLUMNS,
    COMPARED,
    LABELS,
    MEAN_REWARD,
    NOT_APPLICABLE,
    UNTRAINED,
    Row,
    by_block,
    number,
)
from hjepa_lib.pixels.heads import HEADS
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
from hjepa_lib.pixels.training import next_latent
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace


# --- the comparison ---------------------------------------------------------------------------
def make_comparison(ws: Workspace, folder: Path) -> None:
    """The rows of all models and seeds as one table: JSON and CSV."""
    rows = [measure_row(ws, name, n) for n in range(ws.config.pixels.seeds) for name in COMPARED]
    pair = matched_counts(ws.config.pixels, make_transitions(ws)[0])
    found = compare.build(rows, [pair])
    write_json(folder / "comparison.json", found)
    write_atomic(folder / "comparison.csv", compare.tidy(found).to_csv(index=False))


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

    errors = measures.transition_errors(train, validation, ws.device, model, predict)
    cell, facts = load_heads(ws, name, number)
    errors |= {k: squared_errors(cell, k) for k in (MEAN_REWARD, *HEADS) if k in cell}
    means = {kind: float(values.mean()) for kind, values in errors.items()}
    r2 = {kind: r2_of(head) for kind, head in facts["heads"].items()}
    gain = r2["larp"]
    if not isinstance(gain, str):
        gain = (means["reward_mlp"] - means["larp"]) / means[MEAN_REWARD]
    result = load_result(ws, f"{name}_s{number}")
    memory = measures.update_megabytes(name, config, train) if trained else NOT_APPLICABLE
    scores: dict[str, float | str] = {
        "parameters": result["parameters"]["total"],
        "updates": result["updates"],
        "train_seconds": result["seconds"] if trained else 0.0,
        "update_memory_mb": memory,
        "latent_error": _ratio(means, "latent", "copy_last_latent"),
        "frame_mse": means.get("frame", NOT_APPLICABLE),
        "frame_error": _ratio(means, "frame", "copy_last_frame"),
        "reward_mse": means["reward_mlp"],
        "reward_r2": r2["reward_mlp"],
        "larp_mse": means.get("larp", NOT_APPLICABLE),
        "larp_r2": r2["larp"],
        "larp_gain": gain,
    }
    batch = validation[measures.pick(len(validation), seed=ws.config.seed)].to(ws.device)
    shape = measures.measure(model.encode, batch.state, batch.next_state, seed=ws.config.seed)
    scores |= {key: NOT_ESTIMABLE if value != value else value for key, value in shape.items()}
    episode = validation.episode.numpy()
    blocks = {kind: by_block(values, episode) for kind, values in errors.items()}
    about = {key: value for key, value in result.items() if not isinstance(value, dict)}
    about["n"] = result["transitions"] | {"episodes": len(validation.episodes)}
    return Row(about | {"mean_reward_r2": r2[MEAN_REWARD]}, scores, blocks)


def _ratio(means: Mapping[str, float], kind: str, baseline: str) -> float | str:
    if kind not in means:
        return NOT_APPLICABLE
    return means[kind] / means[baseline] if means[baseline] > 0 else NOT_ESTIMABLE


def r2_of(head: Mapping[str, Any]) -> float | str:
    """R2 of a head's scores, or the note in its place."""
    r2 = head.get("r2", NOT_APPLICABLE)
    return NOT_ESTIMABLE if r2 is None else r2


# --- reward heads -----------------------------------------------------------------------------
def make_rewards(ws: Workspace, folder: Path) -> None:
    """What all reward heads predict, model by model."""
    write_json(folder / "rewards.json", reward_report(ws, COMPARED))


def load_rewards(ws: Workspace) -> dict[str, Any]:
    """The `reward_report` of this run on all models."""
    return read_json(find(ws, "rewards") / "rewards.json")


def reward_report(ws: Workspace, models: Sequence[str]) -> dict[str, Any]:
    """MSE and R2 of each head of each model, means over seeds (`heads`), and their `claims`."""
    heads, errors, loaded = [], {}, []
    for name in models:
        numbers = range(ws.config.pixels.seeds)
        cells, facts = zip(*(load_heads(ws, name, n) for n in numbers), strict=True)
        errors[name] = own = {
            kind: np.stack([by_block(squared_errors(c, kind), c["episode"]) for c in cells])
            for kind in (MEAN_REWARD, *HEADS)
            if kind in cells[0]
        }
        for kind, values in own.items():
            r2 = [r2_of(one["heads"][kind]) for one in facts]
            r2 = NOT_ESTIMABLE if NOT_ESTIMABLE in r2 else float(np.mean(r2))
            heads.append({"model": name, "head": kind, "mse": values.mean(), "r2": r2})
            heads[-1] |= {"seeds": len(cells), "n": len(cells[0]["reward"])}
        if any(load_result(ws, f"{name}_s{n}")["loaded"] for n in numbers):
            loaded.append(name)
    return {"heads": heads, "claims": compare.claims(errors, loaded)}


def squared_errors(cell: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
    """(n,) of a head, from what `load_heads` gives of one seed."""
    return np.square(cell[kind].astype(float) - cell["reward"])


# --- the report -------------------------------------------------------------------------------
def comparison_section(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The report's section: scores with intervals beside the trivial guesses, and the claims."""
    models, n = comparison["models"], comparison["n"]
    rows = []
    for name in COLUMNS:
        guess = compare.floor(comparison, name)
        shown = guess if isinstance(guess, str | None) else number(guess)
        last = f"{compare.RANKED[name][1]}: {shown}" if shown else "–"
        cells = [name, *(one[name]["text"] for one in models.values()), last]
        rows.append([cell.replace("_", " ") for cell in cells])
    trained = [one for one in comparison["claims"] if one["model"] not in UNTRAINED]
    won = sum(one["verdict"] == "beats" for one in trained)
    headline = (
        f"{len(set(models) - set(UNTRAINED))} world models and random encoders on "
        f"{comparison['environment']}, training seeds "
        f"{', '.join(map(str, comparison['seeds']))}: {n['training']:,} transitions to learn from "
        f"and {n['validation']:,} in {n['episodes']} episodes to be judged on; {won} of "
        f"{len(trained)} paired comparisons with a trivial guess, a plainer head, a random encoder "
        "or the matched twin are won (95 % intervals, not corrected for their number)."
    )
    about = (
        "Mean over seeds with its 95 % interval; errors in latents are divided by that of copying "
        "the last latent, because two latent spaces have no common unit."
    )
    pairs = []
    for pair in comparison["matched"]:
        sizes = " and ".join(
            "{} {:,}".format(*one) for one in zip(pair["pair"], pair["parameters"], strict=True)
        )
        state = "matched" if pair["ok"] else "NOT matched"
        pairs.append(f"Parameters of {sizes}: {100 * pair['gap']:.2f} % apart, {state}.")
    return {
        "title": "World models on pixels",
        "headline": headline,
        "sentences": [about],
        "tables": [{
            "columns": ["Measure", *(LABELS[name] for name in models), "Trivial guess"],
            "rows": rows,
            "notes": [*pairs, *comparison["notes"]],
        }],
        "lists": {"Paired comparisons": compare.sentences(comparison["claims"])},
        "data": {key: part for key, part in comparison.items() if key != "rows"},
    }  # fmt: skip
