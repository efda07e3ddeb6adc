"""What keeps latents from collapsing (LOSS-2 to LOSS-5), as modules of the model they regularise.

Each maps one batch of latents (B, D), or two views of it, to (total, unweighted terms).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.models.objectives import covariance, hinge_std

Regularisation = tuple[Tensor, dict[str, Tensor]]
MOST = {"projection": 10.0, "covariance": 100.0, "term": 100.0}
"""The clamps of seed 001, an option."""


class VICReg(nn.Module):
    """sim * mean (z1 - z2)^2 + std * hinge + cov * sum_{i!=j} C_ij^2 / D (LOSS-2).

    arXiv 2105.04906; std and cov are averaged over the views; one view has no `sim`.
    """

    def __init__(self, config: AuxiliaryConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector: nn.Module = nn.Identity()
        if config.projector:
            width = config.projector_dim
            layers: list[nn.Module] = []
            for before, after in pairwise((latent_dim, width, width)):
                # Batch norm and centring cancel a bias, which would be counted and never learn.
                layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
            self.projector = nn.Sequential(*layers, nn.Linear(width, width, bias=False))

    def forward(self, *views: Tensor) -> Regularisation:
        config, views = self.config, [self.projector(view) for view in views]
        if config.clamp:
            views = [view.clamp(-MOST["projection"], MOST["projection"]) for view in views]
        parts = zip(*map(self._spread, views), strict=True)
        std, cov = (torch.stack(part).mean() for part in parts)
        sim = F.mse_loss(*views) if len(views) == 2 else views[0].new_zeros(())
        terms = {"sim": sim, "std": std, "cov": cov}
        if config.clamp:
            terms = {name: term.clamp(max=MOST["term"]) for name, term in terms.items()}
        return sum(getattr(config, name) * term for name, term in terms.items()), terms

    def _spread(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.clamp:
            return hinge_std(z, self.config.eps), covariance(z) * (z.shape[1] - 1)
        centred, most = z - z.mean(dim=0), MOST["covariance"]
        matrix = (centred.T @ centred / (len(z) - 1)).clamp(-most, most)
        cov = _off_diagonal(matrix) / z.shape[1]
        return hinge_std(z, self.config.eps), cov


class BarlowTwins(nn.Module):
    """sum_i (C_ii - 1)^2 + lambda * sum_{i!=j} C_ij^2 (LOSS-3, arXiv 2103.03230).

    C is the correlation matrix of two views, or of one with itself.
    """

    def __init__(self, config: AuxiliaryConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config

    def forward(self, *views: Tensor) -> Regularisation:
        config, scaled = self.config, []
        for z in views:
            variance = z.var(dim=0, unbiased=False)
            scaled.append((z - z.mean(dim=0)) / (variance + config.barlow_eps).sqrt())
        matrix = scaled[0].T @ scaled[-1] / len(scaled[0])  # (D, D)
        invariance = (matrix.diagonal() - 1).square().sum()
        redundancy = _off_diagonal(matrix)
        total = config.barlow_scale * (invariance + config.barlow_lambda * redundancy)
        return total, {"invariance": invariance, "redundancy": redundancy}


class DinoCentring(nn.Module):
    """|| mean z - c ||^2, c <- m c + (1 - m) mean z (LOSS-4, after arXiv 2104.14294).

    By itself it does not prevent collapse.
    """

    def __init__(self, config: AuxiliaryConfig, latent_dim: int) -> None:
        super().__init__()
        self.momentum = config.dino_momentum
        self.register_buffer("centre", torch.zeros(latent_dim))

    def forward(self, *views: Tensor) -> Regularisation:
        mean = torch.cat(views).mean(dim=0)
        distance = (mean - self.centre).square().sum()
        if self.training:
            # A new tensor, not an in-place change: the loss above still needs the old centre.
            self.centre = self.centre.lerp(mean.detach().to(self.centre), 1 - self.momentum)
        return distance, {"centre": distance}


def build_regulariser(config: AuxiliaryConfig, latent_dim: int) -> nn.Module | None:
    """The regulariser `config.kind`; None for `none` or weight 0 (it could not learn anything)."""
    kinds = {"vicreg": VICReg, "barlow_twins": BarlowTwins, "dino": DinoCentring}
    if config.kind == "none" or config.weight == 0:
        return None
    return kinds[config.kind](config, latent_dim)


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Sum of the squares."""
    return (matrix - matrix.diagonal().diag()).square().sum()
