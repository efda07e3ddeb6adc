"""Training of reward heads on latents that the frozen base model encoded once.

The base model runs in eval mode without gradients before training starts and is never called again,
so features are deterministic, its weights cannot change, and an update costs a few matrix products.
Every base model's heads get the same batches (a pure function of seed and update), the same initial
weights and the same budget. The best weights are chosen on the last eighth of the training rows:
the held-out transitions that score a head choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hjepa_lib.config.pixels import EpochsConfig, RewardConfig
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.pixels.heads import HeadError, RewardHead, build_head, head_inputs
from hjepa_lib.pixels.train import budget, passes
from hjepa_lib.training.batches import batches_sha256, draw_batch, seeded_noise
from hjepa_lib.training.loop import Fit, Report

HEADS = ("reward_mlp", "larp", "larp_copy")
"""Reward MLP, look-ahead reward predictor, and its baseline: LARP told that nothing will move
(the present latent in the place of the imagined one, the same number of weights)."""
CHOICE = 8
"""One in so many training rows chooses a head's weights; rows are in time order."""
NOT_APPLICABLE = "not applicable: this model has no imagined latent"


class Features(NamedTuple):
    """What heads read, for M transitions, detached."""

    latent: Tensor  # (M, D)
    action: Tensor  # (M, 32), the base model's own embedding
    imagined: Tensor | None  # (M, D); None for a model without an imagined latent (F9)
    reward: Tensor  # (M,)


class RewardData(Protocol):
    """What `encode` needs of data/transitions.py's Transitions."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Any: ...


class Trained(NamedTuple):
    """One trained head: None and a reason where the base model cannot have it."""

    head: RewardHead | None
    predicted: Tensor | None  # (M,) rewards of the validation part
    facts: dict[str, Any]  # status, initial hash, parameters, updates, best validation loss


@torch.no_grad()
def encode(model: Any, data: RewardData, device: str = "cpu", batch: int = 256) -> Features:
    """Latents, action embeddings and imagined latents of all transitions, in eval mode.

    Raises HeadError when a latent is not finite.
    """
    was_training = model.training
    model.eval()
    parts: list[Features] = []
    for index in torch.arange(len(data)).split(batch):
        rows = data.batch(index)
        action = rows.action.to(device)
        latent = model.encode(rows.state.to(device))
        imagined = model.imagine(latent, action)
        reward = rows.reward.to(device)
        parts.append(Features(latent, model.embed_action(action), imagined, reward))
    model.train(was_training)
    columns = zip(*parts, strict=True)
    features = Features(*(None if c[0] is None else torch.cat(c).float() for c in columns))
    if not all(bool(part.isfinite().all()) for part in features if part is not None):
        raise HeadError("the frozen model's latents, or the rewards, hold NaN or infinity")
    return features


def select_inputs(features: Features, kind: str) -> Tensor | None:
    """The inputs of a head of `kind` (M, width); None when the model has no imagined latent."""
    if kind == "reward_mlp":
        return head_inputs(features.latent, features.action)
    if features.imagined is None:
        return None
    ahead = features.latent if kind == "larp_copy" else features.imagined
    return head_inputs(features.latent, features.action, ahead)


def fit_head(
    head: RewardHead,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    optim: EpochsConfig,
    *,
    seed: int,
) -> Fit:
    """MSE on the rewards of (inputs (M, width), reward (M,)); validated every epoch."""
    inputs, reward = train

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(inputs), optim.batch, generator).to(inputs.device)
        with seeded_noise(generator, inputs.device):
            return (head(inputs[index]) - reward[index]).square().mean(), {}

    def validate() -> dict[str, float]:
        return {"loss": float((head(validation[0]) - validation[1]).square().mean())}

    return Fit(head, loss_fn, budget(optim, len(inputs)), seed=seed, validate=validate)


def train_heads(
    train: Features, validation: Features, config: RewardConfig, *, seed: int
) -> Iterator[tuple[str, Report]]:
    """Yield (kind, report) while each of `HEADS` trains; returns {kind: Trained}.

    Each head has its own noise from (seed, update): order and number of heads change nothing.
    """
    results: dict[str, Trained] = {}
    for kind in HEADS:
        inputs, held_out = select_inputs(train, kind), select_inputs(validation, kind)
        if inputs is None or held_out is None:
            results[kind] = Trained(None, None, {"status": NOT_APPLICABLE})
            continue
        learn = len(inputs) - max(1, len(inputs) // CHOICE)
        head = build_head(config, inputs.shape[1], seed)
        facts = {"status": "ok", "initial_sha256": fingerprint(head)}
        facts |= {"inputs": head.width, "parameters": count_parameters(head)}
        facts["batches_sha256"] = batches_sha256(learn, config.optim.batch, seed)
        head.to(inputs.device)
        if config.standardise:
            head.standardise(inputs)
        rows = slice(learn), slice(learn, None)
        parts = [(inputs[part], train.reward[part]) for part in rows]
        fit = fit_head(head, *parts, config.optim, seed=seed)
        for report in fit:
            yield kind, report
        fit.load_best()
        head.eval().requires_grad_(False)
        facts |= {"updates": fit.update, "best_loss": fit.best_loss}
        results[kind] = Trained(head, head(held_out), facts)
    return results


class HeadLog:
    """Turns the reports of one head into LOG-3's records.

    The reward MLP: `train/{Loss, Learning_Rate}`, `train_epoch_avg/Loss`, `val_epoch_avg/Loss`.
    LARP: `train/{loss_step, step}`, the same averages in lower case, `epoch_inner` (share of the
    present epoch done), `epoch_progress_main` (share of all updates). Both: `epoch`, the passes
    done, beside the averages.
    """

    def __init__(self, kind: str, model: str, epoch: int, every: int) -> None:
        """`epoch` updates are one pass; a training loss is logged every `every` updates."""
        self.prefix, self.look_ahead = f"{kind}/{model}", kind != "reward_mlp"
        self.epoch, self.every = epoch, every
        self.losses: list[float] = []

    def record(self, report: Report) -> dict[str, float]:
        """The record of this update without stage and step; {} when there is nothing to log."""
        if math.isfinite(report.loss) and math.isfinite(report.grad_norm):  # else it was skipped
            self.losses.append(report.loss)
        row: dict[str, float] = {}
        if report.update % self.every == 0 or report.update == 1:
            row |= self._step(report)
        if "loss" in report.validation:
            loss = "loss" if self.look_ahead else "Loss"
            if self.losses:
                row[f"train_epoch_avg/{loss}"] = sum(self.losses) / len(self.losses)
            row[f"val_epoch_avg/{loss}"] = report.validation["loss"]
            row["epoch"] = passes(report.update, self.epoch)
            self.losses.clear()
        return {f"{self.prefix}/{key}": value for key, value in row.items()}

    def _step(self, report: Report) -> dict[str, float]:
        if not self.look_ahead:
            return {"train/Loss": report.loss, "train/Learning_Rate": report.lr}
        return {
            "train/loss_step": report.loss,
            "train/step": report.update,
            "epoch_inner": (report.update % self.epoch or self.epoch) / self.epoch,
            "epoch_progress_main": report.update / report.updates,
        }
