"""One way to train on transitions, what keeps latents from collapsing, and heads on frozen latents.

The indices of a batch are drawn first: all models of one seed see the same transitions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hjepa_lib.config.pixels import AuxiliaryConfig, EpochsConfig, RewardConfig
from hjepa_lib.models.layers import mlp
from hjepa_lib.models.objectives import covariance, hinge_std
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.training.loop import Fit, Task, draw_batch, mean_terms, seeded_noise

CHUNK = 256  # transitions encoded at once outside training: activations stay near 100 MB


def fit(
    module: Any,
    train: Any,
    validation: Any,
    optim: EpochsConfig,
    *,
    most: int | None = None,
    **options: Any,
) -> Fit:
    """Iterate to train `module` in place on data of which `data[rows]` is a batch.

    `module.loss(batch, generator)` is (the scalar to minimise, named terms). Validated once an
    epoch, on `most` rows at most. `options` are those of the loop: seed, precision, folder, stage.
    """
    device = next(module.parameters()).device

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = _at(train, draw_batch(len(train), optim.batch, generator), device)
        with seeded_noise(generator, device):
            return module.loss(batch, generator)

    def validate() -> dict[str, float]:
        return mean_loss(module, validation, optim.batch, most)

    after = getattr(module, "after_update", None)
    task = Task(module, loss, None if validation is None else validate, after)
    return Fit(task, optim.optim(len(train)), skips=True, **options)


@torch.no_grad()
def mean_loss(module: Any, data: Any, batch: int, most: int | None = None) -> dict[str, float]:
    """Loss and its terms over `data`, or `most` of its rows, weighted by rows.

    Batches are shuffled, always alike, and about as large as in training: a covariance of
    neighbours, or of more rows, would be another quantity.
    """
    device = next(module.parameters()).device
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most]
    pieces = rows.tensor_split(max(1, len(rows) // batch))
    generator = torch.Generator().manual_seed(0)
    parts = ((len(i), *module.loss(_at(data, i, device), generator)) for i in pieces)
    return mean_terms(parts, len(rows))


def _at(data: Any, rows: Tensor, device: torch.device) -> Any:
    batch = data[rows]
    return batch.to(device) if hasattr(batch, "to") else batch


@torch.no_grad()
def in_chunks(
    function: Callable[[Any], dict[str, Tensor]], data: Transitions, device: torch.device | str,
    rows: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What `function(batch)` gives by name for `rows` of the transitions, all if None, joined."""
    rows = torch.arange(len(data)) if rows is None else rows
    parts = [function(data[few].to(device)) for few in rows.split(CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# --- auxiliary losses (LOSS-2 to LOSS-5): latents (B, D), or two views -> (total, unweighted terms)
Regularisation = tuple[Tensor, dict[str, Tensor]]
Regulariser = Callable[..., Regularisation]
KEPT = 0.9  # share that the centre of DINO keeps


def vicreg(config: AuxiliaryConfig, *views: Tensor) -> Regularisation:
    """sim * mean (z1 - z2)^2 + std * hinge + cov * sum_{i!=j} C_ij^2 / D (LOSS-2).

    arXiv 2105.04906; std and cov are averaged over the views; one view has no `sim`.
    """
    std = torch.stack([hinge_std(view) for view in views]).mean()
    spread = [covariance(view) * (view.shape[1] - 1) for view in views]
    sim = F.mse_loss(*views) if len(views) == 2 else views[0].new_zeros(())
    terms = {"sim": sim, "std": std, "cov": torch.stack(spread).mean()}
    return sum(getattr(config, name) * term for name, term in terms.items()), terms


def barlow_twins(config: AuxiliaryConfig, *views: Tensor) -> Regularisation:
    """sum_i (C_ii - 1)^2 + lambda * sum_{i!=j} C_ij^2 (LOSS-3, arXiv 2103.03230).

    C is the correlation matrix of two views, or of one with itself.
    """
    scaled = []
    for z in views:
        variance = z.var(dim=0, unbiased=False)
        scaled.append((z - z.mean(dim=0)) / (variance + 1e-5).sqrt())
    matrix = scaled[0].T @ scaled[-1] / len(scaled[0])  # (D, D)
    invariance = (matrix.diagonal() - 1).square().sum()
    redundancy = (matrix - matrix.diagonal().diag()).square().sum()
    total = invariance + config.barlow_lambda * redundancy
    return total, {"invariance": invariance, "redundancy": redundancy}


class DinoCentring(nn.Module):
    """|| mean z - c ||^2, c <- m c + (1 - m) mean z (LOSS-4, after arXiv 2104.14294).

    By itself it does not prevent collapse.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(latent_dim))

    def forward(self, *views: Tensor) -> Regularisation:
        mean = torch.cat(views).mean(dim=0)
        distance = (mean - self.centre).square().sum()
        if self.training:
            # A new tensor, not an in-place change: the loss above still needs the old centre.
            self.centre = self.centre.lerp(mean.detach().to(self.centre), 1 - KEPT)
        return distance, {"centre": distance}


def build_regulariser(config: AuxiliaryConfig, latent_dim: int) -> Regulariser | None:
    """The regulariser `config.kind`; None for `none` or weight 0."""
    if config.kind == "none" or config.weight == 0:
        return None
    if config.kind == "dino":
        return DinoCentring(latent_dim)
    return partial(vicreg if config.kind == "vicreg" else barlow_twins, config)


# --- reward heads (MOD-11, MOD-12), all of one architecture: the reward MLP reads [z_t, a], the
# look-ahead reward predictor (LARP) the imagined latent, too
HEADS = ("reward_mlp", "larp", "larp_copy")
"""Reward MLP, LARP, and LARP told that nothing will move (the present latent as the imagined)."""
LEAST_DEVIATION = 1e-5  # a feature that varies less is constant: it is centred, never amplified


class RewardHead(nn.Module):
    """MLP from (B, width) inputs to (B,) rewards, in the environment's reward units.

    First weights depend on `seed` and the layer's widths alone: equal for every base model. They
    go by what comes in, and the last are 0: by what goes out (MOD-13) the one number would begin 70
    times as far from the mean as rewards are.
    """

    def __init__(self, config: RewardConfig, width: int, seed: int = 0) -> None:
        super().__init__()
        self.width = width
        hidden = [config.hidden] * config.layers
        self.net = mlp(width, *hidden, 1, dropout=config.dropout)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        for index, layer in enumerate(one for one in self.net if isinstance(one, nn.Linear)):
            torch.manual_seed(seed * 1_009 + index)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(layer.weight)

    def standardise(self, inputs: Tensor) -> None:
        """Take mean and deviation of training `inputs` (M, width): no units decide."""
        exact = inputs.cpu().double()  # S7
        deviation = exact.std(0, correction=0)
        self.centre.copy_(exact.mean(0))
        self.deviation.copy_(deviation.masked_fill(deviation < LEAST_DEVIATION, 1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net((inputs - self.centre) / self.deviation).squeeze(-1)

    def loss(self, batch: tuple[Tensor, Tensor], _: Any = None) -> tuple[Tensor, dict[str, float]]:
        """MSE on the rewards of (inputs (B, width), reward (B,))."""
        inputs, reward = batch
        return (self(inputs) - reward).square().mean(), {}


class Features(NamedTuple):
    """What heads read, for M transitions, detached."""

    latent: Tensor  # (M, D)
    action: Tensor  # (M, 32), the base model's own embedding
    reward: Tensor  # (M,)
    imagined: Tensor | None = None  # (M, D); None for a model without an imagined latent (F9)

    def rows(self, rows: Tensor) -> "Features":
        """Some of the transitions."""
        return Features(*(part if part is None else part[rows] for part in self))

    def inputs(self, kind: str) -> Tensor | None:
        """(M, width) of a head of `HEADS`; None when the model has no imagined latent."""
        if kind == "reward_mlp":
            return torch.cat([self.latent, self.action], dim=-1)
        if self.imagined is None:
            return None
        ahead = self.latent if kind == "larp_copy" else self.imagined
        return torch.cat([self.latent, ahead, self.action], dim=-1)


def encode(model: Any, data: Any) -> Features:
    """What heads read of all transitions."""

    def features(batch: Any) -> dict[str, Tensor]:
        latent = model.encode(batch.state)
        imagined = model.imagine(latent, batch.action)
        found = {"latent": latent, "action": model.action(batch.action), "reward": batch.reward}
        return found if imagined is None else found | {"imagined": imagined}

    return Features(**in_chunks(features, data, model.eval().background.device))


def fit_head(
    kind: str, train: Features, choice: Features, config: RewardConfig, seed: int
) -> Fit | None:
    """Iterate to train a head of `HEADS`; None when the model has no imagined latent.

    Batches, noise and budget are the same for all models; `choice` chooses the weights.
    """
    inputs = train.inputs(kind)
    if inputs is None:
        return None
    head = RewardHead(config, inputs.shape[1], seed).to(inputs.device)
    if config.standardise:
        head.standardise(inputs)
    parts = (TensorDataset(one.inputs(kind), one.reward) for one in (train, choice))
    return fit(head, *parts, config.optim, seed=seed)
