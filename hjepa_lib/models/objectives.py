"""The six named loss terms of both levels (PLDM arXiv 2502.14819, EB-JEPA arXiv 2602.03604).

    L = sim*sim + std*a + std_t*l + cov*b + sim_t*d + idm*w   (+ lambda * KL at level 2)

| term  | pldm form                                        | eb_jepa form                     |
|-------|--------------------------------------------------|----------------------------------|
| sim   | mean_{t>=1,b,d} (z - zhat)^2                      | the same                         |
| std   | mean_d relu(1 - sqrt(Var_b(Z_0) + 1e-4))          | variance pooled over (B, T)      |
| std_t | mean_{b,d} relu(1 - sqrt(Var_{t>=1}(Z) + 1e-4))   | the same                         |
| cov   | sum_{i!=j} C_ij^2 / (D (D-1)), C of Z_0           | C of the pooled (B, T) samples   |
| sim_t | mean (z_t - z_{t-1})^2                            | the same                         |
| idm   | mean (MLP([z_t; z_{t+1}]) - a_t)^2                | the same, actions normalised     |

A seventh, of our own: the first S = `level1.static_dim` components agree between all states of a
layout and tell layouts apart, as VICReg (arXiv 2105.04906) with the states of a layout as views:

    static = mean (z_s - m)^2 + std(m) + cov(m),   m (G, S) the means over each layout

std, std_t, cov and sim_t are then those of the other D - S components.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import LossConfig
from hjepa_lib.models.layers import full_precision
from hjepa_lib.models.level1 import Rollout


def similarity(predictions: Tensor, targets: Tensor) -> Tensor:
    """predictions (K, B, T', D), targets (B, T >= T', D); index 0 along T is the given start."""
    steps = predictions.shape[2]
    return (predictions[:, :, 1:] - targets[None, :, 1:steps]).square().mean()


def hinge_std(samples: Tensor, eps: float = 1e-4, over: int = 0) -> Tensor:
    """samples (M, D) -> mean_d relu(1 - std over M), or over another axis."""
    return F.relu(1 - (samples.var(dim=over) + eps).sqrt()).mean()


def covariance(samples: Tensor) -> Tensor:
    """samples (M, D) -> mean squared off-diagonal entry of their covariance, 0 with D = 1."""
    count, dim = samples.shape
    centred = samples - samples.mean(dim=0)
    with full_precision(samples):
        matrix = centred.T @ centred / (count - 1)  # (D, D)
    # The diagonal goes first: subtracting its squares from the sum would cancel, even below zero.
    off_diagonal = matrix - matrix.diagonal().diag()
    return off_diagonal.square().sum() / max(1, dim * (dim - 1))


def inverse_dynamics(latents: Tensor, actions: Tensor, head: nn.Module) -> Tensor:
    """latents (B, T, D), actions (B, T-1, A) normalised; `head` maps 2D -> A."""
    pairs = torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1)
    with full_precision(latents):
        return (head(pairs) - actions).square().mean()


def layout_identity(static: Tensor, layouts: Tensor) -> Tensor:
    """static (B, T, S), layouts (B,) in 0..G-1, each used -> the term `static`.

    Of a single layout its first part: there is nothing to tell apart.
    """
    count, steps = int(layouts.max()) + 1, static.shape[1]
    total = static.new_zeros(count, static.shape[2]).index_add(0, layouts, static.sum(1))
    means = total / (steps * layouts.bincount(minlength=count))[:, None]  # (G, S)
    spread = (static - means[layouts][:, None]).square().mean()
    return spread + hinge_std(means) + covariance(means) if count > 1 else spread


def loss_terms(
    rollout: Rollout, config: LossConfig, idm_head: nn.Module | None, static: int = 0,
    weighted_only: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Unweighted scalars of one level by name; without a head the idm term is 0.

    The first `static` components are left to `layout_identity`; `weighted_only`: those with a
    weight in `config`.
    """
    latents = rollout.encodings
    moving = latents[..., static:]
    samples = moving[:, 0] if config.form == "pldm" else moving.flatten(0, 1)
    zero = latents.new_zeros(())
    terms: dict[str, Callable[[], Tensor]] = {
        "sim": lambda: similarity(rollout.predictions, latents),
        "std": lambda: hinge_std(samples),
        "std_t": lambda: hinge_std(moving[:, 1:], over=1) if latents.shape[1] > 2 else zero,
        "cov": lambda: covariance(samples),
        "sim_t": lambda: moving.diff(dim=1).square().mean(),
        "idm": lambda: inverse_dynamics(latents, rollout.actions, idm_head) if idm_head else zero,
    }
    wanted = [name for name in terms if getattr(config, name) or not weighted_only]
    return {name: terms[name]() for name in wanted}


def weighted_sum(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """The scalar that is minimised."""
    return sum(getattr(config, name) * value for name, value in terms.items())
