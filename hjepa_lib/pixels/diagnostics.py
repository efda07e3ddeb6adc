"""Warning signs of a latent, a loss or a training curve, each a rule with a limit (MET-4).

Every `check_...` returns the rules that fire, with the measured value. A finding is a hint where to
look, not a verdict: the limits are those of seed 001's branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.files import WorkbookError
from hjepa_lib.training.probes import effective_rank

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
    "aligned": 0.95,  # mean cosine of prediction and target
    "collapsed": 0.5,  # share of dimensions with a variance below 1e-3
}
BELOW = ("vanished_term", "small_spread", "small_gradient", "plateau")  # the others fire above
DEAD_STD, COLLAPSED_VARIANCE = 1e-6, 1e-3
PLATEAU, LAST, FULL_RANK = 20, 5, 20.0


class Finding(NamedTuple):
    """One rule that fired."""

    rule: str
    value: float
    limit: float
    where: str = ""

    def __str__(self) -> str:
        sign = "<" if self.rule in BELOW else ">"
        place = f" in {self.where}" if self.where else ""
        return f"{self.rule}{place}: {self.value:.3g} {sign} {self.limit:g}"


def _judged(rule: str, value: float | Tensor, where: str = "") -> list[Finding]:
    limit = LIMITS[rule]
    number = value.item() if isinstance(value, Tensor) else float(value)
    fired = number < limit if rule in BELOW else not number <= limit  # NaN fires
    return [Finding(rule, number, limit, where)] if fired else []


def check_terms(weighted: Mapping[str, float]) -> list[Finding]:
    """Weighted loss terms by name: one term alone, or a vanished std or cov."""
    found: list[Finding] = []
    total = sum(map(abs, weighted.values()))
    if total > 0 and len(weighted) > 1:
        name = max(weighted, key=lambda key: abs(weighted[key]))
        found += _judged("dominant_term", abs(weighted[name]) / total, name)
    for name, value in weighted.items():
        if name.split("_")[-1] in ("std", "cov"):
            found += _judged("vanished_term", value, name)
    return found


def check_projector(module: nn.Module) -> list[Finding]:
    """The largest absolute weight of any tensor; a module without weights is fine."""
    largest = max((p.detach().abs().max().item() for p in module.parameters()), default=0.0)
    return _judged("large_projector", largest)


def check_relu(activations: Tensor, where: str = "") -> list[Finding]:
    """Activations after a ReLU (B, ...): units that are 0 for the whole batch."""
    return _judged("dead_relu", (activations <= 0).all(dim=0).float().mean(), where)


def check_latents(z: Tensor) -> list[Finding]:
    """One batch of latents (B, D)."""
    z = z.detach().float()
    std = z.std(dim=0)
    return [
        *_judged("dead_features", (std < DEAD_STD).float().mean()),
        *_judged("saturated", z.abs().mean()),
        *_judged("correlated", max_correlation(z)),
        *_judged("small_spread", std.mean()),
        *_judged("large_norm", z.norm(dim=1).mean()),
        *_judged("collapsed", collapse_ratio(z)),
    ]


def check_gradients(module: nn.Module) -> list[Finding]:
    """Gradient norm of each direct part that is trained; no gradient at all counts as 0."""
    norms = _part_norms(module).items()
    rules = ("small_gradient", "large_gradient")
    return [one for name, norm in norms for rule in rules for one in _judged(rule, norm, name)]


def check_curve(losses: Sequence[float]) -> list[Finding]:
    """The last 20 losses lie within 0.1 % of each other; shorter curves say nothing."""
    last = list(losses)[-PLATEAU:]
    if len(last) < PLATEAU:
        return []
    scale = max(abs(sum(last) / PLATEAU), 1e-12)
    return _judged("plateau", (max(last) - min(last)) / scale)


def check_alignment(prediction: Tensor, target: Tensor) -> list[Finding]:
    """Mean cosine of (B, D) prediction and target: says nothing if latents are constant (F13)."""
    return _judged("aligned", F.cosine_similarity(prediction, target, dim=-1).mean())


def max_correlation(z: Tensor) -> float:
    """Largest absolute correlation of two different dimensions of (B, D), dead ones left out."""
    z = z.detach().cpu().double()
    alive = z[:, z.std(dim=0) >= DEAD_STD]
    if alive.shape[1] < 2:
        return 0.0
    matrix = torch.corrcoef(alive.T).abs()
    return (matrix - matrix.diagonal().diag()).max().item()


def collapse_ratio(z: Tensor) -> float:
    """Share of dimensions of (B, D) whose variance is below 0.001."""
    return (z.detach().float().var(dim=0) < COLLAPSED_VARIANCE).float().mean().item()


def health(batches: Sequence[Tensor]) -> float:
    """0 (collapsed) to 1 (healthy): mean over the last 5 batches of latents (B, D) of

    1 - collapse ratio, min(effective rank / 20, 1) and 1 - largest correlation.
    """
    if not batches:
        raise WorkbookError("health needs at least one batch of latents")
    scores = []
    for z in list(batches)[-LAST:]:
        wide = min(effective_rank(z.detach().float()) / FULL_RANK, 1.0)
        scores.append((1 - collapse_ratio(z) + wide + 1 - max_correlation(z)) / 3)
    return sum(scores) / len(scores)


def diagnose(model: Any, batch: Any, losses: Sequence[float] = ()) -> list[Finding]:
    """All rules that fire for a pixel model on one batch; weights and gradients stay as they are.

    The batch goes through in evaluation mode, so the gradients are those of the noiseless loss.
    """
    was_training = model.training
    model.eval()
    active: list[Finding] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: active.extend(check_relu(out, name))
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    held = [p.grad for p in model.parameters()]
    try:
        model.zero_grad(set_to_none=True)
        loss, terms = model.loss(batch)
        found = check_latents(model.encode(batch.state)) + check_curve(losses)
        if loss.requires_grad:
            loss.backward()
            found += check_gradients(model)
        imagined = model.imagine(model.encode(batch.state), batch.action)
        if imagined is not None:
            found += check_alignment(imagined, model.encode_target(batch.next_state))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, gradient in zip(model.parameters(), held, strict=True):
            parameter.grad = gradient
        model.train(was_training)
    found += check_terms(weighted_terms(model, terms))
    found += check_projector(getattr(model, "regulariser", None) or nn.Identity())
    return list({(one.rule, one.where): one for one in [*found, *active]}.values())


def weighted_terms(model: Any, terms: Mapping[str, float]) -> dict[str, float]:
    """The summands of the loss: prediction, and the auxiliary loss's parts with their weights."""
    auxiliary = model.config.auxiliary
    summands = {"prediction": terms["prediction"]}
    for key, value in terms.items():
        part = key.removeprefix("vicreg_")
        if part in ("sim", "std", "cov") and key != part:
            summands[key] = auxiliary.weight * getattr(auxiliary, part) * value
        elif key.endswith("_weighted") and not key.startswith("vicreg"):
            summands[key] = value
    return summands


def gradient_norms(model: Any, batch: Any) -> dict[str, float]:
    """Gradient norm of every trained part for the loss of one batch; 0 where none arrives (F3)."""
    model.zero_grad(set_to_none=True)
    model.loss(batch)[0].backward()
    norms = _part_norms(model)
    model.zero_grad(set_to_none=True)
    return norms


def _part_norms(module: nn.Module) -> dict[str, float]:
    norms = {}
    for name, part in module.named_children():
        trained = [p for p in part.parameters() if p.requires_grad]
        if trained:
            squares = [p.grad.square().sum().item() for p in trained if p.grad is not None]
            norms[name] = sum(squares) ** 0.5
    return norms
