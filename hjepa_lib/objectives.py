"""The named loss terms of both levels (PLDM arXiv 2502.14819, EB-JEPA arXiv 2602.03604).

    L = sim*sim + std*a + std_t*l + cov*b + sim_t*d + idm*w + static*s   (+ lambda * KL at level 2)

| term  | pldm form                                        | eb_jepa form                     |
|-------|--------------------------------------------------|----------------------------------|
| sim   | mean_{t>=1,b,d} (z - zhat)^2                      | the same                         |
| std   | mean_d relu(1 - sqrt(Var_b(Z_0) + 1e-4))          | variance pooled over (B, T)      |
| std_t | mean_{b,d} relu(1 - sqrt(Var_{t>=1}(Z) + 1e-4))   | the same                         |
| cov   | sum_{i!=j} C_ij^2 / (D (D-1)), C of Z_0           | C of the pooled (B, T) samples   |
| sim_t | mean (z_t - z_{t-1})^2                            | the same                         |
| idm   | mean (MLP([z_t; z_{t+1}]) - a_t)^2                | the same, actions normalised     |
| static| 0, or mean (z_s - mean z_s of its layout)^2       | the same                         |

Terms take a `Rollout`, so level 2 uses the very same functions on its own time grid. `static` is
our own, for layouts that change: the first S = `level1.static_dim` components of a latent have to
agree between all states of a layout, whatever the dot does. Their samples for std and cov are the
means of the layouts (G, S); std and cov are then averages over the D components of both parts,
std_t and sim_t are those of the other D - S.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import LossConfig
from hjepa_lib.models.jepa import Rollout

EPS = 1e-4


class LossTerms(NamedTuple):
    """Unweighted scalars, in the order of `Level1LossConfig`."""

    sim: Tensor
    std: Tensor
    std_t: Tensor
    cov: Tensor
    sim_t: Tensor
    idm: Tensor
    static: Tensor


def similarity(predictions: Tensor, targets: Tensor) -> Tensor:
    """predictions (K, B, T', D), targets (B, T >= T', D); index 0 along T is the given start."""
    steps = predictions.shape[2]
    return (predictions[:, :, 1:] - targets[None, :, 1:steps]).square().mean()


def hinge_std(samples: Tensor, eps: float = EPS) -> Tensor:
    """samples (M, D) -> mean_d relu(1 - std over M)."""
    return F.relu(1 - (samples.var(dim=0) + eps).sqrt()).mean()


def hinge_std_time(latents: Tensor) -> Tensor:
    """latents (B, T, D) -> mean_{b,d} relu(1 - std over t >= 1)."""
    return F.relu(1 - (latents[:, 1:].var(dim=1) + EPS).sqrt()).mean()


def covariance(samples: Tensor) -> Tensor:
    """samples (M, D) -> mean squared off-diagonal entry of their covariance, 0 with D = 1."""
    count, dim = samples.shape
    centred = samples - samples.mean(dim=0)
    matrix = centred.T @ centred / (count - 1)  # (D, D)
    # The diagonal goes first: subtracting its squares from the sum would cancel, even below zero.
    off_diagonal = matrix - matrix.diagonal().diag()
    return off_diagonal.square().sum() / max(1, dim * (dim - 1))


def temporal_similarity(latents: Tensor) -> Tensor:
    """latents (B, T, D) -> mean (z_t - z_{t-1})^2."""
    return (latents[:, 1:] - latents[:, :-1]).square().mean()


def inverse_dynamics(latents: Tensor, actions: Tensor, head: nn.Module) -> Tensor:
    """latents (B, T, D), actions (B, T-1, A) normalised; `head` maps 2D -> A."""
    pairs = torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1)
    return (head(pairs).float() - actions).square().mean()


def layout_means(static: Tensor, layouts: Tensor) -> Tensor:
    """static (B, T, S), layouts (B,) in 0..G-1, each used -> (G, S) mean over a layout's states."""
    count, steps = int(layouts.max()) + 1, static.shape[1]
    total = static.new_zeros(count, static.shape[2]).index_add(0, layouts, static.sum(1))
    return total / (steps * layouts.bincount(minlength=count))[:, None]


def loss_terms(
    rollout: Rollout,
    form: str,
    idm_head: nn.Module | None,
    static: int = 0,
    layouts: Tensor | None = None,
) -> LossTerms:
    """All terms of one level; without a head (or actions) the idm term is 0.

    With `static` S > 0 the first S of D components are the static part, and `layouts` (B,), whole
    numbers in 0..G-1 with G > 1 (else ValueError), says which windows share a layout.
    """
    latents = rollout.encodings
    moving = latents[..., static:]
    samples = moving[:, 0] if form == "pldm" else moving.flatten(0, 1)
    zero = latents.new_zeros(())
    std, cov, spread = hinge_std(samples), covariance(samples), zero
    if static:
        if layouts is None or int(layouts.max()) == 0:
            raise ValueError("a static part needs windows of at least two layouts")
        means = layout_means(latents[..., :static], layouts)  # (G, S)
        spread = (latents[..., :static] - means[layouts][:, None]).square().mean()
        share = static / latents.shape[-1]
        std = share * hinge_std(means) + (1 - share) * std
        cov = share * covariance(means) + (1 - share) * cov
    return LossTerms(
        sim=similarity(rollout.predictions, rollout.targets),
        std=std,
        std_t=hinge_std_time(moving) if latents.shape[1] > 2 else zero,
        cov=cov,
        sim_t=temporal_similarity(moving),
        idm=zero if idm_head is None else inverse_dynamics(latents, rollout.actions, idm_head),
        static=spread,
    )


def weighted_sum(terms: LossTerms, config: LossConfig) -> Tensor:
    """The scalar that is minimised; a level without a coefficient for `static` has no such part."""
    return sum(getattr(config, name, 0.0) * value for name, value in terms._asdict().items())
