"""How well frozen latents predict rewards: MSE, R2, trivial baselines, and what looking ahead adds.

R2 = 1 - MSE / variance on held-out episodes. With few rewarded steps it measures luck: with fewer
than 50 non-zero rewards in a part it is not estimable. The gain of look-ahead is measured on the
same held-out transitions and seeds: squared error of LARP minus that of another head, negative
where looking ahead helps. Neighbouring transitions resemble each other, so intervals redraw blocks
of them, and are never narrower than Student's over the seeds (claims.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hjepa_lib.evaluation.statistics import Interval, bootstrap, paired
from hjepa_lib.files import WorkbookError
from hjepa_lib.pixels import claims
from hjepa_lib.pixels.claims import by_block
from hjepa_lib.pixels.pixelrows import UNTRAINED, untrained

RESAMPLES = 1000
MEAN_REWARD = "mean_reward"
"""Baseline: the mean of the training rewards, whatever the state."""
TITLES = {"reward_mlp": "reward MLP", "larp": "LARP", "larp_copy": "copy"}
GAPS = {
    "look_ahead": "LARP - reward MLP",
    "over_copy": "LARP - copy",
    "over_mean": "reward MLP - mean reward",
    "over_random": "reward MLP - that on random",
}
Cells = Sequence[Mapping[str, np.ndarray]]
"""Per seed: held-out rewards, their episode ids, and every head's predictions, all (n,)."""


class RewardError(WorkbookError):
    """Rewards or predictions that cannot be scored."""


class Score(NamedTuple):
    """Errors of one set of predictions on the validation part."""

    mse: float
    r2: float | None  # None: not estimable, `note` says why
    note: str = ""


def score(predicted: np.ndarray, reward: np.ndarray, note: str = "") -> Score:
    """MSE and R2 of predictions (n,); a `note` from `unestimable` replaces R2."""
    predicted, reward = np.asarray(predicted, float), np.asarray(reward, float)
    if predicted.shape != reward.shape or reward.ndim != 1 or len(reward) == 0:
        raise RewardError(
            f"predictions and rewards must be (n,), got {predicted.shape} and {reward.shape}"
        )
    if not np.isfinite(predicted).all():
        raise RewardError("a reward head predicts NaN or infinity")
    mse = float(np.square(predicted - reward).mean())
    return Score(mse, None if note else 1 - mse / float(reward.var()), note)


def squared_errors(cells: Cells, kind: str) -> np.ndarray:
    """(S, K) squared errors of head `kind` by block: one row per seed's {"reward": (n,), ...}.

    The mean over blocks is the mean over transitions. Raises RewardError when the seeds were not
    scored on the same transitions.
    """
    first = np.asarray(cells[0]["reward"])
    for cell in cells:
        if not np.array_equal(cell["reward"], first):
            raise RewardError("seeds were scored on different transitions; they cannot be paired")
    gaps = [np.square(np.asarray(cell[kind], float) - first) for cell in cells]
    return np.stack([by_block(gap, cells[0]["episode"]) for gap in gaps])


def difference(
    cells: Cells, first: str, second: str, other: Cells | None = None
) -> Interval | None:
    """Mean squared error of head `first` minus that of `second`, paired by seed and block.

    With `other`, `second` is a head of that model's cells. None when a head does not exist.
    """
    other = cells if other is None else other
    if first not in cells[0] or second not in other[0]:
        return None
    if not np.array_equal(cells[0]["reward"], other[0]["reward"]):
        raise RewardError("two models were scored on different transitions; they cannot be paired")
    errors = squared_errors(cells, first), squared_errors(other, second)
    return paired(*errors, claims.RESAMPLES)


def summarise(cells: Cells, kind: str, note: str) -> dict[str, Any]:
    """Mean and interval of the MSE over seeds and blocks, mean R2 over seeds, and n.

    {} for a head that the model does not have.
    """
    if kind not in cells[0]:
        return {}
    interval = bootstrap(squared_errors(cells, kind), resamples=RESAMPLES)
    scores = [score(cell[kind], cell["reward"], note) for cell in cells]
    r2 = None if note else float(np.mean([one.r2 for one in scores]))
    return {
        "mse": interval.estimate,
        "mse_low": interval.low,
        "mse_high": interval.high,
        "r2": r2,
        "note": note,
        "seeds": len(cells),
        "transitions": len(cells[0]["reward"]),
    }


def comparison(models: Mapping[str, Cells], note: str) -> list[dict[str, Any]]:
    """One row per model: all heads and baselines, and differences with intervals.

    `look_ahead`: LARP minus reward MLP; `over_copy`: LARP minus LARP that is told the present
    latent; `over_mean`, `over_random`: the better-known baselines, from the reward MLP. A value is
    None where the model lacks the head. The reference of `over_random` is the untrained encoder of
    the model's own architecture (`pixelrows.untrained`), where `models` holds it.
    """
    rows = []
    for name, cells in models.items():
        heads = {kind: summarise(cells, kind, note) for kind in (*TITLES, MEAN_REWARD)}
        gaps = {
            "look_ahead": difference(cells, "larp", "reward_mlp"),
            "over_copy": difference(cells, "larp", "larp_copy"),
            "over_mean": difference(cells, "reward_mlp", MEAN_REWARD),
            "over_random": None,
        }
        floor = untrained(name)
        if name not in UNTRAINED and floor in models:
            gaps["over_random"] = difference(cells, "reward_mlp", "reward_mlp", models[floor])
        rows.append({"model": name, "heads": heads, **gaps})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `comparison` for reading: MSE and R2 per head, differences with their intervals."""
    lines = {}
    for row in rows:
        line: dict[str, Any] = {"mean reward MSE": row["heads"][MEAN_REWARD]["mse"]}
        for kind, title in TITLES.items():
            found = row["heads"][kind]
            line[f"{title} MSE"] = found.get("mse", "not applicable")
            if kind != "larp_copy":
                missing = "not estimable" if found else "not applicable"
                r2 = found.get("r2")
                line[f"{title} R2"] = missing if r2 is None else r2
        for key, title in GAPS.items():
            line[title] = _interval_text(row[key])
        line["n"] = f"{row['heads']['reward_mlp']['seeds']} seeds x " + str(
            row["heads"]["reward_mlp"]["transitions"]
        )
        lines[row["model"]] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def _interval_text(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "not applicable"
    return f"{interval[0]:+.4f} [{interval[1]:+.4f}, {interval[2]:+.4f}]"


def verdict(interval: Interval | None, loaded: bool = False) -> str:
    """What the interval of LARP minus reward MLP says; nothing for weights from a file."""
    if interval is None:
        return "not applicable"
    if loaded:
        return "nothing claimed: the weights were loaded"
    if interval.high < 0:
        return "look-ahead helps"
    if interval.low > 0:
        return "look-ahead hurts"
    return "within noise"
