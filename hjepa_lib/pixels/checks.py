"""What deserves a look: data whose parts differ (DATA-8), what is in them (DATA-9), warning signs.

No verdicts: two-sample tests take samples as independent, which neighbours of an episode are not;
the limits of the signs (MET-4) are those of seed 001's branches.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.pixels.measures import pick
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.training.probes import effective_rank

# --- data -------------------------------------------------------------------------------------
SAMPLES = 1_000  # transitions of each part that are looked at, at most
LEVEL = 0.05  # a smaller p-value is flagged
MOMENTS = {"mean": 0.1, "std": 0.2}  # larger relative differences are flagged
_LEAST_ANDERSON = 26  # samples


def compare(train: np.ndarray, validation: np.ndarray) -> dict[str, Any]:
    """Moments of two samples (n,) and (m,), p-values, and what differs by either rule, or "alike".

    `tests` are Kolmogorov-Smirnov, Mann-Whitney U and, with 26 values a part, Anderson-Darling;
    `moments` are limits on relative differences.
    """
    parts = {"train": train, "validation": validation}
    found = {f"{part} {name}": float(getattr(np, name)(values, dtype=float))
             for part, values in parts.items() for name in MOMENTS}  # fmt: skip
    p_values = _p_values(train, validation)
    tests = [test for test, p in p_values.items() if p < LEVEL]
    moments = []
    for name, limit in MOMENTS.items():  # a reference of 0 makes any difference infinite
        reference = found[f"train {name}"]
        if abs(found[f"validation {name}"] - reference) > limit * abs(reference):
            moments.append(name)
    rules = {"tests": ", ".join(tests) or "alike", "moments": ", ".join(moments) or "alike"}
    return found | p_values | rules


def _p_values(train: np.ndarray, validation: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        # About ties, and about p of Anderson-Darling being cut to [0.001, 0.25].
        warnings.simplefilter("ignore")
        found = {
            "p Kolmogorov-Smirnov": stats.ks_2samp(train, validation),
            "p Mann-Whitney": stats.mannwhitneyu(train, validation),
        }
        both = np.concatenate((train, validation))
        if min(len(train), len(validation)) >= _LEAST_ANDERSON and np.ptp(both):
            found["p Anderson-Darling"] = stats.anderson_ksamp([train, validation])
    return {test: float(result.pvalue) for test, result in found.items()}


def quantities(data: Transitions, samples: int = SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """(n,) each: a random pixel and the brightness of the newest frame in [0, 1], the reward."""
    rows = pick(len(data), samples, seed)
    frames = _newest(data, rows)
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(frames.shape[1], (len(rows), 1), generator=generator)
    return {
        "pixel": frames.gather(1, place)[:, 0].numpy(),
        "brightness": frames.mean(1).numpy(),
        "reward": data.reward[rows].numpy(),
    }


def _newest(data: Transitions, rows: Tensor) -> Tensor:  # (n, C * H * W)
    return data.frames[data.now[rows]].flatten(1).float() / 255


def check_distributions(
    train: Transitions, validation: Transitions, samples: int = SAMPLES
) -> pd.DataFrame:
    """A row per quantity, compared on at most `samples` transitions of each part."""
    left, right = quantities(train, samples), quantities(validation, samples)
    rows = {name: compare(left[name], right[name]) for name in left}
    return pd.DataFrame.from_dict(rows, orient="index")


def frame_points(
    train: Transitions, validation: Transitions, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `samples` newest frames of each part (N, C * H * W), and which are held out (N,)."""
    parts = [_newest(data, pick(len(data), samples, seed)) for data in (train, validation)]
    return torch.cat(parts).numpy(), np.repeat((0, 1), [len(part) for part in parts])


def inspect(data: Transitions) -> dict[str, Any]:
    """What is in a data set: shapes, types, ranges, frame differences in [0, 1] (DATA-9)."""
    rows = pick(len(data), SAMPLES)  # differences of all rows of a large set would fill memory
    before, after = data.frames[data.now[rows]].float(), data.frames[data.after[rows]].float()
    change = (after - before).abs().flatten(1) / 255  # (n, C * H * W)
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


