"""Studies beside a run: labels that looking ahead saves, auxiliary losses, cells of experiments."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hjepa_lib.config import Config, ConfigError, from_dict, leaves, read_yaml
from hjepa_lib.config.pixels import MODELS, AuxiliaryConfig
from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, seeds_for, student
from hjepa_lib.files import WorkbookError, read_json, write_atomic, write_json
from hjepa_lib.pixels import results, stages, worlds
from hjepa_lib.pixels.compare import BLOCKED, NOT_APPLICABLE, pack, ratio_of, score
from hjepa_lib.pixels.measures import MOST, latents, pick, place_errors, rms
from hjepa_lib.pixels.training import HEADS, RewardHead, encode, fit_head
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.keys import Stage, made_of
from hjepa_lib.runs.machine import one_thread
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.run import outputs_root
from hjepa_lib.runs.workspace import Workspace, open_run
from hjepa_lib.training.loop import Report
from hjepa_lib.training.probes import collapse

ROWS = 512  # choice transitions whose latents are described


# --- does looking ahead save labels? (13) -------------------------------------------------------
STUDIED = ("enc_dec_jepa", "jepa", "vjepa2")
"""The models with an imagined latent."""
GAIN = 0.05  # of R2, which a study should be able to show
PAYS = ("next state", "present state")
"""What a row is labelled with: its reward, and as control that of the row before."""


def label_study(ws: Workspace, models: Sequence[str] = STUDIED) -> list[Stage]:
    """A stage per trained model: reward heads of it, frozen, from ever more labelled rows."""
    made, found = stages.pixel_stages(ws.config), []
    for number, name in itertools.product(range(ws.config.pixels.seeds), models):
        own = stages.name_of(name, number, "labels")
        reads = (made[stages.DATA], made[stages.name_of(name, number)])
        make = partial(make_labels, name=name, number=number)
        found.append(Stage(own, make, ("pixels.reward",), reads, folder=f"pixels/{own}"))
    return found


def load_labels(ws: Workspace) -> dict[str, Any]:
    """`rows` of the study (pays, model, head, labels, seed, r2) and its `sentences`."""
    rows = _label_rows(ws, label_study(ws))
    said = label_sentences(rows)
    lists = {"Look-ahead against plain heads, by labels": said}
    leave_section(ws.run, "25-labels", {"title": "Labels that looking ahead saves", "lists": lists})
    return {"rows": rows, "sentences": said}


def _label_rows(ws: Workspace, study: list[Stage]) -> list[dict[str, Any]]:
    made = [read_json(ws.obtain(stage) / "labels.json") for stage in study]
    return [row for one in made for row in one["rows"]]


@made_of(stages.pixel_stages)
def score_labels(ws: Workspace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The study's rows of `settings["models"]` (default: all), in an experiment of more seeds."""
    rows = _label_rows(ws, label_study(ws, settings.get("models", STUDIED)))
    return [row | {"learner": row.pop("model")} for row in rows]


