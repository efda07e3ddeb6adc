"""What a run says: a row per model and seed, the comparison of all, and what reward heads add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, number
from hjepa_lib.files import read_json, write_json
from hjepa_lib.pixels import compare, measures, stages
from hjepa_lib.pixels.compare import COMPARED, MEAN_REWARD, NOT_APPLICABLE, UNTRAINED, by_block
from hjepa_lib.pixels.heads import HEADS
from hjepa_lib.pixels.models import matched_counts
from hjepa_lib.pixels.training import next_latent
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace


def make_comparison(ws: Workspace, folder: Path) -> None:
    """The rows of all models and seeds as one table."""
    rows = [measure_row(ws, name, n) for n in range(ws.config.pixels.seeds) for name in COMPARED]
    pair = matched_counts(ws.config.pixels, stages.make_transitions(ws)[0])
    write_json(folder / "comparison.json", compare.build(rows, [pair]))


def load_comparison(ws: Workspace) -> dict[str, Any]:
    """The comparison of this run, measured here where it is missing; the report shows it."""
    found = read_json(stages.find(ws, "comparison") / "comparison.json")
    leave_section(ws.run, "20-pixels", comparison_section(found))
    return found


def measure_row(ws: Workspace, name: str, number: int) -> compare.Row:
    """Facts, scores on the validation part, and errors per block of it."""
    (train, validation), config = stages.make_transitions(ws), ws.config.pixels
    model = stages.load_model(ws, name, number)
    predict, decoder = getattr(model, "predict_frame", None), None
    # A decoder that reads the true next state reconstructs, it foresees nothing.
    if name in stages.DECODED and config.decoder.source == "predictor":
        decoder = stages.load_decoder(ws, name, number)

        def predict(batch: Any) -> Any:
            return decoder(next_latent(model, batch, "predictor"))

    errors = measures.transition_errors(train, validation, ws.device, model, predict)
    heads, r2, _ = head_results(ws, name, number)
    errors |= heads
    mean = {kind: float(values.mean()) for kind, values in errors.items()}

    def share(kind: str, of: str) -> float | str:
        if kind not in mean:
            return NOT_APPLICABLE
        return mean[kind] / mean[of] if mean[of] > 0 else NOT_ESTIMABLE

    gain = r2["larp"]
    if not isinstance(gain, str):
        gain = (mean["reward_mlp"] - mean["larp"]) / mean[MEAN_REWARD]
    result = stages.load_result(ws, stages.name_of(name, number))
    scores: dict[str, float | str] = {
        "parameters": result["parameters"]["total"],
        "updates": result["updates"],
        "train_seconds": 0.0 if name in UNTRAINED else result["seconds"],
        "latent_error": share("latent", "copy_last_latent"),
        "frame_mse": mean.get("frame", NOT_APPLICABLE),
        "frame_error": share("frame", "copy_last_frame"),
        "reward_mse": mean["reward_mlp"],
        "reward_r2": r2["reward_mlp"],
        "larp_mse": mean.get("larp", NOT_APPLICABLE),
        "larp_r2": r2["larp"],
        "larp_gain": gain,
    }
    batch = validation[measures.pick(len(validation), seed=ws.config.seed)].to(ws.device)
    shape = measures.measure(model.encode, batch.state, batch.next_state, seed=ws.config.seed)
    scores |= {key: NOT_ESTIMABLE if value != value else value for key, value in shape.items()}
    episode = validation.episode.numpy()
    blocks = {kind: by_block(values, episode) for kind, values in errors.items()}
    facts = {key: value for key, value in result.items() if not isinstance(value, dict)}
    facts |= {"n": result["transitions"] | {"episodes": len(validation.episodes)}}
    used = ("", "heads", *(["decoder"] if decoder else ()))
    facts["weights"] = ws.weights(stages.name_of(name, number, kind) for kind in used)
    return compare.Row(facts | {"mean_reward_r2": r2[MEAN_REWARD]}, scores, blocks)


def comparison_section(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The report's section: scores with intervals beside the trivial guesses, and the claims."""
    models, n, rows = comparison["models"], comparison["n"], []
    for name in compare.COLUMNS:
        guess = compare.floor(comparison, name)
        shown = number(guess) if isinstance(guess, float) else guess
        last = f"{compare.RANKED[name][1]}: {shown}" if shown else "–"
        cells = [name, *(one[name]["text"] for one in models.values()), last]
        rows.append([cell.replace("_", " ") for cell in cells])
    trained = [one for one in comparison["claims"] if one["model"] not in UNTRAINED]
    won = sum(one["verdict"] == "beats" for one in trained)
    pairs = []
    for pair in comparison["matched"]:
        both = zip(pair["pair"], pair["parameters"], strict=True)
        sizes = " and ".join(f"{name} {count:,}" for name, count in both)
        state = "matched" if pair["ok"] else "NOT matched"
        pairs.append(f"Parameters of {sizes}: {100 * pair['gap']:.2f} % apart, {state}.")
    return {
        "title": "World models on pixels",
        "headline": (
            f"{len(set(models) - set(UNTRAINED))} world models and random encoders on "
            f"{comparison['environment']}, training seeds "
            f"{', '.join(map(str, comparison['seeds']))}: {n['training']:,} transitions to learn "
            f"from and {n['validation']:,} in {n['episodes']} episodes to be judged on; {won} of "
            f"{len(trained)} paired comparisons with a trivial guess, a plainer head, a random "
            "encoder or the matched twin are won (95 % intervals, not corrected for their number)."
        ),
        "sentences": [
            "Mean over seeds with its 95 % interval; errors in latents are divided by that of "
            "copying the last latent, because two latent spaces have no common unit."
        ],
        "tables": [{
            "columns": ["Measure", *map(compare.LABELS.get, models), "Trivial guess"],
            "rows": rows,
            "notes": [*pairs, *comparison["notes"]],
        }],
        "lists": {"Paired comparisons": compare.sentences(comparison["claims"])},
        "data": {key: part for key, part in comparison.items() if key != "rows"},
    }  # fmt: skip


