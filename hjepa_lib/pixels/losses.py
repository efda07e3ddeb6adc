"""What keeps latents from collapsing (LOSS-2 to LOSS-5).

Each maps a batch of latents (B, D), or two views of it, to (total, unweighted terms).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.models.objectives import covariance, hinge_std

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
