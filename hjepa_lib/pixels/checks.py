"""What deserves a look: what is in a data set (DATA-8, DATA-9), and warning signs of models.

The limits of the signs (MET-4) are those of seed 001's branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from hjepa_lib.pixels.measures import pick
from hjepa_lib.pixels.transitions import Transitions, scaled
from hjepa_lib.training.probes import effective_rank

SAMPLES = 1_000  # transitions of each part that are looked at, at most


def frame_points(
    train: Transitions, validation: Transitions, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `samples` newest frames of each part (N, C * H * W), and which are held out (N,)."""
    parts = [data[pick(len(data), samples, seed)].state[:, -1] for data in (train, validation)]
    return scaled(torch.cat(parts).flatten(1)).numpy(), np.repeat((0, 1), [*map(len, parts)])


def inspect(data: Transitions) -> dict[str, Any]:
    """What is in a data set: shapes, types, ranges, frame differences in [0, 1] (DATA-9)."""
    some = data[pick(len(data), SAMPLES)]  # differences of a whole large set would fill memory
    change = (scaled(some.next_state[:, -1]) - scaled(some.state[:, -1])).abs().flatten(1)
    lengths = data.episode.unique_consecutive(return_counts=True)[1]
    return {
        "transitions": len(data),
        "episodes": len(lengths),
        "episode length": f"{int(lengths.min())} to {int(lengths.max())}",
        "state": f"{data.state_shape} uint8",
        "action": f"{data.action_kind}, {data.action_dim}",
        "different actions": len(data.action.unique(dim=0)),
        "pixel range": f"{int(data.frames.min())} to {int(data.frames.max())}",
        "reward range": f"{float(data.reward.min()):.4g} to {float(data.reward.max()):.4g}",
        "non-zero rewards": int((data.reward != 0).sum()),
        "pixels that change per step": float((change > 0).float().mean()),
        "mean change of a pixel": float(change.mean()),
        "steps without any change": float((change.amax(1) == 0).float().mean()),
    }


LIMITS: dict[str, float] = {
    "dominant_term": 0.8,  # share of one weighted term in the loss
    "vanished_term": 1e-6,  # VICReg's std or cov
    "large_projector": 100.0,  # largest absolute weight
    "dead_relu": 0.5,  # share of units that never fire in the batch
    "dead_features": 0.1,  # share of dimensions with a standard deviation below 1e-6
    "saturated": 10.0,  # mean absolute feature
    "correlated": 0.9,  # largest correlation of two dimensions
    "small_spread": 0.01,  # mean standard deviation
    "large_norm": 100.0,  # mean length of a latent
    "small_gradient": 1e-6,
    "large_gradient": 10.0,
    "plateau": 1e-3,  # relative range of the last 20 losses
    "aligned": 0.95,  # mean cosine of prediction and target: 1 under collapse (F13)
    "collapsed": 0.5,  # share of dimensions with a variance below 1e-3
}
BELOW = ("vanished_term", "small_spread", "small_gradient", "plateau")  # the others fire above
DEAD_STD, COLLAPSED_VARIANCE = 1e-6, 1e-3
PLATEAU, FULL_RANK = 20, 20.0


def fired(values: Mapping[str, float], where: str = "") -> list[str]:
    """A line "rule in where: value > limit" for each rule that its value breaks, as NaN does."""
    found, place = [], f" in {where}" if where else ""
    for rule, value in values.items():
        limit, sign = LIMITS[rule], "<" if rule in BELOW else ">"
        if not (value >= limit if sign == "<" else value <= limit):
            found.append(f"{rule}{place}: {value:.3g} {sign} {limit:g}")
    return found


