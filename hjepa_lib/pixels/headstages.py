"""Stages of the reward heads: reward MLP and look-ahead reward predictor on every frozen model.

One stage `heads_{model}_s{seed}` per base model and training seed, in `heads/` below the model's
folder: weights of the heads, `predictions.npz` (rewards and episodes of the held-out transitions,
and what every head and the mean reward predict for them) and `scores.json`. The weights of the base
model are hashed before and after; a change would be an error.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hjepa_lib.config import from_dict, to_dict
from hjepa_lib.config.pixels import RewardConfig
from hjepa_lib.evaluation.statistics import unestimable
from hjepa_lib.files import FileError, load_npz, read_json, save_npz, write_json
from hjepa_lib.models.checkpoint import fingerprint, load_weights, save_weights
from hjepa_lib.pixels import stages as pixelstages
from hjepa_lib.pixels.heads import HeadError, HeadLog, RewardHead, Trained, encode, train_heads
from hjepa_lib.pixels.pixelrows import COMPARED
from hjepa_lib.pixels.rewards import MEAN_REWARD, comparison, score
from hjepa_lib.pixels.training import budget
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report

BASES = COMPARED
"""Every model that heads are trained on, frozen and untrained encoders among them."""
KEPT = ("reward_mlp", "larp")
"""Heads whose weights are stored; baselines leave their predictions only."""
Cell = dict[str, np.ndarray]
"""Held-out rewards and predictions of one model and seed, all (n,)."""


def stage_name(name: str, seed: int) -> str:
    return f"heads_{name}_s{seed}"


def train_heads_stage(ws: Workspace, name: str, seed: int) -> Iterator[Report]:
    """Train the heads of base model `name`, training seed number `seed` (0, 1, ...)."""
    stage = stage_name(name, seed)
    if ws.run.done(stage):
        return
    data = pixelstages.load_transitions(ws)
    parts = pixelstages.split(ws, data)
    model = pixelstages.load_model(ws, name, seed)
    needs = (
        "pixel_data",
        f"{name}_s{seed}",
    )
    with ws.run.stage(stage, folder=f"pixels/{name}/s{seed}/heads", reads=needs) as folder:
        facts = {"seed": ws.config.seed + seed, "data_sha256": data.sha256}
        trained = yield from score_model(ws, model, name, parts, stage, folder, facts)
        kept = {kind: trained[kind].head for kind in KEPT if trained[kind].head is not None}
        for kind, head in kept.items():
            save_weights(folder / f"{kind}.safetensors", head)
        meta = {"kind": "reward_heads", "config": to_dict(ws.config.pixels.reward)}
        meta["inputs"] = {kind: head.width for kind, head in kept.items()}
        write_json(folder / "heads.json", meta)


def score_model(
    ws: Workspace,
    model: nn.Module,
    name: str,
    parts: tuple[Transitions, Transitions],
    stage: str,
    folder: Path,
    facts: dict[str, Any],
) -> Generator[Report, None, dict[str, Trained]]:
    """Train and score all heads on one frozen model; writes predictions and scores to `folder`.

    `parts` are training and validation transitions; `facts` (seed, data_sha256) go into the scores.
    Raises HeadError when a base weight changed.
    """
    config = ws.config.pixels.reward
    base = fingerprint(model)
    train, validation = (encode(model, part, ws.device) for part in parts)
    epoch = budget(config.optim, len(train.reward)).validate_every
    logs: dict[str, HeadLog] = {}
    ws.run.metrics.rewind(stage)
    work = train_heads(train, validation, config, seed=facts["seed"])
    while True:
        try:
            kind, report = next(work)
        except StopIteration as stop:
            trained: dict[str, Trained] = stop.value
            break
        row = logs.setdefault(kind, HeadLog(kind, name, epoch, config.log_every)).record(report)
        if row:
            ws.run.log({"stage": stage, "step": report.update, **row})
        yield report
    if fingerprint(model) != base:
        raise HeadError(f"training the reward heads changed the weights of {name}")
    rewards = [part.reward.cpu().numpy() for part in (train, validation)]
    cell = {"reward": rewards[1], "episode": parts[1].episode.cpu().numpy()}
    cell |= {MEAN_REWARD: np.full_like(rewards[1], rewards[0].mean())}
    cell |= {k: t.predicted.cpu().numpy() for k, t in trained.items() if t.head is not None}
    save_npz(folder / "predictions.npz", **cell)
    facts = {"model": name, **facts, "base_sha256": base}
    facts["environment"] = ws.config.pixels.environment.id
    write_json(folder / "scores.json", facts | _scores(cell, rewards[0], trained))
    return trained


def _scores(cell: Cell, train: np.ndarray, trained: dict[str, Trained]) -> dict[str, Any]:
    note = unestimable(train, cell["reward"])
    heads: dict[str, Any] = {kind: dict(one.facts) for kind, one in trained.items()}
    heads[MEAN_REWARD] = {"status": "ok"}
    for kind in heads.keys() & cell.keys():
        heads[kind] |= score(cell[kind], cell["reward"], note)._asdict()
    return {
        "note": note,
        "transitions": {"training": len(train), "validation": len(cell["reward"])},
        "nonzero": {
            "training": int(np.count_nonzero(train)),
            "validation": int(np.count_nonzero(cell["reward"])),
        },
        "heads": heads,
    }


def find_heads(ws: Workspace, name: str, seed: int) -> Path:
    """Folder of the heads of a model and seed; trains them when this run has none."""
    for _ in train_heads_stage(ws, name, seed):
        pass
    return ws.run.path / f"pixels/{name}/s{seed}/heads"


def load_heads(ws: Workspace, name: str, seed: int) -> dict[str, RewardHead]:
    """{"reward_mlp": head, "larp": head} in eval mode; no "larp" without an imagined latent."""
    folder = find_heads(ws, name, seed)
    meta = read_json(folder / "heads.json")
    if meta.get("kind") != "reward_heads":
        raise FileError(f"{folder / 'heads.json'} describes no reward heads")
    heads = {}
    for kind, width in meta["inputs"].items():
        head = RewardHead(from_dict(RewardConfig, meta["config"]), width)
        load_weights(folder / f"{kind}.safetensors", head)
        heads[kind] = head.eval().requires_grad_(False).to(ws.device)
    return heads


def make_head_rows(ws: Workspace) -> list[dict[str, Any]]:
    """Stage `rewards`: rows of `rewards.comparison` over all models and seeds of this run."""
    cells: dict[str, list[Cell]] = {}
    note = ""
    for seed in range(ws.config.pixels.seeds):
        for name in BASES:
            cell, facts = load_cell(find_heads(ws, name, seed))
            cells.setdefault(name, []).append(cell)
            note = facts["note"]
    stages = [stage_name(name, n) for n in range(ws.config.pixels.seeds) for name in BASES]
    with ws.run.stage("rewards", folder="pixels/rewards", reads=tuple(stages)) as folder:
        rows = comparison(cells, note)
        for row in rows:
            seeds = range(ws.config.pixels.seeds)
            row["loaded"] = any(pixelstages.loaded_weights(ws, row["model"], n) for n in seeds)
        write_json(folder / "rewards.json", rows)
    return rows


def load_cell(folder: Path) -> tuple[Cell, dict[str, Any]]:
    """Predictions and scores that `score_model` wrote to `folder`."""
    return load_npz(folder / "predictions.npz"), read_json(folder / "scores.json")
