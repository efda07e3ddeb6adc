"""What keeps latents from collapsing: VICReg, Barlow Twins, DINO centring (LOSS-2 to LOSS-5).

    VICReg (arXiv 2105.04906)   sim * mean (z1 - z2)^2 + std * hinge + cov * sum_{i!=j} C_ij^2 / D
    Barlow Twins (2103.03230)   sum_i (C_ii - 1)^2 + lambda * sum_{i!=j} C_ij^2
    centring (after 2104.14294) || mean z - c ||^2,  c <- m c + (1 - m) mean z

Each is a module of the model that it regularises, so that a projector is optimised (F9), and takes
one batch of latents (B, D) or two views of it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.models.objectives import EPS, covariance, hinge_std

MOST = {"projection": 10.0, "covariance": 100.0, "term": 100.0}
"""The clamps of seed 001, an option."""


class Regularisation(NamedTuple):
    """What is added to a loss, before `weight`."""

    total: Tensor
    terms: dict[str, Tensor]  # unweighted


class BatchTerms(NamedTuple):
    """Of one batch (B, D)."""

    std: Tensor  # mean_d relu(1 - sqrt(var + eps)): 0 with unit spread, near 1 under collapse
    cov: Tensor  # sum_{i!=j} C_ij^2 / D: 0 when the dimensions are uncorrelated


def regularisation_terms(z: Tensor, eps: float = EPS) -> BatchTerms:
    """VICReg's std and cov of one batch (B, D)."""
    return BatchTerms(hinge_std(z, eps), covariance(z) * (z.shape[1] - 1))


class VICReg(nn.Module):
    """Spread every dimension, decorrelate them, and hold two views together (LOSS-2).

    std and cov are averaged over the views; one view has no `sim`.
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

    def forward(self, first: Tensor, second: Tensor | None = None) -> Regularisation:
        views = [self.projector(view) for view in (first, second) if view is not None]
        if self.config.clamp:
            views = [view.clamp(-MOST["projection"], MOST["projection"]) for view in views]
        parts = [self._batch_terms(view) for view in views]
        terms = {
            "sim": F.mse_loss(*views) if len(views) == 2 else first.new_zeros(()),
            "std": torch.stack([part.std for part in parts]).mean(),
            "cov": torch.stack([part.cov for part in parts]).mean(),
        }
        if self.config.clamp:
            terms = {name: term.clamp(max=MOST["term"]) for name, term in terms.items()}
        return Regularisation(sum(getattr(self.config, k) * v for k, v in terms.items()), terms)

    def _batch_terms(self, z: Tensor) -> BatchTerms:
        if not self.config.clamp:
            return regularisation_terms(z, self.config.eps)
        centred, most = z - z.mean(dim=0), MOST["covariance"]
        matrix = (centred.T @ centred / (len(z) - 1)).clamp(-most, most)
        cov = _off_diagonal(matrix).square().sum() / z.shape[1]
        return BatchTerms(hinge_std(z, self.config.eps), cov)


class BarlowTwins(nn.Module):
    """The correlation matrix of two views (or of one with itself) towards identity (LOSS-3)."""

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, first: Tensor, second: Tensor | None = None) -> Regularisation:
        one = self._standardised(first)
        two = one if second is None else self._standardised(second)
        matrix = one.T @ two / len(one)  # (D, D)
        terms = {
            "invariance": (matrix.diagonal() - 1).square().sum(),
            "redundancy": _off_diagonal(matrix).square().sum(),
        }
        total = terms["invariance"] + self.config.barlow_lambda * terms["redundancy"]
        return Regularisation(self.config.barlow_scale * total, terms)

    def _standardised(self, z: Tensor) -> Tensor:
        variance = z.var(dim=0, unbiased=False)
        return (z - z.mean(dim=0)) / (variance + self.config.barlow_eps).sqrt()


class DinoCentring(nn.Module):
    """Holds the batch mean near its own slow average; by itself it does not prevent collapse."""

    centre: Tensor

    def __init__(self, config: AuxiliaryConfig, latent_dim: int) -> None:
        super().__init__()
        self.momentum = config.dino_momentum
        self.register_buffer("centre", torch.zeros(latent_dim))

    def forward(self, first: Tensor, second: Tensor | None = None) -> Regularisation:
        z = first if second is None else torch.cat([first, second])
        if z.ndim != 2 or z.shape[1] != len(self.centre):
            raise ValueError(f"latents must be (B, {len(self.centre)}), got {tuple(z.shape)}")
        mean = z.mean(dim=0)
        distance = (mean - self.centre).square().sum()
        if self.training:
            # A new tensor, not an in-place change: the loss above still needs the old centre.
            self.centre = self.centre.lerp(mean.detach().to(self.centre), 1 - self.momentum)
        return Regularisation(distance, {"centre": distance})


def build_regulariser(config: AuxiliaryConfig, latent_dim: int) -> nn.Module | None:
    """The regulariser `config.kind`; None for `none` or weight 0 (it could not learn anything)."""
    if config.kind == "none" or config.weight == 0:
        return None
    if config.kind == "barlow_twins":
        return BarlowTwins(config)
    return (VICReg if config.kind == "vicreg" else DinoCentring)(config, latent_dim)


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix - matrix.diagonal().diag()
