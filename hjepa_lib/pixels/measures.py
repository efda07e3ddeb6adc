"""Measures of a frozen model: errors beside trivial guesses, px, the shape of its latents (MET-1).

Measures of shape take float64 latents z (M, D) and states s (M, P) of the same samples and are free
of the latent's unit; NaN is "not estimable".
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial.distance import pdist
from scipy.special import logsumexp
from torch import Tensor

from hjepa_lib.pixels.compare import SIGMAS
from hjepa_lib.pixels.training import CHUNK
from hjepa_lib.pixels.transitions import Transitions, scaled
from hjepa_lib.training.probes import FLAT, effective_rank, fit_ridge

NEIGHBOURS = 5
KEPT = 0.9  # share of the two-NN ratios that the fit uses: the largest ones are noise
MOST = 600  # samples of a report: neighbourhoods cost M^2
CHANGED = 0.02  # difference from which on a pixel has changed
STEPS = 8  # imagined ones, at most
WINDOWS, STRENGTH = 1_000, 1e-5  # windows read and scored; weight of the read-out
_LEAST = 2 * NEIGHBOURS + 1  # trustworthiness is defined for fewer neighbours than M / 2
Predict = Callable[[Any], Tensor]
"""A batch of transitions -> next frames (B, C, H, W)."""
Encode = Callable[[Tensor], Tensor]
"""uint8 states (M, L, C, H, W) -> latents (M, D)."""


@torch.no_grad()
def transition_errors(
    train: Transitions,
    data: Transitions,
    device: torch.device | str,
    model: Any = None,
    predict: Predict | None = None,
) -> dict[str, np.ndarray]:
    """Mean squared errors (M,) per transition of `data`, and of guesses that know `train` alone.

    `frame` of `predict`, `copy_last_frame` and `mean_frame` in pixels of [0, 1]; `latent`,
    `copy_last_latent` and `mean_latent` where `model` imagines encodings; `changed`, the share of
    pixels that move. `frame_guess` and `latent_guess`: the better of both (X1).
    """
    mean, named = train.mean_frame.to(device), model is not None and model.predicts_latents
    if named:
        few = train[pick(len(train))].next_state.to(device)
        centre = encode_chunked(model.encode_target, few).mean(0).float().to(device)

    def errors(batch: Any) -> dict[str, Tensor]:
        before, after = scaled(batch.state[:, -1]), scaled(batch.next_state[:, -1])
        pairs = {"copy_last_frame": (before, after), "mean_frame": (mean.expand_as(after), after)}
        if predict is not None:
            pairs["frame"] = predict(batch), after
        if named:
            truth = model.encode_target(batch.next_state)
            pairs["latent"] = model.imagine(model.encode(batch.state), batch.action), truth
            pairs["copy_last_latent"] = model.encode_target(batch.state), truth
            pairs["mean_latent"] = centre.expand_as(truth), truth
        found = {name: (one.float() - two.float()).square() for name, (one, two) in pairs.items()}
        found["changed"] = ((after - before).abs() > CHANGED).float()
        return {name: part.flatten(1).mean(1).cpu().double() for name, part in found.items()}

    parts = [errors(data[rows].to(device)) for rows in torch.arange(len(data)).split(CHUNK)]
    found = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return found | {
        f"{of}_guess": better(found[f"copy_last_{of}"], found[f"mean_{of}"])
        for of in ("frame", "latent")
        if f"mean_{of}" in found
    }


def better(*guesses: np.ndarray) -> np.ndarray:
    """The errors with the lowest mean."""
    return min(guesses, key=np.mean)


@torch.no_grad()
def place_errors(
    model: Any, train: Transitions, data: Transitions, seed: int, steps: int = STEPS
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Squared distances (W, K), px^2, from true positions after 1..K actions; episodes (W,).

    `imagined`: what a ridge reads from imagined latents; `encoded`: another from those of the true
    frames; `permuted`: imagined with the actions of another window; `last`, `mean`: the first
    position, the mean one of training; `between`: what a ridge makes of the first position;
    `guess`: the best of these three at each step. Every ridge is fitted on windows of training, on
    inputs of its own kind: a drawn frame is not quite like a true one, and how its encoding differs
    says nothing about what it shows. Empty where the environment tells no position.
    """
    if train.position is None:
        return {}, np.empty(0)
    longest = (int(part.episode.bincount().max()) for part in (train, data))
    steps = min(steps, model.config.data.sequence, *longest)
    seen, asked = (_Windows.draw(part, steps, seed) for part in (train, data))
    other = torch.randperm(len(asked.first), generator=torch.Generator().manual_seed(seed))
    places = {"encoded": _reader(seen.encoded(model), seen.place)(asked.encoded(model))}
    if (learned := seen.imagined(model, seen.action)) is not None:
        read = _reader(learned, seen.place)
        places["imagined"] = read(asked.imagined(model, asked.action))
        places["permuted"] = read(asked.imagined(model, asked.action[other]))
    own = [part.position[part.now[windows.first]][:, None].expand_as(windows.place)
           for part, windows in ((train, seen), (data, asked))]  # fmt: skip
    places["last"] = own[1]
    places["mean"] = train.position[train.now].mean(0).expand_as(asked.place)
    places["between"] = _reader(own[0].double(), seen.place)(own[1].double())
    found = {
        name: (place - asked.place).square().sum(-1).double().numpy()
        for name, place in places.items()
    }
    guesses = np.stack([found[name] for name in ("last", "mean", "between")])  # (3, W, K)
    best = guesses.mean(1).argmin(0)  # (K,)
    found["guess"] = np.take_along_axis(guesses, best[None, None], 0)[0]
    return found, data.episode[asked.first].numpy()


