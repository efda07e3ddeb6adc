"""Auxiliary losses side by side: a JEPA per loss, everything else equal (MET-3).

    run_losses("losses", [{"name": "a", "type": "vicreg", "params": {"cov": 0.04}}, ...], config)

Each entry gets a run of its own below `outputs/<study>/`, with the data of the first one. Losses
in different latents are not comparable, so the ranking goes by downstream numbers: the error of a
state decoder and of the reward MLP on the frozen latents, both lower is better, by mean rank. An
entry whose training fails, or whose numbers are not finite, is reported and ranked last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hjepa_lib.config import Config, ConfigError, read_yaml
from hjepa_lib.config.fields import from_dict
from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.files import read_json, write_atomic, write_json
from hjepa_lib.pixels import stages as pixelstages
from hjepa_lib.pixels.diagnostics import collapse_ratio
from hjepa_lib.runs.places import outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.probes import effective_rank

LOSSES = ("vicreg", "barlow_twins", "dino")
Downstream = Callable[[Workspace], dict[str, float]]
LATENTS = 512  # validation transitions whose latents are described


def read_entries(path: Path | None) -> list[dict[str, Any]]:
    """The list of losses in a YAML file; without one, each of `LOSSES` at its defaults."""
    if path is None:
        return [{"name": kind, "type": kind} for kind in LOSSES]
    entries = read_yaml(path, "the file of auxiliary losses")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path} must hold a list of auxiliary losses {{name, type, params}}")
    return entries


def check_entries(entries: Sequence[dict[str, Any]]) -> dict[str, AuxiliaryConfig]:
    """{name: settings} of a list of {name, type, params}; ConfigError for anything odd."""
    if not entries:
        raise ConfigError("the list of auxiliary losses is empty")
    found: dict[str, AuxiliaryConfig] = {}
    for entry in entries:
        odd = set(entry) - {"name", "type", "params"}
        if odd or not {"name", "type"} <= set(entry):
            raise ConfigError(f"an auxiliary loss is {{name, type, params}}, got {entry!r}")
        if entry["name"] in found:
            raise ConfigError(f"two auxiliary losses are called {entry['name']!r}")
        params = {"kind": entry["type"], **entry.get("params", {})}
        found[entry["name"]] = from_dict(AuxiliaryConfig, params)
    return found


def run_losses(
    study: str,
    entries: Sequence[dict[str, Any]],
    config: Config,
    overrides: dict[str, Any] | str = "",
    downstream: Downstream | None = None,
    root: Path | None = None,
) -> list[dict[str, Any]]:
    """Train and score one JEPA per entry; returns the rows of `summary.json`, best first.

    `overrides` change `config` for all entries alike. Finished parts of an earlier call are kept.
    """
    settings = check_entries(entries)
    root = root or outputs_root()
    base = config.override(overrides)
    rows, first = [], None
    for name, auxiliary in settings.items():
        changes = {f"pixels.auxiliary.{key}": getattr(auxiliary, key)
                   for key in AuxiliaryConfig.__dataclass_fields__}  # fmt: skip
        run = _open(f"{study}/{name}", base.override(changes), root)
        if first is not None:
            run.adopt(first, "pixel_data")
        ws = Workspace("auxiliary losses", run)
        row: dict[str, Any] = {"name": name, "type": auxiliary.kind, "status": "ok"}
        try:
            row |= _describe(ws) | (downstream or score_downstream)(ws)
        except ValueError as error:  # every error of the library is one: the others still run
            row["status"] = str(error)
        first = first or (run if run.done("pixel_data") else None)
        rows.append(row)
    rows = rank_rows(rows)
    write_json(root / study / "summary.json", {"study": study, "rows": rows})
    write_atomic(root / study / "summary.txt", summary_text(rows))
    return rows


def _open(name: str, config: Config, root: Path) -> Run:
    if not Run.exists(name, root):
        return Run.create(name, config, root)
    run = Run.open(name, root)
    run.require(config)
    return run


def _describe(ws: Workspace) -> dict[str, float]:
    """Whether the latents vary: the spread that a ranking must be read next to."""
    model = pixelstages.load_model(ws, "jepa", 0)
    _, validation = pixelstages.make_transitions(ws)
    batch = validation.batch(torch.arange(min(LATENTS, len(validation)))).to(ws.device)
    with torch.no_grad():
        z = model.encode(batch.state).cpu()
    return {
        "effective_rank": float(effective_rank(z)),
        "std": z.std(dim=0).mean().item(),
        "collapse_ratio": collapse_ratio(z),
    }


def score_downstream(ws: Workspace) -> dict[str, float]:
    """{number: value}, lower is better, of the state decoder and the reward MLP."""
    from hjepa_lib.pixels import headstages  # builds on pixelstages as this module does

    for _ in pixelstages.train_decoder_stage(ws, "jepa", 0):
        pass
    folder = ws.run.path / pixelstages.model_folder("jepa", 0)
    scores = read_json(headstages.find_heads(ws, "jepa", 0) / "scores.json")
    return {
        "downstream/reconstruction_mse": read_json(folder / "decoder_result.json")["frames"]["mse"],
        "downstream/reward_mse": scores["heads"]["reward_mlp"]["mse"],
    }


def rank_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `rank` 1, 2, ..., by mean rank over the downstream numbers.

    Rows that lack a finite number have rank None and stand at the end.
    """
    names = sorted({key for row in rows for key in row if key.startswith("downstream/")})
    whole = [row for row in rows if names and all(_finite(row.get(name)) for name in names)]
    means = {
        row["name"]: sum(_place(row[name], [other[name] for other in whole]) for name in names)
        / len(names)
        for row in whole
    }
    order = sorted(whole, key=lambda row: means[row["name"]])
    ranked = []
    for row in order:
        mean = means[row["name"]]
        ranked.append(row | {"mean_rank": mean, "rank": sum(m < mean for m in means.values()) + 1})
    return ranked + [row | {"mean_rank": None, "rank": None} for row in rows if row not in whole]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _place(value: float, values: list[float]) -> float:
    """1 for the lowest; equal values share the mean of their places."""
    below, equal = sum(v < value for v in values), sum(v == value for v in values)
    return below + (equal + 1) / 2


def summary_text(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned lines; what is not a finite number reads "-"."""
    columns = sorted({key for row in rows for key in row} - {"name", "type", "status", "rank"})
    lines = [["rank", "name", "type", *columns, "status"]]
    for row in rows:
        values = [f"{row[c]:.4g}" if _finite(row.get(c)) else "-" for c in columns]
        lines.append([str(row["rank"] or "-"), row["name"], row["type"], *values, row["status"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded) + "\n"
