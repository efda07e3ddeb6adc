"""Reward heads on frozen latents: the reward MLP and the look-ahead reward predictor (LARP).

Both are one architecture (MOD-11, MOD-12): the reward MLP reads [z_t, a], LARP also the model's
imagined next latent. The frozen base model runs once, in eval mode, before training; heads of all
base models get the same batches, initial weights and budget. The best weights are chosen on the
last eighth of the training rows: the held-out transitions that score a head choose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hjepa_lib.config.pixels import EpochsConfig, RewardConfig
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.checkpoint import fingerprint
from hjepa_lib.models.layers import count_parameters, mlp
from hjepa_lib.pixels.networks import initialise
from hjepa_lib.pixels.training import CHUNK, fit
from hjepa_lib.training.loop import Fit, Report, batches_sha256

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip
HEADS = ("reward_mlp", "larp", "larp_copy")
"""Reward MLP, look-ahead reward predictor, and its baseline: LARP told that nothing will move
(the present latent in the place of the imagined one, the same number of weights)."""
CHOICE = 8
"""One in so many training rows chooses a head's weights; rows are in time order."""
LEAST_DEVIATION = 1e-5  # a feature that varies less is constant: it is centred, never amplified
NOT_APPLICABLE = "not applicable: this model has no imagined latent"


# --- the module -------------------------------------------------------------------------------
def head_inputs(latent: Tensor, action: Tensor, imagined: Tensor | None = None) -> Tensor:
    """[z_t (B, D), imagined z_{t+1} (B, D) if given, embedded action (B, 32)], detached."""
    parts = [latent, action] if imagined is None else [latent, imagined, action]
    if len({len(part) for part in parts}) > 1:
        sizes = ", ".join(str(len(part)) for part in parts)
        raise WorkbookError(f"latents, imagined latents and actions differ in number: {sizes}")
    return torch.cat([part.detach().float() for part in parts], dim=-1)


class RewardHead(nn.Module):
    """MLP from `width` inputs to one reward per row, in the environment's reward units."""

    def __init__(self, config: RewardConfig, width: int) -> None:
        super().__init__()
        self.width = width
        hidden = [config.hidden] * config.layers
        activation = ACTIVATIONS[config.activation]
        self.net = mlp(width, *hidden, 1, activation=activation, dropout=config.dropout)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def standardise(self, inputs: Tensor) -> None:
        """Take mean and deviation of training `inputs` (M, width), so that no units decide."""
        exact = inputs.detach().double()
        deviation = exact.std(0, correction=0)
        constant = deviation < LEAST_DEVIATION
        self.centre.copy_(exact.mean(0))
        self.deviation.copy_(torch.where(constant, torch.ones_like(deviation), deviation))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, width) -> (B,); detached, so that no head can train its base model."""
        if inputs.shape[-1] != self.width:
            raise WorkbookError(
                f"this reward head reads {self.width} numbers per row, got {inputs.shape[-1]}"
            )
        return self.net((inputs.detach() - self.centre) / self.deviation).squeeze(-1)


def build_head(config: RewardConfig, width: int, seed: int) -> RewardHead:
    """A head whose weights depend on width and seed alone: equal for every base model.

    Hidden layers have their own seeds, so they are equal for the reward MLP and LARP too.
    """
    with torch.random.fork_rng(devices=[]):
        head = RewardHead(config, width)
        linear = [layer for layer in head.net if isinstance(layer, nn.Linear)]
        for index, layer in enumerate(linear):
            torch.manual_seed(seed * 1_009 + index)
            initialise(layer)
    return head


# --- what heads read --------------------------------------------------------------------------
class Features(NamedTuple):
    """What heads read, for M transitions, detached."""

    latent: Tensor  # (M, D)
    action: Tensor  # (M, 32), the base model's own embedding
    imagined: Tensor | None  # (M, D); None for a model without an imagined latent (F9)
    reward: Tensor  # (M,)


@torch.no_grad()
def encode(model: Any, data: Any, device: str = "cpu", batch: int = CHUNK) -> Features:
    """Latents, action embeddings and imagined latents of all transitions, in eval mode.

    Raises WorkbookError when a latent is not finite.
    """
    was_training = model.training
    model.eval()
    parts: list[Features] = []
    for index in torch.arange(len(data)).split(batch):
        rows = data[index]
        action = rows.action.to(device)
        latent = model.encode(rows.state.to(device))
        imagined = model.imagine(latent, action)
        reward = rows.reward.to(device)
        parts.append(Features(latent, model.embed_action(action), imagined, reward))
    model.train(was_training)
    columns = zip(*parts, strict=True)
    features = Features(*(None if c[0] is None else torch.cat(c).float() for c in columns))
    if not all(bool(part.isfinite().all()) for part in features if part is not None):
        raise WorkbookError("the frozen model's latents, or the rewards, hold NaN or infinity")
    return features


def select_inputs(features: Features, kind: str) -> Tensor | None:
    """The inputs of a head of `kind` (M, width); None when the model has no imagined latent."""
    if kind == "reward_mlp":
        return head_inputs(features.latent, features.action)
    if features.imagined is None:
        return None
    ahead = features.latent if kind == "larp_copy" else features.imagined
    return head_inputs(features.latent, features.action, ahead)


# --- training ---------------------------------------------------------------------------------
class Trained(NamedTuple):
    """One trained head: None and a reason where the base model cannot have it."""

    head: RewardHead | None
    predicted: Tensor | None  # (M,) rewards of the validation part
    facts: dict[str, Any]  # status, initial hash, parameters, updates, best validation loss


def fit_head(
    head: RewardHead, train: TensorDataset, choice: TensorDataset, optim: EpochsConfig, *, seed: int
) -> Fit:
    """MSE on the rewards of (inputs (M, width), reward (M,)); validated every epoch."""

    def loss(batch: Any, _: Any) -> tuple[Tensor, dict[str, float]]:
        inputs, reward = batch
        return (head(inputs) - reward).square().mean(), {}

    return fit(head, loss, train, choice, optim, seed=seed)


def train_heads(
    train: Features,
    validation: Features,
    config: RewardConfig,
    *,
    seed: int,
    follow: Callable[[Fit, str], Iterable[Report]] = lambda fit, kind: fit,
) -> Generator[Report, None, dict[str, Trained]]:
    """Yield reports while each of `HEADS` trains; returns {kind: Trained}.

    Each head has its own noise from (seed, update): order and number of heads change nothing.
    `follow(fit, kind)` iterates a fit, for example to log it.
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
        parts = [
            TensorDataset(inputs[rows], train.reward[rows])
            for rows in (slice(learn), slice(learn, None))
        ]
        work = fit_head(head, *parts, config.optim, seed=seed)
        yield from follow(work, kind)
        work.load_best()
        head.eval().requires_grad_(False)
        facts |= {"updates": work.update, "best_loss": work.best_loss}
        results[kind] = Trained(head, head(held_out), facts)
    return results
