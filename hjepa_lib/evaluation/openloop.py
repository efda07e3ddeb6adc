"""Open-loop prediction error in pixels, by horizon, for both levels.

A model starts from the encoding of one frame, is fed the recorded actions and nothing else, and the
position probe reads where it believes the dot is. Level 2 is measured twice: with the posterior's z
(what its latents can express, the best plan it could find) and with the prior's mean (what it
expects without looking ahead). "Stay" is the error of never moving.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.models.probe import Probe
from hjepa_lib.training.latents import LatentBatch, LatentStore
from hjepa_lib.training.probes import rmse_px

WINDOWS = 256


def draw_windows(store: LatentStore, horizon: int, count: int = WINDOWS) -> LatentBatch:
    """Evenly spaced windows of horizon + 1 states, never crossing a trajectory."""
    first = store.windows(horizon + 1)
    if not len(first):
        raise ValueError(f"no trajectory has {horizon + 1} states for horizon {horizon}")
    return store.gather(first[:: max(1, len(first) // count)][:count], horizon + 1)


def gaps(probe: Probe, latents: Tensor, positions: Tensor) -> np.ndarray:
    """Probed latents (B, H, D) against positions (B, H, 2) -> (H, B) px."""
    device = next(probe.parameters()).device
    found = probe(latents.to(device)).cpu()
    return (found - positions).norm(dim=-1).T.numpy()


@torch.no_grad()
def level1_errors(
    model: Jepa, probe: Probe, batch: LatentBatch, level2: Level2 | None = None
) -> np.ndarray:
    """(H, B) px after 1..H steps; `level2` acts on level 1 as in joint training (its hooks)."""
    device = model.pixel_mean.device
    start, actions = batch.latents[:, 0].to(device), batch.actions.to(device)
    hooks = {} if level2 is None else _hooks(level2, model, batch)
    predicted = model.rollout_members(start, actions, **hooks).mean(0)[:, 1:]  # (B, H, D)
    return gaps(probe, predicted, batch.positions[:, 1:])


def _hooks(level2: Level2, level1: Jepa, batch: LatentBatch) -> dict[str, Any]:
    """What a jointly trained level 2 adds to a roll-out, given the posterior's z of the window."""
    device = level1.pixel_mean.device
    actions = level1.normalise_actions(batch.actions.to(device))
    generator = torch.Generator().manual_seed(0)
    _, observed = level2.observe(batch.latents.to(device), actions, generator)
    context = level2.context(observed.z)  # (B, whole macro steps, A) or None
    if context is not None:  # the rest of a window keeps the last macro step
        rest = actions.shape[1] - context.shape[1]
        context = torch.cat([context, context[:, -1:].expand(-1, rest, -1)], 1)
    return {"context": context, "feedback": level2.feedback}


@torch.no_grad()
def level2_errors(
    level2: Level2, level1: Jepa, probe: Probe, batch: LatentBatch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps (H2,), posterior errors (H2, B), prior-mean errors (H2, B)), px."""
    device = level1.pixel_mean.device
    skip = level2.config.step_skip
    actions = level1.normalise_actions(batch.actions.to(device))
    latents = batch.latents.to(device)
    generator = torch.Generator().manual_seed(0)
    _, observed = level2.observe(latents, actions, generator)
    count = observed.z.shape[1]
    chunks = level2.chunk_actions(actions)
    macros = None if level2.macro_dim == 0 else level2.macro(chunks)
    prior = level2.imagine(latents[:, 0], count, macros).predictions
    truth = batch.positions[:, skip : count * skip + 1 : skip]
    steps = np.arange(1, count + 1) * skip
    posterior = gaps(probe, observed.predictions[:, 1:], truth)
    return steps, posterior, gaps(probe, prior, truth)


def stay_errors(batch: LatentBatch) -> np.ndarray:
    """(H, B) px: the distance really travelled."""
    return (batch.positions[:, 1:] - batch.positions[:, :1]).norm(dim=-1).T.numpy()


@torch.no_grad()
def probe_errors(
    model: Jepa, probe: Probe, store: LatentStore, horizon: int = 15
) -> dict[str, Any]:
    """RMSE (px) of the probe on all latents of `horizon`-step roll-outs (PLDM's measure)."""
    longest = int(store.lengths.max()) - 1
    batch = draw_windows(store, min(horizon, longest))
    device = model.pixel_mean.device
    predicted = model.rollout_members(
        batch.latents[:, 0].to(device), batch.actions.to(device)
    ).mean(0)
    found = probe(predicted).cpu()
    return {"probe_px_predictor": rmse_px(found.flatten(0, 1), batch.positions.flatten(0, 1))}