def make_labels(ws: Workspace, folder: Path, name: str, number: int) -> Iterator[Report]:
    """R2 on test rows of each head from N labelled rows, drawn alike for all models; a quarter as
    many labelled ones choose its weights, and have an R2, too (`r2_choice`)."""
    config, rows, parts = ws.config.pixels.reward, [], stages.make_transitions(ws)
    model, seed = stages.load_model(ws, name, number), ws.config.seed + number
    labelled = [_labelled(data) for data in parts]
    features = [encode(model, data) for data in parts]
    for at, pays in enumerate(PAYS):
        train, choice, test = (
            one.rows(kept)._replace(reward=labels[at].to(one.latent.device))
            for one, (kept, labels) in zip(features, labelled, strict=True)
        )
        # Each once: a case that is there twice looks like two seeds.
        counts = {min(one, len(train.reward)): one for one in config.labels}
        for count, kind in itertools.product(counts.values(), HEADS):
            few, fewer = (
                part.rows(pick(len(part.reward), most, seed))
                for part, most in ((train, count), (choice, count // 4))
            )
            work = fit_head(kind, few, fewer, config, seed)
            with one_thread():
                yield from work
            work.load_best()
            one = {"pays": pays, "model": name, "head": kind, "labels": len(few.reward)}
            one |= {"seed": seed, "r2": _r2(work.module, test.inputs(kind), test.reward)}
            one["r2_choice"] = _r2(work.module, choice.inputs(kind), choice.reward)
            rows.append(one)
    write_json(folder / "labels.json", {"rows": rows})


def _labelled(data: Transitions) -> tuple[Tensor, Tensor]:
    """The rows with one before in their episode (K,), and their labels of `PAYS` (2, K)."""
    kept = (data.now != data.origin).nonzero()[:, 0]
    return kept, torch.stack([data.reward[kept], data.reward[kept - 1]])


@torch.no_grad()
def _r2(head: RewardHead, inputs: Tensor, reward: Tensor) -> float:
    """NaN where rewards are all alike."""
    said = head.eval()(inputs).cpu().numpy()
    return score(said, reward.cpu().numpy())["r2"] if reward.var() > 0 else math.nan


def label_sentences(rows: list[dict[str, Any]]) -> list[str]:
    """The gain of R2 by looking ahead, mean over seeds with Student's interval, of each case; the
    wider spread over seeds, of test or choice rows, tells how many would show `GAIN`."""
    table, found = pd.DataFrame(rows).set_index(["pays", "model", "labels", "seed"]), []
    heads = {kind: one[["r2", "r2_choice"]].astype(float) for kind, one in table.groupby("head")}
    for against in HEADS[::2]:
        gain = (heads["larp"] - heads[against]).groupby(level=[0, 1, 2])
        for (pays, model, labels), both in gain:
            one = both["r2"]
            known = one.notna().all()  # rewards may be all alike
            mean = f"{one.mean():+.3f}" if known else NOT_ESTIMABLE
            text = f"{pays}, {model}, {labels:,} labels: R2 {mean} over {against}"
            if known and len(one) > 1:
                needed = seeds_for(GAIN, both.std().max(), len(one))
                text += " ({:+.3f} to {:+.3f}; seeds: {}, ".format(*student(one), len(one))
                text += f"{needed:,} would show {GAIN})"
            found.append(text.replace("_", " "))
    return found


# --- JEPA's variants: who learns from what (11); worth in configs/pixel_ablations.yaml ----------
VARIANTS = (
    ("default", "vicreg"), ("vjepa2", "vicreg"), ("none", "vicreg"), ("default", "barlow_twins"),
    ("default", "dino"), ("vjepa2", "none"),
)  # fmt: skip
"""(target mode, auxiliary loss); the last has EMA and stop-gradient alone against collapse."""


# --- auxiliary losses side by side (MET-3) ------------------------------------------------------
LOSSES = ("vicreg", "barlow_twins", "dino")


def read_losses(path: Path | None) -> dict[str, AuxiliaryConfig]:
    """{name: settings} of a YAML list of {name, type, params}; without a file `LOSSES`."""
    entries: Any = [{"name": kind, "type": kind} for kind in LOSSES]
    if path is not None:
        entries = read_yaml(path, "the file of auxiliary losses")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} must hold a list of auxiliary losses {{name, type, params}}")
    found: dict[str, AuxiliaryConfig] = {}
    for entry in entries:
        whole = {"params": {}} | entry if isinstance(entry, dict) else {}
        name, params = str(whole.get("name")), whole.get("params")
        fits = whole.keys() == {"name", "type", "params"} and isinstance(params, dict)
        if not fits or name in found:
            raise ConfigError(
                f"an auxiliary loss is {{name, type, params}} with a name of its own, got {entry!r}"
            )
        found[name] = from_dict(AuxiliaryConfig, {"kind": whole["type"]} | params)
    return found


def run_losses(study: str, losses: dict[str, AuxiliaryConfig], config: Config) -> pd.DataFrame:
    """Train and score one JEPA per loss, all else equal, in runs `<study>/<name>`: `rank_rows`.

    The choice part scores them. A loss whose training fails is reported and ranked last.
    """
    root, rows = outputs_root(), []
    for name, auxiliary in losses.items():
        values = dataclasses.asdict(auxiliary).items()
        changes = {f"pixels.auxiliary.{key}": value for key, value in values}
        ws = open_run(f"{study}/{name}", config.override(changes), root)
        row: dict[str, Any] = {"name": name, "type": auxiliary.kind, "status": "ok"}
        try:
            row |= _describe(ws)
        except WorkbookError as error:  # the others still run
            row["status"] = str(error)
        rows.append(row)
    table = rank_rows(rows)
    write_json(root / study / "summary.json", {"study": study, "rows": table.to_dict("records")})
    write_atomic(root / study / "summary.txt", summary_text(table))
    return table


def _describe(ws: Workspace) -> dict[str, float]:
    model, random = (stages.load_model(ws, name, 0) for name in ("jepa", "random"))
    train, choice, _ = stages.make_transitions(ws)
    rows = torch.arange(min(ROWS, len(choice)))
    found = collapse(*(latents(one, choice, rows) for one in (model, random)))
    # The spread must be read next to the errors of state decoder and reward MLP.
    features, settings = (encode(model, part) for part in (train, choice)), ws.config.pixels.reward
    work = fit_head("reward_mlp", *features, settings, ws.config.seed)
    for _ in work:
        pass
    return found | {
        "downstream/reconstruction_mse": stages.load_result(ws, "decoder_jepa_s0")["best_loss"],
        "downstream/reward_mse": work.best_loss,
    }


def rank_rows(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows best first, by `mean_rank` over the downstream numbers, lower is better.

    Rows that lack a finite number have no rank and stand at the end.
    """
    table = pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan)
    scores = table.filter(like="downstream/").astype(float)
    table["mean_rank"] = scores.dropna().rank().mean(axis=1)
    table["rank"] = table["mean_rank"].rank(method="min")
    return table.sort_values("mean_rank", kind="stable")


def summary_text(table: pd.DataFrame) -> str:
    """`rank_rows` as aligned lines; what is not a finite number reads "-"."""
    numbers = sorted(set(table) - {"rank", "name", "type", "status"})
    table = table[["rank", "name", "type", *numbers, "status"]]
    return table.to_string(index=False, na_rep="-", float_format="{:.4g}".format) + "\n"


# --- a cell of an experiment file ----------------------------------------------------------------
MEANS = ("frame", "copy_last_frame", "mean_frame", "latent", "copy_last_latent", "mean_latent")
"""Errors per transition that a row has the mean of."""
SEEN = ("px_first", "px_last", "frame_error", "latent_error")
"""Scores of training episodes."""


@made_of(stages.pixel_stages)
def score_models(ws: Workspace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Train `settings["models"]` (default: all) and score each on test episodes: a row per model.

    px by step and kind of `measures.place_errors`, of each number of the position as well where
    there are more than two; ratios to the better guess with intervals over blocks of episodes,
    which are `errors.*`. `draw: false` trains no decoder for models without one; `training: true`
    scores training episodes, too (`training.*`). `judged` (settings by dotted name) collects other
    episodes, which read places, make guesses and score: the same for models of less data.
    """
    rows, draw, judge = [], settings.get("draw", True), ws
    if changes := settings.get("judged"):
        here = ws.run.path
        judge = open_run(f"{here.parent.name}/{here.name}.judged", ws.config.override(changes),
                         here.parent.parent)  # fmt: skip
    train, _, test = stages.make_transitions(judge)
    numbers = 0 if train.position is None else train.position.shape[1]
    for name in settings.get("models", MODELS):
        begun = {"rewards": False, "draw": draw}
        found = results.measure_row(ws, name, 0, **begun, known=train, scored=test)
        facts, used = found.facts, found.facts["weights"]
        row = {key: facts[key] for key in ("environment", "collapsed", "skipped", "n")}
        row["learner"] = name
        row |= {key: value for key, value in found.scores.items() if value != NOT_APPLICABLE}
        row |= _placed(facts["px"], found.errors)
        row |= {kind: float(found.errors[kind].mean()) for kind in MEANS if kind in found.errors}
        row["seconds"] = row.pop("train_seconds")
        row["minutes"] = sum(stages.load_result(ws, one)["seconds"] for one in used) / 60
        for one in used:
            said = {"parameters": stages.load_result(ws, one)["parameters"]["total"]} | used[one]
            row[f"weights.{'decoder' if one.startswith('decoder') else 'model'}"] = said
        if world := worlds.ceilings(test.world):
            row["ceiling_px"] = world["px"]
        blocks = {kind: one for kind, one in found.errors.items() if kind in BLOCKED}
        for column in range(numbers if numbers > 2 else 0):
            one, two = (
                dataclasses.replace(part, position=part.position[:, [column]])
                for part in (train, test)
            )
            model, most = stages.load_model(ws, name, 0), ws.config.pixels.data.sequence
            places, episode = place_errors(model, one, two, ws.config.seed, most)
            own = results.place_blocks(places, episode)
            row |= _placed({kind: rms(errors) for kind, errors in places.items()}, own, column)
            blocks |= {f"{kind}_{column}": errors for kind, errors in own.items()}
        if settings.get("training"):
            own = stages.make_transitions(ws).train
            seen = own.select(own.episodes[: MOST * len(own.episodes) // len(own) + 1])
            said = results.measure_row(ws, name, 0, **begun, known=train, scored=seen).scores
            row["training"] = {key: said[key] for key in SEEN if said[key] != NOT_APPLICABLE}
        rows.append(leaves(row) | {f"errors.{kind}": pack(one) for kind, one in blocks.items()})
    return rows


def _placed(
    px: Mapping[str, Any], blocks: Mapping[str, np.ndarray], column: int | None = None
) -> dict[str, float]:
    """px by kind, and what the model's are over the better guess's, after one step and the last."""
    mark, row = "" if column is None else f"_{column}", {}
    for end, step in results.ENDS.items():
        row |= {f"{kind}_{end}{mark}": float(values[step]) for kind, values in px.items()}
        if f"px_{end}" in blocks:
            said = ratio_of(blocks[f"px_{end}"], blocks[f"px_guess_{end}"], power=0.5)
            row |= {f"ratio_{end}{mark}{of}": value for of, value in said.items()}
    return row
