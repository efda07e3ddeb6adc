"""`summary.json`: the one documented schema of a run's results, checked before it is written.

A list `results` holds one entry per `KEY` with exactly the names in `RESULT_FIELDS`; undefined
numbers are null, never 0 and never NaN. Two entries with the same key, an unknown name, a rate that
is not successes / n, or a table without its random and oracle floors are errors (F12, F15).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from hjepa_lib.files import WorkbookError, plain
from hjepa_lib.pixels import tables as pixeltables
from hjepa_lib.pixels.pixelrows import untrained
from hjepa_lib.runs.run import Run

SCHEMA = 1
KEY = ("method", "cost", "protocol", "layouts", "dynamics", "budget", "split")
FLOORS = ("random", "oracle")
DATA_FIELDS = ("source", "recipe", "transitions", "dynamics", "hash")


class SummaryError(WorkbookError):
    """A summary does not follow the schema."""


class Field(NamedTuple):
    """One value of a result entry."""

    kind: type | tuple[type, ...]
    meaning: str
    nullable: bool = False
    low: float = -math.inf
    high: float = math.inf


_NUMBER = (int, float)


def _share(meaning: str, nullable: bool = False) -> Field:
    return Field(_NUMBER, meaning, nullable, 0, 1)


def _positive(meaning: str, nullable: bool = False) -> Field:
    return Field(_NUMBER, meaning, nullable, 0)


RESULT_FIELDS: dict[str, Field] = {
    "method": Field(str, "planner: random, oracle, flat (L1), L1+L2, ..."),
    "cost": Field(str, 'planning cost: latent, distance; "none" for random and oracle'),
    "protocol": Field(str, "p1, p2_seen or p2_heldout"),
    "layouts": Field(str, "rooms of the trials: fixed, train, heldout"),
    "dynamics": Field(str, "collision rule: bounce, blocked, slide"),
    "budget": Field(_NUMBER, "factor on the planner's sample counts", low=0),
    "split": Field(str, "trial file: validation (for choices) or test"),
    "n": Field(int, "trials", low=1),
    "successes": Field(int, "successful trials, by the protocol's own definition", low=0),
    "success_rate": _share("successes / n"),
    "ci95": Field(list, "Wilson 95 % interval [low, high] of success_rate"),
    "success_first_1p41": _share("within sqrt(2) px at any step, t = 0 included"),
    "success_last_1p41": _share("within sqrt(2) px after the last step"),
    "success_first_4p5": _share("within 4.5 px at any step"),
    "success_last_4p5": _share("within 4.5 px after the last step"),
    "cross_wall_rate": _share("eligible trials that end on the goal's side", True),
    "init_plan_cross_wall_rate": _share("the same for the end of the first plan", True),
    "planning_error_mean": _positive("px^2 per coordinate at first success, else at the end"),
    "planning_error_mean_rmse": _positive("square root of planning_error_mean, px"),
    "final_distance_mean": _positive("px to the goal after the last step"),
    "avg_termination_step": _positive("first successful step; failures count steps + 1"),
    "first_crossing_steps": _positive("first step on the other side, mean over crossers", True),
    "efficiency_score": _positive("straight steps to the door / crossing step, 0 if none"),
    "path_efficiency": _share("success * oracle / max(oracle, travelled)"),
    "flops_per_step": _positive("forward FLOPs of planning per environment step", True),
    "model_transitions_per_step": _positive("predicted transitions per environment step", True),
    "seconds_per_episode": _positive("planning time of all steps, batch of n, / n", True),
    "latency_single_episode": _positive("planning seconds of one episode alone", True),
    "planner": Field(dict, "every setting of the planner"),
    "case": Field(str, "digest of all that is played, as in the name of the result file"),
    "world": Field(str, "the world of trials and data, as in data.source"),
    "data": Field(dict, "training data: " + ", ".join(DATA_FIELDS)),
    "weights": Field(dict, "where the weights of each part used come from"),
    "probe_px_encoder": _positive("position error of a linear probe on encodings, px", True),
    "probe_px_predictor": _positive("the same on open-loop predictions, px", True),
    "train_seconds": _positive("wall time of training all parts used", True),
    "parameters": Field(int, "weights of all parts used", True, 0),
    "seed": Field(int, "training seed", low=0),
    "device": Field(str, "cpu, cuda or mps"),
    "trials_hash": Field(str, "SHA-256 of the trial file"),
    "version": Field(str, "version of the library"),
}
"""Every name of a result entry, in the order of the file."""

RUN_FIELDS = ("schema", "run", "profile", "seed", "created", "revision", "device", "precision")


def build(run: Run, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What `run` is, seconds per stage, and its `results`; SummaryError if they are invalid.

    A run of notebooks 10-15 has `pixels`, `grid` and `planning` as well (pixels/tables.py).
    """
    manifest = run.manifest
    summary = {"schema": SCHEMA, "run": run.name}
    summary |= {key: manifest[key] for key in RUN_FIELDS[2:]}
    summary["stage_seconds"] = {
        name: stage["seconds"] for name, stage in manifest["stages"].items()
    }
    summary["notebook_seconds"] = {
        name: entry["seconds"] for name, entry in manifest["notebooks"].items()
    }
    summary["results"] = [plain(result) for result in results]
    summary |= pixeltables.brief(pixeltables.stored(run))
    validate(summary)
    return summary


