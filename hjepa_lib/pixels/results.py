"""What a run says: a row per model and seed, the comparison of all, and what reward heads add."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, number
from hjepa_lib.files import read_json, write_json
from hjepa_lib.pixels import compare, measures, stages
from hjepa_lib.pixels.compare import (
    COMPARED,
    LABELS,
    MEAN_REWARD,
    NOT_APPLICABLE,
    UNTRAINED,
    by_block,
)
from hjepa_lib.pixels.models import matched_counts
from hjepa_lib.pixels.training import HEADS
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.probes import collapse

HEADLINE = ("px first", "ratio first", "px last", "ratio last", "px encoded", "action use",
            "frame error", "latent error")  # fmt: skip
"""What of `score_table` the README and the report's first table show."""
ENDS = {"first": 0, "last": -1}
"""Steps of an imagined window that are shown."""
PLACED = {"px": "imagined", "px_guess": "guess", "px_possible": "possible"}
"""Errors per block by kind of `measures.place_errors`."""


def make_comparison(ws: Workspace, folder: Path) -> None:
    """The rows of all models and seeds as one table."""
    rows = [measure_row(ws, name, n) for n in range(ws.config.pixels.seeds) for name in COMPARED]
    pair = matched_counts(ws.config.pixels, stages.make_transitions(ws).train)
    write_json(folder / "comparison.json", compare.build(rows, [pair]))


def load_comparison(ws: Workspace) -> dict[str, Any]:
    """The comparison of this run, measured here where it is missing; the report shows it."""
    found = read_json(stages.find(ws, "comparison") / "comparison.json")
    leave_section(ws.run, "20-pixels", comparison_section(found))
    return found


def measure_row(
    ws: Workspace, name: str, number: int, *, rewards: bool = True, draw: bool = True,
    known: Transitions | None = None, scored: Transitions | None = None,
) -> compare.Row:  # fmt: skip
    """Facts, scores on the test part (or what is `scored`), and squared errors per block of it.

    Guesses and ridges know the training part, or what is `known` in its place. Reward heads and
    lacking decoders are trained on the way if asked for.
    """
    (train, _, test), config, seed = stages.make_transitions(ws), ws.config.pixels, ws.config.seed
    train, test = train if known is None else known, test if scored is None else scored
    model = stages.load_model(ws, name, number)
    predict, decoder = getattr(model, "predict_frame", None), None
    # A decoder that reads the true next state reconstructs, it foresees nothing.
    if draw and name in stages.DECODED and config.decoder.source == "predictor":
        decoder = stages.load_decoder(ws, name, number)

        def predict(batch: Any) -> Any:
            return decoder(model.imagine(model.encode(batch.state), batch.action))

    errors = measures.transition_errors(train, test, ws.device, model, predict)
    r2: dict[str, float | str] = dict.fromkeys((MEAN_REWARD, *HEADS), NOT_APPLICABLE)
    if rewards:
        heads, r2, _ = head_results(ws, name, number)
        errors |= heads
    places, episode = measures.place_errors(model, train, test, seed, config.data.sequence)
    px = {kind: measures.rms(values) for kind, values in places.items()}
    blocks = {kind: by_block(values, test.episode.numpy()) for kind, values in errors.items()}
    blocks |= place_blocks(places, episode)
    mean = {kind: float(values.mean()) for kind, values in blocks.items()}
    result = stages.load_result(ws, stages.name_of(name, number))
    scores: dict[str, float | str] = dict.fromkeys(compare.COLUMNS, NOT_APPLICABLE) | {
        "parameters": result["parameters"]["total"],
        "updates": result["updates"],
        "train_seconds": 0.0 if name in UNTRAINED else result["seconds"],
        "reward_r2": r2["reward_mlp"],
        "larp_r2": r2["larp"],
        "larp_gain": r2["larp"],  # where it is a note
    }
    if not isinstance(r2["larp"], str):
        scores["larp_gain"] = (mean["reward_mlp"] - mean["larp"]) / mean[MEAN_REWARD]
    for column, (one, two, power) in compare.RATIOS.items():
        if one in mean:
            defined = mean[two if power > 0 else one] > 0
            scores[column] = (mean[one] / mean[two]) ** power if defined else NOT_ESTIMABLE
    if px:
        scores["px_encoded"] = float(px["encoded"][0])
    if "imagined" in px:
        scores |= {f"px_{end}": float(px["imagined"][step]) for end, step in ENDS.items()}
    rows = measures.pick(len(test), seed=seed)
    both = model, stages.load_model(ws, compare.plain(name), number)
    found = collapse(*(measures.latents(one, test, rows) for one in both))
    used = ("", *(["heads"] if rewards else ()), *(["decoder"] if decoder else ()))
    stages_of = {"vjepa2": (config.vjepa2.stage1.optim, config.vjepa2.stage2.optim)}
    first, *rest = optims = stages_of.get(name, [config.optim_of(name)])
    facts = {key: value for key, value in result.items() if not isinstance(value, dict)} | {
        # Here, not where another run trained it.
        "environment": config.environment.id,
        "n": result["transitions"]
        | {"test": len(test), "episodes": len(test.episodes), "windows": len(episode)},
        "px": {kind: values.tolist() for kind, values in px.items()},
        "weights": ws.weights(stages.name_of(name, number, kind) for kind in used),
        "mean_reward_r2": r2[MEAN_REWARD],
        "learning_rates": [one.lr for one in optims],
        # Transitions of an update; the second stage reads windows.
        "reads": [first.batch, *(one.batch * config.data.sequence for one in rest)],
        "collapsed": found.pop("collapsed"),
    }
    scores |= {key: NOT_ESTIMABLE if value != value else value for key, value in found.items()}
    return compare.Row(facts, scores, blocks)


