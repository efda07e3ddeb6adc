"""Small studies beside a run, of ordinary runs: look-ahead, JEPA's variants, auxiliary losses.

The runs are `<run>-variants/<name>` or `<study>/<name>`, with the settings of their run except for
those named here; they resume like any run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hjepa_lib.config import Config, ConfigError, from_dict, read_yaml
from hjepa_lib.config.pixels import AuxiliaryConfig, PixelsConfig
from hjepa_lib.files import WorkbookError, read_json, write_atomic, write_json
from hjepa_lib.pixels.checks import collapse_ratio, health
from hjepa_lib.pixels.compare import sentences
from hjepa_lib.pixels.measures import latent_errors, pick
from hjepa_lib.pixels.models import build_pixel_model
from hjepa_lib.pixels.results import reward_report
from hjepa_lib.pixels.stages import (
    load_heads,
    load_model,
    load_result,
    make_transitions,
    train,
)
from hjepa_lib.pixels.training import fit
from hjepa_lib.pixels.worlds import DRIFT_ID, PUSH_ID
from hjepa_lib.runs.keys import Stage
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.run import Run, outputs_root
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report
from hjepa_lib.training.probes import effective_rank

ROWS = 512
"""Validation transitions whose latents are described."""


def open_beside(name: str, config: Config, root: Path, like: Run | None = None) -> Workspace:
    """The run `name` with these settings: a new one, or the one made before."""
    if not Run.exists(name, root):
        return Workspace("study", Run.create(name, config, root, like))
    run = Run.open(name, root)
    run.require(config)
    return Workspace("study", run)


def spread_of(z: Tensor) -> dict[str, float]:
    """Mean standard deviation of a dimension, effective rank and collapse ratio of (B, D)."""
    spread = {"std": z.std(dim=0).mean().item(), "effective_rank": effective_rank(z)}
    return spread | {"collapse_ratio": collapse_ratio(z)}


# --- does looking ahead help to predict rewards? (13) -------------------------------------------
WORLDS = {"drift": DRIFT_ID, "push": PUSH_ID}
"""Reward of the next state, and the control: the same pictures, a reward of state and action."""
STUDIED = ("enc_dec_jepa", "jepa", "vjepa2", "random")
"""The models with an imagined latent, and a frozen untrained encoder."""
STEPS = 25
"""Environment steps of an episode: many short ones, for targets differ from episode to episode."""


def study_config(config: Config, world: str) -> Config:
    """The run's settings with a study world and its data; base budgets at most `study_updates`."""
    pixels, most = config.pixels, config.pixels.reward.study_updates
    steps = max(STEPS, pixels.data.sequence)
    changes: dict[str, Any] = {
        "environment.id": WORLDS[world],
        "environment.max_steps": steps,
        "environment.grayscale": True,
        "environment.action_repeat": 0,
        "environment.frame_skip": 0,
        "data.method": "random",
        "data.path": "",
        "data.transitions": pixels.reward.study_transitions,
        "data.episodes": -(-pixels.reward.study_transitions // steps),
        "seeds": pixels.reward.seeds,
    }
    for key, section in (
        ("optim", pixels), ("vjepa2.stage1.optim", pixels.vjepa2.stage1),
        ("vjepa2.stage2.optim", pixels.vjepa2.stage2),
    ):  # fmt: skip
        own = section.optim.updates
        changes[f"{key}.updates"] = min(own, most or own)
    return config.override({f"pixels.{key}": value for key, value in changes.items()})


def look_ahead(ws: Workspace) -> Stage:
    """The stage `lookahead`: base models trained once in Drift, their heads in both worlds."""
    shaping = ("encoder", "decoder", "jepa", "auxiliary", "action_dim", "optim", "reward",
               "vjepa2", "data", "environment")  # fmt: skip
    names = tuple(f"pixels.{name}" for name in shaping)
    return Stage("lookahead", make_look_ahead, names, folder="pixels/lookahead", recipe=2)


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
        sides[world] = open_beside(name, config, ws.run.path.parent, ws.run)
    for one in sides.values():
        for number in range(one.config.pixels.seeds):
            for name in STUDIED:
                yield from train(one, f"{name}_s{number}", f"heads_{name}_s{number}")
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

    target, auxiliary, `spread_of` its latents, their health, `latent_errors` (predicted, stay).
    """
    config, seed = ws.config.pixels, ws.config.seed
    data, validation = make_transitions(ws)
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
        errors = dict(zip(("predicted", "stay"), latent_errors(model, batch), strict=True))
        own = {"target": target, "auxiliary": auxiliary, **spread_of(z), "health": health(z)}
        yield own | errors


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


def run_losses(
    study: str, losses: dict[str, AuxiliaryConfig], config: Config, root: Path | None = None
) -> list[dict[str, Any]]:
    """Train and score one JEPA per loss, everything else equal; rows of `summary.json`, best first.

    The ranking goes by downstream numbers, which have one unit. A loss whose training fails is
    reported and ranked last.
    """
    root, rows = root or outputs_root(), []
    for name, auxiliary in losses.items():
        values = dataclasses.asdict(auxiliary).items()
        changes = {f"pixels.auxiliary.{key}": value for key, value in values}
        ws = open_beside(f"{study}/{name}", config.override(changes), root)
        row: dict[str, Any] = {"name": name, "type": auxiliary.kind, "status": "ok"}
        try:
            row |= _describe(ws)
        except WorkbookError as error:  # the others still run
            row["status"] = str(error)
        rows.append(row)
    rows = rank_rows(rows)
    write_json(root / study / "summary.json", {"study": study, "rows": rows})
    write_atomic(root / study / "summary.txt", summary_text(rows))
    return rows


def _describe(ws: Workspace) -> dict[str, float]:
    """Errors of state decoder and reward MLP, and the spread that they must be read next to."""
    model, (_, validation) = load_model(ws, "jepa", 0), make_transitions(ws)
    with torch.no_grad():
        z = model.encode(validation[torch.arange(min(ROWS, len(validation)))].state.to(ws.device))
    reward = load_heads(ws, "jepa", 0)[1]["heads"]["reward_mlp"]
    return spread_of(z.cpu()) | {
        "downstream/reconstruction_mse": load_result(ws, "decoder_jepa_s0")["frames"]["mse"],
        "downstream/reward_mse": reward["mse"],
    }


def rank_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `rank` 1, 2, ..., by mean rank over the downstream numbers, lower is better.

    Rows that lack a finite number have rank None and stand at the end.
    """
    scores = pd.DataFrame(rows).filter(like="downstream/").astype(float)
    whole = np.isfinite(scores).all(axis=1) & (scores.shape[1] > 0)
    means = scores[whole].rank().mean(axis=1).sort_values(kind="stable")
    ranks = means.rank(method="min").astype(int).to_dict()
    order = [*ranks, *whole.index[~whole]]
    return [rows[n] | {"mean_rank": means.to_dict().get(n), "rank": ranks.get(n)} for n in order]


def summary_text(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned lines; what is not a finite number reads "-"."""
    table = pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan)
    numbers = sorted(set(table) - {"rank", "name", "type", "status"})
    table = table[["rank", "name", "type", *numbers, "status"]]
    return table.to_string(index=False, na_rep="-", float_format="{:.4g}".format) + "\n"