def signs(z: Tensor, losses: Sequence[float] = ()) -> dict[str, float]:
    """What is judged of one batch of latents (B, D), and of a curve of 20 losses or more."""
    z, last = z.float(), np.array(losses[-PLATEAU:])
    std = z.std(dim=0)
    found = {
        "dead_features": float((std < DEAD_STD).float().mean()),
        "saturated": float(z.abs().mean()),
        "correlated": max_correlation(z),
        "small_spread": float(std.mean()),
        "large_norm": float(z.norm(dim=1).mean()),
        "collapsed": collapse_ratio(z),
    }
    if len(last) == PLATEAU:
        found["plateau"] = float(np.ptp(last) / max(abs(last.mean()), 1e-12))
    return found


def max_correlation(z: Tensor) -> float:
    """Largest absolute correlation of two different dimensions of (B, D), dead ones left out."""
    z = z.cpu().double()
    alive = z[:, z.std(dim=0) >= DEAD_STD]
    if alive.shape[1] < 2:
        return 0.0
    return float(torch.corrcoef(alive.T).abs().fill_diagonal_(0).max())


def collapse_ratio(z: Tensor) -> float:
    """Share of dimensions of (B, D) whose variance is below 0.001."""
    return float((z.float().var(dim=0) < COLLAPSED_VARIANCE).float().mean())


def health(z: Tensor) -> float:
    """0 (collapsed) to 1 (healthy) for latents (B, D).

    The mean of 1 - collapse ratio, min(effective rank / 20, 1) and 1 - largest correlation.
    """
    wide = min(effective_rank(z.float()) / FULL_RANK, 1.0)
    return (1 - collapse_ratio(z) + wide + 1 - max_correlation(z)) / 3


def gradient_norms(model: Any, batch: Any) -> dict[str, float]:
    """Gradient norm of every trained part for the loss of one batch; 0 where none arrives (F3)."""
    trained = {
        name: [p for p in part.parameters() if p.requires_grad]
        for name, part in model.named_children()
    }
    flat = [p for part in trained.values() for p in part]
    if not flat:
        return {}
    found = torch.autograd.grad(model.loss(batch)[0], flat, materialize_grads=True)
    lengths = iter([float(one.norm()) for one in found])
    return {name: math.hypot(*(next(lengths) for _ in p)) for name, p in trained.items() if p}


def check_terms(terms: Mapping[str, float]) -> list[str]:
    """The loss's terms by name: one of prediction and auxiliary alone, a vanished std or cov."""
    shares = {n: abs(v) for n, v in terms.items() if n == "prediction" or n.endswith("_weighted")}
    name, total = max(shares, key=shares.__getitem__), sum(shares.values())
    found = fired({"dominant_term": shares[name] / (total or 1.0)}, name) if len(shares) > 1 else []
    for name, value in terms.items():
        if name.endswith(("_std", "_cov")):
            found += fired({"vanished_term": value}, name)
    return found


def diagnose(model: Any, batch: Any, losses: Sequence[float] = ()) -> list[str]:
    """A line per rule that a pixel model breaks on one batch in evaluation mode; it stays as is."""
    was_training, found = model.training, []
    model.eval()
    for name, norm in gradient_norms(model, batch).items():
        found += fired({"small_gradient": norm, "large_gradient": norm}, name)
    names = {part: name for name, part in model.named_modules() if isinstance(part, nn.ReLU)}
    dead: dict[str, float] = {}

    def watch(part: nn.Module, _: Any, out: Tensor) -> None:
        if part in names:
            dead[names[part]] = float((out <= 0).all(dim=0).float().mean())

    with torch.no_grad(), register_module_forward_hook(watch):
        terms, z = model.loss(batch)[1], model.encode(batch.state)
        imagined, seen = model.imagine(z, batch.action), signs(z, losses)
        if imagined is not None:
            target = model.encode_target(batch.next_state)
            seen["aligned"] = float(F.cosine_similarity(imagined, target, dim=-1).mean())
        projector = getattr(model, "regulariser", None) or nn.Identity()
        weights = [float(p.abs().max()) for p in projector.parameters()]
        seen["large_projector"] = max(weights, default=0.0)
    model.train(was_training)
    for name, share in dead.items():
        found += fired({"dead_relu": share}, name)
    return found + fired(seen) + check_terms(terms)