def place_blocks(places: Mapping[str, np.ndarray], episode: np.ndarray) -> dict[str, np.ndarray]:
    """Squared px per block of `measures.place_errors`, after one step and the last."""
    found = {f"{kind}_{end}": places[of][:, step] for kind, of in PLACED.items()
             for end, step in ENDS.items() if of in places}  # fmt: skip
    if "permuted" in places:
        found["px_permuted"] = places["permuted"][:, 0]
    return {kind: by_block(values, episode) for kind, values in found.items()}


def score_table(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """The text of each score by model, and of the trivial guess."""
    table = pd.DataFrame(comparison["models"]).map(lambda cell: cell["text"]).rename(columns=LABELS)
    guesses = [compare.floor(comparison, name) for name in table.index]
    shown = [number(one) if isinstance(one, float) else one or "–" for one in guesses]
    table["trivial guess"] = shown
    return table.rename(index=lambda name: name.replace("_", " "))


def comparison_section(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The report's section: scores beside the trivial guesses, and the claims."""
    n, scores = comparison["n"], score_table(comparison)
    windows = f", px on {n['windows']:,} windows of them" if n.get("windows") else ""
    short = scores.loc[[*HEADLINE]].T
    trained = [one for one in comparison["claims"] if one["model"] not in UNTRAINED]
    won = sum(one["verdict"] == "beats" for one in trained)
    pairs, steps = [], max(len(one[0].get("guess", ())) for one in comparison["curves"].values())
    for pair in comparison["matched"]:
        both = zip(pair["pair"], pair["parameters"], strict=True)
        sizes = " and ".join(f"{name} {count:,}" for name, count in both)
        state = "matched" if pair["ok"] else "NOT matched"
        pairs.append(f"Parameters of {sizes}: {100 * pair['gap']:.2f} % apart, {state}.")
    return {
        "title": "World models on pixels",
        "headline": (
            f"{len(comparison['models']) - len(UNTRAINED)} world models and random encoders on "
            f"{comparison['environment']}, training seeds "
            f"{', '.join(map(str, comparison['seeds']))}: {n['training']:,} transitions to learn "
            f"from and {n['test']:,} in {n['episodes']} episodes to be judged on{windows}; "
            f"{won} of {len(trained)} paired comparisons with a trivial guess, permuted actions, a "
            "plainer head, a random encoder or the matched twin are won (95 % intervals, not "
            "corrected for their number)."
        ),
        "sentences": [
            "Mean over seeds [lowest to highest]. State px: root mean squared distance from the "
            "true position to one read by a ridge from the imagined latent, in px of the "
            f"environment's own picture, after one and after {steps} imagined steps (fitted on "
            "true frames of training windows; for a model that draws frames and looks at them, on "
            "such frames); px encoded: the same from true frames. Errors are over the better of "
            "two guesses, nothing changes "
            "(copy-last) and the mean (mean frame); ratios over the best of last position, mean "
            "position and a line through both. Action use: px with another window's actions over "
            "px with its own."
        ],
        "tables": [
            {"columns": ["Model", *short], "rows": short.reset_index().to_numpy().tolist()},
            {"columns": ["Measure", *scores], "rows": scores.reset_index().to_numpy().tolist(),
             "notes": [*pairs, *comparison["notes"]]},
        ],
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


def load_rewards(ws: Workspace) -> dict[str, Any]:
    """What `make_rewards` made for this run."""
    return read_json(stages.find(ws, "rewards") / "rewards.json")


def make_rewards(ws: Workspace, folder: Path) -> None:
    """MSE and R2 of each head of each model, means over seeds (`heads`), and their `claims`."""
    heads, errors, loaded, numbers = [], {}, [], range(ws.config.pixels.seeds)
    for name in COMPARED:
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
    found = {"heads": heads, "claims": compare.claims(errors, loaded)}
    write_json(folder / "rewards.json", found)
