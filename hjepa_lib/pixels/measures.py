"""What shape a latent space has (MET-1): spread, dimension, neighbours, smoothness, robustness.

Functions take latents z as (M, D) and states s as (M, P) float arrays, both of the same
M samples; NaN means "not estimable" (too few distinct samples, or a latent without any spread).
Numbers of different latent spaces are comparable because each is free of the latent's unit.

| measure             | source                                                                   |
|---------------------|--------------------------------------------------------------------------|
| participation ratio | (sum l)^2 / sum l^2 of the covariance's eigenvalues l; Gao et al. 2017   |
| effective rank      | training/probes.py; Roy & Vetterli 2007                                  |
| two-NN dimension    | Facco, d'Errico, Rodriguez, Laio 2017                                    |
| trust, continuity   | Venna & Kaski 2001: neighbours of the latent among those of the pixels   |
| smoothness R2       | squared correlation of pixel and latent distances of consecutive states  |
| noise sensitivity   | mean latent shift under pixel noise, over the latent's own spread        |
| uniformity          | log mean exp(-2 |u - v|^2) of unit vectors; Wang & Isola 2020            |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.training.probes import effective_rank

NEIGHBOURS = 5
SIGMAS = (0.01, 0.05, 0.1, 0.15, 0.2)
"""Standard deviations of the pixel noise, pixels in [0, 1]."""
KEPT = 0.9
"""Share of the two-NN ratios that the fit uses: the largest ones are noise (Facco et al.)."""
MOST = 600
"""Samples of a report: neighbourhoods cost M^2."""
_LEAST = 2 * NEIGHBOURS + 1  # trustworthiness is defined for fewer neighbours than M / 2
_FLAT = 1e-12  # a variance below this share of the mean square is rounding


class Sample(NamedTuple):
    """The same M transitions for every model."""

    state: Tensor  # (M, L, C, H, W) uint8
    next_state: Tensor  # (M, L, C, H, W) uint8


def spectrum(latents: np.ndarray) -> np.ndarray:
    """(M, D) -> (D,) eigenvalues of the covariance, largest first, not negative."""
    z = _matrix(latents)
    centred = z - z.mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2 / max(1, len(z) - 1)
    return np.pad(values, (0, z.shape[1] - len(values)))


def participation_ratio(latents: np.ndarray) -> float:
    """Number of directions that share the variance: D for white z, 1 for a line, NaN for a point.

    (sum l)^2 / sum l^2 of the covariance's eigenvalues l, in [1, D].
    """
    z = _matrix(latents)
    if _flat(z):
        return math.nan
    values = spectrum(z)
    return float(values.sum() ** 2 / np.square(values).sum())


def rank(latents: np.ndarray) -> float:
    """exp(entropy of the singular values' shares), in [1, D]; NaN for a point."""
    z = _matrix(latents)
    return math.nan if _flat(z) else effective_rank(torch.from_numpy(z))


def two_nn(latents: np.ndarray) -> float:
    """Intrinsic dimension from the two nearest neighbours at distances r1 <= r2 of every sample.

    mu = r2 / r1 has the distribution F(mu) = 1 - mu^-d, so -log(1 - F) over log mu is a line
    through the origin with slope d; the largest tenth of the mu is left out. Equal samples count
    once: r1 would be 0. NaN below 11 distinct samples.
    """
    from sklearn.neighbors import NearestNeighbors

    z = np.unique(_matrix(latents), axis=0)
    if len(z) < _LEAST:
        return math.nan
    distance, _ = NearestNeighbors(n_neighbors=3).fit(z).kneighbors(z)  # itself, first, second
    near = distance[:, 1] > 0
    ratio = np.sort(distance[near, 2] / distance[near, 1])
    if len(ratio) < _LEAST:
        return math.nan
    kept = int(KEPT * len(ratio))
    x = np.log(ratio[:kept])
    y = -np.log1p(-np.arange(1, kept + 1) / len(ratio))
    weight = float(x @ x)
    return float(x @ y / weight) if weight > 0 else math.nan


def trust(states: np.ndarray, latents: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Share, in [0, 1], in which neighbours in the latent are neighbours in pixels as well.

    1 - 2 / (M k (2M - 3k - 1)) * sum of (rank in pixels - k) over the latent's k neighbours; k = 5.
    """
    from sklearn.manifold import trustworthiness

    s, z = _matrix(states), _matrix(latents)
    if len(s) != len(z):
        raise ValueError(f"states and latents must have equal length, got {len(s)} and {len(z)}")
    if len(z) <= 2 * neighbours or _flat(s) or _flat(z):
        return math.nan
    return float(trustworthiness(s, z, n_neighbors=neighbours))


def continuity(states: np.ndarray, latents: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Share in which neighbours in pixels stay neighbours in the latent: `trust`, roles swapped."""
    return trust(latents, states, neighbours)


def smoothness(
    states: np.ndarray, next_states: np.ndarray, latents: np.ndarray, next_latents: np.ndarray
) -> float:
    """Squared Pearson correlation, in [0, 1], of |s_t - s_{t+1}| and |z_t - z_{t+1}| (M pairs)."""
    pixel = np.linalg.norm(_matrix(next_states) - _matrix(states), axis=1)
    latent = np.linalg.norm(_matrix(next_latents) - _matrix(latents), axis=1)
    if len(pixel) < 3 or _flat(pixel[:, None]) or _flat(latent[:, None]):
        return math.nan
    return float(np.corrcoef(pixel, latent)[0, 1] ** 2)


def uniformity(latents: np.ndarray) -> float:
    """log mean exp(-2 |u_i - u_j|^2) over i != j, u the latents on the unit sphere.

    0 when all directions are equal, about -4 when they are spread evenly in many dimensions.
    """
    z = torch.from_numpy(_matrix(latents))
    if len(z) < 2:
        return math.nan
    unit = z / z.norm(dim=1, keepdim=True).clamp_min(1e-12)
    gaps = torch.pdist(unit).square()
    return float(torch.logsumexp(-2 * gaps, 0) - math.log(len(gaps)))


def noise_sensitivity(
    encode: Callable[[Tensor], Tensor],
    state: Tensor,
    sigmas: tuple[float, ...] = SIGMAS,
    seed: int = 0,
) -> dict[float, float]:
    """{sigma: mean |z(s + noise) - z(s)| / spread of z}, noise N(0, sigma^2) on pixels in [0, 1].

    `encode` maps uint8 states (M, ...) to (M, D); noisy pixels are clipped and rounded to uint8
    again. The spread is the root mean squared distance of the latents from their mean, so 1 means:
    noise moves a latent as far as another state would. The same noise for every model and sigma.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(state.shape, generator=generator).to(state.device)
    clean = encode(state).double()
    spread = (clean - clean.mean(0)).square().sum(1).mean().sqrt()
    flat = _flat(clean.cpu().numpy())
    found = {}
    for sigma in sigmas:
        noisy = (state + 255 * sigma * noise).round().clamp(0, 255).to(torch.uint8)
        shift = (encode(noisy).double() - clean).norm(dim=1).mean()
        found[sigma] = math.nan if flat else float(shift / spread)
    return found


@torch.no_grad()
def measure(encode: Callable[[Tensor], Tensor], sample: Sample, seed: int = 0) -> dict[str, float]:
    """All measures of one encoder on one sample, by the names of the comparison table."""
    latents = encode_chunked(encode, sample.state)
    following = encode_chunked(encode, sample.next_state)
    states, next_states = (_pixels(part) for part in sample)
    z, after = latents.cpu().numpy(), following.cpu().numpy()
    found = {
        "participation_ratio": participation_ratio(z),
        "effective_rank": rank(z),
        "two_nn_dimension": two_nn(z),
        "trustworthiness_at_5": trust(states, z),
        "continuity_at_5": continuity(states, z),
        "smoothness_r2": smoothness(states, next_states, z, after),
        "uniformity": uniformity(z),
        "latent_std": float(_matrix(z).std(0).mean()),
    }
    noise = noise_sensitivity(lambda part: encode_chunked(encode, part), sample.state, seed=seed)
    return found | {f"noise_{sigma:g}": value for sigma, value in noise.items()}


def encode_chunked(encode: Callable[[Tensor], Tensor], state: Tensor, size: int = 128) -> Tensor:
    """(M, ...) states -> (M, D) float32 latents, `size` states at a time."""
    with torch.no_grad():
        return torch.cat([encode(part).float() for part in state.split(size)])


def pick(count: int, most: int = MOST, seed: int = 0) -> Tensor:
    """At most `most` of `count` rows in ascending order, the same ones for every model."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def _pixels(state: Tensor) -> np.ndarray:
    """(M, L, C, H, W) uint8 -> (M, P) in [0, 1]."""
    return state.flatten(1).cpu().numpy().astype(np.float64) / 255


def _matrix(values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"samples must be (M, D) and not empty, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("samples hold values that are not finite")
    return array


def _flat(values: np.ndarray) -> bool:
    """True when the samples do not differ by more than rounding."""
    array = np.asarray(values, dtype=np.float64)
    return bool(array.var(0).sum() <= _FLAT * max(1.0, float(np.square(array).sum(1).mean())))