def validate(summary: Any) -> None:
    """SummaryError, naming entry and field, unless `summary` follows the schema."""
    if not isinstance(summary, dict) or not isinstance(summary.get("results"), list):
        raise SummaryError("a summary is a mapping with a list 'results'")
    for key in RUN_FIELDS:
        if key not in summary:
            raise SummaryError(f"summary lacks {key!r}")
    if summary["schema"] != SCHEMA:
        raise SummaryError(f"summary has schema {summary['schema']!r}, this library reads {SCHEMA}")
    seen: set[tuple] = set()
    for number, entry in enumerate(summary["results"]):
        _check_entry(entry, f"result {number}")
        key = tuple(entry[name] for name in (*KEY, "n"))
        if key in seen:
            raise SummaryError(f"two results share {dict(zip(KEY, key[:-1], strict=True))}")
        seen.add(key)
    _check_pixels(summary)
    methods = {entry["method"] for entry in summary["results"]}
    missing = [floor for floor in FLOORS if floor not in methods]
    if methods and missing:
        raise SummaryError(f"results lack the method {missing[0]!r}: every table needs its floors")


def _check_pixels(summary: dict[str, Any]) -> None:
    """Scores on pixels state seeds and intervals and stand beside their floors (F12, F15)."""
    for number, entry in enumerate(summary.get("planning", [])):
        _check_entry(entry, f"planning row {number}")
    pixels = summary.get("pixels")
    if pixels is None:
        return
    for key in ("seeds", "n", "models", "baselines", "claims"):
        if not pixels.get(key):
            raise SummaryError(f"the comparison on pixels lacks {key!r}")
    for model in pixels["models"]:
        floor = untrained(model) if pixels.get("schema", 1) > 1 else "random"  # 1 had no other
        if floor not in pixels["models"]:
            raise SummaryError(f"the comparison on pixels lacks the random encoder {floor!r}")
    for model, cells in pixels["models"].items():
        for name, cell in cells.items():
            if "loss" in name:
                raise SummaryError(f"{model}: {name} is a loss in a latent of its own, not a score")
            if cell["seeds"] != len(pixels["seeds"]) or not cell["text"]:
                raise SummaryError(f"{model}: {name} does not speak of every seed")
            if cell["mean"] is not None and cell["seeds"] > 1 and cell["low"] is None:
                raise SummaryError(f"{model}: {name} has no interval")


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise SummaryError(f"{where} is not a mapping")
    for name in [*RESULT_FIELDS, *entry]:
        if name not in entry:
            raise SummaryError(f"{where} lacks {name!r}")
        if name not in RESULT_FIELDS:
            raise SummaryError(f"{where} has the unknown field {name!r}")
        _check_value(entry[name], RESULT_FIELDS[name], f"{where}: {name}")
    low, rate, high = *entry["ci95"][:1], entry["success_rate"], *entry["ci95"][1:]
    if entry["successes"] > entry["n"] or abs(rate - entry["successes"] / entry["n"]) > 1e-9:
        raise SummaryError(
            f"{where}: success_rate {rate} is not {entry['successes']} / {entry['n']}"
        )
    if not -1e-9 <= low <= rate + 1e-9 <= high + 2e-9 <= 1 + 3e-9:
        raise SummaryError(f"{where}: ci95 [{low}, {high}] does not hold success_rate {rate}")
    absent = [name for name in DATA_FIELDS if name not in entry["data"]]
    if absent:
        raise SummaryError(f"{where}: data lacks {absent[0]!r}")


def _check_value(value: Any, field: Field, where: str) -> None:
    if value is None and field.nullable:
        return
    if isinstance(value, bool) or not isinstance(value, field.kind):
        raise SummaryError(f"{where} is {value!r} of the wrong type")
    if isinstance(value, _NUMBER) and not (
        math.isfinite(value) and field.low <= value <= field.high
    ):
        raise SummaryError(f"{where} is {value!r}, outside [{field.low}, {field.high}]")
    if field.kind is list and not (
        len(value) == 2 and all(isinstance(end, _NUMBER) and math.isfinite(end) for end in value)
    ):
        raise SummaryError(f"{where} is {value!r}, not [low, high]")
