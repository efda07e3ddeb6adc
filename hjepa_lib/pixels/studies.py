"""Small studies beside a run, of ordinary runs: look-ahead, JEPA's variants, auxiliary losses.

The runs are `<run>-variants/<name>` (or `<study>/<name>`), with the settings of their run except
for those named here; they resume like any run, and the run itself stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from hjepa_lib.config import Config, ConfigError, from_dict, read_yaml
from hjepa_lib.config.pixels import AuxiliaryConfig, PixelsConfig
from hjepa_lib.files import WorkbookError, read_json, write_atomic, write_json
from hjepa_lib.pixels.diagnostics import collapse_ratio, health
from hjepa_lib.pixels.measures import latent_errors, pick
from hjepa_lib.pixels.models import build_pixel_model
from hjepa_lib.pixels.results import reward_rows
from hjepa_lib.pixels.stages import (
    load_heads,
    load_model,
    load_result,
    load_transitions,
    make_transitions,
    train,
)
from hjepa_lib.pixels.tables import look_ahead_section
from hjepa_lib.pixels.training import fit
from hjepa_lib.pixels.worlds import DRIFT_ID, PUSH_ID
from hjepa_lib.runs.keys import Stage
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.run import Run, outputs_root
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report
from hjepa_lib.training.probes import effective_rank

ROWS = 512  # validation transitions whose latents are described


def side(ws: Workspace, name: str, config: Config) -> Workspace:
    """The run `<run>-variants/<name>` with these settings: a new one, or the one made before."""
    return _open(f"{ws.run.name.split('/')[0]}-variants/{name}", config, ws.run.path.parent, ws.run)


def _open(name: str, config: Config, root: Path, like: Run | None = None) -> Workspace:
    if not Run.exists(name, root):
        return Workspace("study", Run.create(name, config, root, like))
    run = Run.open(name, root)
    run.require(config)
    return Workspace("study", run)


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
    stages = {"": pixels, "vjepa2.stage1.": pixels.vjepa2.stage1}
    for key, section in (stages | {"vjepa2.stage2.": pixels.vjepa2.stage2}).items():
        own = section.optim.updates
        changes[f"{key}optim.updates"] = min(own, most) if own and most else own
    return config.override({f"pixels.{key}": value for key, value in changes.items()})


def look_ahead(ws: Workspace) -> Stage:
    """The stage `lookahead`: base models trained once in Drift, their heads in both worlds."""
    shaping = ("encoder", "decoder", "jepa", "auxiliary", "action_dim", "optim", "reward",
               "vjepa2", "data", "environment")  # fmt: skip
    names = tuple(f"pixels.{name}" for name in shaping)
    return Stage("lookahead", make_look_ahead, names, folder="pixels/lookahead")


def load_look_ahead(ws: Workspace) -> dict[str, list[dict[str, Any]]]:
    """Rows of the study by world, made here where they are missing; the report shows them."""
    rows = read_json(ws.obtain(look_ahead(ws)) / "lookahead.json")
    leave_section(ws.run, "25-lookahead", look_ahead_section(rows))
    return rows


def make_look_ahead(ws: Workspace, folder: Path) -> Iterator[Report]:
    """Rows of `results.reward_comparison` per world; ConfigError if more than the reward differs.

    No base model sees a reward, so the control takes those of Drift as they are.
    """
    sides = {}
    for world in WORLDS:
        config = study_config(ws.config, world)
        if sides:
            config = config.override({"pixels.loading.run": str(sides["drift"].run.path)})
        sides[world] = side(ws, f"lookahead-{world}", config)
    first, second = (load_transitions(one) for one in sides.values())
    for name in ("frames", "now", "after", "origin", "action", "episode"):
        if not torch.equal(getattr(first, name), getattr(second, name)):
            raise ConfigError(
                f"the study's worlds no longer share their pictures and actions: {name} differs"
            )
    for one in sides.values():
        for number in range(one.config.pixels.seeds):
            for name in STUDIED:
                yield from train(one, f"{name}_s{number}")
                yield from train(one, f"heads_{name}_s{number}")
    rows = {world: reward_rows(one, STUDIED) for world, one in sides.items()}
    write_json(folder / "lookahead.json", rows)


# --- what target mode and auxiliary loss do to JEPA's latents (11) ------------------------------
VARIANTS = (
    ("default", "vicreg"), ("vjepa2", "vicreg"), ("none", "vicreg"), ("default", "barlow_twins"),
    ("default", "dino"), ("vjepa2", "none"),
)  # fmt: skip
"""(target mode, auxiliary loss); the last has EMA and stop-gradient alone against collapse."""


class Variant(NamedTuple):
    """One short training, measured on held-out transitions; errors as in `LatentErrors`."""

    target: str
    auxiliary: str
    std: float  # mean over dimensions
    effective_rank: float
    collapse_ratio: float
    health: float
    predicted: float
    stay: float


def vary(config: PixelsConfig, target: str, auxiliary: str) -> PixelsConfig:
    """`config` with another target mode and auxiliary loss."""
    jepa = dataclasses.replace(config.jepa, target=target)
    loss = dataclasses.replace(config.auxiliary, kind=auxiliary)
    return dataclasses.replace(config, jepa=jepa, auxiliary=loss)


def try_variants(ws: Workspace, updates: int) -> Iterator[Variant]:
    """Train each variant for `updates` updates from the same start and yield what it became."""
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
        spread = z.std(dim=0).mean().item(), float(effective_rank(z)), collapse_ratio(z)
        yield Variant(target, auxiliary, *spread, health([z]), *latent_errors(model, batch))


# --- auxiliary losses side by side (MET-3) ------------------------------------------------------
LOSSES = ("vicreg", "barlow_twins", "dino")


def read_losses(path: Path | None) -> dict[str, AuxiliaryConfig]:
    """{name: settings} of a YAML list of {name, type, params}; without a file `LOSSES`."""
    if path is None:
        entries: Any = [{"name": kind, "type": kind} for kind in LOSSES]
    else:
        entries = read_yaml(path, "the file of auxiliary losses")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path} must hold a list of auxiliary losses {{name, type, params}}")
    if not entries:
        raise ConfigError("the list of auxiliary losses is empty")
    found: dict[str, AuxiliaryConfig] = {}
    for entry in entries:
        if not {"name", "type"} <= set(entry) <= {"name", "type", "params"}:
            raise ConfigError(f"an auxiliary loss is {{name, type, params}}, got {entry!r}")
        if entry["name"] in found:
            raise ConfigError(f"two auxiliary losses are called {entry['name']!r}")
        params = {"kind": entry["type"], **entry.get("params", {})}
        found[entry["name"]] = from_dict(AuxiliaryConfig, params)
    return found


def run_losses(
    study: str, losses: dict[str, AuxiliaryConfig], config: Config, root: Path | None = None
) -> list[dict[str, Any]]:
    """Train and score one JEPA per loss, everything else equal; rows of `summary.json`, best first.

    Losses in different latents are not comparable, so the ranking goes by downstream numbers. A
    loss whose training fails, or whose numbers are not finite, is reported and ranked last.
    """
    root, rows = root or outputs_root(), []
    for name, auxiliary in losses.items():
        values = dataclasses.asdict(auxiliary).items()
        changes = {f"pixels.auxiliary.{key}": value for key, value in values}
        ws = _open(f"{study}/{name}", config.override(changes), root)
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
    model = load_model(ws, "jepa", 0)
    _, validation = make_transitions(ws)
    batch = validation[torch.arange(min(ROWS, len(validation)))].to(ws.device)
    with torch.no_grad():
        z = model.encode(batch.state).cpu()
    _, scores = load_heads(ws, "jepa", 0)
    frames = load_result(ws, "decoder_jepa_s0")["frames"]
    return {
        "effective_rank": float(effective_rank(z)),
        "std": z.std(dim=0).mean().item(),
        "collapse_ratio": collapse_ratio(z),
        "downstream/reconstruction_mse": frames["mse"],
        "downstream/reward_mse": scores["heads"]["reward_mlp"]["mse"],
    }


def rank_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `rank` 1, 2, ..., by mean rank over the downstream numbers, lower is better.

    Rows that lack a finite number have rank None and stand at the end.
    """
    names = sorted({key for row in rows for key in row if key.startswith("downstream/")})
    whole = [row for row in rows if names and all(_finite(row.get(name)) for name in names)]
    places = [_places([row[name] for row in whole]) for name in names]
    means = [sum(column) / len(names) for column in zip(*places, strict=True)]
    ranked = [
        row | {"mean_rank": mean, "rank": sum(other < mean for other in means) + 1}
        for row, mean in sorted(zip(whole, means, strict=True), key=lambda pair: pair[1])
    ]
    return ranked + [row | {"mean_rank": None, "rank": None} for row in rows if row not in whole]


def _places(values: list[float]) -> list[float]:
    """1 for the lowest; equal values share the mean of their places."""
    return [sum(v < one for v in values) + (values.count(one) + 1) / 2 for one in values]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def summary_text(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned lines; what is not a finite number reads "-"."""
    table = pd.DataFrame(rows).replace([math.inf, -math.inf], math.nan)
    ends = ["rank", "name", "type"], ["status"]
    numbers = sorted(set(table) - {*ends[0], *ends[1]})
    table = table[[*ends[0], *numbers, *ends[1]]]
    return table.to_string(index=False, na_rep="-", float_format="{:.4g}".format) + "\n"
