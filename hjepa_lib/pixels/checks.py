"""Do training and validation transitions look alike, and what is in them (DATA-8, DATA-9)?

Each quantity is one number per sampled transition. Two-sample tests (Kolmogorov-Smirnov: any
difference; Mann-Whitney U: location; Anderson-Darling: tails) take samples as independent, which
neighbours of an episode are not: a flag asks for a look at the episodes, it is no verdict.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from hjepa_lib.files import WorkbookError
from hjepa_lib.pixels.transitions import Transitions

SAMPLES = 1_000  # transitions of each part that are looked at, at most
LEVEL = 0.05  # a smaller p-value is flagged by the rule `tests`
LIMITS = {"mean": 0.1, "std": 0.2}  # larger relative differences are flagged by `moments`
RULES = ("tests", "moments")
_LEAST_ANDERSON = 25


@dataclass(frozen=True)
class Check:
    """One quantity of both parts, with what the rule found."""

    quantity: str
    train: pd.Series  # location and spread, see `summarise`
    validation: pd.Series
    p_values: dict[str, float]  # by test; a test that does not apply is absent
    flags: tuple[str, ...]  # tests or moments that say "different"; empty: alike

    @property
    def alike(self) -> bool:
        return not self.flags


def summarise(values: np.ndarray) -> pd.Series:
    """count, mean, std, min, 25%, 50%, 75% and max of any array; NaN where it is empty."""
    return pd.Series(np.asarray(values, dtype=np.float64).ravel()).describe()


def compare(quantity: str, train: np.ndarray, validation: np.ndarray, rule: str = "tests") -> Check:
    """Whether two samples look alike; WorkbookError for an unknown rule or values not finite.

    An empty part is flagged as "empty". With fewer than 26 values a part, Anderson-Darling is
    left out; with fewer than 2, all tests are.
    """
    if rule not in RULES:
        raise WorkbookError(f"the rule must be one of {', '.join(RULES)}; got {rule!r}")
    parts = [np.asarray(part, dtype=np.float64).ravel() for part in (train, validation)]
    if not all(np.isfinite(part).all() for part in parts):
        raise WorkbookError(f"{quantity} holds NaN or infinite values")
    left, right = map(summarise, parts)
    least = min(map(len, parts))
    p_values = _p_values(*parts) if rule == "tests" and least > 1 else {}
    flags = [test for test, p in p_values.items() if p < LEVEL]
    if least == 0:
        flags = ["empty"]
    elif rule == "moments":  # a reference of 0 makes any difference infinite
        gaps = (right - left).abs()
        flags = [name for name, limit in LIMITS.items() if gaps[name] > limit * abs(left[name])]
    return Check(quantity, left, right, p_values, tuple(flags))


def _p_values(train: np.ndarray, validation: np.ndarray) -> dict[str, float]:
    distinct = len(np.unique(np.concatenate((train, validation)))) > 1
    with warnings.catch_warnings():
        # About ties, and about p of Anderson-Darling being cut to [0.001, 0.25].
        warnings.simplefilter("ignore")
        found = {
            "kolmogorov_smirnov": stats.ks_2samp(train, validation),
            "mann_whitney": stats.mannwhitneyu(train, validation),
        }
        if min(len(train), len(validation)) > _LEAST_ANDERSON and distinct:
            found["anderson_darling"] = stats.anderson_ksamp([train, validation])
    return {test: float(result.pvalue) for test, result in found.items()}


# --- transitions ------------------------------------------------------------------------------
def sample_rows(data: Transitions, count: int, seed: int = 0) -> torch.Tensor:
    """At most `count` different rows, ascending."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


def _newest(data: Transitions, rows: torch.Tensor) -> torch.Tensor:  # (n, C * H * W)
    return data.frames[data.now[rows]].flatten(1).float() / 255


def quantities(data: Transitions, samples: int = SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """(n,) each: a random pixel and the brightness of the newest frame in [0, 1], the reward."""
    rows = sample_rows(data, samples, seed)
    frames = _newest(data, rows)
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(frames.shape[1], (len(rows), 1), generator=generator)
    return {
        "pixel": frames.gather(1, place)[:, 0].numpy(),
        "brightness": frames.mean(1).numpy(),
        "reward": data.reward[rows].numpy(),
    }


def check_distributions(
    train: Transitions, validation: Transitions, samples: int = SAMPLES, rule: str = "tests"
) -> list[Check]:
    """One check per quantity on at most `samples` transitions of each part."""
    left, right = quantities(train, samples), quantities(validation, samples)
    return [compare(name, left[name], right[name], rule) for name in left]


def table(checks: list[Check]) -> pd.DataFrame:
    """Checks as rows: both means and standard deviations, p-values, flags."""
    rows = []
    for check in checks:
        row: dict[str, Any] = {"quantity": check.quantity}
        for part in ("train", "validation"):
            summary = getattr(check, part)
            row |= {f"{part} {name}": round(summary[name], 4) for name in LIMITS}
        row |= {f"p {name}": round(p, 4) for name, p in check.p_values.items()}
        rows.append(row | {"flags": ", ".join(check.flags) or "alike"})
    return pd.DataFrame(rows).set_index("quantity")


class Embedding(NamedTuple):
    """Sampled newest frames as points of the plane, training part first."""

    pca: np.ndarray  # (N, 2)
    explained: np.ndarray  # (2,) share of the variance
    tsne: np.ndarray | None  # (N, 2), None below 10 points
    held_out: np.ndarray  # (N,) bool, True for validation


def embed(
    train: Transitions, validation: Transitions, samples: int = 200, seed: int = 0
) -> Embedding:
    """PCA and t-SNE of at most `samples` frames of each part, fitted on both together."""
    parts = [_newest(data, sample_rows(data, samples, seed)) for data in (train, validation)]
    points = torch.cat(parts).numpy()
    held_out = np.repeat((False, True), [len(part) for part in parts])
    pca = PCA(n_components=2, random_state=seed)
    plane = pca.fit_transform(points)
    tsne = None
    if len(points) >= 10:
        perplexity = min(30.0, (len(points) - 1) / 3)
        method = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        tsne = method.fit_transform(points)
    return Embedding(plane, np.nan_to_num(pca.explained_variance_ratio_), tsne, held_out)


def inspect(data: Transitions) -> dict[str, Any]:
    """What is in a data set: shapes, types, ranges, frame differences in [0, 1] (DATA-9)."""
    rows = sample_rows(data, SAMPLES)  # differences of all rows of a large set would fill memory
    before, after = data.frames[data.now[rows]].float(), data.frames[data.after[rows]].float()
    change = (after - before).abs().flatten(1) / 255  # (n, C * H * W)
    lengths = data.episode.unique_consecutive(return_counts=True)[1]
    used = data.action.unique() if data.action_kind == "discrete" else None
    kind = str(data.action.dtype).removeprefix("torch.")
    return {
        "transitions": len(data),
        "episodes": len(lengths),
        "episode length": f"{int(lengths.min())} to {int(lengths.max())}",
        "state": f"{data.state_shape} uint8",
        "action": f"{data.action_kind}, {data.action_dim}, {kind}",
        "actions used": "all" if used is None or len(used) == data.action_dim else used.tolist(),
        "pixel range": f"{int(data.frames.min())} to {int(data.frames.max())}",
        "reward range": f"{float(data.reward.min()):.4g} to {float(data.reward.max()):.4g}",
        "non-zero rewards": int((data.reward != 0).sum()),
        "pixels that change per step": float((change > 0).float().mean()),
        "mean change of a pixel": float(change.mean()),
        "steps without any change": float((change.amax(1) == 0).float().mean()),
    }