def head_results(
    ws: Workspace, name: str, number: int
) -> tuple[dict[str, np.ndarray], dict[str, float | str], np.ndarray]:
    """Squared errors (n,) and R2, or the note in its place, by head; and the episodes (n,)."""
    cell, facts = stages.load_heads(ws, name, number)
    kinds = [kind for kind in (MEAN_REWARD, *HEADS) if kind in cell]
    errors = {kind: np.square(cell[kind].astype(float) - cell["reward"]) for kind in kinds}
    r2 = {kind: one.get("r2", NOT_APPLICABLE) for kind, one in facts["heads"].items()}
    r2 = {kind: NOT_ESTIMABLE if one is None else one for kind, one in r2.items()}
    return errors, r2, cell["episode"]


def make_rewards(ws: Workspace, folder: Path) -> None:
    """What all reward heads predict, model by model."""
    write_json(folder / "rewards.json", reward_report(ws, COMPARED))


def load_rewards(ws: Workspace) -> dict[str, Any]:
    """The `reward_report` of this run on all models."""
    return read_json(stages.find(ws, "rewards") / "rewards.json")


def reward_report(ws: Workspace, models: Sequence[str]) -> dict[str, Any]:
    """MSE and R2 of each head of each model, means over seeds (`heads`), and their `claims`."""
    heads, errors, loaded, numbers = [], {}, [], range(ws.config.pixels.seeds)
    for name in models:
        found = [head_results(ws, name, n) for n in numbers]
        errors[name] = {}
        for kind in found[0][0]:
            values = np.stack([by_block(own[kind], episode) for own, _, episode in found])
            r2 = [own[kind] for _, own, _ in found]
            r2 = NOT_ESTIMABLE if NOT_ESTIMABLE in r2 else float(np.mean(r2))
            one = {"model": name, "head": kind, "mse": values.mean(), "r2": r2}
            heads.append(one | {"seeds": len(found), "n": len(found[0][2])})
            errors[name][kind] = values
        if any(stages.load_result(ws, stages.name_of(name, n))["loaded"] for n in numbers):
            loaded.append(name)
    return {"heads": heads, "claims": compare.claims(errors, loaded)}