# --- models -----------------------------------------------------------------------------------
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


class Finding(NamedTuple):
    """One rule that fired."""

    rule: str
    value: float
    where: str = ""

    def __str__(self) -> str:
        sign = "<" if self.rule in BELOW else ">"
        place = f" in {self.where}" if self.where else ""
        return f"{self.rule}{place}: {self.value:.3g} {sign} {LIMITS[self.rule]:g}"


def fired(values: Mapping[str, float], where: str = "") -> list[Finding]:
    """The rules of `LIMITS` that these values break; NaN breaks those with an upper limit."""
    return [
        Finding(rule, value, where)
        for rule, value in values.items()
        if (value < LIMITS[rule] if rule in BELOW else not value <= LIMITS[rule])
    ]


def latent_signs(z: Tensor) -> dict[str, float]:
    """What the rules of latents judge, of one batch (B, D)."""
    z = z.float()
    std = z.std(dim=0)
    return {
        "dead_features": float((std < DEAD_STD).float().mean()),
        "saturated": float(z.abs().mean()),
        "correlated": max_correlation(z),
        "small_spread": float(std.mean()),
        "large_norm": float(z.norm(dim=1).mean()),
        "collapsed": collapse_ratio(z),
    }


def curve_signs(losses: Sequence[float]) -> dict[str, float]:
    """The relative range of the last 20 losses; shorter curves say nothing."""
    last = np.array(losses[-PLATEAU:])
    if len(last) < PLATEAU:
        return {}
    return {"plateau": float(np.ptp(last) / max(abs(last.mean()), 1e-12))}


def check_terms(terms: Mapping[str, float]) -> list[Finding]:
    """The loss's terms by name: one of prediction and auxiliary alone, a vanished std or cov."""
    shares = {n: abs(v) for n, v in terms.items() if n == "prediction" or n.endswith("_weighted")}
    name, total = max(shares, key=shares.__getitem__), sum(shares.values())
    found = fired({"dominant_term": shares[name] / (total or 1.0)}, name) if len(shares) > 1 else []
    for name, value in terms.items():
        if name.endswith(("_std", "_cov")):
            found += fired({"vanished_term": value}, name)
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
    parts = {
        name: [p for p in part.parameters() if p.requires_grad]
        for name, part in model.named_children()
    }
    trained = [p for part in parts.values() for p in part]
    if not trained:
        return {}
    gradients = torch.autograd.grad(model.loss(batch)[0], trained, allow_unused=True)
    lengths = iter(0.0 if one is None else float(one.norm()) for one in gradients)
    return {
        name: sum(next(lengths) ** 2 for _ in part) ** 0.5 for name, part in parts.items() if part
    }


def diagnose(model: Any, batch: Any, losses: Sequence[float] = ()) -> list[Finding]:
    """All rules that fire for a pixel model on one batch, in evaluation mode: it stays as it is."""
    was_training, dead = model.training, {}
    model.eval()
    norms = gradient_norms(model, batch)

    def watch(name: str, module: nn.Module) -> Any:
        def keep(_: nn.Module, __: Any, out: Tensor) -> None:
            dead[name] = float((out <= 0).all(dim=0).float().mean())

        return module.register_forward_hook(keep)

    named = model.named_modules()
    hooks = [watch(name, module) for name, module in named if isinstance(module, nn.ReLU)]
    with torch.no_grad():
        terms, z = model.loss(batch)[1], model.encode(batch.state)
        imagined = model.imagine(z, batch.action)
        signs = latent_signs(z) | curve_signs(losses)
        if imagined is not None:
            target = model.encode_target(batch.next_state)
            signs["aligned"] = float(F.cosine_similarity(imagined, target, dim=-1).mean())
        projector = getattr(model, "regulariser", None) or nn.Identity()
        weights = [float(p.abs().max()) for p in projector.parameters()]
        signs["large_projector"] = max(weights, default=0.0)
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    found = fired(signs) + check_terms(terms)
    for name, norm in norms.items():
        found += fired({"small_gradient": norm, "large_gradient": norm}, name)
    return found + [
        one for name, share in dead.items() for one in fired({"dead_relu": share}, name)
    ]