def _reader(latents: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    """(W, K, D) latents and (W, K, P) places -> a ridge from any such latents to places."""
    z = latents.flatten(0, 1)
    centre, spread = z.mean(0), z.std(0).clamp(min=1e-9)
    ridge = fit_ridge(((z - centre) / spread).float(), places.flatten(0, 1), STRENGTH)
    return lambda values: ridge(((values - centre) / spread).float())


class _Windows(NamedTuple):
    """W windows of K transitions."""

    first: Tensor  # (W,) their first rows
    state: Tensor  # (W, L, C, H, W) uint8
    action: Tensor  # (W, K, ...)
    after: Tensor  # (W, K, L, C, H, W) uint8
    place: Tensor  # (W, K, P) px, after each action

    @classmethod
    def draw(cls, data: Transitions, steps: int, seed: int) -> "_Windows":
        """At most `WINDOWS` of `data`, the same ones for every model."""
        first = data.windows(steps)
        first = first[pick(len(first), WINDOWS, seed)]
        rows = first[:, None] + torch.arange(steps)  # (W, K)
        batch = data[rows.flatten()]
        after = batch.next_state.unflatten(0, rows.shape)
        place = data.position[data.after[rows]]
        return cls(first, data[first].state, data.action[rows], after, place)

    def encoded(self, model: Any) -> Tensor:
        """(W, K, D) float64 latents of the true frames after each action, on the CPU."""
        device = model.background.device
        z = encode_chunked(model.encode_target, self.after.flatten(0, 1).to(device))
        return z.unflatten(0, self.after.shape[:2])

    def imagined(self, model: Any, action: Tensor) -> Tensor | None:
        """(W, K, D) float64 after these actions (W, K, ...); None without imagination."""
        device, found = model.background.device, []
        for state, taken in zip(self.state.split(CHUNK), action.split(CHUNK), strict=True):
            latents = model.unroll(state.to(device), taken.to(device))
            if latents is None:
                return None
            found.append(latents.cpu().double())
        return torch.cat(found)


def rms(squared: np.ndarray) -> np.ndarray:
    """(W, K) squared distances -> (K,) px."""
    return np.sqrt(squared.mean(0))


def spectrum(latents: np.ndarray) -> np.ndarray:
    """(M, D) -> (D,) eigenvalues of the covariance, largest first, not negative."""
    centred = latents - latents.mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2 / max(1, len(latents) - 1)
    return np.pad(values, (0, latents.shape[1] - len(values)))


def participation_ratio(latents: np.ndarray) -> float:
    """Directions that share the variance, in [1, D]: (sum l)^2 / sum l^2 of the eigenvalues l.

    Gao et al. 2017; NaN for a point.
    """
    values = spectrum(latents)
    return math.nan if _flat(latents) else float(values.sum() ** 2 / np.square(values).sum())


def two_nn(latents: np.ndarray) -> float:
    """Intrinsic dimension d from the nearest neighbours of every sample (Facco et al. 2017).

    F(r2 / r1) = 1 - (r2 / r1)^-d is a line through the origin in logarithms. Equal samples count
    once, NaN below 11 distinct ones.
    """
    from sklearn.neighbors import NearestNeighbors

    z = np.unique(latents, axis=0)
    if len(z) < _LEAST:
        return math.nan
    distance, _ = NearestNeighbors(n_neighbors=3).fit(z).kneighbors(z)  # itself, first, second
    ratio = np.sort(distance[:, 2] / distance[:, 1])
    kept = int(KEPT * len(ratio))
    x, y = np.log(ratio[:kept]), -np.log1p(-np.arange(1, kept + 1) / len(ratio))
    return float(x @ y / (x @ x)) if x.any() else math.nan


def trust(states: np.ndarray, latents: np.ndarray) -> float:
    """Share, in [0, 1], in which latent neighbours are neighbours in pixels (Venna & Kaski 2001).

    With the arguments swapped it is continuity.
    """
    from sklearn.manifold import trustworthiness

    if len(latents) < _LEAST or _flat(states) or _flat(latents):
        return math.nan
    return float(trustworthiness(states, latents, n_neighbors=NEIGHBOURS))


def smoothness(
    states: np.ndarray, next_states: np.ndarray, latents: np.ndarray, next_latents: np.ndarray
) -> float:
    """Squared Pearson correlation, in [0, 1], of |s_t - s_{t+1}| and |z_t - z_{t+1}| (M pairs)."""
    pixel = np.linalg.norm(next_states - states, axis=1)
    latent = np.linalg.norm(next_latents - latents, axis=1)
    if len(pixel) < 3 or _flat(pixel[:, None]) or _flat(latent[:, None]):
        return math.nan
    return float(np.corrcoef(pixel, latent)[0, 1] ** 2)


def uniformity(latents: np.ndarray) -> float:
    """log mean exp(-2 |u_i - u_j|^2), i != j, of latents on the unit sphere (Wang & Isola 2020).

    0 when all directions are equal, about -4 when they are spread evenly in many dimensions.
    """
    lengths = np.linalg.norm(latents, axis=1, keepdims=True)
    gaps = pdist(latents / lengths.clip(1e-12), "sqeuclidean")
    return float(logsumexp(-2 * gaps, b=1 / len(gaps))) if len(gaps) else math.nan


def noise_sensitivity(encode: Encode, state: Tensor, seed: int = 0) -> dict[float, float]:
    """{sigma: mean |z(s + noise) - z(s)| / spread of z}, noise N(0, sigma^2) on pixels in [0, 1].

    The spread is the root mean squared distance from the mean: at 1 noise moves a latent as far as
    another state would.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(state.shape, generator=generator).to(state.device)
    clean = encode_chunked(encode, state)
    spread = (clean - clean.mean(0)).square().sum(1).mean().sqrt()
    found = dict.fromkeys(SIGMAS, math.nan)
    if not _flat(clean.numpy()):
        for sigma in SIGMAS:
            noisy = (state + 255 * sigma * noise).round().clamp(0, 255).to(torch.uint8)
            shift = (encode_chunked(encode, noisy) - clean).norm(dim=1).mean()
            found[sigma] = float(shift / spread)
    return found


def measure(encode: Encode, state: Tensor, next_state: Tensor, seed: int = 0) -> dict[str, float]:
    """All measures of one encoder on M transitions, by the names of the comparison table."""
    z, after = (encode_chunked(encode, part).numpy() for part in (state, next_state))
    pixels = [part.flatten(1).cpu().double().numpy() / 255 for part in (state, next_state)]
    noise = noise_sensitivity(encode, state, seed)
    return {
        "participation_ratio": participation_ratio(z),
        "effective_rank": math.nan if _flat(z) else effective_rank(torch.from_numpy(z)),
        "two_nn_dimension": two_nn(z),
        "trustworthiness_at_5": trust(pixels[0], z),
        "continuity_at_5": trust(z, pixels[0]),
        "smoothness_r2": smoothness(*pixels, z, after),
        "uniformity": uniformity(z),
    } | {f"noise_{sigma:g}": value for sigma, value in noise.items()}


@torch.no_grad()
def encode_chunked(encode: Encode, state: Tensor) -> Tensor:
    """(M, ...) states -> (M, D) float64 latents on the CPU, 128 states at a time."""
    return torch.cat([encode(part).cpu().double() for part in state.split(128)])


def pick(count: int, most: int = MOST, seed: int = 0) -> Tensor:
    """At most `most` of `count` rows in ascending order, the same ones for every model."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def _flat(values: np.ndarray) -> bool:
    return bool(values.var(0).sum() <= FLAT * max(1.0, np.square(values).sum(1).mean()))
