"""Small studies beside a run: look-ahead, JEPA's variants, auxiliary losses.

They are ordinary runs, `<run>-variants/<name>` or `<study>/<name>`, and resume like any run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hjepa_lib.config import Config, ConfigError, flatten, from_dict, read_yaml
from hjepa_lib.config.pixels import AuxiliaryConfig, PixelsConfig
from hjepa_lib.files import WorkbookError, read_json, write_atomic, write_json
from hjepa_lib.pixels import stages
from hjepa_lib.pixels.checks import health
from hjepa_lib.pixels.compare import sentences
from hjepa_lib.pixels.measures import latent_errors, pick
from hjepa_lib.pixels.models import build_pixel_model
from hjepa_lib.pixels.results import reward_report
from hjepa_lib.pixels.training import fit
from hjepa_lib.pixels.two_stages import describe
from hjepa_lib.pixels.worlds import DRIFT_ID, PUSH_ID
from hjepa_lib.runs.keys import Stage
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.run import outputs_root
from hjepa_lib.runs.workspace import Workspace, open_run
from hjepa_lib.training.loop import Report

ROWS = 512  # validation transitions whose latents are described


# --- does looking ahead help to predict rewards? (13) -------------------------------------------
WORLDS = {"drift": DRIFT_ID, "push": PUSH_ID}
"""Reward of the next state, and the control: the same pictures, a reward of state and action."""
STUDIED = ("enc_dec_jepa", "jepa", "vjepa2", "random")
"""The models with an imagined latent, and a frozen untrained encoder."""
STEPS = 25  # of an episode: many short ones, for targets differ from episode to episode


def study_config(config: Config, world: str) -> Config:
    """The run's settings with a study world and its data; base budgets at most `study_updates`."""
    pixels, reward = config.pixels, config.pixels.reward
    steps = max(STEPS, pixels.data.sequence)
    changes: dict[str, Any] = {
        "environment.id": WORLDS[world], "environment.max_steps": steps,
        "environment.grayscale": True, "environment.action_repeat": 0,
        "environment.frame_skip": 0, "data.method": "random", "data.path": "",
        "data.transitions": reward.study_transitions,
        "data.episodes": -(-reward.study_transitions // steps), "seeds": reward.seeds,
    }  # fmt: skip
    for key in ("optim", "vjepa2.stage1.optim", "vjepa2.stage2.optim"):
        own = flatten(config)[f"pixels.{key}.updates"]
        changes[f"{key}.updates"] = min(own, reward.study_updates or own)
    return config.override({f"pixels.{key}": value for key, value in changes.items()})


def look_ahead(ws: Workspace) -> Stage:
    """The stage `lookahead`: base models trained once in Drift, their heads in both worlds.

    It is shaped by all that shapes those heads, down to weights in files or in another run (I8).
    """
    about = {}
    for world in WORLDS:
        config = study_config(ws.config, world)
        made = stages.pixel_stages(config)
        about[world] = [ws.key(made[name], config) for name in _heads(config)]
    return Stage("lookahead", make_look_ahead, folder="pixels/lookahead", recipe=2, about=about)


def _heads(config: Config) -> list[str]:
    return [
        stages.name_of(name, n, "heads") for n in range(config.pixels.seeds) for name in STUDIED
    ]


def load_look_ahead(ws: Workspace) -> dict[str, dict[str, Any]]:
    """A `results.reward_report` by world, made here where it is missing; the report shows it."""
    found = read_json(ws.obtain(look_ahead(ws)) / "lookahead.json")
    title = "Look-ahead reward predictor against plain reward head"
    lists = {WORLDS[world]: sentences(report["claims"]) for world, report in found.items()}
    leave_section(ws.run, "25-lookahead", {"title": title, "lists": lists})
    return found


def make_look_ahead(ws: Workspace, folder: Path) -> Iterator[Report]:
    """A `results.reward_report` per world, which differ in their reward alone.

    No base model sees a reward, so the control takes those of Drift as they are.
    """
    sides: dict[str, Workspace] = {}
    for world in WORLDS:
        config = study_config(ws.config, world)
        if sides:
            config = config.override({"pixels.loading.run": str(sides["drift"].run.path)})
        name = f"{ws.run.name.split('/')[0]}-variants/lookahead-{world}"
        sides[world] = open_run(name, config, ws.run.path.parent, ws.run)
    for one in sides.values():
        for name in _heads(one.config):
            yield from stages.train(one, name.removeprefix("heads_"), name)
    reports = {world: reward_report(one, STUDIED) for world, one in sides.items()}
    write_json(folder / "lookahead.json", reports)


# --- what target mode and auxiliary loss do to JEPA's latents (11) ------------------------------
VARIANTS = (
    ("default", "vicreg"), ("vjepa2", "vicreg"), ("none", "vicreg"), ("default", "barlow_twins"),
    ("default", "dino"), ("vjepa2", "none"),
)  # fmt: skip
"""(target mode, auxiliary loss); the last has EMA and stop-gradient alone against collapse."""


def vary(config: PixelsConfig, target: str, auxiliary: str) -> PixelsConfig:
    """`config` with another target mode and auxiliary loss."""
    jepa = dataclasses.replace(config.jepa, target=target)
    loss = dataclasses.replace(config.auxiliary, kind=auxiliary)
    return dataclasses.replace(config, jepa=jepa, auxiliary=loss)


def try_variants(ws: Workspace, updates: int) -> Iterator[dict[str, Any]]:
    """Train each variant for `updates` updates from the same start and yield what it became.

    target, auxiliary, `describe` its latents, their health, `latent_errors` (predicted, stay).
    """
    config, seed = ws.config.pixels, ws.config.seed
    data, validation = stages.make_transitions(ws)
    batch = validation[pick(len(validation), ROWS)].to(ws.device)
    optim = dataclasses.replace(config.optim_of("jepa"), updates=updates)
    for target, auxiliary in VARIANTS:
        torch.manual_seed(seed)
        model = build_pixel_model("jepa", vary(config, target, auxiliary), data).to(ws.device)
        for _ in fit(model, data, None, optim, seed=seed, precision=ws.precision):
            pass
        model.eval()
        with torch.no_grad():
            # In `default` the encoder that learns is the online one; its slow copy lags behind.
            z = model.encode_online(batch.state).cpu()
        own = {"target": target, "auxiliary": auxiliary, **describe(z), "health": health(z)}
        own["predicted"], own["stay"] = latent_errors(model, batch)
        yield own


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
        keys = set(entry) if isinstance(entry, dict) else set()
        if not {"name", "type"} <= keys <= {"name", "type", "params"} or entry["name"] in found:
            raise ConfigError(
                f"an auxiliary loss is {{name, type, params}} with a name of its own, got {entry!r}"
            )
        params = {"kind": entry["type"], **entry.get("params", {})}
        found[entry["name"]] = from_dict(AuxiliaryConfig, params)
    return found


def run_losses(study: str, losses: dict[str, AuxiliaryConfig], config: Config) -> pd.DataFrame:
    """Train and score one JEPA per loss, everything else equal: `rank_rows`, in `summary.json`.

    The ranking goes by downstream numbers, which have one unit. A loss whose training fails is
    reported and ranked last.
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
    model, (_, validation) = stages.load_model(ws, "jepa", 0), stages.make_transitions(ws)
    with torch.no_grad():
        z = model.encode(validation[torch.arange(min(ROWS, len(validation)))].state.to(ws.device))
    # The spread must be read next to the errors of state decoder and reward MLP.
    return describe(z.cpu()) | {
        "downstream/reconstruction_mse": stages.load_result(ws, "decoder_jepa_s0")["frames"]["mse"],
        "downstream/reward_mse": stages.load_heads(ws, "jepa", 0)[1]["heads"]["reward_mlp"]["mse"],
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
